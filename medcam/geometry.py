"""Where voxels lie: `Grid`, and `resample`, the only place where two grids meet.

Space is RAS+ in millimetres: x grows towards the patient's right, y towards anterior, z towards superior. Arrays are indexed i j k, and an
index names the centre of a voxel, so a grid reaches half a voxel beyond its first and last centres.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Num

from medcam.errors import GeometryError
from medcam.interpolation import NEGLIGIBLE_VOXELS, Slab, axis_pairs, sampler, slabs

_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))
# What rounding leaves between perpendicular axes: cosines below this.
_RIGHT_ANGLES = 1e-4
# The share of a value that was not looked at above which a voxel counts as not looked at.
_NO_SHARE = 1e-6


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


def upright(grid: Grid) -> Grid:
    """Return a grid at right angles that keeps the rows of a sheared one, its distances between lines and slices, and all its voxels.

    The slices of a tilted gantry keep their planes and their spacing; there are more columns or rows, as far as the slices lean. A grid
    that is not sheared is its own.
    """
    axes = grid.affine[:3, :3]
    directions = axes / np.array(grid.spacing_mm)
    if np.abs(directions.T @ directions - np.eye(3)).max() < _RIGHT_ANGLES:
        return grid
    # Gram and Schmidt's way: what is askew to the axes before loses its share along them.
    turned, upper = np.linalg.qr(axes)
    affine = grid.affine.copy()
    affine[:3, :3] = turned * np.diag(upper)
    ends = np.array(np.meshgrid(*[(0, n - 1) for n in grid.shape], indexing="ij")).reshape(3, -1).T
    reached = Grid(grid.shape, affine).index(grid.world_mm(ends))
    low = np.floor(reached.min(axis=0) + NEGLIGIBLE_VOXELS)
    i, j, k = (int(n) + 1 for n in np.ceil(reached.max(axis=0) - NEGLIGIBLE_VOXELS) - low)
    affine[:3, 3] = affine[:3, :3] @ low + affine[:3, 3]
    return Grid((i, j, k), affine, grid.frame_of_reference)


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
    beyond = _beyond(grid, onto)
    inside = np.ones(onto.shape, bool)
    for slab in slabs(onto.shape, 0):
        for index in beyond(slab):
            inside[slab][index] = False
    return inside


def _beyond(grid: Grid, onto: Grid) -> Callable[[Slab], list[Any]]:
    """Return what gives, for a slab of `onto`, indices into that slab of all voxels whose centres lie in no voxel of `grid`."""
    matrix, shape = index_map(onto, grid), onto.shape
    if (axes := axis_pairs(matrix, shape)) is not None:
        # Where the grids are aligned, what lies outside are the first and last few lines of each axis.
        inside = {
            target: _within(matrix[axis, target] * np.arange(shape[target]) + matrix[axis, 3], grid.shape[axis])
            for axis, target in enumerate(axes)
        }
        cut_off = {axis: line for axis, line in inside.items() if not line.all()}

        def lines(slab: Slab) -> list[Any]:
            return [
                (slice(None),) * axis + (ends,)
                for axis, line in cut_off.items()
                for ends in _ends(line[slab[axis]] if axis < len(slab) else line)
            ]

        return lines

    def mask(slab: Slab) -> list[Any]:
        places = [np.arange(n)[slab[axis]] if axis < len(slab) else np.arange(n) for axis, n in enumerate(shape)]
        covered = np.ones([len(place) for place in places], bool)
        for axis, n in enumerate(grid.shape):
            i, j, k = (matrix[axis, a] * place for a, place in enumerate(places))
            covered &= _within((i[:, None, None] + j[:, None]) + (k + matrix[axis, 3]), n)
        return [] if covered.all() else [~covered]

    return mask


def _ends(inside: np.ndarray) -> list[slice]:
    """Return what lies before the first and behind the last that is inside; all if none is."""
    found = np.flatnonzero(inside)
    first, last = (found[0], found[-1] + 1) if len(found) else (len(inside), len(inside))
    return [ends for ends in (slice(0, first), slice(last, len(inside))) if ends.start < ends.stop]


def _within(position: np.ndarray, n: int) -> np.ndarray:
    inside: np.ndarray = (position >= -0.5 - NEGLIGIBLE_VOXELS) & (position <= n - 0.5 + NEGLIGIBLE_VOXELS)
    return inside


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
    matrix, hidden = index_map(onto, grid), None
    unseen = np.isnan(values)
    if unseen.any():
        values = np.where(unseen, np.float32(0), values)
        _, hidden = sampler(unseen.astype(np.float32), matrix, onto.shape, nearest)
    cut, sample = sampler(values, matrix, onto.shape, nearest)
    beyond = _beyond(grid if within is None else within, onto)
    result = np.empty(onto.shape, np.float32)
    # Slab by slab, so that beside the result there is nothing of its size.
    for slab in cut:
        part = result[slab]
        sample(slab, part)
        if hidden is not None:
            share = np.empty_like(part)
            hidden(slab, share)
            part[share > _NO_SHARE] = np.nan
        for index in beyond(slab):
            part[index] = outside
    return result
