"""How well could anything agree with these readers? The ceiling, by leaving one reader out at a time.

A reader compared with a consensus that holds the reader's own mask agrees with itself. Here each reader is compared with the others, and
the map with the same references, so that both are asked the same question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool

from medcam.errors import GeometryError, InputError, UsageError
from medcam.validate.bootstrap import Interval, Resampling
from medcam.validate.patients import Labels
from medcam.validate.statistics import mean, ratio

CONSENSUS = ("majority", "union", "intersection")
# From two masks to how well they agree: overlap, hit, or anything else; NaN where that is undefined.
Agreement = Callable[[Bool[np.ndarray, "*s"], Bool[np.ndarray, "*s"]], float]


def others(
    masks: Sequence[Bool[np.ndarray, "*s"]], *, consensus: str = "majority"
) -> tuple[Bool[np.ndarray, "*s"], ...]:
    """Return for each reader the consensus of all the others.

    Parameters
    ----------
    masks
        One for each reader, on one grid.
    consensus
        'majority': voxels that at least half of them marked, so that of two either suffices; 'union'; or 'intersection'.

    Raises
    ------
    UsageError
        If the consensus is none of these.
    InputError
        If there are fewer than two readers.
    GeometryError
        If the masks' shapes differ.
    """
    if consensus not in CONSENSUS:
        raise UsageError(f"a consensus is one of {', '.join(map(repr, CONSENSUS))}, not {consensus!r}")
    if len(masks) < 2:
        raise InputError(f"{len(masks)} reader marked this case; leaving one out takes at least two")
    if len({mask.shape for mask in masks}) > 1:
        raise GeometryError(
            f"the readers' masks have shapes {', '.join(str(mask.shape) for mask in masks)}; put them on one grid"
        )
    votes = np.sum([mask.astype(np.int16) for mask in masks], axis=0)
    rest = len(masks) - 1
    needed = {"majority": (rest + 1) // 2, "union": 1, "intersection": rest}[consensus]
    return tuple(votes - mask >= needed for mask in masks)


def leave_one_reader_out(
    masks: Sequence[Bool[np.ndarray, "*s"]], agreement: Agreement, *, consensus: str = "majority"
) -> tuple[float, ...]:
    """Return each reader's agreement with the consensus of the others, in one case.

    Raises
    ------
    UsageError, InputError, GeometryError
        As `others`.
    """
    references = others(masks, consensus=consensus)
    return tuple(float(agreement(mask, reference)) for mask, reference in zip(masks, references, strict=True))


def pairwise(masks: Sequence[Bool[np.ndarray, "*s"]], agreement: Agreement) -> float:
    """Return the mean agreement of all pairs of readers, in one case; NaN where no pair's is defined."""
    found = np.array([agreement(first, second) for first, second in combinations(masks, 2)], np.float64)
    return float(np.nanmean(found)) if (~np.isnan(found)).any() else float("nan")


@dataclass(frozen=True)
class Ceiling:
    """How the map stands to the readers, on the cases where both have a value.

    Parameters
    ----------
    readers, heatmap
        Their mean agreement with readers that were left out.
    difference
        The map's less the readers'.
    share
        The map's over the readers': 1 where the map agrees as well as a reader. Its lost replicates are those where readers agree at 0.
    not_inferior
        Whether the difference's lower limit lies above minus the margin; None without a margin.
    """

    readers: Interval
    heatmap: Interval
    difference: Interval
    share: Interval
    not_inferior: bool | None


def reader_ceiling(
    readers: Sequence[Sequence[float | int]],
    heatmap: Sequence[Sequence[float | int]],
    patients: Labels,
    *,
    margin: float | int | None = None,
    how: Resampling | None = None,
) -> Ceiling:
    """Return how well a map agrees with readers, beside how well these agree with each other.

    Parameters
    ----------
    readers
        For each case what `leave_one_reader_out` gave: one number a reader, NaN where it is undefined. Cases may differ in their readers.
    heatmap
        For each case the map's agreement with the same references, `others(masks)`, in the same order.
    margin
        How much worse than a reader the map may be. Declare it before looking.

    Raises
    ------
    InputError
        If a case has not as many numbers of the map as of readers, or a margin is negative.
    """
    if margin is not None and not margin >= 0:
        raise InputError(f"a margin is a number of at least 0, not {margin}")
    if len(readers) != len(heatmap) or any(len(a) != len(b) for a, b in zip(readers, heatmap, strict=True)):
        raise InputError("each case needs one number of the map for each reader: its agreement with the same reference")
    pairs = np.array([_both_means(a, b) for a, b in zip(readers, heatmap, strict=True)]).reshape(-1, 2)
    people, found = pairs.T
    apart = mean(found - people, patients, how=how)
    return Ceiling(
        mean(people, patients, how=how),
        mean(found, patients, how=how),
        apart,
        ratio(found, people, patients, how=how),
        None if margin is None else bool(apart.low > -margin),
    )


def _both_means(readers: Sequence[float | int], heatmap: Sequence[float | int]) -> tuple[float, float]:
    both = np.array([readers, heatmap], np.float64).reshape(2, -1)
    defined = ~np.isnan(both).any(0)
    if not defined.any():
        return float("nan"), float("nan")
    people, found = both[:, defined].mean(1)
    return float(people), float(found)
