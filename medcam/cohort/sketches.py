"""Heatmaps as sketches of a few cells, which cases keep, so that maps of many patients can be compared without their files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from medcam.cohort.atlas import in_own_frame
from medcam.cohort.results import CaseResult
from medcam.validate.bootstrap import Resampling
from medcam.validate.sanity import Sanity, partner_similarity, sanity
from medcam.validate.similarity import scaled, ssim
from medcam.volume import Heatmap

# Cells along each axis: enough for those of any layer, few enough to be kept with each case.
SIDES = (24, 24, 24)
# With how many maps of other patients each is compared.
_PARTNERS = 20


def sketch(heatmap: Heatmap) -> Float32[np.ndarray, "x y z"]:
    """Return a heatmap averaged over at most 24 cells for each axis, signed; NaN where nothing was looked at."""
    return in_own_frame(heatmap.relevance, SIDES)


def likeness(first: Float32[np.ndarray, "x y z"], second: Float32[np.ndarray, "x y z"]) -> float:
    """Return the structural similarity of two sketches, each scaled to 0..1; NaN where one is blank."""
    return ssim(scaled(first), scaled(second), data_range=1.0)


def randomization_sanity(done: Sequence[CaseResult], how: Resampling) -> Sanity | None:
    """Return whether maps of networks without any learned weight are less like the learned ones than those of other patients are.

    None where no weights were drawn anew, or there is one patient only.
    """
    drawn = [(case.cascade, case.entry.patient) for case in done if case.cascade is not None and case.cascade.stages]
    patients = [patient for _, patient in drawn]
    if len(set(patients)) < 2:
        return None
    others = partner_similarity([one.sketch for one, _ in drawn], patients, likeness, per_map=_PARTNERS)
    return sanity([one.similarity[-1] for one, _ in drawn], others, patients, how=how)
