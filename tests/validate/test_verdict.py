"""Verdicts on constructed situations whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from medcam.validate.bootstrap import Interval, Resampling
from medcam.validate.discrimination import area_under_roc
from medcam.validate.measures import Measure
from medcam.validate.verdict import KINDS, Evidence, of_case, of_cohort

ON = {
    "lesions": 2,
    "max_relevance": 3,
    "hit": 1,
    "average_precision": 0.7,
    "average_precision_p": 0.001,
    "peak_distance": 0,
}
OFF = {
    "lesions": 2,
    "max_relevance": 3,
    "hit": 0,
    "average_precision": 0.02,
    "average_precision_p": 0.6,
    "peak_distance": 41,
}
FINE = {"ceiling_average_precision": 0.9, "average_precision_of_ceiling": 0.8}
USED = {"lesion_share@inpaint": 0.8, "lesion_p@inpaint": 0.047, "lesion_share@blur": 0.6, "lesion_p@blur": 0.047}
IGNORED = {"lesion_share@inpaint": 0.01, "lesion_p@inpaint": 0.047, "lesion_share@blur": -0.02, "lesion_p@blur": 0.4}
BASE = {"centre": {"average_precision": 0.1}, "brightness": {"average_precision": 0.2}}


def measures(values: dict[str, float]) -> dict[str, Measure]:
    return {name: Measure(float(value)) for name, value in values.items()}


def verdict(
    numbers: dict[str, float], base: dict[str, dict[str, float]], trials: dict[str, float], cell: float = 8.0
) -> str:
    others = {name: measures(found) for name, found in base.items()}
    return of_case(measures(numbers), others, measures(trials), cell).kind


@pytest.mark.parametrize(
    ("numbers", "trials", "kind"),
    [
        (ON | FINE, USED, "agrees"),
        (OFF | FINE, USED, "wrong"),
        (OFF | FINE, IGNORED, "ignores"),
        # A map on a lesion that the network ignores is no evidence for the network.
        (ON | FINE, IGNORED, "ignores"),
        (ON | {"hit": 0, "ceiling_average_precision": 0.1, "average_precision_of_ceiling": 0.9}, USED, "coarse"),
        (
            OFF | {"peak_distance": 6, "ceiling_average_precision": 0.1, "average_precision_of_ceiling": 0.2},
            USED,
            "coarse",
        ),
        # Coarse cells do not excuse a map on the other side.
        (OFF | {"ceiling_average_precision": 0.1, "average_precision_of_ceiling": 0.2}, USED, "wrong"),
        ({"lesions": 1, "max_relevance": 0}, USED, "wrong"),
        ({"lesions": 1, "max_relevance": 0}, {}, "untold"),
        ({"lesions": 0, "max_relevance": 2}, USED, "untold"),
        # Without the network a map elsewhere may be right about a network that looks elsewhere.
        (OFF | FINE, {}, "untold"),
        (ON | FINE, {}, "agrees"),
        # The fills disagree: the use cannot be told, the place can.
        (OFF | FINE, USED | {"lesion_share@blur": 0.02}, "untold"),
        # A nearby peak is as near as cells allow.
        (ON | FINE | {"hit": 0, "peak_distance": 7, "average_precision_of_ceiling": 0.3}, USED, "agrees"),
        (ON | FINE | {"hit": 0, "peak_distance": 9, "average_precision_of_ceiling": 0.3}, USED, "untold"),
    ],
)
def test_a_case_gets_the_verdict_it_deserves(numbers: dict[str, float], trials: dict[str, float], kind: str) -> None:
    assert verdict(numbers, BASE, trials) == kind


def test_a_map_that_brightness_equals_agrees_only_if_the_network_is_seen_to_use_the_lesion() -> None:
    bright = BASE | {"bright-spots": {"average_precision": 0.68}}
    assert verdict(ON | FINE, bright, {}) == "untold"
    assert verdict(ON | FINE, bright, USED) == "agrees"
    assert verdict(ON | FINE, {}, {}) == "untold"
    said = of_case(measures(ON), {name: measures(found) for name, found in bright.items()}, {})
    assert "Bright spots alone reaches 0.68." in said.because
    assert any("--model" in each for each in said.missing)


def test_the_words_hold_the_numbers() -> None:
    said = of_case(measures(OFF | FINE), {}, measures(USED), 8.0)
    assert said.words == "the map is wrong" == KINDS["wrong"]
    assert "Average precision 0.02" in said.because[0]
    assert "41 mm from the lesion" in said.because[0]
    assert "80% if it is filled from its surroundings (p 0.047)" in said.because[1]


def between(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high, 0.95, "bca", 60, 60)


GOOD = {"over_chance": between(0.3, 0.5), "ceiling": 0.9, "reached": 0.7}
SHARE = {"inpaint": between(0.4, 0.7), "blur": between(0.3, 0.6)}
BETTER = {"centre": between(0.2, 0.4), "random-weights-1": between(0.1, 0.3)}


@pytest.mark.parametrize(
    ("known", "kind"),
    [
        ({"share": SHARE, "over_baselines": BETTER, **GOOD}, "agrees"),
        ({"share": {"inpaint": between(-0.01, 0.04)}, "over_baselines": BETTER, **GOOD}, "ignores"),
        ({"share": {"inpaint": between(-0.02, 0.16)}, "over_baselines": BETTER, **GOOD}, "untold"),
        ({"share": SHARE, "tells_apart": between(0.4, 0.6), "over_baselines": BETTER, **GOOD}, "ignores"),
        ({"share": SHARE, "over_baselines": BETTER, **GOOD, "over_chance": between(-0.1, 0.1)}, "wrong"),
        ({"share": SHARE, "over_baselines": {**BETTER, "random-weights-1": between(-0.1, 0.1)}, **GOOD}, "wrong"),
        ({"share": SHARE, "over_baselines": BETTER, **GOOD, "ceiling": 0.1}, "coarse"),
        ({"over_baselines": BETTER, **GOOD}, "agrees"),
        ({"over_baselines": {**BETTER, "brightness": between(-0.1, 0.2)}, **GOOD}, "untold"),
        ({"share": SHARE, "over_baselines": {**BETTER, "brightness": between(-0.1, 0.2)}, **GOOD}, "agrees"),
        ({"over_baselines": BETTER, **GOOD, "over_chance": between(-0.1, 0.1)}, "untold"),
        ({"over_chance": None}, "untold"),
    ],
)
def test_a_cohort_gets_the_verdict_it_deserves(known: dict[str, object], kind: str) -> None:
    assert of_cohort(Evidence("hit", 60, **known)).kind == kind  # type: ignore[arg-type]


def test_nothing_is_claimed_of_a_few_patients() -> None:
    said = of_cohort(Evidence("hit", 4, share=SHARE, over_baselines=BETTER, **GOOD))  # type: ignore[arg-type]
    assert said.kind == "untold"
    assert "4 patients" in said.because[0]


def test_the_area_under_the_roc_curve_counts_pairs_and_draws_patients() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 60)
    score = np.round(rng.normal(size=60) + truth, 1)
    patients = [f"p{n // 3}" for n in range(60)]
    found = area_under_roc(truth, score, patients)
    pairs = score[truth == 1][:, None] - score[truth == 0][None]
    assert found.value == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)))
    assert found.low < found.value < found.high
    assert (found.cases, found.patients) == (60, 20)
    # By the long way: patients drawn, pairs counted.
    own = []
    for _ in range(600):
        rows = np.concatenate([np.flatnonzero(np.array(patients) == f"p{p}") for p in rng.integers(0, 20, 20)])
        a, b = score[rows][truth[rows] == 1], score[rows][truth[rows] == 0]
        own.append(np.mean((a[:, None] > b) + 0.5 * (a[:, None] == b)))
    plain = area_under_roc(truth, score, patients, how=Resampling(method="percentile"))
    assert np.percentile(own, [2.5, 97.5]) == pytest.approx([plain.low, plain.high], abs=0.025)
    assert np.isnan(area_under_roc([1, 1], [0.2, 0.4], ["a", "b"]).value)
