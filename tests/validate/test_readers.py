"""Readers, sizes and decisions: small cases counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medcam.errors import GeometryError, InputError, UsageError
from medcam.validate.readers import leave_one_reader_out, others, pairwise, reader_ceiling
from medcam.validate.strata import decisions, sizes


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    either = (first | second).sum()
    return float((first & second).sum() / either) if either else float("nan")


def box(*sides: slice) -> np.ndarray:
    mask = np.zeros((5, 7, 3), bool)
    mask[sides] = True
    return mask


READERS = (box(slice(0, 2)), box(slice(0, 3)), box(slice(1, 4)))


def test_a_reader_is_compared_with_all_others_and_not_with_itself() -> None:
    first, second, third = READERS
    assert [ref.tolist() for ref in others(READERS)] == [
        (second | third).tolist(),
        (first | third).tolist(),
        (first | second).tolist(),
    ]
    assert [ref.sum() // 21 for ref in others(READERS, consensus="intersection")] == [2, 1, 2]
    assert leave_one_reader_out(READERS, overlap) == pytest.approx((2 / 4, 3 / 4, 2 / 4))
    assert pairwise(READERS, overlap) == pytest.approx((2 / 3 + 1 / 4 + 2 / 4) / 3)


def test_the_majority_of_three_others_is_two_of_them() -> None:
    masks = (*READERS, box(slice(2, 5)))
    # Of the last three voxel planes 0 to 4 are marked by 1, 2, 3, 2 and 1 readers.
    assert [bool(plane.any()) for plane in others(masks)[0]] == [False, True, True, True, False]


def test_a_consensus_that_holds_the_reader_would_flatter_it() -> None:
    random = np.random.default_rng(0)
    masks = [random.random((9, 4, 6)) < 0.3 for _ in range(3)]
    whole = np.sum(masks, 0) >= 2
    flattered = np.mean([overlap(mask, whole) for mask in masks])
    assert flattered > np.mean(leave_one_reader_out(masks, overlap)) + 0.1


def test_the_map_is_asked_what_the_readers_are_asked() -> None:
    readers = [(0.6, 0.8), (0.5, np.nan), (0.7, 0.9, 0.8), (np.nan, np.nan)]
    heatmap = [(0.3, 0.3), (0.4, 0.9), (0.4, 0.5, 0.6), (0.1, 0.2)]
    found = reader_ceiling(readers, heatmap, [*"aabc"], margin=0.5)
    # The map's 0.9 stands against no reader, so it does not count.
    assert found.readers.value == pytest.approx((0.7 + 0.5 + 0.8) / 3)
    assert found.heatmap.value == pytest.approx((0.3 + 0.4 + 0.5) / 3)
    assert found.difference.value == pytest.approx(found.heatmap.value - found.readers.value)
    assert found.share.value == pytest.approx(1.2 / 2.0)
    assert found.difference.undefined == 1
    assert found.not_inferior is True
    assert reader_ceiling(readers, heatmap, [*"aabc"], margin=0.1).not_inferior is False
    assert reader_ceiling(readers, heatmap, [*"aabc"]).not_inferior is None


def test_readers_that_cannot_be_left_out_are_refused() -> None:
    with pytest.raises(InputError, match="at least two"):
        others(READERS[:1])
    with pytest.raises(UsageError, match="'staple'"):
        others(READERS, consensus="staple")
    with pytest.raises(GeometryError, match=r"\(5, 7, 3\).*\(2, 7, 3\)"):
        others((READERS[0], READERS[1][:2]))
    with pytest.raises(InputError, match="one number of the map for each reader"):
        reader_ceiling([(0.5, 0.5)], [(0.5,)], ["a"])
    with pytest.raises(InputError, match="margin"):
        reader_ceiling([(0.5, 0.5)], [(0.5, 0.4)], ["a"], margin=-1)
    assert np.isnan(pairwise((READERS[0] & False, READERS[0] & False), overlap))


def test_decisions_are_told_from_truth_and_probability() -> None:
    truth, probability = [1, 1, 0, 0, 1, np.nan, 0], [0.9, 0.2, 0.5, 0.49, np.nan, 0.3, 0.6]
    assert decisions(truth, probability) == ["TP", "FN", "FP", "TN", "unknown", "unknown", "FP"]
    assert decisions(truth, probability, threshold=0.6)[2] == "TN"
    with pytest.raises(InputError, match="1 where"):
        decisions([2], [0.5])


def test_sizes_hold_their_upper_edge() -> None:
    assert sizes([0, 0.1, 0.11, 1, 10, 10.5, None]) == [
        "no lesion", "up to 0.1 mL", "up to 1 mL", "up to 1 mL", "up to 10 mL", "above 10 mL", "unknown",
    ]  # fmt: skip
    assert sizes([3.0], edges_ml=(2, 5)) == ["up to 5 mL"]
    with pytest.raises(UsageError, match="rise"):
        sizes([1.0], edges_ml=(5, 2))
    with pytest.raises(InputError, match="negative"):
        sizes([-1.0])
