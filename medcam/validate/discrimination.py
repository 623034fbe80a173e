"""Whether a network tells cases with a finding from those without."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from medcam.errors import InputError
from medcam.validate.bootstrap import Interval, Resampling, bootstrap
from medcam.validate.patients import Column, Labels, column, grouped, rows_of
from medcam.validate.statistics import over


def area_under_roc(truth: Column, score: Column, patients: Labels, *, how: Resampling | None = None) -> Interval:
    """Return the area under the ROC curve with its patient-bootstrap interval: the chance that a case with the finding scores higher.

    Equal scores count half. Rows where one of the two is NaN are left out; NaN without cases of both kinds.

    Raises
    ------
    InputError
        If a truth is neither 0 nor 1, or the columns do not fit together.

    References
    ----------
    Obuchowski, Nonparametric analysis of clustered ROC curve data, Biometrics 1997: the same area, which clusters leave unbiased.
    """
    present, scored = column(truth, len(patients), name="the truth"), column(score, len(patients), name="the score")
    kept = ~(np.isnan(present) | np.isnan(scored))
    if not np.isin(present[kept], (0, 1)).all():
        raise InputError("the truth is 1 where the finding is present and 0 where it is not")
    by = grouped(rows_of(patients, kept))
    ill, values = present[kept] == 1, scored[kept]
    wins = (values[ill][:, None] > values[~ill]) + 0.5 * (values[ill][:, None] == values[~ill])
    won = np.zeros((by.count, by.count))
    np.add.at(won, (by.code[ill][:, None], by.code[~ill][None, :]), wins)
    with_finding, without = by.sums(ill.astype(np.float64)), by.sums((~ill).astype(np.float64))

    def area(weights: Float[np.ndarray, "r p"]) -> Float[np.ndarray, " r"]:
        total: np.ndarray = np.einsum("rp,rp->r", weights @ won, weights)
        return over(total, (weights @ with_finding) * (weights @ without))

    return bootstrap(area, by.count, how=how, cases=int(kept.sum()), undefined=int((~kept).sum()))
