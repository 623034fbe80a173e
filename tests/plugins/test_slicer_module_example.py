"""The example module of 3D Slicer, on 3D Slicer's own library: nodes, files and displays are real, its window is doubled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import medcam

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "examples" / "slicer_module" / "MedcamHeatmap"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the module did there."""
    python = os.environ.get("MEDCAM_SLICER_PYTHON")
    if not python:
        pytest.skip("MEDCAM_SLICER_PYTHON names no Python that has slicer-core, 3D Slicer's own library")
    folder = tmp_path_factory.mktemp("slicer")
    shutil.copy(ROOT / "data_samples" / "mri" / "head_flair.nii.gz", folder)
    asked = [python, str(Path(__file__).with_name("asked_slicer_module.py")), str(MODULE), str(folder), sys.executable]
    done = subprocess.run(
        asked, capture_output=True, text=True, timeout=280, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ERR|" not in done.stderr, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "answer.json").read_text())
    return found


def test_the_heatmap_lies_on_the_volume_and_over_it_in_all_views(answer: dict[str, Any]) -> None:
    first, image = answer["first"], nibabel.load(ROOT / "data_samples" / "mri" / "head_flair.nii.gz")
    assert answer["errors"] == []
    assert np.allclose(first["matrix"], image.affine, atol=1e-3)
    assert first["shape"] == list(image.shape)
    lesion = nibabel.load(ROOT / "data_samples" / "mri" / "head_lesion.nii.gz").get_fdata()
    assert lesion[tuple(first["peak"])] > 0
    assert first["foreground"] == [True] * 3
    assert first["background"] == [True] * 3
    peak = image.affine @ [*first["peak"], 1]
    for view in first["views"]:
        assert np.abs(np.array(view) - peak[:3]).min() < max(image.header.get_zooms())


def test_it_is_the_heatmap_that_medcam_gives(answer: dict[str, Any]) -> None:
    image = medcam.read(ROOT / "data_samples" / "mri" / "head_flair.nii.gz")
    heatmap = medcam.explain(image, "demo-mri")
    # 3D Slicer hands the image on with a spacing that differs in its eighth digit, by which MONAI's Spacing gives one slice less here.
    assert answer["first"]["maximum"] == pytest.approx(heatmap.maximum, rel=0.05)
    assert answer["first"]["peak"] == list(heatmap.peak().voxel)
    assert answer["first"]["target"] == heatmap.target
    assert answer["first"]["notes"]


def test_colours_begin_at_the_threshold_and_the_slider_moves_it(answer: dict[str, Any]) -> None:
    maximum = answer["first"]["maximum"]
    assert answer["first"]["colours"] == "colours of relevance"
    assert answer["first"]["threshold"] == pytest.approx(0.4 * maximum, rel=1e-3)
    assert answer["raised"] == pytest.approx(0.8 * maximum, rel=1e-3)


def test_a_volume_under_a_transform_takes_its_heatmap_along(answer: dict[str, Any]) -> None:
    first, second = answer["first"], answer["second"]
    assert second["transform"]
    assert np.allclose(second["matrix"], first["matrix"], atol=1e-3)
    assert second["peak"] == first["peak"]
    # The views jump to where the peak is now: 30 mm further to the right.
    apart = np.array(second["views"]) - np.array(first["views"])
    assert np.abs(apart - [30, 0, 0]).max() < 1e-3


def test_the_window_lives_meanwhile_and_what_goes_wrong_is_told_in_words(answer: dict[str, Any]) -> None:
    assert answer["events"] > 5
    assert "lesion (class 0), score " in answer["words"]
    assert "Research use only" in answer["words"]
    refused, missing, empty = answer["wrong"]
    assert "class 9 does not exist" in refused
    assert "there is no Python at" in missing
    assert "choose a volume" in empty


def test_the_modules_own_test_passes(answer: dict[str, Any]) -> None:
    assert answer["own"] == ["Test passed"]
