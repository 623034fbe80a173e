"""Interpolation of an array at the places of another one's voxels, slab by slab, so that beside the result there is nothing of its size.

It knows arrays and the matrix between their indices; `geometry` knows where they lie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import prod

import numpy as np

# Below this many voxels of the other grid a mapped position counts as unmoved: far under what any display or measure can see.
NEGLIGIBLE_VOXELS = 1e-3
# Nearer to an index than this a position is that index.
_WHOLE = 1e-6
# Up to this many samples along an axis one matrix product beats picking and blending neighbours.
_DENSE_AXIS = 64
# Results are made in slabs of about this many voxels.
_SLAB_VOXELS = 2**18
# Planes of a result's first axis: of fewer, the few that are held at once would be a large part of it.
_MANY_PLANES = 64
# An index that cuts a slab out of a result: slices of its first axis, or of its first two.
Slab = tuple[slice, ...]


def slabs(shape: tuple[int, ...], axis: int, low: np.ndarray | None = None) -> list[Slab]:
    """Cut an axis so that a slab stays in the processor's cache while it is worked on, and `low` is the same within a slab."""
    step = max(1, _SLAB_VOXELS * shape[axis] // prod(shape))
    edges = [0, *(() if low is None else np.flatnonzero(np.diff(low)) + 1), shape[axis]]
    return [
        (slice(None),) * axis + (slice(start, min(start + step, end)),)
        for begin, end in pairwise(edges)
        for start in range(begin, end, step)
    ]


def axis_pairs(matrix: np.ndarray, shape: tuple[int, int, int]) -> list[int] | None:
    """Return for each axis of the one grid the axis of the other, of `shape`, that runs along it; None if any is oblique to them."""
    reach = np.abs(matrix[:3, :3]) * np.array(shape, float)
    main = [int(a) for a in np.argmax(reach, axis=1)]
    separable = ((reach > NEGLIGIBLE_VOXELS).sum(axis=1) <= 1).all() and sorted(main) == [0, 1, 2]
    return main if separable else None


def sampler(
    values: np.ndarray, values_from_result: np.ndarray, shape: tuple[int, int, int], nearest: bool
) -> tuple[list[Slab], Callable[[Slab, np.ndarray], None]]:
    """Return the slabs of a result of `shape`, and what interpolates one of them into an array for it.

    Beyond the outermost values the nearest holds.

    Parameters
    ----------
    values
        Three axes, float32, finite.
    values_from_result
        The homogeneous matrix from indices of the result to indices of the values.
    nearest
        Take the nearest value instead of blending.
    """
    linear, shift = values_from_result[:3, :3], values_from_result[:3, 3]
    axes = axis_pairs(values_from_result, shape)
    if axes is not None:
        source = np.argsort(axes)
        positions = [linear[source[a], a] * np.arange(shape[a]) + shift[source[a]] for a in range(3)]
        return _separable(values.transpose(source), positions, nearest)
    from scipy.ndimage import affine_transform

    def general(slab: Slab, out: np.ndarray) -> None:
        start = shift + linear[:, 0] * slab[0].start
        affine_transform(values, linear, start, out.shape, output=out, order=0 if nearest else 1, mode="nearest")

    return slabs(shape, 0), general


def _separable(
    values: np.ndarray, positions: list[np.ndarray], nearest: bool
) -> tuple[list[Slab], Callable[[Slab, np.ndarray], None]]:
    """Interpolate along one axis after the other, at positions on each: for a coarse map, at the cost of a copy.

    Each plane of the values is brought to the size of the result's planes once, and the result's are blended of two neighbours.
    """
    shape = tuple(len(position) for position in positions)
    across = int(shape[0] < min(_MANY_PLANES, shape[1]))
    line, *others = (
        _Line.at(positions[a], values.shape[a], nearest) for a in (across, *(a for a in range(3) if a != across))
    )
    # Growing the axis that grows least first keeps what comes between small.
    order = sorted((0, 1), key=lambda a: len(others[a].low) / others[a].n)
    slices = np.ascontiguousarray(np.moveaxis(values, across, 0))
    share = None if line.share is None else line.share.reshape([-1 if a == across else 1 for a in range(3)])
    along = (slice(None),) * across + (None,)

    @lru_cache(maxsize=3)
    def plane(index: int) -> np.ndarray:
        made: np.ndarray = slices[index]
        for axis in order:
            made = others[axis].applied(made, axis)
        return made[along]

    @lru_cache(maxsize=1)
    def step(index: int) -> np.ndarray:
        difference: np.ndarray = plane(min(index + 1, line.n - 1)) - plane(index)
        return difference

    def blended(slab: Slab, out: np.ndarray) -> None:
        index = int(line.low[slab[across].start])
        if share is None:
            out[...] = plane(index)
        else:
            np.multiply(step(index), share[slab], out=out)
            out += plane(index)

    return slabs(shape, across, line.low), blended


@dataclass(frozen=True, eq=False)
class _Line:
    """Where along an axis of n values the entries of a result lie: an entry is `v[low] + share * (v[low + 1] - v[low])`.

    Without `share` it is `v[low]`. `weights` says the same as a matrix (entries x n), where a product with that is quicker.
    """

    n: int
    low: np.ndarray
    share: np.ndarray | None = None
    weights: np.ndarray | None = None

    @classmethod
    def at(cls, position: np.ndarray, n: int, nearest: bool) -> _Line:
        # A matrix that was inverted leaves a whole index a little off itself.
        whole = np.rint(position)
        position = np.clip(np.where(np.abs(position - whole) < _WHOLE, whole, position), 0, n - 1)
        if nearest:
            return cls(n, np.floor(position + 0.5).astype(np.intp).clip(0, n - 1))
        low = np.floor(position).astype(np.intp)
        share = (position - low).astype(np.float32)
        if not share.any():
            return cls(n, low)
        if n > _DENSE_AXIS:
            return cls(n, low, share)
        rows = np.arange(len(position))
        weights = np.zeros((len(position), n), np.float32)
        weights[rows, low] = 1 - share
        weights[rows, np.minimum(low + 1, n - 1)] += share
        return cls(n, low, share, weights)

    def applied(self, plane: np.ndarray, axis: int) -> np.ndarray:
        """Return a plane of values interpolated along one of its axes."""
        if self.weights is not None:
            product: np.ndarray = plane @ self.weights.T if axis else self.weights @ plane
            return product
        if self.share is None and np.array_equal(self.low, np.arange(self.n)):
            return plane
        lower = plane.take(self.low, axis)
        if self.share is not None:
            upper = plane.take(self.low + 1, axis, mode="clip")
            upper -= lower
            upper *= self.share if axis else self.share[:, None]
            lower += upper
        return lower
