"""What each operation of a network does to the places of its tensors: those that move entries about."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from medcam.engine.ghosts import Call, Rule, at_of, place_of
from medcam.engine.places import (
    NOWHERE,
    STILL,
    Dim,
    Place,
    Run,
    axes_of,
    fitted,
    line_of,
    picked,
    resampled,
    reshaped,
    rolled,
    sliced,
    spread,
)


def _view(call: Call) -> Any:
    source, wanted = call.args[0], call.args[1]
    if not isinstance(wanted, (list, tuple)):
        return _retyped(call)
    shape = list(wanted)
    if -1 in shape:
        shape[shape.index(-1)] = source.numel() // max(-prod(shape), 1)
    place = place_of(source)
    return call.give(shape, reshaped(place, source.shape, shape) if place is not None else None)


def _retyped(call: Call) -> Any:
    return call.give(call.args[0].shape, place_of(call.args[0]), dtype=call.args[1])


def _permute(call: Call) -> Any:
    source = call.args[0]
    order = list(range(source.ndim))
    name = call.name
    if name == "permute":
        order = [at % source.ndim for at in call.args[1]]
    elif source.ndim > 1:
        one, two = (at % source.ndim for at in (call.args[1:3] if name != "t" else (0, 1)))
        order[one], order[two] = order[two], order[one]
    place = place_of(source)
    moved = place._replace(dims=tuple(place.dims[at] for at in order)) if place is not None else None
    return call.give([source.shape[at] for at in order], moved)


def _expand(call: Call) -> Any:
    source, wanted = call.args[:2]
    missing = len(wanted) - source.ndim
    shape = [source.shape[at - missing] if n == -1 else n for at, n in enumerate(wanted)]
    place = place_of(source)
    return call.give(shape, fitted(spread(place, len(shape)), shape) if place is not None else None)


def _unsqueeze(call: Call) -> Any:
    source, at = call.args[:2]
    at %= source.ndim + 1
    place = place_of(source)
    if place is not None:
        place = place._replace(dims=(*place.dims[:at], STILL, *place.dims[at:]))
    return call.give([*source.shape[:at], 1, *source.shape[at:]], place)


def _squeeze(call: Call) -> Any:
    source = call.args[0]
    wanted = call.args[1] if len(call.args) > 1 else range(source.ndim)
    gone = {at % source.ndim for at in ([wanted] if isinstance(wanted, int) else wanted)}
    kept = [at for at in range(source.ndim) if at not in gone or source.shape[at] != 1]
    place = place_of(source)
    place = place._replace(dims=tuple(place.dims[at] for at in kept)) if place is not None else None
    return call.give([source.shape[at] for at in kept], place)


def _part(call: Call, at: int, first: int, count: int, step: int = 1) -> Tensor:
    """Return some of the entries along an axis."""
    source = call.args[0]
    shape = [*source.shape[:at], count, *source.shape[at + 1 :]]
    place = place_of(source)
    if place is None:
        return call.give(shape, None)
    dim = place.dims[at]
    held = prod(run.length for run in dim.runs)
    if first + count <= dim.lead or (dim.runs and first >= dim.lead + held):
        return _placeless(call, shape, place._replace(dims=(*place.dims[:at], STILL, *place.dims[at + 1 :])))
    return call.give(shape, sliced(place, at, first, count, step))


def _placeless(call: Call, shape: list[int], place: Place) -> Tensor:
    """Return entries that have no place: they know what the class token knows."""
    at = at_of(call.args[0])
    return call.walk.ghost(shape, call.args[0], at._replace(place=place, made_of=at.lead))


def _slice(call: Call) -> Any:
    source = call.args[0]
    at, first, end, step = (call.named(*item) for item in (("dim", 0), ("start", 0), ("end", None), ("step", 1)))
    at %= source.ndim
    indices = range(source.shape[at])[first:end:step]
    return _part(call, at, indices.start, len(indices), step)


def _select(call: Call) -> Any:
    source, at, index = call.args[:3]
    return _entry(call, at % source.ndim, index % source.shape[at])


def _entry(call: Call, at: int, index: int) -> Tensor:
    source = call.args[0]
    shape = [*source.shape[:at], *source.shape[at + 1 :]]
    place = place_of(source)
    if place is None:
        return call.give(shape, None)
    dim = place.dims[at]
    if dim.runs and not 0 <= index - dim.lead < prod(run.length for run in dim.runs):
        return _placeless(call, shape, place._replace(dims=(*place.dims[:at], *place.dims[at + 1 :])))
    return call.give(shape, picked(place, at, index))


def _unbind(call: Call) -> Any:
    at = call.named("dim", 0) % call.args[0].ndim
    return [_entry(call, at, index) for index in range(call.args[0].shape[at])]


def _split(call: Call) -> Any:
    source, sizes = call.args[:2]
    at = call.named("dim", 0) % source.ndim
    total = source.shape[at]
    if isinstance(sizes, int):
        sizes = [min(sizes, total - first) for first in range(0, total, sizes)]
    return [_part(call, at, sum(sizes[:n]), size) for n, size in enumerate(sizes)]


def _roll(call: Call) -> Any:
    source, shifts, dims = call.args[0], call.named("shifts"), call.named("dims", [])
    place = place_of(source)
    if not dims:
        return call.give(source.shape, None)
    for shift, at in zip(shifts, dims, strict=True):
        place = rolled(place, at % source.ndim, source.shape[at], shift) if place is not None else None
    return call.give(source.shape, place)


def _flip(call: Call) -> Any:
    source = call.args[0]
    place = place_of(source)
    for at in call.args[1]:
        n = source.shape[at]
        place = resampled(place, at % source.ndim, n, -1.0, float(n - 1)) if place is not None else None
    return call.give(source.shape, place)


def _repeat(call: Call) -> Any:
    source, times = call.args[:2]
    missing = len(times) - source.ndim
    shape = [n * (source.shape[at - missing] if at >= missing else 1) for at, n in enumerate(times)]
    place = place_of(source)
    if place is not None:
        place = spread(place, len(shape))
        again = any(n > 1 and axes_of(dim) for n, dim in zip(times, place.dims, strict=True))
        place = None if again else fitted(place, shape)
    return call.give(shape, place)


def _repeat_each(call: Call) -> Any:
    source, times = call.args[:2]
    at = call.named("dim")
    if not isinstance(times, int) or at is None:
        return NotImplemented
    at %= source.ndim
    shape = [*source.shape[:at], source.shape[at] * times, *source.shape[at + 1 :]]
    place = place_of(source)
    if place is not None and place.dims[at].runs:
        dim = place.dims[at]
        more = Dim((*dim.runs, Run(times, NOWHERE, 0.0)), dim.lead * times, dim.trail * times)
        place = place._replace(dims=(*place.dims[:at], more, *place.dims[at + 1 :]))
    return call.give(shape, place)


def _unfold(call: Call) -> Any:
    source, at, size, step = call.args[:4]
    at %= source.ndim
    count = (source.shape[at] - size) // step + 1
    place = place_of(source)
    if place is not None:
        line = line_of(place.dims[at])
        inside = Dim((Run(size, line[0].axis, line[0].step),)) if line and size > 1 else STILL
        place = resampled(place, at, count, float(step), 0.0) if line or not place.dims[at].runs else None
        place = place._replace(dims=(*place.dims, inside)) if place is not None else None
    return call.give([*source.shape[:at], count, *source.shape[at + 1 :], size], place)


def _shuffle(call: Call) -> Any:
    """Pixel shuffle and its inverse: a view, axes exchanged, a view."""
    source, r = call.args[:2]
    *batch, c, h, w = source.shape
    at = len(batch)
    if call.name == "pixel_shuffle":
        broken, order, shape = (c // r**2, r, r, h, w), (0, 3, 1, 4, 2), (c // r**2, h * r, w * r)
    else:
        broken, order, shape = (c, h // r, r, w // r, r), (0, 2, 4, 1, 3), (c * r**2, h // r, w // r)
    place = place_of(source)
    if place is not None:
        place = reshaped(place, source.shape, (*batch, *broken))
    if place is not None:
        dims = (*place.dims[:at], *(place.dims[at + n] for n in order))
        place = reshaped(place._replace(dims=dims), (*batch, *(broken[n] for n in order)), (*batch, *shape))
    return call.give((*batch, *shape), place)


def _index(call: Call) -> Any:
    """Entries chosen along one axis that moves nowhere; others are lost."""
    source, indices = call.args[:2]
    chosen = [at for at, index in enumerate(indices) if index is not None]
    if len(chosen) != 1 or not hasattr(source, "_medcam_at"):
        return NotImplemented
    (at,), place = chosen, place_of(source)
    index = indices[at]
    if index.ndim != 1 or index.dtype.is_floating_point or index.element_size() == 1:
        return NotImplemented
    shape = [*source.shape[:at], len(index), *source.shape[at + 1 :]]
    still = place is not None and not axes_of(place.dims[at])
    return call.give(shape, fitted(place, shape) if place is not None and still else None)


REARRANGEMENTS: dict[str, Rule] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "_reshape_alias", "_reshape_copy", "view_copy"), _view),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "swapdims", "t"), _permute),
    "expand": _expand,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "slice": _slice,
    "select": _select,
    "unbind": _unbind,
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"), _split),
    "roll": _roll,
    "flip": _flip,
    "repeat": _repeat,
    "repeat_interleave": _repeat_each,
    "unfold": _unfold,
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), _shuffle),
    "index": _index,
}
