"""How much of the differences between heatmaps is decided by the layer, the method and the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float

from medcam.validate.bootstrap import Interval, Resampling, bootstrap
from medcam.validate.patients import Labels, grouped
from medcam.validate.statistics import over

# Axes of the table of means behind its replicates.
FACTORS = ("model", "layer", "method")
INTERPLAY = "interplay"
# Configurations whose means differ by less than rounding do not differ.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Shares:
    """Where the differences come from.

    Parameters
    ----------
    factors
        By 'model', 'layer' and 'method' (those with more than one level) and 'interplay': which share of the squared differences between
        the configurations' means it accounts for; they add up to 1. NaN where the configurations do not differ.
    cases, configurations
        Which share of all squared differences, cases' and configurations', lies between cases, and between configurations. The rest is
        how configurations differ from case to case.
    """

    factors: Mapping[str, Interval]
    cases: Interval
    configurations: Interval


def shares(values: Float[np.ndarray, "n m l k"], patients: Labels, *, how: Resampling | None = None) -> Shares:
    """Return how the differences of a measure divide, with patient-bootstrap intervals.

    Shares of few patients are biased: what chance does to the means is counted as differences. The intervals show by how much.

    Parameters
    ----------
    values
        For each case (complete: no NaN) the measure of each model, layer and method.

    References
    ----------
    The balanced analysis of variance: Montgomery, Design and Analysis of Experiments, chapter 5.
    """
    by = grouped(patients)
    n, *levels = values.shape
    flat = values.reshape(n, -1).astype(np.float64)
    sums = np.stack([by.sums(one) for one in flat.T], 1)
    counts = by.sizes

    def means(weights: Float[np.ndarray, "r p"]) -> Float[np.ndarray, "r m l k"]:
        return over(
            weights @ sums, np.broadcast_to((weights @ counts)[:, None], (len(weights), sums.shape[1]))
        ).reshape(-1, *levels)

    def factor_share(name: str, weights: Float[np.ndarray, "r p"]) -> Float[np.ndarray, " r"]:
        return _share(means(weights), name)

    named = [factor for factor, count in zip(FACTORS, levels, strict=True) if count > 1]
    factors = {
        name: bootstrap(partial(factor_share, name), by.count, how=how, cases=n)
        for name in (*named, INTERPLAY)
        if name != INTERPLAY or len(named) > 1
    }
    # Sums over each patient of what the two shares of all differences are made of.
    k = flat.shape[1]
    squares, own, total = by.sums((flat**2).sum(1)), by.sums(k * flat.mean(1) ** 2), by.sums(flat.sum(1))

    def parts(weights: Float[np.ndarray, "r p"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = weights @ counts
        centre = over((weights @ total) ** 2, rows * k)
        everything = weights @ squares - centre
        table = means(weights).reshape(len(weights), -1)
        between = rows * ((table - table.mean(1, keepdims=True)) ** 2).sum(1)
        return everything, weights @ own - centre, between

    def part(which: int, weights: Float[np.ndarray, "r p"]) -> Float[np.ndarray, " r"]:
        found = parts(weights)
        return over(found[which], np.where(found[0] > _ROUNDING, found[0], 0.0))

    return Shares(
        factors,
        bootstrap(partial(part, 1), by.count, how=how, cases=n),
        bootstrap(partial(part, 2), by.count, how=how, cases=n),
    )


def _share(means: Float[np.ndarray, "r m l k"], name: str) -> Float[np.ndarray, " r"]:
    axes = (1, 2, 3)
    grand = means.mean(axes, keepdims=True)
    total = ((means - grand) ** 2).sum(axes)
    squares = {}
    for axis, factor in zip(axes, FACTORS, strict=True):
        others = tuple(each for each in axes if each != axis)
        level = means.mean(others, keepdims=True)
        squares[factor] = (np.broadcast_to(level - grand, means.shape) ** 2).sum(axes)
    squares[INTERPLAY] = np.maximum(total - sum(squares.values()), 0.0)
    return over(squares[name], np.where(total > _ROUNDING, total, 0.0))
