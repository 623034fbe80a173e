"""Pages and figures that people look at, each one file that asks nobody for anything."""

from __future__ import annotations

from pathlib import Path

from medcam.formats.exporting import Export
from medcam.report.page import Case, case_page, write_case_page

__all__ = ["Case", "case_page", "write_case_page", "write_html"]


def write_html(export: Export) -> tuple[Path, ...]:
    """Write a page with an interactive viewer that opens in any browser, offline.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    path = export.path(".html")
    measures = (export.measures,) if export.measures else ()
    write_case_page(Case(export.volume, (export.heatmap,), export.threshold, export.lesion, measures), path)
    return (path,)
