"""Which configuration is best, what it owes to having been chosen, and what decides: on tables whose truth is known."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from medcam.cohort.comparing import Compared, compared
from medcam.cohort.comparison_files import words, write_comparison
from medcam.cohort.results import Entry
from medcam.cohort.shares import shares
from medcam.cohort.sweeping import Answer, Configuration, Swept
from medcam.errors import InputError
from medcam.validate.bootstrap import Resampling
from medcam.validate.measures import Measure

HOW = Resampling(replicates=400)
METHODS, LAYERS = ("grad-cam", "hires-cam"), ("shallow", "middle", "deep")


def configurations(models: tuple[str, ...] = ("one",)) -> list[Configuration]:
    return [Configuration(m, k, name, n) for m in models for k in METHODS for n, name in enumerate(LAYERS)]


def a_case(line: int, patient: str, scores: dict[Configuration, float], split: str = "") -> Swept:
    def numbers(value: float) -> dict[str, Measure]:
        return {"average_precision": Measure(value), "average_precision_uniform": Measure(0.05)}

    answers = {c: Answer(numbers(value), numbers(0.1), "lesion (class 0)") for c, value in scores.items()}
    entry = Entry(line, f"case-{line}", patient, split=split)
    return Swept(entry, answers, {"brightness": {"average_precision": Measure(0.2)}})


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def noise_only(patients: int, seed: int, split: bool = False) -> list[Swept]:
    """Two cases a patient, and configurations that differ by nothing but chance."""
    random = np.random.default_rng(seed)
    return [
        a_case(
            2 + n, f"p{n // 2}", {c: float(random.uniform(0.2, 0.6)) for c in configurations()}, "dev" if n // 2 % 3 == 0 else "test"
        )
        for n in range(2 * patients)
    ]  # fmt: skip


def test_shares_are_those_of_a_table_built_of_known_effects() -> None:
    """Layer effects -0.3 0 0.3 and method effects -0.1 0.1: 0.06 and 0.01 a cell, so 6/7 and 1/7; cases shift all alike."""
    case = np.random.default_rng(1).normal(0, 0.2, 14)
    layer, method = np.array([-0.3, 0.0, 0.3]), np.array([-0.1, 0.1])
    values = case[:, None, None, None] + layer[None, None, :, None] + method[None, None, None, :]
    found = shares(values, [f"p{n // 2}" for n in range(14)], how=HOW)
    assert found.factors["layer"].value == pytest.approx(6 / 7)
    assert found.factors["method"].value == pytest.approx(1 / 7)
    assert found.factors["interplay"].value == pytest.approx(0, abs=1e-9)
    assert found.factors["layer"].low == pytest.approx(6 / 7), "every patient agrees"
    between = case.var()
    assert found.cases.value == pytest.approx(between / (between + values[0].var()))
    assert found.cases.value + found.configurations.value == pytest.approx(1)


def test_shares_of_three_factors_agree_with_sums_of_squares_taken_one_by_one() -> None:
    values = np.random.default_rng(5).normal(size=(9, 2, 3, 4))
    found = shares(values, list(range(9)), how=HOW)
    table = values.mean(0)
    total = sum((x - table.mean()) ** 2 for x in table.ravel())
    expected = {
        "model": 12 * sum((table[m].mean() - table.mean()) ** 2 for m in range(2)) / total,
        "layer": 8 * sum((table[:, n].mean() - table.mean()) ** 2 for n in range(3)) / total,
        "method": 6 * sum((table[:, :, k].mean() - table.mean()) ** 2 for k in range(4)) / total,
    }
    for name, share in expected.items():
        assert found.factors[name].value == pytest.approx(share)
    assert sum(share.value for share in found.factors.values()) == pytest.approx(1)


def test_the_layer_decides_where_it_does_and_words_say_so() -> None:
    random = np.random.default_rng(2)
    good = {"shallow": 0.2, "middle": 0.6, "deep": 0.4}
    cases = [
        a_case(2 + n, f"p{n}", {c: good[c.layer] + float(random.normal(0, 0.05)) for c in configurations()}) for n in range(20)
    ]  # fmt: skip
    found = compared(cases, configurations(), primary="average_precision", how=HOW)
    assert found.chosen is not None
    assert found.chosen.layer == "middle"
    assert found.shares is not None
    assert found.shares.factors["layer"].low > 0.9
    said = " ".join(words(found))
    assert re.search(r"the layer (9\d|100)%", said)
    assert re.search(r"from 0\.(19|20)\d \(shallow\) to 0\.(59|60|61)\d \(middle\)", said)
    assert "Over brightness: +0.4" in said


def test_a_winner_among_equals_is_called_optimistic_and_its_worth_on_others_is_lower() -> None:
    """Six seeds of pure chance: the best of six looks better than the truth, 0.4; chosen without oneself it does not."""
    apparent, elsewhere = [], []
    for seed in range(6):
        found = compared(noise_only(8, seed), configurations(), primary="average_precision", how=HOW)
        best = found.standings[0].places[0]
        assert best.optimistic
        assert found.elsewhere is not None
        apparent.append(best.interval.value)
        elsewhere.append(found.elsewhere.value)
        first = words(found)[0]
        assert "optimistic" in first
        assert "--choose-on" in first
    assert np.mean(apparent) > 0.42
    assert np.mean(elsewhere) == pytest.approx(0.4, abs=0.03)


def test_choosing_on_one_split_reports_on_the_other_alone() -> None:
    cases = noise_only(9, 3)
    found = compared(cases, configurations(), primary="average_precision", choose_on="dev", how=HOW)
    own, other = found.standings
    dev = [case for case in cases if case.entry.split == "dev"]
    test = [case for case in cases if case.entry.split == "test"]

    def mean(of: list[Swept], c: Configuration) -> float:
        return float(np.mean([case.answers[c].numbers["average_precision"].value for case in of]))

    assert found.chosen == max(configurations(), key=lambda c: mean(dev, c))
    assert found.elsewhere is not None
    assert found.elsewhere.value == pytest.approx(mean(test, found.chosen))
    assert (found.elsewhere.patients, own.patients, other.patients) == (6, 3, 6)
    assert [place.optimistic for place in own.places].count(True) == 1
    assert not any(place.optimistic for place in other.places)
    assert "report that" in " ".join(words(found))


def test_a_split_that_is_not_there_or_shares_a_patient_is_refused() -> None:
    with pytest.raises(InputError, match=r"no case of the split 'train'.*dev, test"):
        compared(noise_only(4, 0), configurations(), primary="average_precision", choose_on="train", how=HOW)
    values = dict.fromkeys(configurations(), 0.5)
    torn = [a_case(2, "p1", values, "dev"), a_case(3, "p1", values, "test"), a_case(4, "p2", values, "test")]
    with pytest.raises(InputError, match=r"1 patients lie .*lines 2, 3.*cannot be reported") as caught:
        compared(torn, configurations(), primary="average_precision", choose_on="dev", how=HOW)
    assert "p1" not in str(caught.value)


def test_a_method_that_gives_nothing_in_most_cases_does_not_win_by_the_few() -> None:
    shy, *rest = configurations()
    cases = [
        a_case(2 + n, f"p{n}", {shy: 0.95 if n < 3 else float("nan"), **dict.fromkeys(rest, 0.4)}) for n in range(10)
    ]
    found = compared(cases, configurations(), primary="average_precision", how=HOW)
    assert found.chosen != shy
    assert any("no value in 7 of 10 cases. It does not compete." in note for note in found.notes)


def test_one_that_gives_a_value_in_just_half_of_the_cases_competes() -> None:
    shy, *rest = configurations()
    cases = [
        a_case(2 + n, f"p{n}", {shy: 0.95 if n < 5 else float("nan"), **dict.fromkeys(rest, 0.4)}) for n in range(10)
    ]
    assert compared(cases, configurations(), primary="average_precision", how=HOW).chosen == shy


def test_the_files_hold_each_case_and_the_remark_and_number_the_patients(tmp_path: Path) -> None:
    found: Compared = compared(noise_only(5, 1), configurations(), primary="average_precision", how=HOW)
    files = write_comparison(found, tmp_path, about={})
    assert [file.name for file in files] == ["compare.csv", "ranking.csv", "compare.json"]
    rows = rows_of(files[0])
    assert len(rows) == 10 * (6 + 6 + 1), "heatmaps, their twins of random weights, brightness"
    assert {row["patient"] for row in rows} == {"1", "2", "3", "4", "5"}
    own = [row for row in rows if row["map"] == "heatmap" and row["method"] == "grad-cam" and row["layer"] == "deep"]
    ranking = rows_of(files[1])
    (mean,) = [
        r for r in ranking if r["configuration"] == "grad-cam at deep of one" and not r["less"] and r["primary"] == "1"
    ]
    assert float(mean["value"]) == pytest.approx(np.mean([float(row["average_precision"]) for row in own]), rel=1e-5)
    remarked = {r["configuration"] for r in ranking if r["remark"] == "optimistic"}
    assert found.chosen is not None
    assert remarked == {found.chosen.name}
    against = [r for r in ranking if r["less"] == "brightness"]
    assert len(against) == 6
    assert all(float(r["p_holm"]) >= float(r["p"]) for r in against)
    values = json.loads(files[2].read_text())
    assert "optimistic" in values["words"][0]
    assert "p0" not in files[2].read_text()
