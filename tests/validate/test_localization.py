"""Whether the peak lies in the lesion, and whose lesion it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from conftest import blob, made_volume, oblique_grid
from medcam.errors import GeometryError, InputError, UsageError
from medcam.geometry import Grid
from medcam.recipe import Recipe
from medcam.validate.localization import laid_on, lesion_on, peak_in_lesion
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


def test_a_lesion_between_the_centres_of_a_coarse_grid_counts_by_the_share_that_it_fills() -> None:
    coarse = Grid((5, 6, 7), GRID.affine @ np.diag([8.0, 8, 8, 1]))
    # Two voxels of the fine grid beside each other, 3 and 4 steps from the centre of coarse voxel 2 2 2: both within it.
    mask = np.zeros(GRID.shape, np.uint8)
    mask[13:15, 16, 16] = 1
    placed = Heatmap(np.zeros(coarse.shape, np.float32), coarse, Source("array", "00"), RECIPE, "lesion (class 0)", 1.0)
    assert not lesion_on(placed, made_volume(mask, GRID)).any()
    found = np.argwhere(lesion_on(placed, made_volume(mask, GRID), at_least=2 / 512))
    np.testing.assert_array_equal(found, [[2, 2, 2]])
    assert not lesion_on(placed, made_volume(mask, GRID), at_least=0.005).any()
    whole = np.zeros(GRID.shape, np.uint8)
    whole[12:20, 12:20, 12:20] = 3
    shifted = Grid(coarse.shape, GRID.coarsened(coarse.shape, (8.0, 8.0, 8.0), (3.5, 3.5, 3.5)).affine)
    onto = replace(placed, grid=shifted)
    assert lesion_on(onto, made_volume(whole, GRID), at_least=1.0).sum() == 0
    assert lesion_on(onto, made_volume(whole, GRID), at_least=0.125).sum() == 8
    whole[8:24, 8:24, 8:16] = 3
    assert lesion_on(onto, made_volume(whole, GRID), at_least=1.0).sum() == 4
    for share in (0.0, 1.5, -0.1):
        with pytest.raises(UsageError, match="share of a voxel"):
            lesion_on(onto, made_volume(whole, GRID), at_least=share)


def test_a_picture_of_a_mask_lies_on_a_film_pixel_by_pixel() -> None:
    film = Grid((6, 5, 1), np.array([[-0.14, 0, 0, 0], [0, 0, -1, 0], [0, -0.14, 0, 0], [0, 0, 0, 1]]))
    source = Source("dicom", "00", placed=False, oriented=True)
    placed = Heatmap(np.arange(30, dtype=np.float32).reshape(film.shape), film, source, RECIPE, "lesion (class 0)", 1.0)
    pixels = np.zeros(film.shape, np.uint8)
    pixels[5, 4] = 255
    picture = Source("picture", "00", oriented=False, placed=False, spaced=False)
    unit = Grid(film.shape, np.array([[-1.0, 0, 0, 0], [0, 0, -1, 0], [0, -1, 0, 0], [0, 0, 0, 1]]))
    for at_least in (None, 0.5):
        found = lesion_on(placed, Volume(pixels, unit, "a.u.", picture), at_least=at_least)
        np.testing.assert_array_equal(found, pixels > 0)
    assert peak_in_lesion(placed, Volume(pixels, unit, "a.u.", picture)) is True


def test_a_mask_whose_sides_are_unknown_is_refused() -> None:
    nowhere = Source("nifti", "00", oriented=False, placed=False)
    with pytest.raises(GeometryError, match="which of its slices and sides"):
        lesion_on(heatmap(), Volume(np.ones(GRID.shape, np.uint8), GRID, "a.u.", nowhere))
    film = Grid((6, 5, 1), np.array([[-1.0, 0, 0, 0], [0, 0, -1, 0], [0, -1, 0, 0], [0, 0, 0, 1]]))
    upward = Grid((6, 5, 1), np.array([[-1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, -4], [0, 0, 0, 1]]))
    picture = Source("picture", "00", oriented=False, placed=False)
    placed = Heatmap(np.ones(film.shape, np.float32), film, picture, RECIPE, "lesion (class 0)", 1.0)
    with pytest.raises(GeometryError, match="might lie mirrored"):
        lesion_on(placed, Volume(np.ones(film.shape, np.uint8), upward, "a.u.", Source("nifti", "00")))
    assert lesion_on(placed, Volume(np.ones(film.shape, np.uint8), film, "a.u.", Source("nifti", "00"))).all()


def test_a_mask_that_was_laid_on_a_heatmap_lies_there_for_whoever_asks_again() -> None:
    film = Grid((6, 5, 1), np.array([[-0.14, 0, 0, 0], [0, 0, -1, 0], [0, -0.14, 0, 0], [0, 0, 0, 1]]))
    unit = Grid(film.shape, np.array([[-1.0, 0, 0, 0], [0, 0, -1, 0], [0, -1, 0, 0], [0, 0, 0, 1]]))
    pixels = np.zeros(film.shape, np.uint8)
    pixels[5, 4] = 255
    drawn = Volume(pixels, unit, "label", Source("picture", "00", oriented=False, placed=False, spaced=False))
    for placed in (True, False):
        source = Source("dicom", "00", placed=placed)
        shown = Heatmap(np.ones(film.shape, np.float32), film, source, RECIPE, "lesion (class 0)", 1.0)
        laid = laid_on(shown, drawn)
        assert laid.grid == film
        np.testing.assert_array_equal(laid.voxels, pixels > 0)
        np.testing.assert_array_equal(lesion_on(shown, laid), pixels > 0)
    fine = ball(
        Grid((60, 60, 60), np.diag([1.0, 1, 1, 1]) + np.pad((CENTRE - 30)[:, None], ((0, 1), (3, 0)))), CENTRE, 4.0
    )
    np.testing.assert_array_equal(
        laid_on(heatmap(), fine, at_least=0.3).voxels, lesion_on(heatmap(), fine, at_least=0.3)
    )
