"""What published protocols do to pictures: 8-bit maps, Otsu and contours as OpenCV finds them, without OpenCV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Num, UInt8
from scipy import ndimage

from medcam.errors import InputError
from medcam.validate.thresholds import otsu_bin

EIGHT = np.ones((3, 3), bool)


def raster(values: Num[np.ndarray, "i j k"] | Bool[np.ndarray, "i j k"], protocol: str) -> np.ndarray:
    """Return a film's values as rows and columns.

    Raises
    ------
    InputError
        If it has several slices.
    """
    if values.ndim != 3 or values.shape[2] != 1:
        raise InputError(
            f"the {protocol} protocol counts on films, of shape (i, j, 1), and this image has {values.shape}"
        )
    return np.asarray(values[:, :, 0].T)


def min_max(values: Float[np.ndarray, "..."], protocol: str) -> Float[np.ndarray, "..."]:
    """Return a map stretched from 0 to 1, in single precision; all 0 for a map of one value.

    Raises
    ------
    InputError
        If the map was not looked at everywhere: the published code has no word for that.
    """
    if not np.isfinite(values).all():
        raise InputError(
            f"the {protocol} protocol takes maps without gaps, and this one was not looked at everywhere or is infinite"
        )
    shifted = values.astype(np.float32) - np.float32(values.min())
    top = shifted.max()
    stretched: np.ndarray = shifted / top if top > 0 else shifted
    return stretched


def eight_bit(stretched: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Return a map from 0 to 1 as 0 to 255, cut off and not rounded."""
    grey: np.ndarray = (np.float32(255) * stretched.astype(np.float32)).astype(np.uint8)
    return grey


def above_otsu(grey: UInt8[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
    """Return the pixels above Otsu's threshold of an 8-bit picture; none where all are equal."""
    counts = np.bincount(grey.ravel(), minlength=256)
    if np.count_nonzero(counts) < 2:
        return np.zeros(grey.shape, bool)
    above: np.ndarray = grey >= otsu_bin(counts)
    return above


def redrawn(mask: Bool[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
    """Return a mask after its contours were drawn again as filled polygons: without holes and without single pixels."""
    labels, _ = ndimage.label(mask, EIGHT)
    alone = np.bincount(labels.ravel()) == 1
    alone[0] = False
    outside, _ = ndimage.label(np.pad(~mask | alone[labels], 1, constant_values=True))
    filled: np.ndarray = outside[1:-1, 1:-1] != 1
    return filled


@dataclass(frozen=True, eq=False)
class Contours:
    """The boxes around a mask's contours, x0 y0 x1 y1, and which of them encloses the most.

    Pieces come first, in raster order of their first pixel, then the rims of holes, which OpenCV gives as contours of their own.
    A box ends one pixel behind its last, or at the picture's last.

    Parameters
    ----------
    largest, area
        Of the pieces' outer contours the one that encloses the most, the last of equal ones, and how much: -1 and 0 without any.
    """

    boxes: Int[np.ndarray, "n 4"]
    largest: int
    area: float


def contours(mask: Bool[np.ndarray, "y x"]) -> Contours:
    """Return the contours of a mask as OpenCV's RETR_TREE finds them."""
    # With a rim all that lies outside the pieces hangs together.
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return Contours(np.zeros((0, 4), np.int64), -1, 0.0)
    top, left = int(rows[0]), int(columns[0])
    part = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    labels, _ = ndimage.label(part, EIGHT)
    pieces = ndimage.find_objects(labels)
    # The first piece of the background is the outside, the others are holes; their rim lies one pixel around them.
    holes = ndimage.find_objects(ndimage.label(~part)[0])[1:]
    boxes = [
        *((x.start, y.start, x.stop, y.stop) for y, x in pieces),
        *((x.start - 1, y.start - 1, x.stop + 1, y.stop + 1) for y, x in holes),
    ]
    height, width = mask.shape
    found = np.array(boxes, np.int64).reshape(-1, 4) + np.array([left - 1, top - 1, left - 1, top - 1])
    return Contours(np.minimum(found, [width, height, width - 1, height - 1]), *_largest(labels, pieces))


def _largest(labels: Int[np.ndarray, "y x"], pieces: Sequence[tuple[slice, slice]]) -> tuple[int, float]:
    """Return which piece's outer contour encloses the most, and how much. None encloses more than its box, so few need to be looked at."""
    within = np.array([(y.stop - y.start - 1) * (x.stop - x.start - 1) for y, x in pieces])
    best, area = -1, -1.0
    for n in np.lexsort((-np.arange(len(within)), -within)):
        if within[n] < area:
            break
        enclosed = _enclosed(labels[pieces[n]] == n + 1)
        if (enclosed, n) > (area, best):
            best, area = int(n), enclosed
    return best, area


def _enclosed(piece: Bool[np.ndarray, "y x"]) -> float:
    """Return what a piece's outer contour encloses, through the middles of its pixels: a line of them encloses nothing.

    Of each four pixels that meet, all give an area of 1 and three give one half.
    """
    outside, _ = ndimage.label(np.pad(~piece, 1, constant_values=True))
    filled = (outside != 1)[1:-1, 1:-1].astype(np.uint8)
    corners = filled[1:, 1:] + filled[1:, :-1] + filled[:-1, 1:] + filled[:-1, :-1]
    return float(np.count_nonzero(corners == 4) + np.count_nonzero(corners == 3) / 2)
