"""Which cases belong together: by what the model decided, and by the size of the lesion."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from medcam.errors import InputError, UsageError
from medcam.validate.patients import Column, column

UNKNOWN = "unknown"
NO_LESION = "no lesion"
# In millilitres: a lymph node, a small and a large metastasis.
EDGES_ML = (0.1, 1.0, 10.0)


def decisions(truth: Column, probability: Column, *, threshold: float | int = 0.5) -> list[str]:
    """Return each case's 'TP', 'FN', 'FP' or 'TN' by the model's decision, 'unknown' where truth or probability is NaN.

    Parameters
    ----------
    truth
        1 where the finding is present, else 0.
    probability
        Of the finding, by the model. It decides for it from `threshold` on.

    Raises
    ------
    InputError
        If the truth is neither 0 nor 1, or the columns do not fit together.
    """
    present, chance = (
        column(truth, len(truth), name="the truth"),
        column(probability, len(truth), name="the probability"),
    )
    if not np.isin(present[~np.isnan(present)], (0, 1)).all():
        raise InputError("the truth is 1 where the finding is present and 0 where it is not")
    names = {(True, True): "TP", (True, False): "FN", (False, True): "FP", (False, False): "TN"}
    return [
        UNKNOWN if np.isnan(t) or np.isnan(p) else names[bool(t), bool(p >= threshold)]
        for t, p in zip(present, chance, strict=True)
    ]


def sizes(volume_ml: Column, *, edges_ml: Sequence[float | int] = EDGES_ML) -> list[str]:
    """Return each lesion's size in words: 'up to 0.1 mL', 'up to 1 mL' (and above 0.1), ..., 'above 10 mL'.

    'no lesion' where the volume is 0, 'unknown' where it is NaN.

    Parameters
    ----------
    edges_ml
        Positive and rising, in millilitres; the upper edge belongs to its class. Choose them before looking at the results.

    Raises
    ------
    UsageError
        If the edges do not rise.
    InputError
        If a volume is negative.
    """
    edges = [0.0, *edges_ml]
    if len(edges) < 2 or any(after <= before for before, after in pairwise(edges)):
        raise UsageError(
            f"edges of lesion sizes rise from above 0 mL, unlike {', '.join(map(str, edges_ml)) or 'none'}"
        )
    volumes = column(volume_ml, len(volume_ml), name="the volume")
    if (volumes < 0).any():
        raise InputError("a lesion's volume is not negative")
    names = [NO_LESION, *(f"up to {edge:g} mL" for edge in edges_ml), f"above {edges[-1]:g} mL"]
    return [UNKNOWN if np.isnan(v) else names[int(np.searchsorted(edges, v, side="left"))] for v in volumes]
