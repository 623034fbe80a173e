"""All thresholds of one map at once: one pass over its voxels, exact, without sorting what no threshold asks about."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64, Num

from medcam.validate.scene import Scene

# Equal steps between zero and the map's maximum, into which a pass counts all voxels.
STEPS = 2**16
# Voxels that are looked at together: they stay in the processor's cache.
_CHUNK = 2**18
# Below this maximum the scale to steps is beyond single precision.
_TINY = 1e-30
# The thresholds of a curve, as shares of the map's maximum.
FRACTIONS = np.arange(1, 101) / 100


@dataclass(frozen=True, eq=False)
class Ranked:
    """How many voxels of the lesion, and how many others, reach each relevance. Everything that depends on thresholds follows from it.

    The lesion's own relevances are the only thresholds that matter to a curve of recall: between two of them nothing is gained.

    Parameters
    ----------
    values
        The distinct positive relevances in the lesion, descending.
    hits, others, others_above
        Lesion voxels that reach each value; other voxels that reach it, and that exceed it.
    level_hits, level_others
        Lesion voxels and others that reach each of `FRACTIONS` of the maximum.
    steps, lesion_steps
        Voxels of the domain, and of the lesion, in each of `STEPS` equal steps from 0 to the maximum; those of no relevance in the first.
    positive_voxels
        Voxels of the domain with positive relevance.
    """

    values: Float32[np.ndarray, " m"]
    hits: Int64[np.ndarray, " m"]
    others: Int64[np.ndarray, " m"]
    others_above: Int64[np.ndarray, " m"]
    level_hits: Int64[np.ndarray, " t"]
    level_others: Int64[np.ndarray, " t"]
    steps: Int64[np.ndarray, " s"]
    lesion_steps: Int64[np.ndarray, " s"]
    maximum: float
    lesion_voxels: int
    domain_voxels: int
    positive_voxels: int

    @staticmethod
    def of(scene: Scene) -> Ranked:
        """Rank the voxels of a scene."""
        inside = np.sort(scene.positive[scene.lesion])
        top = scene.maximum
        levels = levels_of(top)
        warm = inside[inside > 0]
        values, first = np.unique(warm, return_index=True)
        n = len(warm)
        reached, exceeded, steps = _reaching(scene.positive.reshape(-1), np.concatenate([values, levels]), top)
        m = len(values)
        hits, equal = n - first.astype(np.int64), np.diff(np.append(first, n)).astype(np.int64)
        level_hits = n - np.searchsorted(warm, levels).astype(np.int64)
        # Voxels outside the domain have no relevance, and were counted with those inside that have none.
        steps[0] -= scene.relevance.size - scene.domain_voxels
        key = steps_of(inside, top)
        return Ranked(
            values[::-1],
            hits[::-1],
            (reached[:m] - hits)[::-1],
            (exceeded[:m] - (hits - equal))[::-1],
            level_hits,
            reached[m:] - level_hits,
            steps,
            np.bincount(key, minlength=STEPS).astype(np.int64),
            top,
            scene.lesion_voxels,
            scene.domain_voxels,
            int(np.count_nonzero(scene.positive)),
        )

    def average_precision(self) -> float:
        """Return the area under the precision-recall curve by steps, ties by expectation; NaN without a lesion.

        Chance is the prevalence of the lesion. Voxels of equal relevance enter the curve together, so that a constant map scores chance.

        References
        ----------
        Davis & Goadrich, ICML 2006: why precision must not be interpolated linearly, as the trapezoid does.
        """
        if not self.lesion_voxels:
            return float("nan")
        gained = np.diff(self.hits, prepend=0)
        area = float((gained * (self.hits / (self.hits + self.others))).sum())
        # What has no relevance comes last, all together.
        rest = self.lesion_voxels - int(self.hits[-1] if len(self.hits) else 0)
        return (area + rest * self.lesion_voxels / self.domain_voxels) / self.lesion_voxels

    def auroc(self) -> float:
        """Return the chance that a lesion voxel has more relevance than another one, ties counted half; NaN without either.

        In a large volume it is near 0.9 for useless maps; read it beside the average precision.
        """
        outside = self.domain_voxels - self.lesion_voxels
        if not (self.lesion_voxels and outside):
            return float("nan")
        equal = np.diff(self.hits, prepend=0)
        won = float((equal * (outside - (self.others + self.others_above) / 2)).sum())
        rest = self.lesion_voxels - int(equal.sum())
        blank = outside - (self.positive_voxels - int(equal.sum()))
        return (won + rest * blank / 2) / (self.lesion_voxels * outside)

    def best(self) -> tuple[float, float]:
        """Return the threshold of the largest Dice and that Dice, looking at the truth: an upper bound and never a result.

        NaN without a lesion or without positive relevance in it. The threshold of the largest IoU is the same.
        """
        if not len(self.values):
            return float("nan"), float("nan")
        dice = 2 * self.hits / (self.hits + self.others + self.lesion_voxels)
        at = int(np.argmax(dice))
        return float(self.values[at]), float(dice[at])

    def level_dice(self) -> Num[np.ndarray, " t"]:
        """Return the Dice at each of `FRACTIONS` of the maximum; NaN without a lesion."""
        if not self.lesion_voxels:
            return np.full(len(FRACTIONS), np.nan)
        dice: np.ndarray = 2 * self.level_hits / (self.level_hits + self.level_others + self.lesion_voxels)
        return dice


def levels_of(maximum: float) -> Float32[np.ndarray, " t"]:
    """Return the thresholds at `FRACTIONS` of a maximum, as single precision numbers; the last is the maximum itself."""
    levels: np.ndarray = (FRACTIONS * maximum).astype(np.float32)
    return levels


def rank_accuracy(scene: Scene, ranked: Ranked) -> float:
    """Return the share of the lesion among the K voxels of most relevance, K its size; ties at the border by expectation.

    Chance is the prevalence. NaN without a lesion, or without any positive relevance.

    References
    ----------
    Arras et al., CLEVR-XAI, Information Fusion 2022, eq. 5 (relevance rank accuracy).
    """
    k = ranked.lesion_voxels
    if not (k and ranked.positive_voxels):
        return float("nan")
    cut = kth_largest(scene, ranked, k)
    inside = scene.positive[scene.lesion]
    above, at = np.count_nonzero(inside > cut), np.count_nonzero(inside == cut)
    seen = scene.positive if cut > 0 else scene.positive[scene.domain]
    all_above, all_at = int(np.count_nonzero(seen > cut)), int(np.count_nonzero(seen == cut))
    return float((above + at * (k - all_above) / all_at) / k)


def kth_largest(scene: Scene, ranked: Ranked, k: int) -> float:
    """Return the k-th largest relevance of the domain, k from 1; 0 where fewer are positive."""
    if k > ranked.positive_voxels:
        return 0.0
    above = ranked.steps[::-1].cumsum()
    step = STEPS - 1 - int(np.searchsorted(above, k))
    # A little wider than the step: its edges are known to rounding only.
    low, high = (np.float32(edge / (STEPS - 1) * ranked.maximum) for edge in (step - 1, step + 2))
    near = scene.positive[(scene.positive > max(low, np.float32(0))) & (scene.positive <= high)]
    beyond = int(np.count_nonzero(scene.positive > high))
    return float(np.partition(near, len(near) - (k - beyond))[len(near) - (k - beyond)])


def steps_of(values: np.ndarray, maximum: float, *, out: np.ndarray | None = None) -> np.ndarray:
    """Return the step of each value, in `out` if given: it never falls where values rise."""
    steps: np.ndarray = np.empty(values.shape, np.intp) if out is None else out
    if not maximum > 0:
        steps[...] = 0
        return steps
    scale = (STEPS - 1) / maximum
    steps[...] = values * (np.float32(scale) if maximum > _TINY else np.float64(scale))
    return steps


def _reaching(values: np.ndarray, thresholds: np.ndarray, maximum: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each threshold how many values reach it and how many exceed it, and how many lie in each step.

    Counting into steps settles all but the values that share a step with a threshold; only these are sorted.
    """
    if not maximum > 0:
        none = np.zeros(len(thresholds), np.int64)
        return none, none.copy(), np.bincount([0], [len(values)], STEPS).astype(np.int64)
    asked = steps_of(thresholds, maximum)
    shared = np.zeros(STEPS, bool)
    shared[asked] = True
    steps, near = np.zeros(STEPS, np.int64), []
    kept = np.empty(min(_CHUNK, len(values)), np.intp)
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK]
        keys = steps_of(part, maximum, out=kept[: len(part)])
        steps += np.bincount(keys, minlength=STEPS)
        found = part[shared.take(keys)]
        near.append(found[found > 0] if shared[0] else found)
    close = np.sort(np.concatenate(near))
    beyond = np.append(steps[::-1].cumsum()[::-1], 0)[asked + 1]
    end = np.searchsorted(steps_of(close, maximum), asked, "right")
    reached = beyond + end - np.searchsorted(close, thresholds, "left")
    exceeded = beyond + end - np.searchsorted(close, thresholds, "right")
    return reached.astype(np.int64), exceeded.astype(np.int64), steps
