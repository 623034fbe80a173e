"""Made-up maps and lesions for the tests of the measures: unequal sides, unequal spacing, ties, negatives."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from medcam.validate.scene import Scene

SHAPE = (13, 17, 9)
SPACING = (1.5, 0.8, 3.0)


def lesion_of(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Two lesions: a bent one, and one that touches nothing but the last slice."""
    mask = np.zeros(shape, bool)
    mask[2:6, 3:7, 1:4] = mask[4:6, 6:10, 2:3] = True
    mask[9:11, 12:15, shape[2] - 2 :] = True
    return mask


def map_of(seed: int, shape: tuple[int, int, int] = SHAPE, *, decimals: int | None = 1) -> np.ndarray:
    """A smooth signed map; rounded to so many decimals it holds many ties."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    smooth = ndimage.gaussian_filter(noise, (1.5, 2.0, 0.8)) * 5
    return (smooth if decimals is None else np.round(smooth, decimals)).astype(np.float32)


def scene_of(seed: int = 0, *, decimals: int | None = 1) -> Scene:
    return Scene(map_of(seed, decimals=decimals), lesion_of(), SPACING)
