"""What is asked: a target settled on the clean output, with all that its answer must say about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import index
from typing import Any, SupportsIndex

import torch
from torch import Tensor

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


@dataclass(frozen=True, eq=False)
class Asked:
    score_of: Target
    classes: tuple[int, ...]
    probabilities: Tensor | None
    notes: tuple[tuple[str, ...], ...]
    score: str
    words: str

    def __call__(self, output: Any) -> Tensor:
        return self.score_of(output)


def settle(target: Any, output: Any, batch: int, score: str, activation: str | None) -> Asked:
    logits, place = output_tensor(output)
    common = [] if not place else [f"The network has several outputs; the one explained is output{place}."]
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
    with torch.inference_mode(False), torch.no_grad():
        scores = own(output)
    if scores.shape != (batch,):
        raise UsageError(f"a target gives one score for each of {batch} samples, not shape {tuple(scores.shape)}")
    notes = _notes(batch, logits.detach(), target, classes, kind)
    return Asked(
        own,
        classes,
        _probability(logits.detach(), classes, kind),
        tuple((*common, *n) for n in notes),
        "probability" if kind == "none" else score,
        "",
    )


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


def _notes(batch: int, logits: Tensor, target: object, classes: tuple[int, ...], activation: str) -> list[list[str]]:
    regions = predicted_region(logits, classes, activation).flatten(1).any(1) if classes and logits.ndim > 2 else None
    every = []
    for n in range(batch):
        notes = []
        if regions is not None and not regions[n] and target is None:
            notes.append(
                f"The network predicts background only; class {classes[n]} is explained, summed over the whole output."
            )
        elif target is None:
            notes.append(_choice(logits[n], classes[n], activation))
        elif regions is not None and not regions[n]:
            notes.append(f"The network predicts class {classes[n]} nowhere; its score is summed over the whole output.")
        every.append(notes)
    return every


def _choice(logits: Tensor, chosen: int, activation: str) -> str:
    """Say which class was explained since no target was given."""
    if logits.shape[0] > 1:
        return f"No target was given; the predicted class, {chosen}, is explained."
    unlikely = logits.ndim == 1 and float(logits[0]) < (0.5 if activation == "none" else 0)
    doubt = ", which the network finds unlikely here" if unlikely else ""
    return f"No target was given; the network's only class, {chosen}, is explained{doubt}."
