"""The charts of a cohort: which are drawn of it, each with the words that say what it shows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medcam.cohort.results import HEATMAP, Cohort
from medcam.report.charts import Estimate, Group, forest, froc_chart, sizes_chart
from medcam.report.cohort_numbers import (
    Line,
    counted_cohort,
    headline,
    length_unit,
    lines,
    number,
    spoken,
    trial_lines,
    words_of,
)
from medcam.report.plate import Plate
from medcam.report.trial_plates import curve_plates, randomization_plate
from medcam.validate.statistics import mean
from medcam.validate.strata import EDGES_ML, sizes

# How the names of figures of trials end, by the unit.
_KINDS = {"": "shares", "score": "scores", "mm": "lengths", "pixels": "lengths"}


def plates(cohort: Cohort) -> tuple[Plate, ...]:
    """Return the charts that a cohort has numbers for; none if all cases failed."""
    if not cohort.done:
        return ()
    found = lines(cohort)
    chosen = [line for line in found if line.row.measure in headline(cohort, found)]
    drawn = [
        _forest(
            "forest_localization",
            "Localization",
            [line for line in chosen if line.row.unit == ""],
            cohort,
            axis="share",
        ),
        *(
            _forest(
                "forest_distances", "Distances", [line for line in chosen if line.row.unit == unit], cohort, axis=unit
            )
            for unit in ("mm", "pixels")
            if any(line.row.unit == unit for line in chosen)
        ),
        _froc(cohort),
        _sizes(cohort),
        *_tried(cohort),
        *curve_plates(cohort),
        randomization_plate(cohort),
    ]
    return tuple(plate for plate in drawn if plate is not None)


def _forest(name: str, title: str, chosen: Sequence[Line], cohort: Cohort, *, axis: str) -> Plate | None:
    if not chosen:
        return None
    styles = {each: n for n, each in enumerate(dict.fromkeys([HEATMAP, *(line.row.map for line in lines(cohort))]))}
    groups = []
    for measure in dict.fromkeys(line.row.measure for line in chosen):
        rows = [line for line in chosen if line.row.measure == measure]
        estimates = tuple(Estimate(line.row.map, line.row.interval, styles[line.row.map]) for line in rows)
        groups.append(Group(words_of(measure), estimates, rows[0].row.unit, rows[0].chance))
    words = f"{title} of {counted_cohort(cohort)}. " + " ".join(
        _in_words(line) for line in chosen if line.row.map == HEATMAP
    )
    return Plate(name, title, forest(groups, title=f"{title}, {counted_cohort(cohort)}", axis=axis), words)


def _in_words(line: Line) -> str:
    chance = "" if math.isnan(line.chance) else f" (chance {number(line.chance, line.row.unit)})"
    return f"{line.name[:1].upper()}{line.name[1:]}: {spoken(line.row.interval, line.row.unit)}{chance}."


def _tried(cohort: Cohort) -> list[Plate]:
    """Return forests of what was tried on the network, those of one unit together."""
    found = trial_lines(cohort)
    units = {"": "shares", "score": "units of the score", "mm": "mm", "pixels": "pixels"}
    drawn: list[Plate] = []
    for unit, words in units.items():
        rows = [line for line in found if line.row.unit == unit]
        if not rows:
            continue
        # One map is tried, so the rows are the trials.
        group = Group(
            "", tuple(Estimate(line.name, line.row.interval) for line in rows), unit if unit != "score" else ""
        )
        title = f"Tried on the network, {words}, {counted_cohort(cohort)}"
        said = f"{title}. {' '.join(_in_words(line) for line in rows)}"
        name = f"forest_trials_{_KINDS[unit]}"
        drawn.append(Plate(name, "Tried on the network", forest([group], title=title, axis=words), said))
    return drawn


def _froc(cohort: Cohort) -> Plate | None:
    curves = {name: curve for name, curve in cohort.froc.items() if curve.lesions}
    if not curves:
        return None
    first = next(iter(curves.values()))
    title = f"Free-response curve, {first.lesions} lesions in {counted_cohort(cohort)}"
    nearest = f"{min(cohort.settings.tolerances_mm, default=0.0):g} {length_unit(cohort)}"
    words = f"{title}. A finding finds a lesion that its peak lies in, or at most {nearest} from. "
    words += "Mean share of lesions found over 1/8 to 8 false findings a scan: "
    words += ", ".join(f"{name} {number(curve.score())}" for name, curve in curves.items())
    return Plate("froc", "Free-response curve", froc_chart(curves, title=title), f"{words}.")


def _sizes(cohort: Cohort) -> Plate | None:
    """Return which lesions are found by their size; an interval draws patients, whose lesions belong together."""
    rows = [(lesion, case.entry.patient) for case in cohort.done if case.measures for lesion in case.measures.lesions]
    # Without the size of a pixel lesions have no size either.
    rows = [(lesion, patient) for lesion, patient in rows if not math.isnan(lesion.size)]
    if not rows:
        return None
    size, found = np.array([one.size for one, _ in rows]), np.array([one.touched for one, _ in rows])
    volumes = [case.measures.numbers["lesion_size"].unit for case in cohort.done if case.measures]
    unit = "cm²" if volumes[0] == "cm2" else volumes[0]
    labels = np.array(sizes(size, edges_ml=EDGES_ML if unit == "mL" else (1.0, 10.0, 100.0)))
    classes = {}
    for label in dict.fromkeys(labels[np.argsort(size)]):
        inside = np.flatnonzero(labels == label)
        share = mean(found[inside].astype(float), [rows[n][1] for n in inside], how=cohort.resampling)
        classes[str(label).replace("mL", unit)] = (float(size[inside].min()), float(size[inside].max()), share)
    title = f"Lesions found by size, {len(rows)} lesions in {counted_cohort(cohort)}"
    words = f"{title}. " + " ".join(
        f"{name[:1].upper()}{name[1:]}: {spoken(share)} of {share.cases}." for name, (_, _, share) in classes.items()
    )
    return Plate(
        "lesion_sizes", "Lesions found by size", sizes_chart(size, found, classes, title=title, unit=unit), words
    )
