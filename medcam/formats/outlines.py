"""Where relevance reaches a level, as lines on a slice."""

from __future__ import annotations

import numpy as np
from contourpy import contour_generator
from jaxtyping import Float


def outlines(relevance: Float[np.ndarray, "i j"], level: float) -> list[Float[np.ndarray, "n 2"]]:
    """Return the closed lines around what reaches `level` on a slice, as fractional indices (i, j).

    The lines run between voxel centres where the relevance, linear between them, equals the level. At the edge of the slice
    they run along the edge of the outermost voxels, and around what was not looked at (NaN) half-way.
    """
    values = np.asarray(relevance, np.float64)
    # Beyond the edge the relevance is mirrored at the level, so that a line crosses half a voxel further out.
    padded = np.pad(values, 1, mode="edge")
    inner = (slice(1, -1), slice(1, -1))
    mirrored = np.minimum(padded, 2 * level - padded)
    mirrored[inner] = values
    below = 2 * level - np.nanmax(padded, initial=level)
    filled = np.where(np.isnan(mirrored), below, mirrored)
    lines = contour_generator(z=filled.T).lines(level)
    return [np.asarray(line, np.float64) - 1 for line in lines if len(line) > 3]
