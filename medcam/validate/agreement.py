"""Do repeated measurements of the same cases agree: the intraclass correlation, and the limits of agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from medcam.errors import UsageError
from medcam.validate.bootstrap import Interval, Resampling, bootstrap
from medcam.validate.patients import Column, Labels, column, grouped, rows_of
from medcam.validate.statistics import mean, over


def intraclass(columns: Sequence[Column], patients: Labels, *, how: Resampling | None = None) -> Interval:
    """Return how well measurements of the same cases agree absolutely: ICC(A,1), with its patient-bootstrap interval.

    1: each case gets the same number every time. 0: cases differ no more than their repeats. NaN where nothing varies.

    Parameters
    ----------
    columns
        One for each time, reader or model. Cases that lack one are left out, and counted.

    Raises
    ------
    UsageError
        If there are fewer than two columns.

    References
    ----------
    McGraw and Wong, Forming inferences about some intraclass correlation coefficients, Psychological Methods 1996, table 4, ICC(A,1);
    Shrout and Fleiss 1979, ICC(2,1).
    """
    if len(columns) < 2:
        raise UsageError(f"agreement is of at least two measurements of each case, not {len(columns)}")
    table = np.stack([column(one, len(patients), name=f"column {n}") for n, one in enumerate(columns, 1)], 1)
    kept = ~np.isnan(table).any(1)
    by = grouped(rows_of(patients, kept))
    # Sums of squares lose their digits far from 0.
    found = table[kept] - (table[kept].mean() if kept.any() else 0.0)
    k = found.shape[1]
    parts = [np.ones(len(found)), (found**2).sum(1), found.sum(1) ** 2, *found.T]
    sums = np.stack([by.sums(part) for part in parts], 1)
    least = 1e-12 * float((found**2).sum())

    def correlation(weights: Float[np.ndarray, "r p"]) -> Float[np.ndarray, " r"]:
        totals = weights @ sums
        n, squares, rows, columns = totals[:, 0], totals[:, 1], totals[:, 2], totals[:, 3:]
        centre = over(columns.sum(1) ** 2, k * n)
        between, times = rows / k - centre, over((columns**2).sum(1), n) - centre
        rest = squares - centre - between - times
        cases, repeats, error = over(between, n - 1), times / (k - 1), over(rest, (n - 1) * (k - 1))
        whole = cases + (k - 1) * error + k * over(repeats - error, n)
        return over(cases - error, np.where(whole * n > least, whole, 0.0))

    return bootstrap(correlation, by.count, how=how, cases=len(found), undefined=int((~kept).sum()))


@dataclass(frozen=True)
class Agreement:
    """The second measurement less the first.

    Parameters
    ----------
    bias
        The mean difference.
    lower, upper
        Between these lie 95 % of the differences, if they are normal; each with its own interval.
    """

    bias: Interval
    lower: Interval
    upper: Interval


def limits_of_agreement(first: Column, second: Column, patients: Labels, *, how: Resampling | None = None) -> Agreement:
    """Return Bland and Altman's limits of agreement of two measurements of the same cases, in their unit.

    References
    ----------
    Bland and Altman, Statistical methods for assessing agreement between two methods of clinical measurement, Lancet 1986.
    """
    apart = column(second, len(patients), name="the second") - column(first, len(patients), name="the first")
    kept = ~np.isnan(apart)
    by, found = grouped(rows_of(patients, kept)), apart[kept]
    centre = found.mean() if found.size else 0.0
    sums = np.stack([by.sums(part) for part in (np.ones_like(found), found - centre, (found - centre) ** 2)], 1)

    def limit(z: float) -> Interval:
        def at(weights: Float[np.ndarray, "r p"]) -> Float[np.ndarray, " r"]:
            n, total, squares = (weights @ sums).T
            variance = over(squares - over(total**2, n), n - 1)
            edge: np.ndarray = centre + over(total, n) + z * np.sqrt(np.maximum(variance, 0))
            return edge

        return bootstrap(at, by.count, how=how, cases=found.size, undefined=int((~kept).sum()))

    z = float(ndtri(0.975))
    return Agreement(mean(apart, patients, how=how), limit(-z), limit(z))
