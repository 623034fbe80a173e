"""Chance: the lesion elsewhere, and maps that know nothing."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from validate.scenes import SHAPE, SPACING, lesion_of, map_of, scene_of

from medcam.errors import InputError
from medcam.validate.baselines import brightness, centre, edges, expected_of_uniform, uniform
from medcam.validate.chance import chance, moved
from medcam.validate.distances import LesionDistance
from medcam.validate.hits import hit, hit_within, tied_maxima
from medcam.validate.lesions import pieces
from medcam.validate.overlap import mass_in_lesion, overlap, selected
from medcam.validate.ranked import Ranked, rank_accuracy
from medcam.validate.scene import Scene


def organ_of() -> np.ndarray:
    i, j, k = np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")
    inside: np.ndarray = ((i - 6) / 7) ** 2 + ((j - 8) / 9) ** 2 + ((k - 4) / 6) ** 2 <= 1
    return inside


def test_a_moved_lesion_keeps_its_pieces_lies_in_the_domain_and_no_two_pieces_meet() -> None:
    s = Scene(map_of(0), lesion_of() & organ_of(), SPACING, organ_of())
    moves = moved(s, draws=200, seed=1)
    assert moves is not None
    shapes = sorted(len(p.voxels) for p in pieces(s, s.lesion))
    placed = np.concatenate(list(moves.batches()))
    assert placed.shape == (200, s.lesion_voxels)
    for flat in placed:
        mask = np.zeros(s.lesion.size, bool)
        mask[flat] = True
        assert mask.sum() == s.lesion_voxels
        assert not (mask.reshape(SHAPE) & ~organ_of()).any()
    offsets = {tuple(shift) for shift in moves.shifts.tolist()}
    assert len(offsets) > 100
    start = np.concatenate(moves.start)
    assert sorted(start.tolist()) == np.flatnonzero(s.lesion).tolist()
    assert sorted(len(piece) for piece in moves.start) == shapes


def test_the_numbers_of_moved_lesions_are_those_of_scoring_each_anew() -> None:
    s = scene_of(3)
    ranked, moves = Ranked.of(s), moved(s, draws=40, seed=2)
    assert moves is not None
    chosen = selected(s, 1.0)
    found = chance(s, ranked, moves, {"raw-1": chosen})
    anew: dict[str, list[float]] = {name: [] for name in found}
    for flat in np.concatenate(list(moves.batches())):
        mask = np.zeros(s.lesion.size, bool)
        mask[flat] = True
        other = Scene(s.relevance, mask.reshape(SHAPE), SPACING)
        anew["hit"].append(hit(other, tied_maxima(other)))
        anew["mass_in_lesion"].append(mass_in_lesion(other))
        anew["average_precision"].append(float(average_precision_score(mask, s.positive.ravel())))
        anew["dice@raw-1"].append(overlap(other, chosen).dice)
    for name, null in found.items():
        assert null.mean == pytest.approx(np.mean(anew[name]), rel=1e-6), name
        assert null.sd == pytest.approx(np.std(anew[name], ddof=1), rel=1e-6), name
        as_high = sum(v >= null.observed - 1e-9 for v in anew[name])
        assert null.p == pytest.approx((1 + as_high) / 41), name
    assert found["mass_in_lesion"].observed == pytest.approx(mass_in_lesion(s))
    assert found["average_precision"].observed == pytest.approx(ranked.average_precision())
    assert found["dice@raw-1"].z == pytest.approx(
        (overlap(s, chosen).dice - np.mean(anew["dice@raw-1"])) / np.std(anew["dice@raw-1"], ddof=1)
    )


def test_a_map_that_knows_the_lesion_is_rare_by_chance_and_a_constant_one_is_not() -> None:
    lesion = np.zeros(SHAPE, bool)
    lesion[3:6, 4:8, 2:5] = True
    known = Scene(lesion.astype(np.float32), lesion, SPACING)
    null = chance(known, Ranked.of(known), moved(known, draws=400, seed=0), {})["mass_in_lesion"]
    assert null.p <= 3 / 401
    assert null.z > 4
    flat = Scene(np.ones(SHAPE, np.float32), lesion, SPACING)
    for name, same in chance(flat, Ranked.of(flat), moved(flat, draws=50, seed=0), {}).items():
        assert same.p == 1, name
        assert np.isnan(same.z), name
        assert same.mean == pytest.approx(lesion.mean()), name


def test_the_same_seed_gives_the_same_places_and_another_one_others() -> None:
    s = scene_of(0)
    one, same, other = (moved(s, draws=30, seed=seed) for seed in (5, 5, 6))
    assert one is not None
    assert same is not None
    assert other is not None
    np.testing.assert_array_equal(one.shifts, same.shifts)
    assert not np.array_equal(one.shifts, other.shifts)


def test_a_lesion_that_fits_nowhere_else_has_no_chance() -> None:
    full = np.ones(SHAPE, bool)
    s = Scene(map_of(0), full, SPACING)
    # It fits where it is, and there only.
    moves = moved(s, draws=5, seed=0)
    assert moves is not None
    assert not moves.shifts.any()
    halves = np.zeros(SHAPE, bool)
    halves[:, :8], halves[:, 9:] = True, True
    assert moved(Scene(map_of(0), halves, SPACING), draws=300, seed=0) is None
    empty = Scene(map_of(0), np.zeros(SHAPE, bool), SPACING)
    assert moved(empty, draws=5, seed=0) is None
    assert chance(empty, Ranked.of(empty), None, {}) == {}


def test_a_uniform_map_scores_what_its_closed_form_says() -> None:
    organ = organ_of()
    s = Scene(uniform(organ), lesion_of(), SPACING, organ)
    distance = LesionDistance.of(s, 8.0)
    assert distance is not None
    expected, ranked = expected_of_uniform(s, distance, (4.0, 8.0)), Ranked.of(s)
    over, maxima = overlap(s, selected(s, 0.5)), tied_maxima(s)
    away = distance.at(maxima)
    assert dict(expected) == pytest.approx(
        {
            "hit": hit(s, maxima),
            "mass_in_lesion": mass_in_lesion(s),
            "rank_accuracy": rank_accuracy(s, ranked),
            "average_precision": ranked.average_precision(),
            "auroc": ranked.auroc(),
            "dice": over.dice,
            "iou": over.iou,
            "precision": over.precision,
            "recall": over.recall,
            "hit_within_4mm": hit_within(away, 4.0),
            "hit_within_8mm": hit_within(away, 8.0),
        }
    )
    assert 0 < expected["hit_within_4mm"] < expected["hit_within_8mm"] < 1


def test_the_centre_baseline_is_highest_in_the_middle_of_the_domain_and_as_wide_as_it() -> None:
    organ = organ_of()
    organ[:3] = False
    map_ = centre(organ, spacing_mm=SPACING)
    assert np.isnan(map_[~organ]).all()
    middle = np.argwhere(organ).mean(0)
    top = np.unravel_index(int(np.nanargmax(map_)), SHAPE)
    assert np.abs(np.array(top) - middle).max() <= 0.5
    i, j, k = np.argwhere(organ).T
    away = (np.argwhere(organ) - middle) / np.argwhere(organ).std(0)
    np.testing.assert_allclose(map_[i, j, k], np.exp(-0.5 * (away**2).sum(1)), rtol=1e-5)
    film = centre(np.ones((7, 9, 1), bool), spacing_mm=SPACING)
    assert film[3, 4, 0] == 1


def test_the_brightness_baseline_is_the_image_from_its_darkest_voxel_in_the_domain() -> None:
    image, organ = map_of(1) * 100 - 700, organ_of()
    map_ = brightness(image, organ)
    assert np.nanmin(map_) == 0
    assert np.unravel_index(int(np.nanargmax(map_)), SHAPE) == np.unravel_index(
        int(np.argmax(np.where(organ, image, -np.inf))), SHAPE
    )
    with pytest.raises(InputError, match="no numbers"):
        brightness(np.full(SHAPE, np.nan), organ)


def test_the_edge_baseline_is_the_gradient_per_millimetre() -> None:
    i, j, k = np.meshgrid(*[np.arange(n) for n in (31, 45, 25)], indexing="ij")
    ramp = (2.0 * i * SPACING[0] - 1.0 * j * SPACING[1] + 0.5 * k * SPACING[2]).astype(np.float32)
    map_ = edges(ramp, np.ones(ramp.shape, bool), spacing_mm=SPACING)
    np.testing.assert_allclose(map_[15, 22, 12], np.sqrt(4 + 1 + 0.25), rtol=1e-3)
    film = edges(ramp[:, :, :1], np.ones((31, 45, 1), bool), spacing_mm=SPACING)
    np.testing.assert_allclose(film[15, 22, 0], np.sqrt(4 + 1), rtol=1e-3)
    assert edges(np.full(SHAPE, 3.0), organ_of(), spacing_mm=SPACING)[6, 8, 4] == pytest.approx(0, abs=1e-5)
