"""Which labels of a mask are wanted: by number or by name, of those that there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt16

from medcam.errors import InputError, UsageError

_LONGEST_NAME, _LONGEST_LIST = 64, 20


class Label(NamedTuple):
    """A label of a mask: its number, from 1, and its name, '' where it has none."""

    number: int
    name: str = ""


# Takes all labels of a mask and returns those that are wanted.
Choose = Callable[[Sequence[Label]], tuple[Label, ...]]


def choose(labels: Sequence[Label], wanted: str | int | None, file_name: str) -> tuple[Label, ...]:
    """Return the labels that are wanted: all, or the one of this number or name.

    Raises
    ------
    UsageError
        If there is none of this number or name, or several.
    InputError
        If there are no labels.
    """
    if not labels:
        raise InputError(f"{file_name} holds no label: nothing is drawn in it")
    if wanted is None:
        return tuple(labels)
    text = str(wanted).strip()
    for matches in (
        [label for label in labels if str(label.number) == text],
        [label for label in labels if label.name == text],
        [label for label in labels if label.name.casefold() == text.casefold()],
    ):
        if len(matches) == 1:
            return tuple(matches)
        if matches:
            raise UsageError(f"{file_name} has {len(matches)} labels '{text}'; choose by number: {listing(matches)}")
    raise UsageError(f"{file_name} has no label '{text}'; it has {listing(labels)}")


def listing(labels: Sequence[Label]) -> str:
    """Return the labels in words: `1 'liver', 2 'tumour'`."""
    shown = [f"{label.number} '{label.name}'" if label.name else f"{label.number}" for label in labels[:_LONGEST_LIST]]
    more = f" and {len(labels) - len(shown)} more" if len(labels) > len(shown) else ""
    return ", ".join(shown) + more


def readable(name: object) -> str:
    """Return a name from a file in one line of printable letters, cut where no label is that long."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(name or "")).split())[
        :_LONGEST_NAME
    ]


def draw(
    voxels: UInt16[np.ndarray, "*shape"],
    inside: Bool[np.ndarray, "*shape"],
    label: Label,
    labels: Sequence[Label],
    file_name: str,
) -> None:
    """Write a label where its region is.

    Raises
    ------
    InputError
        If another label is there already: one image of labels cannot hold both.
    """
    taken = np.unique(voxels[inside])
    if other := [each for each in taken.tolist() if each not in (0, label.number)]:
        before = next(each for each in labels if each.number == other[0])
        raise InputError(
            f"labels {listing((before, label))} of {file_name} overlap, and one mask cannot hold both; choose one with "
            f"--label (label=): {listing(labels)}"
        )
    voxels[inside] = label.number
