"""Outlines on a slice: what they enclose is what reaches the level."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.path import Path as Polygon

from medcam.formats.outlines import outlines


def enclosed(lines: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Return which voxel centres lie within an odd number of lines."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1).reshape(-1, 2)
    within = sum((Polygon(line).contains_points(index).astype(int) for line in lines), np.zeros(len(index), int))
    return (within % 2 == 1).reshape(shape)


def slice_of(seed: int, shape: tuple[int, int] = (23, 14)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    i, j = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    blobs = [np.exp(-((i - a) ** 2 + 2 * (j - b) ** 2) / w) for a, b, w in rng.uniform((0, 0, 6), (*shape, 40), (4, 3))]
    return np.sum(blobs, axis=0) - 0.1


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("level", [0.2, 0.5, 0.8])
def test_outlines_enclose_the_voxels_that_reach_the_level(seed: int, level: float) -> None:
    relevance = slice_of(seed)
    lines = outlines(relevance, level)
    np.testing.assert_array_equal(enclosed(lines, relevance.shape), relevance >= level)
    for line in lines:
        np.testing.assert_array_equal(line[0], line[-1])


def test_a_ring_has_an_outer_and_an_inner_line() -> None:
    i, j = np.meshgrid(np.arange(21), np.arange(17), indexing="ij")
    apart = np.hypot(i - 9.3, j - 8.1)
    relevance = np.exp(-((apart - 5) ** 2) / 2)
    lines = outlines(relevance, 0.5)
    assert len(lines) == 2
    np.testing.assert_array_equal(enclosed(lines, relevance.shape), relevance >= 0.5)
    # Where exp(-(r - 5)**2 / 2) is one half.
    radii = sorted(np.hypot(*(line - (9.3, 8.1)).T).mean() for line in lines)
    assert radii == pytest.approx([5 - np.sqrt(2 * np.log(2)), 5 + np.sqrt(2 * np.log(2))], abs=0.1)


def test_a_region_at_the_edge_is_closed_along_the_edge_of_its_voxels() -> None:
    relevance = np.zeros((8, 5))
    relevance[5:, 3:] = 1.0
    (line,) = outlines(relevance, 0.5)
    np.testing.assert_array_equal(line[0], line[-1])
    assert line.max(0) == pytest.approx([7.5, 4.5])
    assert line.min(0) == pytest.approx([4.5, 2.5])


def test_a_line_runs_where_the_relevance_is_the_level() -> None:
    relevance = np.outer(np.arange(9.0), np.ones(6))
    (line,) = outlines(relevance, 3.25)
    inner = line[(line[:, 1] > 0) & (line[:, 1] < 5) & (line[:, 0] < 8)]
    assert inner[:, 0] == pytest.approx(3.25)


def test_what_was_not_looked_at_is_outside() -> None:
    relevance = np.full((9, 7), 1.0)
    relevance[:4] = np.nan
    relevance[6, 3] = np.nan
    lines = outlines(relevance, 0.5)
    np.testing.assert_array_equal(enclosed(lines, relevance.shape), np.nan_to_num(relevance) >= 0.5)


def test_an_empty_slice_has_no_outline() -> None:
    assert outlines(np.zeros((5, 4)), 0.5) == []
    assert outlines(np.full((5, 4), np.nan), 0.5) == []
