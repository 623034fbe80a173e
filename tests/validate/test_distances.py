"""Surface distances in millimetres against MONAI, google's surface-distance and brute force; one transform a case."""

from __future__ import annotations

import numpy as np
import pytest
import surface_distance
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from scipy import ndimage
from scipy.spatial.distance import cdist
from validate.scenes import SHAPE, SPACING, lesion_of, map_of, scene_of

from medcam.validate import distances
from medcam.validate.distances import LesionDistance, Surfaces, border, centre_mm, matched_mm
from medcam.validate.measuring import measure
from medcam.validate.overlap import selected
from medcam.validate.scene import Scene

# What the libraries that are asked here say of themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Please import .* from the `scipy.ndimage` namespace:DeprecationWarning"),
]


def surfaces(s: Scene, chosen: np.ndarray) -> Surfaces:
    distance = LesionDistance.of(s)
    assert distance is not None
    return Surfaces.of(distance, chosen)


def batch(mask: np.ndarray) -> torch.Tensor:
    return torch.tensor(mask)[None, None].float()


def test_borders_are_those_of_an_erosion_by_faces() -> None:
    for mask in (lesion_of(), map_of(2) > 0.4, np.ones(SHAPE, bool), np.zeros(SHAPE, bool)):
        eroded = ndimage.binary_erosion(mask, ndimage.generate_binary_structure(3, 1))
        np.testing.assert_array_equal(border(mask), mask & ~eroded)


@pytest.mark.parametrize("cut", [0.1, 1.0, 1.4])
def test_surface_distances_are_monais(cut: float) -> None:
    for seed in range(4):
        s = scene_of(seed)
        chosen = selected(s, cut)
        found, far = surfaces(s, chosen), surfaces(s, chosen).distances()
        a, b = batch(chosen), batch(s.lesion)
        assert far.hausdorff == pytest.approx(float(compute_hausdorff_distance(a, b, spacing=SPACING)), rel=1e-5)
        percentile = compute_hausdorff_distance(a, b, percentile=95, spacing=SPACING)
        assert far.hausdorff_95 == pytest.approx(float(percentile), rel=1e-5)
        mean = compute_average_surface_distance(a, b, symmetric=True, spacing=SPACING)
        assert far.mean == pytest.approx(float(mean), rel=1e-5)
        for tolerance in (0.0, 1.5, 3.0, 8.0):
            share = compute_surface_dice(a, b, [tolerance], spacing=SPACING)
            assert found.surface_dice(tolerance) == pytest.approx(float(share), rel=1e-5)


def test_a_film_has_outlines_as_in_two_dimensions() -> None:
    mask, chosen = lesion_of()[:, :, 2:3], (map_of(0) > 1)[:, :, 2:3]
    s = Scene(chosen.astype(np.float32), np.ascontiguousarray(mask), SPACING)
    far = surfaces(s, chosen).distances()
    a, b = (torch.tensor(m[:, :, 0])[None, None].float() for m in (chosen, mask))
    assert far.hausdorff == pytest.approx(float(compute_hausdorff_distance(a, b, spacing=SPACING[:2])), rel=1e-5)
    mean = compute_average_surface_distance(a, b, symmetric=True, spacing=SPACING[:2])
    assert far.mean == pytest.approx(float(mean), rel=1e-5)
    assert border(mask).sum() != mask.sum()


def test_google_agrees_where_voxels_and_surface_elements_say_the_same() -> None:
    one, other = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    one[3, 4, 2] = True
    other[7, 10, 5] = True
    s = Scene(one.astype(np.float32), other, SPACING)
    found = surface_distance.compute_surface_distances(one, other, SPACING)
    far = surfaces(s, one).distances()
    exact = np.linalg.norm(np.array([4, 6, 3]) * SPACING)
    # Of surface elements each has its nearest twin, a whole voxel's corner nearer or farther at most.
    reach = np.linalg.norm(SPACING)
    assert far.hausdorff == pytest.approx(exact, rel=1e-6)
    assert abs(surface_distance.compute_robust_hausdorff(found, 100) - exact) <= reach


def test_google_and_the_definition_bracket_each_other_on_blobs() -> None:
    for seed in range(3):
        s = scene_of(seed)
        chosen = selected(s, 1.0)
        found = surface_distance.compute_surface_distances(chosen, s.lesion, SPACING)
        ours, reach = surfaces(s, chosen), float(np.linalg.norm(SPACING))
        assert abs(surface_distance.compute_robust_hausdorff(found, 100) - ours.distances().hausdorff) <= reach
        theirs = surface_distance.compute_surface_dice_at_tolerance(found, 6.0)
        assert ours.surface_dice(6.0 - reach) <= theirs <= ours.surface_dice(6.0 + reach)


def test_distances_are_those_of_brute_force_at_every_voxel() -> None:
    s = scene_of(1)
    distance = LesionDistance.of(s, 5.0)
    assert distance is not None
    voxels = np.argwhere(s.positive > 0)
    brute = cdist(voxels * SPACING, np.argwhere(s.lesion) * SPACING).min(1)
    np.testing.assert_allclose(distance.at(voxels), brute, rtol=1e-6)
    edge = cdist(voxels * SPACING, np.argwhere(border(s.lesion)) * SPACING).min(1)
    np.testing.assert_allclose(distance.border_at(voxels), edge, rtol=1e-6)


@pytest.mark.parametrize("tolerance", [0.0, 3.0, 7.5])
def test_chance_for_a_hit_nearby_is_the_share_of_the_domain_that_lies_so_near(tolerance: float) -> None:
    relevance, organ = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, bool)
    relevance[4, 4, 2] = 1
    organ[1:11, 2:, :8] = True
    s = Scene(relevance, lesion_of(), SPACING, organ)
    distance = LesionDistance.of(s, 7.5)
    assert distance is not None
    brute = cdist(np.argwhere(organ) * SPACING, np.argwhere(s.lesion) * SPACING).min(1)
    assert distance.share_within(tolerance) == pytest.approx((brute <= tolerance).mean())


def test_nothing_selected_has_no_distance_and_no_shared_surface() -> None:
    s = scene_of(0)
    none = surfaces(s, np.zeros(SHAPE, bool))
    assert all(np.isnan(v) for v in none.distances())
    assert none.surface_dice(100.0) == 0
    assert LesionDistance.of(Scene(s.relevance, np.zeros(SHAPE, bool), SPACING)) is None
    assert np.isnan(Surfaces.nowhere().surface_dice(5.0))


def test_the_lesion_itself_is_at_no_distance() -> None:
    s = Scene(lesion_of().astype(np.float32), lesion_of(), SPACING)
    same = surfaces(s, s.lesion)
    assert same.distances() == (0, 0, 0)
    assert same.surface_dice(0.0) == 1


def test_centres_of_mass_are_in_millimetres_and_undefined_for_nothing() -> None:
    s = scene_of(2)
    np.testing.assert_allclose(
        centre_mm(s.positive, SPACING),
        np.array(ndimage.center_of_mass(s.positive.astype(np.float64))) * SPACING,
        rtol=1e-6,
    )
    assert np.isnan(centre_mm(np.zeros(SHAPE), SPACING)).all()


def test_each_lesion_is_matched_with_a_place_of_its_own() -> None:
    lesions = np.array([[0.0, 0, 0], [10, 0, 0]])
    # The nearest place to both is the first; together they are nearest if it serves the second.
    places = np.array([[6.0, 0, 0], [-5.0, 0, 0]])
    np.testing.assert_allclose(matched_mm(places, lesions), [5.0, 4.0])
    np.testing.assert_allclose(matched_mm(places[:1], lesions), [np.nan, 4.0])
    assert np.isnan(matched_mm(np.zeros((0, 3)), lesions)).all()


def test_a_case_takes_one_euclidean_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = distances.distance_transform_edt
    monkeypatch.setattr(distances, "distance_transform_edt", lambda *a, **k: calls.append(1) or real(*a, **k))
    monkeypatch.setattr(ndimage, "distance_transform_edt", lambda *a, **k: calls.append(1) or real(*a, **k))
    measure(map_of(0), lesion_of(), spacing_mm=SPACING)
    assert len(calls) == 1
