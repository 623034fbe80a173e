"""Average precision over all voxels of all cases: PxAP and VxAP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from medcam.validate.ranked import STEPS, Ranked
from medcam.validate.scene import Scene

# Bins of a mergeable histogram.
BINS = 1024


@dataclass(frozen=True, eq=False)
class Histogram:
    """How many voxels of the lesions, and how many others, lie in each of 1024 equal bins up to their own map's maximum.

    Histograms of cases are added. Big lesions weigh most in what is pooled, and each map counts on its own scale as if they compared.
    """

    lesion: Int64[np.ndarray, " b"]
    others: Int64[np.ndarray, " b"]

    @staticmethod
    def of(ranked: Ranked) -> Histogram:
        """Return one case's histogram."""
        lesion = ranked.lesion_steps.reshape(BINS, STEPS // BINS).sum(1)
        return Histogram(lesion, ranked.steps.reshape(BINS, STEPS // BINS).sum(1) - lesion)

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self.lesion + other.lesion, self.others + other.others)

    def average_precision(self) -> float:
        """Return the average precision by steps, as exact as the bins are fine; NaN without a lesion."""
        return _by_steps(self.lesion[::-1], self.others[::-1])


def pooled_average_precision(scenes: Sequence[Scene]) -> float:
    """Return the exact average precision over the voxels of all cases, each map divided by its own maximum; NaN without a lesion.

    It sorts all voxels that are not blank; `Histogram` needs none of them.
    """
    shares = [scene.positive / np.float32(scene.maximum or 1) for scene in scenes]
    lesion = np.concatenate([share[scene.lesion] for share, scene in zip(shares, scenes, strict=True)])
    others = np.concatenate([share[scene.domain & ~scene.lesion] for share, scene in zip(shares, scenes, strict=True)])
    values = np.unique(np.append(lesion, np.float32(0)))
    counts = [len(part) - np.searchsorted(np.sort(part), values) for part in (lesion, others)]
    gained = [np.diff(count[::-1], prepend=0) for count in counts]
    return _by_steps(gained[0], gained[1])


def _by_steps(lesion: np.ndarray, others: np.ndarray) -> float:
    """Return the average precision, given how many of each come at every threshold, the highest first."""
    total = int(lesion.sum())
    if not total:
        return float("nan")
    hits = lesion.cumsum()
    precision = hits / np.maximum(hits + others.cumsum(), 1)
    return float((lesion * precision).sum() / total)
