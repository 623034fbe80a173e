"""Volumes, heatmaps, and recipes as values."""

from __future__ import annotations

import json

import numpy as np
import pytest

from conftest import made_volume, oblique_grid
from medcam.errors import GeometryError, InputError, UsageError
from medcam.recipe import Recipe
from medcam.volume import Frame, Heatmap, Source

RECIPE = Recipe(
    model="net", model_sha256="ab", method="grad-cam", layer="features", target="lesion (class 0)",
    preprocessing=("Resize",), inputs=("cd",), stride=(4.0, 4.0), versions={"medcam": "1"},
)  # fmt: skip


def heatmap(values: np.ndarray) -> Heatmap:
    grid = oblique_grid(values.shape)
    return Heatmap(values, grid, Source("array", "00"), RECIPE, "lesion (class 0)", 1.5)


def test_the_peak_is_given_in_millimetres() -> None:
    values = np.full((4, 5, 6), np.nan, np.float32)
    values[1, 2, 3], values[3, 3, 3] = 2.0, -5.0
    peak = heatmap(values).peak()
    assert peak is not None
    assert peak.voxel == (1, 2, 3)
    np.testing.assert_allclose(peak.world_mm, oblique_grid((4, 5, 6)).world_mm(np.array([1, 2, 3])))


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_a_map_that_speaks_for_nothing_has_neither_peak_nor_mask(value: float) -> None:
    flat = heatmap(np.full((3, 4, 5), value, np.float32))
    assert flat.peak() is None
    assert not flat.mask(0.5).any()


def test_a_mask_is_cut_at_a_fraction_of_the_maximum_and_leaves_out_the_unseen() -> None:
    values = np.array([-4, 0, 1.9, 2, 4, np.nan], np.float32).reshape(1, 2, 3)
    assert heatmap(values).mask(0.5).ravel().tolist() == [False, False, False, True, True, False]


def test_a_slice_stays_in_its_place() -> None:
    grid = oblique_grid((4, 5, 6))
    volume = made_volume(np.arange(120.0).reshape(4, 5, 6), grid)
    cut = volume.slice(4)
    np.testing.assert_array_equal(cut.voxels[:, :, 0], volume.voxels[:, :, 4])
    np.testing.assert_allclose(cut.grid.world_mm(np.array([2, 3, 0])), grid.world_mm(np.array([2, 3, 4])))
    with pytest.raises(UsageError, match="slices 0 to 5"):
        volume.slice(6)


def test_voxels_and_grid_must_agree() -> None:
    with pytest.raises(GeometryError, match="cannot lie"):
        made_volume(np.zeros((5, 4, 6)), oblique_grid((4, 5, 6)))


def test_voxels_cannot_be_written_to_and_the_callers_array_still_can() -> None:
    mine = np.zeros((4, 5, 6), np.float32)
    volume = made_volume(mine, oblique_grid((4, 5, 6)))
    with pytest.raises(ValueError, match="read-only"):
        volume.voxels[0, 0, 0] = 1
    mine[0, 0, 0] = 1


def test_the_repr_of_a_source_names_no_patient() -> None:
    source = Source("dicom", "00", instances=({"PatientName": "DOE^JANE"},), slices=(Frame(0),))
    assert "DOE" not in repr(source)


def test_a_recipe_survives_json() -> None:
    assert Recipe.from_json(json.loads(json.dumps(RECIPE.to_json()))) == RECIPE


@pytest.mark.parametrize(
    ("change", "words"),
    [({"recipe_version": 7}, "version 7"), ({"colour": "red"}, "no entry named colour"), ({"model": None}, None)],
)
def test_a_recipe_of_another_kind_is_refused(change: dict[str, object], words: str | None) -> None:
    values = RECIPE.to_json() | change
    if words is None:
        del values["model"]
    with pytest.raises(InputError, match=words or "not complete"):
        Recipe.from_json(values)
