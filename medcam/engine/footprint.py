"""Where a feature cell lies in the input: stride and offset, measured and not assumed.

"Stretch the map over the image" is wrong by up to half a cell for most networks: a ResNet's stride-16 cell is centred 7.5 voxels away from
where stretching puts it. Here positions themselves are sent through the network. Every operation that mixes neighbours (convolution,
pooling, interpolation) is replaced by its effect on positions, the centre of the window that it looks at; every operation that acts on each
voxel alone (activation, normalisation) passes positions on; and those that move entries about, as attention in windows does, move them.
What arrives at a layer is the position in the input that each cell is centred on, and how the layer's tensor holds its cells. Padding is
extended linearly, so borders do not bend the answer. No data is touched: `ghosts`, `places`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medcam.engine.ghosts import At, Walk, at_of
from medcam.engine.layout import Layout, guess
from medcam.engine.mixtures import MIXTURES
from medcam.engine.moves import MOVES, POINTWISE
from medcam.engine.places import NOWHERE, Place, averaged, axes_of, line_of, of_input
from medcam.engine.rearrange import REARRANGEMENTS
from medcam.engine.skeleton import skeleton

_RULES = {**MOVES, **REARRANGEMENTS, **MIXTURES}


@dataclass(frozen=True)
class Footprint:
    """Cell c of a layer is centred on input index `offset + stride * c`, one number an axis.

    `measured` is False where the positions could not be followed through the network and an even spread over the input is assumed.
    """

    stride: tuple[float, ...]
    offset: tuple[float, ...]
    measured: bool = True


class Seen(NamedTuple):
    """One call of a module that gave a feature map.

    Parameters
    ----------
    name, kind
        As in `named_modules`, and the class of the module.
    shape, layout
        Of the tensor that it gave (the first feature map, if it gave several things), as the network has it.
    footprint
        Where its cells lie.
    ended
        When: a count of the modules' calls.
    tensor
        Calls with the same number gave one and the same tensor, as a block and its last member do. What an operation in place has changed
        counts as another.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    layout: Layout
    footprint: Footprint
    ended: int
    tensor: int


@dataclass(frozen=True)
class Reach:
    """What a tensor of the output depends on.

    Parameters
    ----------
    head
        When the last module with weights of its own ran that it went through.
    made_of
        The feature maps whose cells it was made of, one bit for each `Seen.tensor`. Of a network that reads a class token only, none behind
        the last attention is: what becomes of the other tokens there moves no score.
    """

    head: int
    made_of: int

    def includes(self, seen: Seen) -> bool:
        """Tell whether it was made of the cells of a feature map."""
        return bool(self.made_of >> seen.tensor & 1)


@dataclass(frozen=True, eq=False)
class Probe:
    """What a network's modules give for an input of some shape, found without computing anything.

    Parameters
    ----------
    seen
        The calls that gave feature maps, in the order in which they ended.
    output
        The network's output as it would be, in tensors that have the right shapes and no content; None where the network could not be
        followed to its end, so that `seen` may lack its last layers.
    """

    seen: tuple[Seen, ...]
    output: Any

    def reach(self, output: Any) -> Reach:
        """Return what a tensor of `self.output` (or all in a tuple, list or dictionary) depends on."""
        head, made_of = 0, 0
        for item in _tensors(output):
            if hasattr(item, "_medcam_at"):
                head, made_of = max(head, at_of(item).head), made_of | at_of(item).made_of
        return Reach(head, made_of)

    def reach_of(self, scores: Callable[[Any], Any]) -> Reach:
        """Return what the scores depend on that a function makes of the output; a choice that it makes by values is made by no value."""
        with torch.inference_mode(), Walk(_RULES, POINTWISE):
            return self.reach(scores(self.output))


def probe(network: nn.Module, inputs: Float[Tensor, "b c *s"]) -> Probe:
    """Return the feature maps of a network, how they are laid out and where their cells lie (of `inputs` only the shape counts).

    Costs no forward pass: operations on features are not carried out.
    """
    with skeleton(network) as copied:
        return walk(copied, inputs)


def walk(copied: nn.Module, inputs: Float[Tensor, "b c *s"]) -> Probe:
    """Return the `probe` of a network that may be run and hooked, as a skeleton may."""
    witness = _Witness(inputs)
    handles = [handle for name, module in copied.named_modules() for handle in witness.watch(name, module)]
    output = None
    try:
        with torch.inference_mode(), Walk(_RULES, POINTWISE) as mode:
            output = copied(mode.ghost(inputs.shape, inputs, At(of_input(inputs.shape))))
    except Exception:  # noqa: BLE001  whatever an operation on hollow tensors may raise, the layers before it are known
        output = None
    finally:
        for handle in handles:
            handle.remove()
    return Probe(tuple(witness.seen), output)


def footprints(network: nn.Module, inputs: Tensor, layers: Iterable[str]) -> dict[str, Footprint]:
    """Return where the cells of each named layer lie in `inputs` (`b c *s`; only its shape counts), at its last call.

    A layer that does not run or gives no feature map is left out.
    """
    last = {seen.name: seen.footprint for seen in probe(network, inputs).seen}
    return {name: last[name] for name in layers if name in last}


def even_spread(size: tuple[int, ...], cells: tuple[int, ...]) -> Footprint:
    """Return the footprint of cells spread evenly over the input: the assumption of last resort."""
    stride = tuple(n / t for n, t in zip(size, cells, strict=True))
    return Footprint(stride, tuple((s - 1) / 2 for s in stride), measured=False)


class _Witness:
    """Notes each module's feature map as it comes, and marks it, so that what is made of it can tell."""

    def __init__(self, inputs: Tensor) -> None:
        self.seen: list[Seen] = []
        self._inputs = tuple(inputs.shape)
        self._clock = 0
        self._tensors: dict[tuple[int, int], int] = {}
        self._alive: list[Tensor] = []
        self._found: dict[tuple[int, tuple[int, ...]], tuple[Place | None, tuple[Layout, Footprint] | None]] = {}

    def watch(self, name: str, module: nn.Module) -> list[Any]:
        weighs = not module._modules and any(value is not None for value in module._parameters.values())
        if not name and not weighs:
            return []
        # A partial, not a function made here: one for each module would cost more than all its calls where types are checked.
        return [module.register_forward_hook(partial(self._end, name, type(module).__name__, weighs))]

    def _end(self, name: str, kind: str, weighs: bool, _module: nn.Module, _args: Any, output: Any) -> None:
        if weighs:
            self._clock += 1
            for item in (output,) if isinstance(output, Tensor) else _tensors(output):
                if hasattr(item, "_medcam_at"):
                    place, made_of, lead, _, version = item._medcam_at
                    item._medcam_at = At(place, made_of, lead, self._clock, version)
        if name:
            self._note(name, kind, output)

    def _note(self, name: str, kind: str, output: Any) -> None:
        for item in output if isinstance(output, (tuple, list)) else (output,):
            if not hasattr(item, "_medcam_at") or not item.dtype.is_floating_point:
                continue
            place, made_of, lead, head, version = item._medcam_at
            shape = tuple(item.shape)
            # Places are few and shared: one is read once, and kept so that its id stays its own.
            known = (id(place), shape)
            if known not in self._found:
                self._found[known] = (place, _described(place, shape, self._inputs))
            found = self._found[known][1]
            if found is None:
                continue
            self._clock += 1
            self._alive.append(item)  # so that no later tensor gets its id
            number = self._tensors.setdefault((id(item), version), len(self._tensors))
            self.seen.append(Seen(name, kind, shape, found[0], found[1], self._clock, number))
            item._medcam_at = At(place, made_of | 1 << number, lead, head, version)
            return


def _described(place: Place | None, shape: tuple[int, ...], inputs: tuple[int, ...]) -> tuple[Layout, Footprint] | None:
    """Return the layout and the footprint of a tensor with that place, or None if it is no feature map."""
    size = inputs[2:]
    if not shape or shape[0] != inputs[0] or len(shape) not in (3, len(inputs)):
        return None
    if place is not None:
        if place.dims[0].runs:
            return None
        for kind in ("channels first", "channels last", "tokens"):
            found = _as(kind, place, shape, size)
            if found is not None:
                return found
        if any(map(axes_of, place.dims)):
            return None
    likely = guess(shape, inputs)
    return (likely, even_spread(size, likely.grid)) if likely is not None else None


def _as(kind: Any, place: Place, shape: tuple[int, ...], size: tuple[int, ...]) -> tuple[Layout, Footprint] | None:
    """Read a place as a layout of that kind: cells move along the input's axes, in order, and channels nowhere."""
    channel = 1 if kind == "channels first" else len(shape) - 1
    if (kind == "tokens") != (len(shape) == 3) or place.dims[channel].lead:
        return None
    extra = 0
    if kind == "tokens":
        dim = place.dims[1]
        extra = dim.lead
        lines = [(run, 0.0) for run in dim.runs if run.axis != NOWHERE and not run.roll]
        if (
            not lines
            or len(lines) < len(dim.runs)
            or [run.axis for run, _ in lines] != sorted({run.axis for run, _ in lines})
        ):
            return None
    else:
        lines = []
        for axis, at in enumerate(range(1, len(shape) - 1) if channel > 1 else range(2, len(shape))):
            line = line_of(place.dims[at])
            if shape[at] > 1 and (line is None or line[0].axis != axis):
                return None
            if line is not None:
                lines.append(line)
    start = averaged(place, channel).start
    stride, offset, grid = list(map(float, size)), list(start), [1] * len(size)
    for run, shift in lines:
        stride[run.axis], grid[run.axis] = run.step, run.length
        offset[run.axis] += shift
    layout = Layout(kind, tuple(grid), extra)
    if min(stride) <= 0:  # mirrored: no stride that others would understand
        return layout, even_spread(size, layout.grid)
    # A stride is a ratio of small integers and an offset a sum of half steps; the rounding drops what floats add. + 0.0 makes -0.0 zero.
    return layout, Footprint(tuple(round(s, 9) for s in stride), tuple(round(o, 9) + 0.0 for o in offset))


def _tensors(item: Any) -> Iterator[Tensor]:
    """Yield the tensors in tuples, lists and dictionaries, however deep."""
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, (tuple, list)):
        for part in item:
            yield from _tensors(part)
    elif isinstance(item, dict):
        yield from _tensors(list(item.values()))
