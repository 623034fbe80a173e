"""All that is written of a cohort: its page, the cases' pages, figures, tables and the words for a paper."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from medcam.cohort.results import Cohort
from medcam.errors import MedcamError
from medcam.report.case_files import case_of
from medcam.report.cohort_numbers import extremes, headline, lines
from medcam.report.cohort_page import CohortView, Sight, write_cohort_page
from medcam.report.montages import comparison
from medcam.report.page import Case, write_case_page
from medcam.report.paper import write_paper
from medcam.report.plates import plates
from medcam.report.sheet import save_figure
from medcam.report.tables import write_tables

# Whose pages are written.
PAGES = ("all", "gallery", "none")
_GALLERY_DPI = 110


class Written(NamedTuple):
    """The files of a report, and sentences on what it could not show."""

    files: tuple[Path, ...]
    notes: tuple[str, ...]


def write_report(
    cohort: Cohort,
    folder: Path,
    *,
    pages: str = "all",
    say: Callable[[str], Any],
) -> Written:
    """Write `report.html`, `figures/`, `paper/` and, of the cases that are asked for, `pages/`.

    A case whose files can no longer be read has no page, which the report tells.

    Parameters
    ----------
    pages
        'all' cases, those of the 'gallery', or 'none'.
    say
        Is told how far it has come.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    named = {case.entry.line: words for case, words in extremes(cohort)}
    chosen = [case for case in cohort.done if pages == "all" or case.entry.line in named]
    links: dict[int, Path] = {}
    sights: dict[int, Sight] = {}
    notes: list[str] = []
    found = lines(cohort)
    for n, case in enumerate(chosen, 1):
        line = case.entry.line
        say(f"page {n} of {len(chosen)}, the case of line {line}")
        try:
            shown = case_of(
                case,
                headline(cohort, found),
                drawn_on=cohort.drawn_on,
                allow_gaps=cohort.allow_gaps,
                regrid=cohort.regrid,
            )
            if line in named:
                sights[line] = Sight(line, named[line], _picture(shown))
            if pages != "none":
                links[line] = Path("pages") / f"line-{line:04d}.html"
                write_case_page(shown, folder / links[line])
        except MedcamError as error:
            links.pop(line, None)
            notes.append(f"The case of line {line} cannot be shown: {error}.")
    say("figures, tables and words")
    drawn = [path for plate in plates(cohort) for path in save_figure(plate.figure, folder / "figures", plate.name)]
    tables = write_tables(cohort, folder / "paper")
    write_paper(cohort, folder / "paper" / "paper.md")
    gallery = [sights[line] for line in named if line in sights]
    write_cohort_page(CohortView(cohort, links, gallery, notes=notes), folder / "report.html")
    words = (folder / "report.html", folder / "paper" / "paper.md")
    return Written((*words, *tables, *drawn, *(folder / link for link in links.values())), tuple(notes))


def _picture(case: Case) -> bytes:
    heatmap, drawn = case.heatmaps[0], io.BytesIO()
    name = heatmap.recipe.method or "heatmap"
    figure = comparison({name: heatmap}, case.volume, lesion=case.lesion, title=case.title, threshold=case.threshold)
    figure.savefig(drawn, dpi=_GALLERY_DPI, format="png", metadata={"Software": None})
    return drawn.getvalue()
