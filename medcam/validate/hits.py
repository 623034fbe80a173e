"""Where the map is hottest, and whether that lies in the lesion or near it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage

from medcam.validate.distances import Distance
from medcam.validate.scene import Scene, around


def tied_maxima(scene: Scene) -> Int[np.ndarray, "n 3"]:
    """Return all voxels that share the largest relevance, in raster order; none where no relevance is positive."""
    if not scene.maximum > 0:
        return np.zeros((0, 3), np.intp)
    found: np.ndarray = np.argwhere(scene.positive == np.float32(scene.maximum))
    return found


def hit(scene: Scene, maxima: Int[np.ndarray, "n 3"]) -> float:
    """Return the expected hit of the pointing game: the share of the tied maxima that lies in the lesion.

    A map of one positive value hits with the lesion's share of the domain. NaN without a lesion or a maximum.

    References
    ----------
    Zhang et al., Top-down neural attention by excitation backprop, IJCV 2018, section 4.
    """
    if not (scene.lesion_voxels and len(maxima)):
        return float("nan")
    return float(scene.lesion[tuple(maxima.T)].mean())


def hit_within(distances_mm: Float[np.ndarray, " n"], tolerance_mm: float) -> float:
    """Return the share of points at most so far from the lesion; NaN of none.

    The tolerance is inclusive. Pixels would depend on the resolution: the 15 of the reference are 15 mm in some images and 2 in others.
    """
    if not len(distances_mm):
        return float("nan")
    return float((distances_mm.astype(np.float32) <= np.float32(tolerance_mm)).mean())


@dataclass(frozen=True, eq=False)
class Peak:
    """A local maximum: its voxels (several where neighbours are equal) and its relevance."""

    voxels: Int[np.ndarray, "n 3"]
    relevance: float


def peaks(scene: Scene, radius_mm: float, limit: int) -> tuple[Peak, ...]:
    """Return the local maxima in falling order, none within a radius of a higher one, and those that tie with the last.

    A local maximum has no higher voxel among its 26 neighbours; neighbours of equal relevance are one, placed at the voxel nearest to
    their middle. Of equal maxima within the radius the first in raster order stays.
    """
    box = around(scene.positive > 0)
    if box is None:
        return ()
    window = scene.positive[box]
    top = (window == ndimage.maximum_filter(window, size=3, mode="constant", cval=0.0)) & (window > 0)
    labels, _ = ndimage.label(top, np.ones((3, 3, 3)))
    voxels = np.argwhere(top)
    label = labels[tuple(voxels.T)]
    order = np.argsort(label, kind="stable")
    voxels, start = voxels[order], np.flatnonzero(np.diff(label[order], prepend=0))
    end = np.append(start[1:], len(voxels))
    heights = window[tuple(voxels[start].T)]
    voxels += [side.start for side in box]
    centres = voxels[start] * np.asarray(scene.spacing_mm)
    for n in np.flatnonzero(end - start > 1):
        centres[n] = _middle_mm(voxels[start[n] : end[n]] * np.asarray(scene.spacing_mm))
    left, kept = np.argsort(-heights, kind="stable"), list[int]()
    while len(left) and (len(kept) < limit or heights[left[0]] == heights[kept[limit - 1]]):
        kept.append(int(left[0]))
        left = left[np.linalg.norm(centres[left] - centres[left[0]], axis=1) > radius_mm]
    return tuple(Peak(voxels[start[n] : end[n]], float(heights[n])) for n in kept)


def _middle_mm(places_mm: np.ndarray) -> np.ndarray:
    """Return the place nearest to the mean of all."""
    middle: np.ndarray = places_mm[int(np.argmin(np.linalg.norm(places_mm - places_mm.mean(0), axis=1)))]
    return middle


def any_peak_hits(found: Sequence[Peak], count: int, distance_mm: Distance, tolerance_mm: float) -> float:
    """Return the chance that one of the `count` highest peaks lies within a distance of the lesion.

    Of a peak of several voxels each is as likely its place; of peaks that tie for the last place each is as likely chosen. NaN for no peak.
    """
    if not found:
        return float("nan")
    misses = [1 - hit_within(distance_mm(peak.voxels), tolerance_mm) for peak in found]
    return 1 - _all_miss([peak.relevance for peak in found], misses, count)


def _all_miss(heights: Sequence[float], misses: Sequence[float], count: int) -> float:
    """Return the chance that `count` of the highest all miss, averaged over the choices among those that tie for the last place."""
    count = min(count, len(heights))
    last = heights[count - 1]
    sure = [miss for height, miss in zip(heights, misses, strict=True) if height > last]
    tied = [miss for height, miss in zip(heights, misses, strict=True) if height == last]
    take = count - len(sure)
    # The elementary symmetric polynomials: sums over all choices of 0, 1, ... of the tied.
    sums = [1.0, *[0.0] * take]
    for miss in tied:
        for size in range(take, 0, -1):
            sums[size] += miss * sums[size - 1]
    return float(np.prod(sure)) * sums[take] / comb(len(tied), take)
