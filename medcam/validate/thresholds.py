"""Where a map is cut: declared policies, oracles that are marked as such, and thresholds tuned on other cases only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from jaxtyping import Float

from medcam.errors import UsageError
from medcam.validate.ranked import FRACTIONS, STEPS, Ranked, kth_largest
from medcam.validate.scene import Scene

# Bins of Otsu's histogram.
_OTSU_BINS = 256


@dataclass(frozen=True, eq=False)
class Threshold:
    """A policy that says above which relevance a map points at something. A voxel without positive relevance is never selected.

    Parameters
    ----------
    name
        Stands in the names of the numbers: 'dice@otsu'.
    cut
        Gives the relevance that a selected voxel reaches, or NaN where the policy says none. A function of a module, or a partial of one,
        can travel to other processes.
    oracle
        Whether it looks at the truth of the case itself. Such a number is an upper bound and never a result.
    tuned_on
        The cases and patients that it was tuned on, empty for others; see `tuned`.
    """

    name: str
    cut: Callable[[Scene, Ranked], float]
    oracle: bool = False
    tuned_on: frozenset[tuple[str, str]] = field(default=frozenset(), repr=False)


def otsu() -> Threshold:
    """Otsu's threshold over the domain, in 256 equal bins from 0 to the map's maximum.

    NaN for a map of one value. It never selects nothing, so a case without a lesion always has some volume above it.

    References
    ----------
    Otsu, IEEE Trans. Syst. Man Cybern. 1979, eq. 14.
    """
    return Threshold("otsu", _otsu)


def _otsu(scene: Scene, ranked: Ranked) -> float:
    bins = ranked.steps.reshape(_OTSU_BINS, -1).sum(1)
    if np.count_nonzero(bins) < 2:
        return float("nan")
    return otsu_bin(bins) / _OTSU_BINS * ranked.maximum * STEPS / (STEPS - 1)


def otsu_bin(counts: np.ndarray) -> int:
    """Return the first bin of the upper class that Otsu's criterion makes of a histogram; of several equals the lowest."""
    share = counts / counts.sum()
    below = share.cumsum()[:-1]
    moment = (share * np.arange(len(counts))).cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        between = (moment[-1] * below - moment[:-1]) ** 2 / (below * (1 - below))
    return int(np.nanargmax(np.where(np.isfinite(between), between, -np.inf))) + 1


def top_share(share: float) -> Threshold:
    """Cut off the given share (0 to 1) of the domain's voxels, those of most relevance. All voxels of the last value are selected.

    Raises
    ------
    UsageError
        If the share does not lie between 0 and 1.
    """
    _between(share, "the share of voxels")
    return Threshold(f"top-{share:g}", partial(_top, share))


def _top(share: float, scene: Scene, ranked: Ranked) -> float:
    return kth_largest(scene, ranked, max(1, round(share * scene.domain_voxels)))


def fraction_of_maximum(fraction: float) -> Threshold:
    """Select what reaches a fraction (0 to 1) of the map's own maximum.

    Raises
    ------
    UsageError
        If the fraction does not lie between 0 and 1.
    """
    _between(fraction, "the fraction of the maximum")
    return Threshold(f"max-{fraction:g}", partial(_fraction, fraction))


def _fraction(fraction: float, _: Scene, ranked: Ranked) -> float:
    return float(np.float32(fraction * ranked.maximum))


def half_maximum() -> Threshold:
    """Select what reaches half of the map's own maximum."""
    return Threshold("half-max", fraction_of_maximum(0.5).cut)


def fixed(relevance: float) -> Threshold:
    """Select what reaches a relevance on the method's own scale. It means the same in each case only if that scale does.

    Raises
    ------
    UsageError
        If it is not positive.
    """
    if not relevance > 0:
        raise UsageError(f"a threshold of relevance lies above 0, not at {relevance:g}")
    return Threshold(f"raw-{relevance:g}", partial(_same, relevance))


def _same(relevance: float, _: Scene, __: Ranked) -> float:
    return relevance


def volume_matched() -> Threshold:
    """Oracle: select as many voxels as the lesion has."""
    return Threshold("oracle-volume", _volume, oracle=True)


def _volume(scene: Scene, ranked: Ranked) -> float:
    return kth_largest(scene, ranked, ranked.lesion_voxels) if ranked.lesion_voxels else float("nan")


def best_overlap() -> Threshold:
    """Oracle: the threshold at which Dice and IoU are largest in this very case."""
    return Threshold("oracle-best", _best, oracle=True)


def _best(_: Scene, ranked: Ranked) -> float:
    return ranked.best()[0]


def _between(value: float, what: str) -> None:
    if not 0 < value <= 1:
        raise UsageError(f"{what} lies above 0 and up to 1, not at {value:g}")


@dataclass(frozen=True, eq=False)
class Curve:
    """One case's Dice at each of `FRACTIONS` of its map's maximum, to tune a threshold with; NaN for a case without a lesion."""

    case: str = field(repr=False)
    patient: str = field(repr=False)
    dice: Float[np.ndarray, " t"]


def tuned(curves: Sequence[Curve]) -> Threshold:
    """Return the fraction of the maximum with the largest mean Dice over other cases, each patient counted once.

    `measure` refuses to use it on a case or patient that it was tuned on.

    Raises
    ------
    UsageError
        If no case has a lesion, or a case has no name to tell it from those that will be measured.
    """
    usable = [curve for curve in curves if not np.isnan(curve.dice).any()]
    if not usable:
        raise UsageError("a threshold is tuned on cases with a lesion, and none of these has one")
    if not all(curve.case and curve.patient for curve in curves):
        raise UsageError("name the case and the patient of each curve, so that none is tuned on and measured as well")
    patients = sorted({curve.patient for curve in usable})
    means = [np.mean([curve.dice for curve in usable if curve.patient == patient], axis=0) for patient in patients]
    fraction = float(FRACTIONS[int(np.argmax(np.mean(means, axis=0)))])
    seen = frozenset(name for curve in curves for name in _names(curve.case, curve.patient))
    return Threshold("tuned", fraction_of_maximum(fraction).cut, tuned_on=seen)


def _names(case: str, patient: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("case", case), ("patient", patient)


def refuse_leaks(thresholds: Sequence[Threshold], case: str, patient: str) -> None:
    """Refuse thresholds that were tuned on the case or patient they would be used on.

    Raises
    ------
    UsageError
        If one was, or if the case has no name to tell.
    """
    for threshold in thresholds:
        if not threshold.tuned_on:
            continue
        if not (case and patient):
            raise UsageError("a tuned threshold is used on named cases of named patients only: say which these are")
        if threshold.tuned_on & set(_names(case, patient)):
            raise UsageError(
                "the threshold was tuned on this case, or on this patient, so its overlap here would be no result; "
                "tune it on other patients"
            )


# What is reported unless told otherwise; the oracles show what a better threshold could have given.
DECLARED = (half_maximum(), otsu(), top_share(0.1), volume_matched(), best_overlap())
