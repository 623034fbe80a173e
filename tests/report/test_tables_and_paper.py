"""Tables and words for a paper: LaTeX that compiles, sentences that are true, and nothing claimed that nobody checked."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from report.cohorts import RECIPE, cohort

from medcam.report.checklist import AUTHOR, checklist
from medcam.report.paper import methods_paragraph, paper, results_paragraph
from medcam.report.tables import latex, summary_csv, summary_latex, write_tables
from medcam.validate.bootstrap import Resampling
from medcam.validate.measures import Settings
from medcam.validate.thresholds import half_maximum

COHORT = cohort()


def rows_of_latex(text: str) -> list[list[str]]:
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    lines = [line for line in body.splitlines() if line.strip() and line.strip() != r"\addlinespace"]
    assert all(line.endswith(r" \\") for line in lines)
    return [[cell.strip() for cell in re.split(r"(?<!\\)&", line.removesuffix(r" \\"))] for line in lines]


def test_the_csv_gives_each_number_with_what_stands_beside_it() -> None:
    rows = list(csv.DictReader(io.StringIO(summary_csv(COHORT))))
    by = {(row["map"], row["measure"], row["stratum"]): row for row in rows}
    own = next(r for r in COHORT.summary if r.map == "heatmap" and r.measure == "hit")
    found = by["heatmap", "hit", "all"]
    assert [float(found[name]) for name in ("value", "low", "high")] == [
        own.interval.value,
        own.interval.low,
        own.interval.high,
    ]
    assert (found["cases"], found["patients"], found["undefined"]) == ("11", "7", "2")
    assert float(found["chance"]) > 0
    other = by["centre", "hit", "all"]
    apart = next(c for c in COHORT.comparisons if c.baseline == "centre" and c.measure == "hit")
    assert float(other["holm_p"]) == apart.holm
    assert float(other["difference"]) == apart.difference.interval.value
    assert by["heatmap", "dice@oracle-best", "all"]["oracle"] == "yes"
    assert by["heatmap", "lesion_share@inpaint", "all"]["undefined"] == "2"
    # Of what is not compared in the family there is no adjusted p, and none is made up.
    assert by["centre", "mass_in_lesion", "all"]["holm_p"] == ""


def test_the_latex_table_is_whole_and_its_rows_fit_its_columns() -> None:
    text = summary_latex(COHORT)
    assert text.count("{") == text.count("}")
    opened, closed = re.findall(r"\\begin\{(\w+)\}", text), re.findall(r"\\end\{(\w+)\}", text)
    assert opened == closed[::-1]
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1]
    rows = rows_of_latex(text)
    assert {len(row) for row in rows} == {len(columns)}
    assert rows[0][:2] == ["peak in the lesion", "heatmap"]
    assert re.fullmatch(r"\d\.\d\d \[\d\.\d\d, \d\.\d\d\]", rows[0][2])
    assert [row[1] for row in rows[:4]] == ["heatmap", "centre", "brightness", "edges"]
    # No letter that TeX would take for a command stands bare.
    for row in rows:
        assert not re.search(r"(?<!\\)[%#_]", " ".join(row))


def test_names_with_signs_of_tex_are_printed_as_they_are() -> None:
    assert latex(r"a_b & 5% {x} \y $1 #2 ~^") == (
        r"a\_b \& 5\% \{x\} \textbackslash{}y \$1 \#2 \textasciitilde{}\textasciicircum{}"
    )
    strange = replace(
        COHORT, summary=tuple(replace(row, map="a_1&{") if row.map == "centre" else row for row in COHORT.summary)
    )
    rows = rows_of_latex(summary_latex(strange))
    assert rows[1][1] == r"a\_1\&\{"


def test_tables_are_written_where_they_are_asked_for(tmp_path: Path) -> None:
    files = write_tables(COHORT, tmp_path / "paper")
    assert [f.name for f in files] == ["table.csv", "table.tex"]
    assert files[0].read_text() == summary_csv(COHORT)


def test_the_methods_say_what_was_done_with_its_numbers() -> None:
    text = methods_paragraph(COHORT)
    for said in (
        "13 cases of 7 patients", "1 more of 14 cases", "grad-cam at layer features", RECIPE.model_sha256,
        "seed of the method's random numbers was 7", "ScaleIntensity", "torch 2.13.0", "half-max, otsu and top-0.1",
        "oracle-volume and oracle-best", "5, 10 and 15 mm", "400 bootstrap replicates", "60 random other places",
        "centre, brightness and edges", "Wilcoxon", "Holm", "2 cases had no lesion", "widened for few patients",
    ):  # fmt: skip
        assert said in text, said


def test_what_was_not_done_is_not_said() -> None:
    bare = replace(
        COHORT,
        cases=tuple(replace(case, recipe=None, baselines={}) for case in COHORT.cases if case.ok),
        settings=Settings(thresholds=(half_maximum(),), tolerances_mm=(), draws=30),
        resampling=Resampling(replicates=100, method="percentile", level=0.9, seed=3),
        comparisons=(),
        froc={},
    )
    text = methods_paragraph(bare)
    for unsaid in (
        "SHA-256",
        "Holm",
        "oracle",
        "Tolerances",
        "free-response",
        "could not be measured",
        "widened",
        "Beside the heatmap",
        "sliding",
    ):
        assert unsaid not in text, unsaid
    assert "How 13 of the heatmaps were made is not recorded" in text
    assert "90 % intervals from 100 bootstrap replicates" in text
    assert "(seed 3; percentiles of the replicates)" in text


def test_recipes_that_differ_are_told_apart() -> None:
    cases = [
        replace(c, recipe=replace(RECIPE, method="hires-cam", windows={"roi_size": [8, 8, 8]})) if n % 2 and c.ok else c
        for n, c in enumerate(COHORT.cases)
    ]
    text = methods_paragraph(replace(COHORT, cases=tuple(cases)))
    assert "computed by grad-cam and hires-cam" in text
    assert "In 6 cases the network saw the volume in sliding windows" in text


def test_the_result_stands_with_chance_and_baselines() -> None:
    text = results_paragraph(COHORT)
    assert text.startswith("Peak in the lesion: 0.")
    assert "chance 0.03 (lesion elsewhere)" in text
    assert text.count("Heatmap less") == 3
    assert f"Verdict: {COHORT.verdict.words}." in text
    assert results_paragraph(replace(COHORT, cases=(), summary=(), verdict=None)) == "No case could be measured."


def test_the_checklist_leaves_to_the_author_what_medcam_cannot_know() -> None:
    items = {item.guideline: item for item in checklist(COHORT)}
    for known in ("CLAIM 16", "CLAIM 17", "CLAIM 18"):
        assert items[known].answer == AUTHOR
    assert items["CLAIM 13"].answer.startswith("1 of 14 cases failed")
    assert "undefined in 2 others" in items["CLAIM 13"].answer
    # Numbers that were not checked at their source are marked as such.
    assert {name for name, item in items.items() if item.checked} == {
        "CLAIM 13", "CLAIM 14", "CLAIM 16", "CLAIM 17", "CLAIM 18", "CLAIM 19", "CONSORT-AI 19",
    }  # fmt: skip
    text = paper(COHORT)
    assert "| CLAIM 28 * |" in text
    assert "| CLAIM 13 |" in text


def test_a_tuned_threshold_is_told() -> None:
    other = replace(half_maximum(), name="tuned", tuned_on=frozenset({("case", "x"), ("patient", "y")}))
    with_it = replace(COHORT, settings=replace(COHORT.settings, thresholds=(half_maximum(), other)))
    for given, words in ((COHORT, "no threshold was tuned"), (with_it, "used on none of the cases and patients")):
        (item,) = [item for item in checklist(given) if "kept apart" in item.asks]
        assert item.answer.startswith(AUTHOR)
        assert words in item.answer


def test_markdown_of_the_users_own_is_no_markup() -> None:
    text = paper(replace(COHORT, model="a|b*c*<script>", cases=COHORT.cases))
    assert r"a\|b\*c\*\<script\>" in text
    table = text.split("## Checklist")[1]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {5}


@pytest.mark.parametrize("method", ["expanded", "bca", "percentile"])
def test_every_kind_of_interval_has_words(method: str) -> None:
    assert f"(seed 0; {'percentiles' if method == 'percentile' else 'bias-corrected'}" in methods_paragraph(
        replace(COHORT, resampling=Resampling(replicates=100, method=method))
    )
