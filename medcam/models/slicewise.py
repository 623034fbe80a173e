"""A network of slices as a network of volumes that are one slice deep: the same numbers, and a place for each in three dimensions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from medcam.errors import ModelError


def slicewise(network: nn.Module) -> nn.Module:
    """Return a copy of a 2D network that takes `b c 1 *s`: each 2D module is replaced by its 3D twin, which is one voxel thick.

    Normalisation over an instance is that of the slice as long as volumes are one slice deep.

    Raises
    ------
    ModelError
        If the network holds a 2D module that has no such twin.
    """
    copied = copy.deepcopy(network)
    # A module may stand under several names, and is then one module again.
    twins: dict[nn.Module, nn.Module] = {}
    for parent in list(copied.modules()):
        for name, module in parent.named_children():
            if module not in twins:
                twins[module] = _twin(module)
            setattr(parent, name, twins[module])
    return copied.train(network.training)


def _twin(module: nn.Module) -> nn.Module:
    for kind, make in _TWINS.items():
        if type(module) is kind:
            made: nn.Module = make(module)
            weights = module.state_dict()
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                weights["weight"] = weights["weight"].unsqueeze(2)
            made.load_state_dict(weights)
            made.to(next(iter(weights.values()), torch.zeros(())).device)
            return made
    if "2d" in type(module).__name__:
        raise ModelError(f"the 2D network holds a {type(module).__name__}, which medcam cannot lay through a volume")
    return module


def _thin(size: Any, depth: int) -> Any:
    """Return a size of two axes with one for the slice in front; words such as 'same' stand for any number of axes."""
    return size if isinstance(size, str) else (depth, *(size if isinstance(size, tuple) else (size, size)))


def _convolution(m: Any) -> nn.Module:
    return nn.Conv3d(
        m.in_channels, m.out_channels, _thin(m.kernel_size, 1), _thin(m.stride, 1), _thin(m.padding, 0), _thin(m.dilation, 1), m.groups,
        m.bias is not None, m.padding_mode,
    )  # fmt: skip


def _transposed(m: Any) -> nn.Module:
    return nn.ConvTranspose3d(
        m.in_channels, m.out_channels, _thin(m.kernel_size, 1), _thin(m.stride, 1), _thin(m.padding, 0), _thin(m.output_padding, 0),
        m.groups, m.bias is not None, _thin(m.dilation, 1), m.padding_mode,
    )  # fmt: skip


_TWINS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Conv2d: _convolution,
    nn.ConvTranspose2d: _transposed,
    nn.InstanceNorm2d: lambda m: nn.InstanceNorm3d(m.num_features, m.eps, m.momentum, m.affine, m.track_running_stats),
    nn.BatchNorm2d: lambda m: nn.BatchNorm3d(m.num_features, m.eps, m.momentum, m.affine, m.track_running_stats),
    nn.Dropout2d: lambda m: nn.Dropout3d(m.p, m.inplace),
    nn.AvgPool2d: lambda m: nn.AvgPool3d(
        _thin(m.kernel_size, 1), _thin(m.stride, 1), _thin(m.padding, 0), m.ceil_mode, m.count_include_pad
    ),
    nn.MaxPool2d: lambda m: nn.MaxPool3d(
        _thin(m.kernel_size, 1), _thin(m.stride, 1), _thin(m.padding, 0), ceil_mode=m.ceil_mode
    ),
}
