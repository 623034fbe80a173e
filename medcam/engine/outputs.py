"""Which tensor of a network's output holds the scores, and how its numbers are read.

A classifier's scores are `b classes`, a segmentation's `b classes *s`. Networks hide them in tuples, lists and dictionaries, or stack the
heads of a deep supervision as `b heads classes *s`. What is read, and where, is decided once, on the clean output.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from medcam.errors import UsageError

_PREFERRED = ("pred", "logits", "out")
_ENDINGS = {"SigmoidBackward0": "sigmoid", "SoftmaxBackward0": "softmax"}
# Operations that hand on the values as they are.
_PASSING = {
    f"{name}Backward{n}"
    for name in (
        "Alias",
        "Clone",
        "Permute",
        "Select",
        "Squeeze",
        "ToCopy",
        "Transpose",
        "UnsafeView",
        "Unsqueeze",
        "View",
    )
    for n in range(3)
}
_STEP = re.compile(r"""\[\s*(?:(-?\d+)|'([^']*)'|"([^"]*)"|:\s*,\s*(\d+))\s*\]""")


@dataclass(frozen=True)
class Reading:
    """How a network's output is read.

    Parameters
    ----------
    score
        'logit' or 'probability'.
    activation
        What makes probabilities of the output: 'softmax', 'sigmoid', 'none' (the network itself ends in one of them), or None: as
        `ending_of` tells.
    output
        Which of several outputs: a key, an index, or a path such as "out[1]" or "out[:, 1]" (a head of a stack). By default `find_place`
        chooses.
    input_shape
        Of the network's input, `b c *s`; without it heads in a stack are not told from classes.
    network
        Where a choice needs its weights (Finer-CAM's similar classes).
    ending
        What `ending_of` has told already, for an output that has left its graph behind.
    winners
        What `winners` has told already of the clean output; see `read_once`.
    """

    score: str = "logit"
    activation: str | None = None
    output: str | int | None = None
    input_shape: tuple[int, ...] | None = None
    network: nn.Module | None = field(default=None, repr=False)
    ending: Ending | None = None
    winners: Int[Tensor, "b *s"] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Place:
    """Where in a network's output the scores stand: keys and indices from the outside in, and the head of a stack `b heads classes *s`."""

    steps: tuple[str | int, ...] = ()
    head: int | None = None

    def of(self, output: Any) -> Tensor:
        """Return the tensor that stands there."""
        found: Tensor = _follow(output, self.steps)
        return found if self.head is None else found[:, self.head]

    def __str__(self) -> str:
        steps = "".join(f"['{step}']" if isinstance(step, str) else f"[{step}]" for step in self.steps)
        return steps + ("" if self.head is None else f"[:, {self.head}]")


class Ending(NamedTuple):
    """What makes probabilities of the scores, 'softmax' or 'sigmoid', and whether the network has applied it already."""

    name: str
    applied: bool

    @property
    def threshold(self) -> float:
        """Above this a label is more likely than not."""
        return 0.5 if self.applied else 0.0


def find_place(output: Any, reading: Reading) -> tuple[Place, tuple[str, ...]]:
    """Return where the scores stand, and what must be said about that.

    Of several tensors the one under 'pred', 'logits' or 'out' counts, else the first whose shape can be scores. Of a stack of
    deep-supervision heads the first counts, which is the final output in MONAI's networks.

    Raises
    ------
    UsageError
        If nothing in the output can be scores, it holds boxes, or what `reading.output` names does not exist.
    """
    _refuse_boxes(output, reading.output)
    steps, head = ((), None) if reading.output is None else _asked(output, reading.output)
    inside = _follow(output, steps)
    fitting = [(at, item) for at, item in _leaves(inside, steps) if _fits(item, reading.input_shape, head)]
    if not fitting:
        wanted = "" if reading.output is None else f"; at output{Place(steps, head)} there is no such tensor"
        raise UsageError(
            f"medcam explains outputs of shape (batch, classes, ...){wanted}; this network gives {_listing(output)}"
        )
    at, scores = fitting[0]
    notes = []
    if reading.output is None and sum(isinstance(item, Tensor) for _, item in _leaves(output)) > 1:
        notes.append(f"The network has several outputs; the one explained is output{Place(at)}.")
    if head is None and reading.input_shape is not None and scores.ndim == len(reading.input_shape) + 1:
        head = 0
        notes.append(
            f"The output is a stack of {scores.shape[1]} heads, as in deep supervision; the first, output{Place(at, 0)}, is explained."
        )
    return Place(at, head), tuple(notes)


def output_tensor(output: Any, input_shape: tuple[int, ...] | None = None) -> tuple[Tensor, str]:
    """Return the tensor of scores in a network's output, and where it stood ('' if it is the output).

    Raises
    ------
    UsageError
        As `find_place`.
    """
    place, _ = find_place(output, Reading(input_shape=input_shape))
    return place.of(output), str(place)


def ending_of(logits: Float[Tensor, "b classes *s"], wanted: str | None = None) -> Ending:
    """Return what makes probabilities of the scores.

    A sigmoid or softmax at the end of the network is seen in the graph; without one only a softmax is, by its sums of 1 (which waits for
    the device). Else `wanted` counts, or several channels are taken for classes that exclude each other and a single one for a logit.
    """
    default = "sigmoid" if logits.shape[1] == 1 else "softmax"
    node = logits.grad_fn
    while node is not None and type(node).__name__ in _PASSING:
        node = node.next_functions[0][0]
    if seen := _ENDINGS.get(type(node).__name__):
        return Ending(seen, True)
    if not logits.requires_grad and _sums_to_one(logits):
        return Ending("softmax", True)
    if wanted == "none":
        return Ending(default, True)
    return Ending(wanted or default, False)


def in_unit_interval(logits: Float[Tensor, "b classes *s"]) -> Bool[Tensor, " b"]:
    """Return for each sample whether all its scores lie between 0 and 1, as behind a sigmoid."""
    flat = logits.detach().flatten(1)
    return (flat.amin(1) >= 0) & (flat.amax(1) <= 1)


def probabilities(logits: Float[Tensor, "b classes *s"], ending: Ending) -> Float[Tensor, "b classes *s"]:
    """Return class probabilities."""
    if ending.applied:
        return logits
    return logits.sigmoid() if ending.name == "sigmoid" else logits.softmax(1)


def predicted_class(logits: Float[Tensor, "b classes *s"], ending: Ending) -> Int[Tensor, " b"]:
    """Return the class that the network predicts for each sample: the one with the largest score.

    For a segmentation that is the class with the most voxels; background, class 0 of a softmax, does not count.
    """
    logits = logits.detach()
    if logits.shape[1] == 1:
        return torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)
    if logits.ndim == 2:
        return winners(logits)
    if ending.name == "sigmoid":
        return votes(logits, ending).argmax(1)
    return votes(logits, ending)[:, 1:].argmax(1) + 1


def votes(logits: Float[Tensor, "b classes *s"], ending: Ending) -> Int[Tensor, "b classes"]:
    """Return how many voxels of a segmentation are predicted as each class."""
    if ending.name == "sigmoid":
        return (logits > ending.threshold).flatten(2).sum(2)
    won = winners(logits).flatten(1)
    ones = torch.ones((), dtype=won.dtype, device=won.device).expand_as(won)
    return won.new_zeros(logits.shape[:2]).scatter_add_(1, won, ones)


def predicted_region(
    logits: Float[Tensor, "b classes *s"], which: int | Int[Tensor, " b"], ending: Ending
) -> Bool[Tensor, "b *s"]:
    """Return where a segmentation predicts a class (one for all, or one a sample): by arg max, or for a sigmoid where it is more likely
    than not."""
    logits = logits.detach()
    if ending.name == "sigmoid":
        return channel(logits, which) > ending.threshold
    if isinstance(which, Tensor):
        return won_by(winners(logits), which)
    # The same without finding who else won, at a tenth of the time: of equals the first wins.
    wins = torch.ones_like(logits[:, 0], dtype=torch.bool)
    if which > 0:
        wins &= logits[:, which] > logits[:, :which].amax(1)
    if which + 1 < logits.shape[1]:
        wins &= logits[:, which] >= logits[:, which + 1 :].amax(1)
    return wins


def read_once(reading: Reading, output: Any) -> Reading:
    """Return the reading with what many targets would each find out anew of one clean output: how it ends, and who wins each voxel.

    Outputs without class scores are left to the targets, which know what to do with them or refuse them in words.
    """
    try:
        place, _ = find_place(output, reading)
    except UsageError:
        return reading
    logits = place.of(output)
    ending = reading.ending or ending_of(logits, reading.activation)
    voxels = logits.ndim > 2 and ending.name == "softmax"
    return replace(reading, ending=ending, winners=winners(logits.detach()) if voxels else None)


def winners(logits: Float[Tensor, "b classes *s"]) -> Int[Tensor, "b *s"]:
    """Return the class with the largest score, of each sample or of each of its voxels; of equals the first."""
    # The same as argmax, which takes ten times as long on a CPU.
    return logits.max(1).indices


def won_by(won: Int[Tensor, "b *s"], which: int | Int[Tensor, " b"]) -> Bool[Tensor, "b *s"]:
    """Return which voxels a class (one for all, or one a sample) has won."""
    return won == (which.reshape(-1, *[1] * (won.ndim - 1)) if isinstance(which, Tensor) else which)


def channel(values: Float[Tensor, "b classes *s"], which: int | Int[Tensor, " b"]) -> Float[Tensor, "b *s"]:
    """Return the channel of a class: the same for all samples, or one for each."""
    if isinstance(which, int):
        return values[:, which]
    return values[torch.arange(values.shape[0], device=values.device), which]


def _sums_to_one(logits: Tensor) -> bool:
    # In half precision a sum near 1 may be chance.
    if logits.shape[1] < 2 or logits.numel() == 0 or torch.finfo(logits.dtype).bits < 32:
        return False
    values = logits.detach()
    return bool(((values.sum(1) - 1).abs().amax() <= 1e-5) & (values.amin() >= 0))


def _follow(output: Any, steps: tuple[str | int, ...]) -> Any:
    for step in steps:
        output = output[step]
    return output


def _leaves(item: Any, steps: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield what stands at the ends of nested containers, the preferred names first."""
    if isinstance(item, Mapping):
        for name in sorted(item, key=lambda name: _PREFERRED.index(name) if name in _PREFERRED else len(_PREFERRED)):
            yield from _leaves(item[name], (*steps, name))
    elif isinstance(item, (tuple, list)):
        for place, member in enumerate(item):
            yield from _leaves(member, (*steps, place))
    else:
        yield steps, item


def _fits(item: Any, input_shape: tuple[int, ...] | None, head: int | None) -> bool:
    if not (isinstance(item, Tensor) and item.is_floating_point() and item.ndim >= 2):
        return False
    if head is not None:
        stacked = item.ndim >= 3 if input_shape is None else item.ndim in (3, len(input_shape) + 1)
        return stacked and head < item.shape[1]
    if input_shape is None:
        return True
    # Tokens, `b n c`, are no classes.
    return item.shape[0] == input_shape[0] and (item.ndim == 2 or 4 <= item.ndim <= len(input_shape) + 1)


def _refuse_boxes(output: Any, wanted: str | int | None) -> None:
    if wanted is None and isinstance(output, Mapping) and {"classification", "box_regression"} <= set(output):
        raise UsageError(
            "this network gives boxes, not classes: name the box to explain with medcam.engine.targets.kept_box(detector)"
        )
    listed = isinstance(output, (tuple, list)) and len(output) > 0
    if listed and all(isinstance(item, Mapping) and "boxes" in item for item in output):
        raise UsageError(
            "this is a detector, whose boxes are selected already; explain its network (detector.network) with "
            "medcam.engine.targets.kept_box(detector)"
        )


def _asked(output: Any, wanted: str | int) -> tuple[tuple[str | int, ...], int | None]:
    """Return the steps and the head that a path such as 1, 'logits', 'out[1]' or 'out[:, 1]' names."""
    steps: list[str | int] = []
    head = None
    for step in _steps_of(wanted):
        if isinstance(step, slice) and isinstance(output, Tensor) and head is None:
            head = step.stop
            continue
        keyed = isinstance(output, Mapping) and step in output
        counted = isinstance(output, (tuple, list)) and isinstance(step, int) and -len(output) <= step < len(output)
        if not (keyed or counted) or isinstance(step, slice):
            raise UsageError(f"there is no output '{wanted}'; this network gives {_listing(output, tuple(steps))}")
        steps.append(step)
        output = output[step]
    return tuple(steps), head


def _steps_of(wanted: str | int) -> list[str | int | slice]:
    if isinstance(wanted, int):
        return [wanted]
    text = wanted.strip().removeprefix("output") if wanted.strip().startswith("output[") else wanted.strip()
    name, rest = text.partition("[")[0].strip(), text[len(text.partition("[")[0]) :]
    steps: list[str | int | slice] = [int(name) if name.isdigit() else name] if name else []
    end = 0
    for match in _STEP.finditer(rest):
        if match.start() != end:
            break
        number, single, double, head = match.groups()
        steps.append(slice(None, int(head)) if head else int(number) if number else (single or double or ""))
        end = match.end()
    if not steps or rest[end:].strip():
        raise UsageError(f"an output is named by a key or an index, such as logits, 1 or out[1], not '{wanted}'")
    return steps


def _listing(output: Any, steps: tuple[str | int, ...] = ()) -> str:
    named = [f"output{Place(at)}, {_kind(item)}" if at else _kind(item) for at, item in _leaves(output, steps)]
    more = f"; and {len(named) - 8} more" if len(named) > 8 else ""
    return ("; ".join(named[:8]) or "nothing") + more


def _kind(item: Any) -> str:
    return f"a tensor of shape {tuple(item.shape)}" if isinstance(item, Tensor) else f"a {type(item).__name__}"


def shapes_agree(expected: Sequence[int], found: Sequence[int]) -> None:
    """Raise a UsageError where a later output has another shape than the one a target was settled on."""
    if tuple(expected) != tuple(found):
        raise UsageError(
            f"this target was settled on an output of shape {tuple(expected)} and cannot score one of shape {tuple(found)}; settle it anew"
        )
