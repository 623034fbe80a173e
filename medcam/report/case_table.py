"""The table of a cohort's cases, in the user's own order; a script of the page sorts and filters it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from medcam.cohort.results import CaseResult, Cohort
from medcam.report.cohort_numbers import headline, lines, number, value_of, words_of

FAILED = "failed"
# More numbers than these and the reason of the verdict fall off the screen; all of them stand in cases.csv.
_MOST_NUMBERS = 5


def case_table(cohort: Cohort, links: Mapping[int, str]) -> str:
    """Return all cases as a table, those that failed among them.

    Parameters
    ----------
    links
        By line of the table of cases: the address of the case's page.
    """
    found = lines(cohort)
    units = {line.row.measure: line.row.unit for line in found}
    measures = [m for m in headline(cohort, found) if any(not math.isnan(value_of(c, m)) for c in cohort.done)]
    measures = measures[:_MOST_NUMBERS]
    words = _words_columns(cohort)
    heads = ["line", "case", *words, *(_head(measure, units[measure]) for measure in measures), "why"]
    numeric = {0, *range(2 + len(words), 2 + len(words) + len(measures))}
    head = "".join(_head_cell(word, n in numeric) for n, word in enumerate(heads))
    rows = []
    for n, case in enumerate(cohort.cases):
        cells = [f"<td>{escape(column[n])}</td>" for column in words.values()]
        cells += [_number_cell(_in_unit(case, measure, units[measure]), units[measure]) for measure in measures]
        rows.append(_row(case, cells, links))
    frame = '<div class="table" tabindex="0" role="region" aria-label="Table of cases"><table id="case-table">'
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f"{_filters(cohort)}{frame}{body}</table></div>"


def _words_columns(cohort: Cohort) -> dict[str, list[str]]:
    """Return what is told of the cases in words, by column; a target or decision only where cases differ in it."""
    columns = {
        "patient": [case.entry.patient for case in cohort.cases],
        "target": [case.target or case.entry.target for case in cohort.cases],
        "decision": [case.decision if case.ok else "" for case in cohort.cases],
        "verdict": [_verdict(case) for case in cohort.cases],
    }
    always = ("patient", "verdict")
    return {name: column for name, column in columns.items() if name in always or len(set(column) - {""}) > 1}


def _filters(cohort: Cohort) -> str:
    kinds = dict.fromkeys(_verdict(case) for case in cohort.cases)
    chosen = "".join(f"<option>{escape(kind)}</option>" for kind in kinds)
    # Hidden until the script runs, for without it they do nothing.
    return (
        '<form id="filters" hidden aria-label="Which cases are shown" onsubmit="return false">'
        '<label>Words <input id="filter" type="search" autocomplete="off"></label>'
        f'<label>Verdict <select id="filter-verdict"><option value="">all</option>{chosen}</select></label>'
        '<output id="filter-told" role="status" aria-live="polite"></output></form>'
    )


def _head(measure: str, unit: str) -> str:
    return words_of(measure) + (f" ({unit})" if unit not in ("", "count") else "")


def _head_cell(word: str, numeric: bool) -> str:
    return f'<th scope="col"{" class=number" if numeric else ""}>{escape(word)}</th>'


def _row(case: CaseResult, cells: Sequence[str], links: Mapping[int, str]) -> str:
    line, name = case.entry.line, escape(case.entry.case)
    linked = f'<a href="{escape(links[line])}">{name}</a>' if line in links else name
    why = case.error if not case.ok else " ".join(case.verdict.because) if case.verdict else ""
    return (
        f'<tr data-verdict="{escape(_verdict(case))}"><td class="number" data-value="{line}">{line}</td>'
        f'<th scope="row">{linked}</th>{"".join(cells)}<td class="why">{escape(why)}</td></tr>'
    )


def _verdict(case: CaseResult) -> str:
    return case.verdict.words if case.ok and case.verdict else FAILED


def _in_unit(case: CaseResult, measure: str, unit: str) -> float:
    """Return a case's number, NaN where it has another unit than the column."""
    found = case.measures.numbers.get(measure) if case.measures else None
    return found.value if found is not None and found.unit == unit else math.nan


def _number_cell(value: float, unit: str) -> str:
    kept = "" if math.isnan(value) else repr(float(value))
    return f'<td class="number" data-value="{kept}">{"-" if math.isnan(value) else escape(number(value, unit))}</td>'
