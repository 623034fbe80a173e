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


def predicted(logits: Float[Tensor, "b classes *s"]) -> list[int]:
    """Return the class that the network predicts for each sample.

    For a segmentation that is the foreground class (any but 0, if there are two or more) with the most voxels, by arg max.
    """
    if logits.shape[1] == 1:
        return [0] * logits.shape[0]
    if logits.ndim == 2:
        return [int(c) for c in logits.argmax(1)]
    labels = logits.argmax(1).flatten(1)
    counts = torch.stack([(labels == c).sum(1) for c in range(logits.shape[1])], 1)
    counts[:, 0] = -1
    return [int(c) for c in counts.argmax(1)]


def class_score(classes: Sequence[int], *, probability: bool = False) -> Target:
    """Return the target that scores class `classes[n]` for sample n.

    For a segmentation the score is the sum over the region that the network predicts as that class (frozen, by arg max, or by a positive
    logit if there is one channel), and over the whole output where it predicts none.

    Parameters
    ----------
    classes
        One output channel for each sample.
    probability
        Score the probability, a softmax over the classes or a sigmoid of a single logit, instead of the logit. Gradients of a saturated
        probability vanish, which is why the logit is the default.

    References
    ----------
    Segmentation score: Vinogradova et al., Seg-Grad-CAM, AAAI 2020, eq. 2.
    """

    def score(output: Any) -> Tensor:
        logits, _ = output_tensor(output)
        check_classes(classes, logits)
        values = probabilities(logits) if probability else logits
        rows = torch.arange(len(classes), device=logits.device)
        columns = torch.as_tensor(list(classes), device=logits.device)
        chosen = values[rows, columns]
        if logits.ndim == 2:
            return chosen
        region = predicted_region(logits, classes).flatten(1)
        region |= ~region.any(1, keepdim=True)
        return (chosen.flatten(1) * region).sum(1)

    return score


def predicted_region(logits: Float[Tensor, "b classes *s"], classes: Sequence[int]) -> Tensor:
    """Return where a segmentation predicts class `classes[n]` in sample n, `b *s`."""
    if logits.shape[1] == 1:
        return logits.detach()[:, 0] > 0
    wanted = torch.as_tensor(list(classes), device=logits.device).reshape(-1, *[1] * (logits.ndim - 2))
    return logits.detach().argmax(1) == wanted


def probabilities(logits: Float[Tensor, "b classes *s"]) -> Float[Tensor, "b classes *s"]:
    """Return class probabilities: a softmax over the classes, or a sigmoid where there is a single logit."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def check_classes(classes: Sequence[int], logits: Tensor) -> None:
    """Raise a UsageError unless there is one existing class for each sample."""
    batch, count = logits.shape[:2]
    if len(classes) != batch:
        raise UsageError(f"{len(classes)} classes were given for a batch of {batch} samples")
    for c in classes:
        if not 0 <= c < count:
            every = "only class 0" if count == 1 else f"classes 0 to {count - 1}"
            raise UsageError(f"class {c} does not exist: this network has {every}")
