"""Where voxels lie: `Grid`, and `resample`, the only place where two grids meet.

Space is RAS+ in millimetres: x grows towards the patient's right, y towards anterior, z towards superior. Arrays are indexed i j k, and an
index names the centre of a voxel, so a grid reaches half a voxel beyond its first and last centres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Num

from medcam.errors import GeometryError

_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))
# Below this many voxels of the other grid a mapped position counts as unmoved: far under what any display or measure can see.
_NEGLIGIBLE_VOXELS = 1e-3
# Up to this many samples along an axis one matrix product beats picking and blending neighbours.
_DENSE_AXIS = 64


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular grid of voxels in the patient.

    Parameters
    ----------
    shape
        Number of voxels along i, j, k; a 2D image has k = 1.
    affine
        `world_from_index`: homogeneous, RAS+ mm. Oblique, flipped and sheared (gantry tilt) grids are all allowed.
    frame_of_reference
        The UID of the coordinate system that the millimetres belong to, or None where the file does not say.

    Raises
    ------
    GeometryError
        If the shape is not three positive integers, or the affine is not an invertible, finite 4x4 matrix.
    """

    shape: tuple[int, int, int]
    affine: Float[np.ndarray, "4 4"]
    frame_of_reference: str | None = None

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise GeometryError(f"a grid has three sides of at least one voxel each, not {tuple(self.shape)}")
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], (0, 0, 0, 1)):
            raise GeometryError(f"an affine is a finite 4x4 matrix with a last row of 0 0 0 1, not\n{affine}")
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if lengths.min() == 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
            raise GeometryError(f"the affine folds space onto a plane: its axes are\n{affine[:3, :3]}")
        affine.flags.writeable = False
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid):
            return NotImplemented
        mine, theirs = (self.shape, self.frame_of_reference), (other.shape, other.frame_of_reference)
        return mine == theirs and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes(), self.frame_of_reference))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along i, j, k."""
        i, j, k = (float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))
        return i, j, k

    @property
    def axis_codes(self) -> tuple[str, str, str]:
        """The anatomical direction that each array axis grows towards, as nibabel's `aff2axcodes`: ('L', 'P', 'S') for axial DICOM.

        On an oblique grid each axis takes the nearest direction that no better-aligned axis has taken.
        """
        cosines = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        # The nearest rotation has no shear, so that two axes cannot claim one direction.
        u, _, vt = np.linalg.svd(cosines)
        rotation = u @ vt
        codes = ["", "", ""]
        free = np.abs(rotation)
        for _ in range(3):
            world, axis = np.unravel_index(np.argmax(free), (3, 3))
            codes[axis] = _LETTERS[world][int(rotation[world, axis] > 0)]
            free[world, :] = free[:, axis] = -1
        return codes[0], codes[1], codes[2]

    def world_mm(self, index: Num[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
        """Return where (fractional) indices lie, RAS+ mm."""
        place: np.ndarray = np.asarray(index, np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]
        return place

    def index(self, world_mm: Num[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
        """Return the fractional index of points given in RAS+ mm; the inverse of `world_mm`."""
        index_from_world = np.linalg.inv(self.affine)
        found: np.ndarray = np.asarray(world_mm, np.float64) @ index_from_world[:3, :3].T + index_from_world[:3, 3]
        return found

    def coarsened(
        self, shape: tuple[int, int, int], stride: tuple[float, float, float], offset: tuple[float, float, float]
    ) -> Grid:
        """Return the grid whose cell c is centred on index `offset + stride * c` of this one, with `shape` cells."""
        self_from_cell = np.eye(4)
        self_from_cell[:3, :3] = np.diag(stride)
        self_from_cell[:3, 3] = offset
        return Grid(shape, self.affine @ self_from_cell, self.frame_of_reference)

    def is_close(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Tell whether both grids have the same shape and every voxel lies within `tolerance_mm` of its twin."""
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij")).reshape(3, -1).T
        return self.shape == other.shape and bool(
            np.linalg.norm(self.world_mm(corners) - other.world_mm(corners), axis=1).max() <= tolerance_mm
        )


def index_map(onto: Grid, source: Grid) -> Float[np.ndarray, "4 4"]:
    """Return `source_from_onto`: the matrix that takes an index of `onto` to the index of the same point in `source`.

    Raises
    ------
    GeometryError
        If the grids name different frames of reference. An unnamed frame meets any other: most formats cannot name one.
    """
    frames = {grid.frame_of_reference for grid in (onto, source)} - {None}
    if len(frames) == 2:
        raise GeometryError(
            "the two images lie in different frames of reference "
            f"({source.frame_of_reference} and {onto.frame_of_reference}), so their millimetres do not compare; register them first"
        )
    matrix: np.ndarray = np.linalg.inv(source.affine) @ onto.affine
    return matrix


def covers(grid: Grid, onto: Grid) -> Bool[np.ndarray, "i j k"]:
    """Tell for each voxel of `onto` whether its centre lies in a voxel of `grid`."""
    matrix = index_map(onto, grid)
    inside = np.ones(onto.shape, bool)
    if (axes := _axis_pairs(matrix, onto.shape)) is not None:
        for axis, target in enumerate(axes):
            position = matrix[axis, target] * np.arange(onto.shape[target]) + matrix[axis, 3]
            inside &= _along(_within(position, grid.shape[axis]), target)
        return inside
    for axis, n in enumerate(grid.shape):
        i, j, k = (matrix[axis, a] * np.arange(onto.shape[a]) for a in range(3))
        in_plane = i[:, None] + j + matrix[axis, 3]
        # One slice at a time: a position is a sum of three terms, and the whole volume of them in float64 would dwarf the result.
        for slice_index, step in enumerate(k):
            inside[:, :, slice_index] &= _within(in_plane + step, n)
    return inside


def _within(position: np.ndarray, n: int) -> np.ndarray:
    inside: np.ndarray = (position >= -0.5 - _NEGLIGIBLE_VOXELS) & (position <= n - 0.5 + _NEGLIGIBLE_VOXELS)
    return inside


def _along(values: np.ndarray, axis: int) -> np.ndarray:
    """Return a 1D array as one that broadcasts along one axis of three."""
    shape = [1, 1, 1]
    shape[axis] = -1
    return values.reshape(shape)


def _axis_pairs(matrix: np.ndarray, shape: tuple[int, int, int]) -> list[int] | None:
    """Return for each axis of the one grid the axis of the other, of `shape`, that runs along it; None if any is oblique to them."""
    reach = np.abs(matrix[:3, :3]) * np.array(shape, float)
    main = [int(a) for a in np.argmax(reach, axis=1)]
    separable = ((reach > _NEGLIGIBLE_VOXELS).sum(axis=1) <= 1).all() and sorted(main) == [0, 1, 2]
    return main if separable else None


def resample(
    values: Num[np.ndarray, "i j k"],
    grid: Grid,
    onto: Grid,
    *,
    nearest: bool = False,
    within: Grid | None = None,
    outside: float = np.nan,
) -> Float[np.ndarray, "x y z"]:
    """Put values that lie on `grid` onto another grid, by one trilinear interpolation.

    Between the outermost voxel centres and the edge of `within` the nearest value holds: nothing is extrapolated.

    Parameters
    ----------
    values
        What lies on `grid`. NaN marks what was not looked at, and spreads to every voxel that it would have a share in.
    nearest
        Take the nearest voxel instead, for labels.
    within
        The region that the values speak for; `grid` itself if not given. A heatmap speaks for the network's whole input, which may reach
        further than half a cell beyond the centres of its cells.
    outside
        The value beyond that region.

    Returns
    -------
    Float32 values of `onto`'s shape.

    Raises
    ------
    GeometryError
        If the values do not have the grid's shape, or the grids are in different frames of reference.
    """
    values = np.asarray(values, np.float32)
    if values.shape != grid.shape:
        raise GeometryError(f"values of shape {values.shape} cannot lie on a grid of shape {grid.shape}")
    matrix = index_map(onto, grid)
    unseen = np.isnan(values)
    if unseen.any():
        values = np.where(unseen, 0, values)
        blind = _interpolate(unseen.astype(np.float32), matrix, onto.shape, nearest) > 1e-6
    else:
        blind = None
    result = _interpolate(values, matrix, onto.shape, nearest)
    if blind is not None:
        result[blind] = np.nan
    inside = covers(grid if within is None else within, onto)
    if not inside.all():
        result[~inside] = outside
    return result


def _interpolate(
    values: np.ndarray, values_from_result: np.ndarray, shape: tuple[int, int, int], nearest: bool
) -> np.ndarray:
    linear, shift = values_from_result[:3, :3], values_from_result[:3, 3]
    # Where each axis of the result runs along one axis of the values, interpolation separates: the cost of a copy or two.
    if (axes := _axis_pairs(values_from_result, shape)) is not None:
        result = np.ascontiguousarray(values.transpose(np.argsort(axes)))
        # Growing the axis that grows least first keeps every intermediate small.
        for axis in sorted(range(3), key=lambda a: shape[axes[a]] / values.shape[a]):
            position = linear[axis, axes[axis]] * np.arange(shape[axes[axis]]) + shift[axis]
            result = _interpolate_axis(result, axes[axis], position, nearest)
        return result
    from scipy.ndimage import affine_transform

    result = np.empty(shape, np.float32)
    affine_transform(values, linear, shift, shape, output=result, order=0 if nearest else 1, mode="nearest")
    return result


def _interpolate_axis(values: np.ndarray, axis: int, position: np.ndarray, nearest: bool) -> np.ndarray:
    n = values.shape[axis]
    position = np.clip(position, 0, n - 1)
    result: np.ndarray
    if nearest:
        result = values.take(np.floor(position + 0.5).astype(np.intp).clip(0, n - 1), axis=axis)
        return result
    low = np.minimum(np.floor(position).astype(np.intp), max(n - 2, 0))
    share = (position - low).astype(np.float32)
    if n == 1 or not share.any():
        result = values.take(low, axis=axis)
        return result
    if n <= _DENSE_AXIS:
        weights = np.zeros((len(position), n), np.float32)
        rows = np.arange(len(position))
        weights[rows, low] = 1 - share
        weights[rows, low + 1] += share
        # Each product leaves its result contiguous.
        if axis == 2:
            result = values @ weights.T
        else:
            flat = values.reshape(n, -1) if axis == 0 else values
            result = np.matmul(weights, flat).reshape(*values.shape[:axis], len(position), *values.shape[axis + 1 :])
        return result
    share = _along(share, axis)
    result = values.take(low, axis=axis)
    result *= 1 - share
    upper = values.take(low + 1, axis=axis)
    upper *= share
    result += upper
    return result
