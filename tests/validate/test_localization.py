"""Whether the peak lies in the lesion, and whose lesion it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from conftest import blob, made_volume, oblique_grid
from medcam.errors import GeometryError, InputError
from medcam.geometry import Grid
from medcam.recipe import Recipe
from medcam.validate.localization import lesion_on, peak_in_lesion
from medcam.volume import Heatmap, Source, Volume

GRID = oblique_grid()
CENTRE = GRID.world_mm(np.array([12.0, 20.0, 9.0]))
RECIPE = Recipe("net", "ab", "grad-cam", "features", "lesion (class 0)")


def heatmap(grid: Grid = GRID, source: Source | None = None) -> Heatmap:
    return Heatmap(blob(grid, CENTRE), grid, source or Source("array", "00"), RECIPE, "lesion (class 0)", 1.0)


def ball(grid: Grid, centre: np.ndarray, radius_mm: float) -> Volume:
    return made_volume((blob(grid, centre, 1.0) > np.exp(-0.5 * radius_mm**2)).astype(np.uint8), grid)


def test_a_peak_in_the_lesion_is_a_hit_also_on_another_grid() -> None:
    fine = Grid((60, 60, 60), np.diag([1.0, 1, 1, 1]) + np.pad((CENTRE - 30)[:, None], ((0, 1), (3, 0))))
    for grid in (GRID, fine):
        assert peak_in_lesion(heatmap(), ball(grid, CENTRE, 4.0)) is True
        assert peak_in_lesion(heatmap(), ball(grid, CENTRE + np.array([8, 0, 0]), 4.0)) is False


def test_an_empty_mask_or_a_map_without_a_peak_is_neither_hit_nor_miss() -> None:
    empty = made_volume(np.zeros(GRID.shape, np.uint8), GRID)
    assert peak_in_lesion(heatmap(), empty) is None
    flat = replace(heatmap(), relevance=np.zeros(GRID.shape, np.float32))
    assert peak_in_lesion(flat, ball(GRID, CENTRE, 4.0)) is None


def test_a_mask_of_another_image_is_refused() -> None:
    far = Grid((9, 9, 9), np.diag([1.0, 1, 1, 1]) + np.pad([[5000.0], [0], [0]], ((0, 1), (3, 0))))
    with pytest.raises(GeometryError, match="wholly outside"):
        lesion_on(heatmap(), made_volume(np.ones(far.shape, np.uint8), far))
    with pytest.raises(GeometryError, match="must have its shape"):
        lesion_on(heatmap(source=Source("picture", "00", placed=False)), made_volume(np.ones(far.shape, np.uint8), far))
    with pytest.raises(InputError, match="between labels"):
        lesion_on(heatmap(), made_volume(np.full(GRID.shape, 0.3, np.float32), GRID))
