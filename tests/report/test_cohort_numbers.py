"""What stands beside each number, what comes first, and how it is spelled."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from report.cohorts import cohort

from medcam.cohort.results import HEATMAP
from medcam.report.cohort_numbers import (
    extremes,
    headline,
    lines,
    number,
    ordered_by,
    p_value,
    spoken,
    trial_lines,
    value_of,
    words_of,
)
from medcam.validate.bootstrap import Interval

COHORT = cohort()


def test_the_primary_measure_comes_first_and_the_heatmap_before_its_baselines() -> None:
    found = lines(COHORT)
    assert [line.row.map for line in found[:4]] == [HEATMAP, "centre", "brightness", "edges"]
    assert {line.row.measure for line in found[:4]} == {"hit"}
    other = lines(replace(COHORT, primary="average_precision"))
    assert other[0].row.measure == "average_precision"


def test_chance_stands_beside_its_measure_and_not_as_a_measure_of_its_own() -> None:
    found = {(line.row.map, line.row.measure): line for line in lines(COHORT)}
    assert not any(measure.endswith(("_moved", "_uniform", "_p", "_z")) for _, measure in found)
    moved = [c.measures.numbers["hit_moved"].value for c in COHORT.done]
    assert found[HEATMAP, "hit"].chance == pytest.approx(np.nanmean(moved))
    assert found[HEATMAP, "hit"].chance_is == "lesion elsewhere"
    assert found[HEATMAP, "hit_within_5mm"].chance_is == "uniform map"
    assert math.isnan(found[HEATMAP, "iou@otsu"].chance)


def test_a_paper_gets_few_measures_and_no_oracle_among_them() -> None:
    found = lines(COHORT)
    few = headline(COHORT, found)
    assert few[0] == "hit"
    assert {"hit_within_10mm", "lesion_recall_peak_within_10mm"} <= set(few)
    assert "lesion_recall" not in few
    assert not {"hit_within_5mm", "hit_within_15mm"} & set(few)
    assert [m for m in few if "@" in m] == ["dice@half-max"]
    oracles = {line.row.measure for line in found if line.row.oracle}
    assert oracles
    assert not oracles & set(few)
    assert headline(replace(COHORT, primary="dice@otsu"), found)[0] == "dice@otsu"


def test_best_median_and_worst_are_what_they_are_called() -> None:
    by = replace(COHORT, primary="average_precision")
    values = sorted((value_of(c, "average_precision") for c in COHORT.done), reverse=True)
    values = [v for v in values if not math.isnan(v)]
    found = extremes(by)
    assert [value_of(case, "average_precision") for case, _ in found] == [
        values[0], values[(len(values) - 1) // 2], values[-1],
    ]  # fmt: skip
    assert [words.split(",")[0] for _, words in found] == ["best", "median", "worst"]
    near = ordered_by(COHORT.done, "peak_distance")
    assert value_of(near[0], "peak_distance") <= value_of(near[-1], "peak_distance")


def test_fewer_cases_than_names_are_shown_once_each() -> None:
    assert len(extremes(replace(COHORT, cases=COHORT.cases[:1]))) == 1
    assert extremes(replace(COHORT, cases=())) == ()


def test_trials_are_averaged_over_cases_and_say_how_many_have_none() -> None:
    found = {line.row.measure: line for line in trial_lines(COHORT)}
    share = found["lesion_share@inpaint"].row.interval
    values = [c.trials["lesion_share@inpaint"].value for c in COHORT.done]
    assert share.value == pytest.approx(np.nanmean(values))
    assert share.undefined == np.isnan(values).sum() > 0


@pytest.mark.parametrize(
    ("measure", "words"),
    [
        ("hit", "peak in the lesion"),
        ("hit_within_2.5mm", "peak within 2.5 mm of the lesion"),
        ("top3_hit_within_5mm", "one of 3 peaks within 5 mm of the lesion"),
        ("dice@max-0.3", "Dice at max-0.3"),
        ("surface_dice_5mm@otsu", "surface Dice within 5 mm at otsu"),
        ("deletion@blur", "deletion: area under the score (blur)"),
        ("something_new", "something new"),
    ],
)
def test_measures_are_called_in_words(measure: str, words: str) -> None:
    assert words_of(measure) == words


def test_numbers_are_spelled_as_print_has_them() -> None:
    one = Interval(0.512, 0.409, 0.634, 0.95, "bca", 24, 12)
    assert spoken(one) == "0.51 [0.41, 0.63]"
    assert spoken(replace(one, value=12.34, low=10.0, high=15.06), "mm") == "12.3 [10.0, 15.1] mm"
    assert spoken(replace(one, low=math.nan, high=math.nan)) == "0.51"
    assert spoken(replace(one, value=math.nan, low=math.nan, high=math.nan), "mm") == "not defined"
    assert number(0.0043) == "0.0043"
    assert [p_value(p) for p in (0.0001, 0.0123, 0.5, math.nan)] == ["< 0.001", "0.012", "0.50", ""]
