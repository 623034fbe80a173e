"""Guided backpropagation and Deconvnet: rules for how a gradient passes a rectifier, whatever form the rectifier has.

The rule is hung on the nodes of the graph that a forward pass has left, and taken off after the backward pass. So the forward pass is the
network's own, bit for bit; a module, a function, a tensor method, an in-place call and an operator of an exported program are all the same
node; and one forward pass can serve a plain and a guided backward pass. One thing must be seen to while the network runs (`recording`):
torch buries an in-place call on a view, such as the in-place LeakyReLU behind an instance norm, in a node that shows nothing of it.

For a rectifier y = s(x) with the gradient g arriving at y, what is passed on to x is

    plain        s'(x) g
    guided       s'(x) [x > 0] max(g, 0)
    deconvnet    max(g, 0)

which for ReLU are the papers' rules (s' is 1 where x > 0, and 0 elsewhere). Rectifiers are the functions that grow with x where x is
positive and flatten out where it is negative: ReLU, ReLU6, LeakyReLU, PReLU, RReLU, ELU, CELU, SELU, GELU, SiLU (Swish), Mish, Softplus,
Hardswish, Threshold, clamp at 0 and maximum with 0; also where a network writes one out as x times a gate of x itself. A sigmoid, tanh or
softmax is no rectifier and keeps its own gradient.

References
----------
Guided: Springenberg et al., Striving for Simplicity, ICLR 2015 workshop, section 3.4. Deconvnet: Zeiler & Fergus, Visualizing and
Understanding Convolutional Networks, ECCV 2014, section 2.1. Both speak of ReLU alone; the rules for others are medcam's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from medcam.engine.rectifier_nodes import Site, kind_of, nodes_of, sites_among, unknown_among
from medcam.errors import ModelError

Rule = Literal["guided", "deconvnet"]
RULES: tuple[Rule, ...] = ("guided", "deconvnet")


@dataclass(frozen=True)
class Rectifiers:
    """The rectifiers in a graph: how many, of which kinds, and the network's own operations, which a rule cannot look into."""

    count: int
    kinds: tuple[str, ...]
    unknown: tuple[str, ...]


@contextmanager
def propagating(network: nn.Module, scores: Float[Tensor, "..."], rule: Rule) -> Iterator[Rectifiers]:
    """Let gradients of `scores` pass every rectifier by the rule, as long as the context lasts.

    The forward pass that made the scores should have run under `recording`. The graph belongs to one forward pass of one thread, so
    nothing that others use is changed.

    Raises
    ------
    ModelError
        If a part of the network hides its rectifiers: one compiled, or recomputed by reentrant checkpointing.
    """
    nodes = nodes_of(scores)
    sites = sites_among(nodes)
    if is_scripted(network) and any(kind_of(node) == "CopySlices" for node in nodes):
        raise ModelError(
            "this TorchScript network changes views in place (an in-place activation behind an instance norm does), where its rectifiers "
            "cannot be reached; load the network as plain modules or as a torch.export file (.pt2)"
        )
    known = {id(site.node) for site in sites}
    unknown = unknown_among([node for node in nodes if id(node) not in known])
    handles: list[RemovableHandle] = []
    try:
        for site in sites:
            handles.extend(_guide(site) if rule == "guided" else _deconvolve(site))
        # A backward pass may run pieces of the network again.
        with recording(network):
            yield Rectifiers(len(sites), tuple(sorted({site.kind for site in sites})), unknown)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recording(network: nn.Module) -> Iterator[None]:
    """Let this thread's forward passes leave rectifiers in the graph as nodes that a rule can act on.

    An in-place rectifier on a view is called on a copy, which is then copied into the view, so all that shares its memory changes as it
    did; and TorchScript fuses nothing.
    """
    with ExitStack() as stack:
        if is_scripted(network):
            stack.enter_context(torch.jit.optimized_execution(False))  # type: ignore[attr-defined]
        stack.enter_context(_OwnMemory())
        yield


def is_scripted(network: nn.Module) -> bool:
    """Tell whether TorchScript runs in a network."""
    return any(isinstance(module, torch.jit.ScriptModule) for module in network.modules())


# Functions that have an in-place form and can be a rectifier.
_WRITTEN = {
    "relu", "relu6", "leaky_relu", "rrelu", "elu", "celu", "selu", "silu", "mish", "hardswish", "threshold", "hardtanh", "clamp",
    "clamp_min", "clip", "mul", "multiply",
}  # fmt: skip


class _OwnMemory(TorchFunctionMode):
    """Calls in-place rectifiers on memory of their own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").split(".")[0]
        if name.rstrip("_") in _WRITTEN and (name.endswith("_") or kwargs.get("inplace") is True):
            view = args[0] if args else kwargs.get("input")
            if isinstance(view, Tensor) and view._is_view() and view.requires_grad:
                own = view.clone()
                func(own, *args[1:], **{key: value for key, value in kwargs.items() if key != "input"})
                view.copy_(own)
                return view
        return func(*args, **kwargs)


def _guide(site: Site) -> list[RemovableHandle]:
    def arriving(gradients: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(None if g is None else g.clamp(min=0) for g in gradients)

    handles = [site.node.register_prehook(arriving)]
    if site.sign:
        # A tensor that is recomputed when it is asked for may be asked for only once in a backward pass, and the node itself will.
        early = (_saved(site) <= 0) if _recomputed(site) else None

        def leaving(passed: tuple[Any, ...], _arrived: Any) -> tuple[Any, ...]:
            closed = _saved(site) <= 0 if early is None else early
            return tuple(
                g.masked_fill(closed, 0) if n in site.inputs and g is not None else g for n, g in enumerate(passed)
            )

        handles.append(site.node.register_hook(leaving))
    return handles


def _deconvolve(site: Site) -> list[RemovableHandle]:
    def leaving(passed: tuple[Any, ...], arrived: tuple[Any, ...]) -> tuple[Any, ...]:
        result = list(passed)
        for n in site.inputs[1:]:
            result[n] = None if passed[n] is None else torch.zeros_like(passed[n])
        if arrived[0] is not None:
            result[site.inputs[0]] = arrived[0].clamp(min=0) * site.full
        return tuple(result)

    return [site.node.register_hook(leaving)]


def _saved(site: Site) -> Tensor:
    value = getattr(site.node, site.sign)
    tensor: Tensor = value[0] if isinstance(value, tuple) else value
    return tensor


def _recomputed(site: Site) -> bool:
    """Whether the saved tensor is under hooks, as in a checkpointed block."""
    raw = getattr(site.node, f"_raw_{site.sign.removeprefix('_')}", None)
    one = raw[0] if isinstance(raw, (tuple, list)) else raw
    return getattr(one, "unpack_hook", None) is not None
