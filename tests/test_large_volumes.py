"""Sliding windows from the file to the heatmap: where the peak lies, what a bundle says, what the recipe keeps."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai import transforms as mt
from torch import nn

from conftest import blob, made_volume, oblique_grid
from engine.test_windows import Blobs
from medcam.cli import main
from medcam.errors import UsageError
from medcam.models import load_model
from medcam.pipeline import explain
from medcam.recipe import Recipe
from models.bundle_phantom import INFERENCE, with_item, write_bundle

GRID = oblique_grid((40, 44, 30), (1.2, 1.0, 2.0))
SLIDING = {
    "_target_": "SlidingWindowInferer", "roi_size": "@patch", "sw_batch_size": 2, "overlap": "$1 / 2", "mode": "gaussian",
}  # fmt: skip


@pytest.mark.parametrize("index", [(8.0, 30.0, 6.0), (31.0, 12.0, 21.0)])
@pytest.mark.parametrize("exact", [False, True])
def test_the_peak_comes_back_to_its_place_in_the_patient(index: tuple[float, float, float], exact: bool) -> None:
    centre = GRID.world_mm(np.array(index))
    volume = made_volume(blob(GRID, centre, 4.0), GRID)
    chain = mt.Compose([mt.Orientationd("image", "RAS"), mt.Spacingd("image", (1.5, 1.5, 1.5))])
    heatmap = explain(
        volume,
        Blobs(3).eval(),
        target=1,
        layer="features",
        preprocessing=chain,
        window=(16, 24, 16),
        overlap=0.4,
        exact=exact,
    )
    peak = heatmap.peak()
    assert peak is not None
    # Half a cell of 4 voxels of 1.5 mm along each axis.
    assert (np.abs(np.array(peak.world_mm) - centre) <= 3.0 + 1.0).all()
    assert heatmap.grid == GRID
    assert heatmap.recipe.windows == {
        "roi_size": [16, 24, 16], "overlap": 0.4, "mode": "gaussian", "sigma_scale": 0.125, "padding_mode": "constant", "cval": 0.0,
        "sw_batch_size": 1, "exact": exact,
    }  # fmt: skip
    assert Recipe.from_json(json.loads(json.dumps(heatmap.recipe.to_json()))) == heatmap.recipe


def test_a_bundle_is_explained_in_the_windows_that_it_predicts_in(tmp_path: Path) -> None:
    config = {**INFERENCE, "patch": "$[16, 16, 8 * 2]", "inferer": SLIDING}
    model = load_model(write_bundle(tmp_path / "lesions", inference=config))
    assert model.windows == {
        "roi_size": [16, 16, 16], "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian", "sigma_scale": 0.125,
        "padding_mode": "constant", "cval": 0.0,
    }  # fmt: skip
    volume = made_volume(np.random.default_rng(0).normal(size=GRID.shape).astype(np.float32), GRID)
    own = explain(volume, model)
    assert any(note.startswith("The network saw the volume in ") for note in own.notes)
    assert own.recipe.windows["roi_size"] == [16, 16, 16]
    whole = explain(volume, model, window=())
    assert whole.recipe.windows == {}
    assert not any("windows" in note for note in whole.notes)
    other = explain(volume, model, window=24, overlap=0.25)
    assert (
        other.recipe.windows["roi_size"],
        other.recipe.windows["overlap"],
        other.recipe.windows["sw_batch_size"],
    ) == (24, 0.25, 2)


def test_windows_that_would_run_code_are_left_out_in_words(tmp_path: Path) -> None:
    config = {**INFERENCE, "inferer": {**SLIDING, "roi_size": "$__import__('os').getcwd()"}}
    model = load_model(write_bundle(tmp_path / "lesions", inference=config))
    assert model.windows is None
    assert any("sliding windows are not used" in note and "runs code" in note for note in model.notes)


@pytest.mark.parametrize(
    "inferer", [{"_target_": "SimpleInferer"}, {"_target_": "SliceInferer", "roi_size": [8, 8]}, "$1 + 1"]
)
def test_other_inferers_are_no_windows(tmp_path: Path, inferer: object) -> None:
    assert load_model(write_bundle(tmp_path / "lesions", inference=with_item("inferer", inferer))).windows is None


def test_several_layers_are_fused_from_one_sweep() -> None:
    network = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 1)
    ).eval()
    volume = made_volume(blob(GRID, GRID.world_mm(np.array([20.0, 20, 15]))), GRID)
    found = explain(volume, network, target=1, layer=["1", "3"], fuse="mean", window=24)
    assert (found.recipe.fusion, found.recipe.layer) == ("mean", "1 + 3")
    assert np.isfinite(found.relevance).all()


def test_what_does_not_go_with_windows_is_refused() -> None:
    volume = made_volume(blob(GRID, GRID.world_mm(np.array([20.0, 20, 15]))), GRID)
    for options, words in [
        ({"overlap": 0.5}, "say how large these are"),
        ({"exact": True}, "say how large these are"),
        ({"window": 24, "flips": True}, "maps of flips"),
    ]:
        with pytest.raises(UsageError, match=words):
            explain(volume, Blobs(3).eval(), layer="features", **options)


def test_the_command_line_cuts_windows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = nibabel.Nifti1Image(
        np.random.default_rng(0).normal(size=(22, 26, 30)).astype(np.float32), np.diag([1.5, 1.25, 2, 1])
    )
    nibabel.save(image, tmp_path / "scan.nii.gz")
    bundle = write_bundle(tmp_path / "bundle", inference={**INFERENCE, "patch": [16, 16, 16], "inferer": SLIDING})
    words = ["explain", str(tmp_path / "scan.nii.gz"), "--model", str(bundle), "--formats", "nifti", "--json"]
    recipes = []
    for n, own in enumerate(
        [[], ["--window", "24,16,20", "--overlap", "0.25,0.5,0"], ["--window", "whole"], ["--window", "wide"]]
    ):
        code = main([*words, "--out", str(tmp_path / str(n)), *own])
        told = json.loads(capsys.readouterr().out)
        if own[-1:] == ["wide"]:
            assert (code, "numbers of voxels" in told["error"]) == (2, True)
        else:
            assert code == 0, told
            recipes.append(told["recipe"]["windows"])
    assert [(r.get("roi_size"), r.get("overlap")) for r in recipes] == [
        ([16, 16, 16], 0.5), ([24, 16, 20], [0.25, 0.5, 0.0]), (None, None)
    ]  # fmt: skip
