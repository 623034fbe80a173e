"""What other tools do for the same question, each called as its documentation says.

They are imported when they are asked for. Each gets a copy of the network, since several leave hooks or gradients behind. The score of a
segmentation is the sum of the class's logits inside the predicted region, where a tool lets its user say so.
"""

from __future__ import annotations

import copy
import importlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.meters import Call
from benchmarks.workloads import Case, first_tensor, occlusion_window

# grad-cam draws progress bars that nobody asked for.
os.environ.setdefault("TQDM_DISABLE", "1")

CLASS = 1
Tool = Callable[[Any], Call]


class NotInstalled(Exception):  # noqa: N818  it is an answer, not a fault
    """A peer that this environment does not have."""


class CannotAsk(Exception):  # noqa: N818
    """A question that the peer has no words for."""


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotInstalled(str(error)) from error


class _Single(nn.Module):
    """The network with its first output only: MONAI's ViT gives several, which these tools do not take."""

    def __init__(self, ready: Case) -> None:
        super().__init__()
        self.network = copy.deepcopy(ready.network)

    def forward(self, x: Tensor) -> Tensor:
        return first_tensor(self.network(x))

    def layer(self, ready: Case) -> nn.Module:
        return self.network.get_submodule(ready.workload.layer)


class _Scored(_Single):
    """The network with one score for each sample and class: what tools that know only classifiers can be asked about."""

    def __init__(self, ready: Case) -> None:
        super().__init__(ready)
        self.region = _region(ready)

    def forward(self, x: Tensor) -> Tensor:
        output = super().forward(x)
        return output if self.region is None else (output * self.region.unsqueeze(1)).flatten(2).sum(2)


def _from_tokens(ready: Case) -> dict[str, Any]:
    """Return what grad-cam and torchcam ask their users to write for a transformer: tokens as a feature map."""
    if ready.tokens is None:
        return {}
    grid = ready.tokens

    def reshape(tokens: Tensor) -> Tensor:
        # The class token stands first.
        return tokens[:, 1:].transpose(1, 2).unflatten(2, grid)

    return {"reshape_transform": reshape}


@cache
def _region(ready: Case) -> Tensor | None:
    """Return where the network predicts the class, `b *s`; everywhere for a sample in which it predicts it nowhere."""
    if not ready.workload.segments:
        return None
    region = ready.forward().argmax(1) == CLASS
    nowhere = ~region.flatten(1).any(1)
    return (region | nowhere.reshape(-1, *[1] * (region.ndim - 1))).float()


def each_class(one: Tool, classes: int) -> Tool:
    """The same question once for each class; the cost does not depend on which, so the class stays the same."""

    def tool(ready: Case) -> Call:
        call = one(ready)
        return lambda: [call() for _ in range(classes)]

    return tool


# --- MONAI ---


def monai_cam(*names: str) -> Tool:
    """These rules one after the other, on one network."""

    def tool(ready: Case) -> Call:
        from monai import visualize

        network, layer = _Single(ready), f"network.{ready.workload.layer}"
        explainers = [getattr(visualize, name)(network, target_layers=layer) for name in names]
        return lambda: [explainer(ready.inputs, class_idx=CLASS) for explainer in explainers]

    return tool


def monai_classic_cam(ready: Case) -> Call:
    from monai.visualize import CAM

    heads = {"class_layers.relu": "class_layers.out", "layer4": "fc"}
    head = heads.get(ready.workload.layer)
    if head is None:
        raise CannotAsk("no linear head behind the layer")
    explainer = CAM(_Single(ready), target_layers=f"network.{ready.workload.layer}", fc_layers=f"network.{head}")
    # It takes a class as a tensor only.
    return lambda: explainer(ready.inputs, class_idx=torch.full((len(ready.inputs), 1), CLASS))


def monai_gradient(name: str, samples: int | None = None) -> Tool:
    def tool(ready: Case) -> Call:
        from monai import visualize

        options = {} if samples is None else {"n_samples": samples, "verbose": False}
        explainer = getattr(visualize, name)(_Single(ready), **options)
        return lambda: explainer(ready.inputs, index=CLASS)

    return tool


def monai_occlusion(ready: Case) -> Call:
    from monai.visualize import OcclusionSensitivity

    explainer = OcclusionSensitivity(
        _Single(ready), mask_size=occlusion_window(ready), overlap=0.0, mode=0.0, n_batch=1, verbose=False
    )
    return lambda: explainer(ready.inputs)[0]


# --- grad-cam ---


@contextmanager
def _stand_in_for_torchvision() -> Iterator[None]:
    """Let grad-cam be imported without torchvision, of which it uses four names, none of them here."""
    try:
        importlib.import_module("torchvision")
        made = []
    except ImportError:
        made = ["torchvision", "torchvision.transforms", "torchvision.transforms.functional"]
    for name in made:
        module = types.ModuleType(name)
        for unused in ("Compose", "Normalize", "ToTensor", "resize"):
            setattr(module, unused, None)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in made:
            sys.modules.pop(name, None)


@cache
def _grad_cam_package() -> Any:
    with _stand_in_for_torchvision():
        return _load("pytorch_grad_cam")


def grad_cam(*names: str) -> Tool:
    """These rules one after the other, each opened and closed as the package's front page shows."""

    def tool(ready: Case) -> Call:
        package = _grad_cam_package()
        network, regions = _Single(ready), _region(ready)
        layers, options = [network.layer(ready)], _from_tokens(ready)

        def target(n: int) -> Callable[[Tensor], Tensor]:
            # It hands over one sample's output without its batch axis.
            if regions is None:
                return lambda output: output[CLASS]
            return lambda output: (output[CLASS] * regions[n]).sum()

        targets = [target(n) for n in range(len(ready.inputs))]

        def call() -> Any:
            maps = []
            for name in names:
                with getattr(package, name)(network, layers, **options) as explainer:
                    maps.append(explainer(input_tensor=ready.inputs, targets=targets))
            return maps

        return call

    return tool


# --- torchcam ---


def torchcam(*names: str) -> Tool:
    """These rules one after the other, each opened and closed as the package's front page shows."""

    def tool(ready: Case) -> Call:
        methods = _load("torchcam.methods")
        network, regions = _Single(ready), _region(ready)
        layer, options = f"network.{ready.workload.layer}", _from_tokens(ready)
        asked: dict[str, Any] = {"class_idx": CLASS} if regions is None else {"targets": _region_targets(regions)}

        def call() -> Any:
            maps = []
            for name in names:
                with getattr(methods, name)(network, layer, **options) as explainer:
                    maps.append(explainer(scores=network(ready.inputs), **asked))
            return maps

        return call

    return tool


def _region_targets(regions: Tensor) -> list[Callable[[Tensor], Tensor]]:
    return [lambda output, region=region: (output[CLASS] * region).sum() for region in regions]


# --- captum ---


def captum_layer_cam(ready: Case) -> Call:
    attr = _load("captum.attr")
    network = _Scored(ready)
    explainer = attr.LayerGradCam(network, network.layer(ready))
    return lambda: explainer.attribute(ready.inputs, target=CLASS)


def captum_integrated(steps: int, batch: int | None) -> Tool:
    def tool(ready: Case) -> Call:
        explainer = _load("captum.attr").IntegratedGradients(_Scored(ready))
        return lambda: explainer.attribute(
            ready.inputs, target=CLASS, n_steps=steps, internal_batch_size=batch and batch * len(ready.inputs)
        )

    return tool


def captum_guided(ready: Case) -> Call:
    explainer = _load("captum.attr").GuidedBackprop(_Scored(ready))
    return lambda: explainer.attribute(ready.inputs, target=CLASS)


def captum_guided_grad_cam(ready: Case) -> Call:
    network = _Scored(ready)
    explainer = _load("captum.attr").GuidedGradCam(network, network.layer(ready))
    return lambda: explainer.attribute(ready.inputs, target=CLASS)


def captum_occlusion(ready: Case) -> Call:
    explainer = _load("captum.attr").Occlusion(_Scored(ready))
    window = (ready.inputs.shape[1], *occlusion_window(ready))
    return lambda: explainer.attribute(ready.inputs, sliding_window_shapes=window, strides=window, target=CLASS)


# --- placing ---


def interpolate(ready: Any) -> Call:
    values = ready.values[None, None]
    return lambda: nn.functional.interpolate(values, ready.onto.shape, mode="trilinear", align_corners=False)


def zoom(ready: Any) -> Call:
    from scipy import ndimage

    factors = np.array(ready.onto.shape) / np.array(ready.values.shape)
    return lambda: ndimage.zoom(ready.values, factors, order=1, grid_mode=True, mode="nearest")
