"""Verdicts on changed maps: cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medcam.errors import InputError, UsageError
from medcam.validate.bootstrap import Resampling
from medcam.validate.sanity import (
    partner_similarity,
    random_pairs,
    repeatability,
    sanity,
    stretched,
)
from medcam.validate.similarity import pearson, similarity

PATIENTS = [f"p{n // 2}" for n in range(20)]
FAST = Resampling(2000)


def maps(seed: int, count: int = 20, shape: tuple[int, ...] = (11, 9, 7)) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [gaussian_filter(random.normal(size=shape), 1.5) for _ in range(count)]


def test_pairs_are_of_different_patients_and_without_repeats_where_there_are_enough() -> None:
    pairs = random_pairs(PATIENTS, per_map=15, seed=3)
    assert pairs.shape == (20, 15)
    for case, others in enumerate(pairs):
        assert all(PATIENTS[other] != PATIENTS[case] for other in others)
        assert len(set(others)) == 15
    assert random_pairs(PATIENTS, per_map=50).shape == (20, 50)
    with pytest.raises(InputError, match="one patient"):
        random_pairs(["a", "a"])
    with pytest.raises(UsageError, match="at least one"):
        random_pairs(PATIENTS, per_map=0)


def test_the_baseline_is_the_mean_over_partners() -> None:
    given = maps(0, 6)
    given[4] = np.zeros_like(given[4])
    patients = [*"aabbcc"]
    found = partner_similarity(given, patients, pearson, per_map=4)
    everyone = [
        [pearson(given[n], given[m]) for m in range(6) if patients[m] != patients[n] and m != 4] for n in range(4)
    ]
    np.testing.assert_allclose(
        found[:4], np.mean(everyone, 1) if len({map(len, everyone)}) == 1 else [np.mean(e) for e in everyone]
    )
    assert np.isnan(found[4])


def test_changed_maps_pass_unchanged_ones_fail_and_in_between_nothing_is_said() -> None:
    given, random = maps(1), np.random.default_rng(0)
    chance = partner_similarity(given, PATIENTS, pearson, per_map=18)
    same = [pearson(one, one + 0.1 * random.normal(size=one.shape)) for one in given]
    assert sanity(same, chance, PATIENTS, how=FAST).verdict == "fails"
    assert sanity(chance - 0.2 + 0.1 * random.normal(size=20), chance, PATIENTS, how=FAST).verdict == "passes"
    assert sanity(chance + 0.3 * random.normal(size=20), chance, PATIENTS, how=FAST).verdict == "undecided"


def test_degenerate_maps_are_counted_and_many_of_them_forbid_a_verdict() -> None:
    chance = np.full(20, 0.4)
    some = np.where(np.arange(20) < 6, np.nan, 0.1)
    found = sanity(some, chance, PATIENTS, how=FAST)
    assert (found.verdict, found.degenerate, found.difference.cases) == ("passes", 6, 14)
    most = np.where(np.arange(20) < 11, np.nan, 0.1)
    assert sanity(most, chance, PATIENTS, how=FAST).verdict == "degenerate"
    assert sanity(np.full(20, np.nan), chance, PATIENTS, how=FAST).verdict == "degenerate"


def test_a_stretched_map_keeps_its_body() -> None:
    ramp = np.linspace(0, 1, 8)[:, None] * np.ones((8, 5))
    wide = stretched(ramp, (16, 10))
    assert wide.shape == (16, 10)
    assert wide[0, 0] == 0
    assert wide[-1, 0] == 1
    np.testing.assert_allclose(wide[::2, 0] + wide[1::2, 0], 2 * ramp[:, 0], atol=0.08)
    assert stretched(ramp, (8, 5)) is ramp


def test_repeatability_is_of_the_cases_that_both_models_got_right() -> None:
    first, second = maps(2), [one + 0.3 * other for one, other in zip(maps(2), maps(3), strict=True)]
    spacing = [(1.0, 1.0, 2.0 + n) for n in range(20)]
    right = [n % 5 != 0 for n in range(20)]
    found = repeatability(first, second, PATIENTS, spacing_mm=spacing, both_right=right, how=FAST)
    expected = [similarity(first[n], second[n], spacing_mm=spacing[n]) for n in range(20) if right[n]]
    assert found.excluded == 4
    assert found.ssim.value == pytest.approx(np.mean([one.ssim for one in expected]))
    assert found.shift_mm.value == pytest.approx(np.mean([one.shift_mm for one in expected]))
    assert found.top_overlap.cases == 16
    blank = [np.zeros_like(one) for one in first]
    assert repeatability(first, blank, PATIENTS, spacing_mm=spacing, how=FAST).ssim.undefined == 20
    with pytest.raises(InputError, match="20 cases"):
        repeatability(first[1:], second, PATIENTS, spacing_mm=spacing)
