"""One pass over a map gives what loops over all thresholds give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from validate.scenes import SPACING, lesion_of, map_of, scene_of

from medcam.errors import InputError
from medcam.validate.ranked import FRACTIONS, Ranked, kth_largest, levels_of, rank_accuracy
from medcam.validate.scene import Scene


def scene(relevance: np.ndarray, lesion: np.ndarray, organ: np.ndarray | None = None) -> Scene:
    return Scene(relevance.astype(np.float32), lesion, SPACING, organ)


def average_precision_by_loops(positive: np.ndarray, lesion: np.ndarray) -> float:
    """Sum of (R_i - R_(i-1)) P_i over all distinct values, the highest first."""
    area, recall_before = 0.0, 0.0
    for value in np.unique(positive)[::-1]:
        chosen = positive >= value
        recall = (chosen & lesion).sum() / lesion.sum()
        area += (recall - recall_before) * (chosen & lesion).sum() / chosen.sum()
        recall_before = recall
    return area


@pytest.mark.parametrize("decimals", [None, 2, 1, 0])
def test_counts_at_every_threshold_are_those_of_loops(decimals: int | None) -> None:
    for seed in range(4):
        s = scene_of(seed, decimals=decimals)
        r = Ranked.of(s)
        for value, hits, others, above in zip(r.values, r.hits, r.others, r.others_above, strict=True):
            assert hits == ((s.positive >= value) & s.lesion).sum()
            assert others == ((s.positive >= value) & ~s.lesion).sum()
            assert above == ((s.positive > value) & ~s.lesion).sum()
        assert set(r.values.tolist()) == {v for v in s.positive[s.lesion].tolist() if v > 0}
        for level, hits, others in zip(levels_of(s.maximum), r.level_hits, r.level_others, strict=True):
            assert hits == ((s.positive >= level) & s.lesion).sum()
            assert others == ((s.positive >= level) & ~s.lesion).sum()


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_average_precision_and_auroc_are_those_of_the_definition_and_of_scikit_learn(decimals: int | None) -> None:
    for seed in range(5):
        s = scene_of(seed, decimals=decimals)
        r, truth, score = Ranked.of(s), s.lesion.ravel(), s.positive.ravel()
        assert r.average_precision() == pytest.approx(average_precision_by_loops(s.positive, s.lesion), abs=1e-12)
        assert r.average_precision() == pytest.approx(average_precision_score(truth, score), abs=1e-12)
        assert r.auroc() == pytest.approx(roc_auc_score(truth, score), abs=1e-12)


@pytest.mark.parametrize("value", [3.0, 0.0, -2.0])
def test_a_constant_map_scores_chance(value: float) -> None:
    lesion = lesion_of()
    r = Ranked.of(scene(np.full(lesion.shape, value), lesion))
    assert r.average_precision() == pytest.approx(lesion.mean())
    assert r.auroc() == pytest.approx(0.5)


def test_the_lesion_itself_as_map_scores_one_and_its_negative_nothing_more_than_chance() -> None:
    lesion = lesion_of()
    perfect = scene(0.3 * lesion, lesion)
    r = Ranked.of(perfect)
    assert (r.average_precision(), r.auroc(), r.best(), rank_accuracy(perfect, r)) == (1, 1, (np.float32(0.3), 1), 1)
    against = scene(-1.0 * lesion, lesion)
    assert Ranked.of(against).average_precision() == pytest.approx(lesion.mean())
    assert np.isnan(Ranked.of(against).best()[0])
    assert np.isnan(rank_accuracy(against, Ranked.of(against)))


def test_without_a_lesion_nothing_is_defined_and_no_number_is_made_up() -> None:
    r = Ranked.of(scene(map_of(0), np.zeros_like(lesion_of())))
    assert all(np.isnan(v) for v in (r.average_precision(), r.auroc(), *r.best(), *r.level_dice()))
    full = Ranked.of(scene(map_of(0), np.ones_like(lesion_of())))
    assert full.average_precision() == 1
    assert np.isnan(full.auroc())


def test_best_dice_is_the_largest_over_all_thresholds() -> None:
    for seed in range(5):
        s = scene_of(seed)
        dice = {
            float(v): 2 * ((s.positive >= v) & s.lesion).sum() / ((s.positive >= v).sum() + s.lesion.sum())
            for v in np.unique(s.positive[s.positive > 0])
        }
        cut, best = Ranked.of(s).best()
        assert best == pytest.approx(max(dice.values()))
        assert dice[cut] == best


def test_rank_accuracy_is_the_mean_over_random_orders_of_ties() -> None:
    s = scene_of(3, decimals=0)
    generator, flat, k = np.random.default_rng(0), s.positive.ravel(), s.lesion_voxels
    orders = [np.lexsort((generator.random(flat.size), -flat))[:k] for _ in range(4000)]
    drawn = np.mean([s.lesion.ravel()[order].mean() for order in orders])
    assert rank_accuracy(s, Ranked.of(s)) == pytest.approx(drawn, abs=2e-3)
    flat_map = scene(np.ones(s.lesion.shape), s.lesion)
    assert rank_accuracy(flat_map, Ranked.of(flat_map)) == pytest.approx(s.prevalence)


def test_rank_accuracy_reaches_into_voxels_without_relevance_by_chance_only() -> None:
    lesion = lesion_of()
    relevance = np.zeros(lesion.shape)
    relevance[2, 3, 1] = relevance[0, 0, 0] = 1.0
    k, n = lesion.sum(), lesion.size
    s = scene(relevance, lesion)
    assert rank_accuracy(s, Ranked.of(s)) == pytest.approx((1 + (k - 2) * (k - 1) / (n - 2)) / k)


@pytest.mark.parametrize("decimals", [None, 1])
def test_the_kth_largest_is_that_of_a_sort(decimals: int | None) -> None:
    s = scene_of(2, decimals=decimals)
    r, ordered = Ranked.of(s), np.sort(s.positive.ravel())[::-1]
    assert [kth_largest(s, r, k) for k in range(1, ordered.size + 1, 7)] == ordered[::7].tolist()


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 2.0**-20, 2.0**40, 1e33])
def test_the_scale_of_a_map_changes_nothing(scale: float) -> None:
    s = scene_of(1)
    scaled = scene(s.relevance * np.float32(scale), s.lesion)
    a, b = Ranked.of(s), Ranked.of(scaled)
    assert (a.average_precision(), a.auroc(), a.best()[1]) == (b.average_precision(), b.auroc(), b.best()[1])
    assert rank_accuracy(s, a) == rank_accuracy(scaled, b)
    np.testing.assert_array_equal(a.hits, b.hits)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0]), min_size=24, max_size=24),
    st.lists(st.booleans(), min_size=24, max_size=24),
    st.permutations(range(24)),
)
def test_the_order_of_voxels_changes_nothing(relevance: list[float], lesion: list[bool], order: list[int]) -> None:
    h, g = np.array(relevance, np.float32), np.array(lesion)
    one, other = (scene(x.reshape(2, 3, 4), y.reshape(2, 3, 4)) for x, y in ((h, g), (h[order], g[order])))
    a, b = Ranked.of(one), Ranked.of(other)
    assert np.array_equal(
        [a.average_precision(), a.auroc(), *a.best(), rank_accuracy(one, a)],
        [b.average_precision(), b.auroc(), *b.best(), rank_accuracy(other, b)],
        equal_nan=True,
    )
    if g.any():
        assert a.average_precision() == pytest.approx(average_precision_by_loops(np.maximum(h, 0), g))


def test_voxels_that_were_not_looked_at_or_lie_outside_the_organ_count_as_if_they_were_not_there() -> None:
    relevance, lesion = map_of(5), lesion_of()
    organ = np.zeros(lesion.shape, bool)
    organ[1:12, 2:16, :8] = True
    hidden = relevance.copy()
    hidden[~organ] = np.nan
    cut = scene(relevance[1:12, 2:16, :8], lesion[1:12, 2:16, :8])
    for s in (scene(hidden, lesion), scene(relevance, lesion, organ)):
        a, b = Ranked.of(s), Ranked.of(cut)
        assert (a.average_precision(), a.auroc(), a.best()) == (b.average_precision(), b.auroc(), b.best())
        assert rank_accuracy(s, a) == rank_accuracy(cut, b)
        assert s.lesion_left_out == pytest.approx(1 - cut.lesion.sum() / lesion.sum())
        assert a.steps.sum() == organ.sum()


def test_a_scene_refuses_what_does_not_fit_and_infinite_relevance() -> None:
    relevance, lesion = map_of(0), lesion_of()
    with pytest.raises(InputError, match="one shape"):
        Scene(relevance, lesion[:, :, 1:], SPACING)
    with pytest.raises(InputError, match="spacing"):
        Scene(relevance, lesion, (1.0, 0.0, 1.0))
    relevance[1, 2, 3] = np.inf
    with pytest.raises(InputError, match="infinite"):
        Scene(relevance, lesion, SPACING)


def test_negative_relevance_is_left_out_and_its_share_is_told() -> None:
    relevance, lesion = map_of(4), lesion_of()
    s = scene(relevance, lesion)
    assert s.negative_share == pytest.approx(-relevance[relevance < 0].sum() / np.abs(relevance).sum(), rel=1e-5)
    assert Ranked.of(s).average_precision() == Ranked.of(scene(np.maximum(relevance, 0), lesion)).average_precision()
    assert len(FRACTIONS) == 100
