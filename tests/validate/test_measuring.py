"""A case's numbers: closed forms, undefined ones with their reasons, and what must not change them."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from validate.scenes import SHAPE, SPACING, lesion_of, map_of

from medcam.errors import UsageError
from medcam.validate.lesions import froc
from medcam.validate.measures import CaseMeasures, Settings
from medcam.validate.measuring import baseline_maps, measure
from medcam.validate.thresholds import Curve, Threshold, fixed, half_maximum, otsu, tuned

QUICK = Settings(draws=0)


def numbers(
    relevance: np.ndarray, lesion: np.ndarray, spacing: tuple[float, float, float] = SPACING
) -> dict[str, float]:
    return measure(relevance, lesion, spacing_mm=spacing, settings=QUICK).flat()


def alike(
    one: dict[str, float], other: dict[str, float], *, but: tuple[str, ...] = (), tolerance: float = 1e-6
) -> None:
    assert one.keys() == other.keys()
    for name in one:
        if name not in but:
            assert other[name] == pytest.approx(one[name], rel=tolerance, abs=tolerance, nan_ok=True), name


def test_the_lesion_as_its_own_map_scores_one_in_everything_and_lies_nowhere_else() -> None:
    lesion = lesion_of()
    found = numbers(0.4 * lesion.astype(np.float32), lesion)
    for name in ("hit", "mass_in_lesion", "rank_accuracy", "average_precision", "auroc", "top3_hit", "hit_within_5mm"):
        assert found[name] == 1, name
    for name in (
        "lesion_recall",
        "lesion_precision",
        "lesion_recall_iou_0.1",
        "lesion_recall_peak",
        "lesions_hit_by_top3",
    ):
        assert found[name] == 1, name
    for cut in ("half-max", "top-0.1", "otsu", "oracle-best", "oracle-volume"):
        for name in ("dice", "iou", "precision", "recall", "surface_dice_5mm"):
            assert found[f"{name}@{cut}"] == 1, (name, cut)
        for name in ("hausdorff", "hausdorff_95", "surface_distance", "centre_distance", "matched_centre_distance"):
            assert found[f"{name}@{cut}"] == pytest.approx(0, abs=1e-9), (name, cut)
        assert found[f"selected_size@{cut}"] == found["lesion_size"]
    assert found["peak_distance"] == found["soft_centre_distance"] == found["false_findings"] == 0
    assert found["mass_lift"] == found["average_precision_lift"] == pytest.approx(1 / lesion.mean())


def test_a_constant_map_scores_chance_in_everything() -> None:
    lesion = lesion_of()
    found = measure(np.full(SHAPE, 2, np.float32), lesion, spacing_mm=SPACING).numbers
    for name in (
        "hit",
        "mass_in_lesion",
        "rank_accuracy",
        "average_precision",
        "auroc",
        "hit_within_5mm",
        "hit_within_15mm",
    ):
        assert found[name].value == pytest.approx(found[f"{name}_uniform"].value), name
    for name in ("dice", "iou", "precision", "recall"):
        assert found[f"{name}@half-max"].value == pytest.approx(found[f"{name}_uniform"].value), name
    assert found["mass_lift"].value == found["average_precision_lift"].value == pytest.approx(1)
    assert found["mass_in_lesion_p"].value == 1
    assert (found["mass_in_lesion_z"].why, found["dice@otsu"].value) == ("it is the same at all places", 0)


def test_a_case_without_a_lesion_has_a_burden_and_no_overlap() -> None:
    relevance = map_of(1)
    case = measure(relevance, np.zeros(SHAPE, bool), spacing_mm=SPACING)
    found = case.numbers
    chosen = relevance >= relevance.max() / 2
    assert found["selected_size@half-max"].value == pytest.approx(chosen.sum() * np.prod(SPACING) / 1000)
    assert found["max_relevance"].value == pytest.approx(relevance.max())
    assert found["false_findings"].value == found["pieces@half-max"].value == len(case.findings.false_scores) > 0
    for name in (
        "hit",
        "dice@half-max",
        "average_precision",
        "hausdorff@otsu",
        "lesion_recall",
        "hit_p",
        "peak_distance",
    ):
        assert np.isnan(found[name].value), name
        assert found[name].why == "the lesion mask is empty", name
    assert (case.lesions, case.findings.lesion_scores) == ((), ())


def test_the_volume_above_a_raw_threshold_compares_between_cases() -> None:
    relevance = map_of(1)
    quick = Settings(thresholds=(fixed(1.0),), draws=0)
    sizes = [
        measure(relevance * f, np.zeros(SHAPE, bool), spacing_mm=SPACING, settings=quick).flat()["selected_size@raw-1"]
        for f in (np.float32(1), np.float32(0.8), np.float32(1e-3))
    ]
    assert sizes[0] > sizes[1] > sizes[2] == 0


def test_each_undefined_number_says_why() -> None:
    lesion, seen = lesion_of(), map_of(0)
    cases = {
        "no voxel speaks for the target": measure(-np.abs(seen), lesion, spacing_mm=SPACING),
        "nothing was looked at": measure(np.full(SHAPE, np.nan), lesion, spacing_mm=SPACING),
        "the lesion lies outside what was looked at": measure(
            np.where(lesion, np.float32(np.nan), seen), lesion, spacing_mm=SPACING
        ),
    }
    for why, case in cases.items():
        for name in ("hit", "mass_in_lesion", "rank_accuracy", "precision@half-max"):
            assert np.isnan(case.numbers[name].value), (why, name)
            assert case.numbers[name].why == why, name
    blank = cases["no voxel speaks for the target"].flat()
    assert blank["average_precision"] == pytest.approx(lesion.mean())
    assert (blank["auroc"], blank["dice@half-max"], blank["surface_dice_5mm@otsu"]) == (0.5, 0, 0)
    for case in (*cases.values(), measure(seen, lesion, spacing_mm=SPACING)):
        for name, number in case.numbers.items():
            assert bool(number.why) == np.isnan(number.value), name


def test_units_are_named() -> None:
    found = measure(map_of(0), lesion_of(), spacing_mm=SPACING, settings=QUICK).numbers
    units = {name: number.unit for name, number in found.items()}
    assert units["peak_distance"] == units["hausdorff_95@otsu"] == units["matched_centre_distance@otsu"] == "mm"
    assert (units["lesion_size"], units["tied_maxima"], units["hit"]) == ("mL", "count", "")
    film = measure(map_of(0)[:, :, 2:3], lesion_of()[:, :, 2:3], spacing_mm=SPACING, settings=QUICK).numbers
    assert film["lesion_size"].unit == "cm2"


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1, 2)])
def test_flips_change_nothing(axes: tuple[int, ...]) -> None:
    relevance, lesion = map_of(6, decimals=None), lesion_of()
    alike(numbers(relevance, lesion), numbers(np.flip(relevance, axes), np.flip(lesion, axes)))


@settings(deadline=None, max_examples=12)
@given(st.permutations(range(3)), st.integers(0, 50))
def test_axes_may_change_places_with_their_spacing(order: list[int], seed: int) -> None:
    relevance, lesion = map_of(seed, decimals=None), lesion_of()
    spacing = (SPACING[order[0]], SPACING[order[1]], SPACING[order[2]])
    alike(numbers(relevance, lesion), numbers(relevance.transpose(order), lesion.transpose(order), spacing))


@settings(deadline=None, max_examples=12)
@given(st.integers(-20, 20), st.integers(0, 50))
def test_a_positive_scale_changes_nothing_but_raw_scores(exponent: int, seed: int) -> None:
    relevance, lesion, scale = map_of(seed), lesion_of(), np.float32(2.0**exponent)
    one, other = (
        measure(r, lesion, spacing_mm=SPACING, settings=Settings(draws=20)) for r in (relevance, relevance * scale)
    )
    alike(one.flat(), other.flat(), but=("max_relevance",), tolerance=1e-9)
    assert other.numbers["max_relevance"].value == one.numbers["max_relevance"].value * scale
    np.testing.assert_allclose(other.findings.lesion_scores, np.array(one.findings.lesion_scores) * scale)
    np.testing.assert_allclose(one.curve.dice, other.curve.dice)
    np.testing.assert_array_equal(one.boxes.any_piece, other.boxes.any_piece)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 60))
def test_half_the_spacing_leaves_shares_and_moves_millimetres_by_less_than_a_voxel(seed: int) -> None:
    relevance, lesion = map_of(seed, decimals=None), lesion_of()
    quick = Settings(thresholds=(half_maximum(), otsu()), draws=0)
    fine = [np.repeat(np.repeat(np.repeat(a, 2, 0), 2, 1), 2, 2) for a in (relevance, lesion)]
    one = measure(relevance, lesion, spacing_mm=SPACING, settings=quick)
    half = (SPACING[0] / 2, SPACING[1] / 2, SPACING[2] / 2)
    other = measure(fine[0], fine[1], spacing_mm=half, settings=quick)
    voxel = float(np.linalg.norm(SPACING))
    for name, number in one.numbers.items():
        finer = other.numbers[name].value
        if "distance" in name or "hausdorff" in name:
            assert abs(finer - number.value) <= voxel or np.isnan(number.value), name
        elif name == "tied_maxima":
            assert finer == 8 * number.value
        elif "mm" not in name:
            assert finer == pytest.approx(number.value, rel=1e-5, nan_ok=True), name


def test_findings_of_cases_make_a_froc_curve_on_raw_scores() -> None:
    lesion = lesion_of()
    loud, quiet = lesion.astype(np.float32), np.zeros(SHAPE, np.float32)
    quiet[0:2, 0:2, 6:8] = 0.1
    scans = [
        measure(loud, lesion, spacing_mm=SPACING, settings=QUICK).findings,
        measure(quiet, np.zeros(SHAPE, bool), spacing_mm=SPACING, settings=QUICK).findings,
    ]
    assert froc(scans).at(0.0) == 1
    # Divided by its own maximum the quiet scan's false finding would be as loud as the lesions.
    scaled = [scans[0], measure(quiet / 0.1, np.zeros(SHAPE, bool), spacing_mm=SPACING, settings=QUICK).findings]
    assert froc(scaled).at(0.0) == 0


def test_rows_tell_which_lesion_was_found() -> None:
    lesion = lesion_of()
    relevance = np.zeros(SHAPE, np.float32)
    relevance[9:11, 12:15, 7:9] = 0.5
    case = measure(relevance, lesion, spacing_mm=SPACING, settings=QUICK)
    missed, found = case.lesions
    assert (missed.touched, missed.covered, missed.score, missed.peak_hit) == (False, 0, -np.inf, 0)
    assert np.isnan(missed.centre_distance_mm)
    assert (found.touched, found.covered, found.score, found.peak_hit) == (True, 1, 0.5, 1)
    assert found.centre_distance_mm == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(found.centre_voxel, (9.5, 13.0, 7.5))
    assert case.flat()["lesion_recall"] == 0.5


def test_small_pieces_of_a_mask_are_no_lesions_but_count_in_the_overlap() -> None:
    lesion = lesion_of()
    lesion[12, 0, 0] = True
    least = Settings(draws=0, least_lesion=2.5 * float(np.prod(SPACING)) / 1000)
    case = measure(map_of(0), lesion, spacing_mm=SPACING, settings=least)
    assert len(case.lesions) == 2
    assert case.numbers["prevalence"].value == pytest.approx(lesion.mean())
    only = np.zeros(SHAPE, bool)
    only[12, 0, 0] = True
    alone = measure(map_of(0), only, spacing_mm=SPACING, settings=least).numbers
    assert alone["lesion_recall"].why == "no lesion reaches the least size"
    assert not np.isnan(alone["hit"].value)


def test_baselines_are_measured_like_maps() -> None:
    lesion = lesion_of()
    image = map_of(3) + 5 * lesion
    maps = baseline_maps(image, np.ones(SHAPE, bool), spacing_mm=SPACING)
    cases: dict[str, CaseMeasures] = {
        name: measure(map_, lesion, spacing_mm=SPACING, settings=QUICK) for name, map_ in maps.items()
    }
    assert set(cases) == {"centre", "brightness", "edges"}
    assert cases["brightness"].numbers["hit"].value == 1
    assert cases["brightness"].flat()["average_precision"] > cases["centre"].flat()["average_precision"]


def test_a_case_does_not_touch_its_arrays() -> None:
    relevance, lesion = map_of(0), lesion_of()
    before = relevance.copy(), lesion.copy()
    measure(relevance, lesion, spacing_mm=SPACING, settings=Settings(draws=5))
    np.testing.assert_array_equal(relevance, before[0])
    np.testing.assert_array_equal(lesion, before[1])
    assert relevance.flags.writeable


def test_every_number_stands_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "localization.md").read_text()
    case = measure(map_of(0), lesion_of(), spacing_mm=SPACING)
    for name in case.numbers:
        own = re.sub(r"_(uniform|moved|p|z)$", "", name).split("@")[0]
        general = re.sub(r"_\d+mm$", "_tmm", re.sub(r"within_\d+mm", "within_tmm", own)).replace("top3", "topk")
        assert f"`{general}`" in page or f"`{general}@T`" in page, name
    for threshold in Settings().thresholds:
        assert f"`{re.sub(r'-[0-9.]+', '-f', threshold.name)}`" in page


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"thresholds": ()}, "not none"),
        ({"thresholds": (otsu(), otsu())}, "different names"),
        ({"peaks": 0}, "one peak"),
        ({"draws": -1}, "below 0"),
        ({"tolerances_mm": (5.0, 0.0)}, "above 0 mm"),
    ],
)
def test_settings_that_ask_nothing_sensible_are_refused(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        Settings(**wrong)


def test_what_is_asked_and_what_comes_of_it_travel_between_processes() -> None:
    asked = pickle.loads(
        pickle.dumps(Settings(thresholds=(*Settings().thresholds, fixed(0.5), tuned_elsewhere()), draws=3))
    )
    case = measure(map_of(0), lesion_of(), spacing_mm=SPACING, settings=asked, case="c", patient="p")
    again = pickle.loads(pickle.dumps(case))
    assert {name: number.unit for name, number in again.numbers.items()} == {n: m.unit for n, m in case.numbers.items()}
    assert again.findings == case.findings
    alike(case.flat(), again.flat(), tolerance=1e-12)


def tuned_elsewhere() -> Threshold:
    return tuned([Curve("other", "somebody", np.linspace(0, 1, 100))])


def test_boxes_that_experts_drew_stand_for_those_around_the_mask() -> None:
    drawn = np.array([[[2, 5], [3, 9], [1, 3]], [[3, 8], [5, 12], [2, 6]]])
    lesion = np.zeros(SHAPE, bool)
    for box in drawn:
        lesion[tuple(slice(a, b + 1) for a, b in box)] = True
    one = np.zeros(SHAPE, np.float32)
    one[2:6, 3:10, 1:4] = 1
    given_ = measure(one, lesion, spacing_mm=SPACING, boxes=drawn, settings=QUICK).boxes
    around = measure(one, lesion, spacing_mm=SPACING, settings=QUICK).boxes
    assert (given_.any_piece == 1).all()
    assert (around.any_piece < 0.5).all()


def test_a_finding_as_large_as_the_body_finds_only_the_lesion_at_its_peak() -> None:
    lesion = np.zeros(SHAPE, bool)
    lesion[1:3, 1:3, 1:3], lesion[-4:-2, -4:-2, -4:-2] = True, True
    everywhere = np.full(SHAPE, 1.0, np.float32)
    everywhere[1, 1, 1] = 1.5
    case = measure(everywhere, lesion, spacing_mm=SPACING, settings=Settings(draws=0, tolerances_mm=(0.5, 30.0)))
    assert case.numbers["lesion_recall"].value == 1
    assert case.findings.lesion_scores == (1.5, -np.inf)
    assert case.findings.false_scores == ()
    assert froc([case.findings]).score() == 0.5
