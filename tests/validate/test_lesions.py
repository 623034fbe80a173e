"""Lesions one by one, and the free-response curve: every score is a point of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_froc_curve_data, compute_froc_score
from scipy.spatial.distance import cdist
from validate.scenes import SHAPE, SPACING, lesion_of, scene_of

from medcam.validate.lesions import CAMELYON_RATES, LUNA_RATES, Findings, Matching, centres_mm, froc, pieces
from medcam.validate.overlap import selected
from medcam.validate.scene import Scene


def test_voxels_that_share_a_corner_are_one_piece() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[1, 1, 1] = mask[2, 2, 2] = mask[3, 1, 2] = True
    mask[6, 6, 6] = mask[6, 8, 6] = True
    s = Scene(mask.astype(np.float32), mask, SPACING)
    assert [len(p.voxels) for p in pieces(s, mask)] == [3, 1, 1]


def test_a_piece_knows_its_size_place_and_score() -> None:
    s = scene_of(0)
    for piece in pieces(s, s.lesion):
        assert piece.size == pytest.approx(len(piece.voxels) * np.prod(SPACING) / 1000)
        np.testing.assert_allclose(piece.centre_mm, (piece.voxels * SPACING).mean(0))
        assert piece.box == tuple(
            (int(a), int(b)) for a, b in zip(piece.voxels.min(0), piece.voxels.max(0), strict=True)
        )
        assert piece.score == s.positive[tuple(piece.voxels.T)].max() == s.positive[piece.peak]
    assert sum(len(p.voxels) for p in pieces(s, s.lesion)) == s.lesion_voxels
    assert len(pieces(s, s.lesion, least=pieces(s, s.lesion)[1].size * 1.01)) == 1
    np.testing.assert_allclose(centres_mm(s, s.lesion), [p.centre_mm for p in pieces(s, s.lesion)])
    assert pieces(s, np.zeros(SHAPE, bool)) == ()
    assert centres_mm(s, np.zeros(SHAPE, bool)).shape == (0, 3)


def test_a_film_measures_areas() -> None:
    mask = lesion_of()[:, :, 2:3].copy()
    s = Scene(mask.astype(np.float32), mask, SPACING)
    assert s.size_unit == "cm2"
    assert pieces(s, mask)[0].size == pytest.approx(mask.sum() * 1.5 * 0.8 / 100)


def test_findings_match_lesions_by_voxels_peaks_overlap_and_cover() -> None:
    s = scene_of(1)
    found, lesions = pieces(s, selected(s, 0.5)), pieces(s, s.lesion)
    matching = Matching.of(s, found, lesions)
    for m, finding in enumerate(found):
        own = {tuple(v) for v in finding.voxels.tolist()}
        for n, lesion in enumerate(lesions):
            theirs = {tuple(v) for v in lesion.voxels.tolist()}
            shared, iou = len(own & theirs), len(own & theirs) / len(own | theirs)
            assert matching.shared[m, n] == shared
            assert matching.touching()[m, n] == (shared > 0)
            away = cdist([np.array(finding.peak) * SPACING], lesion.voxels * SPACING).min()
            assert matching.peak_mm[m, n] == pytest.approx(away, rel=1e-6)
            assert matching.peak_within(5.0)[m, n] == (away <= 5.0)
            assert matching.iou_at_least(0.1)[m, n] == (iou >= 0.1)
            assert matching.covering(0.5)[m, n] == (shared >= 0.5 * len(theirs))


def test_a_lesion_scores_its_best_finding_and_findings_that_touch_none_are_false() -> None:
    s = scene_of(1)
    found, lesions = pieces(s, selected(s, 0.5)), pieces(s, s.lesion)
    matching = Matching.of(s, found, lesions)
    scan = Findings.of(found, matching, matching.touching())
    for n, score in enumerate(scan.lesion_scores):
        touching = [p.score for p, t in zip(found, matching.touching()[:, n], strict=True) if t]
        assert score == max(touching, default=-np.inf)
    free = [p.score for p, t in zip(found, matching.touching().any(1), strict=True) if not t]
    assert list(scan.false_scores) == free
    assert free


def test_one_lesion_found_without_a_false_finding_scores_one() -> None:
    curve = froc([Findings((0.7,), ())])
    assert curve.score() == curve.score(CAMELYON_RATES) == 1
    assert [curve.at(rate) for rate in (0.0, 8.0)] == [1, 1]


def test_scans_without_lesions_count_as_scans_and_none_at_all_is_undefined() -> None:
    found, false = Findings((0.9, 0.2), (0.5,)), Findings((), (0.8, 0.1))
    curve = froc([found, false, Findings((), ()), Findings((), ())])
    assert (curve.lesions, curve.scans) == (2, 4)
    np.testing.assert_allclose(curve.scores, [0.9, 0.8, 0.5, 0.2, 0.1])
    np.testing.assert_allclose(curve.sensitivity, [0.5, 0.5, 0.5, 1, 1])
    np.testing.assert_allclose(curve.false_per_scan, [0, 0.25, 0.5, 0.5, 0.75])
    assert [curve.at(r) for r in LUNA_RATES] == [0.5, 0.5, 1, 1, 1, 1, 1]
    assert np.isnan(froc([false]).score())
    assert np.isnan(froc([]).score())


def test_a_lesion_that_nothing_finds_is_missed_at_every_threshold() -> None:
    curve = froc([Findings((-np.inf, 0.4), ())])
    assert curve.scores.tolist() == [0.4]
    assert curve.score() == 0.5
    assert froc([Findings((-np.inf,), ())]).score() == 0


def test_scores_that_tie_enter_together() -> None:
    curve = froc([Findings((0.5,), (0.5, 0.5, 0.5))])
    assert curve.at(2.9) == 0
    assert curve.at(3.0) == 1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.lists(st.integers(1, 9), max_size=6), st.integers(1, 3))
def test_points_of_the_curve_are_counts_by_loops(lesion: list[int], false: list[int], extra: int) -> None:
    scans = [Findings(tuple(map(float, lesion)), tuple(map(float, false)))] + [Findings((), ())] * extra
    curve = froc(scans)
    for score, sensitivity, rate in zip(curve.scores, curve.sensitivity, curve.false_per_scan, strict=True):
        assert sensitivity == pytest.approx(sum(v >= score for v in lesion) / len(lesion))
        assert rate == pytest.approx(sum(v >= score for v in false) / len(scans))
    rates = [curve.at(r) for r in (0.0, 0.5, 1.0, 2.0, 100.0)]
    assert rates == sorted(rates)
    assert rates[-1] == 1


def test_monai_agrees_but_for_the_lowest_score_that_it_leaves_out() -> None:
    lesion, false = [0.9, 0.6, 0.5, 0.3], [0.8, 0.4, 0.2, 0.1]
    theirs = compute_froc_curve_data(np.array(false), np.array(lesion), 4, 2)
    curve = froc([Findings(tuple(lesion), tuple(false)), Findings((), ())])
    rates, sensitivities = theirs[0], theirs[1]
    own = dict(zip(curve.false_per_scan.tolist(), curve.sensitivity.tolist(), strict=True))
    for rate, sensitivity in zip(rates, sensitivities, strict=True):
        if sensitivity > 0:
            assert max(s for r, s in own.items() if r <= rate) >= sensitivity
    assert float(compute_froc_score(rates, sensitivities, (0.5, 1.0))) == pytest.approx(curve.score((0.5, 1.0)))


def test_a_finding_that_touches_a_lesion_without_detecting_it_counts_neither_way() -> None:
    mask, relevance = np.zeros(SHAPE, bool), np.zeros(SHAPE, np.float32)
    mask[1:3, 1:4, 1:5] = True
    # One voxel of the first finding lies in the lesion, none of the second does.
    relevance[0:2, 1, 1], relevance[6, 6, 6] = 2, 3
    s = Scene(relevance, mask, SPACING)
    found, lesions = pieces(s, relevance > 0), pieces(s, mask)
    matching = Matching.of(s, found, lesions)
    wide = Findings.of(found, matching, matching.covering(0.5))
    assert (wide.lesion_scores, wide.false_scores) == ((-np.inf,), (3.0,))
    touched = Findings.of(found, matching, matching.touching())
    assert (touched.lesion_scores, touched.false_scores) == ((2.0,), (3.0,))


def test_an_overlap_of_just_the_share_is_enough() -> None:
    mask, relevance = np.zeros(SHAPE, bool), np.zeros(SHAPE, np.float32)
    mask[1, 1, 1:4], relevance[1, 1, 2:4] = True, 1
    s = Scene(relevance, mask, SPACING)
    matching = Matching.of(s, pieces(s, relevance > 0), pieces(s, mask))
    assert matching.covering(2 / 3).tolist() == [[True]]
    relevance[1, 1, 4] = 1
    s = Scene(relevance, mask, SPACING)
    matching = Matching.of(s, pieces(s, relevance > 0), pieces(s, mask))
    assert matching.iou_at_least(0.5).tolist() == [[True]]
    assert matching.iou_at_least(0.51).tolist() == [[False]]
