"""Which layer to look at: every feature map of a network with the evidence for and against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medcam.engine import doubts
from medcam.engine.asked import AnyTarget, check_inputs
from medcam.engine.capture import Captured, capture, gradients
from medcam.engine.layers import Layer, candidates, feature_layers
from medcam.engine.settled import Unsettled
from medcam.engine.skeleton import skeleton
from medcam.engine.targets import as_target
from medcam.errors import UsageError

# So many layers are asked in one pass: the graph of a pass begins at the first of them, and takes memory from there on.
_AT_ONCE = 8


@dataclass(frozen=True)
class Evidence:
    """A layer, and what speaks for looking at it.

    Parameters
    ----------
    layer
        Its cells, where they lie and how large they are (`footprint.stride`, in voxels of the input), and whether it is the default.
    owed
        Which share of the score is owed to where its features are: the first-order estimate of what the score would lose if each channel
        were spread evenly over the cells, over the score's size; the mean over the batch. It can exceed 1, or be negative. NaN where the
        score does not depend on the layer.
    means_cancel
        Whether the gradient's mean over each channel is rounding noise, so that Grad-CAM's weights say nothing here.
    """

    layer: Layer
    owed: float
    means_cancel: bool


def layers(
    model: nn.Module,
    inputs: Float[Tensor, "b c *s"],
    *,
    target: AnyTarget = None,
    score: str = "logit",
    activation: str | None = None,
    output: str | int | None = None,
) -> tuple[Evidence, ...]:
    """Return the layers that can be explained, in the order in which they end, each with its evidence.

    The deeper a layer, the more its features mean and the coarser its cells. What the score owes to a layer's places, and whether
    Grad-CAM's weights survive there, decides between neighbours. One forward and one backward pass for every eight layers.

    Parameters and errors are those of `medcam.relevance`.
    """
    check_inputs(inputs)
    listed = [layer for layer in feature_layers(model, inputs, output=output) if max(layer.shape) > 1]
    asked = as_target(
        target, score=score, activation=activation, output=output, input_shape=tuple(inputs.shape), network=model
    )
    found: list[Evidence] = []
    with skeleton(model) as copied, torch.inference_mode(False):
        for start in range(0, len(listed), _AT_ONCE):
            found += _evidence(copied, inputs, listed[start : start + _AT_ONCE], asked)
    return tuple(found)


def speaking_layer(
    copied: nn.Module, inputs: Float[Tensor, "b c *s"], listed: Sequence[Layer], asked: Unsettled
) -> Layer | None:
    """Return the last layer before the head whose gradient means something, or None; `copied` is a skeleton."""
    usable = candidates(listed)
    for start in range(0, len(usable), _AT_ONCE):
        some = usable[start : start + _AT_ONCE]
        for evidence in reversed(_evidence(copied, inputs, some[::-1], asked)):
            if not evidence.means_cancel and evidence.owed == evidence.owed:
                return replace(evidence.layer, default=True)
    return None


def _evidence(copied: nn.Module, inputs: Tensor, some: Sequence[Layer], asked: Unsettled) -> list[Evidence]:
    names = [layer.name for layer in some]
    captured = capture(copied, inputs, names, layouts={layer.name: layer.layout for layer in some})
    with torch.enable_grad():
        scores = asked.settled(captured.output)(captured.output)
    return [_of_layer(captured, scores, layer) for layer in some]


def _of_layer(captured: Captured, scores: Tensor, layer: Layer) -> Evidence:
    kept = captured.layers[layer.name]
    try:
        slope = gradients(captured, scores, [layer.name], keep_graph=True)[layer.name]
    except UsageError:
        return Evidence(layer, float("nan"), False)
    features = kept.features.flatten(2)
    uneven = features - features.mean(2, keepdim=True)
    owed = (slope.flatten(2) * uneven).flatten(1).sum(1) / scores.detach().abs().clamp(min=1e-12)
    size, mean = doubts.gradient_sizes(slope)
    numbers = torch.stack([owed.mean(), size.mean(), mean.mean()]).tolist()
    if numbers[1] == 0:
        return Evidence(layer, float("nan"), False)
    return Evidence(layer, numbers[0], doubts.cancels(numbers[1], numbers[2], kept.native.dtype, features.shape[2]))
