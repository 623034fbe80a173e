"""A heatmap and a lesion on grids of their own, and what the layer's cells could show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from conftest import blob, made_volume, oblique_grid
from medcam.errors import GeometryError, UsageError
from medcam.geometry import Grid, resample
from medcam.recipe import Recipe
from medcam.validate.ceiling import ceiling
from medcam.validate.heatmaps import measure_heatmap
from medcam.validate.localization import lesion_on
from medcam.validate.measures import Settings
from medcam.validate.measuring import measure
from medcam.validate.ranked import Ranked
from medcam.validate.scene import Scene
from medcam.volume import Heatmap, Source, Volume

GRID = oblique_grid()
CENTRE = GRID.world_mm(np.array([12.0, 20.0, 9.0]))
# Cells of 4 x 5 x 3 voxels that begin at the grid's own first corner.
CELLS = Recipe(
    "net", "ab", "grad-cam", "features", "lesion (class 0)",
    input_shape=(1, 1, 31, 37, 23), feature_shape=(8, 8, 8), stride=(4.0, 5.0, 3.0), offset=(1.5, 2.0, 1.0),
)  # fmt: skip
QUICK = Settings(draws=0)


def heatmap(
    relevance: np.ndarray | None = None, grid: Grid = GRID, recipe: Recipe = CELLS, source: Source | None = None
) -> Heatmap:
    values = blob(grid, CENTRE) if relevance is None else relevance
    return Heatmap(values, grid, source or Source("array", "00"), recipe, "lesion (class 0)", 1.0)


def ball(grid: Grid, centre: np.ndarray, radius_mm: float) -> Volume:
    return made_volume((blob(grid, centre, 1.0) > np.exp(-0.5 * radius_mm**2)).astype(np.uint8), grid)


def test_a_lesion_on_another_grid_is_measured_on_the_heatmaps() -> None:
    fine = Grid((60, 56, 52), np.diag([1.0, 1, 1, 1]) + np.pad((CENTRE - 28)[:, None], ((0, 1), (3, 0))))
    lesion = ball(fine, CENTRE + 2.0, 6.0)
    found = measure_heatmap(heatmap(), lesion, settings=QUICK)
    direct = measure(heatmap().relevance, lesion_on(heatmap(), lesion), spacing_mm=GRID.spacing_mm, settings=QUICK)
    for name, number in direct.numbers.items():
        assert found.numbers[name].value == pytest.approx(number.value, nan_ok=True), name
    assert found.numbers["hit"].value == 1
    exact = 4 / 3 * np.pi * 6.0**3 / 1000
    assert found.numbers["lesion_size"].value == pytest.approx(exact, rel=0.05)


def test_distances_are_millimetres_in_the_patient_on_an_oblique_grid() -> None:
    away = np.array([14.0, -9.0, 6.0])
    found = measure_heatmap(heatmap(), ball(GRID, CENTRE + away, 5.0), settings=QUICK).numbers
    voxel = float(np.linalg.norm(GRID.spacing_mm))
    assert found["peak_distance"].value == pytest.approx(np.linalg.norm(away) - 5.0, abs=voxel)
    assert found["centre_distance@half-max"].value == pytest.approx(np.linalg.norm(away), abs=voxel / 2)


def test_evidence_counts_inside_the_organ_only() -> None:
    organ = ball(GRID, CENTRE, 12.0)
    lesion = ball(GRID, CENTRE + 3.0, 4.0)
    inside = measure_heatmap(heatmap(), lesion, organ=organ, settings=QUICK).numbers
    whole = measure_heatmap(heatmap(), lesion, settings=QUICK).numbers
    assert inside["prevalence"].value == pytest.approx(lesion.voxels.sum() / organ.voxels.sum())
    assert inside["auroc"].value < whole["auroc"].value


def ceiling_by_loops(lesion: np.ndarray) -> np.ndarray:
    """The mean of the lesion over each cell of 4 x 5 x 3 voxels, what lies beyond the image being none of it."""
    wide = np.zeros((32, 40, 24))
    wide[: lesion.shape[0], : lesion.shape[1], : lesion.shape[2]] = lesion
    return wide.reshape(8, 4, 8, 5, 8, 3).mean(axis=(1, 3, 5)).astype(np.float32)


def shown(lesion: np.ndarray, input_grid: Grid = GRID) -> np.ndarray:
    return ceiling(
        lesion, GRID, input_grid=input_grid, feature_shape=CELLS.feature_shape, stride=CELLS.stride, offset=CELLS.offset
    )


def test_the_ceiling_is_the_lesions_mean_over_each_cell_put_back_as_maps_are() -> None:
    lesion = ball(GRID, CENTRE, 6.0).voxels > 0
    cells = GRID.coarsened((8, 8, 8), (4.0, 5.0, 3.0), (1.5, 2.0, 1.0))
    expected = resample(ceiling_by_loops(lesion), cells, GRID, within=GRID)
    np.testing.assert_allclose(shown(lesion), expected, atol=1e-6)


def test_beyond_the_outermost_cells_the_nearest_one_speaks_up_to_the_edge_of_what_the_network_saw() -> None:
    lesion = np.zeros(GRID.shape, bool)
    lesion[4:20, 5:30, 3:15] = True
    inner = ceiling(
        lesion, GRID, input_grid=GRID, feature_shape=(6, 6, 6), stride=(4.0, 5.0, 3.0), offset=(5.5, 7.0, 4.0)
    )
    assert not np.isnan(inner).any()
    np.testing.assert_array_equal(inner[0], inner[5])
    np.testing.assert_array_equal(inner[:, 0], inner[:, 7])


def test_the_ceiling_looks_only_where_the_heatmap_looked() -> None:
    hidden = blob(GRID, CENTRE)
    hidden[:, :, 10:] = np.nan
    lesion = ball(GRID, CENTRE, 6.0)
    found = measure_heatmap(heatmap(hidden), lesion, settings=QUICK).numbers
    s = Scene(np.where(np.isnan(hidden), hidden, shown(lesion.voxels > 0)), lesion.voxels > 0, GRID.spacing_mm)
    assert 0 < s.lesion_left_out < 1
    assert found["ceiling_average_precision"].value == pytest.approx(Ranked.of(s).average_precision())
    assert found["ceiling_mass_in_lesion"].value == pytest.approx(s.positive[s.lesion].sum() / s.positive.sum())


def test_cells_of_one_voxel_show_the_lesion_itself() -> None:
    lesion = ball(GRID, CENTRE, 6.0).voxels > 0
    exact = ceiling(
        lesion, GRID, input_grid=GRID, feature_shape=GRID.shape, stride=(1.0, 1.0, 1.0), offset=(0.0, 0.0, 0.0)
    )
    np.testing.assert_allclose(exact, lesion, atol=1e-6)
    recipe = replace(CELLS, feature_shape=GRID.shape, stride=(1.0, 1.0, 1.0), offset=(0.0, 0.0, 0.0))
    found = measure_heatmap(heatmap(recipe=recipe), ball(GRID, CENTRE, 6.0), settings=QUICK).numbers
    assert found["ceiling_average_precision"].value == found["ceiling_dice"].value == 1
    assert found["average_precision_of_ceiling"].value == found["average_precision"].value


def test_coarser_cells_lower_the_ceiling_and_a_small_lesion_feels_it_most() -> None:
    def best(radius_mm: float, factor: float) -> float:
        recipe = replace(CELLS, stride=(4 * factor, 5 * factor, 3 * factor), feature_shape=(int(8 / factor),) * 3)
        found = measure_heatmap(heatmap(recipe=recipe), ball(GRID, CENTRE, radius_mm), settings=QUICK)
        return found.numbers["ceiling_dice"].value

    assert best(9.0, 1.0) > best(9.0, 2.0) > best(3.0, 2.0)
    assert best(9.0, 1.0) > best(3.0, 1.0)


def test_the_map_that_the_cells_can_give_reaches_the_ceiling() -> None:
    lesion = ball(GRID, CENTRE, 6.0)
    found = measure_heatmap(heatmap(shown(lesion.voxels > 0)), lesion, settings=QUICK).numbers
    for name in ("average_precision", "mass_in_lesion", "dice"):
        assert found[f"{name}_of_ceiling"].value == pytest.approx(1), name
    assert found["ceiling_dice"].oracle
    s = Scene(shown(lesion.voxels > 0), lesion.voxels > 0, GRID.spacing_mm)
    assert found["ceiling_average_precision"].value == pytest.approx(Ranked.of(s).average_precision())


def test_a_network_that_saw_another_grid_has_its_cells_there() -> None:
    lesion = ball(GRID, CENTRE, 6.0)
    turned = Grid((23, 37, 31), GRID.affine[:, [2, 1, 0, 3]], GRID.frame_of_reference)
    recipe = replace(
        CELLS, preprocessing=("Orientation",), feature_shape=(8, 8, 8), stride=(3.0, 5.0, 4.0), offset=(1.0, 2.0, 1.5)
    )
    without = measure_heatmap(heatmap(recipe=recipe), lesion, settings=QUICK).numbers["ceiling_dice"]
    assert (np.isnan(without.value), without.why) == (True, "the grid of the network's input is not given")
    given = measure_heatmap(heatmap(recipe=recipe), lesion, input_grid=turned, settings=QUICK).numbers["ceiling_dice"]
    same = measure_heatmap(heatmap(), lesion, settings=QUICK).numbers["ceiling_dice"]
    assert given.value == pytest.approx(same.value)


def test_without_cells_or_without_a_lesion_there_is_no_ceiling() -> None:
    lesion = ball(GRID, CENTRE, 6.0)
    bare = replace(CELLS, feature_shape=(), stride=(), offset=())
    unknown = measure_heatmap(heatmap(recipe=bare), lesion, settings=QUICK).numbers
    assert unknown["ceiling_dice"].why == "the recipe does not say where the map's cells lie"
    assert unknown["dice_of_ceiling"].why == "the recipe does not say where the map's cells lie"
    empty = made_volume(np.zeros(GRID.shape, np.uint8), GRID)
    none = measure_heatmap(heatmap(), empty, settings=QUICK).numbers
    assert none["ceiling_average_precision"].why == "the lesion mask is empty"
    with pytest.raises(UsageError, match="cells lie"):
        ceiling(lesion.voxels > 0, GRID, input_grid=GRID, feature_shape=(8,), stride=(4.0,), offset=(0.0,))


def test_a_film_has_cells_in_two_dimensions() -> None:
    grid = oblique_grid((30, 40, 1))
    lesion = np.zeros(grid.shape, bool)
    lesion[10:20, 5:15] = True
    map_ = ceiling(lesion, grid, input_grid=grid, feature_shape=(6, 8), stride=(5.0, 5.0), offset=(2.0, 2.0))
    cells = lesion.reshape(6, 5, 8, 5).mean(axis=(1, 3))
    np.testing.assert_allclose(map_[2::5, 2::5, 0], cells, atol=1e-6)


def test_a_picture_of_unknown_size_is_measured_in_pixels_and_has_no_volume() -> None:
    grid = oblique_grid((31, 37, 1), (1.0, 1.0, 1.0))
    centre = grid.world_mm(np.array([12.0, 20.0, 0.0]))
    source = Source("picture", "00", placed=False, spaced=False)
    lesion = ball(grid, centre + 8.0, 5.0)
    lesion = replace(lesion, source=replace(lesion.source, placed=False, oriented=False))
    found = measure_heatmap(heatmap(blob(grid, centre), grid, source=source), lesion, settings=QUICK).numbers
    assert found["peak_distance"].unit == "pixels"
    assert np.isnan(found["lesion_size"].value)
    assert found["lesion_size"].why == "the image does not say how large a pixel is"


def test_a_sheared_grid_is_refused_since_its_millimetres_do_not_add_up() -> None:
    affine = GRID.affine.copy()
    affine[:3, 2] += 0.2 * affine[:3, 1]
    sheared = Grid(GRID.shape, affine)
    with pytest.raises(GeometryError, match="not at right angles"):
        measure_heatmap(heatmap(grid=sheared), ball(sheared, CENTRE, 5.0), settings=QUICK)


def test_lengths_in_pixels_are_called_so_in_names_too() -> None:
    film = Grid((31, 37, 1), np.diag([1.0, 1.0, 1.0, 1.0]))
    spot, lesion = np.zeros(film.shape, np.float32), np.zeros(film.shape, np.uint8)
    spot[4, 9], lesion[12:17, 9:15] = 1.0, 1
    settings = Settings(draws=0, tolerances_mm=(7.5, 8.0))
    known, unknown = (
        measure_heatmap(
            heatmap(spot, film, source=Source("array", "00", spaced=spaced)),
            made_volume(lesion, film),
            settings=settings,
        )
        for spaced in (True, False)
    )
    assert (unknown.numbers["peak_distance"].value, unknown.numbers["peak_distance"].unit) == (8.0, "pixels")
    assert (unknown.numbers["hit_within_7.5px"].value, unknown.numbers["hit_within_8px"].value) == (0.0, 1.0)
    assert "surface_dice_8px@half-max" in unknown.numbers
    assert "lesion_recall_peak_within_8px" in unknown.numbers
    assert not [name for name in unknown.numbers if "mm" in name]
    assert [name.replace("px", "mm") for name in unknown.numbers] == list(known.numbers)
    assert unknown.numbers["lesion_size"].why == "the image does not say how large a pixel is"
    assert np.isnan(unknown.lesions[0].size)
    assert known.lesions[0].size == pytest.approx(0.3)
