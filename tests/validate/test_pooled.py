"""Average precision over all voxels of all cases: exact, and from histograms that add up."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from validate.scenes import SPACING, scene_of

from medcam.validate.pooled import Histogram, pooled_average_precision
from medcam.validate.ranked import Ranked
from medcam.validate.scene import Scene


def test_the_exact_one_is_scikit_learns_over_all_voxels() -> None:
    organ = np.zeros(scene_of(0).lesion.shape, bool)
    organ[:, 1:] = True
    scenes = [
        scene_of(0),
        Scene(7 * scene_of(1).relevance, scene_of(1).lesion, SPACING, organ),
        scene_of(2, decimals=None),
    ]
    scores = np.concatenate([(s.positive / np.float32(s.maximum))[s.domain] for s in scenes])
    truth = np.concatenate([s.lesion[s.domain] for s in scenes])
    assert pooled_average_precision(scenes) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


def test_histograms_add_up_to_nearly_the_exact_one() -> None:
    scenes = [scene_of(seed, decimals=None) for seed in range(4)]
    total = Histogram.of(Ranked.of(scenes[0]))
    for s in scenes[1:]:
        total = total + Histogram.of(Ranked.of(s))
    assert total.lesion.sum() == sum(s.lesion_voxels for s in scenes)
    assert total.others.sum() == sum(s.domain_voxels - s.lesion_voxels for s in scenes)
    assert total.average_precision() == pytest.approx(pooled_average_precision(scenes), abs=2e-3)


def test_the_examples_of_se3d_in_closed_form() -> None:
    truth = np.zeros((20, 20, 20), bool)
    truth[:3, :3, :3] = truth[-4:, -4:, -2:] = True
    small, large, moved = (np.zeros(truth.shape, np.float32) for _ in range(3))
    small[:3, :3, :3] = 0.9
    large[-4:, -4:, -2:] = 0.9
    moved[1:4, :3, :3] = moved[-5:-1, -4:, -2:] = 0.9
    for map_, percent in ((truth * 0.9, 100.0), (small, 46.16271186), (large, 54.57), (moved, 50.89)):
        s = Scene(map_.astype(np.float32), truth, (1.0, 1.0, 1.0))
        digits = 1e-6 if percent == 46.16271186 else 5e-3
        for value in (
            Ranked.of(s).average_precision(),
            pooled_average_precision([s]),
            Histogram.of(Ranked.of(s)).average_precision(),
        ):
            assert 100 * value == pytest.approx(percent, abs=digits)


@pytest.mark.parametrize(("hits", "size"), [(43031, 50176), (833, 50175), (347, 14256)])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_constant_map_scores_the_prevalence_also_with_a_region_that_is_ignored(
    hits: int, size: int, value: float
) -> None:
    truth, organ = np.zeros(224 * 224, bool), np.zeros(224 * 224, bool)
    truth[:hits] = organ[:size] = True
    shape = (224, 224, 1)
    s = Scene(np.full(shape, value, np.float32), truth.reshape(shape), SPACING, organ.reshape(shape))
    assert Histogram.of(Ranked.of(s)).average_precision() == pytest.approx(hits / size)
    assert pooled_average_precision([s]) == pytest.approx(hits / size)


def test_without_any_lesion_it_is_undefined() -> None:
    s = Scene(scene_of(0).relevance, np.zeros_like(scene_of(0).lesion), SPACING)
    assert np.isnan(pooled_average_precision([s]))
    assert np.isnan(Histogram.of(Ranked.of(s)).average_precision())
