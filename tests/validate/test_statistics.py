"""Numbers of a cohort: against loops written from the definitions, against scipy, and against the truth in simulations."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats

from medcam.errors import InputError, UsageError
from medcam.validate.bootstrap import Resampling, bootstrap, limits, replicates
from medcam.validate.patients import grouped
from medcam.validate.statistics import (
    association,
    by_label,
    design_effect,
    holm,
    macro_mean,
    mean,
    proportion,
    ratio,
    wilson,
)

# Five patients of unequal size, not in order, one value undefined.
PATIENTS = ["b", "a", "b", "c", "d", "d", "d", "e", "a"]
VALUES = [0.2, 0.9, 0.4, np.nan, 0.1, 0.15, 0.3, 0.7, 0.8]


def cohort(seed: int, patients: int = 60, *, between: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Skewed values of patients with one to four cases each, around a true mean of 1."""
    random = np.random.default_rng(seed)
    cases = random.integers(1, 5, patients)
    of = np.repeat(np.arange(patients), cases)
    values = 1 + between * (random.gamma(2, 0.5, patients) - 1)[of] + 0.5 * random.normal(size=of.size)
    return values, of


def test_a_patients_replicates_keep_all_its_cases() -> None:
    """The twin draws patients one by one and gathers their rows."""
    values, of = cohort(3, 7)
    random = np.random.default_rng(11)
    rows = [np.flatnonzero(of == p) for p in range(7)]
    twin = []
    for _ in range(20_000):
        drawn = np.concatenate([rows[p] for p in random.integers(7, size=7)])
        twin.append(values[drawn].mean())
    by = grouped(of)
    sums, counts = by.sums(values), by.sizes
    ours = replicates(lambda w: (w @ sums) / (w @ counts), 7, how=Resampling(20_000, "percentile", seed=5)).drawn
    np.testing.assert_allclose(np.quantile(ours, [0.05, 0.5, 0.95]), np.quantile(twin, [0.05, 0.5, 0.95]), atol=0.01)
    assert ours.std() == pytest.approx(np.std(twin), rel=0.02)


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_with_one_case_a_patient_the_interval_is_scipys(method: str) -> None:
    values = np.random.default_rng(0).exponential(size=37)
    ours = mean(values, list(range(37)), how=Resampling(40_000, method, 0.9))
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=40_000, method=method, confidence_level=0.9, rng=np.random.default_rng(1),
        vectorized=True,
    )  # fmt: skip
    width = ours.high - ours.low
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.02 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.02 * width)


def test_bca_limits_are_those_of_the_formula() -> None:
    """The twin computes bias and acceleration from the definition, patient by patient."""
    values, of = cohort(8, 11)
    by = grouped(of)
    how = Resampling(3000, "bca", 0.9, seed=2)
    sums, counts = by.sums(values), by.sizes
    found = replicates(lambda w: (w @ sums) / (w @ counts), 11, how=how)
    left = np.array([values[of != p].mean() for p in range(11)])
    apart = left.mean() - left
    speed = (apart**3).sum() / (6 * ((apart**2).sum()) ** 1.5)
    same = abs(found.drawn - values.mean()) < 1e-12
    bias = stats.norm.ppf(np.mean((found.drawn < values.mean()) & ~same) + np.mean(same) / 2)
    z = bias + stats.norm.ppf([0.05, 0.95])
    expected = np.quantile(found.drawn, stats.norm.cdf(bias + z / (1 - speed * z)))
    np.testing.assert_allclose(limits(found, how), expected, rtol=1e-12)
    assert abs(speed) > 0.01  # so that it matters


def test_the_expanded_interval_widens_bca_by_students_t() -> None:
    values, of = cohort(8, 11)
    by = grouped(of)
    sums, counts = by.sums(values), by.sizes
    found = replicates(lambda w: (w @ sums) / (w @ counts), 11, how=Resampling(3000, "bca", 0.9, seed=2))
    # The level at which plain BCa has these limits.
    level = 1 - 2 * stats.norm.sf(stats.t.ppf(0.95, 10) * np.sqrt(11 / 10))
    np.testing.assert_allclose(
        limits(found, Resampling(3000, "expanded", 0.9)), limits(found, Resampling(3000, "bca", level)), rtol=1e-9
    )
    assert level > 0.93


def test_few_patients_are_covered_better_by_the_expanded_interval() -> None:
    covered = dict.fromkeys(("expanded", "bca", "percentile"), 0)
    for seed in range(300):
        values, of = cohort(seed, 10)
        for method in covered:
            found = mean(values, of, how=Resampling(500, method, seed=seed))
            covered[method] += found.low <= 1 <= found.high
    assert covered["expanded"] / 300 > max(covered["bca"], covered["percentile"]) / 300 + 0.02
    assert covered["expanded"] / 300 > 0.87


@pytest.mark.parametrize("method", ["expanded", "bca", "percentile"])
def test_the_interval_covers_the_true_mean_as_often_as_it_says(method: str) -> None:
    covered = 0
    for seed in range(600):
        values, of = cohort(seed)
        found = mean(values, of, how=Resampling(500, method, seed=seed))
        covered += found.low <= 1 <= found.high
    assert 0.93 <= covered / 600 <= 0.97


def test_drawing_images_instead_of_patients_covers_too_little() -> None:
    covered = 0
    for seed in range(300):
        values, _ = cohort(seed)
        found = mean(values, np.arange(values.size), how=Resampling(500, "percentile", seed=seed))
        covered += found.low <= 1 <= found.high
    assert covered / 300 < 0.9


def test_rows_without_a_value_are_left_out_and_counted() -> None:
    found = mean(VALUES, PATIENTS)
    assert found.value == pytest.approx(np.nanmean(VALUES))
    assert (found.cases, found.patients, found.undefined) == (8, 4, 1)
    kept = ~np.isnan(VALUES)
    same = mean(np.array(VALUES)[kept], np.array(PATIENTS)[kept])
    assert (found.low, found.high) == (same.low, same.high)


def test_no_value_is_nan_and_one_patient_has_no_interval() -> None:
    none = mean([np.nan, np.nan], ["a", "b"])
    assert np.isnan([none.value, none.low, none.high]).all()
    assert (none.cases, none.patients, none.undefined) == (0, 0, 2)
    one = mean([0.25, 0.75], ["a", "a"])
    assert one.value == 0.5
    assert np.isnan([one.low, one.high]).all()


def test_patients_drawn_within_strata_keep_the_strata_as_large() -> None:
    """Between two strata that differ only in their mean there is nothing left to vary."""
    patients = [*"aabbccddeeff"]
    values = [0.0] * 6 + [1.0] * 6
    strata = ["x"] * 6 + ["y"] * 6
    assert mean(values, patients, strata=strata).low == 0.5
    assert mean(values, patients, strata=strata).high == 0.5
    assert mean(values, patients).low < 0.3
    with pytest.raises(InputError, match="two strata"):
        mean(values, patients, strata=["x", "y"] * 6)


def test_the_acceleration_in_strata_is_that_of_a_two_sample_statistic() -> None:
    """scipy's BCa for two samples, of their difference in means."""
    random = np.random.default_rng(4)
    x, y = random.exponential(size=19), random.exponential(2.0, size=31)
    signs, size = np.r_[np.full(19, 1 / 19), np.full(31, -1 / 31)], 50
    both = np.r_[x, y] * signs
    ours = bootstrap(
        lambda w: w @ both, size, how=Resampling(40_000, "bca", 0.9), strata=np.r_[np.zeros(19, int), np.ones(31, int)]
    )
    theirs = stats.bootstrap(
        (x, y), lambda a, b, axis: a.mean(axis) - b.mean(axis), n_resamples=40_000, method="BCa", confidence_level=0.9,
        rng=np.random.default_rng(1), vectorized=True,
    ).confidence_interval  # fmt: skip
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.025 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.025 * width)


def test_a_ratio_is_a_sum_over_a_sum_and_not_a_mean_of_ratios() -> None:
    found, lesions, patients = [1, 3, 0, 2], [1, 6, 1, 2], ["a", "b", "b", "c"]
    assert ratio(found, lesions, patients).value == 0.6
    partly = ratio([1.0, np.nan, 1.0], [2, 2, 0], ["a", "b", "c"])
    assert (partly.value, partly.undefined) == (1.0, 1)
    assert partly.lost > 0  # replicates of patient c alone divide by 0


def test_every_class_counts_once_in_a_macro_mean() -> None:
    values, classes, patients = [1.0, 0.0, 0.0, 0.0, np.nan], [*"xyyyx"], [*"aabcd"]
    assert macro_mean(values, patients, classes).value == 0.5
    assert mean(values, patients).value == 0.25
    # Of one class it is the mean.
    assert macro_mean(VALUES, PATIENTS, ["x"] * 9) == mean(VALUES, PATIENTS)


@pytest.mark.parametrize(("hits", "cases"), [(0, 9), (3, 11), (40, 40), (233, 500)])
def test_wilsons_interval_is_scipys(hits: int, cases: int) -> None:
    ours = wilson(hits, cases, level=0.9)
    theirs = stats.binomtest(hits, cases).proportion_ci(0.9, "wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_hits_have_wilsons_interval_only_with_one_case_a_patient() -> None:
    alone = proportion([1, 0, 1, 1, np.nan], [*"abcde"])
    assert (alone.method, alone.cases, alone.undefined) == ("wilson", 4, 1)
    assert (alone.low, alone.high) == (wilson(3, 4).low, wilson(3, 4).high)
    assert proportion([1, 0, 1, 1], [*"abcc"]).method == "expanded"
    # Nine of nine hits in three patients: no width by bootstrap, and three patients' worth of certainty.
    every = proportion([1] * 9, [*"aaabbbccc"])
    assert (every.value, every.cases, every.patients, every.low) == (1.0, 9, 3, wilson(3, 3).low)
    with pytest.raises(InputError, match="0 or 1"):
        proportion([2, 0], [*"ab"])


def test_means_by_label_are_those_of_the_labels_rows() -> None:
    labels = ["TP", "TP", "FN", "TP", "FN", "TP", "TP", "FN", "TP"]
    found = by_label(VALUES, PATIENTS, labels)
    assert list(found) == ["TP", "FN"]
    rows = np.array(labels) == "FN"
    assert found["FN"] == mean(np.array(VALUES)[rows], np.array(PATIENTS)[rows])
    assert found["TP"].undefined == 1


def test_the_design_effect_of_cases_that_are_all_alike_is_their_number() -> None:
    random = np.random.default_rng(0)
    values = np.repeat(random.normal(size=400), 3)
    found = design_effect(values, np.repeat(np.arange(400), 3))
    assert found.effect == pytest.approx(3, rel=0.01)
    assert found.intraclass == pytest.approx(1, abs=0.01)
    assert found.effective_cases == pytest.approx(400, rel=0.01)


def test_the_design_effect_follows_kishs_formula() -> None:
    """1 + (m - 1) rho for m cases a patient whose correlation is rho."""
    random = np.random.default_rng(1)
    rho, m = 0.4, 5
    shared, own = random.normal(size=(4000, 1)), random.normal(size=(4000, m))
    values = (np.sqrt(rho) * shared + np.sqrt(1 - rho) * own).ravel()
    found = design_effect(values, np.repeat(np.arange(4000), m))
    assert found.effect == pytest.approx(1 + (m - 1) * rho, rel=0.05)
    assert found.intraclass == pytest.approx(rho, abs=0.03)


def test_the_design_effect_is_that_of_the_bootstraps_two_variances() -> None:
    values, of = cohort(5, 300)
    how = Resampling(20_000, "percentile")
    by, alone = grouped(of), grouped(np.arange(values.size))
    wide, narrow = (
        replicates(lambda w, g=g: (w @ g.sums(values)) / (w @ g.sizes), g.count, how=how).drawn.var()
        for g in (by, alone)
    )
    assert design_effect(values, of).effect == pytest.approx(wide / narrow, rel=0.05)


def test_a_design_effect_without_variance_is_undefined() -> None:
    assert np.isnan(design_effect([1.0, 1.0, 1.0], [*"aab"]).effect)
    assert np.isnan(design_effect([1.0, 2.0], [*"aa"]).effect)
    assert np.isnan(design_effect([1.0, 2.0, 3.0], [*"abc"]).intraclass)
    assert design_effect([1.0, 2.0, 3.0], [*"abc"]).effect == pytest.approx(1)


def test_holm_is_the_closed_test_of_bonferroni() -> None:
    """A hypothesis is rejected if every set of hypotheses that holds it is rejected by Bonferroni."""
    random = np.random.default_rng(0)
    for _ in range(20):
        p = {name: float(v) for name, v in zip("abcd", random.uniform(0, 0.2, 4), strict=True)}
        sets = [[n for k, n in enumerate("abcd") if bits >> k & 1] for bits in range(1, 16)]
        for name, adjusted in holm(p).items():
            closed = max(min(1.0, len(s) * min(p[n] for n in s)) for s in sets if name in s)
            assert adjusted == pytest.approx(closed)


def test_holm_leaves_undefined_p_values_out_of_the_family() -> None:
    found = holm({"a": 0.02, "b": float("nan"), "c": 0.03})
    assert found["a"] == pytest.approx(0.04)
    assert found["c"] == pytest.approx(0.04)
    assert np.isnan(found["b"])
    with pytest.raises(UsageError, match="between 0 and 1"):
        holm({"a": 1.2})


def test_association_is_spearmans_and_undefined_for_a_constant() -> None:
    random = np.random.default_rng(2)
    x = random.normal(size=50).round(1)
    y = x + random.normal(size=50)
    found = association(x, y, list(range(50)))
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.low < found.value < found.high
    assert np.isnan(association(x, np.ones(50), list(range(50))).value)


def test_columns_that_do_not_fit_are_refused_without_naming_a_patient() -> None:
    with pytest.raises(InputError, match=r"\(3,\).*2 rows"):
        mean([1.0, 2.0, 3.0], ["Doe^John", "Roe^Jane"])
    with pytest.raises(InputError, match="row 2 of the table has no patient") as error:
        mean([1.0, 2.0], ["Doe^John", ""])
    assert "Doe" not in str(error.value)
    assert "Doe" not in repr(grouped(["Doe^John"]))
    with pytest.raises(InputError, match="infinities"):
        mean([np.inf], ["a"])
    with pytest.raises(InputError, match="should be numbers"):
        mean(["much"], ["a"])
    assert mean([None, 2.0], ["a", "b"]).value == 2.0


@pytest.mark.parametrize(
    ("given", "word"),
    [({"method": "t"}, "'bca'"), ({"level": 1.0}, "between"), ({"replicates": 10}, "too few")],
)
def test_a_resampling_that_makes_no_interval_is_refused(given: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        Resampling(**given)


def test_the_same_seed_gives_the_same_interval() -> None:
    values, of = cohort(1)
    assert mean(values, of) == mean(values, of)
    assert mean(values, of, how=Resampling(seed=1)).low != mean(values, of).low


@pytest.mark.slow
def test_ten_thousand_replicates_of_a_thousand_patients_take_less_than_two_seconds() -> None:
    values, of = cohort(0, 1000)
    start = time.perf_counter()
    mean(values, of)
    assert time.perf_counter() - start < 2
