"""The example app of MONAI Label, in the real MONAI Label where there is one, and its task alone against a double of the interface.

MEDCAM_MONAILABEL_PYTHON names a Python that has monailabel 0.8.5, which asks for older packages than medcam does and so lives apart.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from conftest import blob, oblique_grid

ROOT = Path(__file__).parents[2]
APP = ROOT / "examples" / "monai_label_app"


class Double:
    """What the task takes of MONAI Label's `BasicInferTask`, in our own words: steps in their order, without its writer."""

    def __init__(self, **given: Any) -> None:
        self.given, self.labels = given, given["labels"]
        self.output_label_key, self.output_json_key = "pred", "result"

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        data = {**self.given["config"], **request, "image_path": request["image"]}
        assert self.is_valid()
        assert self.pre_transforms(data) == []
        data = self.run_inferer(data, device="cpu")
        assert self.post_transforms(data) == []
        return data


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The task's module, on the double."""
    doubles = {
        "monailabel.interfaces.exception": {
            "MONAILabelError": types.SimpleNamespace(INFERENCE_ERROR="INFERENCE_ERROR"),
            "MONAILabelException": type("MONAILabelException", (Exception,), {}),
        },
        "monailabel.interfaces.tasks.infer_v2": {"InferType": types.SimpleNamespace(SEGMENTATION="segmentation")},
        "monailabel.tasks.infer.basic_infer": {"BasicInferTask": Double},
    }
    for name, content in doubles.items():
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        vars(sys.modules[name]).update(content)
    monkeypatch.syspath_prepend(str(APP))
    yield importlib.import_module("lib.heatmap")
    for name in ("lib", "lib.heatmap"):
        sys.modules.pop(name, None)


def test_a_label_counts_the_bands_that_a_voxel_reaches(module: Any) -> None:
    relevance = blob(oblique_grid(), oblique_grid().world_mm(np.array([12, 20, 9]))) * 3
    relevance[0] = np.nan
    relevance[1] = -5
    labels = module.bands(relevance, (0.2, 0.5, 0.9))
    share = np.nan_to_num(relevance / 3, nan=0)
    assert np.array_equal(labels, np.digitize(share, np.float32([0.2, 0.5, 0.9])))
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    for nothing in (np.zeros((3, 4, 5)), np.full((3, 4, 5), np.nan), -np.ones((3, 4, 5))):
        assert not module.bands(nothing).any()


def stand_in(folder: Path, answer: dict[str, Any], code: int = 0) -> str:
    """A program in place of Python with medcam, that notes what it is asked."""
    (folder / "answer.json").write_text(json.dumps(answer))
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/asked\ncat {folder}/answer.json\nexit {code}\n')
    script.chmod(0o755)
    return str(script)


def test_what_the_client_chose_is_asked_and_the_answer_is_told(module: Any, tmp_path: Path) -> None:
    grid = oblique_grid()
    relevance = blob(grid, grid.world_mm(np.array([12, 20, 9])))
    nibabel.Nifti1Image(relevance, grid.affine).to_filename(tmp_path / "x_gradcam.nii.gz")
    answer = {
        "ok": True, "files": [str(tmp_path / "x_gradcam.nii.gz"), str(tmp_path / "x_gradcam_label.nii.gz")], "score": 2.0,
        "target": "lesion", "probability": 0.9, "peak": None, "notes": ["A note."], "recipe": {"method": "layer-cam"},
    }  # fmt: skip
    task = module.HeatmapInfer("net.pt2", tmp_path / "out", python=stand_in(tmp_path, answer))
    data = task({"image": "head.nii.gz", "method": "layer-cam", "target": "lesion"})
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == [
        "-m", "medcam", "explain", "head.nii.gz", "--model", "net.pt2", "--device", "cpu", "--method", "layer-cam", "--target",
        "lesion", "--formats", "nifti", "--out", str(tmp_path / "out"), "--json", "--quiet",
    ]  # fmt: skip
    assert np.array_equal(np.asarray(data["pred"]), module.bands(relevance))
    assert np.allclose(data["pred"].affine, grid.affine)
    assert data["result"]["heatmap_file"] == answer["files"][0]
    assert data["result"]["method"] == "layer-cam"
    # Where the client chose nothing, all choices come as a list, of which the first is the default.
    task({"image": "head.nii.gz"})
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[asked.index("--method") + 1] == module.METHODS[0]
    assert "--target" not in asked


def test_an_error_of_medcam_reaches_the_client_in_its_words(module: Any, tmp_path: Path) -> None:
    python = stand_in(tmp_path, {"ok": False, "error": "class 9 does not exist"}, 2)
    with pytest.raises(module.MONAILabelException, match="class 9 does not exist"):
        module.HeatmapInfer("net", tmp_path, python=python)({"image": "x"})
    (tmp_path / "answer.json").write_text("")
    with pytest.raises(module.MONAILabelException, match="has no medcam that runs"):
        module.HeatmapInfer("net", tmp_path, python=python)({"image": "x"})


@pytest.mark.slow
def test_in_the_real_monai_label_the_bands_lie_where_the_heatmap_does(tmp_path: Path) -> None:
    python = os.environ.get("MEDCAM_MONAILABEL_PYTHON")
    if not python:
        pytest.skip("MEDCAM_MONAILABEL_PYTHON names no Python that has monailabel")
    (tmp_path / "studies").mkdir()
    (tmp_path / "kept").mkdir()
    shutil.copy(ROOT / "data_samples" / "mri" / "head_flair.nii.gz", tmp_path / "studies")
    requests = [{"image": "head_flair"}, {"image": "head_flair", "target": "9"}]
    command = [python, str(Path(__file__).with_name("asked_monailabel.py")), str(APP), str(tmp_path / "studies")]
    command += [json.dumps(requests), sys.executable, str(tmp_path / "kept")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "false"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    first, refused = json.loads(done.stdout.splitlines()[-1])
    labels = nibabel.load(tmp_path / "kept" / "0.nii.gz")
    heatmap = nibabel.load(first["params"]["heatmap_file"])
    assert np.allclose(labels.affine, heatmap.affine, atol=1e-4)
    assert labels.shape == nibabel.load(tmp_path / "studies" / "head_flair.nii.gz").shape
    found, relevance = np.asarray(labels.dataobj), heatmap.get_fdata()
    expected = np.digitize(np.nan_to_num(relevance / np.nanmax(relevance)), (0.3, 0.5, 0.7, 0.9))
    assert np.array_equal(found, expected)
    assert set(np.unique(found)) == {0, 1, 2, 3, 4}
    peak = first["params"]["peak"]
    assert found[tuple(peak["voxel"])] == 4
    assert first["info"]["type"] == "segmentation"
    assert list(first["params"]["label_names"].values()) == [1, 2, 3, 4]
    assert "class 9 does not exist" in refused["error"]
