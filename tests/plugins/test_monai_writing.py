"""Heatmaps of a user's own chain in medcam's formats: the same place and the same numbers as `medcam.explain` and `medcam.write`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from monai import transforms as mt
from monai.data import MetaTensor
from PIL import Image
from test_pipeline import BrightestCell

import medcam
from conftest import blob, made_volume, oblique_grid
from formats.dicom_phantom import GEOMETRIES, write_series
from medcam.errors import GeometryError, InputError, UsageError
from medcam.geometry import Grid
from medcam.plugins.maps import findings_of
from medcam.plugins.transforms import Explaind
from medcam.plugins.writing import WriteHeatmapd, heatmaps_of

GRID = oblique_grid((40, 44, 30), (1.2, 1.0, 2.0))


def steps() -> list[Any]:
    crop = mt.CropForegroundd("image", source_key="image", select_fn=lambda x: x > 1e-4, margin=3)
    return [mt.Orientationd("image", "RAS"), mt.Spacingd("image", (1.5, 1.5, 1.5)), crop]


def reading() -> list[Any]:
    return [mt.LoadImaged("image"), mt.EnsureChannelFirstd("image")]


def test_one_interpolation_leads_where_medcams_own_leads(tmp_path: Path) -> None:
    path = tmp_path / "case.nii.gz"
    nibabel.save(nibabel.Nifti1Image(blob(GRID, GRID.world_mm(np.array([25.0, 12, 21])), 3.0), GRID.affine), path)
    network = BrightestCell().eval()
    chain = mt.Compose(
        [
            *reading(),
            *steps(),
            Explaind("image", network, targets=[1, 0]),
            WriteHeatmapd("image_heatmap", tmp_path / "out", formats="nifti"),
        ]
    )
    sample = chain({"image": str(path)})
    written = {
        json.loads(p.read_text())["target"]: p for p in (tmp_path / "out").glob("*.json") if "_label" not in p.name
    }
    assert set(written) == {"class 0", "class 1"}
    known = medcam.explain(medcam.read(path), network, target=1, preprocessing=mt.Compose(steps()))
    found = nibabel.load(written["class 1"].with_suffix("").with_suffix(".nii.gz"))
    np.testing.assert_allclose(found.affine, GRID.affine, atol=1e-5)
    assert np.corrcoef(found.get_fdata().ravel(), np.nan_to_num(known.relevance).ravel())[0, 1] > 0.99
    heatmap, _ = heatmaps_of(sample["image_heatmap"], findings_of(sample["image_heatmap_recipes"]), medcam.read(path))
    np.testing.assert_array_equal(np.isfinite(heatmap.relevance), np.isfinite(known.relevance))
    assert heatmap.score == pytest.approx(known.score, rel=1e-5)
    assert heatmap.probability == pytest.approx(known.probability, rel=1e-5)
    assert heatmap.recipe.inputs == known.recipe.inputs
    assert (heatmap.recipe.method, heatmap.recipe.layer, heatmap.target) == ("grad-cam", known.recipe.layer, "class 1")


def test_a_dicom_series_gets_a_dicom_object_of_its_own_patient(tmp_path: Path) -> None:
    grid = Grid((29, 24, 18), GEOMETRIES["oblique"])
    write_series(
        tmp_path / "study",
        (1000 * blob(grid, grid.world_mm(np.array([18.0, 8, 11])), 5.0)).astype(np.int16),
        grid.affine,
    )
    chain = mt.Compose(
        [
            *reading(), mt.Orientationd("image", "RAS"), mt.Spacingd("image", (1.5, 1.5, 1.5)), mt.ScaleIntensityd("image"),
            Explaind("image", BrightestCell().eval(), targets=1), WriteHeatmapd("image_heatmap", tmp_path / "out", formats=["dicom-seg"]),
        ]
    )  # fmt: skip
    chain({"image": str(tmp_path / "study")})
    (path,) = (tmp_path / "out").iterdir()
    made, source = pydicom.dcmread(path), pydicom.dcmread(next((tmp_path / "study").iterdir()))
    assert made.Modality == "SEG"
    assert (made.PatientID, made.StudyInstanceUID, made.FrameOfReferenceUID) == (
        source.PatientID, source.StudyInstanceUID, source.FrameOfReferenceUID,
    )  # fmt: skip


def test_a_film_is_written_once_it_is_back_on_its_pixels(tmp_path: Path) -> None:
    path = tmp_path / "film.png"
    film = np.random.default_rng(1).integers(0, 60, (44, 36), dtype=np.uint8)
    film[8:20, 20:30] += 150
    Image.fromarray(film).save(path)
    before = mt.Compose([*reading(), mt.ScaleIntensityd("image"), mt.Resized("image", (32, 40))])
    explain, save = (
        Explaind("image", BrightestCell(2).eval(), targets=1),
        WriteHeatmapd("image_heatmap", tmp_path / "out", formats="nifti"),
    )
    sample = explain(before({"image": str(path)}))
    with pytest.raises(GeometryError, match="put Invertd before it"):
        save(sample)
    save(mt.Invertd("image_heatmap", before, "image", nearest_interp=False)(sample))
    (written,) = [p for p in (tmp_path / "out").glob("*.nii.gz") if "_label" not in p.name]
    found = nibabel.load(written).get_fdata().squeeze()
    i, j = np.unravel_index(found.argmax(), found.shape)
    assert 20 <= i < 30
    assert 8 <= j < 20


def test_what_cannot_be_written_is_refused_in_words(tmp_path: Path) -> None:
    save = WriteHeatmapd("h", tmp_path)
    volume = MetaTensor(np.zeros((1, 4, 5, 6), np.float32), affine=np.eye(4))
    with pytest.raises(UsageError, match="write what Explaind made"):
        save({"h": volume})
    with pytest.raises(InputError, match="does not know the file"):
        save({"h": volume, "h_recipes": "[]"})
    with pytest.raises(InputError, match="not a heatmap's recipes"):
        findings_of('{"recipe": 3}')
    away = MetaTensor(np.zeros((1, 4, 5, 6), np.float32), affine=np.diag([1.0, 1, 1, 1]))
    away.affine[:3, 3] = 9000.0
    with pytest.raises(GeometryError, match="nowhere in the image"):
        heatmaps_of(away, (), made_volume(np.zeros(GRID.shape, np.float32), GRID))
