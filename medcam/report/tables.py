"""Tables of a cohort for papers and spreadsheets: measures by map, each number with what stands beside it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from medcam.cohort.results import HEATMAP, Cohort
from medcam.report.cohort_numbers import (
    ALL,
    Line,
    counted_cohort,
    headline,
    lines,
    number,
    p_value,
    spoken,
    trial_lines,
)
from medcam.whole_file import whole_file

SUMMARY_COLUMNS = (
    "measure", "unit", "map", "stratum", "value", "low", "high", "level", "method", "cases", "patients", "undefined", "chance", "chance_is",
    "design_effect", "difference", "difference_low", "difference_high", "p", "holm_p", "oracle",
)  # fmt: skip
# What TeX takes for commands.
_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedbl{}", "²": r"\textsuperscript{2}",
}  # fmt: skip


def write_tables(cohort: Cohort, folder: Path) -> tuple[Path, ...]:
    """Write `table.csv` (every measure, map and stratum, with what stands beside it) and `table.tex` (the few for a paper).

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    texts = {"table.csv": summary_csv(cohort), "table.tex": summary_latex(cohort)}
    for name, text in texts.items():
        with whole_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return tuple(folder / name for name in texts)


def summary_csv(cohort: Cohort) -> str:
    """Return all lines of all strata as CSV; numbers in full, an empty field where one is not defined."""
    strata = dict.fromkeys([ALL, *(row.stratum for row in cohort.summary)])
    found = [line for stratum in strata for line in lines(cohort, stratum)]
    return _csv(SUMMARY_COLUMNS, [_summary_fields(line) for line in (*found, *trial_lines(cohort))])


def _summary_fields(line: Line) -> list[str]:
    row, interval, against = line.row, line.row.interval, line.against
    apart = [math.nan] * 5
    if against is not None:
        over = against.difference.interval
        apart = [over.value, over.low, over.high, against.p, against.holm]
    return [
        row.measure, row.unit, row.map, row.stratum, *map(_field, (interval.value, interval.low, interval.high)), f"{interval.level:g}",
        interval.method, str(interval.cases), str(interval.patients), str(interval.undefined), _field(line.chance), line.chance_is,
        *map(_field, (row.effect.effect, *apart)), "yes" if row.oracle else "",
    ]  # fmt: skip


def summary_latex(cohort: Cohort, measures: Sequence[str] | None = None) -> str:
    """Return the table of a paper, for LaTeX with the package booktabs: measures by map, their baselines below them.

    Parameters
    ----------
    measures
        Which, by name; the few of `headline` if not given. Oracles are never among them.
    """
    found = lines(cohort)
    chosen = headline(cohort, found) if measures is None else tuple(measures)
    baselines = dict.fromkeys(line.row.map for line in found if line.row.map != HEATMAP)
    level = f"{100 * cohort.resampling.level:g}"
    body = []
    for measure in chosen:
        rows = [line for line in found if line.row.measure == measure and not line.row.oracle]
        body += [_latex_row(line, n == 0) for n, line in enumerate(rows)]
        body += [r"\addlinespace"] if rows and baselines else []
    caption = (
        f"Localization in {counted_cohort(cohort)}: mean over cases with its {level} % interval from {cohort.resampling.replicates} "
        "replicates in which patients were drawn. Chance: the same measure with the lesion at random other places or, where that is not "
        "known, of a map that is the same everywhere. Holm: p values of the heatmap against each baseline in the primary measure."
    )
    return "\n".join([
        r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\caption{{{latex(caption)}}}", r"\begin{tabular}{llrrrrr}",
        r"\toprule", rf"Measure & Map & Mean [{level}\,\% interval] & Cases/patients & Undefined & Chance & Holm $p$ \\", r"\midrule",
        *(body[:-1] if body and body[-1] == r"\addlinespace" else body), r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip


def _latex_row(line: Line, first: bool) -> str:
    interval, unit = line.row.interval, line.row.unit
    adjusted = math.nan if line.against is None else line.against.holm
    p = p_value(adjusted)
    cells = [
        line.name if first else "",
        line.row.map,
        spoken(interval, unit),
        f"{interval.cases}/{interval.patients}",
        str(interval.undefined),
        "" if math.isnan(line.chance) else number(line.chance, unit),
    ]
    # A p below a limit is mathematics; all else is words.
    return " & ".join([*map(latex, cells), p.replace("< ", "$<$\\,")]) + r" \\"


def latex(text: str) -> str:
    """Return a text that LaTeX prints as it is."""
    return "".join(_ESCAPES.get(letter, letter) for letter in text)


def _csv(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()


def _field(value: float) -> str:
    return "" if math.isnan(value) else repr(float(value))
