"""A quick copy of a module tree is what `copy.deepcopy` gives."""

from __future__ import annotations

import copy
from collections import OrderedDict
from functools import partial
from typing import Any

import pytest
import torch
from monai.networks.nets import DynUNet, EfficientNetBN, SwinUNETR, UNet, ViT
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from engine.toy_networks import Classifier
from medcam.engine.copying import copied


class Odd(nn.Module):
    """Attributes of many kinds that point at each other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = weight_norm(nn.Conv2d(1, 2, 3))
        self.again = self.conv
        self.attention = nn.MultiheadAttention(4, 2)
        self.rnn = nn.GRU(4, 4)
        self.hidden = [self.conv, {"self": self}, (self.conv, 3)]
        self.method, self.function = self.half, partial(self.half, torch.ones(1))
        self.named = OrderedDict(a=[1, 2])
        self.conv.register_forward_hook(self.count)
        self.calls: list[int] = []
        self.double()

    def half(self, x: Tensor) -> Tensor:
        return x / 2

    def count(self, *_: Any) -> None:
        self.calls.append(len(self.calls))

    def forward(self, x: Tensor) -> Tensor:
        return self.method(self.again(x))


NETWORKS = [
    lambda: Classifier(3),
    Odd,
    lambda: UNet(2, 1, 2, (4, 8), (2,)),
    lambda: DynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 16], deep_supervision=True),
    lambda: EfficientNetBN("efficientnet-b0", pretrained=False, spatial_dims=2, in_channels=1, num_classes=2),
    lambda: SwinUNETR(1, 2, spatial_dims=2, feature_size=12),
    lambda: ViT(1, (16, 16), (8, 8), spatial_dims=2, hidden_size=12, mlp_dim=8, num_layers=1, num_heads=2),
]


@pytest.mark.parametrize("make", NETWORKS)
def test_it_is_what_deepcopy_gives(make) -> None:
    network = make()
    quick, slow = copied(network, {}), copy.deepcopy(network)
    assert [name for name, _ in quick.named_modules()] == [name for name, _ in slow.named_modules()]
    pairs = list(zip(network.modules(), quick.modules(), slow.modules(), strict=True))
    for own, one, two in pairs:
        assert one is not own
        assert type(one) is type(two)
        assert vars(one).keys() == vars(two).keys()
        for name, value in vars(two).items():
            found, original = vars(one)[name], vars(own)[name]
            assert type(found) is type(value)
            assert (found is original) == (value is original) or not isinstance(value, (list, dict, nn.Module))
    for (name, value), (_, expected) in zip(quick.state_dict().items(), slow.state_dict().items(), strict=True):
        torch.testing.assert_close(value, expected, msg=name)


def test_what_points_at_a_module_points_at_its_copy() -> None:
    network = Odd()
    found = copied(network, {})
    assert found.again is found.conv is found.hidden[0] is found.hidden[2][0]
    assert found.hidden[1]["self"] is found.method.__self__ is found.function.func.__self__ is found
    found(torch.ones(1, 1, 4, 4, dtype=torch.float64))
    assert (found.calls, network.calls) == ([0], [])
    found.named["a"].append(3)
    assert network.named["a"] == [1, 2]


def test_what_the_memo_stands_for_is_shared() -> None:
    network = Classifier(2)
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.parameters()}
    found = copied(network, memo)
    for own, one in zip(network.parameters(), found.parameters(), strict=True):
        assert (one.data_ptr(), one.requires_grad) == (own.data_ptr(), False)
