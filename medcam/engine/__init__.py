"""The engine: what in its input moved a network's score. Tensors and models only; it knows no file and no millimetre.

`EXPLAINERS` is the table of methods. Each takes a network, its input, the name of a layer and a target, and gives a `Relevance` that still
lies on the layer's own cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import index
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medcam.engine import cams
from medcam.engine.capture import capture, gradient
from medcam.engine.footprint import even_spread, footprints
from medcam.engine.layers import default_layer, feature_layers
from medcam.engine.targets import (
    Target,
    activation_of,
    check_classes,
    class_score,
    output_tensor,
    predicted,
    predicted_region,
    probabilities,
)
from medcam.errors import UsageError

CamRule = Callable[[Float[Tensor, "b c *t"], Float[Tensor, "b c *t"]], Float[Tensor, "b *t"]]

# A rule of (activation, gradient) is one pure function and one row here.
EXPLAINERS: dict[str, CamRule] = {"grad-cam": cams.grad_cam}

# A mean gradient this much smaller than the mean absolute gradient is rounding noise of float32, not a weight.
_CANCELLED = 1e-5
_FEW_CELLS = 4


@dataclass(frozen=True, eq=False)
class Relevance:
    """An explainer's answer, on the cells of the layer it looked at.

    Parameters
    ----------
    values
        Raw and signed: positive speaks for the target. Its scale is the method's own.
    stride, offset
        Cell c is centred on input index `offset + stride * c`.
    input_shape
        The spatial shape of the network's input.
    layer, method
        What was looked at, and how.
    classes
        The output channel explained for each sample; () for a target of your own.
    scores
        The target's score of each sample.
    probabilities
        Of the explained class, where the output is a classification, else None.
    notes
        What must be known about each sample's map, in sentences.
    score
        What the scores are: 'logit', or 'probability' if that was asked for or the network itself ends in a sigmoid or softmax.
    """

    values: Float[Tensor, "b *t"]
    stride: tuple[float, ...]
    offset: tuple[float, ...]
    input_shape: tuple[int, ...]
    layer: str
    method: str
    classes: tuple[int, ...]
    scores: Float[Tensor, " b"]
    probabilities: Float[Tensor, " b"] | None
    notes: tuple[tuple[str, ...], ...]
    score: str = "logit"

    def on_input(self) -> Float[Tensor, "b *s"]:
        """Return the map at the input's size, linearly interpolated between cell centres and constant beyond the outermost."""
        result = self.values
        for axis, n in enumerate(self.input_shape):
            cells = self.values.shape[axis + 1]
            index = torch.arange(n, dtype=result.dtype, device=result.device)
            place = ((index - self.offset[axis]) / self.stride[axis]).clamp(0, cells - 1)
            # The weight of each cell falls linearly to zero at its neighbour's centre.
            centres = torch.arange(cells, dtype=result.dtype, device=result.device)
            weights = (1 - (place[:, None] - centres).abs()).clamp(min=0)
            result = (result.movedim(axis + 1, -1) @ weights.T).movedim(-1, axis + 1)
        return result


def relevance(
    model: nn.Module,
    inputs: Float[Tensor, "b c *s"],
    *,
    layer: str | None = None,
    target: SupportsIndex | Iterable[SupportsIndex] | Target | None = None,
    method: str = "grad-cam",
    score: str = "logit",
    activation: str | None = None,
) -> Relevance:
    """Explain a network's score for each sample of a batch, as if it were alone.

    The network is left exactly as it is, in the mode it is in: hooks, weights, gradients, buffers, also after an error.

    Parameters
    ----------
    inputs
        What the network takes, 2D (`b c i j`) or 3D (`b c i j k`).
    layer
        The name of a module that gives a feature map; the last one before the head by default (`feature_layers`).
    target
        A class for all samples, one for each, or a function from the network's output to one score a sample. By default each sample's
        predicted class, which the notes name.
    score
        'logit' or 'probability'.
    activation
        What makes probabilities of the output: 'softmax' (classes that exclude each other) or 'sigmoid' (labels of which several may hold).
        By default softmax, or sigmoid for a single channel; an output that the network itself passed through one of them is left alone.

    Raises
    ------
    UsageError
        If the method, the layer, or a class does not exist, or the score does not depend on the layer.
    ModelError
        If the network does not accept the input.
    """
    if method not in EXPLAINERS:
        raise UsageError(f"there is no method '{method}'; medcam has {', '.join(sorted(EXPLAINERS))}")
    if score not in ("logit", "probability"):
        raise UsageError(f"a score is 'logit' or 'probability', not '{score}'")
    if activation not in (None, "softmax", "sigmoid"):
        raise UsageError(f"an activation is 'softmax' or 'sigmoid', not '{activation}'")
    if not isinstance(inputs, Tensor) or inputs.ndim not in (4, 5) or inputs.shape[0] == 0:
        given = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise UsageError(f"the input should be a tensor of samples, channels and 2 or 3 spatial axes, not {given}")
    if layer is None:
        layer = default_layer(feature_layers(model, inputs)).name
    captured = capture(model, inputs, layer)
    logits, place = output_tensor(captured.output)
    common = [] if not place else [f"The network has several outputs; the one explained is output{place}."]
    if captured.calls > 1:
        common.append(f"Layer '{layer}' runs {captured.calls} times in one pass; its last call is explained.")
    if model.training:
        common.append(
            "The network is in training mode, so dropout and batch statistics act; model.eval() turns them off."
        )
    kind = activation_of(logits, activation)
    if kind == "none":
        common.append(
            "The network ends in a sigmoid or softmax, so its output is the probability; where that saturates gradients vanish."
        )
    classes: tuple[int, ...] = ()
    if callable(target):
        own = target
    else:
        classes = _classes(target, logits, kind)
        own = class_score(classes, kind, probability=score == "probability")
    with torch.inference_mode(False), torch.enable_grad():
        scores = own(captured.output)
    if scores.shape != (inputs.shape[0],):
        raise UsageError(
            f"a target gives one score for each of {inputs.shape[0]} samples, not shape {tuple(scores.shape)}"
        )
    slope = gradient(captured, scores).float()
    features = captured.activation.detach().float()
    values = EXPLAINERS[method](features, slope)
    size, cells = tuple(inputs.shape[2:]), tuple(features.shape[2:])
    where = footprints(model, inputs[:1], [layer]).get(layer) or even_spread(size, cells)
    if not where.measured:
        common.append(
            "Where this layer's cells lie could not be measured; they are assumed to be spread evenly over the input."
        )
    if min(cells) < _FEW_CELLS:
        common.append(
            f"Layer '{layer}' has only {' x '.join(map(str, cells))} cells; the map cannot be finer than that."
        )
    notes = _notes(values, slope, logits.detach(), target, classes, kind)
    return Relevance(
        values, where.stride, where.offset, size, layer, method, classes, scores.detach(),
        _probability(logits.detach(), classes, kind), tuple((*common, *own_notes) for own_notes in notes),
        score="probability" if kind == "none" else score,
    )  # fmt: skip


def _classes(
    target: SupportsIndex | Iterable[SupportsIndex] | None, logits: Tensor, activation: str
) -> tuple[int, ...]:
    if target is None:
        return tuple(predicted(logits, activation))
    try:
        if isinstance(target, (bool, str)):
            raise TypeError
        # `index` takes what numpy and torch call an integer, and no float.
        one = hasattr(target, "__index__") and not getattr(target, "shape", ())
        given: Any = [target] * logits.shape[0] if one else target
        classes = tuple(index(c) for c in given)
    except TypeError:
        raise UsageError(f"a target is a class number, one for each sample, or a function, not {target!r}") from None
    check_classes(classes, logits)
    return classes


def _probability(logits: Tensor, classes: tuple[int, ...], activation: str) -> Tensor | None:
    if not classes or logits.ndim != 2:
        return None
    return probabilities(logits.float(), activation)[torch.arange(len(classes)), list(classes)]


def _notes(
    values: Tensor, slope: Tensor, logits: Tensor, target: object, classes: tuple[int, ...], activation: str
) -> list[list[str]]:
    """Return for each sample what its reader must know: a doubtful map is explained, never handed out in silence."""
    regions = predicted_region(logits, classes, activation).flatten(1).any(1) if classes and logits.ndim > 2 else None
    every = []
    for n in range(values.shape[0]):
        notes = []
        if regions is not None and not regions[n] and target is None:
            notes.append(
                f"The network predicts background only; class {classes[n]} is explained, summed over the whole output."
            )
        elif target is None:
            notes.append(_choice(logits[n], classes[n], activation))
        elif regions is not None and not regions[n]:
            notes.append(f"The network predicts class {classes[n]} nowhere; its score is summed over the whole output.")
        notes.extend(_doubts(values[n], slope[n]))
        every.append(notes)
    return every


def _choice(logits: Tensor, chosen: int, activation: str) -> str:
    """Say which class was explained since no target was given."""
    if logits.shape[0] > 1:
        return f"No target was given; the predicted class, {chosen}, is explained."
    unlikely = logits.ndim == 1 and float(logits[0]) < (0.5 if activation == "none" else 0)
    doubt = ", which the network finds unlikely here" if unlikely else ""
    return f"No target was given; the network's only class, {chosen}, is explained{doubt}."


def _doubts(values: Tensor, slope: Tensor) -> list[str]:
    if not torch.isfinite(values).all():
        return [
            "The map holds values that are not finite: the network's features or gradients overflow. Do not use it."
        ]
    mean_size = slope.abs().mean()
    if mean_size == 0:
        return ["The score's gradient at this layer is zero everywhere (a saturated or dead output); the map is blank."]
    weights = slope.flatten(1).mean(1)
    if slope[0].numel() > 1 and weights.abs().max() / mean_size < _CANCELLED:
        return [
            "The gradient's mean over each channel cancels to rounding noise, as it must in front of an instance norm; this map is "
            "noise. Choose a layer behind the normalisation."
        ]
    if not (values > 0).any():
        return ["Nothing in the image speaks for the target at this layer: the map has no positive value."]
    return []
