"""Which voxel centres lie in a polygon, against a loop over points and edges, and matplotlib's paths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path as Outline

from medcam.formats.contours import inside

SHAPE = (11, 9)


def by_hand(corners: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A ray from each point towards larger coordinates, and a count of the edges that it crosses."""
    found = np.zeros(shape, bool)
    for a in range(shape[0]):
        for b in range(shape[1]):
            crossed = 0
            for n in range(len(corners)):
                (x, y), (u, v) = corners[n], corners[(n + 1) % len(corners)]
                if (y > b) != (v > b):
                    crossed += x + (b - y) / (v - y) * (u - x) > a
            found[a, b] = crossed % 2
    return found


def test_a_square_between_the_centres_holds_those_within() -> None:
    square = np.array([[1.5, 2.5], [6.5, 2.5], [6.5, 5.5], [1.5, 5.5]])
    expected = np.zeros(SHAPE, bool)
    expected[2:7, 3:6] = True
    for corners in (square, square[::-1], np.roll(square, 2, axis=0)):
        np.testing.assert_array_equal(inside(corners, SHAPE), expected)
        np.testing.assert_array_equal(inside(corners + 0.49, SHAPE), expected)
        np.testing.assert_array_equal(inside(corners - 0.49, SHAPE), expected)
    np.testing.assert_array_equal(inside(square + np.array([0.51, 0]), SHAPE), np.roll(expected, 1, axis=0))


def test_squares_that_share_an_edge_through_centres_share_no_centre() -> None:
    square = np.array([[2.0, 3], [5, 3], [5, 6], [2, 6]])
    first = inside(square, SHAPE)
    assert first.sum() == 9
    for step in ([3, 0], [0, 3], [-3, 0], [0, -3]):
        assert not (first & inside(square + np.array(step), SHAPE)).any()
    steps = [np.array([3 * a, 3 * b]) for a in range(-2, 4) for b in range(-2, 4)]
    everything = sum(inside(square + step, SHAPE).astype(int) for step in steps)
    np.testing.assert_array_equal(everything, np.ones(SHAPE))


@given(st.lists(st.tuples(st.floats(-4, 14), st.floats(-4, 12)), min_size=3, max_size=9), st.integers(0, 3))
def test_any_polygon_holds_what_a_ray_says(corners: list[tuple[float, float]], digits: int) -> None:
    # With few digits many edges run through centres.
    polygon = np.round(np.array(corners), digits)
    found = inside(polygon, SHAPE)
    for a, b in np.argwhere(found != by_hand(polygon, SHAPE)):
        # Where they differ, an edge runs through the centre, but for rounding.
        start, end = polygon, np.roll(polygon, -1, axis=0)
        length = np.maximum(np.linalg.norm(end - start, axis=1), 1e-12)
        share = np.clip(((np.array([a, b]) - start) * (end - start)).sum(axis=1) / length**2, 0, 1)
        assert np.linalg.norm(start + share[:, None] * (end - start) - [a, b], axis=1).min() < 1e-5


@pytest.mark.parametrize("seed", range(5))
def test_a_round_outline_holds_what_matplotlib_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, 40))
    corners = np.stack([18 + 15.3 * np.cos(angle) * rng.uniform(0.6, 1), 14 + 11.7 * np.sin(angle)], axis=1)
    shape = (37, 29)
    points = np.stack(np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij"), -1).reshape(-1, 2)
    expected = Outline(corners, closed=False).contains_points(points).reshape(shape)
    np.testing.assert_array_equal(inside(corners, shape), expected)


def test_a_keyhole_is_a_hole_and_its_channel_leaves_no_trace() -> None:
    outer = np.array([[0.5, 0.5], [9.5, 0.5], [9.5, 7.5], [0.5, 7.5]])
    hole = np.array([[3.5, 2.5], [3.5, 5.5], [6.5, 5.5], [6.5, 2.5]])
    keyhole = np.vstack([outer, outer[:1], hole, hole[:1]])
    np.testing.assert_array_equal(inside(keyhole, SHAPE), inside(outer, SHAPE) ^ inside(hole, SHAPE))
    through_centres = np.vstack([outer, outer[:1], [[3, 2.5]], hole, hole[:1], [[3, 2.5]]])
    assert inside(through_centres, SHAPE).sum() == 9 * 7 - 9


def test_what_lies_beyond_and_what_has_no_area_holds_nothing() -> None:
    assert not inside(np.array([[20.0, 20], [25, 20], [22, 30]]), SHAPE).any()
    assert not inside(np.array([[-9.0, 2], [-5, 2], [-5, 6]]), SHAPE).any()
    assert not inside(np.array([[2.2, 3.3]]), SHAPE).any()
    assert not inside(np.array([[2.0, 3], [6, 3]]), SHAPE).any()
    wide = np.array([[-50.0, -50], [50, -50], [50, 50], [-50, 50]])
    assert inside(wide, SHAPE).all()
