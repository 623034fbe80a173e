"""Two or more methods, layers or models on the same cases: which is better, and is that more than chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float
from scipy.stats import chi2, friedmanchisquare, rankdata, studentized_range, wilcoxon

from medcam.errors import InputError, UsageError
from medcam.validate.bootstrap import Interval, Resampling
from medcam.validate.patients import Column, Groups, Labels, column, grouped, rows_of
from medcam.validate.statistics import holm, mean

# Of so few patients every way in which the signs could have fallen is counted, as scipy does.
_EXACT_PATIENTS = 13
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Difference:
    """The first less the second, on the cases where both have a value.

    Parameters
    ----------
    interval
        Of the mean difference over cases: what to report first. Its `undefined` counts the cases that one of the two lacks.
    first, second
        Their means over those cases.
    wilcoxon_p
        Of the signed-rank test on patients' mean differences, two-sided; 1 if no patient differs, NaN of no patient.
    """

    interval: Interval
    first: float
    second: float
    wilcoxon_p: float


def difference(first: Column, second: Column, patients: Labels, *, how: Resampling | None = None) -> Difference:
    """Return how much a measure differs between two methods on the same cases.

    Raises
    ------
    InputError
        If the columns do not fit together.

    References
    ----------
    Wilcoxon, Individual comparisons by ranking methods, 1945; zero differences are ranked and dropped as Pratt (JASA 1959) does.
    """
    one, other, by = _both(first, second, patients)
    apart = column(first, len(patients)) - column(second, len(patients))
    nothing = float("nan")
    return Difference(
        mean(apart, patients, how=how),
        float(one.mean()) if one.size else nothing,
        float(other.mean()) if one.size else nothing,
        _signed_rank(by.means(one - other)) if one.size else nothing,
    )


@dataclass(frozen=True)
class McNemar:
    """Do two methods hit equally often? McNemar's test for patients with several cases.

    Parameters
    ----------
    difference
        The first's share of hits less the second's.
    obuchowski, obuchowski_p
        A chi-square with one degree of freedom, which weights cases alike; holds from about 20 patients on.
    durkalski, durkalski_p
        The same, weighting patients alike; with one case a patient it is McNemar's own.
    first_only, second_only
        How many cases only one of the two hit (expected numbers, if hits are).
    cases, patients, undefined
        What it rests on, and how many cases lack one of the two.
    """

    difference: float
    obuchowski: float
    obuchowski_p: float
    durkalski: float
    durkalski_p: float
    first_only: float
    second_only: float
    cases: int
    patients: int
    undefined: int


def mcnemar(first: Column, second: Column, patients: Labels) -> McNemar:
    """Return the clustered McNemar tests of two columns of hits, 0 or 1 (or between, for expected hits under ties).

    Where no case differs the statistics are 0 and p is 1; of fewer than two patients they are NaN.

    Raises
    ------
    InputError
        If a hit lies outside 0 to 1, or the columns do not fit together.

    References
    ----------
    Obuchowski, On the comparison of correlated proportions for clustered data, Statistics in Medicine 1998, as simplified by Yang, Sun and
    Hardin, Biometrical Journal 2010; Durkalski, Palesch, Lipsitz and Rust, Analysis of clustered matched-pair data, Statistics in Medicine
    2003.
    """
    one, other, by = _both(first, second, patients)
    if ((one < 0) | (one > 1) | (other < 0) | (other > 1)).any():
        raise InputError("hits are 0 or 1, or between them for expected hits under ties")
    apart = one - other
    sums = by.sums(apart)
    shrunk = (by.count - 1) / by.count if by.count else float("nan")
    cases_alike, patients_alike = (_chi_square(values, by.count) for values in (sums, sums / by.sizes))
    return McNemar(
        float(apart.mean()) if apart.size else float("nan"),
        shrunk * cases_alike, _tail(shrunk * cases_alike), patients_alike, _tail(patients_alike),
        float((one * (1 - other)).sum()), float((other * (1 - one)).sum()),
        apart.size, by.count, len(patients) - apart.size,
    )  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One of a family of comparisons between two methods.

    Parameters
    ----------
    first, second
        Their names.
    difference
        The first's values less the second's.
    p
        Of Wilcoxon's test on patients' means, or of Durkalski's test where hits were compared.
    adjusted_p
        After Holm, within the family that was asked for.
    """

    first: str
    second: str
    difference: Difference
    p: float
    adjusted_p: float


def compare(
    values: Mapping[str, Column], patients: Labels, *, against: str | None = None, how: Resampling | None = None
) -> tuple[Comparison, ...]:
    """Return the differences between methods on the same cases, adjusted for their number.

    The family is what this call compares; declare it before looking.

    Parameters
    ----------
    values
        A column for each method.
    against
        The method that every other is compared with; by default each is compared with each.

    Raises
    ------
    UsageError
        If fewer than two methods are given, or `against` is none of them.
    InputError
        If the columns do not fit together.
    """
    pairs = _pairs(values, against)
    found = {pair: difference(values[pair[0]], values[pair[1]], patients, how=how) for pair in pairs}
    return _family(found, {pair: one.wilcoxon_p for pair, one in found.items()})


def compare_hits(
    hits: Mapping[str, Column], patients: Labels, *, against: str | None = None, how: Resampling | None = None
) -> tuple[Comparison, ...]:
    """Return the differences between methods' hits; as `compare`, with Durkalski's test in place of Wilcoxon's."""
    pairs = _pairs(hits, against)
    found = {pair: difference(hits[pair[0]], hits[pair[1]], patients, how=how) for pair in pairs}
    return _family(found, {pair: mcnemar(hits[pair[0]], hits[pair[1]], patients).durkalski_p for pair in pairs})


@dataclass(frozen=True)
class Ranking:
    """Methods ranked within each patient, 1 the best (the highest value).

    Parameters
    ----------
    mean_ranks
        By method.
    friedman, friedman_p
        The chi-square that all methods rank alike; NaN for fewer than three methods.
    critical_difference
        Mean ranks that lie further apart differ at level 0.05 (Nemenyi).
    nemenyi_p
        For each pair of methods, adjusted for their number by the test itself.
    patients, undefined
        How many patients are ranked, and how many cases lack a value of some method.
    """

    mean_ranks: Mapping[str, float]
    friedman: float
    friedman_p: float
    critical_difference: float
    nemenyi_p: Mapping[tuple[str, str], float]
    patients: int
    undefined: int


def rank_methods(values: Mapping[str, Column], patients: Labels) -> Ranking:
    """Return how methods rank on patients' mean values, by Friedman's test and Nemenyi's comparisons after it.

    Raises
    ------
    UsageError
        If fewer than three methods are given.
    InputError
        If the columns do not fit together, or fewer than two patients have values of all methods.

    References
    ----------
    Demšar, Statistical comparisons of classifiers over multiple data sets, JMLR 2006, section 3.2.2.
    """
    if len(values) < 3:
        raise UsageError(f"methods are ranked from three on, not {len(values)}; two are compared by their difference")
    names = list(values)
    table = np.stack([column(values[name], len(patients), name=name) for name in names], 1)
    kept = ~np.isnan(table).any(1)
    by = grouped(rows_of(patients, kept))
    if by.count < 2:
        raise InputError(f"{by.count} patients have values of all methods; ranks need at least two")
    means = np.stack([by.means(one) for one in table[kept].T], 1)
    ranks = rankdata(-means, axis=1).mean(0)
    k, n = len(names), by.count
    error = np.sqrt(k * (k + 1) / (6 * n))
    # scipy divides 0 by 0 where all methods tie everywhere.
    alike = bool((means == means[:, :1]).all())
    test = (0.0, 1.0) if alike else friedmanchisquare(*means.T)
    return Ranking(
        {name: float(rank) for name, rank in zip(names, ranks, strict=True)},
        float(test[0]),
        float(test[1]),
        float(studentized_range.ppf(0.95, k, np.inf) / np.sqrt(2) * error),
        {
            (names[a], names[b]): float(studentized_range.sf(abs(ranks[a] - ranks[b]) / error * np.sqrt(2), k, np.inf))
            for a, b in combinations(range(k), 2)
        },
        n,
        int((~kept).sum()),
    )


def _both(
    first: Column, second: Column, patients: Labels
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"], Groups]:
    one, other = column(first, len(patients), name="the first"), column(second, len(patients), name="the second")
    kept = ~(np.isnan(one) | np.isnan(other))
    return one[kept], other[kept], grouped(rows_of(patients, kept))


def _signed_rank(apart: Float[np.ndarray, " p"]) -> float:
    # Differences that are 0 but for rounding are ties.
    apart = np.where(abs(apart) <= 1e-12 * abs(apart).max(initial=0.0), 0.0, apart)
    if not apart.any():
        return 1.0
    if len(apart) > _EXACT_PATIENTS:
        return float(wilcoxon(apart, zero_method="pratt").pvalue)
    # All ways in which the signs could have fallen. scipy counts them one by one, which takes seconds where there are ties.
    moved = rankdata(abs(apart))[apart != 0]
    signs = (np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1
    sums, found = signs @ moved, float(moved @ (apart[apart != 0] > 0))
    less, more = np.mean(sums <= found + _ROUNDING), np.mean(sums >= found - _ROUNDING)
    return float(min(1.0, 2 * min(less, more)))


def _chi_square(sums: Float[np.ndarray, " p"], patients: int) -> float:
    spread = float((sums**2).sum())
    if patients < 2:
        return float("nan")
    return float(sums.sum() ** 2 / spread) if spread > 0 else 0.0


def _tail(statistic: float) -> float:
    return float(chi2.sf(statistic, 1))


def _pairs(values: Mapping[str, Column], against: str | None) -> list[tuple[str, str]]:
    if len(values) < 2:
        raise UsageError(f"a comparison takes at least two methods, not {len(values)}")
    if against is None:
        return list(combinations(values, 2))
    if against not in values:
        raise UsageError(f"'{against}' is none of the methods that are compared: {', '.join(values)}")
    return [(name, against) for name in values if name != against]


def _family(found: Mapping[tuple[str, str], Difference], p: Mapping[tuple[str, str], float]) -> tuple[Comparison, ...]:
    numbered = {str(n): p[pair] for n, pair in enumerate(found)}
    adjusted = holm(numbered)
    return tuple(Comparison(*pair, found[pair], p[pair], adjusted[str(n)]) for n, pair in enumerate(found))
