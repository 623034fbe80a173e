"""The resolution ceiling: what a map on this layer's cells could show of the lesion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32

from medcam.errors import UsageError
from medcam.geometry import Grid, resample
from medcam.occupancy import occupancy


def ceiling(
    lesion: Bool[np.ndarray, "i j k"],
    grid: Grid,
    *,
    input_grid: Grid,
    feature_shape: Sequence[int],
    stride: Sequence[float],
    offset: Sequence[float],
) -> Float32[np.ndarray, "i j k"]:
    """Return the lesion as a map of a layer's cells would show it: averaged over each cell, and put back as maps are.

    Scored like a map, it tells a layer that is too coarse from a map that is wrong. It weighs each cell by the lesion in it, so it is no
    strict bound: a map that happens to sharpen the lesion's edge can pass it in a measure.

    Parameters
    ----------
    grid
        Where the lesion lies, and the heatmap.
    input_grid
        The grid of the network's input, that `medcam.prepare` gives; `grid` itself where nothing was resampled.
    feature_shape, stride, offset
        As in the recipe: cell c is centred on input index `offset + stride * c`. Two numbers for a network of two dimensions.

    Raises
    ------
    UsageError
        If the recipe does not say where the cells lie.
    """
    dims = len(feature_shape)
    if dims not in (2, 3) or len(stride) != dims or len(offset) != dims:
        raise UsageError(
            "where the map's cells lie is not known: a feature shape, a stride and an offset of two or three numbers each are needed, "
            f"not {tuple(feature_shape)}, {tuple(stride)} and {tuple(offset)}"
        )
    i, j, k = [*feature_shape, 1][:3]
    di, dj, dk = [*stride, 1.0][:3]
    oi, oj, ok = [*offset, 0.0][:3]
    cells = input_grid.coarsened((i, j, k), (di, dj, dk), (oi, oj, ok))
    return resample(occupancy(lesion, grid, cells), cells, grid, within=input_grid)
