"""What is explained: values that give one score a sample of a network's output.

`as_target` turns what a user gives into a target; `settled(output)` on the network's clean output makes its choices, such as the predicted
class or region, once and for all; the settled target is then called with any output of the same shape:

    target = as_target("lesion-background@largest", class_names=names, input_shape=inputs.shape)
    settled = target.settled(network(inputs))
    scores = settled(network(perturbed))
    settled.notes, settled.classes, settled.describe(names)

The same in Python: `difference(2, 0, region=component(0))`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from medcam.engine.class_words import Pick
from medcam.engine.classes import difference, finer, negation, one_class, predicted, several_classes, unasked
from medcam.engine.detection import kept_box, kept_boxes
from medcam.engine.outputs import Reading, output_tensor
from medcam.engine.segmentation import (
    Region,
    boundary,
    component,
    component_at,
    given,
    predicted_region,
    voxel,
    whole_output,
)
from medcam.engine.settled import Settled, Target, Unsettled
from medcam.errors import UsageError

__all__ = [
    "Region",
    "Settled",
    "Target",
    "Unsettled",
    "as_target",
    "boundary",
    "component",
    "component_at",
    "difference",
    "finer",
    "given",
    "kept_box",
    "kept_boxes",
    "negation",
    "one_class",
    "output_tensor",
    "parse_target",
    "predicted",
    "predicted_region",
    "several_classes",
    "voxel",
    "whole_output",
]

GRAMMAR = (
    "a target is written 2 or by name, 1,3 (sum), 2-0 (difference), predicted, not:0 or finer:2, and for a segmentation ends in a region, "
    "such as 1@largest"
)
# The regions of the command line: what makes them, and how many whole numbers they take.
_REGIONS: dict[str, tuple[Callable[..., Region], range, str]] = {
    "whole": (whole_output, range(1), "whole"),
    "predicted": (predicted_region, range(1), "predicted"),
    "largest": (component, range(1), "largest"),
    "smallest": (partial(component, -1), range(1), "smallest"),
    "component": (component, range(1, 2), "component:N"),
    "component-at": (component_at, range(2, 4), "component-at:I,J,K"),
    "boundary": (boundary, range(1, 4), "boundary:R"),
    "voxel": (voxel, range(2, 4), "voxel:I,J,K"),
}


def as_target(
    target: SupportsIndex | Iterable[SupportsIndex] | str | Target | Unsettled | Settled | None = None,
    *,
    score: str = "logit",
    activation: str | None = None,
    output: str | int | None = None,
    input_shape: Sequence[int] | None = None,
    network: nn.Module | None = None,
    class_names: Sequence[str] = (),
) -> Unsettled:
    """Return the target that a user means; call `settled` of it with the network's clean output, and then that with any output.

    Parameters
    ----------
    target
        A class for all samples, one for each, words as on the command line (`parse_target`), what a function of this module gave, or a
        function from the network's whole output to one score a sample. None: each sample's predicted class, which the notes name.
    score
        'logit' or 'probability'.
    activation
        What makes probabilities of the output: 'softmax', 'sigmoid', or 'none' where the network itself ends in one of them.
    output
        Which of a network's several outputs: a key, an index, or a path such as "out[1]"; of stacked heads (`b heads classes *s`) "[:, 1]".
    input_shape
        Of the network's input, `b c *s`: what outputs can be scores, and where a detector's anchors lie.
    network
        Where similar classes are to be told by the weights of the classifier.
    class_names
        In the order of output channels.

    Raises
    ------
    UsageError
        If there is no such target, score or activation, or one that the target has no use for.
    """
    if score not in ("logit", "probability"):
        raise UsageError(f"a score is 'logit' or 'probability', not '{score}'")
    if activation not in (None, "softmax", "sigmoid", "none"):
        raise UsageError(f"an activation is 'softmax', 'sigmoid' or 'none', not '{activation}'")
    asked = _asked(target, class_names)
    for name, value in (("score", None if score == "logit" else score), ("output", output)):
        if value is not None and name not in asked.takes:
            raise UsageError(
                f"{name} '{value}' means nothing to {asked.describe()}, which looks at the whole output itself; leave it out"
            )
    shape = None if input_shape is None else tuple(input_shape)
    return asked.read(Reading(score, activation, output, shape, network))


def _asked(target: Any, class_names: Sequence[str]) -> Unsettled:
    if target is None:
        return unasked()
    if isinstance(target, Unsettled):
        return target
    if isinstance(target, Settled):
        return Unsettled(lambda _output, _reading: target, target.describe, frozenset())
    if isinstance(target, str):
        return parse_target(target, class_names)
    if callable(target):
        return Unsettled(partial(_settle_own, target), _own_words, frozenset())
    return one_class(target)


def parse_target(text: str, class_names: Sequence[str] = ()) -> Unsettled:
    """Return the target that words of the command line name.

    `[not:|finer:] CLASSES [@REGION]`, where CLASSES is one class, several with commas between, or a difference `A-B`; a class is a name, a
    number, or `predicted`. Names are matched whole and first, so they may hold any of these signs; upper and lower case are the same.

    Raises
    ------
    UsageError
        If a class or a region does not exist, listing what does, or the words could mean two things.
    """
    text = text.strip()
    if names := _term(text, class_names):
        return several_classes(names)
    rest, at, place = text.rpartition("@")
    words, region = (rest, parse_region(place)) if at else (text, None)
    kind, colon, after = words.partition(":")
    if not colon or _classes(words, class_names):
        plus, minus = _classes_or_error(words, class_names)
        return several_classes(plus, minus, region=region)
    plus, minus = _classes_or_error(after, class_names) if kind in ("not", "finer") else ([], [])
    if kind == "not" and len(plus) == 1 and not minus:
        return negation(plus[0], region=region)
    if kind == "finer" and len(plus) == 1:
        return finer(plus[0], minus or None, region=region)
    if kind in ("not", "finer"):
        raise UsageError(f"'{kind}:' takes one class, such as {kind}:2, not '{after}'")
    raise UsageError(f"there is no target '{kind}:'; {GRAMMAR}")


def parse_region(text: str) -> Region:
    """Return the region that words such as 'largest' or 'boundary:2' name.

    Raises
    ------
    UsageError
        If there is none, listing what there is.
    """
    name, colon, after = text.strip().partition(":")
    if name not in _REGIONS:
        raise UsageError(
            f"there is no region '{text}'; medcam has {', '.join(form for _, _, form in _REGIONS.values())}"
        )
    make, counts, form = _REGIONS[name]
    given_numbers = [part.strip() for part in after.split(",")] if colon else []
    if len(given_numbers) not in counts or not all(re.fullmatch(r"-?\d+", part) for part in given_numbers):
        raise UsageError(f"a region is written {form} with whole numbers, not '{text}'")
    return make(*map(int, given_numbers))


Lists = tuple[list[Pick], list[Pick]]


def _classes_or_error(text: str, class_names: Sequence[str]) -> Lists:
    found = _classes(text, class_names)
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"'{text}' could mean more than one difference of these classes; use their numbers")
    pieces = [part.strip() for part in re.split("[-,]", text)]
    unknown = [part for part in pieces if not _term(part, class_names)]
    known = (
        f"its classes are {', '.join(class_names)}" if class_names else "it does not name its classes, so give a number"
    )
    if not unknown or not all(pieces):
        raise UsageError(f"'{text}' names no classes; {GRAMMAR}; {known}")
    raise UsageError(f"the network has no class '{text if len(pieces) == 1 else unknown[0]}'; {known}")


def _classes(text: str, class_names: Sequence[str]) -> list[Lists]:
    """Return every way to read a list of classes, or a difference of two."""
    if alone := _list(text, class_names):
        return [(alone, [])]
    splits = [(text[: m.start()], text[m.end() :]) for m in re.finditer("-", text)]
    pairs = [(_list(left, class_names), _list(right, class_names)) for left, right in splits]
    return [(plus, minus) for plus, minus in pairs if plus and minus]


def _list(text: str, class_names: Sequence[str]) -> list[Pick]:
    if alone := _term(text, class_names):
        return alone
    for match in re.finditer(",", text):
        head, rest = _term(text[: match.start()], class_names), _list(text[match.end() :], class_names)
        if head and rest:
            return head + rest
    return []


def _term(text: str, class_names: Sequence[str]) -> list[Pick]:
    """Return the one class that words name, or nothing."""
    word = text.strip().lower()
    lowered = [name.lower() for name in class_names]
    if word in lowered:
        return [lowered.index(word)]
    if word == "predicted":
        return [None]
    return [int(word)] if word.isdecimal() else []


def _settle_own(function: Target, output: Any, reading: Reading) -> Settled:
    batch = None if reading.input_shape is None else reading.input_shape[0]
    scored = partial(_own_scores, function=function, batch=batch)
    count = len(scored(output)) if batch is None else batch
    return Settled(
        scored,
        "own",
        None,
        torch.zeros(count, 0, dtype=torch.long),
        lambda rows: ((),) * len(rows),
        lambda _rows, _names: _OWN,
    )


_OWN = "a target of the caller's own"


def _own_words(_class_names: Sequence[str]) -> str:
    return _OWN


def _own_scores(output: Any, *, function: Target, batch: int | None) -> Tensor:
    scores: Any = function(output)
    found = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
    if not isinstance(scores, Tensor) or scores.ndim != 1 or (batch is not None and len(scores) != batch):
        each = "each sample" if batch is None else f"each of {batch} samples"
        raise UsageError(f"a target gives one score for {each}, not {found}")
    return scores
