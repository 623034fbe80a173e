"""Cells: a map's values with the place of each in the input, and linear interpolation between them by explicit positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Results are made in parts of this many elements, so that what is blended stays in a CPU's cache; elsewhere launches cost more than memory.
_PART_CPU, _PART_OTHER = 2**18, 2**24


@dataclass(frozen=True, eq=False)
class Cells:
    """Values on a lattice of their own.

    Parameters
    ----------
    values
        The last axes are spatial, one for each number of `stride`.
    stride, offset
        Cell c is centred on input index `offset + stride * c`.
    """

    values: Float[Tensor, "..."]
    stride: tuple[float, ...]
    offset: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of cells along each spatial axis."""
        return tuple(self.values.shape[self.values.ndim - len(self.stride) :])


def at_positions(
    values: Float[Tensor, "..."], axis: int, positions: Float[Tensor, " n"] | Sequence[float]
) -> Float[Tensor, "..."]:
    """Interpolate along one axis, linearly between cells and constant beyond the outermost.

    Parameters
    ----------
    positions
        Where to look, as (fractional) cell indices of that axis; they may lie on another device than the values.

    Returns
    -------
    The values with `axis` as long as `positions`. A cell that is NaN makes NaN of every position that it has a share in.
    """
    n = values.shape[axis]
    axis %= values.ndim
    place = torch.as_tensor(positions, dtype=torch.float64).clamp(0, n - 1)
    low, high = place.floor(), place.ceil()
    share = (place - low).to(values).reshape(-1, *(1,) * (values.ndim - 1 - axis))
    low, high = low.to(values.device, torch.int64), high.to(values.device, torch.int64)
    result = values.new_empty(*values.shape[:axis], len(low), *values.shape[axis + 1 :])
    most = _PART_CPU if values.device.type == "cpu" else _PART_OTHER
    step = max(1, most * len(low) // max(1, result.numel()))
    for start in range(0, len(low), step):
        part = slice(start, start + step)
        lower, upper = values.index_select(axis, low[part]), values.index_select(axis, high[part])
        torch.lerp(lower, upper, share[part], out=result.narrow(axis, start, lower.shape[axis]))
    return result


def resampled(
    cells: Cells, shape: tuple[int, ...], *, stride: tuple[float, ...], offset: tuple[float, ...]
) -> Float[Tensor, "..."]:
    """Return the cells' values at other places: at input indices `offset + stride * c`, c counting up to `shape`.

    A stride of 1 and an offset of 0 with the input's shape gives the map at the input's size.
    """
    result = cells.values
    # From the last axis on: interpolating rows while they are few keeps the expensive last step in whole rows.
    for axis in reversed(range(len(shape))):
        here, there = (
            (cells.shape[axis], cells.stride[axis], cells.offset[axis]),
            (shape[axis], stride[axis], offset[axis]),
        )
        if here != there:
            place = offset[axis] + stride[axis] * torch.arange(shape[axis], dtype=torch.float64)
            result = at_positions(result, axis - len(shape), (place - cells.offset[axis]) / cells.stride[axis])
    return result


def on_voxels(
    values: Float[Tensor, "..."], stride: tuple[float, ...], offset: tuple[float, ...], sides: tuple[int, ...]
) -> Float[Tensor, "..."]:
    """Return values on cells (their last axes) at every voxel of an input of these sides."""
    return resampled(Cells(values, stride, offset), sides, stride=(1.0,) * len(sides), offset=(0.0,) * len(sides))
