"""Distances in mm between what a map points at and the lesion, of one Euclidean transform a case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped
from scipy.ndimage import distance_transform_edt
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from medcam.validate.scene import Scene, around

# Gives the distance in mm of voxels from something.
Distance = Callable[[Int[np.ndarray, "n 3"]], Float[np.ndarray, " n"]]


@dataclass(frozen=True, eq=False)
class LesionDistance:
    """How far voxels lie from the lesion, within a box around it and all that the map points at.

    Parameters
    ----------
    border_mm
        Distance between voxel centres to the nearest voxel of the lesion's border, float32. Outside the lesion it is the distance to the
        lesion.
    box
        Where `border_mm` lies in the scene.
    """

    scene: Scene
    border_mm: Float[np.ndarray, "a b c"]
    box: tuple[slice, slice, slice]

    @staticmethod
    def of(scene: Scene, reach_mm: float = 0.0) -> LesionDistance | None:
        """Measure a scene, at least as far as `reach_mm` around the lesion; None without a lesion."""
        lesion = around(scene.lesion, [int(np.ceil(reach_mm / s)) for s in scene.spacing_mm])
        if lesion is None:
            return None
        hot = around(scene.positive > 0) or lesion
        box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(lesion, hot, strict=True))
        nearest = distance_transform_edt(
            ~border(scene.lesion)[box], sampling=scene.spacing_mm, return_distances=False, return_indices=True
        )
        return LesionDistance(scene, _distances(nearest, scene.spacing_mm), (box[0], box[1], box[2]))

    def at(self, voxels: Int[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
        """Return how far voxels of the box lie from the lesion, 0 in it."""
        distances: np.ndarray = np.where(self.scene.lesion[tuple(voxels.T)], np.float32(0), self.border_at(voxels))
        return distances

    def border_at(self, voxels: Int[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
        """Return how far voxels of the box lie from the lesion's border."""
        distances: np.ndarray = self.border_mm[tuple((voxels - [side.start for side in self.box]).T)]
        return distances

    def share_within(self, tolerance_mm: float) -> float:
        """Return the share of the domain that lies at most so far from the lesion: how often a peak put anywhere would hit.

        The tolerance may not exceed the reach that was measured.
        """
        near = (self.border_mm <= np.float32(tolerance_mm)) | self.scene.lesion[self.box]
        return int(np.count_nonzero(near & self.scene.domain[self.box])) / self.scene.domain_voxels


def _distances(nearest: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Return the distance of each voxel to the one that `nearest` names for it, plane by plane: to spare copies."""
    result = np.empty(nearest.shape[1:], np.float32)
    for i in range(len(result)):
        squares = ((nearest[0, i] - i) * spacing_mm[0]) ** 2
        for axis in (1, 2):
            own = np.arange(nearest.shape[axis + 1])
            squares += ((nearest[axis, i] - (own[:, None] if axis == 1 else own)) * spacing_mm[axis]) ** 2
        result[i] = np.sqrt(squares)
    return result


def border(mask: Bool[np.ndarray, "i j k"]) -> Bool[np.ndarray, "i j k"]:
    """Return the voxels of a mask that have a face on its outside, or on the image's edge.

    Along an axis with a single voxel there is no outside: a film's masks have outlines, not two faces each.
    """
    box = around(mask)
    if box is None:
        return np.zeros_like(mask)
    window = mask[box]
    inner = window.copy()
    for axis in (axis for axis, n in enumerate(mask.shape) if n > 1):
        moved, inside = np.moveaxis(window, axis, 0), np.moveaxis(inner, axis, 0)
        inside[1:] &= moved[:-1]
        inside[:-1] &= moved[1:]
        inside[0] = inside[-1] = False
    result = np.zeros_like(mask)
    result[box] = window & ~inner
    return result


class SurfaceDistances(NamedTuple):
    """Distances in mm between two surfaces of voxels; NaN where either is empty.

    Parameters
    ----------
    hausdorff, hausdorff_95
        The largest distance from one surface to the other, and the larger of the 95th percentiles of both directions.
    mean
        The average over the voxels of both surfaces (ASSD).
    """

    hausdorff: float
    hausdorff_95: float
    mean: float


@dataclass(frozen=True, eq=False)
class Surfaces:
    """What is selected against the lesion: for each border voxel of one its distance to the border of the other, mm.

    Empty where there is no border to start from, infinite where there is none to reach.
    """

    from_map: Float[np.ndarray, " m"]
    from_lesion: Float[np.ndarray, " n"]

    @staticmethod
    def of(distance: LesionDistance, chosen: Bool[np.ndarray, "i j k"]) -> Surfaces:
        """Measure selected voxels, all of positive relevance, against the lesion of a scene."""
        spacing = np.asarray(distance.scene.spacing_mm)
        of_map, of_lesion = np.argwhere(border(chosen)), np.argwhere(border(distance.scene.lesion))
        if not len(of_map):
            return Surfaces(np.zeros(0, np.float32), np.full(len(of_lesion), np.inf, np.float32))
        back, _ = cKDTree(of_map * spacing).query(of_lesion * spacing)
        return Surfaces(distance.border_at(of_map), back.astype(np.float32))

    @staticmethod
    def nowhere() -> Surfaces:
        """Return what no lesion gives: no surface, and so no distance."""
        return Surfaces(np.zeros(0, np.float32), np.zeros(0, np.float32))

    def distances(self) -> SurfaceDistances:
        """Return the Hausdorff and mean surface distances.

        References
        ----------
        Maier-Hein et al., Metrics reloaded, Nature Methods 2024, supplement (HD, HD95, ASSD).
        """
        if not (len(self.from_map) and len(self.from_lesion)):
            return SurfaceDistances(float("nan"), float("nan"), float("nan"))
        both = (self.from_map, self.from_lesion)
        return SurfaceDistances(
            float(max(side.max() for side in both)),
            float(max(np.percentile(side, 95) for side in both)),
            float(np.concatenate(both).mean(dtype=np.float64)),
        )

    def surface_dice(self, tolerance_mm: float) -> float:
        """Return the share of both borders that lies at most so far from the other one (NSD, by voxels): 0 where nothing is selected.

        With a tolerance under the size of a map's cell it measures the cell and not the map.

        References
        ----------
        Nikolov et al., J. Med. Internet Res. 2021, eq. 3, with border voxels for surface elements.
        """
        count = len(self.from_map) + len(self.from_lesion)
        near = sum(np.count_nonzero(side <= np.float32(tolerance_mm)) for side in (self.from_map, self.from_lesion))
        return float(near / count) if len(self.from_lesion) else float("nan")


def to_points(voxels: Int[np.ndarray, "m 3"], spacing_mm: tuple[float, float, float]) -> Distance:
    """Return what gives the distance in mm to the nearest of some voxels."""
    tree = cKDTree(voxels * np.asarray(spacing_mm))

    def distance(places: np.ndarray) -> np.ndarray:
        found: np.ndarray = tree.query(places * np.asarray(spacing_mm))[0]
        return found.astype(np.float32)

    return distance


def centre_mm(weights: Shaped[np.ndarray, "i j k"], spacing_mm: tuple[float, float, float]) -> Float[np.ndarray, "3"]:
    """Return the centre of mass of a mask or a map, in mm from the first voxel's centre along each axis; NaN where all is 0."""
    lines = [weights.sum(axis=tuple(a for a in range(3) if a != axis), dtype=np.float64) for axis in range(3)]
    total = lines[0].sum()
    if not total > 0:
        return np.full(3, np.nan)
    return np.array(
        [(line * np.arange(len(line))).sum() / total * s for line, s in zip(lines, spacing_mm, strict=True)]
    )


def matched_mm(places_mm: Num[np.ndarray, "m 3"], lesions_mm: Num[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
    """Return for each lesion how far its own one of the places lies, mm; NaN for those that get none.

    Each place serves one lesion, and the sum of all distances is the least possible (the Hungarian method). The centre of mass of a map
    that finds two lesions lies between them, and would count as a miss of both.
    """
    result = np.full(len(lesions_mm), np.nan)
    if len(places_mm) and len(lesions_mm):
        apart = np.linalg.norm(lesions_mm[:, None] - places_mm[None], axis=2)
        lesion, place = linear_sum_assignment(apart)
        result[lesion] = apart[lesion, place]
    return result
