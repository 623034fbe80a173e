"""Bundles: what arrives is the network that was saved, and nothing in a file runs unasked."""

from __future__ import annotations

import copy
import json
import stat
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medcam.errors import ModelError
from medcam.models import load_model
from medcam.models.config_trust import is_arithmetic
from medcam.models.user_code import missing_package
from models.bundle_phantom import METADATA, phantom_image, small_net, with_item, write_bundle


@pytest.fixture
def image() -> Tensor:
    return phantom_image()


def zip_folder(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
    return target


def test_a_bundle_folder_gives_the_network_with_its_weights_and_contract(tmp_path: Path, image: Tensor) -> None:
    model = load_model(write_bundle(tmp_path / "lesions"))
    assert torch.equal(model.network(image), small_net()(image))
    assert not model.network.training
    assert (model.name, model.kind, model.class_names) == ("lesions", "bundle", ("lesion",))
    assert (model.input_channels, model.spatial_dims, model.spatial_shape) == (1, 3, (20, 24, 28))
    assert model.layers_open
    assert not any(module.training for module in model.network.modules())


def test_a_bundles_preprocessing_starts_after_reading_and_keeps_its_order(tmp_path: Path) -> None:
    from monai.data import MetaTensor

    model = load_model(write_bundle(tmp_path / "lesions"))
    names = [type(t).__name__ for t in model.preprocessing.transforms]
    assert names == ["Orientationd", "Spacingd", "ScaleIntensityd", "EnsureTyped"]
    voxels = MetaTensor(
        torch.arange(2.0 * 3 * 4).reshape(1, 2, 3, 4), affine=torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
    )
    made = model.preprocessing({"image": voxels})["image"]
    assert np.allclose(np.diag(made.affine)[:3], (1.5, 1.25, 2.0))
    assert (float(made.min()), float(made.max()), made.dtype) == (-1.0, 1.0, torch.float32)


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_a_yaml_bundle_is_the_same_as_a_json_one(tmp_path: Path, image: Tensor, suffix: str) -> None:
    pytest.importorskip("yaml", reason="pyyaml is not installed")
    model = load_model(write_bundle(tmp_path / "lesions", suffix=suffix))
    assert torch.equal(model.network(image), small_net()(image))
    assert len(model.preprocessing.transforms) == 4


def test_a_zipped_bundle_is_the_same_as_its_folder_and_leaves_no_temporary_folder(
    tmp_path: Path, image: Tensor
) -> None:
    folder = write_bundle(tmp_path / "lesions")
    before = set(Path(tempfile.gettempdir()).glob("medcam-bundle-*"))
    zipped, plain = load_model(zip_folder(folder, tmp_path / "lesions_v1.zip")), load_model(folder)
    assert torch.equal(zipped.network(image), plain.network(image))
    assert zipped.name == "lesions_v1"
    assert zipped.sha256 == plain.sha256
    assert set(Path(tempfile.gettempdir()).glob("medcam-bundle-*")) == before


def test_the_digest_changes_with_weights_and_configuration_and_with_nothing_else(tmp_path: Path) -> None:
    first = load_model(write_bundle(tmp_path / "one")).sha256
    elsewhere = write_bundle(tmp_path / "deep" / "two")
    (elsewhere / "docs.txt").write_text("about")
    assert load_model(elsewhere).sha256 == first
    changed = write_bundle(tmp_path / "three", inference=with_item("note", "new"))
    assert load_model(changed).sha256 != first
    other = write_bundle(tmp_path / "four")
    state = small_net().state_dict()
    torch.save(state | {"score.bias": state["score.bias"] + 1}, other / "models" / "model.pt")
    assert load_model(other).sha256 != first


@pytest.mark.parametrize("member", ["../out.txt", "/out.txt", "a\\..\\..\\out.txt", "C:\\out.txt"])
def test_a_zip_that_would_write_outside_its_folder_is_refused(tmp_path: Path, member: str) -> None:
    path = zip_folder(write_bundle(tmp_path / "lesions"), tmp_path / "evil.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(member), "gotcha")
    with pytest.raises(ModelError, match="not safe to unpack"):
        load_model(path)


def test_a_zip_with_a_link_in_it_is_refused(tmp_path: Path) -> None:
    path = zip_folder(write_bundle(tmp_path / "lesions"), tmp_path / "evil.zip")
    link = zipfile.ZipInfo("lesions/scripts")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(ModelError, match="not safe to unpack"):
        load_model(path)


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    path = zip_folder(write_bundle(tmp_path / "lesions"), tmp_path / "evil.zip")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("lesions/zeros", bytes(3 * 2**20))
    with pytest.raises(ModelError, match="compressed more than"):
        load_model(path)


def test_arguments_that_monai_has_dropped_since_are_left_out_with_a_note(tmp_path: Path) -> None:
    model = load_model(write_bundle(tmp_path / "old", inference=with_item("network_def/img_size", [96, 96, 96])))
    assert any("img_size" in note for note in model.notes)


def test_random_preprocessing_is_noted(tmp_path: Path) -> None:
    flip = {"_target_": "RandFlipd", "keys": "image", "prob": 0.5}
    model = load_model(write_bundle(tmp_path / "random", inference=with_item("preprocessing/transforms/-", flip)))
    assert any("random" in note and "RandFlipd" in note for note in model.notes)


def test_metadata_that_say_little_leave_the_contract_to_the_network(tmp_path: Path) -> None:
    metadata = {
        "network_data_format": {"inputs": {"image": {"spatial_shape": ["*", "16*n", 3]}}, "outputs": {"pred": {}}}
    }
    for name, said in (("little", metadata), ("none", None)):
        model = load_model(write_bundle(tmp_path / name, metadata=said))
        assert (model.class_names, model.input_channels, model.spatial_dims) == ((), 1, 3)
        assert model.spatial_shape is None


def test_class_names_stand_in_the_order_of_the_channels(tmp_path: Path) -> None:
    metadata = copy.deepcopy(METADATA)
    pred = metadata["network_data_format"]["outputs"]["pred"]
    names = [f"class {n}" for n in range(12)]
    pred["channel_def"] = {str(n): names[n] for n in (10, 11, *range(10))}
    assert load_model(write_bundle(tmp_path / "many", metadata=metadata)).class_names == tuple(names)
    pred["channel_def"] = {"0": "background", "2": "tumour"}
    assert load_model(write_bundle(tmp_path / "gap", metadata=metadata)).class_names == ()


def test_a_bundle_without_weights_or_without_a_network_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"models/model\.pt"):
        load_model(write_bundle(tmp_path / "a", weights=False))
    with pytest.raises(ModelError, match="network_def"):
        load_model(write_bundle(tmp_path / "b", inference={"preprocessing": []}))
    (tmp_path / "c").mkdir()
    with pytest.raises(ModelError, match="not a MONAI bundle"):
        load_model(tmp_path / "c")


def test_a_broken_configuration_is_one_clear_line(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "broken")
    (folder / "configs" / "inference.json").write_text('{"network_def": ')
    with pytest.raises(ModelError, match=r"inference\.json cannot be read") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="'nowhere'"):
        load_model(write_bundle(tmp_path / "lost", inference=with_item("network_def/widths", "@nowhere")))
    with pytest.raises(ModelError, match=r"cannot be built.*KeyError: 7"):
        load_model(write_bundle(tmp_path / "wrong", inference=with_item("network_def/spatial_dims", 7)))


def test_a_missing_package_is_named_as_pip_knows_it() -> None:
    outer = RuntimeError("Failed to instantiate component")
    outer.__cause__ = ModuleNotFoundError("No module named 'ignite.engine'", name="ignite.engine")
    assert missing_package(outer) == "pytorch-ignite"
    assert missing_package(RuntimeError("other")) is None


# --- nothing runs without the user's word ----------------------------------------------------------------------------------------------


def evil_items(marker: Path) -> dict[str, tuple[str, Any]]:
    touch = f"touch {marker}"
    code = f"__import__('os').system('{touch}')"
    lines = f"open({str(marker)!r}, 'w').close()"
    last = "preprocessing/transforms/-"
    return {
        "an expression": ("network_def/sharpness", f"${code}"),
        "an expression that a reference leads to": ("widths", f"$[4, 6] if {code} == 0 else 1"),
        "a string that a reference ends": ("network_def/sharpness", "$'@f {" + lines.replace("'", '"') + "}'"),
        "a system call": ("network_def/sharpness", {"_target_": "os.system", "command": touch}),
        "a builtin": ("network_def/sharpness", {"_target_": "builtins.exec", "source": lines}),
        "a function below monai": ("network_def/sharpness", {"_target_": "monai.utils.module.run_eval", "x": lines}),
        "a class of another kind": ("network_def/sharpness", {"_target_": "torch.nn.Parameter"}),
        "a module reached through torch": ("network_def/sharpness", {"_target_": "torch.os.system", "command": touch}),
        "a module reached through torch.nn": (
            "network_def/sharpness",
            {"_target_": "torch.nn.modules.torch.os.system"},
        ),
        "a target that is a reference": (
            "network_def/sharpness",
            {"_target_": "$__import__('os').system", "command": touch},
        ),
        "an item switched off by a list that is empty in the end": (
            "network_def/sharpness",
            {
                "_target_": "os.system",
                "command": touch,
                "_disabled_": [{"_target_": "monai.transforms.Identity", "_disabled_": True}],
            },
        ),
        "code below a switched-off item": (
            "network_def/sharpness",
            {"_target_": "Lambda", "_disabled_": True, "func": f"${code}"},
        ),
        "code below a transform that is left out": (
            last,
            {"_target_": "Orientationd", "keys": {"_target_": "os.system", "command": touch}},
        ),
        "a lambda": (last, {"_target_": "Lambdad", "keys": "image", "func": f"$lambda x: {code}"}),
        "a lambda of plain arguments": (last, {"_target_": "monai.transforms.Lambda", "func": "$print"}),
        "a transform of another package": (last, {"_target_": "TorchVisiond", "keys": "image", "name": "Lambda"}),
        "a writer": (last, {"_target_": "SaveImaged", "keys": "image", "output_dir": str(marker)}),
        "a debugger": (last, {"_target_": "Identityd", "keys": "image", "_mode_": "debug"}),
    }


@pytest.mark.parametrize("case", sorted(evil_items(Path("x"))))
def test_code_in_a_bundle_does_not_run_unasked(tmp_path: Path, case: str) -> None:
    marker = tmp_path / "marker"
    place, value = evil_items(marker)[case]
    config = with_item(place, value) | {"f": 1}
    with pytest.raises(ModelError, match="--trust-code") as caught:
        load_model(write_bundle(tmp_path / "evil", inference=config))
    assert not marker.exists()
    # The item is named, so that the user can judge it.
    assert place.split("/")[0] in str(caught.value)


def test_two_items_that_share_a_name_cannot_hide_one_another(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    hidden = {"_target_": "os.system", "command": f"touch {marker}"}
    group = {"x::y": hidden, "x": {"y": 4.0}}
    config = with_item("network_def/sharpness", "@group::x::y") | {"group": group}
    with pytest.raises(ModelError, match=r"os\.system"):
        load_model(write_bundle(tmp_path / "evil", inference=config))
    assert not marker.exists()


def test_a_macro_cannot_bring_code_in_unseen(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "more.json").write_text(json.dumps({"x": f"$open({str(marker)!r}, 'w').close()", "y": "%more.json::x"}))
    for held in (f"%{tmp_path / 'more.json'}::x", "%second"):
        config = with_item("network_def/sharpness", held) | {"second": f"%{tmp_path / 'more.json'}::x"}
        folder = write_bundle(tmp_path / f"evil{len(held)}", inference=config)
        with pytest.raises(ModelError, match="runs code"):
            load_model(folder)
        assert not marker.exists()


def test_trusted_code_is_announced_before_it_runs_and_sees_the_bundles_own_scripts(
    tmp_path: Path, image: Tensor
) -> None:
    marker = tmp_path / "marker"
    config = with_item("network_def", {"_target_": "scripts_of_phantom.nets.Own"})
    config["imports"] = ["$from pathlib import Path as P"]
    config["preprocessing"]["transforms"].append(
        {"_target_": "Lambdad", "keys": "image", "func": f"$P({str(marker)!r}).touch() or (lambda x: x)"}
    )
    folder = write_bundle(tmp_path / "own", inference=config)
    (folder / "scripts_of_phantom").mkdir()
    source = (
        "from medcam.lesion_net import LesionNet\n\ndef Own():\n    return LesionNet(3, (4, 6), dilations=(1, 1))\n"
    )
    (folder / "scripts_of_phantom" / "nets.py").write_text(source)
    with pytest.raises(ModelError, match=r"scripts_of_phantom\.nets\.Own"):
        load_model(folder)
    assert not marker.exists()

    said: list[tuple[str, bool]] = []
    model = load_model(folder, trust_code=True, say=lambda line: said.append((line, marker.exists())))
    assert torch.equal(model.network(image), small_net()(image))
    assert marker.exists()
    assert not any(ran for _, ran in said)
    assert {"Own", "lambda", "import"} <= {
        word for word in ("Own", "lambda", "import") if any(word in line for line, _ in said)
    }
    assert not any("scripts_of_phantom" in name for name in sys.modules)
    assert str(folder) not in sys.path


@pytest.mark.parametrize(
    "expression",
    [
        "$False",
        "$1.0/255",
        "$[96]*3",
        "$@spacing[0]",
        "$-@a::b[1:] + 2",
        "$(1, 2)",
        "$torch.float32",
        "$len(@a) // 2",
        "$@a if @b > 0 else 3",
    ],
)
def test_arithmetic_needs_no_trust(expression: str) -> None:
    assert is_arithmetic(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "$open('x')",
        "$@a.to('cpu')",
        "$@a()",
        "$torch.load",
        "$monai",
        "$[x for x in @a]",
        "$lambda: 1",
        "$f'{1}'",
        "$import os",
        "$(",
        "$__import__",
    ],
)
def test_anything_beyond_arithmetic_needs_trust(expression: str) -> None:
    assert not is_arithmetic(expression)
