"""Where a map lies in its image, in numbers that can be told by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medcam.cohort.shortcuts import features, text_or_markers

SHAPE = (40, 30, 1)


def test_what_lies_in_a_corner_the_middle_and_one_half_is_told_apart() -> None:
    corner, edge, middle = (np.zeros(SHAPE, np.float32) for _ in range(3))
    corner[0, 0], edge[39, 15], middle[20:22, 14:16] = 2.0, 1.0, 3.0
    one = features(corner, None)
    assert (one.corner, one.border, one.asymmetry, one.spread) == (1, 1, 1, pytest.approx(1 / 1200))
    two = features(edge, None)
    # In the other half, and at the border without being in a corner.
    assert (two.corner, two.border, two.asymmetry) == (0, 1, 1)
    three = features(middle, None)
    assert (three.corner, three.border, three.spread) == (0, 0, pytest.approx(4 / 1200))
    assert np.isnan([three.outside, three.text]).all()
    assert features(np.ones(SHAPE, np.float32), None).spread == pytest.approx(1)


def test_a_marker_is_small_bright_and_wholly_near_the_edge() -> None:
    image = np.full((60, 50, 1), 10.0, np.float32)
    image[2:4, 3:5] = 100.0
    # As bright, but it reaches from the edge into the middle.
    image[30, 0:26] = 100.0
    found = text_or_markers(image)[:, :, 0]
    assert found[2:4, 3:5].all()
    assert not found[30, 10:26].any()
