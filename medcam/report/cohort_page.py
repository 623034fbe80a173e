"""One self-contained HTML page for a cohort: verdict, numbers beside their baselines, figures, all cases, without any request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from urllib.parse import quote

from medcam import __version__
from medcam.cohort.results import Cohort
from medcam.report.case_table import case_table
from medcam.report.cohort_numbers import counted_cohort
from medcam.report.cohort_sections import (
    figures_section,
    gallery_section,
    making_section,
    notes_section,
    summary_section,
    verdict_section,
)
from medcam.report.frame import framed
from medcam.report.plate import Plate
from medcam.report.plates import plates
from medcam.whole_file import whole_file


@dataclass(frozen=True, eq=False)
class Sight:
    """A case as the gallery shows it.

    Parameters
    ----------
    line
        Of the table of cases.
    words
        Which it is: 'best', 'median', 'worst', with its number.
    png
        The picture.
    """

    line: int
    words: str
    png: bytes = field(repr=False)


@dataclass(frozen=True, eq=False)
class CohortView:
    """What the page of a cohort shows.

    Parameters
    ----------
    links
        By line of the table of cases: its page, relative to this page's folder.
    gallery
        Pictures of some cases.
    more
        Further figures, such as deletion or randomization curves; drawn after those that the cohort's own numbers give.
    notes
        Sentences besides the cohort's own.
    """

    cohort: Cohort
    links: Mapping[int, Path] = field(default_factory=dict)
    gallery: Sequence[Sight] = ()
    more: Sequence[Plate] = ()
    notes: Sequence[str] = ()


def write_cohort_page(view: CohortView, path: Path) -> None:
    """Write the page of a cohort to a file, whole or not at all.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    page = cohort_page(view)
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def cohort_page(view: CohortView) -> str:
    """Return the page of a cohort. The same cohort gives the same page."""
    cohort = view.cohort
    sections = [
        ("verdict", "Verdict", verdict_section(cohort)),
        ("numbers", "Numbers", summary_section(cohort)),
        ("figures", "Figures", figures_section((*plates(cohort), *view.more))),
        ("cases", "Cases", case_table(cohort, {line: _href(path) for line, path in view.links.items()})),
        ("gallery", "Gallery", gallery_section([(s.line, s.words, s.png) for s in view.gallery])),
        ("notes", "To know about these results", notes_section(cohort, view.notes)),
        ("making", "How it was made", making_section(cohort)),
    ]
    shown = [(name, title, text) for name, title, text in sections if text]
    contents = "".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title, _ in shown)
    return framed(
        " · ".join(word for word in ("Cohort", cohort.method, cohort.model) if word),
        f"{counted_cohort(cohort)}; {len(cohort.cases)} in the table",
        main="\n".join(_section(*each) for each in shown),
        footer=f"<p>Made by medcam {escape(__version__)}. This page asks nobody for anything.</p>",
        style="cohort.css",
        script="cohort.js",
        before='<a class="skip" href="#cases">Skip to the table of cases</a>\n',
        contents=f'<nav aria-label="Parts of this page"><ul>{contents}</ul></nav>',
    )


def _section(name: str, title: str, text: str) -> str:
    head = f'<h2 id="{name}-title">{escape(title)}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title" tabindex="-1">{head}\n{text}</section>'


def _href(path: Path) -> str:
    """Return a relative address: a name with a colon must not look like a scheme."""
    return "./" + quote(path.as_posix())
