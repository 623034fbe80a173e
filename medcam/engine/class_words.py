"""What is said of targets made of class scores: their short names, and notes on each sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from medcam.engine.segmentation import NO_BORDER, Region
from medcam.engine.settled import Rows, class_label

# One class for all samples, one for each, or (None) the one that the network predicts for each.
Pick = int | tuple[int, ...] | None
# The same once it is known: one class for all samples, or a tensor of one for each.
Which = int | Tensor

# The first columns of the facts: why there is no region, whether an only class is unlikely, whether all scores lie in [0, 1].
FLAGS = 3


@final
@dataclass(frozen=True, eq=False)
class Choice:
    """Classes whose scores are added and subtracted, and where on a segmentation.

    `strength` None subtracts each of `minus` as it is; else that many times their mean. `similar` of the most similar classes join `minus`.
    """

    plus: tuple[Pick, ...]
    minus: tuple[Pick, ...] = ()
    region: Region | None = None
    strength: float | None = None
    similar: int = 0
    asked: bool = True


@dataclass(frozen=True, eq=False)
class Known:
    """What the words of a settled choice are made of, besides the facts: flags, and a column for each pick that is a tensor."""

    choice: Choice
    plus: tuple[Which, ...]
    minus: tuple[Which, ...]
    common: tuple[str, ...]
    similar_by: str
    batch: int
    classes: int

    def columns(self, rows: Rows) -> tuple[list[list[int]], list[list[int]]]:
        """Return the class of each sample, for each pick."""
        columns, at = [], FLAGS
        for which in (*self.plus, *self.minus):
            if isinstance(which, int):
                columns.append([which] * self.batch)
            else:
                columns.append([row[at] for row in rows])
                at += 1
        return columns[: len(self.plus)], columns[len(self.plus) :]


def told(known: Known, rows: Rows) -> tuple[tuple[str, ...], ...]:
    """Return the notes of each sample."""
    plus, minus = known.columns(rows)
    every = []
    for n, (lacking, unlikely, boxed, *_) in enumerate(rows):
        notes = list(known.common)
        if boxed:
            notes.append(
                "All scores of this sample lie between 0 and 1; if the network itself ends in a sigmoid, say that with activation 'none'."
            )
        own = [column[n] for column in plus or minus]
        if lacking:
            notes.append(_without_region(known, own, lacking))
        elif not known.choice.asked:
            notes.append(_unasked_words(known, own[0], bool(unlikely)))
        elif None in known.choice.plus:
            notes.append(f"The predicted class, {plus[known.choice.plus.index(None)][n]}, is explained.")
        if known.similar_by:
            others = _and([f"class {column[n]}" for column in minus])
            notes.append(f"Class {own[0]} is compared with the most similar, {others}, {known.similar_by}.")
        every.append(tuple(notes))
    return tuple(every)


def _without_region(known: Known, own: list[int], lacking: int) -> str:
    what, its = _and([f"class {c}" for c in own]), "its score is" if len(own) == 1 else "their scores are"
    if lacking == NO_BORDER:
        return f"The network predicts {what} everywhere, so there is no border; {its} summed over the whole output."
    if not known.choice.asked:
        return f"The network predicts background only; {what} is explained, summed over the whole output."
    return f"The network predicts {what} nowhere; {its} summed over the whole output."


def _unasked_words(known: Known, chosen: int, unlikely: bool) -> str:
    if known.classes > 1:
        return f"No target was given; the predicted class, {chosen}, is explained."
    doubt = ", which the network finds unlikely here" if unlikely else ""
    return f"No target was given; the network's only class, {chosen}, is explained{doubt}."


def settled_words(known: Known, rows: Rows, class_names: Sequence[str]) -> str:
    plus, minus = known.columns(rows)
    return _words(known.choice, [_labels(c, class_names) for c in plus], [_labels(c, class_names) for c in minus])


def asked_words(choice: Choice, class_names: Sequence[str]) -> str:
    def label(pick: Pick) -> str:
        return (
            "the predicted class" if pick is None else _labels([pick] if isinstance(pick, int) else pick, class_names)
        )

    return _words(choice, list(map(label, choice.plus)), list(map(label, choice.minus)))


def _words(choice: Choice, plus: list[str], minus: list[str]) -> str:
    if not plus:
        text = f"not {minus[0]}"
    elif choice.strength is None:
        text = " minus ".join([" plus ".join(plus), *minus])
    else:
        others = _and(minus) or f"its {choice.similar} most similar classes"
        text = f"{plus[0]} minus {choice.strength:g} times the mean of {others}"
    return text if choice.region is None else choice.region.words.format(text)


def _labels(classes: Sequence[int], class_names: Sequence[str]) -> str:
    """Return the name of one class, or of each sample's."""
    if len(set(classes)) == 1:
        return class_label(classes[0], class_names)
    return ", ".join(class_label(c, class_names) for c in classes) + " (one a sample)"


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
