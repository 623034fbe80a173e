"""The border around a picture: the picture untouched, the right letter on each side, the colours of the picture in the bar."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from medcam.formats.burned_in import border
from medcam.render import overlay_rgb

LETTERS = ("R", "A", "I", "S")


def glyph(letter: str, size: int) -> np.ndarray:
    """Return a letter as light pixels, cut to what is drawn."""
    page = Image.new("L", (4 * size, 4 * size))
    ImageDraw.Draw(page).text((size, size), letter, 255, ImageFont.load_default(size))
    return cut(np.array(page))


def cut(pixels: np.ndarray) -> np.ndarray:
    lit = pixels > 100
    rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
    return lit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@pytest.mark.parametrize("shape", [(90, 61), (20, 77), (400, 512)])
def test_each_side_has_its_letter_and_the_picture_is_whole(shape: tuple[int, int]) -> None:
    rows, columns = shape
    size = max(13, round(max(shape) / 32))
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    edge = border(rows, columns, letters=LETTERS, threshold=0.3, warnings=("NOT FOR DIAGNOSTIC USE",))
    page = edge.around(picture)
    top, left = edge.top, edge.left
    np.testing.assert_array_equal(page[top : top + rows, left : left + columns], picture)
    middle = page[top : top + rows, :, 0]
    sides = {
        "R": middle[:, :left],
        "A": middle[:, left + columns : left + columns + left],
        "I": page[:top, left : left + columns, 0],
        "S": page[top + rows : top + rows + left, left : left + columns, 0],
    }
    for letter, side in sides.items():
        found = cut(side)
        alike = {
            each: found.shape == glyph(each, size).shape and (found == glyph(each, size)).mean() for each in LETTERS
        }
        assert max(alike, key=lambda each: alike[each]) == letter, alike
        assert alike[letter] > 0.8
    # In the middle of its side, to a few pixels.
    for n, side in enumerate(sides.values()):
        lit = np.argwhere(side > 100)
        centre = (lit.min(0) + lit.max(0)) / 2
        assert abs(centre[0 if n < 2 else 1] - (rows, columns)[0 if n < 2 else 1] / 2) < 0.5 * size


def test_a_picture_of_unknown_sides_has_no_letters() -> None:
    edge = border(80, 60, letters=None, threshold=0.3, warnings=())
    assert not edge.pixels[:, : edge.left].any()
    assert not edge.pixels[: edge.top].any()
    assert not edge.pixels[edge.top + 80 :, : edge.left + 60].any()
    assert edge.pixels.any()


@pytest.mark.parametrize("threshold", [0.02, 0.3, 0.5, 0.97])
def test_the_bar_shows_a_pictures_colours_and_greys_below_the_threshold(threshold: float) -> None:
    edge = border(300, 200, letters=LETTERS, threshold=threshold, warnings=())
    bar = edge.pixels[:, edge.left + 200 + edge.left + 2].astype(int)
    coloured = np.flatnonzero(np.ptp(bar, axis=-1) > 8)
    length = 300 - 2 * round(1.3 * 13)
    assert len(coloured) == pytest.approx((1 - threshold) * length, abs=3)
    # From the brightest colour at its top to the faintest at the threshold, as overlays are blended over a dark pixel.
    lowest = 1 - np.ptp(coloured) / (length - 1)
    ends = overlay_rgb(np.full(2, 2 / 12), np.array([1.0, lowest]), window=(0.0, 1.0), maximum=1.0, threshold=threshold)
    assert np.abs(bar[coloured[[0, -1]]] - ends).max() <= 1
    assert np.diff(coloured).max() == 1


def test_warnings_stand_below_and_are_not_cut_off() -> None:
    one = border(40, 30, letters=None, threshold=0.3, warnings=("NOT FOR DIAGNOSTIC USE",))
    two = border(40, 30, letters=None, threshold=0.3, warnings=("NOT FOR DIAGNOSTIC USE", "no positive evidence"))
    assert two.pixels.shape[0] > one.pixels.shape[0]
    for edge in (one, two):
        below = edge.pixels[edge.top + 8 * 17 + edge.top :]
        assert below.any()
        # A margin of black all around.
        for side in (below[:, -2:], below[-2:], edge.pixels[:, :2]):
            assert not side.any()
