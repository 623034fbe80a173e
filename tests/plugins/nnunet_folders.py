"""nnU-Net v2 model folders with random weights: plans made by hand, network and checkpoint made by nnU-Net's own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

LABELS: dict[str, Any] = {"background": 0, "spleen": 1, "lesion": 2}
REGIONS: dict[str, Any] = {"background": 0, "whole tumour": [1, 2], "core": 2}
PATCH = (12, 16, 20)
MIRRORED = (0, 1, 2)


def plans(
    *, transpose_forward: tuple[int, ...] = (0, 1, 2), spacing: tuple[float, ...] = (2.5, 1.5, 1.2), channels: int = 1,
    patch: tuple[int, ...] = PATCH, reader: str = "SimpleITKIO", films: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """What nnUNetv2_plan_experiment writes, for a network of two stages."""
    dims = len(patch)
    convolution = f"torch.nn.modules.conv.Conv{dims}d"
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": list(patch), "median_image_size_in_voxels": list(patch), "spacing": list(spacing),
        "normalization_schemes": ["ZScoreNormalization"] * channels, "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2, "features_per_stage": [4, 6], "conv_op": convolution, "kernel_sizes": [[3] * dims] * 2,
                "strides": [[1] * dims, [2] * dims], "n_conv_per_stage": [1, 1], "n_conv_per_stage_decoder": [1],
                "conv_bias": True, "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }  # fmt: skip
    statistics = {
        "max": 3.0,
        "mean": 0.5,
        "median": 0.5,
        "min": -1.0,
        "percentile_00_5": -1.0,
        "percentile_99_5": 3.0,
        "std": 1.0,
    }
    return {
        "dataset_name": "Dataset777_Phantom", "plans_name": "nnUNetPlans", "original_median_spacing_after_transp": list(spacing),
        "original_median_shape_after_transp": [1 if films else 20, *patch[-2:]], "image_reader_writer": reader,
        "transpose_forward": list(transpose_forward), "transpose_backward": np.argsort(transpose_forward).tolist(),
        "configurations": {"3d_fullres" if dims == 3 else "2d": configuration}, "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(c): statistics for c in range(channels)},
    }  # fmt: skip


def write_folder(
    folder: Path,
    made: dict[str, Any],
    *,
    labels: dict[str, Any] = LABELS,
    folds: tuple[str, ...] = ("0",),
    file_ending: str = ".nii.gz",
) -> Path:
    """A folder as training leaves it; the network of each fold has other weights."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    (name,) = made["configurations"]
    channels = len(made["configurations"][name]["normalization_schemes"])
    dataset = {
        "channel_names": {str(c): f"channel {c}" for c in range(channels)}, "labels": labels, "numTraining": 3, "file_ending": file_ending,
    }  # fmt: skip
    if any(isinstance(value, list) for value in labels.values()):
        dataset["regions_class_order"] = [1, 2]
    home = folder / "Dataset777_Phantom" / f"nnUNetTrainer__nnUNetPlans__{name}"
    home.mkdir(parents=True)
    (home / "plans.json").write_text(json.dumps(made))
    (home / "dataset.json").write_text(json.dumps(dataset))
    manager = PlansManager(made)
    taken = determine_num_input_channels(manager, manager.get_configuration(name), dataset)
    heads = manager.get_label_manager(dataset).num_segmentation_heads
    for fold in folds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11 + len(fold) + sum(map(ord, fold)))
            network: nn.Module = nnUNetTrainer.build_network_architecture(
                manager, manager.get_configuration(name), taken, heads, True
            )
            for parameter in network.parameters():
                nn.init.normal_(parameter, std=0.4)
        (home / f"fold_{fold}").mkdir()
        checkpoint = {
            "network_weights": network.state_dict(), "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": name, "fold": fold, "plans": made, "dataset_json": dataset},
            "inference_allowed_mirroring_axes": MIRRORED[: len(manager.get_configuration(name).patch_size)], "current_epoch": 1000,
            "_best_ema": np.float64(0.8),
        }  # fmt: skip
        torch.save(checkpoint, home / f"fold_{fold}" / "checkpoint_final.pth")
    return home
