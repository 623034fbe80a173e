"""Verdicts on maps that are compared with maps: randomized weights, permuted labels, other seeds, other architectures.

Maps of different patients are alike, too: all are smooth, and most are bright in the middle. Only what lies clearly below that is unlike,
and only what lies clearly above it is alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Int
from scipy.ndimage import zoom

from medcam.errors import InputError, UsageError
from medcam.validate.bootstrap import Interval, Resampling
from medcam.validate.patients import Column, Labels, column, grouped
from medcam.validate.similarity import Map, Similarity, similarity
from medcam.validate.statistics import mean

# Above this share of maps without a similarity nothing is claimed of the others.
_DEGENERATE = 0.5


def random_pairs(patients: Labels, *, per_map: int = 50, seed: int = 0) -> Int[np.ndarray, "n m"]:
    """Return for each case so many cases of other patients, drawn with replacement only where there are fewer.

    Raises
    ------
    UsageError
        If no pairs are asked for.
    InputError
        If there is one patient only.
    """
    if per_map < 1:
        raise UsageError(f"each map is compared with at least one of another patient, not {per_map}")
    by, random = grouped(patients), np.random.default_rng(seed)
    if by.count < 2:
        raise InputError(
            "maps of one patient cannot be compared with those of another; the baseline takes at least two"
        )
    rows = []
    for own in by.code:
        others = np.flatnonzero(by.code != own)
        rows.append(random.choice(others, per_map, replace=others.size < per_map))
    return np.array(rows)


def partner_similarity(
    maps: Sequence[Map],
    patients: Labels,
    measure: Callable[[Map, Map], float],
    *,
    per_map: int = 50,
    seed: int = 0,
) -> Float[np.ndarray, " n"]:
    """Return each map's mean similarity to maps of other patients: the baseline that a sanity check compares with.

    Maps of other shapes are stretched to the map's own. NaN where no partner's similarity is defined.

    References
    ----------
    Arun et al., Assessing the trustworthiness of saliency maps, Radiology: AI 2021: 50 random pairs for each map.
    """
    pairs = random_pairs(patients, per_map=per_map, seed=seed)
    found = np.full(len(maps), np.nan)
    for n, partners in enumerate(pairs):
        values = np.array([measure(maps[n], stretched(maps[other], maps[n].shape)) for other in partners])
        if (~np.isnan(values)).any():
            found[n] = np.nanmean(values)
    return found


def stretched(relevance: Map, shape: Sequence[int]) -> Map:
    """Return a map at another shape, linearly between the centres of its voxels; its body is taken to fill both."""
    if tuple(relevance.shape) == tuple(shape):
        return relevance
    factors = [after / before for before, after in zip(relevance.shape, shape, strict=True)]
    result: np.ndarray = zoom(relevance, factors, order=1, mode="nearest", grid_mode=True)
    return result


@dataclass(frozen=True)
class Sanity:
    """Whether maps changed as they should have.

    Parameters
    ----------
    verdict
        'passes': clearly less alike than maps of different patients. 'fails': clearly not less. 'undecided': the interval holds both.
        'degenerate': most maps cannot be compared.
    similarity, baseline
        Of the changed maps to the original ones, and of the original ones to other patients'.
    difference
        The first less the second, case by case: below 0 where the maps changed as they should have.
    degenerate
        How many cases have no similarity, since a map was blank, constant or not a number. They count for neither verdict.
    """

    verdict: str
    similarity: Interval
    baseline: Interval
    difference: Interval
    degenerate: int


def sanity(similarities: Column, baselines: Column, patients: Labels, *, how: Resampling | None = None) -> Sanity:
    """Return whether maps of randomized weights (or of permuted labels) differ from the learned ones as they should.

    Parameters
    ----------
    similarities
        Of each case's changed map to its original, NaN where degenerate.
    baselines
        What `partner_similarity` gave, by the same measure.

    Raises
    ------
    InputError
        If the columns do not fit together.

    References
    ----------
    The rule of Arun et al., Radiology: AI 2021, figure 3 (below the mean similarity of random pairs), with an interval, and with degenerate
    maps counted instead of dropped.
    """
    alike, chance = column(similarities, len(patients)), column(baselines, len(patients), name="the baselines")
    apart = mean(alike - chance, patients, how=how)
    lost = int(np.isnan(alike).sum())
    return Sanity(
        _verdict(apart, lost / max(1, alike.size)),
        mean(alike, patients, how=how),
        mean(chance, patients, how=how),
        apart,
        lost,
    )


def _verdict(apart: Interval, lost: float) -> str:
    if lost > _DEGENERATE or np.isnan(apart.value):
        return "degenerate"
    if apart.high < 0:
        return "passes"
    return "fails" if apart.low >= 0 else "undecided"


@dataclass(frozen=True)
class Repeatability:
    """How alike two models' maps of the same cases are: other seeds (repeatability), or other architectures (reproducibility).

    Parameters
    ----------
    ssim, spearman, spearman_absolute, pearson, top_overlap, shift_mm
        As in `Similarity`, over cases.
    excluded
        How many cases were left out since a model was wrong on them.
    """

    ssim: Interval
    spearman: Interval
    spearman_absolute: Interval
    pearson: Interval
    top_overlap: Interval
    shift_mm: Interval
    excluded: int


def repeatability(
    first: Sequence[Map],
    second: Sequence[Map],
    patients: Labels,
    *,
    spacing_mm: Sequence[Sequence[float | int]],
    both_right: Sequence[bool] | None = None,
    how: Resampling | None = None,
) -> Repeatability:
    """Return how alike the maps of two models are, case by case.

    For permuted labels give the maps of the checkpoint that was trained on them, and take `sanity` of the similarities: there they should
    differ.

    Parameters
    ----------
    spacing_mm
        Of each case's voxels.
    both_right
        Whether both models classify the case rightly; maps of wrong answers may well differ. By default all count.

    Raises
    ------
    InputError
        If the columns do not fit together.
    GeometryError
        If the two maps of a case have different shapes.
    """
    rows = len(patients)
    kept = [True] * rows if both_right is None else [bool(right) for right in both_right]
    if not len(first) == len(second) == len(spacing_mm) == len(kept) == rows:
        raise InputError(f"there are {rows} cases; give two maps, a spacing and an answer for each")
    chosen = [n for n in range(rows) if kept[n]]
    found = [similarity(first[n], second[n], spacing_mm=spacing_mm[n]) for n in chosen]
    whose = [patients[n] for n in chosen]
    parts = {
        field.name: mean([getattr(one, field.name) for one in found], whose, how=how) for field in fields(Similarity)
    }
    return Repeatability(excluded=rows - len(chosen), **parts)
