"""A cohort whose truth is known: each network gets the verdict it deserves, from the command, with the numbers that say so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from medcam.cli import main
from medcam.cohort.results import Cohort
from medcam.cohort.stored import read_cohort

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
EXAMPLE = Path(__file__).parents[2] / "examples" / "shortcut_cohort.py"
NETWORKS = ("right", "wrong", "untrained")
QUICK = (
    *("--chance", "50", "--replicates", "300", "--random-networks", "1", "--thresholds", "half-max"), "--report", "none", "--quiet"
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 films, their table, and three networks, made and trained as the example says; each judged by its command."""
    where = tmp_path_factory.mktemp("shortcut")
    made = subprocess.run([sys.executable, EXAMPLE, where], capture_output=True, text=True, check=True, timeout=600)
    said = [line.split("'") for line in made.stdout.splitlines()]
    assert len(said) == 3
    for (before, factory, after), name in zip(said, NETWORKS, strict=True):
        words = [*before.split(), factory, *after.split()]
        assert words[words.index("--out") + 1] == str(where / name)
        assert main([*words[1:], *QUICK]) == 0
    return where


def judged(folder: Path, name: str) -> Cohort:
    return read_cohort(folder / name / "results.json")


def primary(cohort: Cohort, name: str = "heatmap", measure: str = "average_precision") -> float:
    return next(
        row.interval.value for row in cohort.summary if (row.map, row.measure, row.stratum) == (name, measure, "all")
    )


def test_the_cohort_is_what_it_says(folder: Path) -> None:
    cohort = judged(folder, "right")
    lesions = [case.measures.numbers["lesions"].value for case in cohort.done if case.measures]
    assert sum(count >= 2 for count in lesions) >= 50
    assert sum(count == 0 for count in lesions) == 30
    assert len({case.entry.patient for case in cohort.cases}) == 90


def test_the_network_that_sees_nodules_agrees(folder: Path) -> None:
    cohort = judged(folder, "right")
    assert cohort.verdict is not None
    assert cohort.verdict.kind == "agrees"
    assert cohort.counts["agrees"] >= 45
    assert primary(cohort) > 5 * max(
        primary(cohort, name) for name in ("centre", "brightness", "edges", "random-weights-1")
    )
    assert primary(cohort, measure="hit_within_10mm") > 0.8
    assert all(one.holm < 0.001 for one in cohort.comparisons if one.measure == "average_precision")
    assert any("hangs on the lesions" in each for each in cohort.verdict.because)


def test_the_network_that_sees_the_marker_ignores_the_lesion_though_it_is_always_right(folder: Path) -> None:
    cohort = judged(folder, "wrong")
    assert cohort.verdict is not None
    assert cohort.verdict.kind == "ignores"
    assert cohort.counts["ignores"] >= 57
    decisions = [case.decision for case in cohort.done]
    assert (decisions.count("TP"), decisions.count("TN")) == (60, 30)
    assert "AUC of 1.00" in " ".join(cohort.verdict.because)
    # Less than nothing by chance: all of its relevance lies in corners where no nodule is.
    assert primary(cohort, measure="hit") < 0.05
    assert primary(cohort) < 0.05


def test_the_untrained_network_gets_no_credit(folder: Path) -> None:
    cohort = judged(folder, "untrained")
    assert cohort.verdict is not None
    assert cohort.verdict.kind == "ignores"
    assert cohort.counts["ignores"] >= 57
    assert "agrees" not in cohort.counts
    shares = [case.trials["lesion_share@inpaint"].value for case in cohort.done if case.trials]
    assert max(map(abs, shares)) < 0.1


@pytest.mark.parametrize(("name", "found"), [("right", ""), ("wrong", "text")])
def test_the_atlas_points_at_the_marker_and_at_nothing_else(folder: Path, name: str, found: str) -> None:
    assert main(["atlas", str(folder / name), "--out", str(folder / f"atlas_{name}"), "--quiet"]) == 0
    said = json.loads((folder / f"atlas_{name}" / "atlas.json").read_text())
    assert {cluster["shortcut"] for cluster in said["clusters"]} == {found}
    if found:
        # Only films with the marker have a map at all: the examples are lines 2 to 61.
        lines = [line for cluster in said["clusters"] for line in cluster["lines"]]
        assert sorted(lines) == list(range(2, 62))
        assert any("lie on text or markers" in words for words in said["words"])


def test_maps_that_depend_on_learned_weights_pass_the_randomization(folder: Path) -> None:
    for name in ("right", "wrong"):
        cohort = judged(folder, name)
        assert cohort.sanity is not None
        assert cohort.sanity.verdict == "passes"
        stages = {case.cascade.stages for case in cohort.done if case.cascade}
        assert [len(each) for each in stages] == [5]
