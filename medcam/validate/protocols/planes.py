"""What published protocols do to pictures: 8-bit maps, Otsu and contours as OpenCV finds them, without OpenCV."""

from __future__ import annotations

from typing import NamedTuple

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
    filled: np.ndarray = ndimage.binary_fill_holes(mask & ~alone[labels])
    return filled


class Contours(NamedTuple):
    """The boxes around a mask's contours, x0 y0 x1 y1, and the areas that the contours of its pieces enclose.

    Pieces come first, in raster order of their first pixel, then the rims of holes, which OpenCV gives as contours of their own.
    A box ends one pixel behind its last, or at the picture's last.
    """

    boxes: Int[np.ndarray, "n 4"]
    areas: Float[np.ndarray, " m"]


def contours(mask: Bool[np.ndarray, "y x"]) -> Contours:
    """Return the contours of a mask as OpenCV's RETR_TREE finds them."""
    labels, count = ndimage.label(mask, EIGHT)
    holes, hole_count = ndimage.label(ndimage.binary_fill_holes(mask) & ~mask)
    boxes = [
        *((x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)),
        # The rim lies one pixel around its hole.
        *((x.start - 1, y.start - 1, x.stop + 1, y.stop + 1) for y, x in ndimage.find_objects(holes)),
    ]
    height, width = mask.shape
    found = np.array(boxes, np.int64).reshape(count + hole_count, 4)
    return Contours(np.minimum(found, [width, height, width - 1, height - 1]), _areas(labels, count))


def _areas(labels: np.ndarray, count: int) -> np.ndarray:
    """Return what each piece's outer contour encloses, through the middles of its pixels: a line of them encloses nothing.

    Of each four pixels that meet, all give an area of 1 and three give one half.
    """
    areas = np.zeros(count)
    for n, box in enumerate(ndimage.find_objects(labels)):
        filled = ndimage.binary_fill_holes(labels[box] == n + 1).astype(np.int64)
        corners = filled[1:, 1:] + filled[1:, :-1] + filled[:-1, 1:] + filled[:-1, :-1]
        areas[n] = np.count_nonzero(corners == 4) + np.count_nonzero(corners == 3) / 2
    return areas
