"""Which layer: evidence for each, and a default whose gradient says something."""

from __future__ import annotations

import math

import pytest
import torch
from monai.networks.nets import ViT
from torch import Tensor, nn

from engine.toy_networks import Classifier, conv, image
from medcam import layers, relevance

DIMS = pytest.mark.parametrize("dims", [2, 3])


class Normed(nn.Module):
    """A convolution in front of an instance norm, in a block whose last member is a convolution too: the last feature map cancels."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        instance = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims]
        self.stem = nn.Sequential(conv(dims)(2, 4, 3, padding=1), nn.ReLU())
        self.last = conv(dims)(4, 6, 3, stride=2, padding=1)
        self.norm = instance(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = nn.functional.instance_norm(self.last(self.stem(x)))
        return self.head(features.relu().flatten(2).mean(2))


@DIMS
def test_a_layer_whose_means_cancel_is_never_the_default(dims: int) -> None:
    network, x = Normed(dims).eval(), image(dims)
    found = relevance(network, x, target=1)
    assert found.layer == "stem"
    assert not any("cancels" in note for note in found.notes[0])
    evidence = {each.layer.name: each for each in layers(network, x, target=1)}
    assert evidence["last"].means_cancel
    assert not evidence["stem"].means_cancel


@DIMS
def test_the_share_owed_to_places_is_exact_where_the_score_is_linear_in_the_layer(dims: int) -> None:
    network = nn.Sequential(conv(dims)(2, 3, 3, padding=1), nn.Flatten(), nn.LazyLinear(2)).double().eval()
    x = image(dims, 1).double()
    with torch.no_grad():
        score = network(x)[0, 1]
        features = network[0](x)
        spread = features.flatten(2).mean(2)[(...,) + (None,) * dims].expand_as(features)
        without = network[2](spread.flatten(1))[0, 1]
    (evidence,) = [each for each in layers(network, x, target=1) if each.layer.name == "0"]
    assert evidence.owed == pytest.approx(float((score - without) / score.abs()))


def test_a_layer_that_the_score_does_not_see_owes_nothing_that_is_a_number() -> None:
    class Aside(Classifier):
        def __init__(self) -> None:
            super().__init__(2)
            self.aside = conv(2)(5, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.aside(self.stem(x))
            return super().forward(x)

    evidence = {each.layer.name: each.owed for each in layers(Aside().eval(), image(2), target=1)}
    assert math.isnan(evidence["aside"])
    assert not math.isnan(evidence["block"])


@pytest.mark.parametrize("dims", [2, 3])
def test_a_class_token_is_explained_where_it_still_looks_at_the_image(dims: int) -> None:
    sides = (32, 48, 16)[:dims]
    network = ViT(
        1, sides, (8,) * dims, hidden_size=24, mlp_dim=32, num_layers=3, num_heads=3, classification=True, num_classes=3,
        spatial_dims=dims, post_activation=None,
    ).eval()  # fmt: skip
    x = torch.randn(2, 1, *sides)
    found = relevance(network, x, target=1)
    assert found.values.shape == (2, *(n // 8 for n in sides))
    assert found.stride == (8.0,) * dims
    assert found.offset == (3.5,) * dims
    assert float(found.values.abs().max()) > 0
    assert not any("zero everywhere" in note for note in found.notes[0])
