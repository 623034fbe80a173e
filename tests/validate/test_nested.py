"""All levels of a map from one pass, against labelling the mask of each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medcam.validate import nested
from medcam.validate.nested import pieces_at_levels

FACES, EDGES, CORNERS = (ndimage.generate_binary_structure(3, n) for n in (1, 2, 3))


def labelled(level: np.ndarray, touching: np.ndarray) -> list[tuple[list[list[list[int]]], list[int]]]:
    found = []
    for n in range(1, int(level.max()) + 1):
        labels, count = ndimage.label(level >= n, touching)
        boxes = [[[s.start, s.stop - 1] for s in piece] for piece in ndimage.find_objects(labels)]
        found.append((boxes, [int((labels == part).sum()) for part in range(1, count + 1)]))
    return found


def from_one_pass(level: np.ndarray, touching: np.ndarray) -> list[tuple[list[list[list[int]]], list[int]]]:
    return [(each.boxes.tolist(), each.voxels.tolist()) for each in pieces_at_levels(level, touching)]


def map_of(seed: int, shape: tuple[int, int, int], width: float, top: int) -> np.ndarray:
    """Noise blurred to a width: 0 leaves noise, and a wide one makes few hills."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), width)
    return np.rint(np.clip(noise / np.abs(noise).max(), -0.2, 1) * top).clip(0).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 11), st.integers(1, 9), st.integers(1, 12)),
    width=st.sampled_from([0.0, 0.6, 1.2, 2.5]),
    top=st.sampled_from([1, 2, 7, 100, 255]),
    touching=st.sampled_from([FACES, EDGES, CORNERS]),
)
def test_pieces_are_those_of_labelling_each_level_in_its_order(
    seed: int, shape: tuple[int, int, int], width: float, top: int, touching: np.ndarray
) -> None:
    level = map_of(seed, shape, width, top)
    assert from_one_pass(level, touching) == labelled(level, touching)


@pytest.mark.parametrize("touching", [FACES, EDGES, CORNERS])
@pytest.mark.parametrize(("width", "by_hills"), [(3.0, True), (0.0, False)])
def test_hills_and_noise_are_each_counted_in_their_own_way(
    monkeypatch: pytest.MonkeyPatch, touching: np.ndarray, width: float, by_hills: bool
) -> None:
    told: list[int] = []
    labelling = nested._labelled
    monkeypatch.setattr(nested, "_labelled", lambda *given: told.append(1) or labelling(*given))
    level = map_of(4, (31, 22, 27), width, 60)
    assert from_one_pass(level, touching) == labelled(level, touching)
    assert bool(told) != by_hills


@pytest.mark.parametrize("crowded", [0, 10**9])
def test_boxes_one_by_one_and_all_at_once_are_the_same(monkeypatch: pytest.MonkeyPatch, crowded: int) -> None:
    monkeypatch.setattr(nested, "_CROWDED", crowded)
    for width in (0.0, 2.5):
        level = map_of(9, (14, 17, 12), width, 40)
        assert from_one_pass(level, CORNERS) == labelled(level, CORNERS)


def test_a_map_larger_than_a_chunk_and_plateaus_that_wind_are_climbed_to_their_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nested, "_CHUNK", 97)
    level = np.zeros((9, 13, 8), np.uint8)
    # A snake of one height, which runs against the order of memory and back, over a floor.
    for n, row in enumerate(range(0, 13, 2)):
        level[4, row, 1:7] = 3
        if row < 12:
            level[4, row + 1, 6 if n % 2 else 1] = 3
    level[4, 0, 1] = 5
    level[:, :, 0] = 1
    for touching in (FACES, EDGES, CORNERS):
        assert from_one_pass(level, touching) == labelled(level, touching)


def test_nothing_selected_has_no_levels() -> None:
    assert from_one_pass(np.zeros((4, 5, 3), np.uint8), CORNERS) == []
