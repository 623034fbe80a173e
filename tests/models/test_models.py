"""Loading networks: what arrives is the network that was saved, nothing runs unasked, and the process stays as it was."""

from __future__ import annotations

import hashlib
import json
import random
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medcam.errors import InputError, ModelError
from medcam.models import DEMOS, Model, load_model, wrap_module
from medcam.models.checkpoints import load_weights
from medcam.samples import sample_path
from models.bundle_phantom import FACTORY, Marker, phantom_image, small_net, write_bundle


@pytest.fixture
def image() -> Tensor:
    return phantom_image()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    torch.save(small_net().state_dict(), path)
    return path


# --- checkpoints and factories ---------------------------------------------------------------------------------------------------------


def test_weights_and_a_factory_with_literals_give_the_network(weights: Path, image: Tensor) -> None:
    model = load_model(weights, factory=FACTORY)
    assert torch.equal(model.network(image), small_net()(image))
    assert (model.kind, model.name, model.network.training) == ("checkpoint", "weights.pt", False)
    assert model.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (model.input_channels, model.spatial_dims, model.class_names) == (1, 3, ())


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "network_weights"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "model."])
def test_wrapped_and_prefixed_weights_are_found(tmp_path: Path, image: Tensor, wrapper: str, prefix: str) -> None:
    state = {prefix + name: value for name, value in small_net().state_dict().items()}
    path = tmp_path / "training.ckpt"
    torch.save({"epoch": 3, wrapper: state, "optimizer": {"lr": 0.1}}, path)
    model = load_model(path, factory=FACTORY)
    assert torch.equal(model.network(image), small_net()(image))
    assert any("prefix" in note for note in model.notes) == bool(prefix)


def test_a_prefix_that_belongs_to_the_network_stays() -> None:
    network = nn.Sequential()
    network.add_module("module", small_net())
    assert load_weights(network, network.state_dict(), "weights") == ()


def test_safetensors_are_read(tmp_path: Path, image: Tensor) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "weights.safetensors"
    save_file(small_net().state_dict(), path)
    assert torch.equal(load_model(path, factory=FACTORY).network(image), small_net()(image))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ModelError, match="damaged"):
        load_model(path, factory=FACTORY)


def test_weights_that_do_not_fit_are_counted_and_named(tmp_path: Path) -> None:
    state = small_net().state_dict()
    del state["score.bias"]
    state["score.weight"] = torch.zeros(5, 6, 1, 1, 1)
    state |= {f"head.{n}": torch.zeros(1) for n in range(4)}
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path / "other.pt", factory=FACTORY)
    text = str(caught.value)
    assert "1 missing from the file (score.bias)" in text
    assert "4 not in the network (head.0, head.1, head.2, ...)" in text
    assert "1 of another shape (score.weight is (5, 6, 1, 1, 1) in the file, (1, 6, 1, 1, 1) in the network)" in text


def test_weights_without_a_factory_explain_what_a_state_dict_is(weights: Path) -> None:
    with pytest.raises(ModelError, match=r"state dict.*--factory"):
        load_model(weights)


def test_a_factory_in_a_file_may_import_its_neighbours(weights: Path, tmp_path: Path, image: Tensor) -> None:
    (tmp_path / "neighbour_of_phantom.py").write_text(
        "from medcam.lesion_net import LesionNet as Net\nWIDTHS = (4, 6)\n"
    )
    source = "import neighbour_of_phantom as n\n\ndef make(dims, *, taps=()):\n    return n.Net(dims, n.WIDTHS, dilations=taps)\n"
    (tmp_path / "nets.py").write_text(source)
    model = load_model(weights, factory=f"{tmp_path / 'nets.py'}:make(3, taps=(1, 1))")
    assert torch.equal(model.network(image), small_net()(image))
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nonsense", "module:function"),
        ("no_such_package.nets:make", "No module named 'no_such_package'"),
        ("medcam.lesion_net:LesionNat", "did you mean LesionNet"),
        ("medcam.lesion_net:LesionNet(4)", "KeyError"),
        ("medcam.lesion_net:LesionNet(spatial_dim=3)", "spatial_dim"),
        ("medcam.lesion_net:LesionNet(3, open('x'))", "not literals"),
        ("medcam.lesion_net:LesionNet(**{'spatial_dims': 3})", "not literals"),
        ("medcam.lesion_net:LesionNet(3)(4)", "not literals"),
        ("collections:OrderedDict", "expected a torch.nn.Module"),
        ("no_such_file.py:make", "is not a file"),
    ],
)
def test_a_factory_that_cannot_be_called_says_why(weights: Path, factory: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(weights, factory=factory)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("old_form", [False, True])
def test_a_pickle_with_code_does_not_run_unasked(tmp_path: Path, old_form: bool) -> None:
    marker, path = tmp_path / "marker", tmp_path / "evil.pt"
    torch.save({"state_dict": Marker(marker)}, path, _use_new_zipfile_serialization=not old_form)
    for bundle in (False, True):
        if bundle:
            folder = write_bundle(tmp_path / "evil")
            (folder / "models" / "model.pt").write_bytes(path.read_bytes())
        with pytest.raises(
            ModelError, match=r"pathlib\.Path\.touch|Path\.touch|getattr.*--trust-code|--trust-code"
        ) as caught:
            load_model(folder) if bundle else load_model(path, factory=FACTORY)
        assert not marker.exists()
        assert "\n" not in str(caught.value)
    said: list[str] = []
    with pytest.raises(ModelError, match="holds no weights"):
        load_model(path, factory=FACTORY, trust_code=True, say=said.append)
    assert marker.exists()
    assert len(said) == 1


def test_a_whole_pickled_module_needs_trust_and_then_needs_no_factory(tmp_path: Path, image: Tensor) -> None:
    path = tmp_path / "whole.pth"
    torch.save(small_net(), path)
    with pytest.raises(ModelError, match=r"LesionNet.*--factory"):
        load_model(path)
    model = load_model(path, trust_code=True)
    assert torch.equal(model.network(image), small_net()(image))
    assert (model.kind, model.input_channels, model.spatial_dims) == ("checkpoint", 1, 3)


# --- TorchScript -----------------------------------------------------------------------------------------------------------------------


def write_torchscript(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(small_net(), torch.zeros(1, 1, 20, 24, 28)).save(str(path))


@pytest.mark.parametrize("name", ["net.ts", "net.pt", "net.pth"])
def test_torchscript_needs_trust_and_keeps_its_layers_closed(tmp_path: Path, image: Tensor, name: str) -> None:
    write_torchscript(tmp_path / name)
    with pytest.raises(ModelError, match=r"TorchScript.*--trust-code.*torch\.export"):
        load_model(tmp_path / name)
    said: list[str] = []
    model = load_model(tmp_path / name, trust_code=True, say=said.append)
    assert torch.allclose(model.network(image), small_net()(image), atol=1e-6)
    assert (model.kind, model.layers_open, model.input_channels, model.spatial_dims) == ("torchscript", False, 1, 3)
    assert len(said) == 1
    assert any("perturbation" in note for note in model.notes)


def test_a_bundle_of_torchscript_alone_keeps_its_metadata(tmp_path: Path, image: Tensor) -> None:
    folder = write_bundle(tmp_path / "scripted", weights=False)
    write_torchscript(folder / "models" / "model.ts")
    with pytest.raises(ModelError, match="TorchScript"):
        load_model(folder)
    model = load_model(folder, trust_code=True)
    assert (model.kind, model.layers_open, model.class_names) == ("torchscript", False, ("lesion",))
    assert len(model.preprocessing.transforms) == 4
    assert torch.allclose(model.network(image), small_net()(image), atol=1e-6)


# --- preprocessing of the user's own ---------------------------------------------------------------------------------------------------


def test_preprocessing_comes_from_a_list_an_object_or_a_compose_in_a_file(tmp_path: Path, weights: Path) -> None:
    transforms = [
        {"_target_": "LoadImaged", "keys": "image"},
        {
            "_target_": "ScaleIntensityRanged",
            "keys": "image",
            "a_min": "$-100 * 2",
            "a_max": 100,
            "b_min": 0,
            "b_max": 1,
        },
    ]
    forms = (transforms, {"preprocessing": transforms}, {"_target_": "Compose", "transforms": transforms})
    for number, held in enumerate(forms):
        path = tmp_path / f"prepare{number}.json"
        path.write_text(json.dumps(held))
        model = load_model(weights, factory=FACTORY, preprocessing=path)
        assert [type(t).__name__ for t in model.preprocessing.transforms] == ["ScaleIntensityRanged"]
        assert float(model.preprocessing({"image": torch.full((1, 2, 3), -50.0)})["image"][0, 0, 0]) == 0.5


def test_preprocessing_in_a_file_is_held_to_the_same_rules(tmp_path: Path, weights: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "prepare.json"
    path.write_text(
        json.dumps([{"_target_": "Lambdad", "keys": "image", "func": f"$open({str(marker)!r}, 'w').close"}])
    )
    with pytest.raises(ModelError, match="--trust-code"):
        load_model(weights, factory=FACTORY, preprocessing=path)
    with pytest.raises(ModelError, match=r"prepare\.json"):
        load_model(weights, factory=FACTORY, preprocessing=tmp_path / "prepar.json")
    with pytest.raises(ModelError, match="neither"):
        load_model(weights, factory=FACTORY, preprocessing="something")
    assert not marker.exists()


def test_preprocessing_can_be_a_function_of_the_users_own(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def make(gain=1):\n    return lambda data: {k: v * gain for k, v in data.items()}\n"
    )
    model = load_model(weights, factory=FACTORY, preprocessing=f"{tmp_path / 'mine.py'}:make(gain=3)")
    assert model.preprocessing({"image": 2}) == {"image": 6}


# --- what is not a model ---------------------------------------------------------------------------------------------------------------


def test_a_wrong_path_names_its_nearest_neighbour(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(ModelError, match=r"did you mean weights\.pt"):
        load_model(tmp_path / "weigths.pt")
    with pytest.raises(ModelError, match="did you mean demo-mri"):
        load_model("demo-mr")


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors", "net.pt2", "net.ts", "net.zip", "net.ckpt"])
@pytest.mark.parametrize("content", ["empty", "text", "half", "noise"])
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, weights: Path, name: str, content: str) -> None:
    whole = weights.read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()
    written = {"empty": b"", "text": b"<html>404 not found</html>", "half": whole[: len(whole) // 2], "noise": noise}
    (tmp_path / name).write_bytes(written[content])
    with pytest.raises(ModelError, match=r"empty|text file|damaged|not a|nor a") as caught:
        load_model(tmp_path / name, factory=None if name.endswith((".pt2", ".ts", ".zip")) else FACTORY)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_files_of_another_kind_are_told_apart(tmp_path: Path, weights: Path) -> None:
    for name, message in (("net.onnx", "ONNX"), ("scan.nii", "not a model")):
        (tmp_path / name).write_bytes(b"\x00\x01\x02\x03 something")
        with pytest.raises(ModelError, match=message):
            load_model(tmp_path / name)
    pointer = tmp_path / "model.pt"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelError, match="git lfs pull"):
        load_model(pointer, factory=FACTORY)
    with pytest.raises(ModelError, match="holds its own network"):
        load_model(write_bundle(tmp_path / "lesions"), factory=FACTORY)
    with pytest.raises(ModelError, match="not a device"):
        load_model(weights, factory=FACTORY, device="gpu")


# --- the process and the user's module stay as they are --------------------------------------------------------------------------------


def test_loading_leaves_the_process_as_it_was(tmp_path: Path, weights: Path) -> None:
    mine = tmp_path / "rude.py"
    mine.write_text(
        "import random, sys, warnings\nimport numpy as np, torch\nfrom medcam.lesion_net import LesionNet\n\n"
        "def make():\n"
        "    torch.manual_seed(1); np.random.seed(1); random.seed(1)\n"
        "    sys.path.insert(0, 'somewhere'); warnings.simplefilter('ignore')\n"
        "    net = LesionNet(3, (4, 6), dilations=(1, 1))\n"
        "    torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False)\n"
        "    return net\n"
    )

    folder = write_bundle(tmp_path / "lesions")

    def state() -> tuple[Any, ...]:
        drawn = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        return *drawn, list(sys.path), list(warnings.filters), torch.get_default_dtype(), torch.is_grad_enabled()

    before = state()
    load_model(weights, factory=f"{mine}:make")
    assert state() == before
    load_model(folder)
    assert state() == before
    with pytest.raises(ModelError):
        load_model(weights, factory=f"{mine}:make(3)")
    assert state() == before


def test_a_network_loaded_in_inference_mode_can_still_be_differentiated(weights: Path, image: Tensor) -> None:
    with torch.inference_mode():
        network = load_model(weights, factory=FACTORY).network
    network(image).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_module_of_the_users_own_is_wrapped_untouched() -> None:
    network = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2)).train()
    model = wrap_module(network, name="mine", class_names=["a", "b"])
    assert isinstance(model, Model)
    assert model.network is network
    assert network.training
    assert (model.kind, model.name, model.sha256, model.class_names) == ("module", "mine", "", ("a", "b"))
    assert (model.input_channels, model.spatial_dims, model.layers_open) == (4, 2, True)
    assert wrap_module(network).name == "Sequential"
    assert wrap_module(nn.Linear(2, 3)).spatial_dims is None


# --- the demonstration models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dims"), [("demo-mri", 3), ("demo-cxr", 2)])
def test_the_demonstration_models_load_without_trust(name: str, dims: int) -> None:
    folder = Path(__file__).parents[2] / "data_samples" / "models" / DEMOS[name]
    if not (folder / "models" / "model.pt").exists():
        pytest.skip(f"{folder.name} is not made yet")
    model = load_model(name)
    assert (model.name, model.kind, model.spatial_dims, model.input_channels) == (name, "bundle", dims, 1)
    assert model.class_names
    assert model.preprocessing is not None
    assert model.network(torch.zeros(2, 1, *(40, 44, 48)[:dims])).shape == (2, len(model.class_names))


def test_a_sample_that_is_not_there_is_an_input_error() -> None:
    with pytest.raises(InputError, match="models/nothing"):
        sample_path("models", "nothing")
