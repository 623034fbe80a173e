"""Every network of `monai.networks.nets` (1.6.1), as small as its class allows: those that end in classes, voxels or boxes, and the others.

`ZOO` holds the first, one row a class and one more for each variant that is built differently inside; `LEFT_OUT` says why for the rest.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from monai.apps.detection.networks.retinanet_network import RetinaNet, resnet_fpn_feature_extractor
from monai.networks import nets
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork
from torch import Tensor, nn


@dataclass(frozen=True)
class Network:
    """One network of the zoo.

    Parameters
    ----------
    name, variant
        The class, and what is special about this build ('' if nothing).
    ends_in
        'classes', 'voxels' or 'boxes'.
    make
        Builds it for that many spatial axes.
    sizes
        The sides of its input by number of spatial axes; a number that is missing is one that the class does not have.
    absent
        Why a number of axes is missing from `sizes`.
    needs
        An optional package that it cannot be built without.
    slow
        Whether it takes more than a second or two on one core, however small it is built.
    adapted
        What stands between it and a network of one tensor of images, '' if nothing does.
    one_by_one
        Whether it takes one image at a time.
    """

    name: str
    ends_in: str
    make: Callable[[int], nn.Module]
    sizes: dict[int, tuple[int, ...]]
    variant: str = ""
    channels: int = 1
    absent: str = ""
    needs: str = ""
    slow: bool = False
    adapted: str = ""
    one_by_one: bool = False

    @property
    def title(self) -> str:
        return f"{self.name} ({self.variant})" if self.variant else self.name

    def build(self, dims: int) -> nn.Module:
        """The same weights at each call, in evaluation mode."""
        with torch.random.fork_rng():
            torch.manual_seed(20)
            return self.make(dims).eval()

    def images(self, dims: int) -> Tensor:
        """Two images, or one for a network that takes one at a time."""
        generator = torch.Generator().manual_seed(30)
        return torch.randn(1 if self.one_by_one else 2, self.channels, *self.sizes[dims], generator=generator)

    @property
    def available(self) -> bool:
        return not self.needs or importlib.util.find_spec(self.needs) is not None


class Grouped(nn.Module):
    """NaViT takes lists of images that share one sequence: here each image has a sequence of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network([[image] for image in x])


class OneInstance(nn.Module):
    """MILModel takes bags of images: here each image is a bag of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x[:, None])


class Prompted(nn.Module):
    """VISTA3D takes a prompt and one image at a time: here it is asked for two classes, which become output channels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("classes", torch.tensor([[1], [3]]))

    def forward(self, x: Tensor) -> Tensor:
        # One object a row comes back; objects are this wrapper's classes.
        return self.network(x, class_vector=self.classes).transpose(0, 1)


class WithText(nn.Module):
    """Transchex takes a report beside the image: here it is always the same one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("words", torch.tensor([[2, 5, 7, 3]]))

    def forward(self, x: Tensor) -> Tensor:
        words = self.words.expand(len(x), -1)
        return self.network(words, torch.zeros_like(words), x)


class Reconstructed(nn.Module):
    """AutoencoderKL draws its code at random; its method `reconstruct` takes the mean."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.reconstruct(x)


class Backbone(nn.Module):
    """A classifier for the wrappers that take one: features, pooling, `fc`."""

    def __init__(self, dims: int, head: bool) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.features = nn.Sequential(conv(1, 4, 3, 2, 1), nn.ReLU(), conv(4, 8, 3, 2, 1), nn.ReLU())
        self.pool = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[dims](1)
        self.fc = nn.Linear(8, 2) if head else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.features(x)).flatten(1))


def _transchex() -> nn.Module:
    """Transchex starts from weights of BERT, which need a download; an empty file stands for them."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        torch.save({}, Path(folder) / "pytorch_model.bin")
        return nets.Transchex(
            1, (32, 48), (16, 16), 3, 1, 1, 1, hidden_size=12, intermediate_size=16, num_attention_heads=2,
            num_hidden_layers=1, vocab_size=11, path_or_repo_id=folder,
        )  # fmt: skip


def _dints(dims: int) -> nn.Module:
    space = nets.TopologySearch(channel_mul=0.25, num_blocks=4, num_depths=3, spatial_dims=dims)
    return nets.DiNTS(space, 1, 3, spatial_dims=dims)


def _dints_found(dims: int) -> nn.Module:
    search = nets.TopologySearch(channel_mul=0.25, num_blocks=4, num_depths=3, spatial_dims=dims)
    _, arch_a, arch_c, _ = search.decode()
    instance = nets.TopologyInstance(
        arch_code=[arch_a, arch_c], channel_mul=0.25, num_blocks=4, num_depths=3, spatial_dims=dims
    )
    node_a, *_ = search.decode()
    return nets.DiNTS(instance, 1, 3, spatial_dims=dims, node_a=node_a)


def _vista3d(_dims: int) -> nn.Module:
    from monai.networks.nets.vista3d import ClassMappingClassify, PointMappingSAM

    encoder = nets.SegResNetDS2(in_channels=1, blocks_down=(1, 1, 1), norm="instance", out_channels=16, init_filters=16)
    network = nets.VISTA3D(
        encoder, ClassMappingClassify(n_classes=8, feature_size=16), PointMappingSAM(feature_size=16, n_classes=8, last_supported=4)
    )  # fmt: skip
    return Prompted(network)


class Pyramid(nn.Module):
    """Features for RetinaNet at two scales, without the help of torchvision that MONAI's own extractor takes."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.body = nets.ResNet("basic", [1, 1, 1, 1], [4, 8, 16, 32], spatial_dims=dims, n_input_channels=1)
        self.fpn = FeaturePyramidNetwork(dims, [8, 16], 8)
        self.out_channels = 8

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        body = self.body
        first = body.layer2(body.layer1(body.maxpool(body.act(body.bn1(body.conv1(x))))))
        return self.fpn({"fine": first, "coarse": body.layer3(first)})


def _retinanet(dims: int) -> nn.Module:
    return RetinaNet(dims, num_classes=2, num_anchors=3, feature_extractor=Pyramid(dims), size_divisible=16)


def _retinanet_by_monai(dims: int) -> nn.Module:
    backbone = nets.ResNet("basic", [1, 1, 1, 1], [4, 8, 16, 32], spatial_dims=dims, n_input_channels=1)
    extractor = resnet_fpn_feature_extractor(backbone, dims, returned_layers=(1, 2))
    return RetinaNet(dims, num_classes=2, num_anchors=3, feature_extractor=extractor, size_divisible=16)


def _efficientnet(dims: int) -> nn.Module:
    blocks = ["r1_k3_s11_e1_i32_o16_se0.25", "r1_k5_s22_e6_i16_o24_se0.25"]
    return nets.EfficientNet(blocks, dims, 1, num_classes=3, width_coefficient=0.25, image_size=48)


_HIGH_RES = (
    {"name": "conv_0", "n_features": 4, "kernel_size": 3},
    {"name": "res_1", "n_features": 4, "kernels": (3, 3), "repeat": 2},
    {"name": "res_2", "n_features": 8, "kernels": (3, 3), "repeat": 1},
    {"name": "conv_1", "n_features": 8, "kernel_size": 1},
    {"name": "conv_2", "kernel_size": 1},
)
_SIDES = {2: (32, 48), 3: (32, 48, 16)}
_LARGE = {2: (64, 96), 3: (64, 96, 32)}
_VIT = {"hidden_size": 24, "mlp_dim": 32, "num_layers": 2, "num_heads": 2}
_DYN = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 16]}
_SE = {"layers": (1, 1, 1, 1), "num_classes": 3, "inplanes": 32}
_ONLY_3D = "the class is 3D only"
_ONLY_2D = "the class is 2D only"


def _vit(**options: Any) -> Callable[[int], nn.Module]:
    return lambda d: nets.ViT(1, _SIDES[d], (16, 8, 8)[:d], spatial_dims=d, **_VIT, **options)


def _swin(**options: Any) -> Callable[[int], nn.Module]:
    return lambda d: nets.SwinUNETR(
        1, 3, depths=(2, 2, 1, 1), num_heads=(1, 2, 2, 2), feature_size=12, window_size=(4, 3, 2)[:d], spatial_dims=d, **options
    )  # fmt: skip


def _unetr(**options: Any) -> Callable[[int], nn.Module]:
    return lambda d: nets.UNETR(
        1, 3, _SIDES[d], feature_size=4, hidden_size=24, mlp_dim=32, num_heads=2, spatial_dims=d, **options
    )


# fmt: off
ZOO: tuple[Network, ...] = (
    # Classes.
    Network("Classifier", "classes", lambda d: nets.Classifier((1, *_SIDES[d]), 3, (4, 8), (2, 2)), _SIDES),
    Network("DenseNet", "classes", lambda d: nets.DenseNet(d, 1, 3, 8, 4, (2, 2)), _SIDES),
    Network("DenseNet121", "classes", lambda d: nets.DenseNet121(d, 1, 3, 8, 4, (1, 2, 2, 1)), _LARGE),
    Network("DenseNet169", "classes", lambda d: nets.DenseNet169(d, 1, 3, 8, 4, (1, 2, 2, 1)), _LARGE, slow=True),
    Network("DenseNet201", "classes", lambda d: nets.DenseNet201(d, 1, 3, 8, 4, (1, 2, 2, 1)), _LARGE, slow=True),
    Network("DenseNet264", "classes", lambda d: nets.DenseNet264(d, 1, 3, 8, 4, (1, 2, 2, 1)), _LARGE, slow=True),
    Network("EfficientNet", "classes", _efficientnet, _LARGE),
    Network("EfficientNetBN", "classes", lambda d: nets.EfficientNetBN("efficientnet-b0", pretrained=False, spatial_dims=d, in_channels=1, num_classes=3), _LARGE, slow=True),
    Network("MILModel", "classes", lambda d: OneInstance(nets.MILModel(3, "mean", pretrained=False, backbone=Backbone(d, head=False), backbone_num_features=8)), {2: (32, 48)}, absent=_ONLY_2D, adapted="a bag of one image; the backbone is given, since its default is torchvision's"),
    Network("NaViT", "classes", lambda d: Grouped(nets.NaViT(_SIDES[d], 8, 3, in_channels=1, spatial_dims=d, **_VIT)), _SIDES, adapted="each image a sequence of its own"),
    Network("NetAdapter", "classes", lambda d: nets.NetAdapter(Backbone(d, head=True), 3, dim=d, pool=None), _SIDES),
    Network("NetAdapter", "classes", lambda d: nets.NetAdapter(Backbone(d, head=True), 3, dim=d, in_channels=8, use_conv=True, pool=("avg", {"kernel_size": 4, "stride": 1})), {2: (16, 16), 3: (16, 16, 16)}, variant="convolution"),
    Network("ResNet", "classes", lambda d: nets.ResNet("basic", [1, 1, 1, 1], [4, 8, 16, 32], spatial_dims=d, n_input_channels=1, num_classes=3), _LARGE),
    Network("ResNet", "classes", lambda d: nets.ResNet("bottleneck", [1, 1, 1, 1], [4, 8, 16, 32], spatial_dims=d, n_input_channels=1, num_classes=3, shortcut_type="A"), _LARGE, variant="bottleneck"),
    Network("SENet", "classes", lambda d: nets.SENet(d, 1, "se_bottleneck", (1, 1, 1, 1), 4, 4, inplanes=16, num_classes=3), _LARGE, slow=True),
    Network("SENet154", "classes", lambda d: nets.SENet154(spatial_dims=d, in_channels=1, **_SE), _LARGE, slow=True),
    Network("SEResNet50", "classes", lambda d: nets.SEResNet50(spatial_dims=d, in_channels=1, **_SE), _LARGE, slow=True),
    Network("SEResNet101", "classes", lambda d: nets.SEResNet101(spatial_dims=d, in_channels=1, **_SE), _LARGE, slow=True),
    Network("SEResNet152", "classes", lambda d: nets.SEResNet152(spatial_dims=d, in_channels=1, **_SE), _LARGE, slow=True),
    Network("SEResNext50", "classes", lambda d: nets.SEResNext50(spatial_dims=d, in_channels=1, **_SE), _LARGE, slow=True),
    Network("SEResNext101", "classes", lambda d: nets.SEResNext101(spatial_dims=d, in_channels=1, **_SE), _LARGE, slow=True),
    Network("TorchVisionFCModel", "classes", lambda d: nets.TorchVisionFCModel("resnet18", 3, pretrained=False, pool=None), {2: (64, 96)}, channels=3, needs="torchvision", absent=_ONLY_2D, slow=True),
    Network("Transchex", "classes", lambda d: WithText(_transchex()), {2: (32, 48)}, needs="transformers", absent=_ONLY_2D, adapted="with one report for every image"),
    Network("ViT", "classes", _vit(classification=True, num_classes=3), _SIDES, variant="class token"),
    Network("ViT", "classes", _vit(classification=True, num_classes=3, proj_type="perceptron", pos_embed_type="sincos"), _SIDES, variant="class token, perceptron"),
    # Voxels.
    Network("AHNet", "voxels", lambda d: nets.AHNet((1, 1, 1, 1), d, 1, 3, upsample_mode="bilinear" if d == 2 else "trilinear"), {2: (128, 160), 3: (128, 160, 32)}, slow=True),
    Network("AttentionUnet", "voxels", lambda d: nets.AttentionUnet(d, 1, 3, (4, 8, 16), (2, 2)), _SIDES),
    Network("AutoEncoder", "voxels", lambda d: nets.AutoEncoder(d, 1, 3, (4, 8), (2, 2)), _SIDES),
    Network("AutoencoderKL", "voxels", lambda d: Reconstructed(nets.AutoencoderKL(d, 1, 3, (1, 1), (4, 8), (False, True), 3, norm_num_groups=4)), {2: (32, 48), 3: (16, 24, 8)}, adapted="by `reconstruct`, which draws nothing at random"),
    Network("BasicUNet", "voxels", lambda d: nets.BasicUNet(d, 1, 3, (4, 4, 8, 8, 16, 4)), _SIDES, slow=True),
    Network("BasicUNetPlusPlus", "voxels", lambda d: nets.BasicUNetPlusPlus(d, 1, 3, (4, 4, 8, 8, 16, 4)), _SIDES, slow=True),
    Network("BasicUNetPlusPlus", "voxels", lambda d: nets.BasicUNetPlusPlus(d, 1, 3, (4, 4, 8, 8, 16, 4), deep_supervision=True), _SIDES, variant="deep supervision", slow=True),
    Network("DAF3D", "voxels", lambda d: nets.DAF3D(1, 3), {3: (32, 48, 32)}, needs="torchvision", absent=_ONLY_3D, slow=True),
    Network("DiNTS", "voxels", _dints, _LARGE, variant="while searching", slow=True),
    Network("DiNTS", "voxels", _dints_found, _LARGE, variant="found", slow=True),
    Network("DynUNet", "voxels", lambda d: nets.DynUNet(d, 1, 3, **_DYN), _SIDES),
    Network("DynUNet", "voxels", lambda d: nets.DynUNet(d, 1, 3, deep_supervision=True, res_block=True, **_DYN), _SIDES, variant="residual, deep supervision"),
    Network("FlexibleUNet", "voxels", lambda d: nets.FlexibleUNet(1, 3, "efficientnet-b0", decoder_channels=(16, 8, 8, 4, 4), spatial_dims=d), _LARGE, slow=True),
    Network("FlexibleUNet", "voxels", lambda d: nets.FlexibleUNet(1, 3, "resnet10", decoder_channels=(16, 8, 8, 4, 4), spatial_dims=d, upsample="pixelshuffle"), _LARGE, variant="pixel shuffle", slow=True),
    Network("HighResNet", "voxels", lambda d: nets.HighResNet(d, 1, 3, layer_params=_HIGH_RES), _SIDES),
    Network("HoVerNet", "voxels", lambda d: nets.HoVerNet("fast", 1, out_classes=3), {2: (256, 256)}, absent=_ONLY_2D, slow=True),
    Network("HyenaNDUNETR", "voxels", lambda d: nets.HyenaNDUNETR(1, 3, (True, False, True, False), 12, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), window_size=(4, 3, 2)[:d], spatial_dims=d), {2: (32, 64), 3: (32, 64, 32)}, needs="nvsubquadratic", slow=True),
    Network("LocalNet", "voxels", lambda d: nets.LocalNet(d, 1, 4, (0, 1, 2), out_channels=3), _SIDES),
    Network("MedNeXt", "voxels", lambda d: nets.MedNeXt(d, 4, 1, 3, kernel_size=3, blocks_down=(1, 1), blocks_bottleneck=1, blocks_up=(1, 1), use_residual_connection=True), _SIDES),
    Network("MedNeXt", "voxels", lambda d: nets.MedNeXt(d, 4, 1, 3, kernel_size=5, blocks_down=(1, 1), blocks_bottleneck=1, blocks_up=(1, 1), deep_supervision=True, global_resp_norm=True), _SIDES, variant="deep supervision"),
    Network("Quicknat", "voxels", lambda d: nets.Quicknat(3, 1, 4, 3), {2: (32, 48)}, absent=_ONLY_2D),
    Network("RegUNet", "voxels", lambda d: nets.RegUNet(d, 1, 4, 2, out_channels=3), _SIDES),
    Network("SegResNet", "voxels", lambda d: nets.SegResNet(d, 8, 1, 3, blocks_down=(1, 1, 1), blocks_up=(1, 1)), _SIDES),
    Network("SegResNet", "voxels", lambda d: nets.SegResNet(d, 8, 1, 3, blocks_down=(1, 1, 1), blocks_up=(1, 1), upsample_mode="pixelshuffle"), _SIDES, variant="pixel shuffle"),
    Network("SegResNetDS", "voxels", lambda d: nets.SegResNetDS(d, 4, 1, 3, blocks_down=(1, 1, 1)), _SIDES),
    Network("SegResNetDS2", "voxels", lambda d: nets.SegResNetDS2(d, 4, 1, 3, blocks_down=(1, 1, 1)), _SIDES, adapted="the first of its two lists of outputs"),
    Network("SegResNetVAE", "voxels", lambda d: nets.SegResNetVAE(_SIDES[d], spatial_dims=d, in_channels=1, out_channels=3, vae_nz=8, blocks_down=(1, 1, 1), blocks_up=(1, 1)), _SIDES),
    Network("SwinUNETR", "voxels", _swin(), {2: (32, 64), 3: (32, 64, 32)}, slow=True),
    Network("SwinUNETR", "voxels", _swin(use_v2=True, downsample="mergingv2", use_flash_attention=True), {2: (32, 64), 3: (32, 64, 32)}, variant="version 2", slow=True),
    Network("UNETR", "voxels", _unetr(), _SIDES),
    Network("UNETR", "voxels", _unetr(proj_type="perceptron"), _SIDES, variant="perceptron", slow=True),
    Network("UNet", "voxels", lambda d: nets.UNet(d, 1, 3, (4, 8, 16), (2, 2)), _SIDES),
    Network("UNet", "voxels", lambda d: nets.UNet(d, 1, 3, (4, 8, 16), (2, 2), num_res_units=2), _SIDES, variant="residual"),
    Network("VISTA3D", "voxels", _vista3d, {3: (32, 48, 16)}, absent=_ONLY_3D, adapted="asked for two classes; it takes one image at a time", one_by_one=True),
    Network("VNet", "voxels", lambda d: nets.VNet(d, 1, 3, dropout_dim=d), _SIDES, slow=True),
    Network("VQVAE", "voxels", lambda d: nets.VQVAE(d, 1, 3, (4, 8), 1, (4, 8), ((2, 4, 1, 1),) * 2, ((2, 4, 1, 1, 0),) * 2, num_embeddings=8, embedding_dim=4), _SIDES),
    Network("VarAutoEncoder", "voxels", lambda d: nets.VarAutoEncoder(d, (1, *_SIDES[d]), 3, 8, (4, 8), (2, 2)), _SIDES),
    Network("ViTAutoEnc", "voxels", lambda d: nets.ViTAutoEnc(1, (32, 48, 16)[:d], (16, 16, 16)[:d], out_channels=3, deconv_chns=4, spatial_dims=d, **_VIT), _SIDES),
    Network("VoxelMorphUNet", "voxels", lambda d: nets.VoxelMorphUNet(d, 2, 4, (4, 4, 4, 4), (4, 4)), _SIDES, channels=2, adapted="moving and fixed image as channels"),
    # Boxes.
    Network("RetinaNet", "boxes", _retinanet, _LARGE),
    Network("RetinaNet", "boxes", _retinanet_by_monai, _SIDES, variant="MONAI's feature extractor", needs="torchvision", slow=True),
)
# fmt: on

LEFT_OUT: dict[str, str] = {
    "BertAttention": "a part of Transchex",
    "BertMixedLayer": "a part of Transchex",
    "BertOutput": "a part of Transchex",
    "BertPreTrainedModel": "a part of Transchex",
    "ControlNet": "gives residuals for a diffusion network, at a time step",
    "Critic": "scores how real an image is: a part of a GAN",
    "DecoderOnlyTransformer": "a language model of tokens",
    "DiffusionModelUNet": "predicts noise, at a time step",
    "Discriminator": "scores how real an image is: a part of a GAN",
    "EfficientNetBNFeatures": "gives features, no classes: the encoder of FlexibleUNet, which is here",
    "EfficientNetEncoder": "gives features, no classes: the encoder of FlexibleUNet, which is here",
    "FullyConnectedNet": "takes vectors, no images",
    "Generator": "takes vectors, no images: a part of a GAN",
    "GlobalNet": "regresses one affine transform, returned as the displacement that it makes",
    "HighResBlock": "a part of HighResNet",
    "MaskedAutoEncoderViT": "drops a random part of the image at each call, and gives tokens to be compared with it",
    "MultiModal": "a part of Transchex",
    "MultiScalePatchDiscriminator": "scores how real patches are: a part of a GAN",
    "PatchDiscriminator": "scores how real patches are: a part of a GAN",
    "PatchMerging": "a part of SwinUNETR",
    "PatchMergingV2": "a part of SwinUNETR",
    "Pooler": "a part of Transchex",
    "Regressor": "regresses a vector, no classes",
    "ResNetBlock": "a part of ResNet",
    "ResNetBottleneck": "a part of ResNet",
    "ResNetEncoder": "gives features, no classes: an encoder of FlexibleUNet, which is here",
    "ResNetFeatures": "gives features, no classes, and downloads its weights",
    "SPADEAutoencoderKL": "makes an image of a label map, and draws it at random",
    "SPADEDiffusionModelUNet": "predicts noise, at a time step",
    "SPADENet": "makes an image of a label map",
    "TopologyConstruction": "a part of DiNTS, which is here",
    "TopologyInstance": "a part of DiNTS, which is here",
    "TopologySearch": "a part of DiNTS, which is here",
    "VarFullyConnectedNet": "takes vectors, no images",
    "VoxelMorph": "takes two images and gives one of them warped",
}


def public_networks() -> set[str]:
    """The classes that `monai.networks.nets` offers, each by its own name."""
    found = {getattr(nets, name) for name in dir(nets) if not name.startswith("_")}
    return {item.__name__ for item in found if inspect.isclass(item) and issubclass(item, nn.Module)}
