"""Lesions one by one: which are found, by what, and how many false findings a scan costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from medcam.validate.distances import Distance, to_points
from medcam.validate.scene import Scene, around

# Voxels that share a corner are one piece: 26 neighbours in a volume, 8 in a film.
TOUCHING = np.ones((3, 3, 3), bool)
# False findings a scan at which a FROC curve is read, and averaged into its score: LUNA16's.
LUNA_RATES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
CAMELYON_RATES = (1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True, eq=False)
class Piece:
    """A connected part of a mask.

    Parameters
    ----------
    size
        In the scene's `size_unit`.
    centre_mm
        Its centre of mass, from the first voxel's centre along each axis.
    box
        First and last voxel along each axis, both in it.
    peak, score
        Its voxel of the largest raw relevance, the first in raster order under ties, and that relevance.
    """

    voxels: Int[np.ndarray, "n 3"]
    size: float
    centre_mm: Float[np.ndarray, "3"]
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    peak: tuple[int, int, int]
    score: float


def pieces(scene: Scene, mask: Bool[np.ndarray, "i j k"], *, least: float = 0.0) -> tuple[Piece, ...]:
    """Return the parts of a mask that are connected by faces, edges or corners and reach a least size, in raster order."""
    box = around(mask)
    if box is None:
        return ()
    labels, _ = ndimage.label(mask[box], TOUCHING)
    found = np.argwhere(labels)
    label = labels[tuple(found.T)]
    order = np.argsort(label, kind="stable")
    split = np.split(found[order] + [side.start for side in box], np.cumsum(np.bincount(label)[1:-1]))
    return tuple(_piece(scene, part) for part in split if len(part) * scene.voxel_size >= least)


def centres_mm(scene: Scene, mask: Bool[np.ndarray, "i j k"]) -> Float[np.ndarray, "n 3"]:
    """Return the centre of mass of each piece of a mask, in the order of `pieces`."""
    box = around(mask)
    if box is None:
        return np.zeros((0, 3))
    labels, count = ndimage.label(mask[box], TOUCHING)
    label, where = labels[mask[box]], np.nonzero(mask[box])
    sizes = np.bincount(label, minlength=count + 1)[1:]
    sums = [np.bincount(label, along, count + 1)[1:] for along in where]
    return np.stack([(s / sizes + side.start) * mm for s, side, mm in zip(sums, box, scene.spacing_mm, strict=True)], 1)


def _piece(scene: Scene, voxels: np.ndarray) -> Piece:
    scores = scene.positive[tuple(voxels.T)]
    peak = voxels[int(np.argmax(scores))]
    low, high = voxels.min(0), voxels.max(0)
    return Piece(
        voxels,
        len(voxels) * scene.voxel_size,
        voxels.mean(0) * np.asarray(scene.spacing_mm),
        ((int(low[0]), int(high[0])), (int(low[1]), int(high[1])), (int(low[2]), int(high[2]))),
        (int(peak[0]), int(peak[1]), int(peak[2])),
        float(scores.max()),
    )


@dataclass(frozen=True, eq=False)
class Matching:
    """How the findings of a map (rows) lie to the lesions (columns).

    Parameters
    ----------
    shared
        Voxels that both hold.
    peak_mm
        How far the finding's peak lies from the lesion, 0 in it.
    finding_voxels, lesion_voxels
        How many voxels each has.
    """

    shared: Int[np.ndarray, "m n"]
    peak_mm: Float[np.ndarray, "m n"]
    finding_voxels: Int[np.ndarray, " m"]
    lesion_voxels: Int[np.ndarray, " n"]

    @staticmethod
    def of(scene: Scene, findings: Sequence[Piece], lesions: Sequence[Piece]) -> Matching:
        """Match the pieces of a map with those of the lesion mask."""
        column = np.full(scene.relevance.shape, -1, np.int32)
        for n, lesion in enumerate(lesions):
            column[tuple(lesion.voxels.T)] = n
        shared = np.zeros((len(findings), len(lesions)), np.int64)
        for m, finding in enumerate(findings):
            met = column[tuple(finding.voxels.T)]
            shared[m] = np.bincount(met[met >= 0], minlength=len(lesions))
        peaks = np.array([finding.peak for finding in findings], np.intp).reshape(-1, 3)
        apart = [distance(peaks) for distance in distances_of(scene, lesions)]
        return Matching(
            shared,
            np.stack(apart, 1) if apart else np.zeros((len(findings), 0), np.float32),
            np.array([len(finding.voxels) for finding in findings], np.int64),
            np.array([len(lesion.voxels) for lesion in lesions], np.int64),
        )

    def touching(self) -> Bool[np.ndarray, "m n"]:
        """Tell which findings share a voxel with which lesions."""
        return self.shared > 0

    def peak_within(self, tolerance_mm: float) -> Bool[np.ndarray, "m n"]:
        """Tell which findings have their peak at most so far from which lesions."""
        near: np.ndarray = self.peak_mm <= np.float32(tolerance_mm)
        return near

    def iou_at_least(self, iou: float) -> Bool[np.ndarray, "m n"]:
        """Tell which findings and lesions overlap by at least an IoU."""
        union = self.finding_voxels[:, None] + self.lesion_voxels - self.shared
        alike: np.ndarray = self.shared >= iou * union
        return alike

    def covering(self, share: float) -> Bool[np.ndarray, "m n"]:
        """Tell which lesions are covered to a share at least by which findings. One that covers the whole body covers all lesions."""
        return (self.shared > 0) & (self.shared >= share * self.lesion_voxels)


def distances_of(scene: Scene, lesions: Sequence[Piece]) -> tuple[Distance, ...]:
    """Return for each lesion what gives the distance of voxels from it, 0 in it."""
    return tuple(to_points(lesion.voxels, scene.spacing_mm) for lesion in lesions)


@dataclass(frozen=True)
class Findings:
    """What one scan adds to a FROC curve: raw scores, which compare between cases only as far as the method's scale does.

    Parameters
    ----------
    lesion_scores
        For each lesion the largest score of a finding that detects it; minus infinity where none does.
    false_scores
        The scores of the findings that touch no lesion.
    """

    lesion_scores: tuple[float, ...]
    false_scores: tuple[float, ...]

    @staticmethod
    def of(findings: Sequence[Piece], matching: Matching, detects: Bool[np.ndarray, "m n"]) -> Findings:
        """Collect a scan's scores, given which findings detect which lesions.

        A finding that touches a lesion without detecting it counts neither way.
        """
        scores = np.array([finding.score for finding in findings])
        best = [float(scores[rows].max()) if rows.any() else -np.inf for rows in detects.T]
        free = ~(matching.touching().any(1) | detects.any(1)) if len(findings) else np.zeros(0, bool)
        return Findings(tuple(best), tuple(float(s) for s in scores[free]))


@dataclass(frozen=True, eq=False)
class Froc:
    """Sensitivity against false findings a scan, one point for each distinct score, descending; NaN sensitivity without lesions."""

    scores: Float[np.ndarray, " p"]
    sensitivity: Float[np.ndarray, " p"]
    false_per_scan: Float[np.ndarray, " p"]
    lesions: int
    scans: int

    def at(self, rate: float) -> float:
        """Return the largest sensitivity that costs at most so many false findings a scan: 0 if every threshold costs more."""
        if not self.lesions:
            return float("nan")
        paid = self.sensitivity[self.false_per_scan <= rate]
        return float(paid.max()) if len(paid) else 0.0

    def score(self, rates: Sequence[float] = LUNA_RATES) -> float:
        """Return the mean sensitivity over rates of false findings a scan, LUNA16's by default."""
        return float(np.mean([self.at(rate) for rate in rates]))


def froc(scans: Sequence[Findings]) -> Froc:
    """Return the free-response curve over scans, those without a lesion among them.

    Every score is a point of the curve, the lowest too: one lesion, found, without a false finding scores 1.

    References
    ----------
    Setio et al., LUNA16, Medical Image Analysis 2017, section 3.3. Between points the curve is a step and not a line: a sensitivity that no
    threshold reaches is none.
    """
    lesion = np.sort([score for scan in scans for score in scan.lesion_scores])
    false = np.sort([score for scan in scans for score in scan.false_scores])
    scores = np.unique(np.concatenate([lesion[np.isfinite(lesion)], false]))[::-1]
    found = len(lesion) - np.searchsorted(lesion, scores)
    wrong = len(false) - np.searchsorted(false, scores)
    sensitivity = found / len(lesion) if len(lesion) else np.full(len(scores), np.nan)
    return Froc(scores, sensitivity, wrong / max(len(scans), 1), len(lesion), len(scans))
