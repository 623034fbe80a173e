"""Numbers of a cohort from the numbers of its cases, with the patient as the unit.

Everywhere: `values` are one number for each row of a table of cases, NaN where the case has none; `patients` says whose each row is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri
from scipy.stats import rankdata

from medcam.errors import InputError, UsageError
from medcam.validate.bootstrap import Interval, Resampling, bootstrap
from medcam.validate.patients import Column, Groups, Labels, column, grouped, rows_of


def mean(values: Column, patients: Labels, *, how: Resampling | None = None, strata: Labels | None = None) -> Interval:
    """Return the mean over cases with its patient-bootstrap interval.

    Every case counts once, so a patient with more cases counts more. Cases without a value are left out, and counted.

    Parameters
    ----------
    strata
        Within which patients are drawn, one label a row, such as the class or the hospital; the same in all rows of a patient.

    Raises
    ------
    InputError
        If the columns do not fit together, or a patient lies in two strata.
    """
    given = column(values, len(patients))
    return ratio(given, np.where(np.isnan(given), np.nan, 1.0), patients, how=how, strata=strata)


def ratio(
    numerator: Column, denominator: Column, patients: Labels, *, how: Resampling | None = None, strata: Labels | None = None
) -> Interval:  # fmt: skip
    """Return a sum over a sum, such as lesions found over lesions present, with its patient-bootstrap interval.

    Rows where one of the two is NaN are left out, and counted. A replicate whose denominator is 0 has no value; these are counted, too.

    Raises
    ------
    InputError
        If the columns do not fit together, or a patient lies in two strata.
    """
    above, below = column(numerator, len(patients)), column(denominator, len(patients), name="the denominator")
    kept = ~(np.isnan(above) | np.isnan(below))
    by = grouped(rows_of(patients, kept))
    sums, counts = by.sums(above[kept]), by.sums(below[kept])
    return bootstrap(
        lambda weights: over(weights @ sums, weights @ counts),
        by.count,
        how=how,
        strata=None if strata is None else strata_of(by, rows_of(strata, kept)),
        cases=int(kept.sum()),
        undefined=int((~kept).sum()),
    )


def macro_mean(values: Column, patients: Labels, classes: Labels, *, how: Resampling | None = None) -> Interval:
    """Return the mean over classes of each class's mean over cases; every class counts once.

    Patients are drawn with the cases of all their classes together, so that the classes' dependence is kept. A replicate in which a class
    has no case has no value.

    Raises
    ------
    InputError
        If the columns do not fit together.
    """
    given = column(values, len(patients))
    kept = ~np.isnan(given)
    by, of = grouped(rows_of(patients, kept)), grouped(rows_of(classes, kept), word="class")
    sums, counts = np.zeros((2, by.count, of.count))
    np.add.at(sums, (by.code, of.code), given[kept])
    np.add.at(counts, (by.code, of.code), 1.0)
    return bootstrap(
        lambda weights: over(weights @ sums, weights @ counts).mean(1),
        by.count, how=how, cases=int(kept.sum()), undefined=int((~kept).sum()),
    )  # fmt: skip


def proportion(hits: Column, patients: Labels, *, how: Resampling | None = None) -> Interval:
    """Return the share of hits: by Wilson's interval where each patient has one case, else by the patient bootstrap.

    Hits are 0 or 1, or between for expected hits under ties, of which Wilson's interval is a little too wide. Where all patients agree
    the bootstrap would give an interval of no width; Wilson's with one case a patient stands in its place.

    Raises
    ------
    InputError
        If a hit lies outside 0 to 1, or the columns do not fit together.
    """
    given = column(hits, len(patients), name="hits")
    kept = given[~np.isnan(given)]
    if ((kept < 0) | (kept > 1)).any():
        raise InputError("hits are 0 or 1, or between them for expected hits under ties")
    asked = how or Resampling()
    by = grouped(rows_of(patients, ~np.isnan(given)))
    if kept.size and (by.count == kept.size or np.ptp(by.means(kept)) == 0):
        plain = wilson(float(kept.mean()) * by.count, by.count, level=asked.level)
        return replace(plain, cases=kept.size, undefined=given.size - kept.size)
    return mean(given, patients, how=asked)


def wilson(hits: float | int, cases: int, *, level: float = 0.95) -> Interval:
    """Return the share of hits among independent cases with Wilson's score interval; NaN of no case.

    References
    ----------
    Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.
    """
    if cases == 0:
        return Interval(float("nan"), float("nan"), float("nan"), level, "wilson", 0, 0)
    share, z = hits / cases, float(ndtri((1 + level) / 2))
    shrunk = 1 + z**2 / cases
    centre = (share + z**2 / (2 * cases)) / shrunk
    half = z * np.sqrt(share * (1 - share) / cases + z**2 / (4 * cases**2)) / shrunk
    # At 0 and 1 the limit is exact, and rounding would miss it.
    low, high = (0.0 if share == 0 else centre - half), (1.0 if share == 1 else centre + half)
    return Interval(float(share), float(low), float(high), level, "wilson", cases, cases)


def by_label(
    values: Column, patients: Labels, labels: Labels, *, how: Resampling | None = None
) -> dict[object, Interval]:
    """Return the mean over the cases of each label (a class, a decision, a size) with its interval, in order of first appearance."""
    given, of = column(values, len(patients)), grouped(labels, word="label")
    names = list(dict.fromkeys(labels))
    parts = [of.code == number for number in range(of.count)]
    return {name: mean(given[rows], rows_of(patients, rows), how=how) for name, rows in zip(names, parts, strict=True)}


@dataclass(frozen=True)
class DesignEffect:
    """How much wider clustering makes an interval.

    Parameters
    ----------
    effect
        The variance of the mean with patients as the unit over that with cases as the unit: 1 where a patient's cases are as different as
        those of different patients, about the number of cases a patient where they are the same. NaN where there is no variance.
    effective_cases
        So many independent cases would tell as much.
    intraclass
        The intraclass correlation that would give this effect at the mean size of a case's patient. NaN where each patient has one case.
    cases, patients, undefined
        What it rests on.
    """

    effect: float
    effective_cases: float
    intraclass: float
    cases: int
    patients: int
    undefined: int


def design_effect(values: Column, patients: Labels) -> DesignEffect:
    """Return the design effect of a mean over cases.

    References
    ----------
    Kish, Survey Sampling, 1965, section 5.4; the clustered variance by linearisation, as Obuchowski 1998 has it.
    """
    given = column(values, len(patients))
    kept = ~np.isnan(given)
    by, found = grouped(rows_of(patients, kept)), given[kept]
    n, p = found.size, by.count
    if p < 2 or np.ptp(found) == 0:
        return DesignEffect(float("nan"), float("nan"), float("nan"), n, p, int((~kept).sum()))
    naive = found.var(ddof=1) / n
    residual = by.sums(found - found.mean())
    clustered = p / (p - 1) * (residual**2).sum() / n**2
    effect = float(clustered / naive)
    size = float((by.sizes**2).sum() / n)
    return DesignEffect(
        effect, n / effect if effect > 0 else float("inf"), (effect - 1) / (size - 1) if size > 1 else float("nan"), n, p,
        int((~kept).sum()),
    )  # fmt: skip


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Return p values adjusted for a family that was declared beforehand; a NaN stays NaN and does not count in the family.

    References
    ----------
    Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 1979.
    """
    outside = [name for name, p in values.items() if not (0 <= p <= 1 or np.isnan(p))]
    if outside:
        raise UsageError(f"p values lie between 0 and 1; those of {', '.join(outside)} do not")
    ordered = sorted((p, name) for name, p in values.items() if not np.isnan(p))
    adjusted, floor = dict(values), 0.0
    for place, (p, name) in enumerate(ordered):
        floor = max(floor, min(1.0, p * (len(ordered) - place)))
        adjusted[name] = floor
    return adjusted


def association(first: Column, second: Column, patients: Labels, *, how: Resampling | None = None) -> Interval:
    """Return Spearman's rank correlation of two columns with its patient-bootstrap interval, such as of probability and overlap.

    The ranks are those of all cases; a replicate weights them. Rows where one of the two is NaN are left out. A column of one value has no
    correlation: NaN.
    """
    one, other = column(first, len(patients)), column(second, len(patients), name="the second column")
    kept = ~(np.isnan(one) | np.isnan(other))
    x, y = (rankdata(values[kept]) for values in (one, other))
    if x.size:
        x, y = x - x.mean(), y - y.mean()
    by = grouped(rows_of(patients, kept))
    columns = [np.ones_like(x), x, y, x * x, y * y, x * y]
    sums = np.stack([by.sums(values) for values in columns], 1)

    def correlation(weights: Float[np.ndarray, "r p"]) -> Float[np.ndarray, " r"]:
        n, sx, sy, sxx, syy, sxy = (weights @ sums).T
        # Where all that was drawn is one value, rounding leaves a variance of either sign.
        vx, vy = (np.where(v > 1e-9 * n, v, 0.0) for v in (sxx - over(sx * sx, n), syy - over(sy * sy, n)))
        return over(sxy - over(sx * sy, n), np.sqrt(vx * vy))

    return bootstrap(correlation, by.count, how=how, cases=int(kept.sum()), undefined=int((~kept).sum()))


def over(numerator: Float[np.ndarray, "*r"], denominator: Float[np.ndarray, "*r"]) -> Float[np.ndarray, "*r"]:
    """Return a quotient, NaN where the denominator is 0."""
    result = np.full(np.shape(numerator), np.nan)
    np.divide(numerator, denominator, out=result, where=denominator != 0)
    return result


def strata_of(by: Groups, labels: Labels) -> np.ndarray:
    """Return each patient's stratum, from 0.

    Raises
    ------
    InputError
        If a patient lies in two.
    """
    of = grouped(labels, word="stratum")
    found = np.full(by.count, -1)
    found[by.code] = of.code
    if (found[by.code] != of.code).any():
        raise InputError(
            "a patient lies in two strata; patients can only be drawn within strata that hold each one whole"
        )
    return found
