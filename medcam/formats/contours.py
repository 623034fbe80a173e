"""Contours into voxels: which voxel centres lie inside."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

# Millimetres through a matrix and back leave a place a little off itself; edges nearer to a centre than this run through it.
_DECIMALS = 6


def inside(corners: Float[np.ndarray, "n 2"], shape: tuple[int, int]) -> Bool[np.ndarray, "a b"]:
    """Tell for each point with whole coordinates (0 to `shape`) whether it lies in a polygon, by the even-odd rule.

    A keyhole, an edge that is walked in both directions, leaves no trace. A point on an edge lies inside where the inside is
    towards larger coordinates, so that of two polygons that share an edge it lies in one.

    Parameters
    ----------
    corners
        In order; the last is joined to the first.
    """
    start = np.round(corners, _DECIMALS)
    end = np.roll(start, -1, axis=0)
    upward = start[:, 1] <= end[:, 1]
    low, high = np.where(upward[:, None], start, end), np.where(upward[:, None], end, start)
    # Lines b = 0, 1, ... that each edge crosses: from its lower end, itself counted, to its upper end, not counted.
    first = np.clip(np.ceil(low[:, 1]), 0, shape[1]).astype(int)
    count = np.clip(np.ceil(high[:, 1]), 0, shape[1]).astype(int) - first
    edge = np.repeat(np.arange(len(start)), count)
    line = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count - first, count)
    share = (line - low[edge, 1]) / (high[edge, 1] - low[edge, 1])
    crossing = np.round(low[edge, 0] + share * (high[edge, 0] - low[edge, 0]), _DECIMALS)
    # Each crossing turns over what comes at or after it.
    turned = np.zeros((shape[0] + 1, shape[1]), np.int32)
    np.add.at(turned, (np.clip(np.ceil(crossing), 0, shape[0]).astype(int), line), 1)
    found: np.ndarray = np.cumsum(turned[:-1], axis=0) % 2 == 1
    return found
