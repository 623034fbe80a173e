"""Which rows of a table are of one patient: the unit of all statistics here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from medcam.errors import InputError

Labels = Sequence[object] | Shaped[np.ndarray, " n"]
# Numbers, or None or NaN where a row has none.
Column = Sequence[object] | Shaped[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class Groups:
    """Rows by patient (or by any label): `code` is each row's group, from 0; its repr names no patient.

    Parameters
    ----------
    count
        How many groups there are.
    """

    code: Int[np.ndarray, " n"]
    count: int

    def __repr__(self) -> str:
        return f"Groups({len(self.code)} rows of {self.count})"

    @property
    def sizes(self) -> Float[np.ndarray, " g"]:
        """How many rows each group has."""
        return np.bincount(self.code, minlength=self.count).astype(np.float64)

    def sums(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " g"]:
        """Return the sum of the values in each group."""
        totals: np.ndarray = np.bincount(self.code, weights=values, minlength=self.count).astype(np.float64)
        return totals

    def means(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " g"]:
        """Return the mean of the values in each group."""
        each: np.ndarray = self.sums(values) / self.sizes
        return each


def grouped(labels: Labels, *, word: str = "patient") -> Groups:
    """Return rows grouped by their labels, in the order in which these first appear.

    Parameters
    ----------
    word
        What a label is, for the error.

    Raises
    ------
    InputError
        If a row has no label.
    """
    known: dict[object, int] = {}
    code = np.empty(len(labels), np.int64)
    for row, label in enumerate(labels):
        if label is None or label == "" or label != label:
            raise InputError(f"row {row + 1} of the table has no {word}; statistics by {word} need one in each row")
        code[row] = known.setdefault(label, len(known))
    return Groups(code, len(known))


def column(values: Column, rows: int, *, name: str = "values") -> Float[np.ndarray, " n"]:
    """Return a column of numbers as float64, NaN where a row has none (NaN or None).

    Raises
    ------
    InputError
        If it does not have `rows` rows, or holds infinities or what is no number.
    """
    try:
        found = np.array([np.nan if value is None else value for value in values], np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} should be numbers, with NaN where a row has none") from None
    if found.shape != (rows,):
        raise InputError(f"{name} has shape {found.shape} and the table has {rows} rows; give one number for each row")
    if np.isinf(found).any():
        raise InputError(f"{name} holds infinities, of which no mean can be taken; leave undefined rows NaN")
    return found


def rows_of(labels: Labels, kept: Bool[np.ndarray, " n"]) -> list[object]:
    """Return the labels of the rows that are kept.

    Raises
    ------
    InputError
        If there is not one label for each row.
    """
    if len(labels) != kept.size:
        raise InputError(f"a column has {len(labels)} rows and another {kept.size}; give one entry for each row")
    return [label for label, keep in zip(labels, kept, strict=True) if keep]
