"""Where the body is in a volume, and whether a mask lies in it: masks that were shifted, flipped or taken from another patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Num
from scipy import ndimage
from scipy.stats import rankdata

from medcam.validate.scene import around

# Between air and fat in CT.
_BODY_HU = -300.0
# Of the way from the mean of air to that of tissue, as Otsu's threshold parts them, since dark tissue lies below the middle.
_DARK = 0.25
# So much of two opposite sides of a volume must be air for its body to be told from it.
_AIR = 0.7
# A mask that lies outside the body to this share is none of its lesions, and one that does to the lesser share is doubtful.
ELSEWHERE, DOUBTFUL = 0.9, 0.2
# How many voxels of a lesion's surroundings it is held against, and how well brightness parts the two where a mask fits, and where not.
_RIM, _FITS, _FITS_NOTHING = 3, 0.75, 0.65


def body(image: Num[np.ndarray, "i j k"], *, unit: str = "a.u.") -> Bool[np.ndarray, "i j k"] | None:
    """Return the largest thing in a volume that is no air, its holes filled; None for a film, or where no air is to be seen.

    Parameters
    ----------
    unit
        'HU' for CT, where -300 parts air from tissue; else a quarter of the way from air's mean to tissue's.
    """
    if image.shape[2] == 1:
        return None
    values = np.nan_to_num(np.asarray(image, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    solid = values > (_BODY_HU if unit == "HU" else _threshold(values))
    if not solid.any() or not _air_at_sides(solid):
        return None
    # Noise in the air is thin, and no part of the body.
    opened = ndimage.binary_opening(solid)
    labels, count = ndimage.label(opened if opened.any() else solid)
    largest = int(np.argmax(np.bincount(labels.ravel(), minlength=count + 1)[1:])) + 1
    inside = ndimage.binary_dilation(labels == largest) & solid
    filled: np.ndarray = ndimage.binary_fill_holes(inside)
    # A sinus or an airway that opens to the outside in a slice is still within the body.
    for k in range(filled.shape[2]):
        filled[:, :, k] = ndimage.binary_fill_holes(filled[:, :, k])
    return filled


def _threshold(values: Num[np.ndarray, "i j k"]) -> float:
    low, high = float(values.min()), float(np.percentile(values, 99.5))
    if high <= low:
        return high
    counts, edges = np.histogram(np.clip(values, low, high), 256)
    centres = (edges[1:] + edges[:-1]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below = np.cumsum(counts * centres) / np.maximum(below, 1)
    mean_above = np.cumsum((counts * centres)[::-1])[::-1] / np.maximum(above, 1)
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    best = int(np.argmax(between))
    # Between two modes Otsu's criterion is flat; the means on both sides are not.
    air, tissue = float(mean_below[best]), float(mean_above[best + 1])
    return air + _DARK * (tissue - air)


def _air_at_sides(solid: Bool[np.ndarray, "i j k"]) -> bool:
    sides = [(solid.take(0, axis), solid.take(-1, axis)) for axis in range(3)]
    return any(min(1 - first.mean(), 1 - last.mean()) >= _AIR for first, last in sides)


@dataclass(frozen=True)
class Fit:
    """How a mask lies in a body.

    Parameters
    ----------
    outside
        The share of the mask that lies outside; NaN for an empty mask.
    flipped
        For each axis, the share that would lie outside if the mask were mirrored along it.
    """

    outside: float
    flipped: tuple[float, float, float]

    @property
    def elsewhere(self) -> bool:
        """Whether it cannot be of this body."""
        return self.outside > ELSEWHERE

    def doubt(self, axis_names: Sequence[str]) -> str:
        """Return a sentence where the mask may be shifted, mirrored or another patient's; '' where nothing speaks for that."""
        if not self.outside > DOUBTFUL:
            return ""
        best = int(np.argmin(self.flipped))
        words = f"{self.outside:.0%} of the lesion mask lies outside the body"
        if self.flipped[best] < self.outside - DOUBTFUL:
            return (
                f"{words}, and {self.flipped[best]:.0%} if it were mirrored {axis_names[best]}: it is probably mirrored"
            )
        return f"{words}: it may be shifted, or another patient's"


def fit(mask: Bool[np.ndarray, "i j k"], inside: Bool[np.ndarray, "i j k"]) -> Fit:
    """Return how a mask lies in a body, as it is and mirrored along each axis."""
    total = int(np.count_nonzero(mask))
    if not total:
        return Fit(float("nan"), (float("nan"),) * 3)

    def outside(one: np.ndarray) -> float:
        return 1 - int(np.count_nonzero(one & inside)) / total

    flips = tuple(outside(np.flip(mask, axis)) for axis in range(3))
    return Fit(outside(mask), (flips[0], flips[1], flips[2]))


def contrast(image: Num[np.ndarray, "i j k"], mask: Bool[np.ndarray, "i j k"]) -> float:
    """Return how well brightness parts a mask from what surrounds it, 0.5 (not at all) to 1; NaN for an empty mask or no surroundings."""
    box = around(mask, tuple(_RIM if n > 1 else 0 for n in mask.shape))
    if box is None:
        return float("nan")
    lesion, values = mask[box], np.asarray(image[box], np.float64)
    rim = (
        ndimage.binary_dilation(lesion, np.ones((3, 3, 3 if mask.shape[2] > 1 else 1), bool), iterations=_RIM) & ~lesion
    )
    if not rim.any():
        return float("nan")
    inside, outside = values[lesion], values[rim]
    ranks = rankdata(np.concatenate([inside, outside]))[: len(inside)]
    area = (ranks.sum() - len(inside) * (len(inside) + 1) / 2) / (len(inside) * len(outside))
    return float(0.5 + abs(area - 0.5))


def mirrored(image: Num[np.ndarray, "i j k"], mask: Bool[np.ndarray, "i j k"]) -> int | None:
    """Return the axis along which a mask seems to be mirrored: there it fits what is seen, as it is it fits nothing; else None."""
    if not contrast(image, mask) <= _FITS_NOTHING:
        return None
    found = [contrast(image, np.flip(mask, axis)) if mask.shape[axis] > 1 else 0.5 for axis in range(3)]
    best = int(np.argmax(found))
    return best if found[best] >= _FITS else None
