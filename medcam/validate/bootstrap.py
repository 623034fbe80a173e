"""The patient bootstrap: an interval for anything that weights of patients determine.

A replicate draws as many patients as there are, with replacement, and keeps all that belongs to a patient: images, lesions, readers. So it
is a vector of weights, how often each patient was drawn, and a mean over cases is a product of weights with sums over each patient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtr, ndtri, stdtrit

from medcam.errors import UsageError

# From weights of patients, one row for each replicate, to the replicates' values; NaN where one has none.
Statistic = Callable[[Float[np.ndarray, "r p"]], Float[np.ndarray, " r"]]

METHODS = ("expanded", "bca", "percentile")
# Weights that are made at once: what stays near the caches.
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Resampling:
    """How intervals are found.

    Parameters
    ----------
    replicates
        How often patients are drawn.
    method
        'percentile'; 'bca', which corrects bias and skewness; or 'expanded', BCa widened for few patients, of whom the other two cover too
        little: with 12 patients of skewed values 89 % instead of 95 %, and the expanded one 92 %.
    level
        Of confidence, between 0 and 1.
    seed
        Of the draws.

    Raises
    ------
    UsageError
        If one of them is out of range.
    """

    replicates: int = 10_000
    method: str = "expanded"
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"an interval's method is one of {', '.join(map(repr, METHODS))}, not {self.method!r}")
        if not 0 < self.level < 1:
            raise UsageError(f"a level of confidence lies between 0 and 1, not at {self.level}")
        if self.replicates < 2 / (1 - self.level):
            raise UsageError(f"{self.replicates} replicates are too few for an interval of {self.level:.1%}")


@dataclass(frozen=True)
class Interval:
    """A number with its confidence interval.

    Parameters
    ----------
    value, low, high
        The number and its limits. NaN: undefined, as for no case at all. The limits alone are NaN for fewer than two patients.
    level, method
        Of confidence; and how the limits were found: 'expanded', 'bca', 'percentile' or 'wilson'.
    cases, patients
        How many rows, and patients, it rests on.
    undefined
        How many rows were left out since they have no value.
    lost
        How many replicates had no value, and were left out.
    """

    value: float
    low: float
    high: float
    level: float
    method: str
    cases: int
    patients: int
    undefined: int = 0
    lost: int = 0


@dataclass(frozen=True, eq=False)
class Replicates:
    """A statistic, its replicates (NaN where one has no value), its influence values for BCa, and the patients less the strata."""

    value: float
    drawn: Float[np.ndarray, " r"]
    influence: Float[np.ndarray, " p"]
    freedom: int


def replicates(
    statistic: Statistic, patients: int, *, how: Resampling, strata: Int[np.ndarray, " p"] | None = None
) -> Replicates:
    """Return a statistic with its bootstrap replicates and jackknife influence.

    Parameters
    ----------
    patients
        How many weights the statistic takes.
    strata
        Each patient's stratum, from 0; patients are drawn within theirs, so that each keeps its size.
    """
    codes = np.zeros(patients, np.int64) if strata is None else strata
    one = float(statistic(np.ones((1, patients)))[0])
    drawn = [statistic(weights) for weights in _drawn(codes, how)]
    left = [statistic(weights) for weights in _left_out(codes)]
    influence = _influence(np.concatenate(left), codes)
    return Replicates(one, np.concatenate(drawn), influence, patients - len(np.unique(codes)))


def limits(found: Replicates, how: Resampling) -> tuple[float, float]:
    """Return the limits of the interval of a statistic from its replicates; NaN if no replicate has a value.

    References
    ----------
    Efron, Better bootstrap confidence intervals, JASA 1987, sections 3 and 7. The acceleration in strata: Davison and Hinkley, Bootstrap
    Methods and their Application, 1997, section 5.3. 'expanded': Hesterberg, What teachers should know about the bootstrap, The American
    Statistician 2015 (Student's t for the normal, and the variance over n - 1), here for BCa as well.
    """
    defined = found.drawn[~np.isnan(found.drawn)]
    if not defined.size:
        return float("nan"), float("nan")
    tails = np.array([(1 - how.level) / 2, (1 + how.level) / 2])
    normal = ndtri(tails)
    if how.method == "expanded" and found.freedom > 0:
        normal = stdtrit(found.freedom, tails) * np.sqrt(found.influence.size / found.freedom)
    if how.method != "percentile":
        # Replicates equal to the value, as many are of hits, count half; rounding must not put them on one side.
        same = np.isclose(defined, found.value, rtol=1e-10, atol=0.0)
        below = ((defined < found.value) & ~same).mean() + same.mean() / 2
        spread = np.sqrt((found.influence**2).sum())
        bias, speed = ndtri(below), 0.0 if spread == 0 else float((found.influence**3).sum() / (6 * spread**3))
        if np.isfinite(bias):
            shifted = bias + normal
            tails = ndtr(bias + shifted / (1 - speed * shifted))
    low, high = np.quantile(defined, tails)
    return float(low), float(high)


def bootstrap(
    statistic: Statistic,
    patients: int,
    *,
    how: Resampling | None = None,
    strata: Int[np.ndarray, " p"] | None = None,
    cases: int | None = None,
    undefined: int = 0,
) -> Interval:
    """Return a statistic with its patient-bootstrap interval.

    Parameters
    ----------
    statistic
        From weights of patients `r p`, each row one replicate, to one value each: a mean over cases is
        `lambda w: (w @ sums) / (w @ counts)`. It is also called with ones, for the value, and with each patient left out.
    strata
        Each patient's stratum, from 0.
    cases, undefined
        What the interval should say of them.
    """
    asked = how or Resampling()
    given = patients if cases is None else cases
    if patients == 0:
        return Interval(float("nan"), float("nan"), float("nan"), asked.level, asked.method, 0, 0, undefined)
    found = replicates(statistic, patients, how=asked, strata=strata)
    lost = int(np.isnan(found.drawn).sum())
    # One patient alone says nothing of how patients differ.
    low, high = limits(found, asked) if patients > 1 else (float("nan"), float("nan"))
    return Interval(found.value, low, high, asked.level, asked.method, given, patients, undefined, lost)


def _drawn(codes: Int[np.ndarray, " p"], how: Resampling) -> Iterator[Float[np.ndarray, "r p"]]:
    """Yield how often each patient is drawn, in blocks of replicates."""
    random, patients = np.random.default_rng(how.seed), len(codes)
    members = [np.flatnonzero(codes == stratum) for stratum in range(codes.max(initial=-1) + 1)]
    step = max(1, _BLOCK // patients)
    for start in range(0, how.replicates, step):
        rows = min(step, how.replicates - start)
        first = np.arange(rows)[:, None] * patients
        # Counting draws is several times as fast as drawing multinomials.
        drawn = [first + within[random.integers(len(within), size=(rows, len(within)))] for within in members]
        counts = np.bincount(np.concatenate(drawn, axis=1).ravel(), minlength=rows * patients)
        yield counts.reshape(rows, patients).astype(np.float64)


def _left_out(codes: Int[np.ndarray, " p"]) -> Iterator[Float[np.ndarray, "r p"]]:
    """Yield the weights that leave out one patient after another; the others of its stratum make up for it."""
    patients = len(codes)
    sizes = np.bincount(codes)[codes].astype(np.float64)
    step = max(1, _BLOCK // patients)
    for start in range(0, patients, step):
        rows = np.arange(start, min(start + step, patients))
        more = 1 / np.maximum(sizes[rows] - 1, 1)
        weights = 1 + np.where(codes[rows, None] == codes, more[:, None], 0.0)
        weights[np.arange(len(rows)), rows] = np.where(sizes[rows] > 1, 0.0, 1.0)
        yield weights


def _influence(left: Float[np.ndarray, " p"], codes: Int[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
    """Return each patient's jackknife influence over the size of its stratum, 0 where it is undefined."""
    sizes, defined = np.bincount(codes), ~np.isnan(left)
    filled = np.where(defined, left, 0.0)
    centre = np.bincount(codes, weights=filled) / np.maximum(np.bincount(codes, weights=defined), 1)
    scaled: np.ndarray = np.where(defined, (centre[codes] - filled) * ((sizes - 1) / sizes)[codes], 0.0)
    return scaled
