"""The CheXlocalize benchmark: hits and IoU of films, as its scripts count them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Num

from medcam.validate.protocols.planes import above_otsu, eight_bit, min_max, raster, redrawn

# Thresholds that its script tries; written as a range up to 0.8 that was meant to leave 0.8 out, and does not.
CANDIDATES = np.arange(0.2, 0.8, 0.1)
REPLICATES = 1000


class Case(NamedTuple):
    """What the benchmark counts of one film.

    Parameters
    ----------
    hit
        Whether the first of the hottest pixels, row by row, lies in the mask; NaN for an empty mask.
    iou
        Of Otsu's mask; NaN where either mask is empty ('true positives only').
    iou_all
        The same with 0 where one mask is empty; NaN where both are. Otsu's mask never is, unless the map has one value.
    """

    hit: float
    iou: float
    iou_all: float


def case(relevance: Num[np.ndarray, "i j k"], lesion: Bool[np.ndarray, "i j k"]) -> Case:
    """Count one film by Otsu's threshold.

    Raises
    ------
    InputError
        If it is no film, or was not looked at everywhere.
    """
    stretched, truth = min_max(raster(relevance, "chexlocalize"), "chexlocalize"), raster(lesion, "chexlocalize")
    drawn = redrawn(above_otsu(eight_bit(stretched)))
    first = np.unravel_index(int(np.argmax(raster(relevance, "chexlocalize"))), truth.shape)
    hit = float(truth[first]) if truth.any() else float("nan")
    both = _iou(drawn, truth)
    return Case(hit, both if drawn.any() and truth.any() else float("nan"), both)


def iou_at(relevance: Num[np.ndarray, "i j k"], lesion: Bool[np.ndarray, "i j k"], threshold: float) -> float:
    """Return the IoU of what exceeds a tuned threshold (0 to 1) of the stretched map; NaN where either mask is empty.

    The tuned masks are not redrawn, unlike Otsu's.
    """
    over = min_max(raster(relevance, "chexlocalize"), "chexlocalize") > threshold
    truth = raster(lesion, "chexlocalize")
    return _iou(over, truth) if over.any() and truth.any() else float("nan")


def tuned_threshold(maps: Sequence[np.ndarray], lesions: Sequence[np.ndarray]) -> float:
    """Return the candidate of the largest mean IoU over validation films, NaN left out, the lowest of equals."""
    table = [[iou_at(h, g, t) for t in CANDIDATES] for h, g in zip(maps, lesions, strict=True)]
    means = [np.mean([v for v in column if not np.isnan(v)] or [-1.0]) for column in zip(*table, strict=True)]
    return float(CANDIDATES[int(np.argmax(means))])


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else float("nan")


class Interval(NamedTuple):
    """A bootstrap as the benchmark prints it: the mean is that of the replicates and not of the films."""

    lower: float
    mean: float
    upper: float


def bootstrap(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Return the benchmark's interval: films are drawn, not patients; NaN is left out of each replicate; the 25th and 975th of 1000.

    Rounded to three places as printed. Replicates without any value sort last.
    """
    column: Float[np.ndarray, " n"] = np.asarray(values, np.float64)
    generator = np.random.RandomState(seed)
    means = np.empty(REPLICATES)
    for n in range(REPLICATES):
        drawn = column[generator.choice(len(column), size=len(column), replace=True)]
        kept = drawn[~np.isnan(drawn)]
        means[n] = kept.mean() if len(kept) else np.nan
    means.sort()
    usable = means[~np.isnan(means)]
    mean = usable.mean() if len(usable) else np.nan
    return Interval(*(round(float(v), 3) for v in (means[24], mean, means[974])))


def cohort(cases: Sequence[Case]) -> dict[str, float]:
    """Return hit rate and mean IoU with the benchmark's intervals, for one finding."""
    numbers: dict[str, float] = {}
    for name, values in (
        ("hit_rate", [c.hit for c in cases]),
        ("miou", [c.iou for c in cases]),
        ("miou_all", [c.iou_all for c in cases]),
    ):
        interval = bootstrap(values) if values else Interval(*[float("nan")] * 3)
        numbers |= {name: interval.mean, f"{name}_lower": interval.lower, f"{name}_upper": interval.upper}
    return numbers
