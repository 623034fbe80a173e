"""The networks that are measured, and the layer of each that is explained.

Weights are random, and the running statistics of batch norms too, so that no operation is the identity. `full` is the size that the
documented figures stand for; `small` serves continuous integration: shares of operations hardly depend on size, memory does a little. For
small inputs torch's 3D convolution on the CPU unfolds its input in memory (while batch * channels * first two sides is below 20481), which
would drown what is measured; the small sizes are flat enough to avoid that where it counts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from monai.networks import nets
from torch import Tensor, nn

from benchmarks.meters import Work, work, work_so_far


@dataclass(frozen=True)
class Workload:
    """A network, its input, and what of it is explained.

    Parameters
    ----------
    build
        Makes the network for an input of those spatial sides.
    full, small
        Shapes of the input.
    layer
        The module whose output is explained.
    place
        'last' (in front of a classifier's head), 'decoder' (in front of the output convolution) or 'deep' (a real share of the network
        follows).
    segments
        Whether the output is a map of classes.
    what
        In words, for the table.
    tokens
        Whether the layer gives tokens, a class token first.
    """

    name: str
    build: Callable[[tuple[int, ...]], nn.Module]
    full: tuple[int, ...]
    small: tuple[int, ...]
    layer: str
    place: str
    segments: bool
    what: str
    tokens: bool = False

    @property
    def dims(self) -> int:
        return len(self.full) - 2


@dataclass(frozen=True, eq=False)
class Case:
    """A workload that stands ready: a network in evaluation mode and an input, on one device, at one size."""

    workload: Workload
    network: nn.Module
    inputs: Tensor
    size: str

    @property
    def device(self) -> str:
        return self.inputs.device.type

    @property
    def classes(self) -> int:
        return int(self.forward().shape[1])

    def forward(self) -> Tensor:
        """One plain pass: the unit of every figure."""
        with torch.inference_mode():
            return first_tensor(self.network(self.inputs))

    @property
    def tokens(self) -> tuple[int, ...] | None:
        """The grid that the layer's tokens stand for, where it gives tokens."""
        return tuple(n // _PATCH for n in self.inputs.shape[2:]) if self.workload.tokens else None


def first_tensor(output: Any) -> Tensor:
    """Return the scores: MONAI's ViT gives a tuple."""
    return output[0] if isinstance(output, (tuple, list)) else output


@cache
def case(workload: Workload, size: str = "full", device: str = "cpu") -> Case:
    """Return a workload ready to run. The same weights and the same input each time."""
    shape = {"full": workload.full, "small": workload.small}[size]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        network = workload.build(shape[2:]).eval()
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        inputs = torch.randn(shape)
    return Case(workload, network.to(device), inputs.to(device), size)


@dataclass(frozen=True)
class Passed:
    """What one plain forward pass did.

    Parameters
    ----------
    done
        All of it.
    tail_share
        b: the share of its operations that comes after the layer.
    channels
        Of the layer.
    """

    done: Work
    tail_share: float
    channels: int


@cache
def passed(ready: Case) -> Passed:
    """Count one plain forward pass, and what of it comes after the layer."""
    before: list[int] = []
    channels: list[int] = []

    def note(_module: nn.Module, _args: Any, output: Any) -> None:
        before.append(work_so_far().flops)
        channels.append(first_tensor(output).shape[2 if ready.workload.tokens else 1])

    handle = ready.network.get_submodule(ready.workload.layer).register_forward_hook(note)
    try:
        done = work(ready.forward)
    finally:
        handle.remove()
    return Passed(done, 1 - before[-1] / done.flops, channels[-1])


def occlusion_window(ready: Case) -> tuple[int, ...]:
    """Return the sides of a box of which 64 fill the input."""
    parts = 8 if ready.workload.dims == 2 else 4
    return tuple(n // parts for n in ready.inputs.shape[2:])


def _densenet(dims: int) -> Callable[[tuple[int, ...]], nn.Module]:
    return lambda _sides: nets.DenseNet121(spatial_dims=dims, in_channels=1, out_channels=14)


def _segresnet(filters: int = 16, classes: int = 3) -> Callable[[tuple[int, ...]], nn.Module]:
    return lambda _sides: nets.SegResNet(spatial_dims=3, init_filters=filters, in_channels=1, out_channels=classes)


def _unet(_sides: tuple[int, ...]) -> nn.Module:
    return nets.UNet(
        spatial_dims=3, in_channels=1, out_channels=3, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), num_res_units=2
    )  # fmt: skip


def _vit(sides: tuple[int, ...]) -> nn.Module:
    return nets.ViT(
        in_channels=1, img_size=sides, patch_size=_PATCH, hidden_size=384, mlp_dim=1536, num_heads=6, num_layers=12,
        classification=True, num_classes=3,
    )  # fmt: skip


_PATCH = 16
_BOTTLENECK = "model.1.submodule.1.submodule.1.submodule.1.submodule"

# fmt: off
WORKLOADS: dict[str, Workload] = {w.name: w for w in (
    Workload("dn2d", _densenet(2), (1, 1, 512, 512), (1, 1, 256, 224), "class_layers.relu", "last", False,
             "DenseNet121 2D, 512 x 512, 14 classes"),
    Workload("dn2d_b8", _densenet(2), (8, 1, 96, 96), (4, 1, 128, 96), "class_layers.relu", "last", False,
             "the same, a batch of 8, 96 x 96"),
    Workload("dn3d", _densenet(3), (1, 1, 96, 96, 96), (1, 1, 64, 80, 48), "class_layers.relu", "last", False,
             "DenseNet121 3D, 96^3"),
    Workload("r18", lambda _sides: nets.resnet18(spatial_dims=3, n_input_channels=1, num_classes=3), (1, 1, 64, 64, 64),
             (1, 1, 32, 48, 16), "layer4", "last", False, "ResNet18 3D, 64^3"),
    Workload("segres", _segresnet(), (1, 1, 64, 64, 64), (1, 1, 64, 48, 16), "up_layers.2", "decoder", True,
             "SegResNet 64^3, its last decoder level"),
    Workload("segres_enc", _segresnet(), (1, 1, 64, 64, 64), (1, 1, 64, 48, 16), "down_layers.3", "deep", True,
             "the same, its deepest encoder level"),
    Workload("unet", _unet, (1, 1, 96, 96, 96), (1, 1, 112, 96, 32), _BOTTLENECK, "deep", True,
             "residual UNet 96^3, its bottleneck"),
    Workload("swin", lambda _sides: nets.SwinUNETR(in_channels=1, out_channels=3, feature_size=24),
             (1, 1, 64, 64, 64), (1, 1, 64, 32, 32), "encoder10", "deep", True, "SwinUNETR(24) 64^3, encoder10"),
    Workload("vit", _vit, (1, 1, 96, 96, 96), (1, 1, 48, 64, 32), "blocks.11.norm1", "deep", False,
             "ViT 3D 96^3, the last block's first norm", tokens=True),
    Workload("organs", _segresnet(8, 104), (1, 1, 64, 64, 64), (1, 1, 64, 48, 16), "up_layers.2", "decoder", True,
             "SegResNet(8) 64^3, 104 classes, its last decoder level of 8 channels"),
)}
# fmt: on
