"""Figures of what was tried on the network: deletion and insertion, and maps of randomized weights, over all cases."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from medcam.cohort.results import CURVE_SHARES, CaseResult, Cohort
from medcam.report.charts import Band, curves_chart, randomization_chart
from medcam.report.cohort_numbers import counted, many, number, spoken
from medcam.report.plate import Plate
from medcam.validate.statistics import mean

# From the kind of a curve, as results name it, to its words; those of maps that know nothing are drawn behind.
_KINDS = {
    "deletion": "deletion",
    "insertion": "insertion",
    "deletion of blobs": "deletion, random blobs",
    "insertion of blobs": "insertion, random blobs",
}


def curve_plates(cohort: Cohort) -> tuple[Plate, ...]:
    """Return the mean deletion and insertion curves of all cases, a figure for each fill; none where they were not tried."""
    having = [case for case in cohort.done if case.curves]
    fills = dict.fromkeys(name.partition("@")[2] for case in having for name in case.curves)
    return tuple(_curves(fill, having, cohort) for fill in fills)


def _curves(fill: str, having: Sequence[CaseResult], cohort: Cohort) -> Plate:
    bands, said = {}, []
    chosen = [case for case in having if f"deletion@{fill}" in case.curves]
    counts = f"{many(len(chosen), 'case')} of {many(len({case.entry.patient for case in chosen}), 'patient')}"
    for kind, words in _KINDS.items():
        rows = [
            (case.curves[f"{kind}@{fill}"], case.entry.patient) for case in chosen if f"{kind}@{fill}" in case.curves
        ]
        if not rows:
            continue
        values, patients = np.array([row for row, _ in rows]), [patient for _, patient in rows]
        points = [mean(column, patients, how=cohort.resampling) for column in values.T]
        middle, low, high = (np.array([getattr(each, name) for each in points]) for name in ("value", "low", "high"))
        bands[words] = Band(np.array(CURVE_SHARES), middle, low, high, control="random" in words)
        said.append(f"{words} {number(float(np.trapezoid(middle, CURVE_SHARES)))}")
    title = f"Deletion and insertion, voxels replaced by {fill}, {counts}"
    figure = curves_chart(bands, title=title, x_axis="share of voxels removed, or put back", y_axis="score (logit)")
    level = f"{100 * cohort.resampling.level:g}"
    words = f"{title}. Mean score with its {level} % interval, while the voxels that the map shows highest go, or come back, first. "
    return Plate(f"curves_{fill}", "Deletion and insertion", figure, f"{words}Area under the mean: {', '.join(said)}.")


def randomization_plate(cohort: Cohort) -> Plate | None:
    """Return how alike maps stay while weights are drawn anew; None where none were, or there is nothing to compare with."""
    sanity = cohort.sanity
    drawn = [(case.cascade, case.entry.patient) for case in cohort.done if case.cascade and case.cascade.stages]
    if sanity is None or not drawn or math.isnan(sanity.baseline.value):
        return None
    # Cases may be of several networks; those of the one that most have can be drawn together.
    stages = Counter(one.stages for one, _ in drawn).most_common(1)[0][0]
    rows = [(one.similarity, patient) for one, patient in drawn if one.stages == stages]
    columns = zip(*(similarity for similarity, _ in rows), strict=True)
    points = [mean(column, [patient for _, patient in rows], how=cohort.resampling) for column in columns]
    title = f"Randomized weights, {counted(points[-1])}"
    figure = randomization_chart(stages, points, sanity.baseline, title=title, measure="SSIM")
    steps = ", ".join(f"{stage} {number(point.value)}" for stage, point in zip(stages, points, strict=True))
    words = f"{title}. Likeness of maps to the learned network's, with weights drawn anew up to and with {steps}. {sanity_words(cohort)}"
    return Plate("randomization", "Randomized weights", figure, words)


def sanity_words(cohort: Cohort) -> str:
    """Return whether maps depend on what the network has learned, in a sentence; '' where that was not tried."""
    sanity = cohort.sanity
    if sanity is None:
        return ""
    told = {
        "passes": "The maps depend on the weights",
        "fails": "The maps hardly depend on the weights",
        "undecided": "Whether the maps depend on the weights is undecided",
        "degenerate": "Whether the maps depend on the weights cannot be told, since most maps of random weights are blank",
    }[sanity.verdict]
    against = f"their likeness (SSIM) to maps of random weights is {spoken(sanity.similarity)}, to learned ones of other patients "
    return f"{told}: {against}{spoken(sanity.baseline)}." if sanity.verdict != "degenerate" else f"{told}."
