"""What was tried on the network, as figures and words: the curves are means over cases, and nothing is drawn of what was not tried."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from report.cohorts import HOW, cohort

from medcam.cohort.results import CURVE_SHARES, Cascade, Cohort
from medcam.cohort.sketches import randomization_sanity
from medcam.report.checklist import checklist
from medcam.report.cohort_extras import extras
from medcam.report.cohort_page import CohortView, cohort_page
from medcam.report.paper import methods_paragraph, results_paragraph
from medcam.report.plates import plates
from medcam.report.trial_plates import curve_plates, randomization_plate, sanity_words
from medcam.validate.measures import Measure
from medcam.validate.planning import plan_difference_from

BARE = cohort(6)


@pytest.fixture(scope="module")
def tried() -> Cohort:
    random = np.random.default_rng(0)
    cases = []
    for n, case in enumerate(BARE.cases):
        if not case.ok:
            cases.append(case)
            continue
        steep = 1 + n
        curve = tuple(float(2 * np.exp(-steep * share)) for share in CURVE_SHARES)
        flat = tuple(2.0 - share for share in CURVE_SHARES)
        curves = {"deletion@inpaint": curve, "insertion@inpaint": curve[::-1], "deletion of blobs@inpaint": flat}
        cascade = Cascade(("first", "second"), (0.2 + 0.01 * n, -0.3), random.normal(size=(8, 9, 7)).astype(np.float32))
        trials = {**case.trials, "retest_ssim@rigid": Measure(0.8 + 0.01 * n), "retest_shift@rigid": Measure(2.5, "mm")}
        cases.append(replace(case, curves=curves, cascade=cascade, trials=trials))
    done = [case for case in cases if case.ok]
    return replace(BARE, cases=tuple(cases), sanity=randomization_sanity(done, HOW))


def test_the_deletion_curve_is_the_mean_over_cases_and_blobs_lie_grey_behind(tried: Cohort) -> None:
    (plate,) = curve_plates(tried)
    assert plate.name == "curves_inpaint"
    (axes,) = plate.figure.axes
    lines = {line.get_gid(): line for line in axes.lines if line.get_gid()}
    assert set(lines) == {"curve deletion", "curve insertion", "curve deletion, random blobs"}
    expected = np.mean([case.curves["deletion@inpaint"] for case in tried.done], axis=0)
    np.testing.assert_allclose(lines["curve deletion"].get_ydata(), expected)
    np.testing.assert_allclose(lines["curve deletion"].get_xdata(), CURVE_SHARES)
    assert lines["curve deletion, random blobs"].get_color() != lines["curve deletion"].get_color()
    assert f"deletion {np.trapezoid(expected, CURVE_SHARES):.2f}" in plate.words


def test_randomized_weights_are_drawn_below_maps_of_other_patients_and_said_in_words(tried: Cohort) -> None:
    plate = randomization_plate(tried)
    assert plate is not None
    curve = next(line for line in plate.figure.axes[0].lines if line.get_gid() == "curve")
    mean = np.mean([case.cascade.similarity for case in tried.done if case.cascade], axis=0)
    np.testing.assert_allclose(curve.get_ydata(), mean)
    assert [tick.get_text() for tick in plate.figure.axes[0].get_xticklabels()] == ["first", "second"]
    assert sanity_words(tried).startswith(
        "The maps depend on the weights: their likeness (SSIM) to maps of random weights is -0.30"
    )
    failed = replace(tried, sanity=replace(tried.sanity, verdict="fails"))  # type: ignore[type-var]
    assert sanity_words(failed).startswith("The maps hardly depend")
    blank = replace(tried, sanity=replace(tried.sanity, verdict="degenerate"))  # type: ignore[type-var]
    assert (
        sanity_words(blank)
        == "Whether the maps depend on the weights cannot be told, since most maps of random weights are blank."
    )


def test_what_was_not_tried_is_neither_drawn_nor_said(tried: Cohort) -> None:
    assert curve_plates(BARE) == ()
    assert randomization_plate(BARE) is None
    assert sanity_words(BARE) == ""
    said, unsaid = methods_paragraph(tried), methods_paragraph(BARE)
    for words in ("drawn anew in 2 stages", "taken again with changes of rigid"):
        assert words in said
        assert words not in unsaid
    assert "The maps depend on the weights" in results_paragraph(tried)
    answers = [next(item.answer for item in checklist(one) if item.guideline == "CLAIM 30") for one in (tried, BARE)]
    assert "rigid 0.82" in answers[0]
    assert answers[1].startswith("not among the results")
    names = [plate.name for plate in plates(tried)]
    assert names[-3:] == ["forest_trials_lengths", "curves_inpaint", "randomization"]


def test_names_of_trials_are_not_cut_off(tried: Cohort) -> None:
    plate = next(plate for plate in plates(tried) if plate.name == "forest_trials_shares")
    plate.figure.canvas.draw()
    page = plate.figure.bbox
    boxes = [text.get_window_extent() for text in plate.figure.axes[0].texts]
    assert min(box.x0 for box in boxes) >= page.x0
    assert max(box.x1 for box in boxes) <= page.x1


def test_numbers_of_all_cases_protocols_and_the_next_study_stand_behind_the_few() -> None:
    one = replace(BARE, protocols={"arun": {"AUPRC": 0.25, "AUPRC_sd": float("nan")}})
    together, protocols, planned = extras(one)
    assert {row[0] for row in together.rows} == set(one.froc)
    assert together.rows[0][2] == "0.41"
    assert protocols.rows == (("arun", "AUPRC", "0.25"), ("arun", "AUPRC_sd", "not defined"))
    rows = {row[0]: row[1:] for row in planned.rows}
    done = one.done
    columns = [
        [found.numbers[one.primary].value for found in side]
        for side in ([case.measures for case in done], [case.baselines["centre"] for case in done])  # type: ignore[list-item]
    ]
    plan = plan_difference_from(*columns, [case.entry.patient for case in done], difference=0.1)
    assert rows["difference of 0.1 from centre"] == (str(plan.cases), str(plan.patients), str(plan.cautious_cases))
    page = cohort_page(CohortView(one))
    assert "How large the next study must be" in page
    assert "Published protocols" in page
    assert not [each for each in extras(replace(one, protocols={})) if each.title == "Published protocols"]
