"""Methods on the same cases: closed forms, published critical values, and the rate of false alarms in simulations."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from medcam.errors import InputError, UsageError
from medcam.validate.bootstrap import Resampling
from medcam.validate.paired import compare, compare_hits, difference, mcnemar, rank_methods
from medcam.validate.statistics import mean

PATIENTS = [*"aabcccddef"]
FIRST = [0.5, 0.6, 0.9, 0.3, np.nan, 0.4, 0.8, 0.7, 0.2, 0.6]
SECOND = [0.4, 0.5, 0.7, 0.35, 0.9, 0.2, np.nan, 0.6, 0.2, 0.5]


def test_a_difference_is_of_the_cases_that_both_have() -> None:
    both = ~(np.isnan(FIRST) | np.isnan(SECOND))
    found = difference(FIRST, SECOND, PATIENTS)
    assert found.interval == difference(FIRST, SECOND, PATIENTS).interval
    assert found.interval.value == pytest.approx((np.array(FIRST) - SECOND)[both].mean())
    assert found.first - found.second == pytest.approx(found.interval.value)
    assert (found.interval.cases, found.interval.undefined, found.interval.patients) == (8, 2, 6)
    assert found.first == pytest.approx(np.array(FIRST)[both].mean())
    swapped = difference(SECOND, FIRST, PATIENTS)
    assert swapped.interval.value == pytest.approx(-found.interval.value)
    assert swapped.interval.low == pytest.approx(-found.interval.high, abs=1e-3)


def test_the_signed_rank_test_is_exact_on_patients_means() -> None:
    """The twin tries all signs of the ranks of the patients' mean differences."""
    random = np.random.default_rng(7)
    of = np.repeat(np.arange(8), 2)
    one, other = random.normal(0.5, size=16), random.normal(size=16)
    means = np.array([(one - other)[of == p].mean() for p in range(8)])
    ranks = np.argsort(np.argsort(abs(means))) + 1
    sums = [ranks[list(signs)].sum() for signs in product((False, True), repeat=8)]
    less = min(ranks[means > 0].sum(), ranks[means < 0].sum())
    assert difference(one, other, of).wilcoxon_p == pytest.approx(min(1, 2 * np.mean(np.array(sums) <= less)))


def test_patients_without_a_difference_keep_their_ranks() -> None:
    """Pratt's way: the ranks of those that differ start above them."""
    apart = [0.0, 0.0, 0.1, 0.2, 0.3, -0.4]
    found = difference(apart, [0.0] * 6, [*"abcdef"]).wilcoxon_p
    assert found == stats.wilcoxon(apart, zero_method="pratt").pvalue != stats.wilcoxon(apart[2:]).pvalue


def test_a_pairing_finds_what_unpaired_intervals_hide() -> None:
    random = np.random.default_rng(0)
    level = random.normal(size=80)
    one, other = level + 0.1 * random.normal(size=80) + 0.06, level + 0.1 * random.normal(size=80)
    patients = np.arange(80)
    assert difference(one, other, patients).interval.low > 0
    assert mean(one, patients).low < mean(other, patients).value


def test_with_one_case_a_patient_durkalskis_test_is_mcnemars() -> None:
    random = np.random.default_rng(3)
    one, other = random.integers(0, 2, (2, 90))
    found = mcnemar(one, other, np.arange(90))
    b, c = ((one == 1) & (other == 0)).sum(), ((one == 0) & (other == 1)).sum()
    assert (found.first_only, found.second_only) == (b, c)
    assert found.durkalski == pytest.approx((b - c) ** 2 / (b + c))
    assert found.obuchowski == pytest.approx(89 / 90 * (b - c) ** 2 / (b + c))
    assert found.durkalski_p == pytest.approx(stats.chi2.sf(found.durkalski, 1))


def test_clustered_statistics_are_those_of_the_definition() -> None:
    """Obuchowski's from the variances and the covariance of both shares under equality, patient by patient."""
    random = np.random.default_rng(5)
    of = np.repeat(np.arange(30), random.integers(1, 6, 30))
    one = (random.random(of.size) < 0.6).astype(float)
    other = (random.random(of.size) < 0.4).astype(float)
    found = mcnemar(one, other, of)
    n = of.size
    shared = (one.mean() + other.mean()) / 2
    residuals = [
        (one[of == p].sum() - shared * (of == p).sum(), other[of == p].sum() - shared * (of == p).sum())
        for p in range(30)
    ]
    x, y = np.array(residuals).T
    variance = 30 / 29 * ((x * x).sum() + (y * y).sum() - 2 * (x * y).sum()) / n**2
    assert found.obuchowski == pytest.approx((one.mean() - other.mean()) ** 2 / variance)
    share = [(one[of == p] - other[of == p]).mean() for p in range(30)]
    assert found.durkalski == pytest.approx(np.sum(share) ** 2 / np.sum(np.square(share)))
    assert found.difference == pytest.approx(one.mean() - other.mean())


def test_clustered_tests_raise_few_false_alarms_where_mcnemars_own_raises_many() -> None:
    """Both methods hit alike, but a patient's cases go together."""
    alarms = np.zeros(3)
    for seed in range(600):
        random = np.random.default_rng(seed)
        of = np.repeat(np.arange(50), 4)
        # Of each patient one method finds nearly all, the other few: a coin says which.
        leaning = np.where(random.random(50) < 0.5, 0.8, 0.2)[of]
        one, other = random.random(200) < leaning, random.random(200) < 1 - leaning
        found = mcnemar(one.astype(float), other.astype(float), of)
        alone = mcnemar(one.astype(float), other.astype(float), np.arange(200))
        alarms += np.array([found.obuchowski_p, found.durkalski_p, alone.durkalski_p]) < 0.05
    assert (alarms[:2] / 600 < 0.07).all()
    assert (alarms[:2] / 600 > 0.03).all()
    assert alarms[2] / 600 > 0.2


def test_hits_that_never_differ_are_no_evidence_and_one_patient_none_either() -> None:
    same = mcnemar([1, 0, 1], [1, 0, 1], [*"abc"])
    assert (same.durkalski, same.durkalski_p, same.obuchowski_p) == (0.0, 1.0, 1.0)
    alone = mcnemar([1, 0, 1], [0, 0, 1], [*"aaa"])
    assert np.isnan([alone.durkalski, alone.durkalski_p, alone.obuchowski]).all()
    nothing = mcnemar([np.nan], [1], ["a"])
    assert np.isnan(nothing.difference)
    assert nothing.undefined == 1
    assert difference([1.0, 2.0], [1.0, 2.0], [*"ab"]).wilcoxon_p == 1
    assert np.isnan(difference([np.nan], [1.0], ["a"]).wilcoxon_p)
    with pytest.raises(InputError, match="hits are 0 or 1"):
        mcnemar([2, 0], [0, 0], [*"ab"])


def test_expected_hits_count_by_halves() -> None:
    found = mcnemar([0.5, 1.0, 0.0], [0.0, 1.0, 0.25], [*"abc"])
    assert (found.first_only, found.second_only) == (0.5, 0.25)
    assert found.durkalski == pytest.approx((0.5 - 0.25) ** 2 / (0.5**2 + 0.25**2))


def test_a_family_is_adjusted_for_the_comparisons_that_were_asked_for() -> None:
    random = np.random.default_rng(1)
    level, patients = random.normal(size=60), np.arange(60) // 2
    values = {
        name: level + shift + 0.3 * random.normal(size=60) for name, shift in zip("xyz", (0, 0.1, 0.5), strict=True)
    }
    every = compare(values, patients, how=Resampling(500))
    assert [(one.first, one.second) for one in every] == [("x", "y"), ("x", "z"), ("y", "z")]
    assert min(one.adjusted_p for one in every) == pytest.approx(3 * min(one.p for one in every))
    two = compare(values, patients, against="x", how=Resampling(500))
    assert [(one.first, one.second) for one in two] == [("y", "x"), ("z", "x")]
    assert two[1].adjusted_p == pytest.approx(2 * two[1].p)
    assert two[1].difference.interval.value == pytest.approx(np.mean(values["z"] - values["x"]))
    hits = {name: (column > 0).astype(float) for name, column in values.items()}
    assert compare_hits(hits, patients, how=Resampling(500))[0].p == mcnemar(hits["x"], hits["y"], patients).durkalski_p


def test_comparisons_of_what_is_not_there_are_refused() -> None:
    with pytest.raises(UsageError, match="at least two methods"):
        compare({"x": [1.0]}, ["a"])
    with pytest.raises(UsageError, match="'w' is none of the methods"):
        compare({"x": [1.0], "y": [1.0]}, ["a"], against="w")
    with pytest.raises(UsageError, match="from three on"):
        rank_methods({"x": [1.0], "y": [1.0]}, ["a"])
    with pytest.raises(InputError, match="1 patients"):
        rank_methods({"x": [1.0], "y": [1.0], "z": [2.0]}, ["a"])


def test_ranks_follow_demsars_formulas() -> None:
    random = np.random.default_rng(2)
    values = {name: random.normal(size=40) + shift for name, shift in zip("wxyz", (0, 0.2, 0.8, 0.9), strict=True)}
    found = rank_methods(values, np.arange(40) // 2)
    means = np.stack([v.reshape(20, 2).mean(1) for v in values.values()], 1)
    ranks = np.array([[1 + (row > v).sum() for v in row] for row in means]).mean(0)
    np.testing.assert_allclose(list(found.mean_ranks.values()), ranks)
    assert found.friedman == pytest.approx(12 * 20 / (4 * 5) * ((ranks**2).sum() - 4 * 25 / 4))
    assert found.patients == 20
    # Demšar's table 5a: q of 4 methods at 0.05 is 2.569, of 10 it is 3.164.
    assert found.critical_difference == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 20)), rel=1e-3)
    apart = {pair: abs(found.mean_ranks[pair[0]] - found.mean_ranks[pair[1]]) for pair in found.nemenyi_p}
    for pair, p in found.nemenyi_p.items():
        assert (p < 0.05) == (apart[pair] > found.critical_difference)
    assert min(found.nemenyi_p.values()) < 0.05 < max(found.nemenyi_p.values())


def test_methods_that_tie_everywhere_rank_alike() -> None:
    found = rank_methods({name: [0.5, 0.7, np.nan] for name in "xyz"}, [*"abc"])
    assert set(found.mean_ranks.values()) == {2.0}
    assert (found.friedman, found.friedman_p, found.undefined) == (0.0, 1.0, 1)


@pytest.mark.parametrize("seed", range(6))
def test_the_signed_ranks_of_few_patients_are_those_of_scipy_with_ties_zeros_or_neither(seed: int) -> None:
    rng = np.random.default_rng(seed)
    apart = rng.normal(0.3, 1, 6 + seed % 3) if seed % 2 else rng.integers(-3, 4, 6 + seed % 3) / 2
    found = difference(apart, np.zeros(len(apart)), [str(n) for n in range(len(apart))]).wilcoxon_p
    assert found == pytest.approx(stats.wilcoxon(apart, zero_method="pratt").pvalue, abs=1e-12)
