"""What stands behind the few numbers of a cohort: all cases together, published protocols, how large the next study must be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from medcam.cohort.results import HEATMAP, Cohort
from medcam.errors import MedcamError
from medcam.report.cohort_numbers import number, value_of, words_of
from medcam.validate.planning import Plan, plan_difference_from, plan_precision_from

# Of a share: the smallest difference worth finding, and half of an interval's width.
_DIFFERENCES, _HALF_WIDTH = (0.05, 0.1), 0.05


class Extra(NamedTuple):
    """A table behind the others: its title, what must be known of it, its heads and rows."""

    title: str
    words: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def extras(cohort: Cohort) -> tuple[Extra, ...]:
    """Return the tables that have rows."""
    return tuple(each for each in (_together(cohort), _protocols(cohort), _planned(cohort)) if each.rows)


def _together(cohort: Cohort) -> Extra:
    words = (
        "FROC: mean share of lesions found over 1/8 to 8 false findings a scan, by raw scores. Pooled: over the voxels of all cases, so "
        "that large lesions weigh most. The threshold of box accuracy is the best on these very cases: optimistic, as in papers."
    )
    heads = ("map", "FROC score", "pooled average precision (VxAP, PxAP)", "MaxBoxAcc", "MaxBoxAccV2")
    rows = []
    for name, curve in cohort.froc.items():
        boxes = cohort.boxes.get(name)
        both = (math.nan, math.nan) if boxes is None else (boxes.max_box_accuracy, boxes.max_box_accuracy_v2)
        rows.append((name, *map(number, (curve.score(), cohort.pooled.get(name, math.nan), *both))))
    return Extra("All cases together", words, heads, tuple(rows))


def _protocols(cohort: Cohort) -> Extra:
    words = "As published code counts, quirks included: for comparison with papers that used it, not instead of the numbers above."
    rows = tuple(
        (name, measure, number(value)) for name, found in cohort.protocols.items() for measure, value in found.items()
    )
    return Extra("Published protocols", words, ("protocol", "measure", "value"), rows)


def _planned(cohort: Cohort) -> Extra:
    """Return how many cases and patients show what is worth finding, if they spread and cluster as these do."""
    primary = cohort.primary
    words = (
        f"If cases spread and cluster as these do, and {words_of(primary)} stays primary. For differences: 80 % power, "
        "two-sided p of 0.05, paired. Cautious: with the upper 80 % limit of these cases' spread, which may be small by chance."
    )
    cases = cohort.done
    own, patients = [_finite(value_of(case, primary)) for case in cases], [case.entry.patient for case in cases]
    rows = []
    for name in dict.fromkeys(name for case in cases for name in case.baselines):
        other = [
            _finite(case.baselines[name].numbers[primary].value)
            if name in case.baselines and primary in case.baselines[name].numbers
            else math.nan
            for case in cases
        ]
        for difference in _DIFFERENCES:
            rows += _row(f"difference of {difference:g} from {name}", own, other, patients, difference)
    try:
        narrow = plan_precision_from(own, patients, half_width=_HALF_WIDTH)
        rows.append(_plan(f"{HEATMAP}: 95 % interval of half width {_HALF_WIDTH:g}", narrow))
    except MedcamError:
        pass  # A single patient, or the same value everywhere, shows no spread to plan by.
    return Extra(
        "How large the next study must be", words, ("to find", "cases", "patients", "cases, cautious"), tuple(rows)
    )


def _row(
    what: str, own: Sequence[float], other: Sequence[float], patients: Sequence[str], difference: float
) -> list[tuple[str, ...]]:
    try:
        return [_plan(what, plan_difference_from(own, other, patients, difference=difference))]
    except MedcamError:
        return []


def _plan(what: str, plan: Plan) -> tuple[str, ...]:
    return what, str(plan.cases), str(plan.patients), str(plan.cautious_cases)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan
