"""Hits under ties and within a distance, peaks, overlap and mass, against MONAI, loops and hand-made cases."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_dice, compute_iou
from validate.scenes import SHAPE, SPACING, lesion_of, scene_of

from medcam.validate.distances import LesionDistance
from medcam.validate.hits import _all_miss, any_peak_hits, hit, hit_within, peaks, tied_maxima
from medcam.validate.lesions import distances_of, pieces
from medcam.validate.overlap import lift, mass_in_lesion, overlap, selected
from medcam.validate.scene import Scene


def points(*voxels: tuple[int, int, int], values: tuple[float, ...] = ()) -> np.ndarray:
    relevance = np.zeros(SHAPE, np.float32)
    for n, voxel in enumerate(voxels):
        relevance[voxel] = values[n] if values else 1.0
    return relevance


@pytest.mark.parametrize("cut", [0.2, 1.0, 1.5])
def test_dice_and_iou_are_monais(cut: float) -> None:
    for seed in range(4):
        s = scene_of(seed)
        chosen = selected(s, cut)
        over = overlap(s, chosen)
        a, b = (torch.tensor(m)[None, None].float() for m in (chosen, s.lesion))
        assert over.dice == pytest.approx(float(compute_dice(a, b)))
        assert over.iou == pytest.approx(float(compute_iou(a, b)))
        assert over.precision == pytest.approx((chosen & s.lesion).sum() / chosen.sum())
        assert over.recall == pytest.approx((chosen & s.lesion).sum() / s.lesion.sum())
        assert over.selected_share == pytest.approx(chosen.mean())


def test_selecting_nothing_overlaps_by_nothing_and_an_empty_mask_is_undefined() -> None:
    s = scene_of(0)
    nothing = overlap(s, selected(s, 1e9))
    assert (nothing.dice, nothing.iou, nothing.recall) == (0, 0, 0)
    assert np.isnan(nothing.precision)
    empty = Scene(s.relevance, np.zeros(SHAPE, bool), SPACING)
    assert all(np.isnan(v) for v in overlap(empty, selected(empty, 1.0))[:4])
    assert np.isnan(mass_in_lesion(empty))
    # Elsewhere an empty mask is a hit, since NaN is stored as true.
    assert np.isnan(hit(empty, tied_maxima(empty)))


def test_mass_in_lesion_is_the_share_of_positive_relevance_and_its_lift_is_over_chance() -> None:
    s = scene_of(1)
    positive = np.maximum(s.relevance, 0).astype(np.float64)
    assert mass_in_lesion(s) == pytest.approx(positive[s.lesion].sum() / positive.sum())
    flat = Scene(np.full(SHAPE, 4, np.float32), s.lesion, SPACING)
    assert lift(mass_in_lesion(flat), flat.prevalence) == pytest.approx(1)
    assert np.isnan(mass_in_lesion(Scene(-np.ones(SHAPE, np.float32), s.lesion, SPACING)))
    assert np.isnan(lift(0.5, float("nan")))


def test_a_hit_is_expected_over_tied_maxima_and_their_number_is_known() -> None:
    lesion = lesion_of()
    s = Scene(points((2, 3, 1), (4, 6, 2), (0, 0, 0), (12, 16, 0)), lesion, SPACING)
    assert len(tied_maxima(s)) == 4
    assert hit(s, tied_maxima(s)) == 0.5
    flat = Scene(np.full(SHAPE, 4, np.float32), lesion, SPACING)
    assert hit(flat, tied_maxima(flat)) == pytest.approx(lesion.mean())
    blank = Scene(np.zeros(SHAPE, np.float32), lesion, SPACING)
    assert np.isnan(hit(blank, tied_maxima(blank)))


def test_a_hit_within_a_distance_includes_the_distance_itself_in_millimetres() -> None:
    lesion = np.zeros(SHAPE, bool)
    lesion[5, 5, 4] = True
    s = Scene(points((5, 9, 4)), lesion, SPACING)  # four voxels of 0.8 mm
    distance = LesionDistance.of(s)
    assert distance is not None
    away = distance.at(tied_maxima(s))
    assert [hit_within(away, t) for t in (0.0, 3.1999, 3.2, 4 * 0.8, 10.0)] == [0, 0, 1, 1, 1]
    oblique = Scene(points((7, 9, 5)), lesion, SPACING)
    far = LesionDistance.of(oblique)
    assert far is not None
    exact = float(np.sqrt(3.0**2 + 3.2**2 + 3.0**2))
    assert hit_within(far.at(tied_maxima(oblique)), exact) == 1
    assert hit_within(far.at(tied_maxima(oblique)), exact * (1 - 1e-5)) == 0
    assert np.isnan(hit_within(np.zeros(0, np.float32), 5.0))


def local_maxima_by_loops(positive: np.ndarray) -> set[tuple[int, ...]]:
    padded = np.pad(positive, 1, constant_values=-1)
    return {
        tuple(int(n) for n in v)
        for v in np.argwhere(positive > 0)
        if positive[tuple(v)] >= padded[tuple(slice(n, n + 3) for n in v)].max()
    }


@pytest.mark.parametrize("radius_mm", [0.0, 4.0, 9.0])
def test_peaks_are_local_maxima_that_no_higher_one_is_near(radius_mm: float) -> None:
    for seed in range(3):
        s = scene_of(seed, decimals=None)
        expected: list[np.ndarray] = []
        for voxel in sorted(local_maxima_by_loops(s.positive), key=lambda v: -s.positive[v]):
            place = np.array(voxel) * SPACING
            if all(np.linalg.norm(place - other * SPACING) > radius_mm for other in expected):
                expected.append(np.array(voxel))
        found = peaks(s, radius_mm, 5)
        assert [p.voxels.tolist() for p in found] == [[v.tolist()] for v in expected[:5]]
        assert [p.relevance for p in found] == [float(s.positive[tuple(v)]) for v in expected[:5]]


def test_neighbours_of_equal_relevance_are_one_peak_and_those_that_tie_for_the_last_place_all_come() -> None:
    relevance = points((1, 1, 1), (1, 1, 2), (1, 2, 2), (8, 8, 1), (8, 2, 7), (4, 14, 4), values=(2, 2, 2, 1, 1, 1))
    s = Scene(relevance, lesion_of(), SPACING)
    assert [len(p.voxels) for p in peaks(s, 2.0, 1)] == [3]
    assert len(peaks(s, 2.0, 2)) == 4
    assert peaks(Scene(-relevance, lesion_of(), SPACING), 2.0, 3) == ()


def test_any_of_k_peaks_hits_with_the_chance_over_ties() -> None:
    lesion = lesion_of()
    relevance = points((0, 0, 0), (10, 13, 8), (12, 2, 0), (6, 16, 0), values=(3, 1, 1, 1))
    s = Scene(relevance, lesion, SPACING)
    distance = LesionDistance.of(s)
    assert distance is not None
    found = peaks(s, 2.0, 2)
    assert any_peak_hits(found, 1, distance.at, 0.0) == 0
    assert any_peak_hits(found, 2, distance.at, 0.0) == pytest.approx(1 / 3)
    assert any_peak_hits(found, 3, distance.at, 0.0) == pytest.approx(2 / 3)
    assert any_peak_hits(found, 9, distance.at, 0.0) == 1
    assert np.isnan(any_peak_hits((), 3, distance.at, 0.0))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from([1.0, 2.0, 3.0]), st.floats(0, 1)), min_size=1, max_size=7), st.integers(1, 7)
)
def test_the_chance_that_all_miss_is_the_mean_over_all_choices(peaks_: list[tuple[float, float]], count: int) -> None:
    heights, misses = zip(*sorted(peaks_, key=lambda p: -p[0]), strict=True)
    count = min(count, len(heights))
    sure = [m for h, m in zip(heights, misses, strict=True) if h > heights[count - 1]]
    tied = [m for h, m in zip(heights, misses, strict=True) if h == heights[count - 1]]
    mean = np.mean([np.prod([*sure, *choice]) for choice in combinations(tied, count - len(sure))])
    assert _all_miss(heights, misses, count) == pytest.approx(mean, abs=1e-12)


def test_each_lesion_is_hit_or_missed_for_itself() -> None:
    lesion = lesion_of()
    s = Scene(points((10, 13, 8), (0, 0, 0), values=(1, 2)), lesion, SPACING)
    found = peaks(s, 2.0, 2)
    own = distances_of(s, pieces(s, lesion))
    assert [any_peak_hits(found, 2, each, 0.0) for each in own] == [0, 1]
    assert [any_peak_hits(found, 1, each, 0.0) for each in own] == [0, 0]
