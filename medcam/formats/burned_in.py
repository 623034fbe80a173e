"""What is drawn into the pixels of a picture for those who see nothing but pixels: a colour bar, sides and a warning.

It all stands on a border around the picture, so that it hides neither the patient nor a finding.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from medcam.render import overlay_rgb

_INK, _WARNING = (242, 242, 242), (255, 200, 87)
# Letters take this share of the longer side, and never fewer pixels than can be read.
_SHARE, _SMALLEST = 1 / 32, 13
# The bar is never shorter than this many lines of text, however flat the picture.
_LINES = 8


class Border(NamedTuple):
    """A black page with its writing, and the row and column where the picture goes."""

    pixels: UInt8[np.ndarray, "r c 3"]
    top: int
    left: int

    def around(self, picture: UInt8[np.ndarray, "y x 3"]) -> UInt8[np.ndarray, "r c 3"]:
        """Return the page with a picture of the size that it was drawn for."""
        page: np.ndarray = self.pixels.copy()
        page[self.top : self.top + len(picture), self.left : self.left + picture.shape[1]] = picture
        return page


def border(
    rows: int, columns: int, *, letters: tuple[str, str, str, str] | None, threshold: float, warnings: tuple[str, ...]
) -> Border:
    """Draw the border of a picture: its sides, the colour bar of relative relevance on the right, warnings below.

    Parameters
    ----------
    letters
        The patient's sides at the left, right, top and bottom; None where the source does not say.
    threshold
        The fraction of the maximum below which the picture shows no colour: so does the bar.
    warnings
        Lines to stand below the picture.
    """
    size = max(_SMALLEST, round(_SHARE * max(rows, columns)))
    font = ImageFont.load_default(size)
    line, margin = round(1.3 * size), round(1.4 * size)
    height = max(rows, _LINES * line)
    right = margin + columns + margin
    top, length = margin + round(1.5 * line), height - 2 * line
    # A tick that would be written over the threshold's gives way.
    ends = {level: f"{level:g}" for level in (0.0, 1.0) if abs(level - threshold) * length > line}
    ticks = {**ends, threshold: f"{threshold:g} threshold"}
    beside = 1.5 * size + max(font.getlength(word) for word in ticks.values())
    below = max((font.getlength(words) for words in warnings), default=0.0)
    wide = max(right + beside, right + font.getlength("relative"), margin + below) + margin / 2
    page = Image.new("RGB", (round(wide), margin + height + margin + line * len(warnings) + margin // 2))
    draw = ImageDraw.Draw(page)
    if letters:
        across, down = margin + columns / 2, margin + rows / 2
        near, past = margin / 2, 1.5 * margin
        spots = ((near, down), (columns + past, down), (across, near), (across, rows + past))
        for spot, letter in zip(spots, letters, strict=True):
            draw.text(spot, letter, _INK, font, anchor="mm")
    draw.text((right, margin), "relative", _INK, font, anchor="lt")
    page.paste(Image.fromarray(_bar(length, size, threshold)), (right, top))
    for level, word in ticks.items():
        draw.text((right + 1.5 * size, top + (1 - level) * (length - 1)), word, _INK, font, anchor="lm")
    for n, words in enumerate(warnings):
        draw.text((margin, margin + height + margin + n * line), words, _WARNING, font, anchor="lt")
    return Border(np.array(page), margin, margin)


def _bar(length: int, width: int, threshold: float) -> UInt8[np.ndarray, "r c 3"]:
    # Blended over black to white as in the picture, so that every colour of the picture can be found in the bar.
    share, grey = np.meshgrid(np.linspace(1, 0, length), np.linspace(0, 1, width), indexing="ij")
    return overlay_rgb(grey, share, window=(0.0, 1.0), maximum=1.0, threshold=threshold)
