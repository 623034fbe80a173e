"""How much of each voxel of one grid a mask on another grid fills.

Nearest neighbour asks what lies at a voxel's centre, and a small lesion between the centres of a coarse grid vanishes. A share
of the voxel's volume does not.
"""

from __future__ import annotations

from itertools import product
from math import ceil
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32

from medcam.errors import GeometryError
from medcam.geometry import Grid, index_map, resample
from medcam.interpolation import axis_pairs

# Samples along an axis of a voxel of either grid, whichever is smaller, where the grids are oblique to each other.
_SAMPLES = 3
_MOST_SAMPLES = 48
# Nearer to an edge between voxels than this is on it.
_WHOLE = 1e-6
# So many samples are held at once.
_SLAB = 2**22


def occupancy(mask: Bool[np.ndarray, "i j k"], grid: Grid, onto: Grid) -> Float32[np.ndarray, "x y z"]:
    """Return the share (0 to 1) of the volume of each voxel of `onto` that lies in voxels of the mask.

    Where the axes of the grids run along each other it is exact, and the volume of what of the mask lies within `onto` is kept.
    Where they are oblique it is the mean of the mask at sub-samples, three or more along each axis of the smaller voxels: what is
    wholly inside or outside is exactly 1 or 0.

    Parameters
    ----------
    mask
        On `grid`. Nothing beyond `grid` is in the mask.

    Raises
    ------
    GeometryError
        If the mask does not have the grid's shape, or the grids are in different frames of reference.
    """
    if mask.shape != grid.shape:
        raise GeometryError(f"a mask of shape {mask.shape} cannot lie on a grid of shape {grid.shape}")
    index_map(onto, grid)
    lines = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    if not lines[0].size:
        return np.zeros(onto.shape, np.float32)
    i, j, k = (slice(int(line[0]), int(line[-1]) + 1) for line in lines)
    drawn = mask[i, j, k]
    grid = grid.coarsened(drawn.shape, (1.0, 1.0, 1.0), (float(i.start), float(j.start), float(k.start)))
    matrix = index_map(onto, grid)
    axes = axis_pairs(matrix, onto.shape)
    return _by_samples(drawn, grid, onto, matrix) if axes is None else _along_axes(drawn, matrix, axes, onto.shape)


def _along_axes(
    mask: np.ndarray, matrix: np.ndarray, axes: list[int], shape: tuple[int, int, int]
) -> Float32[np.ndarray, "x y z"]:
    """Multiply the mask by the shares along one axis after the other."""
    shares = mask.astype(np.float64)
    for axis, target in enumerate(axes):
        step = matrix[axis, target]
        weights = _overlaps(step * np.arange(shape[target]) + matrix[axis, 3], abs(step), mask.shape[axis])
        rest = np.moveaxis(shares, axis, 0)
        product = weights @ rest.reshape(len(rest), -1)
        shares = np.moveaxis(product.reshape(-1, *rest.shape[1:]), 0, axis)
    result: np.ndarray = np.clip(shares.transpose(np.argsort(axes)), 0, 1).astype(np.float32)
    return result


def _overlaps(centres: Float[np.ndarray, " targets"], width: float, count: int) -> Any:
    """Return the share of each target, `width` lines wide, that lies in each of `count` lines, as a sparse matrix."""
    from scipy.sparse import csr_array

    low, high = _edges(centres - width / 2), _edges(centres + width / 2)
    first = np.clip(np.floor(low).astype(int), 0, count)
    reach = np.maximum(np.clip(np.ceil(high).astype(int), 0, count) - first, 0)
    rows = np.repeat(np.arange(len(centres)), reach)
    lines = np.arange(len(rows)) - np.repeat(np.cumsum(reach) - reach - first, reach)
    shared = np.minimum(high[rows], lines + 1) - np.maximum(low[rows], lines)
    return csr_array((shared / width, (rows, lines)), (len(centres), count))


def _edges(position: np.ndarray) -> np.ndarray:
    """Return positions counted from the edge of line 0; a matrix that was inverted leaves an edge a little off itself."""
    position = position + 0.5
    whole = np.rint(position)
    return np.where(np.abs(position - whole) < _WHOLE, whole, position)


def _by_samples(
    mask: np.ndarray, grid: Grid, onto: Grid, grid_from_onto: Float[np.ndarray, "4 4"]
) -> Float32[np.ndarray, "x y z"]:
    result = np.zeros(onto.shape, np.float32)
    corners = np.array(list(product(*((-0.5, n - 0.5) for n in grid.shape))))
    reached = onto.index(grid.world_mm(corners))
    first = [max(int(np.floor(n + 0.5)), 0) for n in reached.min(axis=0)]
    last = [min(int(np.ceil(n + 0.5)), side) for n, side in zip(reached.max(axis=0), onto.shape, strict=True)]
    ni, nj, nk = (end - start for start, end in zip(first, last, strict=True))
    if min(ni, nj, nk) <= 0:
        return result
    # How many voxels of the mask a step along an axis of `onto` crosses: the finer of the two grids decides.
    crossed = np.abs(grid_from_onto[:3, :3]).max(axis=0)
    a, b, c = (min(_MOST_SAMPLES, max(_SAMPLES, ceil(_SAMPLES * steps))) for steps in crossed)
    _, j, k = first
    values = mask.astype(np.float32)
    thick = max(1, _SLAB // (a * b * c * nj * nk))
    for i in range(first[0], last[0], thick):
        ni = min(thick, last[0] - i)
        shape, stride = (ni * a, nj * b, nk * c), (1 / a, 1 / b, 1 / c)
        offset = (i - 0.5 + 0.5 / a, j - 0.5 + 0.5 / b, k - 0.5 + 0.5 / c)
        samples = resample(values, grid, onto.coarsened(shape, stride, offset), nearest=True, outside=0.0)
        shares = samples.reshape(ni, a, nj, b, nk, c).mean(axis=(1, 3, 5))
        result[i : i + ni, j : j + nj, k : k + nk] = shares
    return result
