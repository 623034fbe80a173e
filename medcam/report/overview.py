"""One page for all cases of a cohort, measured or not: what was explained of each, how sure the network was, and where its files are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from medcam import __version__
from medcam.cohort.manifest import DONE, Row
from medcam.report.frame import framed
from medcam.whole_file import whole_file

OVERVIEW = "overview.html"
_HEADS = ("line", "case", "patient", "class", "probability", "score", "peak", "verdict", "files", "to know")
_NUMERIC = ("line", "patient", "probability", "score")
# What people open, by how its name ends, and how it is called.
_OPENED = ((".png", "picture"), (".html", "page"), ("_sc.dcm", "DICOM"), (".nii.gz", "heatmap"), (".nrrd", "heatmap"))
_NOT_OPENED = ("_label.nii.gz", "_mask.nii.gz", ".seg.nrrd")


def write_overview(rows: Iterable[Row], folder: Path, *, title: str) -> Path:
    """Write overview.html into a cohort's folder, and return it. The same cohort gives the same page.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    path = folder / OVERVIEW
    page = overview_page(sorted(rows, key=lambda row: (row.line, row.id)), title=title)
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def overview_page(rows: Sequence[Row], *, title: str) -> str:
    """Return the page of all cases, in their order. Files are named relative to the cohort's folder."""
    patients, failed = len({row.patient for row in rows}), sum(row.failed for row in rows)
    heads = "".join(
        f'<th scope="col"{" class=number" if name in _NUMERIC else ""}>{escape(name)}</th>' for name in _HEADS
    )
    frame = '<div class="table" tabindex="0" role="region" aria-label="Table of cases"><table id="case-table">'
    body = "".join(_row(row) for row in rows)
    return framed(
        title,
        f"{len(rows)} cases of {patients} patients" + (f"; {failed} failed" if failed else ""),
        main=f"{_filters(rows)}{frame}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>",
        footer=f"<p>Made by medcam {escape(__version__)}. This page asks nobody for anything.</p>",
        style="cohort.css",
        script="cohort.js",
    )


def _filters(rows: Sequence[Row]) -> str:
    # Hidden until the script runs, for without it they do nothing.
    states = "".join(f"<option>{escape(state)}</option>" for state in dict.fromkeys(row.state for row in rows))
    return (
        '<form id="filters" hidden aria-label="Which cases are shown" onsubmit="return false">'
        '<label>Words <input id="filter" type="search" autocomplete="off"></label>'
        f'<label>State <select id="filter-verdict"><option value="">all</option>{states}</select></label>'
        '<output id="filter-told" role="status" aria-live="polite"></output></form>'
    )


def _row(row: Row) -> str:
    answer = row.answer
    why = row.error if row.state != DONE else answer.get("notes", "")
    cells = [
        _number(row.line, "d"),
        f'<th scope="row">{escape(row.name)}</th>',
        _number(row.patient, "d"),
        _words(answer.get("class") or row.target),
        _number(answer.get("probability"), ".3f"),
        _number(answer.get("score"), ".4g"),
        _words(answer.get("peak", "")),
        _words(answer.get("verdict", "") if row.state == DONE else row.state),
        f"<td>{_links(row)}</td>",
        f'<td class="why">{escape(str(why))}</td>',
    ]
    return f'<tr data-verdict="{escape(row.state)}">{"".join(cells)}</tr>'


def _links(row: Row) -> str:
    found: dict[str, str] = {}
    for ending, words in _OPENED:
        for name in row.files:
            if name.endswith(ending) and not name.endswith(_NOT_OPENED):
                found.setdefault(words, name)
    # A name with a colon must not look like a scheme.
    return " ".join(f'<a href="./{escape(quote(name))}">{words}</a>' for words, name in found.items())


def _words(text: object) -> str:
    return f"<td>{escape(str(text))}</td>"


def _number(value: object, form: str) -> str:
    known = isinstance(value, (int, float)) and not math.isnan(value)
    shown = format(value, form) if known else "-"
    return f'<td class="number" data-value="{value if known else ""}">{shown}</td>'
