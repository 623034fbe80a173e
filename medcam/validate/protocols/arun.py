"""Arun et al.: the area under the precision-recall curve by trapezoids, one map at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Num

from medcam.errors import InputError


def case(relevance: Num[np.ndarray, "i j k"], lesion: Bool[np.ndarray, "i j k"]) -> float:
    """Return the area under one map's precision-recall curve, its points joined by straight lines from a precision of 1.

    Signed relevance is ranked as it is. The lines promise precision that no threshold gives: on maps of two values far too much.
    NaN without a lesion.

    Raises
    ------
    InputError
        If the map was not looked at everywhere.
    """
    values, truth = np.asarray(relevance).ravel(), np.asarray(lesion).ravel()
    if not np.isfinite(values).all():
        raise InputError(
            "the arun protocol takes maps without gaps, and this one was not looked at everywhere or is infinite"
        )
    if not truth.any():
        return float("nan")
    order = np.argsort(-values, kind="stable")
    last = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    hits = truth[order].cumsum()[last]
    precision = np.append(1.0, hits / (last + 1))
    recall = np.append(0.0, hits / hits[-1])
    return float((np.diff(recall) * (precision[1:] + precision[:-1]) / 2).sum())


def cohort(cases: Sequence[float]) -> dict[str, float]:
    """Return the mean and the standard deviation (of the population) over maps with a lesion."""
    usable = [value for value in cases if not np.isnan(value)]
    if not usable:
        return {"AUPRC": float("nan"), "AUPRC_sd": float("nan")}
    return {"AUPRC": float(np.mean(usable)), "AUPRC_sd": float(np.std(usable))}
