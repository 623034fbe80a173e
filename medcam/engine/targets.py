"""What is explained: functions from a network's output to one score a sample.

A classifier's output is `b classes`, a segmentation's `b classes *s`; index c always means output channel c. A network with one output
channel has class 0 only, and its logit speaks for that class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from medcam.errors import UsageError

Target = Callable[[Any], Float[Tensor, " b"]]


def output_tensor(output: Any) -> tuple[Tensor, str]:
    """Return the tensor of class scores in a network's output, and where it stood ('' if it is the output).

    Of several, the entry named 'pred', 'logits' or 'out' counts, else the first.

    Raises
    ------
    UsageError
        If the output holds no floating tensor with a class axis.
    """
    if isinstance(output, dict):
        names = [name for name in ("pred", "logits", "out") if name in output] or list(output)
        named: list[tuple[str, Any]] = [(f"['{name}']", output[name]) for name in names]
    elif isinstance(output, (tuple, list)):
        named = [(f"[{place}]", item) for place, item in enumerate(output)]
    else:
        named = [("", output)]
    for place, item in named:
        if isinstance(item, Tensor) and item.is_floating_point() and item.ndim >= 2:
            return item, place
    found = ", ".join(
        f"a tensor of shape {tuple(item.shape)}" if isinstance(item, Tensor) else f"a {type(item).__name__}"
        for _, item in named
    )
    raise UsageError(f"medcam explains outputs of shape (batch, classes, ...); this network gives {found or 'nothing'}")


def activation_of(logits: Float[Tensor, "b classes *s"], wanted: str | None) -> str:
    """Return what makes probabilities of an output: 'softmax', 'sigmoid', or 'none' where the network itself ended in one of them.

    Unless `wanted` says so, several channels are taken for classes that exclude each other, and a single one for a logit.
    """
    if type(logits.grad_fn).__name__ in ("SigmoidBackward0", "SoftmaxBackward0"):
        return "none"
    return wanted or ("sigmoid" if logits.shape[1] == 1 else "softmax")


def predicted(logits: Float[Tensor, "b classes *s"], activation: str) -> list[int]:
    """Return the class that the network predicts for each sample: the one with the largest score.

    For a segmentation that is the class with the most voxels; background, class 0 of a softmax, does not count.
    """
    if logits.shape[1] == 1:
        return [0] * logits.shape[0]
    if logits.ndim == 2:
        return [int(c) for c in logits.argmax(1)]
    batch, classes = logits.shape[:2]
    counts = torch.stack(
        [predicted_region(logits, [c] * batch, activation).flatten(1).sum(1) for c in range(classes)], 1
    )
    if activation != "sigmoid":
        counts[:, 0] = -1
    return [int(c) for c in counts.argmax(1)]


def class_score(classes: Sequence[int], activation: str, *, probability: bool = False) -> Target:
    """Return the target that scores class `classes[n]` for sample n.

    For a segmentation the score is the sum over the region that the network predicts as that class (frozen), and over the whole output
    where it predicts none.

    Parameters
    ----------
    classes
        One output channel for each sample.
    activation
        'softmax', 'sigmoid' or 'none', as `activation_of` tells.
    probability
        Score the probability instead of the logit. Gradients of a saturated probability vanish, which is why the logit is the default.

    References
    ----------
    Segmentation score: Vinogradova et al., Seg-Grad-CAM, AAAI 2020, eq. 2.
    """

    def score(output: Any) -> Tensor:
        logits, _ = output_tensor(output)
        check_classes(classes, logits)
        values = probabilities(logits, activation) if probability else logits
        rows = torch.arange(len(classes), device=logits.device)
        columns = torch.as_tensor(list(classes), device=logits.device)
        chosen = values[rows, columns]
        if logits.ndim == 2:
            return chosen
        region = predicted_region(logits, classes, activation).flatten(1)
        region |= ~region.any(1, keepdim=True)
        return (chosen.flatten(1) * region).sum(1)

    return score


def predicted_region(logits: Float[Tensor, "b classes *s"], classes: Sequence[int], activation: str) -> Tensor:
    """Return where a segmentation predicts class `classes[n]` in sample n, `b *s`: by arg max, or for a sigmoid (or a single channel) where
    it is more likely than not."""
    if logits.shape[1] == 1 or activation == "sigmoid":
        own = logits.detach()[torch.arange(logits.shape[0]), list(classes)]
        return own > (0.5 if activation == "none" else 0)
    wanted = torch.as_tensor(list(classes), device=logits.device).reshape(-1, *[1] * (logits.ndim - 2))
    return logits.detach().argmax(1) == wanted


def probabilities(logits: Float[Tensor, "b classes *s"], activation: str) -> Float[Tensor, "b classes *s"]:
    """Return class probabilities by that activation; with 'none' the output is what it is."""
    if activation == "none":
        return logits
    return logits.sigmoid() if activation == "sigmoid" else logits.softmax(1)


def check_classes(classes: Sequence[int], logits: Tensor) -> None:
    """Raise a UsageError unless there is one existing class for each sample."""
    batch, count = logits.shape[:2]
    if len(classes) != batch:
        raise UsageError(f"{len(classes)} classes were given for a batch of {batch} samples")
    for c in classes:
        if not 0 <= c < count:
            every = "only class 0" if count == 1 else f"classes 0 to {count - 1}"
            raise UsageError(f"class {c} does not exist: this network has {every}")
