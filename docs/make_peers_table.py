"""Ask medcam and the tools beside it the same questions, on the same small 3D networks, and write the answers into docs/peers.md.

    pip install -c constraints.txt '.[bench,test]' && pip install -c constraints.txt --no-deps grad-cam
    python docs/make_peers_table.py --write

Each tool is called as its documentation shows. An error is an answer: the cell says which. It takes about a minute.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE.parent), str(_HERE.parent / "tests")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import medcam  # noqa: E402
from benchmarks.peers import _grad_cam_package  # noqa: E402

PAGE = _HERE / "peers.md"
LAYER = "features"
SHAPE = (48, 64, 32)
BEGIN, END = "<!-- made by docs/make_peers_table.py -->\n", "<!-- end -->\n"


class Net(nn.Module):
    """Three strided convolutions, and a head that is a pool and one linear layer, or a linear layer on all cells."""

    def __init__(
        self, *, patches: bool = False, pooled: bool = True, rectifier: Callable[[], nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        torch.manual_seed(1)
        if patches:
            self.features: nn.Module = nn.Sequential(nn.Conv3d(1, 8, 8, stride=8), rectifier())
        else:
            widths = (1, 8, 8, 8)
            parts = [[nn.Conv3d(a, b, 3, stride=2, padding=1), rectifier()] for a, b in pairwise(widths)]
            self.features = nn.Sequential(*[part for pair in parts for part in pair])
        cells = int(np.prod([n // 8 for n in SHAPE]))
        self.pool = nn.AdaptiveAvgPool3d(1) if pooled else nn.Identity()
        self.head = nn.Linear(8 if pooled else 8 * cells, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return three logits."""
        return self.head(self.pool(self.features(x)).flatten(1))


def positive(network: nn.Module) -> nn.Module:
    """Make all weights positive, so that a bright spot speaks for every class."""
    with torch.no_grad():
        for each in network.parameters():
            each.abs_()
        for module in network.modules():
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
    return network.eval()


Cam = Callable[[nn.Module, str, Tensor, int | None], Tensor]


def of_medcam(network: nn.Module, layer: str, images: Tensor, target: int | None, method: str = "grad-cam") -> Tensor:
    """Return medcam's map on the input's voxels."""
    return medcam.relevance(network, images, layer=layer, target=target, method=method).on_input().detach()


def of_monai(network: nn.Module, layer: str, images: Tensor, target: int | None, method: str = "GradCAM") -> Tensor:
    """Return MONAI's map; its own default turns it over, so that 0 is the hottest."""
    from monai import visualize

    if method == "CAM":  # it takes a class as a tensor only
        classes = torch.full((len(images), 1), target or 0)
        return visualize.CAM(network, target_layers=layer, fc_layers="head")(images, class_idx=classes)[:, 0]
    explainer = getattr(visualize, method)(network, target_layers=layer, postprocessing=lambda found: found)
    return explainer(images, class_idx=target)[:, 0].detach()


def of_grad_cam(network: nn.Module, layer: str, images: Tensor, target: int | None, method: str = "GradCAM") -> Tensor:
    """Return grad-cam's map."""
    package = _grad_cam_package()
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = None if target is None else [ClassifierOutputTarget(target)] * len(images)
    with getattr(package, method)(network, [network.get_submodule(layer)]) as explainer:
        return torch.as_tensor(explainer(input_tensor=images, targets=targets))


def of_torchcam(network: nn.Module, layer: str, images: Tensor, target: int | None, method: str = "GradCAM") -> Tensor:
    """Return torchcam's map, on the layer's cells; it has no default class."""
    from torchcam import methods

    with getattr(methods, method)(network, layer) as explainer:
        scores = network(images)
        return explainer(class_idx=scores.argmax(1).tolist() if target is None else target, scores=scores)[0].detach()


def of_captum(network: nn.Module, layer: str, images: Tensor, target: int | None) -> Tensor:
    """Return captum's map, on the layer's cells; it has no default class."""
    from captum.attr import LayerGradCam

    if target is None:
        with torch.no_grad():
            target = network(images).argmax(1)
    return LayerGradCam(network, network.get_submodule(layer)).attribute(images, target=target)[:, 0].detach()


@dataclasses.dataclass(frozen=True)
class Tool:
    """A tool: the package that it is, its Grad-CAM, Grad-CAM++ and guided backpropagation, and its methods that look at a layer."""

    package: str
    cam: Cam
    plus_plus: str | None
    guided: Callable[[nn.Module, Tensor], Tensor] | None
    methods: Callable[[], Sequence[str]]


def guided_medcam(network: nn.Module, images: Tensor) -> Tensor:
    """Return the guided gradient, signed."""
    return medcam.relevance(network, images, target=1, method="guided-backpropagation(channels='sum')").values[0]


def guided_monai(network: nn.Module, images: Tensor) -> Tensor:
    """Return the guided gradient."""
    from monai.visualize import GuidedBackpropGrad

    return GuidedBackpropGrad(network)(images.clone(), index=1)[0, 0]


def guided_grad_cam(network: nn.Module, images: Tensor) -> Tensor:
    """Return the guided gradient."""
    model = _grad_cam_package().GuidedBackpropReLUModel(network, device="cpu")
    return torch.as_tensor(model(images, target_category=1)).squeeze()


def guided_captum(network: nn.Module, images: Tensor) -> Tensor:
    """Return the guided gradient."""
    from captum.attr import GuidedBackprop

    return GuidedBackprop(network).attribute(images.clone().requires_grad_(), target=1)[0, 0]


def medcam_methods() -> list[str]:
    """Return the methods that look at a layer, but those for segmentations."""
    from medcam.engine.methods import EXPLAINERS, method_named

    found = {name: method_named(name) for name in EXPLAINERS}
    return [name for name, each in found.items() if each.looks_at_layer and not name.startswith("seg-")]


def torchcam_methods() -> list[str]:
    """Return what torchcam exports."""
    from torchcam import methods

    return [name for name in dir(methods) if isinstance(getattr(methods, name), type) and name not in NOT_ASKED]


def grad_cam_methods() -> list[str]:
    """Return what grad-cam exports."""
    package = _grad_cam_package()
    names = [name for name in dir(package) if isinstance(getattr(package, name), type) and name not in NOT_ASKED]
    return [name for name in names if name.endswith(("CAM", "CAMPlusPlus", "Grad", "FEM"))]


# A control; what fuses several layers; what is for transformers only.
NOT_ASKED = {"RandomCAM", "RefineCAM", "LeGrad"}
TOOLS = {
    "medcam": Tool("medcam-xai", of_medcam, "grad-cam++", guided_medcam, medcam_methods),
    "MONAI": Tool("monai", of_monai, "GradCAMpp", guided_monai, lambda: ["CAM", "GradCAM", "GradCAMpp"]),
    "grad-cam": Tool("grad-cam", of_grad_cam, "GradCAMPlusPlus", guided_grad_cam, grad_cam_methods),
    "torchcam": Tool("torchcam", of_torchcam, "GradCAMpp", None, torchcam_methods),
    "captum": Tool("captum", of_captum, None, guided_captum, lambda: ["LayerGradCam"]),
}


def apart(first: Tensor, second: Tensor) -> float:
    """Return how far two maps are from each other, each over its own maximum, as a share."""
    one, other = (each.clamp(min=0) / each.clamp(min=0).max().clamp(min=1e-12) for each in (first, second))
    return float((one - other).norm() / other.norm().clamp(min=1e-12))


def spot(centre: Sequence[float]) -> Tensor:
    """Return an image with one bright spot."""
    axes = [torch.arange(n) - c for n, c in zip(SHAPE, centre, strict=True)]
    return torch.exp(-sum(each**2 for each in torch.meshgrid(*axes, indexing="ij")) / 8.0)[None, None]


def placement(tool: Tool, *, patches: bool) -> str:
    """How far from a bright spot, which lies where a cell is centred, is the middle of what the map marks most?"""
    centre = [8.0 * c + (3.5 if patches else 0.0) for c in (4, 2, 1)]
    found = tool.cam(positive(Net(patches=patches)), LAYER, spot(centre), 1)[0]
    if tuple(found.shape) != SHAPE:
        return f"cells only ({' x '.join(map(str, found.shape))})"
    hottest = (found >= found.max() - 1e-4 * found.max().abs()).nonzero().float().mean(0)
    return f"{float((hottest - torch.tensor(centre)).norm()):.1f} voxels"


def neighbours(tool: Tool, *, named: bool) -> str:
    """How much does the map of an image change when another image stands beside it in the batch?"""
    torch.manual_seed(3)
    network = Net().eval()
    images = torch.randn(12, 1, *SHAPE)
    with torch.no_grad():  # so that images differ in their class
        network.head.bias -= network(images).mean(0)
        classes = network(images).argmax(1)
    pair = images[[0, int((classes != classes[0]).nonzero()[0])]]
    asked = 1 if named else None
    together, alone = tool.cam(network, LAYER, pair, asked), tool.cam(network, LAYER, pair[:1], asked)
    return f"{100 * apart(together[0], alone[0]):.0f} %"


def left_behind(tool: Tool) -> str:
    """What is otherwise in the user's network after a call?"""
    network = Net().train()
    for each in network.parameters():
        each.grad = torch.ones_like(each)
    tool.cam(network, LAYER, torch.randn(2, 1, *SHAPE), 1)
    changed = []
    if any(each.grad is None or not torch.equal(each.grad, torch.ones_like(each)) for each in network.parameters()):
        changed.append("gradients")
    if not network.training:
        changed.append("mode")
    if any(
        module._forward_hooks or module._backward_hooks or module._forward_pre_hooks for module in network.modules()
    ):
        changed.append("hooks")
    return ", ".join(changed) or "nothing"


def frozen(tool: Tool) -> str:
    """Does it work where no weight asks for a gradient?"""
    tool.cam(Net().eval().requires_grad_(False), LAYER, torch.randn(1, 1, *SHAPE), 1)
    return "yes"


def within_no_grad(tool: Tool) -> str:
    """Does it work within torch.no_grad()?"""
    with torch.no_grad():
        tool.cam(Net().eval(), LAYER, torch.randn(1, 1, *SHAPE), 1)
    return "yes"


def autocast(tool: Tool) -> str:
    """Does it work within bfloat16 autocast?"""
    with torch.autocast("cpu", torch.bfloat16):
        as_given(tool, Net().eval(), torch.randn(1, 1, *SHAPE))
    return "yes"


def as_given(tool: Tool, network: nn.Module, images: Tensor) -> Tensor:
    """Return a map with whatever the tool makes of it by default."""
    if tool.package == "monai":
        from monai.visualize import GradCAM

        return torch.as_tensor(GradCAM(network, target_layers=LAYER)(images, class_idx=1))[:, 0]
    return tool.cam(network, LAYER, images, 1)


def scale(tool: Tool) -> str:
    """What is the value where the map should be hottest, and from where to where do values go, by default?"""
    found = as_given(tool, positive(Net(patches=True)), spot([35.5, 19.5, 11.5]))[0]
    step = SHAPE[0] // found.shape[0]
    at = float(found[35 // step, 19 // step, 11 // step])
    return f"{at:.2g} of {float(found.min()):.2g} to {float(found.max()):.2g}"


def in_place(tool: Tool) -> str:
    """How much does the map of a convolution change when the rectifier behind it works in place?"""
    images = torch.randn(1, 1, *SHAPE)
    plain, hasty = Net(pooled=False).eval(), Net(pooled=False, rectifier=lambda: nn.ReLU(inplace=True)).eval()
    return f"{100 * apart(tool.cam(hasty, 'features.4', images, 1), tool.cam(plain, 'features.4', images, 1)):.0f} %"


def paper(tool: Tool) -> str:
    """How far is its Grad-CAM++ from equation 19 of the paper, where gradients are of the size of 1 and differ between channels?"""
    if tool.plus_plus is None:
        return "has none"
    network, images = Net(pooled=False).eval(), torch.randn(1, 1, *SHAPE)
    with torch.no_grad():
        each = network.head.weight.unflatten(1, (8, -1))
        each *= 20 * torch.linspace(0.25, 4, 8)[None, :, None]
    activation = network.features(images).detach().requires_grad_()
    (g,) = torch.autograd.grad(network.head(activation.flatten(1))[0, 1], activation)
    share = torch.where(g != 0, g**2 / (2 * g**2 + g**3 * activation.sum((2, 3, 4), keepdim=True)), 0)
    weight = (share * g.clamp(min=0)).sum((2, 3, 4), keepdim=True)
    wanted = (weight * activation).sum(1)[0].detach()
    found = tool.cam(network, LAYER, images, 1, tool.plus_plus)[0]
    return f"{100 * apart(found, as_brought_to_voxels(tool, wanted, found)):.0f} %"


def as_brought_to_voxels(tool: Tool, cells: Tensor, found: Tensor) -> Tensor:
    """Return a map on the layer's cells as the tool brings its own to the voxels, so that only the map is compared."""
    if found.shape == cells.shape:
        return cells
    if tool.package == "grad-cam":
        from scipy import ndimage

        return torch.as_tensor(ndimage.zoom(cells.clamp(min=0).numpy(), [8] * 3))
    if tool.package == "monai":
        return nn.functional.interpolate(cells.clamp(min=0)[None, None], SHAPE, mode="trilinear")[0, 0]
    one = medcam.relevance(Net(pooled=False).eval(), torch.zeros(1, 1, *SHAPE), layer=LAYER, target=1)
    return dataclasses.replace(one, values=cells[None]).on_input()[0]


def rectified(tool: Tool) -> str:
    """Is guided backpropagation of a network with LeakyReLU, as nnU-Net has, more than the plain gradient?"""
    if tool.guided is None:
        return "has none"
    network = Net(rectifier=lambda: nn.LeakyReLU(0.01)).eval()
    images = torch.randn(1, 1, *SHAPE)
    leaf = images.clone().requires_grad_()
    (plain,) = torch.autograd.grad(network(leaf)[0, 1], leaf)
    found = tool.guided(copy.deepcopy(network), images)
    return "no: it is the plain gradient" if torch.allclose(found, plain[0, 0], rtol=1e-3, atol=1e-7) else "yes"


class FirstOutput(nn.Module):
    """MONAI's ViT with its logits only: it gives its hidden states as well, which most tools do not take."""

    def __init__(self) -> None:
        super().__init__()
        from monai.networks.nets import ViT

        self.vit = ViT(
            1, (32, 48, 16), (8, 8, 8), hidden_size=24, mlp_dim=32, num_layers=2, num_heads=2, classification=True
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return two logits."""
        return self.vit(x)[0]


def transformer(tool: Tool) -> str:
    """Does it explain MONAI's 3D ViT without being told how tokens lie?"""
    found = tool.cam(FirstOutput().eval(), "vit.blocks.1.norm1", torch.randn(1, 1, 32, 48, 16), 1)
    return "yes" if found.ndim == 4 else f"a map of shape {' x '.join(map(str, found.shape[1:]))}"


def many(tool: Tool) -> str:
    """What do maps of three classes cost, in forward passes?"""
    from torch.utils.flop_counter import FlopCounterMode

    network, images = Net().eval(), torch.randn(1, 1, *SHAPE)
    with FlopCounterMode(display=False) as one, torch.no_grad():
        network(images)
    with FlopCounterMode(display=False) as all_three:
        if tool.package == "medcam-xai":
            medcam.relevances(network, images, layers=[LAYER], targets=[0, 1, 2])
        else:
            for target in range(3):
                tool.cam(network, LAYER, images, target)
    return f"{all_three.get_total_flops() / one.get_total_flops():.2f}"


def families(tool: Tool) -> str:
    """How many of its class-activation methods give a map of a 3D classifier with three classes?"""
    names, good = list(tool.methods()), []
    for name in names:
        try:
            found = tool.cam(Net().eval(), LAYER, torch.randn(1, 1, *SHAPE), 1, *([name] if len(names) > 1 else []))
        except Exception:  # noqa: BLE001  whatever it is, there is no map
            continue
        if bool(torch.isfinite(torch.as_tensor(found)).all()):
            good.append(name)
    if "--names" in sys.argv[1:]:
        print(tool.package, "fail:", sorted(set(names) - set(good)), "work:", good)
    return f"{len(good)} of {len(names)}"


QUESTIONS: dict[str, Callable[[Tool], str]] = {
    "class-activation methods that give a map in 3D": families,
    "peak from a bright spot, strided convolutions (as in ResNets)": lambda tool: placement(tool, patches=False),
    "peak from a bright spot, patches (as in ViTs)": lambda tool: placement(tool, patches=True),
    "value at the spot, of the map's range": scale,
    "change by another image in the batch, predicted class": lambda tool: neighbours(tool, named=False),
    "change by another image in the batch, class named": lambda tool: neighbours(tool, named=True),
    "change by an in-place rectifier behind the layer": in_place,
    "Grad-CAM++ from the paper's equation 19": paper,
    "guided backpropagation knows LeakyReLU": rectified,
    "works with frozen weights": frozen,
    "works within `torch.no_grad()`": within_no_grad,
    "works within bfloat16 autocast": autocast,
    "knows how the tokens of MONAI's 3D ViT lie": transformer,
    "cost of three classes, in forward passes": many,
    "otherwise in the user's network afterwards": left_behind,
}


def answer(question: Callable[[Tool], str], tool: Tool) -> str:
    """Return what a tool does on a question, or how it fails."""
    try:
        return question(tool)
    except Exception as error:  # noqa: BLE001  an error is an answer
        sys.stderr.write(f"{tool.package}: {' '.join(str(error).split())[:160]}\n")
        return f"fails ({type(error).__name__})"


def table() -> str:
    """Return the answers of all tools as Markdown."""
    torch.set_num_threads(1)
    heads = [f"{name} {version(tool.package)}" for name, tool in TOOLS.items()]
    lines = [f"| | {' | '.join(heads)} |", "| --- " * (len(heads) + 1) + "|"]
    for words, question in QUESTIONS.items():
        lines.append(f"| {words} | {' | '.join(answer(question, tool) for tool in TOOLS.values())} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    made = table()
    if "--write" in sys.argv[1:]:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + BEGIN + "\n" + made + "\n" + END + rest.partition(END)[2])
    print(made)
