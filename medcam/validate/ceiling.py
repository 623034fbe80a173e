"""The resolution ceiling: what a map on this layer's cells could show of the lesion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32

from medcam.errors import UsageError
from medcam.geometry import Grid, resample


def ceiling(
    lesion: Bool[np.ndarray, "i j k"],
    grid: Grid,
    *,
    input_grid: Grid,
    feature_shape: Sequence[int],
    stride: Sequence[float],
    offset: Sequence[float],
) -> Float32[np.ndarray, "i j k"]:
    """Return the lesion as a map of a layer's cells would show it: averaged over each cell, and put back as maps are.

    Scored like a map, it tells a layer that is too coarse from a map that is wrong. It weighs each cell by the lesion in it, so it is no
    strict bound: a map that happens to sharpen the lesion's edge can pass it in a measure.

    Parameters
    ----------
    grid
        Where the lesion lies, and the heatmap.
    input_grid
        The grid of the network's input, that `medcam.prepare` gives; `grid` itself where nothing was resampled.
    feature_shape, stride, offset
        As in the recipe: cell c is centred on input index `offset + stride * c`. Two numbers for a network of two dimensions.

    Raises
    ------
    UsageError
        If the recipe does not say where the cells lie.
    """
    dims = len(feature_shape)
    if dims not in (2, 3) or len(stride) != dims or len(offset) != dims:
        raise UsageError(
            "where the map's cells lie is not known: a feature shape, a stride and an offset of two or three numbers each are needed, "
            f"not {tuple(feature_shape)}, {tuple(stride)} and {tuple(offset)}"
        )
    shape = [*feature_shape, 1][:3]
    steps, starts = [*stride, 1.0][:3], [*offset, 0.0][:3]
    cells = input_grid.coarsened(
        (shape[0], shape[1], shape[2]), (steps[0], steps[1], steps[2]), (starts[0], starts[1], starts[2])
    )
    on_input = resample(lesion.astype(np.float32), grid, input_grid, outside=0.0)
    for axis in range(3):
        share = _shares(shape[axis], on_input.shape[axis], steps[axis], starts[axis])
        on_input = np.moveaxis(np.tensordot(share, on_input, (1, axis)), 0, axis)
    return resample(on_input, cells, grid, within=input_grid)


def _shares(cells: int, voxels: int, stride: float, offset: float) -> Float[np.ndarray, "c v"]:
    """Return for each cell the share of it that each voxel fills: rows sum to 1, also for cells that reach beyond the image."""
    centre = offset + stride * np.arange(cells)[:, None]
    half = max(abs(stride), 1e-9) / 2
    low, high = centre - half, centre + half
    voxel = np.arange(voxels)[None]
    overlap = np.clip(np.minimum(high, voxel + 0.5) - np.maximum(low, voxel - 0.5), 0, None)
    # The voxels at the edge speak for what lies beyond, as in the interpolation.
    overlap[:, 0] += np.clip(np.minimum(high[:, 0], -0.5) - low[:, 0], 0, None)
    overlap[:, -1] += np.clip(high[:, 0] - np.maximum(low[:, 0], voxels - 0.5), 0, None)
    shares: np.ndarray = overlap / overlap.sum(1, keepdims=True)
    return shares
