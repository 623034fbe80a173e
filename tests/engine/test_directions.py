"""More targets than channels: the same maps, from one forward-mode pass for each channel."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from monai.networks.nets import SegResNet
from torch import Tensor, nn

from engine.toy_networks import Segmenter, conv, image
from medcam.engine import Layer, relevances
from medcam.engine.directions import cheaper
from medcam.engine.layers import feature_layers
from medcam.errors import UsageError

DIMS = pytest.mark.parametrize("dims", [2, 3])


def layer_of(network: nn.Module, x: Tensor, name: str) -> Layer:
    (found,) = [layer for layer in feature_layers(network, x) if layer.name == name]
    return found


@DIMS
def test_every_class_gets_the_map_that_a_backward_pass_gives(dims: int) -> None:
    network, x = Segmenter(dims, classes=20).eval(), image(dims)
    layer = layer_of(network, x, "up")
    assert cheaper(20, layer.channels)
    many = relevances(network, x, targets=list(range(20)), layers=[layer])
    few = [relevances(network, x, targets=[c], layers=[layer])[0] for c in range(20)]
    for one, other in zip(many, few, strict=True):
        scale = float(other.values.abs().max())
        torch.testing.assert_close(one.values, other.values, rtol=1e-4, atol=1e-4 * scale)
        torch.testing.assert_close(one.scores, other.scores)
        assert one.classes == other.classes


def test_a_hundred_classes_of_a_real_network() -> None:
    network = SegResNet(spatial_dims=3, in_channels=1, out_channels=104, init_filters=8).eval()
    x = torch.randn(1, 1, 16, 24, 32)
    layer = layer_of(network, x, "act_mod")
    many = relevances(network, x, targets=list(range(104)), layers=[layer])
    for c in (0, 51, 103):
        (one,) = relevances(network, x, targets=[c], layers=[replace(layer, channels=10**6)])
        torch.testing.assert_close(many[c].values, one.values, rtol=1e-3, atol=1e-3 * float(one.values.abs().max()))


def test_a_score_that_does_not_depend_on_the_layer_is_refused_here_too() -> None:
    class Detached(Segmenter):
        def forward(self, x: Tensor) -> Tensor:
            wide = self.up(torch.cat([self.down(x).relu()] * 3, 1)).relu()
            return self.out(wide.detach())

    network, x = Detached(2, classes=20).eval(), image(2)
    layer = layer_of(network, x, "up")
    with pytest.raises(UsageError, match="does not depend on layer 'up'"):
        relevances(network, x, targets=list(range(20)), layers=[layer])


@DIMS
def test_means_that_cancel_are_noticed_without_the_gradient(dims: int) -> None:
    instance = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims]
    network = nn.Sequential(conv(dims)(2, 3, 3, padding=1), instance(3), nn.ReLU(), conv(dims)(3, 30, 1)).eval()
    x = image(dims)
    found = relevances(network, x, targets=list(range(30)), layers=[layer_of(network, x, "0")])
    assert all("cancels to rounding noise" in " ".join(one.notes[0]) for one in found)
