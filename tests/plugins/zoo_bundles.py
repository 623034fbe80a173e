"""Two whole bundles in the layouts of the MONAI Model Zoo, small and with generated weights: one that segments, one that classifies.

What the Zoo's bundles have, these have: imports, expressions, dataset, data loader, inferer, postprocessing, handlers, evaluator, a
checkpoint loader and what is run, under the names that the Zoo uses.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import DenseNet, UNet

IMAGE = {"keys": "image"}
SEGMENTING: dict[str, Any] = {
    "imports": ["$import glob", "$import os"],
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/eval'",
    "dataset_dir": "/workspace/data",
    "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.nii.gz')))",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network_def": {
        "_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 6, 8], "strides": [2, 2],
        "num_res_units": 1, "norm": "batch",
    },
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", **IMAGE},
            {"_target_": "EnsureChannelFirstd", **IMAGE},
            {"_target_": "Orientationd", **IMAGE, "axcodes": "RAS", "labels": [["L", "R"], ["P", "A"], ["I", "S"]]},
            {"_target_": "Spacingd", **IMAGE, "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
            {"_target_": "ScaleIntensityRanged", **IMAGE, "a_min": -0.5, "a_max": 1.0, "b_min": 0, "b_max": 1, "clip": True},
            {"_target_": "EnsureTyped", **IMAGE},
        ],
    },
    "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False, "num_workers": 0},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 20, 16], "sw_batch_size": 2, "overlap": 0.5},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {
                "_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image",
                "nearest_interp": False, "to_tensor": True,
            },
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {
                "_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "trans",
                "separate_folder": False,
            },
        ],
    },
    "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
    "evaluator": {
        "_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@dataloader", "network": "@network",
        "inferer": "@inferer", "postprocessing": "@postprocessing", "val_handlers": "@handlers",
    },
    "checkpointloader": {
        "_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'", "load_dict": {"model": "@network"},
    },
    "initialize": ["$monai.utils.set_determinism(seed=123)", "$@checkpointloader(@evaluator)"],
    "run": ["$@evaluator.run()"],
}  # fmt: skip
CLASSIFYING: dict[str, Any] = {
    "imports": ["$import glob", "$import os"],
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/eval'",
    "dataset_dir": "/workspace/data",
    "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.png')))",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network_def": {
        "_target_": "DenseNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2, "init_features": 4, "growth_rate": 4,
        "block_config": [2, 2], "bn_size": 1,
    },
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", **IMAGE},
            {"_target_": "EnsureChannelFirstd", **IMAGE},
            {"_target_": "ScaleIntensityd", **IMAGE, "minv": 0.0, "maxv": 1.0},
            {"_target_": "Resized", **IMAGE, "spatial_size": [48, 40]},
            {"_target_": "EnsureTyped", **IMAGE},
        ],
    },
    "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 2, "shuffle": False, "num_workers": 0},
    "inferer": {"_target_": "SimpleInferer"},
    "postprocessing": {
        "_target_": "Compose", "transforms": [{"_target_": "Activationsd", "keys": "pred", "softmax": True}],
    },
    "handlers": [
        {
            "_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        },
        {
            "_target_": "ClassificationSaver", "output_dir": "@output_dir",
            "batch_transform": "$lambda batch: [item['image'].meta for item in batch]",
            "output_transform": "$monai.handlers.from_engine(['pred'])",
        },
    ],
    "evaluator": {
        "_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@dataloader", "network": "@network",
        "inferer": "@inferer", "postprocessing": "@postprocessing", "val_handlers": "@handlers",
    },
    "run": ["$@evaluator.run()"],
}  # fmt: skip


def _metadata(channels: dict[str, str], sides: list[int]) -> dict[str, Any]:
    return {
        "version": "0.1.0", "monai_version": "1.6.1", "task": "a generated bundle",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image", "format": "magnitude", "num_channels": 1, "spatial_shape": sides, "dtype": "float32",
                    "value_range": [0, 1], "is_patch_data": True, "channel_def": {"0": "image"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image", "format": "segmentation", "num_channels": len(channels), "spatial_shape": sides,
                    "dtype": "float32", "value_range": [0, 1], "is_patch_data": True, "channel_def": channels,
                }
            },
        },
    }  # fmt: skip


def write_segmenting(folder: Path) -> Path:
    """A bundle that segments volumes in sliding windows, as spleen_ct_segmentation does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = UNet(3, 1, 3, (4, 6, 8), (2, 2), num_res_units=1, norm="batch")
    names = {"0": "background", "1": "spleen", "2": "lesion"}
    return _write(folder, SEGMENTING, _metadata(names, [16, 20, 16]), network)


def write_classifying(folder: Path) -> Path:
    """A bundle that classifies films, as breast_density_classification and endoscopic_inbody_classification do."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = DenseNet(2, 1, 2, init_features=4, growth_rate=4, block_config=(2, 2), bn_size=1)
    return _write(folder, CLASSIFYING, _metadata({"0": "clear", "1": "opaque"}, [48, 40]), network)


def _write(folder: Path, inference: dict[str, Any], metadata: dict[str, Any], network: torch.nn.Module) -> Path:
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True)
    (folder / "configs" / "inference.json").write_text(json.dumps(inference, indent=2))
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata, indent=2))
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder
