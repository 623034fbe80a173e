"""Which layers there are, and which one is the default."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import DynUNet, SegResNet, UNet, VNet, resnet18
from torch import nn

from engine.toy_networks import Classifier, Segmenter, image
from medcam.engine.layers import default_layer, feature_layers
from medcam.errors import UsageError
from medcam.lesion_net import LesionNet

DIMS = pytest.mark.parametrize("dims", [2, 3])


@DIMS
def test_the_default_is_the_last_feature_map_before_the_head(dims: int) -> None:
    layers = feature_layers(Classifier(dims).eval(), image(dims))
    assert default_layer(layers).name == "pool"
    assert [layer.name for layer in layers] == ["stem", "block.0", "block", "act", "pool"]


@DIMS
def test_the_output_convolution_is_never_the_default(dims: int) -> None:
    layers = feature_layers(Segmenter(dims).eval(), image(dims))
    assert default_layer(layers).name == "up"
    (out,) = [layer for layer in layers if layer.name == "out"]
    assert not out.before_head
    scores = feature_layers(LesionNet(dims, (3, 4, 5, 6)).eval(), torch.randn(1, 1, *(24, 32, 40)[:dims]))
    assert default_layer(scores).name == "features"


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (lambda: resnet18(spatial_dims=3, n_input_channels=1, num_classes=2), "layer4"),
        (lambda: UNet(3, 1, 2, (4, 8, 16), (2, 2), num_res_units=2), "model.1"),
        (lambda: VNet(3, 1, 2), "up_tr32"),
        (lambda: SegResNet(spatial_dims=3, in_channels=1, out_channels=2, init_filters=8), "act_mod"),
        (lambda: DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 16]), "skip_layers"),
    ],
)
def test_defaults_of_monai_networks(network, expected: str) -> None:
    assert default_layer(feature_layers(network().eval(), torch.randn(1, 1, 32, 32, 48))).name == expected


def test_a_block_and_its_last_member_are_one_layer_but_an_in_place_relu_is_another() -> None:
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 1)
    )
    names = [layer.name for layer in feature_layers(network.eval(), torch.randn(1, 1, 8, 9))]
    assert names == ["0.0", "0", "1", "2"]


def test_a_network_without_feature_maps_has_no_default() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(72, 2))
    with pytest.raises(UsageError, match="no default"):
        default_layer(feature_layers(network, torch.randn(1, 1, 8, 9)))
