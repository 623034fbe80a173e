"""Where a feature cell lies in the input: stride and offset, measured and not assumed.

"Stretch the map over the image" is wrong by up to half a cell for most networks: a ResNet's stride-16 cell is centred 7.5 voxels away from
where stretching puts it. Here coordinates themselves are sent through the network. Every operation that mixes neighbours (convolution,
pooling, interpolation) is replaced by its effect on positions, the centre of the window that it looks at; every operation that acts on each
voxel alone (activation, normalisation) passes positions on. What arrives at a layer is the position in the input that each cell is centred
on. Padding is extended linearly, so borders do not bend the answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from medcam.engine.skeleton import find_layer, skeleton


def spatial_tensor(output, batch, ndim):
    for item in output if isinstance(output, (tuple, list)) else (output,):
        if isinstance(item, Tensor) and item.ndim == ndim and item.shape[0] == batch and item.is_floating_point():
            return item
    return None


_aten = torch.ops.aten


@dataclass(frozen=True)
class Footprint:
    """Cell c of a layer is centred on input index `offset + stride * c`, one number an axis.

    `measured` is False where the positions could not be followed through the network and an even spread over the input is assumed.
    """

    stride: tuple[float, ...]
    offset: tuple[float, ...]
    measured: bool = True


def footprints(network: nn.Module, inputs: Tensor, layers: Iterable[str]) -> dict[str, Footprint]:
    """Return where the cells of each named layer lie in `inputs` (`b c *s`; only its shape counts).

    A layer that does not run, has no spatial axes, or that positions do not reach is left out. The cost is that of the network's
    element-wise work.
    """
    size = tuple(inputs.shape[2:])
    found: dict[str, list[Tensor]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    sent = [0]

    def record(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            features = spatial_tensor(output, sent[0], inputs.ndim)
            if features is not None:
                shapes[name] = tuple(features.shape[2:])
                found.setdefault(name, []).append(_one_channel(features)[:, 0])

        return hook

    with skeleton(network) as copied, torch.inference_mode(False), torch.no_grad():
        handles = [find_layer(copied, name).register_forward_hook(record(name)) for name in layers]
        neutral = {p.untyped_storage().data_ptr() for p in (*copied.parameters(), *copied.buffers())}
        coordinates = _coordinates(inputs)
        try:
            # All at once; one by one for a network that is fixed to one sample, as exported programs are.
            for parts in ([coordinates], coordinates.split(1)):
                found.clear()
                for part in parts:
                    sent[0] = part.shape[0]
                    _send(copied, part, neutral)
                if found:
                    break
        finally:
            for handle in handles:
                handle.remove()
    return {name: _fit(_last(found.get(name, []), inputs.ndim - 1), size, shape) for name, shape in shapes.items()}


def _last(parts: list[Tensor], samples: int) -> Tensor | None:
    """Return the positions of a layer's last call."""
    if parts and parts[-1].shape[0] == samples:
        return parts[-1]
    # One by one; a layer that runs several times a pass has several parts for each sample.
    calls = len(parts) // samples
    return torch.cat(parts[calls - 1 :: calls]) if calls and len(parts) == calls * samples else None


def _send(network: nn.Module, coordinates: Tensor, neutral: set[int]) -> None:
    try:
        with _Positions(neutral, coordinates.ndim - 2):
            network(coordinates)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError, AssertionError):
        pass  # an operation that positions cannot pass: the layers behind it are left out


def even_spread(size: tuple[int, ...], cells: tuple[int, ...]) -> Footprint:
    """Return the footprint of cells spread evenly over the input: the assumption of last resort."""
    stride = tuple(n / t for n, t in zip(size, cells, strict=True))
    return Footprint(stride, tuple((s - 1) / 2 for s in stride), measured=False)


def _coordinates(inputs: Tensor) -> Tensor:
    """Return samples (1, x, y, ...): homogeneous coordinates, so that sums of branches average after division by the first."""
    size = inputs.shape[2:]
    axes = [torch.arange(n, dtype=torch.float32, device=inputs.device) for n in size]
    ramps = torch.stack([torch.ones(tuple(size), device=inputs.device), *torch.meshgrid(*axes, indexing="ij")])
    return ramps.unsqueeze(1).expand(-1, inputs.shape[1], *size)


def _fit(positions: Tensor | None, size: tuple[int, ...], cells: tuple[int, ...]) -> Footprint:
    fallback = even_spread(size, cells)
    if positions is None or positions.shape[0] != len(size) + 1 or not (positions[0] > 0).all():
        return fallback
    strides, offsets = [], []
    for axis, n in enumerate(cells):
        place = (positions[axis + 1] / positions[0]).double()
        if not torch.isfinite(place).all():
            return fallback
        others = [a for a in range(len(cells)) if a != axis]
        line = place.mean(others)
        index = torch.arange(n, dtype=torch.float64, device=line.device)
        centred = index - index.mean()
        slope = float((centred * line).sum() / (centred**2).sum()) if n > 1 else float(size[axis])
        start = float(line.mean()) - (slope if n > 1 else 0.0) * float(index.mean())
        along = [1] * len(cells)
        along[axis] = -1
        straight = (start + (slope if n > 1 else 0.0) * index).reshape(along)
        # Not a straight line along its own axis: the network moved positions in a way that a stride cannot say.
        if slope <= 0 or float((place - straight).abs().max()) > 0.5 * slope:
            return fallback
        # A stride is a ratio of small integers and an offset a sum of half steps; the rounding drops float32 noise.
        strides.append(round(slope, 4))
        offsets.append(round(start, 4) + 0.0)  # + 0.0 turns a negative zero into zero
    return Footprint(tuple(strides), tuple(offsets))


# Where branches meet, the one that was downsampled less decides: a decoder's voxel lies where its skip connection says, whatever shift the
# way down and up has made. Each downsampling therefore divides a branch's weight by this.
_COARSER = 1e-5


class _Positions(TorchDispatchMode):
    """Run a network on coordinates: each operation is replaced by what it does to the positions of its input."""

    def __init__(self, neutral: set[int], dims: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._neutral = neutral
        self._dims = dims

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # The answer True, torch's default, makes the first call import torch._dynamo: seconds, for a compiler that nobody runs here.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "convolution":
            return self._convolution(*args)
        if "pool" in name:
            return self._pool(func, name, args, kwargs)
        if name.startswith("upsample_"):
            return self._upsample(func, name, args, kwargs)
        if name in _GATES:
            return self._gate(args[0])
        if name.rstrip("_") in _POINTWISE or name in _ATTENTION:
            moved = args[2] if name in _ATTENTION else args[0]
            # The statistics that come beside the result are not read without a graph.
            unread = [moved.new_empty(0)] * (len(func._schema.returns) - 1)
            return (moved, *unread) if unread else moved
        if name in {"addmm", "mm"} and self._is_weight(args[-1]):
            source, weight = args[-2:]
            return source.mean(-1, keepdim=True).expand(*source.shape[:-1], weight.shape[-1])
        if name == "constant_pad_nd":
            return self._pad(args[0], args[1])
        if name.rstrip("_") in {"add", "sub", "mul", "div"}:
            return self._combine(func, args, kwargs)
        if name == "cat" and (args[1] if len(args) > 1 else kwargs.get("dim", 0)) == 1:
            return self._concatenate(args[0])
        return func(*args, **kwargs)

    def _is_weight(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._neutral

    def _combine(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """Add or multiply two branches; a constant, or a learned shift or scale, moves no position."""
        first: Any
        second: Any
        first, second = args[:2]
        if not isinstance(second, Tensor) or self._is_weight(second) or second.ndim == 0:
            return torch.as_tensor(first)
        if not isinstance(first, Tensor) or self._is_weight(first):
            return second
        result: Tensor = func(_one_channel(first), _one_channel(second), *args[2:], **kwargs)
        if func.overloadpacket.__name__.endswith("_"):
            return torch.as_tensor(first)
        return result.expand(torch.broadcast_shapes(first.shape, second.shape))

    def _concatenate(self, parts: list[Tensor]) -> Tensor:
        channels = sum(part.shape[1] for part in parts)
        mixed = torch.stack([_one_channel(part) * (part.shape[1] / channels) for part in parts]).sum(0)
        return mixed.expand(-1, channels, *mixed.shape[2:])

    def _convolution(
        self, source: Tensor, weight: Tensor, _bias: Any, stride: Any, padding: Any, dilation: Any,
        transposed: bool, output_padding: Any, groups: int,
    ) -> Tensor:  # fmt: skip
        result = _one_channel(source)
        for axis, k in enumerate(weight.shape[2:]):
            s, p, d = (_at(v, axis) for v in (stride, padding, dilation))
            n, middle = source.shape[axis + 2], (k - 1) * d / 2
            if transposed:
                count = (n - 1) * s - 2 * p + d * (k - 1) + _at(output_padding, axis) + 1
                result = _sample(result, axis + 2, count, 1 / s, (p - middle) / s)
            else:
                count = (n + 2 * p - d * (k - 1) - 1) // s + 1
                result = _sample(result, axis + 2, count, float(s), middle - p)
        channels = weight.shape[1] * groups if transposed else weight.shape[0]
        if not transposed and max(stride) > 1:
            result = result * _COARSER
        return result.expand(-1, channels, *result.shape[2:])

    def _pool(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Let the real pooling say the output's size, and place its cells by its window."""
        source = args[0]
        result = _one_channel(source)
        real = func(result, *args[1:], **kwargs)
        shape = (real[0] if isinstance(real, tuple) else real).shape
        for at in range(self._dims):
            axis = at + source.ndim - self._dims
            n, count = source.shape[axis], shape[axis]
            if "adaptive" in name:
                result = _sample(result, axis, count, n / count, (n / count - 1) / 2)
            else:
                k = _at(args[1], at)
                s = _at(args[2], at) if len(args) > 2 and args[2] else k
                p = _at(args[3], at) if len(args) > 3 else 0
                d = _at(args[4], at) if "max" in name and len(args) > 4 else 1
                result = _sample(result, axis, count, float(s), (k - 1) * d / 2 - p)
        if shape[-self._dims :] != source.shape[-self._dims :]:
            result = result * _COARSER
        result = result.expand(-1, source.shape[1], *result.shape[2:])
        return (result, real[1]) if isinstance(real, tuple) else result

    def _upsample(self, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
        source = args[0]
        result = _one_channel(source)
        shape = func(result, *args[1:], **kwargs).shape
        corners = "nearest" not in name and bool(args[2] if len(args) > 2 else kwargs.get("align_corners", False))
        for axis in range(2, source.ndim):
            n, count = source.shape[axis], shape[axis]
            step = (n - 1) / max(count - 1, 1) if corners else n / count
            result = _sample(result, axis, count, step, 0.0 if corners else (step - 1) / 2)
        return result.expand(-1, source.shape[1], *result.shape[2:])

    def _pad(self, source: Tensor, pad: list[int]) -> Tensor:
        """Extend (or crop) positions as the straight line goes on; `pad` counts from the last axis."""
        result = source
        for at in range(len(pad) // 2):
            axis, (before, after) = source.ndim - 1 - at, pad[2 * at : 2 * at + 2]
            result = _sample(result, axis, source.shape[axis] + before + after, 1.0, float(-before))
        return result

    def _gate(self, source: Tensor) -> Tensor:
        """A gate lets everything through; an attention matrix lets each token see itself."""
        if source.ndim >= 3 and source.shape[-1] == source.shape[-2] and source.ndim != self._dims + 2:
            return torch.eye(source.shape[-1], device=source.device).expand_as(source)
        return _one_channel(torch.ones_like(source)).expand_as(source)


# What acts on each voxel (or on a whole channel) alone, with or without the trailing underscore of an in-place form.
_POINTWISE = {
    "relu", "relu6", "leaky_relu", "_prelu_kernel", "rrelu_with_noise", "elu", "gelu", "silu", "mish", "celu",
    "softplus", "hardtanh", "hardswish", "threshold", "clamp", "clamp_min", "clamp_max", "native_dropout",
    "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training", "_batch_norm_with_update", "_batch_norm_no_update",
    "native_group_norm", "native_layer_norm",
}  # fmt: skip
_GATES = {"sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_", "tanh", "tanh_", "_softmax", "_safe_softmax"}
_ATTENTION = {
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_attention_math",
}  # fmt: skip


def _one_channel(features: Tensor) -> Tensor:
    """Return the mean over channels, `b 1 *s`, as a view of the memory where all channels are one (so in-place sums still work)."""
    return features.narrow(1, 0, 1) if features.stride(1) == 0 else features.mean(1, keepdim=True)


def _at(value: Any, axis: int) -> int:
    items = value if isinstance(value, (list, tuple)) else [value]
    return int(items[axis] if len(items) > 1 else items[0])


def _sample(values: Tensor, axis: int, count: int, step: float, start: float) -> Tensor:
    """Read `values` along an axis at `start + step * index`, linearly, and beyond its ends as the straight line goes on."""
    n = values.shape[axis]
    if (count, step, start) == (n, 1.0, 0.0):
        return values
    place = start + step * torch.arange(count, device=values.device, dtype=values.dtype)
    if n == 1:
        return values.expand(*(count if a == axis else -1 for a in range(values.ndim)))
    low = place.floor().clamp(0, n - 2).long()
    along = [1] * values.ndim
    along[axis] = -1
    share = (place - low).reshape(along)
    first, second = values.index_select(axis, low), values.index_select(axis, low + 1)
    return first + share * (second - first)
