"""Where a feature cell lies in the input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.nets import (
    UNETR,
    BasicUNetPlusPlus,
    DenseNet121,
    DynUNet,
    EfficientNetBN,
    SegResNet,
    SwinUNETR,
    UNet,
    ViT,
    ViTAutoEnc,
    VNet,
    resnet18,
)
from torch import Tensor, nn

from engine.toy_networks import Classifier, Segmenter, conv, image
from medcam.engine.footprint import Footprint, Seen, footprints, probe
from medcam.engine.layout import Layout, to_channels_first

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
    assert (stride, offset, measured) == ((1.0,) * 3, (0.0,) * 3, True)


def seen(network: nn.Module, shape: tuple[int, ...]) -> dict[str, Seen]:
    return {item.name: item for item in probe(network.eval(), torch.zeros(shape)).seen}


SWIN = {"depths": (2, 1, 1, 1), "num_heads": (1, 2, 2, 2), "feature_size": 12}
VIT = {"hidden_size": 24, "mlp_dim": 32, "num_layers": 2, "num_heads": 2}


def test_transformers_lie_where_patch_arithmetic_says() -> None:
    # Windows of 4 x 3 x 2 do not fit into 16 x 32 x 16 cells: padded, rolled, cut up, and put back.
    found = seen(SwinUNETR(1, 2, window_size=(4, 3, 2), **SWIN), (2, 1, 32, 64, 32))
    for name, channels, cells, stride in [
        ("swinViT.layers1.0.blocks.1", 12, (16, 32, 16), 2.0),
        ("swinViT.layers2.0.blocks.0.mlp.linear1", 96, (8, 16, 8), 4.0),
        ("swinViT.layers4.0.blocks.0", 96, (2, 4, 2), 16.0),
    ]:
        item = found[name]
        assert (item.shape, item.layout) == ((2, *cells, channels), Layout("channels last", cells))
        assert item.footprint == Footprint((stride,) * 3, ((stride - 1) / 2,) * 3)
    assert found["decoder1"].footprint == Footprint((1.0,) * 3, (0.0,) * 3)
    assert not any("attn" in name for name in found), "windows are no feature map"
    found = seen(SwinUNETR(1, 2, window_size=(4, 3), spatial_dims=2, downsample="mergingv2", **SWIN), (2, 1, 32, 64))
    assert found["swinViT.layers3.0"].footprint == Footprint((16.0,) * 2, (7.5,) * 2)
    assert found["swinViT.layers3.0"].layout == Layout("channels first", (2, 4))


@pytest.mark.parametrize("projection", ["conv", "perceptron"])
@pytest.mark.parametrize("tokens", [0, 1])
def test_token_sequences_are_grids_of_patches(projection: str, tokens: int) -> None:
    net = ViT(1, (32, 48, 16), (16, 8, 8), proj_type=projection, classification=bool(tokens), **VIT)
    found = seen(net, (2, 1, 32, 48, 16))
    for name in ("blocks.0.attn.qkv", "blocks.1", "norm"):
        assert found[name].layout == Layout("tokens", (2, 6, 2), tokens)
        assert found[name].footprint == Footprint((16.0, 8.0, 8.0), (7.5, 3.5, 3.5))
    found = seen(UNETR(1, 2, (32, 48), proj_type=projection, feature_size=4, hidden_size=24, mlp_dim=32, num_heads=2, spatial_dims=2),
                 (1, 1, 32, 48))  # fmt: skip
    assert found["vit.blocks.11"].layout == Layout("tokens", (2, 3))
    assert found["encoder3"].footprint == Footprint((4.0,) * 2, (1.5,) * 2)
    assert found["decoder2"].footprint == Footprint((1.0,) * 2, (0.0,) * 2)


def test_an_axis_of_one_cell_still_has_a_step_for_when_it_has_more() -> None:
    net = ViTAutoEnc(1, (32, 48, 16), (16, 16, 16), **VIT)
    found = seen(net, (1, 1, 32, 48, 16))
    assert found["patch_embedding.patch_embeddings"].footprint == Footprint((16.0,) * 3, (7.5,) * 3)
    assert found["blocks.1"].layout == Layout("tokens", (2, 3, 1))
    assert found["conv3d_transpose"].footprint == Footprint((4.0,) * 3, (1.5,) * 3)
    assert found["conv3d_transpose_1"].footprint == Footprint((1.0,) * 3, (0.0,) * 3)


@pytest.mark.parametrize(
    ("make", "shape", "layers"),
    [
        (lambda: ViT(1, (32, 48), (8, 8), spatial_dims=2, classification=True, **VIT), (1, 1, 32, 48), ["blocks.1"]),
        (lambda: ViTAutoEnc(1, (32, 48, 16), (16, 16, 16), **VIT), (1, 1, 32, 48, 16), ["blocks.1"]),
        (lambda: SwinUNETR(1, 2, window_size=(4, 3), spatial_dims=2, **SWIN), (1, 1, 32, 64),
         ["swinViT.layers1.0.blocks.1", "swinViT.layers2.0.blocks.0", "swinViT.layers2.0"]),
    ],
)  # fmt: skip
def test_a_token_depends_most_on_the_patch_where_it_lies(make, shape: tuple[int, ...], layers: list[str]) -> None:
    """By autograd: of a residual network with small weights, a cell's gradient is largest in its own patch."""
    torch.manual_seed(4)
    network = make().eval()
    found = seen(network, shape)
    for name in layers:
        kept: list[Tensor] = []
        handle = network.get_submodule(name).register_forward_hook(lambda _m, _a, out, kept=kept: kept.append(out))
        x = torch.randn(shape, requires_grad=True)
        network(x)
        handle.remove()
        features = to_channels_first(kept[0], found[name].layout)
        where = found[name].footprint
        for cell in [tuple(n - 1 for n in features.shape[2:]), tuple(n // 2 for n in features.shape[2:])]:
            score = (features[(0, slice(None), *cell)] * torch.randn(features.shape[1])).sum()
            (slope,) = torch.autograd.grad(score, x, retain_graph=True)
            energy = slope[0, 0].square()
            for axis, n in enumerate(cell):
                line = energy.sum([a for a in range(energy.ndim) if a != axis])
                # Of each patch as wide as a cell: the one around the cell's centre has the most.
                width = int(where.stride[axis])
                patches = line.unfold(0, width, width).sum(1)
                assert int(patches.argmax()) == round(
                    (where.offset[axis] + where.stride[axis] * n - (width - 1) / 2) / width
                )


def test_a_class_token_knows_only_the_cells_that_attention_has_shown_it() -> None:
    net = ViT(1, (32, 48), (16, 16), spatial_dims=2, classification=True, **VIT).eval()
    found = probe(net, torch.zeros(2, 1, 32, 48))
    logits, hidden = found.output
    assert tuple(logits.shape) == (2, 2)
    # The head reads the class token alone: what the last block does to the others' tokens behind its attention moves no score.
    made_of = [item.name for item in found.seen if found.reach(logits).includes(item)]
    assert {"blocks.0", "blocks.1.norm1", "blocks.1.attn.qkv"} <= set(made_of)
    assert not {"blocks.1.attn.out_proj", "blocks.1.norm2", "blocks.1", "norm"} & set(made_of)
    assert found.reach(logits).head > max(item.ended for item in found.seen if item.name == "norm")
    assert "blocks.1" in [item.name for item in found.seen if found.reach(hidden).includes(item)]


def test_each_output_tells_what_it_is_made_of() -> None:
    net = BasicUNetPlusPlus(2, 1, 2, (4, 4, 8, 8, 16, 4), deep_supervision=True).eval()
    found = probe(net, torch.zeros(1, 1, 32, 48))
    for n, output in enumerate(found.output, 1):
        made_of = {item.name for item in found.seen if found.reach(output).includes(item)}
        assert {name for name in ("upcat_0_1", "upcat_0_2", "upcat_0_3", "upcat_0_4") if name in made_of} == {
            f"upcat_0_{m}" for m in range(1, n + 1)
        }
    of_score = found.reach_of(lambda outputs: outputs[0][:, 1].mean((1, 2)))
    assert of_score == found.reach(found.output[0])


def test_what_a_module_hands_on_unchanged_is_one_tensor_and_what_is_changed_in_place_is_two() -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)), nn.ReLU(inplace=True), nn.Identity())
    tensor = {item.name: item.tensor for item in probe(net, torch.zeros(1, 1, 8, 9)).seen}
    assert tensor["0"] == tensor["0.1"] != tensor["1"] == tensor["2"]


def test_measuring_computes_nothing() -> None:
    """The features of this input would fill memory many times over."""
    huge = torch.zeros(1).expand(1, 1, 4096, 2048, 1024)
    network = resnet18(spatial_dims=3, n_input_channels=1, num_classes=2)
    assert footprints(network, huge, ["layer4"])["layer4"] == Footprint((16.0,) * 3, (0.0,) * 3)


def test_an_operation_that_nobody_has_heard_of_loses_places_and_a_skip_brings_them_back() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 2, 3, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            odd = self.second(torch.linalg.matrix_exp(x[..., :8]))
            return self.second(odd + x[..., :8])

    found = [item for item in probe(Odd(), torch.zeros(1, 1, 16, 24)).seen if item.name == "second"]
    assert [item.footprint for item in found] == [
        Footprint((2.0, 3.0), (0.5, 1.0), measured=False),
        Footprint((2.0, 2.0), (0.0, 0.0)),
    ]


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
