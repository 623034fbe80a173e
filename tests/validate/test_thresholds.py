"""Where maps are cut, and that no threshold is chosen on the case it is used on."""

from __future__ import annotations

import numpy as np
import pytest
from validate.scenes import SPACING, lesion_of, map_of, scene_of

from medcam.errors import UsageError
from medcam.validate.measures import Settings
from medcam.validate.measuring import measure
from medcam.validate.overlap import selected
from medcam.validate.ranked import FRACTIONS, Ranked
from medcam.validate.scene import Scene
from medcam.validate.thresholds import (
    DECLARED,
    Curve,
    best_overlap,
    fixed,
    fraction_of_maximum,
    half_maximum,
    otsu,
    top_share,
    tuned,
    volume_matched,
)


def cut(threshold: object, scene: Scene) -> np.ndarray:
    return selected(scene, threshold.cut(scene, Ranked.of(scene)))  # type: ignore[attr-defined]


def otsu_by_loops(values: np.ndarray) -> np.ndarray:
    """The split of 256 bins with the largest variance between its classes, written from the definition."""
    bins = np.minimum((values.astype(np.float64) / values.max() * 256).astype(int), 255)
    best, split = -1.0, 0
    for t in range(1, 256):
        low, high = bins[bins < t], bins[bins >= t]
        if len(low) and len(high):
            between = len(low) * len(high) * (low.mean() - high.mean()) ** 2
            if between > best * (1 + 1e-12):
                best, split = between, t
    return bins >= split


@pytest.mark.parametrize("seed", range(4))
def test_otsu_is_the_split_of_the_largest_variance_between_classes(seed: int) -> None:
    s = scene_of(seed, decimals=None)
    assert (cut(otsu(), s).ravel() != otsu_by_loops(s.positive.ravel())).mean() < 1e-3


def test_otsu_splits_two_values_between_them_and_says_nothing_of_one() -> None:
    lesion = lesion_of()
    two = Scene(np.where(lesion, np.float32(0.7), np.float32(0.6)), lesion, SPACING)
    np.testing.assert_array_equal(cut(otsu(), two), lesion)
    one = Scene(np.full(lesion.shape, 2, np.float32), lesion, SPACING)
    assert np.isnan(otsu().cut(one, Ranked.of(one)))
    assert not cut(otsu(), one).any()


@pytest.mark.parametrize("share", [0.01, 0.1, 0.37])
def test_a_top_share_selects_its_share_and_all_voxels_of_the_last_value(share: float) -> None:
    exact = scene_of(1, decimals=None)
    assert cut(top_share(share), exact).sum() == round(share * exact.domain_voxels)
    tied = scene_of(1, decimals=0)
    ordered = np.sort(tied.positive.ravel())[::-1]
    last = ordered[round(share * ordered.size) - 1]
    np.testing.assert_array_equal(cut(top_share(share), tied), (tied.positive >= last) & (tied.positive > 0))


def test_a_voxel_without_relevance_is_never_selected_however_large_the_share() -> None:
    lesion = lesion_of()
    s = Scene(0.5 * lesion.astype(np.float32), lesion, SPACING)
    for threshold in (top_share(0.9), volume_matched(), fraction_of_maximum(0.01), half_maximum()):
        np.testing.assert_array_equal(cut(threshold, s), lesion)
    blank = Scene(-lesion.astype(np.float32), lesion, SPACING)
    for threshold in DECLARED:
        assert not cut(threshold, blank).any()


def test_half_of_the_maximum_is_reached_by_what_equals_it() -> None:
    lesion = lesion_of()
    relevance = np.zeros(lesion.shape, np.float32)
    relevance[0, 0, 0], relevance[1, 1, 1], relevance[2, 2, 2] = 0.6, 0.3, 0.29999
    assert np.argwhere(cut(half_maximum(), Scene(relevance, lesion, SPACING))).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert cut(fixed(0.3), Scene(relevance, lesion, SPACING)).sum() == 2


def test_oracles_look_at_the_truth_and_are_marked() -> None:
    s = scene_of(2, decimals=None)
    assert cut(volume_matched(), s).sum() == s.lesion_voxels
    assert {t.name for t in DECLARED if t.oracle} == {"oracle-volume", "oracle-best"}
    numbers = measure(s.relevance, s.lesion, spacing_mm=SPACING, settings=Settings(draws=0)).numbers
    assert all(number.oracle == ("oracle" in name) for name, number in numbers.items())
    assert numbers["dice@oracle-best"].value >= max(numbers[f"dice@{t.name}"].value for t in DECLARED)


def test_shares_and_relevances_that_cut_nothing_are_refused() -> None:
    for wrong in (lambda: top_share(0.0), lambda: fraction_of_maximum(1.2), lambda: fixed(-1.0)):
        with pytest.raises(UsageError, match="above 0"):
            wrong()


def curve(case: str, patient: str, best: int) -> Curve:
    return Curve(case, patient, 1 - np.abs(np.arange(100) - best) / 100)


def test_a_tuned_threshold_is_the_best_mean_over_patients_and_not_over_their_cases() -> None:
    curves = [curve("a", "p", 20), curve("b", "p", 20), curve("c", "p", 20), curve("d", "q", 60), curve("e", "r", 50)]
    threshold = tuned(curves)
    means = [np.mean([c.dice for c in curves if c.patient == p], axis=0) for p in "pqr"]
    s = scene_of(0)
    expected = np.float32(FRACTIONS[int(np.argmax(np.mean(means, axis=0)))] * s.maximum)
    assert threshold.cut(s, Ranked.of(s)) == expected
    assert int(np.argmax(np.mean(means, axis=0))) == 50


def test_a_threshold_is_refused_on_the_cases_and_patients_it_was_tuned_on() -> None:
    threshold = tuned([curve("case-1", "anna", 20), curve("case-2", "bert", 40)])
    settings = Settings(thresholds=(threshold,), draws=0)

    def use(case: str, patient: str) -> object:
        return measure(map_of(0), lesion_of(), spacing_mm=SPACING, settings=settings, case=case, patient=patient)

    assert use("case-3", "carl") is not None
    for case, patient in (("case-3", "anna"), ("case-2", "carl")):
        with pytest.raises(UsageError, match="tuned on this case, or on this patient") as refusal:
            use(case, patient)
        assert "anna" not in str(refusal.value)
    with pytest.raises(UsageError, match="named cases"):
        use("", "")
    assert "anna" not in repr(threshold)
    assert "anna" not in repr(curve("case-1", "anna", 20))


def test_tuning_needs_lesions_and_names() -> None:
    with pytest.raises(UsageError, match="none of these has one"):
        tuned([Curve("a", "p", np.full(100, np.nan))])
    with pytest.raises(UsageError, match="name the case"):
        tuned([curve("", "p", 3)])


def test_a_cases_own_curve_is_its_dice_at_each_percent_of_the_maximum() -> None:
    s = scene_of(3)
    dice = measure(s.relevance, s.lesion, spacing_mm=SPACING, settings=Settings(draws=0)).curve.dice
    for fraction, value in zip(FRACTIONS, dice, strict=True):
        chosen = s.positive >= np.float32(fraction * s.maximum)
        assert value == pytest.approx(2 * (chosen & s.lesion).sum() / (chosen.sum() + s.lesion.sum()))
    assert best_overlap().oracle
