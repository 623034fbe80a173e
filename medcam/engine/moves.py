"""What each operation of a network does to the places of its tensors: those that treat each cell alone, and those that slide a window."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import floor
from typing import Any

import torch
from torch import Tensor

from medcam.engine.ghosts import At, Call, Rule, at_of, joint, place_of
from medcam.engine.places import Dim, Place, averaged, combined, fitted, line_of, reach, resampled, spread

# Each cell alone.


def _pointwise(call: Call) -> Any:
    tensors = [item for item in call.args if isinstance(item, Tensor)]
    first = call.ghosts[0]
    shape = first.shape if all(item.shape == first.shape for item in tensors) else _broadcast(tensors)
    places = [at.place for at in map(at_of, call.ghosts) if at.place is not None]
    if len(places) > 1 and call.name.rstrip("_") in ("mul", "div"):
        places = [place for place in places if not place.gate] or places
    place: Place | None = None
    if places:
        place = spread(places[0], len(shape))
        for item in places[1:]:
            place = combined(place, spread(item, len(shape))) if place is not None else None
        place = fitted(place, shape) if place is not None and shape is not first.shape else place
    if call.facts.mutable:
        target = call.args[0]
        at = joint(call.ghosts)
        target._medcam_at = at._replace(place=place, version=at.version + 1)
        return target
    return call.give(shape, place, dtype=torch.bool if call.name in _COMPARISONS else None)


def _broadcast(tensors: list[Tensor]) -> Sequence[int]:
    return tuple(torch.broadcast_shapes(*(item.shape for item in tensors)))


def _same(call: Call) -> Any:
    """What keeps the shape and mixes nothing but channels: norms, dropout, one token's attention to itself and others."""
    first = call.args[0]
    if call.facts.mutable and call.name.endswith("_"):
        at = at_of(first)
        first._medcam_at = at._replace(version=at.version + 1)
        return first
    return call.with_others(call.give(first.shape, place_of(first)))


def _gate(call: Call) -> Any:
    place = place_of(call.args[0])
    if place is not None and not place.gate:
        at = at_of(call.args[0])
        if call.facts.mutable:
            call.args[0]._medcam_at = at._replace(place=place._replace(gate=True), version=at.version + 1)
            return call.args[0]
        return call.give(call.args[0].shape, place._replace(gate=True))
    return _same(call)


def _copy(call: Call) -> Any:
    dtype = next((item for item in (*call.args, *call.kwargs.values()) if isinstance(item, torch.dtype)), None)
    if isinstance(call.args[-1], Tensor) and len(call.args) > 1:
        dtype = call.args[-1].dtype
    return call.give(call.args[0].shape, place_of(call.args[0]), dtype=dtype)


def _written(call: Call) -> Any:
    """`copy_`: the target is where its source is."""
    target, source = call.args[:2]
    place = place_of(source)
    at = joint(call.ghosts)
    version = at_of(target).version + 1 if hasattr(target, "_medcam_at") else 1
    place = spread(place, target.ndim) if place is not None else None
    target._medcam_at = at._replace(place=place, version=version)
    return target


def _blank(call: Call) -> Tensor:
    return call.walk.ghost(call.args[0].shape, call.args[0], At(None), call.named("dtype"))


# Windows.


def _window(place: Place | None, at: int, count: int, step: float, start: float) -> Place | None:
    if place is None:
        return None
    found = resampled(place, at, count, step, start)
    # A sequence of tokens is no line; a window that slides along it by ones leaves each at its place.
    return place if found is None and step == 1 and reach(place.dims[at]) == count else found


def _along(value: Any, axis: int) -> int:
    return int(value) if not isinstance(value, (list, tuple)) else int(value[axis] if len(value) > 1 else value[0])


def _convolution(call: Call) -> Any:
    name = call.name
    source, weight = call.args[:2]
    options = dict(
        zip(_CONVOLUTIONS[name.startswith("conv_transpose"), name == "convolution"], call.args[2:], strict=False)
    )
    options.update(call.kwargs)
    if not hasattr(source, "_medcam_at") or isinstance(options.get("padding"), str):
        return NotImplemented
    transposed = options.get("transposed", name.startswith("conv_transpose"))
    spatial = weight.ndim - 2
    channel = source.ndim - spatial - 1
    place = place_of(source)
    place = averaged(place, channel)._replace(gate=False) if place is not None else None
    shape, coarser = list(source.shape), 1.0
    for axis in range(spatial):
        k, n, at = weight.shape[axis + 2], source.shape[channel + 1 + axis], channel + 1 + axis
        s, p, d = (
            _along(options.get(word, other), axis) for word, other in (("stride", 1), ("padding", 0), ("dilation", 1))
        )
        middle = (k - 1) * d / 2
        if transposed:
            shape[at] = (n - 1) * s - 2 * p + d * (k - 1) + _along(options.get("output_padding", 0), axis) + 1
            place = _window(place, at, shape[at], 1 / s, (p - middle) / s)
        else:
            shape[at] = (n + 2 * p - d * (k - 1) - 1) // s + 1
            place = _window(place, at, shape[at], float(s), middle - p)
            coarser *= s
    shape[channel] = weight.shape[1] * options.get("groups", 1) if transposed else weight.shape[0]
    return call.give(shape, _coarser(place, coarser))


def _coarser(place: Place | None, factor: float) -> Place | None:
    return place._replace(coarse=place.coarse * factor) if place is not None and factor > 1 else place


def _pool(call: Call) -> Any:
    source, kernel = call.args[:2]
    spatial = int(call.name.split("pool")[1][0])
    stride = call.named("stride") or kernel
    place, shape, coarser = place_of(source), list(source.shape), 1.0
    for axis in range(spatial):
        at = source.ndim - spatial + axis
        n, k, s = shape[at], _along(kernel, axis), _along(stride, axis)
        p, d = _along(call.named("padding", 0), axis), _along(call.named("dilation", 1), axis)
        room = n + 2 * p - d * (k - 1) - 1
        shape[at] = (-(-room // s) if call.named("ceil_mode", False) else room // s) + 1
        if (shape[at] - 1) * s >= n + p:  # a last window may not begin in the padding
            shape[at] -= 1
        place = _window(place, at, shape[at], float(s), (k - 1) * d / 2 - p)
        coarser *= s
    return call.with_others(call.give(shape, _coarser(place, coarser)), torch.int64)


def _adaptive(call: Call) -> Any:
    source, wanted = call.args[:2]
    spatial = int(call.name.split("pool")[1][0])
    place, shape, coarser = place_of(source), list(source.shape), 1.0
    for axis in range(spatial):
        at = source.ndim - spatial + axis
        item = wanted[axis] if isinstance(wanted, (list, tuple)) and len(wanted) > 1 else wanted
        item = item[0] if isinstance(item, (list, tuple)) else item
        n, shape[at] = shape[at], shape[at] if item is None else int(item)
        step = n / shape[at]
        if place is not None:
            line = shape[at] == 1 or line_of(place.dims[at]) is not None
            place = (
                averaged(place, at)
                if shape[at] == 1
                else _window(place, at, shape[at], step, (step - 1) / 2)
                if line
                else None
            )
        coarser *= step
    return call.with_others(call.give(shape, _coarser(place, coarser)), torch.int64)


def _upsample(call: Call) -> Any:
    source, wanted = call.args[:2]
    name = call.name
    scales = call.named("scale_factors")
    if scales is None:
        scales = [call.named(word) for word in ("scales_d", "scales_h", "scales_w")][5 - source.ndim :]
        scales = [call.named("scales")] if source.ndim == 3 else scales
    place, shape = place_of(source), list(source.shape)
    for axis in range(source.ndim - 2):
        n, scale = source.shape[axis + 2], scales[axis]
        count = shape[axis + 2] = int(wanted[axis]) if wanted is not None else floor(n * scale)
        step = Fraction(1 / scale).limit_denominator(1000) if scale else Fraction(n, count)
        if "nearest" in name:
            # Each cell copies the one at the floor of its place, and is centred where its copies are on average.
            half, ties = Fraction(1, 2) if "exact" in name else 0, step.denominator
            start = float(sum(floor((i + half) * step) - i * step for i in range(ties)) / ties)
        elif call.named("align_corners", False) and n > 1:
            step, start = Fraction(n - 1, max(count - 1, 1)), 0.0
        else:
            start = float((step - 1) / 2)
        place = _window(place, axis + 2, count, float(step), start)
    return call.give(shape, place)


def _unpool(call: Call) -> Any:
    source, size = call.args[0], call.args[2]
    place, shape = place_of(source), list(source.shape)
    for axis, count in enumerate(size):
        at = source.ndim - len(size) + axis
        step, shape[at] = shape[at] / count, count
        place = _window(place, at, count, step, (step - 1) / 2)
    return call.give(shape, place)


def _pad(call: Call) -> Any:
    """Extend (or crop) lines as they go on, whatever is put there; `pad` counts from the last axis."""
    source, pad = call.args[:2]
    place, shape = place_of(source), list(source.shape)
    for axis in range(len(pad) // 2):
        at, (before, after) = source.ndim - 1 - axis, pad[2 * axis : 2 * axis + 2]
        shape[at] += before + after
        if place is not None and place.dims[at].runs and (before or after):
            dim = place.dims[at]
            if line_of(dim) is None and min(before, after) >= 0:
                padded = Dim(dim.runs, dim.lead + before, dim.trail + after)
                place = place._replace(dims=(*place.dims[:at], padded, *place.dims[at + 1 :]))
            else:
                place = resampled(place, at, shape[at], 1.0, float(-before))
    return call.give(shape, place)


# The arguments behind source and weight: of a convolution, a transposed one, and the operation that both become.
_CONVOLUTIONS = {
    (False, False): ("bias", "stride", "padding", "dilation", "groups"),
    (True, False): ("bias", "stride", "padding", "output_padding", "groups", "dilation"),
    (False, True): ("bias", "stride", "padding", "dilation", "transposed", "output_padding", "groups"),
}
_COMPARISONS = {
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "isnan",
    "isinf",
    "isfinite",
    "logical_not",
    "logical_and",
    "logical_or",
}

_SAME = (
    "batch_norm", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training", "_batch_norm_with_update", "_batch_norm_no_update", "_batch_norm_impl_index",
    "group_norm", "native_group_norm", "layer_norm", "native_layer_norm", "instance_norm", "rms_norm", "_fused_rms_norm",
    "dropout", "feature_dropout", "alpha_dropout", "native_dropout", "prelu", "_prelu_kernel", "rrelu", "rrelu_with_noise",
    "clone", "alias", "detach", "contiguous", "lift_fresh", "relu6", "selu", "celu", "cumsum", "cumprod",
    "_transformer_encoder_layer_fwd", "_native_multi_head_attention", "bernoulli", "nan_to_num",
)  # fmt: skip
_WINDOWS = {
    **{f"conv{n}d": _convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _convolution for n in (1, 2, 3)},
    **{f"{kind}_pool{n}d{end}": _pool for kind in ("max", "avg") for n in (1, 2, 3) for end in ("", "_with_indices")},
    **{
        f"{begin}adaptive_{kind}_pool{n}d": _adaptive
        for begin in ("", "_")
        for kind in ("max", "avg")
        for n in (1, 2, 3)
    },
    **{
        f"{begin}upsample_{kind}": _upsample
        for begin in ("", "_")
        for kind in (
            "nearest1d", "nearest2d", "nearest3d", "nearest_exact1d", "nearest_exact2d", "nearest_exact3d",
            "linear1d", "bilinear2d", "trilinear3d", "bicubic2d", "bilinear2d_aa", "bicubic2d_aa",
        )
    },
    **{f"max_unpool{n}d": _unpool for n in (2, 3)},
    **{f"{kind}_pad{n}d": _pad for kind in ("reflection", "replication") for n in (1, 2, 3)},
}  # fmt: skip

POINTWISE: Rule = _pointwise
MOVES: dict[str, Rule] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(("sigmoid", "hardsigmoid", "tanh", "softmax", "_softmax", "_safe_softmax"), _gate),
    **dict.fromkeys(("to", "_to_copy", "type_as"), _copy),
    **dict.fromkeys(("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"), _blank),
    **_WINDOWS,
    "convolution": _convolution,
    "constant_pad_nd": _pad,
    "pad": _pad,
    "copy": _written,
}
