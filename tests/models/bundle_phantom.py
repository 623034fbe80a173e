"""A small bundle in MONAI's layout, written where a test asks for it, and a pickle that betrays that it was opened."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medcam.lesion_net import LesionNet

FACTORY = "medcam.lesion_net:LesionNet(3, (4, 6), dilations=[1, 1])"
INFERENCE: dict[str, Any] = {
    # Not needed for the network or the preprocessing, so never run: a test that ran it would fail.
    "imports": ["$import glob", "$import a_module_that_does_not_exist"],
    "bundle_root": ".",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "output_dir": "$@bundle_root + '/eval'",
    "datalist": "$list(sorted(glob.glob('/data/*.nii.gz')))",
    "spacing": [1.5, 1.25, 2.0],
    "widths": [4, 6],
    "network_def": {
        "_target_": "medcam.lesion_net.LesionNet",
        "spatial_dims": 3,
        "widths": "@widths",
        "dilations": "$[1] * len(@widths)",
    },
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image", "reader": "ITKReader"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {
                "_target_": "Orientationd",
                "keys": "image",
                "axcodes": "RAS",
                "labels": [["L", "R"], ["P", "A"], ["I", "S"]],
            },
            {
                "_target_": "Spacingd",
                "keys": "image",
                "pixdim": "$[@spacing[0], @spacing[1], 2 * 1.0]",
                "mode": "bilinear",
            },
            {"_target_": "ScaleIntensityd", "keys": "image", "minv": "$-1.0", "maxv": 1.0},
            {"_target_": "EnsureTyped", "keys": "image", "device": "@device", "dtype": "$torch.float32"},
        ],
    },
    "evaluator": {"_target_": "SupervisedEvaluator", "device": "@device", "network": "@network"},
}
METADATA: dict[str, Any] = {
    "version": "0.1.0",
    "network_data_format": {
        "inputs": {"image": {"num_channels": 1, "spatial_shape": [20, 24, 28], "modality": "MR"}},
        "outputs": {"pred": {"num_channels": 1, "channel_def": {"0": "lesion"}}},
    },
}


def small_net() -> LesionNet:
    """The network that the phantom bundle defines, with weights that are the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return LesionNet(3, (4, 6), dilations=(1, 1)).eval()


def write_bundle(
    folder: Path,
    *,
    inference: Mapping[str, Any] = INFERENCE,
    metadata: Mapping[str, Any] | None = METADATA,
    suffix: str = ".json",
    weights: bool = True,
) -> Path:
    """Write configs/inference, configs/metadata.json and models/model.pt into `folder`, and return the folder."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    text = json.dumps(inference, indent=1)  # JSON is YAML, too
    (folder / "configs" / f"inference{suffix}").write_text(text)
    if metadata is not None:
        (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    if weights:
        torch.save(small_net().state_dict(), folder / "models" / "model.pt")
    return folder


def phantom_image() -> Tensor:
    """A batch of one that the network accepts."""
    return torch.rand((1, 1, 20, 24, 28), generator=torch.Generator().manual_seed(3))


def with_item(place: str, value: Any) -> dict[str, Any]:
    """The phantom's configuration with one item changed, its place written with slashes."""
    config = copy.deepcopy(INFERENCE)
    *parents, last = place.split("/")
    held: Any = config
    for part in parents:
        held = held[int(part) if isinstance(held, list) else part]
    if isinstance(held, list):
        held.append(value)
    else:
        held[last] = value
    return config


class Marker:
    """A pickle of this leaves a file behind when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)
