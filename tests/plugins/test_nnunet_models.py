"""nnU-Net v2 model folders: what medcam sees, predicts and explains is what nnU-Net itself sees and predicts, in its place."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from plugins.nnunet_folders import LABELS, REGIONS, plans, write_folder

import medcam
from conftest import blob, made_volume, oblique_grid
from medcam.cli import main
from medcam.engine.tiling import pad, tile
from medcam.engine.windows import Windows, windowed_relevances
from medcam.errors import ModelError, UsageError
from medcam.geometry import Grid, resample
from medcam.models.nnunet import is_nnunet
from medcam.models.slicewise import slicewise
from medcam.pipeline import explain_all
from medcam.prepare import prepare

pytestmark = pytest.mark.filterwarnings("ignore")  # of nnU-Net's own
GRID = oblique_grid((40, 34, 26), (1.2, 1.0, 2.0))
SPOT = np.array([24.0, 12.0, 10.0])


@pytest.fixture
def nnunet() -> Any:
    """nnU-Net's module of its predictor; where it is not installed, the test is skipped."""
    return pytest.importorskip(
        "nnunetv2.inference.predict_from_raw_data", reason="nnunetv2, of the extra 'nnunet', is not installed"
    )


def image(grid: Grid = GRID, spot: np.ndarray = SPOT) -> np.ndarray:
    """A bright spot in noise, and zero around it, which nnU-Net crops."""
    voxels = blob(grid, grid.world_mm(spot), 6.0)
    noise = np.random.default_rng(0).normal(0, 0.2, voxels.shape)
    return np.where(voxels > 1e-3, voxels + noise, 0).astype(np.float32)


def stored(folder: Path, voxels: np.ndarray | None = None, grid: Grid = GRID) -> Path:
    path = folder / "case_0000.nii.gz"
    nibabel.save(nibabel.Nifti1Image(image(grid) if voxels is None else voxels, grid.affine), path)
    return path


def predictor(nnunet: Any, home: Path, *folds: int) -> Any:
    made = nnunet.nnUNetPredictor(
        device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False, use_mirroring=False
    )
    made.initialize_from_trained_model_folder(str(home), folds or (0,), "checkpoint_final.pth")
    return made


def seen_by_nnunet(made: Any, path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    preprocessor = made.configuration_manager.preprocessor_class(verbose=False)
    data, _, properties = preprocessor.run_case(
        [str(path)], None, made.plans_manager, made.configuration_manager, made.dataset_json
    )
    return data, properties


PREPARED = {
    "as read": {},
    "transposed": {"transpose_forward": (1, 0, 2)},
    "turned round": {"transpose_forward": (2, 0, 1)},
    "thick slices": {"spacing": (6.5, 1.5, 1.2)},
    "reoriented": {"reader": "NibabelIOWithReorient", "transpose_forward": (1, 2, 0)},
}


@pytest.mark.parametrize("changes", PREPARED.values(), ids=PREPARED)
def test_the_network_sees_what_nnunet_shows_it(nnunet: Any, changes: dict[str, Any], tmp_path: Path) -> None:
    home = write_folder(tmp_path, plans(**changes))
    path = stored(tmp_path)
    model = medcam.load_model(home, trust_code=True)
    ready = prepare([medcam.read(path)], model.preprocessing, spatial_dims=3)
    known, properties = seen_by_nnunet(predictor(nnunet, home), path)
    np.testing.assert_allclose(ready.tensor.numpy(), known, atol=2e-5)
    assert properties["shape_before_cropping"] != properties["shape_after_cropping_and_before_resampling"]


@pytest.mark.parametrize("changes", PREPARED.values(), ids=PREPARED)
def test_its_voxels_lie_where_nnunets_own_way_back_puts_them(
    nnunet: Any, changes: dict[str, Any], tmp_path: Path
) -> None:
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape as back

    home = write_folder(tmp_path, plans(**changes))
    path = stored(tmp_path)
    volume = medcam.read(path)
    ready = prepare([volume], medcam.load_model(home, trust_code=True).preprocessing, spatial_dims=3)
    made = predictor(nnunet, home)
    _, properties = seen_by_nnunet(made, path)
    # A ball in the network's own voxels, as if it were predicted.
    ball = blob(ready.grid, GRID.world_mm(SPOT), 5.0) - 0.4
    logits = np.stack([np.zeros_like(ball), ball, np.full_like(ball, -9.0)])
    theirs = back(
        torch.from_numpy(logits), made.plans_manager, made.configuration_manager, made.label_manager, properties
    )
    if changes.get("reader") == "NibabelIOWithReorient":
        io = nibabel.orientations
        turned = io.ornt_transform(io.axcodes2ornt("RAS"), io.io_orientation(GRID.affine))
        theirs = io.apply_orientation(theirs.transpose(2, 1, 0), turned).transpose(2, 1, 0)
    theirs = theirs.transpose(2, 1, 0) == 1
    ours = resample(ball.astype(np.float32), ready.grid, GRID, outside=-1.0) > 0
    dice = 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
    assert theirs.sum() > 100
    # Of thick slices nnU-Net takes the nearest, where medcam interpolates.
    thick = "spacing" in changes
    assert dice > (0.8 if thick else 0.97)
    centres = [GRID.world_mm(np.argwhere(mask)).mean(0) for mask in (ours, theirs)]
    assert np.linalg.norm(centres[0] - centres[1]) < (1.0 if thick else 0.2)
    assert np.linalg.norm(centres[0] - GRID.world_mm(SPOT)) < 0.5


def test_its_windows_stitch_the_prediction_that_nnunet_stitches(
    nnunet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = write_folder(tmp_path, plans(transpose_forward=(1, 0, 2)))
    path = stored(tmp_path)
    model = medcam.load_model(f"nnunet:{home}", trust_code=True)
    assert model.windows is not None
    ready = prepare([medcam.read(path)], model.preprocessing, spatial_dims=3)
    made = predictor(nnunet, home)
    found = windowed_relevances(
        model.network, ready.tensor.unsqueeze(0), Windows(**model.windows), targets=[1], prediction=True
    )
    assert found.prediction is not None
    ours = found.prediction[0]
    known = made.predict_logits_from_preprocessed_data(ready.tensor).float()
    # It adds in half precision, in which the corners, where only one window's rim looks, drown in rounding.
    assert ((ours - known).abs() < 0.01).float().mean() > 0.97
    assert (ours.argmax(0) == known.argmax(0)).float().mean() > 0.99
    assert len(known.argmax(0).unique()) > 1
    monkeypatch.setattr(torch, "half", torch.float32)
    monkeypatch.setattr(nnunet, "compute_gaussian", partial(nnunet.compute_gaussian, dtype=torch.float32))
    exact = made.predict_logits_from_preprocessed_data(ready.tensor)
    assert exact.dtype == torch.float32
    torch.testing.assert_close(ours, exact, atol=1e-4, rtol=0)


def test_its_map_is_the_one_computed_by_hand_window_by_window(nnunet: Any, tmp_path: Path) -> None:
    home = write_folder(tmp_path, plans())
    model = medcam.load_model(home, trust_code=True)
    assert model.windows is not None
    volume = medcam.read(stored(tmp_path))
    ready = prepare([volume], model.preprocessing, spatial_dims=3)
    heatmap = medcam.explain(volume, model, target="spleen", layer="decoder.stages.0")
    # By hand, with nnU-Net's own network: Grad-CAM of the logits where a window predicts the label.
    network = predictor(nnunet, home).network.eval()
    windows = Windows(**model.windows)
    tiling = tile(ready.tensor.shape[1:], windows)
    padded = pad(ready.tensor.unsqueeze(0), tiling, windows)
    total, weight = torch.zeros(tiling.padded), torch.zeros(tiling.padded)
    held: list[torch.Tensor] = []
    hook = network.decoder.stages[0].register_forward_hook(lambda _module, _args, out: held.append(out))
    for corner in tiling.corners:
        box = tiling.box(corner)
        held.clear()
        logits = network(padded[(slice(None), slice(None), *box)])[0]
        inside = torch.zeros(tiling.padded, dtype=torch.bool)
        inside[tiling.inside_of()] = True
        where = (logits.argmax(0) == 1) & inside[box]
        weight[box] += tiling.importance
        if where.any():
            (gradient,) = torch.autograd.grad(logits[1][where].sum(), held[0])
            total[box] += ((gradient.mean((2, 3, 4), keepdim=True) * held[0]).sum(1)[0] * tiling.importance).detach()
    hook.remove()
    by_hand = (total / weight)[tiling.inside_of()].numpy()
    expected = resample(by_hand, ready.grid, volume.grid)
    np.testing.assert_array_equal(np.isnan(heatmap.relevance), np.isnan(expected))
    np.testing.assert_allclose(heatmap.relevance, expected, atol=2e-4 * np.nanmax(np.abs(expected)))
    assert heatmap.target == "spleen (class 1)"
    assert heatmap.recipe.windows["rule"] == "nnunet"
    assert heatmap.recipe.preprocessing == ("NnunetPreprocessing",)


def test_the_command_line_explains_a_case_and_keeps_json_clean(
    nnunet: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = write_folder(tmp_path, plans())
    path = stored(tmp_path)
    asked = [
        "explain",
        str(path),
        "--model",
        f"nnunet:{home}",
        "--target",
        "lesion",
        "--formats",
        "nifti",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(asked) == 3
    told = capsys.readouterr().err
    assert "as pickles" in told
    assert "--trust-code" in told
    assert main([*asked, "--trust-code", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert "lesion (class 2)" in json.dumps(document)
    (written,) = [p for p in (tmp_path / "out").glob("*.nii.gz") if "_label" not in p.name]
    np.testing.assert_allclose(nibabel.load(written).affine, GRID.affine, atol=1e-5)


def test_its_layers_can_be_listed(nnunet: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = write_folder(tmp_path, plans())
    assert main(["inspect", f"nnunet:{home}", "--trust-code"]) == 0
    listed = capsys.readouterr().out
    assert "input   1x12x16x20" in listed
    assert "* " in listed
    assert main(["inspect", str(home / "fold_0"), "--trust-code"]) == 0
    assert "decoder.stages.0" in capsys.readouterr().out


def test_labels_have_names_and_regions_are_sigmoids(nnunet: Any, tmp_path: Path) -> None:
    labelled = medcam.load_model(
        write_folder(tmp_path / "labels", plans(), labels={"lesion": 2, "background": 0, "spleen": 1, "ignore": 3}),
        trust_code=True,
    )
    assert labelled.class_names == ("background", "spleen", "lesion")
    assert labelled.activation is None
    home = write_folder(tmp_path / "regions", plans(channels=2), labels=REGIONS)
    model = medcam.load_model(home, trust_code=True)
    assert (model.class_names, model.activation, model.input_channels) == (("whole tumour", "core"), "sigmoid", 2)
    volume = made_volume(image(), GRID)
    heatmap = medcam.explain([volume, volume], model, target="core")
    assert heatmap.recipe.activation == "sigmoid"
    assert heatmap.target == "core (class 1)"
    with pytest.raises(UsageError, match="takes 2 channels and the prepared image has 1"):
        medcam.explain(volume, model)


def test_a_film_goes_through_a_2d_configuration(nnunet: Any, tmp_path: Path) -> None:
    home = write_folder(
        tmp_path, plans(patch=(16, 20), spacing=(1.0, 1.0), reader="NaturalImage2DIO", films=True), file_ending=".png"
    )  # fmt: skip
    film = np.random.default_rng(1).integers(1, 60, (37, 45), dtype=np.uint8)
    film[20:28, 6:15] += 150
    Image.fromarray(film).save(tmp_path / "film_0000.png")
    model = medcam.load_model(home, trust_code=True)
    volume = medcam.read(tmp_path / "film_0000.png")
    ready = prepare([volume], model.preprocessing, spatial_dims=2)
    known, _ = seen_by_nnunet(predictor(nnunet, home), tmp_path / "film_0000.png")
    np.testing.assert_allclose(ready.tensor.numpy(), known[:, 0], atol=2e-5)
    # Row 24, column 10 of the film is i = 10, j = 24 of the volume, and row 24 of what the network sees.
    np.testing.assert_allclose(
        ready.grid.index(volume.grid.world_mm(np.array([10.0, 24.0, 0.0])))[:2], (24.0, 10.0), atol=1e-6
    )
    heatmap = medcam.explain(volume, model, target="lesion")
    assert heatmap.relevance.shape == volume.grid.shape
    assert heatmap.peak() is not None


def test_a_2d_configuration_goes_through_a_volume_slice_by_slice(
    nnunet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = write_folder(tmp_path, plans(patch=(16, 20), spacing=(1.5, 1.2), transpose_forward=(1, 0, 2)))
    model = medcam.load_model(home, trust_code=True)
    assert model.windows is not None
    assert (model.spatial_dims, model.windows["roi_size"]) == (3, [1, 16, 20])
    volume = medcam.read(stored(tmp_path))
    ready = prepare([volume], model.preprocessing, spatial_dims=3)
    made = predictor(nnunet, home)
    known, _ = seen_by_nnunet(made, tmp_path / "case_0000.nii.gz")
    np.testing.assert_allclose(ready.tensor.numpy(), known, atol=2e-5)
    found = windowed_relevances(
        model.network, ready.tensor.unsqueeze(0), Windows(**model.windows), targets=[1], prediction=True
    )
    monkeypatch.setattr(torch, "half", torch.float32)
    monkeypatch.setattr(nnunet, "compute_gaussian", partial(nnunet.compute_gaussian, dtype=torch.float32))
    exact = made.predict_logits_from_preprocessed_data(ready.tensor)
    assert found.prediction is not None
    torch.testing.assert_close(found.prediction[0], exact, atol=1e-4, rtol=0)
    # The map of a slice is what the 2D network alone gives of it.
    flat = Windows(**{**model.windows, "roi_size": [16, 20], "overlap": 0.5})
    layer = found.relevances[0].layer
    for k in (3, 11):
        alone = windowed_relevances(made.network.eval(), ready.tensor[None, :, k], flat, targets=[1], layers=[layer])
        np.testing.assert_allclose(found.relevances[0].values[0, k], alone.relevances[0].values[0], atol=1e-6)
    heatmap = medcam.explain(volume, model, target="spleen")
    assert heatmap.peak() is not None


def test_folds_are_told_apart(nnunet: Any, tmp_path: Path) -> None:
    home = write_folder(tmp_path, plans(), folds=("0", "3", "all"))
    all_of_them, third, every = (
        medcam.load_model(path, trust_code=True) for path in (home, home / "fold_3", home / "fold_all")
    )
    assert [model.name.partition(" ")[2] for model in (all_of_them, third, every)] == [
        "fold_0 fold_3",
        "fold_3",
        "fold_all",
    ]
    assert all_of_them.members == ("fold_0", "fold_3")
    assert third.members == ()
    assert any("this explains fold_3 alone, without fold_0" in note for note in third.notes)
    assert not any("alone" in note for model in (all_of_them, every) for note in model.notes)
    assert len({model.sha256 for model in (all_of_them, third, every)}) == 3
    known = predictor(nnunet, home, 3).network.state_dict()
    for network in (third.network, all_of_them.network.get_submodule("fold_3")):
        assert all(torch.equal(value, known[name]) for name, value in network.state_dict().items())
    assert not torch.equal(next(third.network.parameters()), next(every.network.parameters()))


def test_the_folds_together_predict_what_nnunet_predicts_and_their_map_is_the_sum_of_their_parts(
    nnunet: Any, tmp_path: Path
) -> None:
    home = write_folder(tmp_path, plans(), folds=("0", "3"))
    model = medcam.load_model(home, trust_code=True)
    assert model.windows is not None
    volume = medcam.read(stored(tmp_path))
    ready = prepare([volume], model.preprocessing, spatial_dims=3)
    layers = ["fold_0.decoder.stages.0", "fold_3.decoder.stages.0"]
    windows = Windows(**model.windows)
    found = windowed_relevances(
        model.network, ready.tensor.unsqueeze(0), windows, targets=[1], layers=layers, prediction=True
    )
    assert found.prediction is not None
    known = predictor(nnunet, home, 0, 3).predict_logits_from_preprocessed_data(ready.tensor).float()
    assert ((found.prediction[0] - known).abs() < 0.01).float().mean() > 0.97
    heatmap = medcam.explain(volume, model, target="spleen")
    assert heatmap.recipe.layer == " + ".join(layers)
    assert heatmap.recipe.fusion == "sum"
    parts = [resample(one.values[0].numpy(), ready.grid, volume.grid) for one in found.relevances]
    assert min(np.nanmax(np.abs(part)) for part in parts) > 0
    np.testing.assert_allclose(heatmap.relevance, parts[0] + parts[1], atol=1e-5 * np.nanmax(np.abs(heatmap.relevance)))
    many = explain_all([volume], model, target="spleen", methods=["grad-cam", "saliency"])
    np.testing.assert_array_equal(many[0].relevance, heatmap.relevance)
    assert [each.recipe.layer for each in many] == [heatmap.recipe.layer, ""]


def test_an_empty_image_is_refused_in_words(nnunet: Any, tmp_path: Path) -> None:
    model = medcam.load_model(write_folder(tmp_path, plans()), trust_code=True)
    with pytest.raises(UsageError, match="zero everywhere"):
        medcam.explain(made_volume(np.zeros(GRID.shape, np.float32), GRID), model)


def test_a_cascade_is_refused_in_words(nnunet: Any, tmp_path: Path) -> None:
    made = plans()
    made["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    home = write_folder(tmp_path, made)
    with pytest.raises(ModelError, match="second stage of a cascade"):
        medcam.load_model(home, trust_code=True)


def test_a_network_of_slices_is_the_same_through_a_volume_of_one() -> None:
    block = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, (3, 5), padding="same"), torch.nn.InstanceNorm2d(3, affine=True), torch.nn.LeakyReLU(), torch.nn.Dropout2d(),
        torch.nn.Sequential(block), torch.nn.BatchNorm2d(4), torch.nn.AvgPool2d(2, 1), torch.nn.MaxPool2d((2, 3), 1),
        torch.nn.ConvTranspose2d(4, 2, 3, 2, 1, 1),
    ).eval()  # fmt: skip
    made = slicewise(network)
    given = torch.randn(2, 2, 20, 18)
    torch.testing.assert_close(made(given.unsqueeze(2)), network(given).unsqueeze(2))
    assert isinstance(network[4][0], torch.nn.Conv2d)
    with pytest.raises(ModelError, match="holds a LPPool2d"):
        slicewise(torch.nn.Sequential(torch.nn.LPPool2d(2, 2)))


def bare_folder(home: Path) -> Path:
    """A folder that looks like nnU-Net's and holds no network."""
    (home / "fold_0").mkdir(parents=True)
    (home / "plans.json").write_text(json.dumps(plans()))
    (home / "dataset.json").write_text(json.dumps({"labels": LABELS}))
    (home / "fold_0" / "checkpoint_final.pth").write_bytes(b"nothing")
    return home


def test_a_folder_is_recognised_and_nothing_of_it_runs_without_a_word(tmp_path: Path) -> None:
    home = bare_folder(tmp_path / "model")
    assert is_nnunet(home)
    assert is_nnunet(home / "fold_0")
    assert not is_nnunet(tmp_path)
    with pytest.raises(ModelError, match=r"as pickles.*PlainConvUNet.*--trust-code"):
        medcam.load_model(home)
    (home / "fold_7").mkdir()
    with pytest.raises(ModelError, match="fold_7 is no trained fold of model, which has fold_0; did you mean fold_0"):
        medcam.load_model(home / "fold_7", trust_code=True)
    (home / "plans.json").write_text("[]")
    with pytest.raises(ModelError, match=r"plans\.json is damaged"):
        medcam.load_model(home, trust_code=True)
    (home / "fold_0" / "checkpoint_final.pth").unlink()
    with pytest.raises(ModelError, match="holds no trained fold"):
        medcam.load_model(home, trust_code=True)


def test_where_nnunet_is_missing_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nnunetv2", None)
    for name in [name for name in sys.modules if name.startswith("nnunetv2.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UsageError, match=r"pip install 'medcam-xai\[nnunet\]'"):
        medcam.load_model(bare_folder(tmp_path / "model"), trust_code=True)


def test_a_damaged_checkpoint_is_told(nnunet: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nnU-Net cannot load model"):
        medcam.load_model(bare_folder(tmp_path / "model"), trust_code=True)
