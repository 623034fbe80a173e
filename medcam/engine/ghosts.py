"""Tensors that carry a place and no data, and the mode under which a network runs on them.

The network runs on *ghosts*: tensors of the true shape that hold one number only and carry a `Place`. Operations on ghosts compute shapes
and places and touch no data; operations on anything else, as a mask or a table of relative positions, run as they are. A ghost whose place
was lost goes on without one: what is added to it later, a skip connection for one, brings its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from medcam.engine.places import Place


class At(NamedTuple):
    """What a ghost carries.

    `made_of` are the feature maps whose cells its entries come from, one bit for each, `lead` the same for its entries without a place: a
    class token knows the cells of the attentions that it took part in. `head` is when the last module with weights ran that it went
    through, `version` counts the operations in place.
    """

    place: Place | None
    made_of: int = 0
    lead: int = 0
    head: int = 0
    version: int = 0


class Facts(NamedTuple):
    """What the schema of an operation says: asked once for each, since asking is slow."""

    name: str
    mutable: bool
    arguments: dict[str, int]
    returns: tuple[str, ...]


def _facts(func: Any) -> Facts:
    schema = func._schema
    arguments = {argument.name: at for at, argument in enumerate(schema.arguments)}
    returns = tuple(str(item.type) for item in schema.returns)
    return Facts(func.overloadpacket.__name__, schema.is_mutable, arguments, returns)


class Walk(TorchDispatchMode):
    """While it is on, operations on ghosts move places instead of computing."""

    def __init__(self, rules: Mapping[str, Rule], pointwise: Rule) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._named = rules
        self._pointwise = pointwise
        self._zeros: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._rules: dict[Any, tuple[Rule | None, Facts]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # The answer True, torch's default, makes the first call import torch._dynamo: seconds, for a compiler that nobody runs here.
        return False

    def ghost(self, shape: Sequence[int], like: Tensor, at: At, dtype: torch.dtype | None = None) -> Tensor:
        kind = (dtype or like.dtype, like.device)
        if kind not in self._zeros:
            self._zeros[kind] = torch.zeros((), dtype=kind[0], device=kind[1])
        return _carrying(self._zeros[kind].expand(shape), at)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        ghosts = []
        for item in args:
            if isinstance(item, Tensor):
                if hasattr(item, "_medcam_at"):
                    ghosts.append(item)
            elif isinstance(item, (list, tuple)) and item and isinstance(item[0], Tensor):
                ghosts += [part for part in item if hasattr(part, "_medcam_at")]
        if not ghosts:
            return func(*args, **kwargs)
        try:
            rule, facts = self._rules[func]
        except KeyError:
            rule, facts = self._rules[func] = self._rule(func), _facts(func)
        if rule is not None:
            result = rule(Call(self, func, args, kwargs, ghosts, facts))
            if result is not NotImplemented:
                return result
        return self._unknown(func, args, kwargs, ghosts)

    def _rule(self, func: Any) -> Rule | None:
        name = func.overloadpacket.__name__
        if name.startswith("new_"):
            return lambda call: call.func(*call.args, **call.kwargs)
        if torch.Tag.inplace_view in func.tags:
            return None
        return self._named.get(name.rstrip("_"), self._pointwise if torch.Tag.pointwise in func.tags else None)

    def _unknown(self, func: Any, args: Any, kwargs: Any, ghosts: list[Tensor]) -> Any:
        """Take an operation apart; where it has no parts, only its shape is known, and places are lost."""
        if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        at = joint(ghosts)._replace(place=None)
        if func._schema.is_mutable:
            if torch.Tag.inplace_view in func.tags:
                func(*args, **kwargs)
            args[0]._medcam_at = at._replace(version=at.version + 1)
            return args[0]
        try:
            hollow = tree_map_only(Tensor, lambda item: torch.empty_like(item, device="meta"), (args, kwargs))
            result = func(*hollow[0], **hollow[1])
            return tree_map_only(Tensor, lambda item: self.ghost(item.shape, ghosts[0], at, item.dtype), result)
        except (RuntimeError, NotImplementedError, ValueError, TypeError):
            # Its shape depends on values, or it gives a number.
            return tree_map_only(Tensor, lambda item: _carrying(item, at), func(*args, **kwargs))


class Call(NamedTuple):
    """One call of an operation on ghosts."""

    walk: Walk
    func: Any
    args: Any
    kwargs: Any
    ghosts: list[Tensor]
    facts: Facts

    @property
    def name(self) -> str:
        return self.facts.name

    def give(self, shape: Sequence[int], place: Place | None, *, dtype: torch.dtype | None = None) -> Tensor:
        """Return a new ghost with that place, knowing what the operation's ghosts knew."""
        at = at_of(self.ghosts[0]) if len(self.ghosts) == 1 else joint(self.ghosts)
        if place is not at.place:
            at = At(place, at.made_of, at.lead, at.head, at.version)
        return self.walk.ghost(shape, self.ghosts[0], at, dtype)

    def named(self, name: str, default: Any = None) -> Any:
        """Return an argument by its name in the operation's schema."""
        at = self.facts.arguments.get(name, len(self.args))
        return self.args[at] if at < len(self.args) else self.kwargs.get(name, default)

    def with_others(self, first: Tensor, dtype: torch.dtype | None = None) -> Any:
        """Return a result beside the operation's others: of the same shape if they have a `dtype`, as indices do, else not to be read."""
        returns = self.facts.returns
        if len(returns) == 1:
            return first
        other = self.walk.ghost(first.shape if dtype else (0,), first, at_of(first), dtype)
        return (first, *(other if kind == "Tensor" else 0 for kind in returns[1:]))


Rule = Callable[[Call], Any]


def at_of(ghost: Tensor) -> At:
    return ghost._medcam_at  # type: ignore[attr-defined, no-any-return]


def place_of(item: Any) -> Place | None:
    return at_of(item).place if hasattr(item, "_medcam_at") else None


def _carrying(tensor: Tensor, at: At) -> Tensor:
    tensor._medcam_at = at  # type: ignore[attr-defined]
    return tensor


def joint(ghosts: list[Tensor]) -> At:
    every = [at_of(ghost) for ghost in ghosts]
    first = every[0]
    for at in every[1:]:
        if at[1:4] != first[1:4]:
            made_of, lead = first.made_of | at.made_of, first.lead | at.lead
            first = At(first.place, made_of, lead, max(first.head, at.head), first.version)
    return first
