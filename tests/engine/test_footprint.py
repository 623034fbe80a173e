"""Where a feature cell lies in the input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.nets import DenseNet121, DynUNet, EfficientNetBN, SegResNet, UNet, ViT, VNet, resnet18
from torch import Tensor, nn

from engine.toy_networks import Classifier, Segmenter, conv, image
from medcam.engine.footprint import footprints

DIMS = pytest.mark.parametrize("dims", [2, 3])


def centre_by_gradients(network: nn.Module, size: tuple[int, ...], cell: tuple[int, ...]) -> list[float]:
    """The centroid of what one cell sees, by autograd: an independent way, exact where all weights are positive."""
    x = torch.ones(1, 2, *size, requires_grad=True)
    (seen,) = torch.autograd.grad(network(x)[(0, slice(None), *cell)].sum(), x)
    weight = seen[0].sum(0).detach().numpy()
    return [float((np.arange(n) * weight.sum(axis=tuple(a for a in range(len(size)) if a != axis))).sum() / weight.sum())
            for axis, n in enumerate(size)]  # fmt: skip


@DIMS
@pytest.mark.parametrize(
    "steps",
    [
        [("conv", 3, 2, 1, 1), ("conv", 3, 2, 1, 1)],
        [("conv", 7, 2, 3, 1), ("pool", 2, 2, 0, 1), ("conv", 3, 1, 0, 1)],
        [("conv", 2, 2, 0, 1), ("conv", 3, 1, 2, 2), ("pool", 3, 2, 1, 1)],
        [("conv", 4, 3, 1, 1), ("conv", 3, 1, 0, 1)],
    ],
)
def test_a_cell_lies_where_autograd_says_it_looks(dims: int, steps: list[tuple[str, int, int, int, int]]) -> None:
    layers: list[nn.Module] = []
    channels = 2
    for kind, k, s, p, d in steps:
        if kind == "conv":
            layers += [conv(dims)(channels, 3, k, stride=s, padding=p, dilation=d, bias=False), nn.ReLU(inplace=True)]
            nn.init.constant_(layers[-2].weight, 0.1)
            channels = 3
        else:
            layers.append({2: nn.AvgPool2d, 3: nn.AvgPool3d}[dims](k, s, p))
    network = nn.Sequential(*layers)
    size = (47, 52, 49)[:dims]
    name = str(len(layers) - 1)
    found = footprints(network, torch.zeros(1, 2, *size), [name])[name]
    cells = network(torch.zeros(1, 2, *size)).shape[2:]
    cell = tuple(n // 2 for n in cells)
    expected = centre_by_gradients(network, size, cell)
    np.testing.assert_allclose(np.array(found.offset) + np.array(found.stride) * cell, expected, atol=1e-3)
    assert found.measured


def one(network: nn.Module, shape: tuple[int, ...], layer: str) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    found = footprints(network.eval(), torch.zeros(shape), [layer])[layer]
    return found.stride, found.offset, found.measured


def test_the_networks_of_the_field_lie_where_stride_arithmetic_says() -> None:
    net: nn.Module = resnet18(spatial_dims=3, n_input_channels=1, num_classes=2)
    assert one(net, (1, 1, 32, 40, 48), "layer3") == ((8.0,) * 3, (0.0,) * 3, True)
    net = DenseNet121(spatial_dims=2, in_channels=1, out_channels=2)
    assert one(net, (1, 1, 128, 96), "features") == ((32.0,) * 2, (14.0,) * 2, True)
    net = VNet(spatial_dims=2, in_channels=1, out_channels=2)
    assert one(net, (1, 1, 64, 96), "down_tr64") == ((4.0,) * 2, (1.5,) * 2, True)
    # 'Same' padding of the TensorFlow kind: one voxel on the far side only.
    net = EfficientNetBN("efficientnet-b0", pretrained=False, spatial_dims=2, in_channels=1, num_classes=2)
    assert one(net, (1, 1, 128, 128), "_conv_head") == ((32.0,) * 2, (31.0,) * 2, True)
    net = ViT(1, (32, 32, 48), (16, 16, 16), hidden_size=48, mlp_dim=96, num_heads=4, num_layers=1)
    assert one(net, (1, 1, 32, 32, 48), "patch_embedding.patch_embeddings") == ((16.0,) * 3, (7.5,) * 3, True)


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (lambda: SegResNet(spatial_dims=3, in_channels=1, out_channels=2, init_filters=8), "up_layers.2"),
        (lambda: UNet(3, 1, 2, (4, 8, 16), (2, 2), num_res_units=1), "model.2"),
        (lambda: DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 16]), "upsamples.1"),
    ],
)
def test_a_decoder_at_full_size_lies_voxel_on_voxel(make, layer: str) -> None:
    stride, offset, measured = one(make(), (1, 1, 32, 32, 48), layer)
    assert stride == (1.0, 1.0, 1.0)
    assert measured
    np.testing.assert_allclose(offset, 0, atol=0.01)


@DIMS
def test_measuring_leaves_the_network_as_it_was(dims: int) -> None:
    network = Classifier(dims).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    footprints(network, image(dims), ["block"])
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name])
    assert network.training
    assert not network.block._forward_hooks


def test_a_half_size_interpolation_shifts_by_half_a_voxel() -> None:
    assert one(Segmenter(2), (1, 2, 24, 32), "deep") == ((2.0, 2.0), (0.5, 0.5), True)


def test_positions_that_cannot_be_followed_are_spread_evenly_and_marked() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.flip(2)).flatten(1)

    assert one(Shuffled(), (1, 1, 16, 24), "conv") == ((2.0, 2.0), (0.5, 0.5), False)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_an_exported_program_that_is_fixed_to_one_sample_is_measured_too() -> None:
    network = nn.Sequential(
        nn.Conv3d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv3d(4, 4, 3, 2, 1), nn.ReLU(), nn.Flatten()
    ).eval()
    x = torch.zeros(1, 1, 12, 16, 20)
    exported = torch.export.unflatten(torch.export.export(network, (x,)))
    assert footprints(exported, x, ["2"]) == footprints(network, x, ["2"])
    assert footprints(exported, x, ["2"])["2"].measured
