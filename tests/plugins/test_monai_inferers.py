"""Whole bundles, run by MONAI with a few lines of override, give the heatmaps that `medcam explain --model bundle` gives."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, run
from monai.data import MetaTensor, decollate_batch
from monai.inferers import SimpleInferer, SliceInferer, SlidingWindowInferer, SlidingWindowInfererAdapt
from PIL import Image
from plugins.zoo_bundles import write_classifying, write_segmenting
from torch import nn

import medcam
from conftest import blob, oblique_grid
from engine.toy_networks import Classifier, Segmenter, image
from medcam.cli import main
from medcam.engine import relevances
from medcam.engine.windows import Windows, windowed_relevances
from medcam.errors import UsageError
from medcam.plugins.inferers import ExplainInferer, PredictAndExplainInferer
from medcam.plugins.maps import RECIPES, recipes_of
from medcam.prepare import prepare

pytest.importorskip("ignite", reason="bundles run on pytorch-ignite, of the extra 'bundle'")
pytestmark = pytest.mark.filterwarnings("ignore")  # of MONAI's own, in a bundle that MONAI runs

OVERRIDES = Path(__file__).parents[2] / "examples" / "bundle_override"
GRID = oblique_grid((34, 30, 22), (1.2, 1.0, 2.0))


def run_bundle(folder: Path, data: Path, *overrides: Path) -> Path:
    """What `python -m monai.bundle run` does, in this process; returns the folder that the bundle wrote."""
    out = folder.parent / f"{folder.name}-{'-'.join(o.stem for o in overrides)}"
    run(
        config_file=[str(path) for path in (folder / "configs" / "inference.json", *overrides)],
        meta_file=str(folder / "configs" / "metadata.json"), bundle_root=str(folder), dataset_dir=str(data), output_dir=str(out),
    )  # fmt: skip
    return out


def override(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "override.json"
    path.write_text(json.dumps(values))
    return path


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """A folder with one oblique volume of two spots."""
    (tmp_path / "volumes").mkdir()
    voxels = blob(GRID, GRID.world_mm(np.array([12.0, 20, 9])), 5.0) - 0.4 * blob(
        GRID, GRID.world_mm(np.array([26.0, 8, 14])), 4.0
    )
    nibabel.save(nibabel.Nifti1Image(voxels, GRID.affine), tmp_path / "volumes" / "case.nii.gz")
    return tmp_path / "volumes"


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """A folder with three films, each brighter elsewhere."""
    (tmp_path / "films").mkdir()
    noise = np.random.default_rng(0)
    for n in range(3):
        film = noise.integers(0, 20, (60, 52), dtype=np.uint8)
        film[10 + 10 * n : 25 + 10 * n, 20:40] += 180
        Image.fromarray(film).save(tmp_path / "films" / f"film{n}.png")
    return tmp_path / "films"


def explained(folder: Path, case: Path, out: Path, *options: str) -> np.ndarray:
    """The map that the command line writes of the same bundle and image."""
    assert main(["explain", str(case), "--model", str(folder), "--formats", "nifti", "--out", str(out), *options]) == 0
    (path,) = [p for p in out.glob("*.nii.gz") if "_label" not in p.name]
    return np.asarray(nibabel.load(path).get_fdata())


def alike(first: np.ndarray, second: np.ndarray) -> float:
    seen = np.isfinite(first) & np.isfinite(second)
    return float(np.corrcoef(first[seen], second[seen])[0, 1])


def test_a_segmentation_bundle_gives_the_heatmap_of_the_command_line(volumes: Path, tmp_path: Path) -> None:
    folder = write_segmenting(tmp_path / "spleen")
    (path,) = run_bundle(folder, volumes, OVERRIDES / "heatmap_instead.yaml").iterdir()
    assert path.name == "case_heatmap.nii.gz"
    found = nibabel.load(path)
    known = explained(folder, volumes / "case.nii.gz", tmp_path / "known", "--target", "1")
    np.testing.assert_allclose(found.affine, GRID.affine, atol=1e-5)
    assert found.shape == known.shape == GRID.shape
    assert alike(found.get_fdata(), known) > 0.98
    hottest = [np.array(np.unravel_index(np.nanargmax(v), v.shape)) for v in (found.get_fdata(), known)]
    assert np.linalg.norm(GRID.affine[:3, :3] @ (hottest[0] - hottest[1])) <= np.linalg.norm(GRID.spacing_mm)


def test_before_the_way_back_its_map_is_the_command_lines_to_the_last_bit(volumes: Path, tmp_path: Path) -> None:
    folder = write_segmenting(tmp_path / "spleen")
    model = medcam.load_model(folder)
    assert model.windows is not None
    ready = prepare([medcam.read(volumes / "case.nii.gz")], model.preprocessing, spatial_dims=3)
    known = windowed_relevances(model.network, ready.tensor.unsqueeze(0), Windows(**model.windows), targets=[2])
    parser = ConfigParser()
    parser.read_config(folder / "configs" / "inference.json")
    sample = parser.get_parsed_content("preprocessing")({"image": str(volumes / "case.nii.gz")})["image"]
    found = ExplainInferer(parser.get_parsed_content("inferer"), targets=2)(sample.unsqueeze(0), model.network)
    torch.testing.assert_close(found.as_tensor()[:, 0], known.relevances[0].on_input(), rtol=0, atol=0)


def test_a_bundle_that_keeps_its_prediction_gets_heatmaps_beside_it(volumes: Path, films: Path, tmp_path: Path) -> None:
    for write, data in ((write_segmenting, volumes), (write_classifying, films)):
        folder = write(tmp_path / write.__name__)
        alone = run_bundle(folder, data)
        beside = run_bundle(folder, data, OVERRIDES / "heatmap_beside.yaml")
        maps = {f"{path.name.split('.')[0]}_heatmap.nii.gz" for path in data.iterdir()}
        kept = {path.name for path in alone.iterdir()}
        assert {path.name for path in beside.iterdir()} == kept | maps
        for name in kept:
            assert (alone / name).read_bytes() == (beside / name).read_bytes() or name.endswith(".gz")
        # Two methods were asked for.
        assert all(nibabel.load(beside / name).shape[-1] == 2 for name in maps)


def test_a_classification_bundle_gives_each_film_of_a_batch_the_heatmap_of_the_command_line(
    films: Path, tmp_path: Path
) -> None:
    folder = write_classifying(tmp_path / "density")
    out = run_bundle(folder, films, OVERRIDES / "heatmap_instead.yaml")
    for n in range(3):
        found = nibabel.load(out / f"film{n}_heatmap.nii.gz").get_fdata()
        known = explained(folder, films / f"film{n}.png", tmp_path / f"known{n}", "--target", "opaque")
        assert alike(found.squeeze(), known.squeeze()) > 0.97
    others = [nibabel.load(out / f"film{n}_heatmap.nii.gz").get_fdata().squeeze() for n in (0, 2)]
    assert alike(*others) < 0.9


def test_prediction_and_heatmap_come_in_one_dictionary_that_monai_lays_open(volumes: Path, tmp_path: Path) -> None:
    folder = write_segmenting(tmp_path / "spleen")
    both = override(
        tmp_path,
        {
            "evaluator::inferer": {
                "_target_": "medcam.plugins.inferers.PredictAndExplainInferer",
                "explain": {"_target_": "medcam.plugins.inferers.ExplainInferer", "inferer": "@inferer", "targets": 1},
                "predict": "@inferer",
            },
            "postprocessing::transforms": [
                {"_target_": "FlattenSubKeysd", "keys": "pred"},
                {"_target_": "Activationsd", "keys": "prediction", "softmax": True},
                {
                    "_target_": "Invertd", "keys": ["prediction", "heatmap"], "transform": "@preprocessing", "orig_keys": "image",
                    "nearest_interp": [False, False],
                },
                {"_target_": "AsDiscreted", "keys": "prediction", "argmax": True},
                {
                    "_target_": "SaveImaged", "keys": "prediction", "output_dir": "@output_dir", "output_postfix": "pred",
                    "separate_folder": False,
                },
                {
                    "_target_": "SaveImaged", "keys": "heatmap", "output_dir": "@output_dir", "output_postfix": "map",
                    "separate_folder": False,
                },
            ],
        },
    )  # fmt: skip
    out = run_bundle(folder, volumes, both)
    alone = nibabel.load(run_bundle(folder, volumes) / "case_trans.nii.gz").get_fdata()
    np.testing.assert_array_equal(nibabel.load(out / "case_pred.nii.gz").get_fdata(), alone)
    assert len(np.unique(alone)) > 1
    instead = nibabel.load(
        run_bundle(folder, volumes, OVERRIDES / "heatmap_instead.yaml") / "case_heatmap.nii.gz"
    ).get_fdata()
    np.testing.assert_allclose(
        nibabel.load(out / "case_map.nii.gz").get_fdata(), instead, atol=1e-6 * np.abs(instead).max()
    )


@pytest.mark.parametrize(
    ("inferer", "windows"),
    [
        (None, None),
        (SimpleInferer(), None),
        (SlidingWindowInferer((9, 8), 2, 0.5, mode="gaussian"), Windows((9, 8), 0.5, sw_batch_size=2)),
    ],
    ids=["none", "simple", "windows"],
)
def test_each_sample_of_a_batch_is_explained_as_if_alone(inferer: Any, windows: Windows | None) -> None:
    network, batch = Segmenter(2).eval(), image(2, 2)
    found = ExplainInferer(inferer, methods=["grad-cam", "hires-cam"], targets=[1, 2])(batch, network)
    assert found.shape == (2, 4, *batch.shape[2:])
    for n in range(2):
        asked: dict[str, Any] = {"methods": ["grad-cam", "hires-cam"], "targets": [1, 2]}
        alone = batch[n : n + 1]
        known = (
            relevances(network, alone, **asked)
            if windows is None
            else windowed_relevances(network, alone, windows, **asked).relevances
        )
        torch.testing.assert_close(found[n : n + 1], torch.stack([one.on_input() for one in known], 1))


def test_a_batchs_metadata_and_recipes_come_apart_again() -> None:
    network = Classifier(2).eval()
    batch = MetaTensor(image(2))
    batch.affine = torch.stack(
        [torch.diag(torch.tensor([1.0 + n, 2.0, 1.0, 1.0], dtype=torch.float64)) for n in range(3)]
    )
    batch.meta["filename_or_obj"] = ["a", "b", "c"]
    batch.is_batch = True
    batch.applied_operations = [[], [], []]
    found = ExplainInferer(class_names=["w", "x", "y", "z"])(batch, network)
    assert RECIPES not in batch.meta
    predicted = network(image_of(batch)).argmax(1).tolist()
    for n, sample in enumerate(decollate_batch(found)):
        assert sample.meta["filename_or_obj"] == "abc"[n]
        assert float(sample.affine[0, 0]) == 1.0 + n
        (recipe,) = recipes_of(sample.meta[RECIPES])
        assert recipe.target == f"{'wxyz'[predicted[n]]} (class {predicted[n]})"


def image_of(batch: MetaTensor) -> torch.Tensor:
    return batch.as_tensor()


def test_the_network_is_left_as_it_was_without_gradients_and_in_inference_mode() -> None:
    network, batch = Segmenter(2).eval(), image(2)
    weights = copy.deepcopy(network.state_dict())
    known = ExplainInferer(targets=1)(batch, network)
    with torch.no_grad():
        torch.testing.assert_close(ExplainInferer(targets=1)(batch, network), known)
    with torch.inference_mode():
        both = PredictAndExplainInferer(ExplainInferer(targets=1))(batch * 1, network)
    torch.testing.assert_close(both["heatmap"].clone(), known)
    torch.testing.assert_close(both["prediction"].clone(), network(batch).detach())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())


def test_what_cannot_be_explained_is_refused_in_words() -> None:
    network, batch = Segmenter(2).eval(), image(2)
    with pytest.raises(UsageError, match="not a SliceInferer"):
        ExplainInferer(SliceInferer(0, (8, 8)))
    with pytest.raises(UsageError, match="not a SlidingWindowInfererAdapt"):
        ExplainInferer(SlidingWindowInfererAdapt(8))
    with pytest.raises(UsageError, match=r"explains a torch\.nn\.Module, not a function"):
        ExplainInferer()(batch, lambda x: network(x))
    with pytest.raises(UsageError, match="networks of one input"):
        ExplainInferer()(batch, network, "more")
    with pytest.raises(UsageError, match="2 spatial axes"):
        ExplainInferer()(image(3), nn.Conv2d(2, 2, 3))
