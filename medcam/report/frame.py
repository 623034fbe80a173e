"""What all pages have around them: head, title, warning, footer, and the rule that nothing is asked of the outside."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from string import Template


def web_file(name: str) -> str:
    """Return a file of those that pages are made of."""
    return (files("medcam.report") / "web" / name).read_text(encoding="utf-8")


def framed(
    title: str, subtitle: str, *, main: str, footer: str, style: str, script: str, before: str = "", contents: str = "", data: str = ""
) -> str:  # fmt: skip
    """Return a page of one file.

    Parameters
    ----------
    title, subtitle
        Words, which are escaped; all else is HTML.
    style, script
        Names of files in `web`.
    before, contents, data
        What comes before the header, ends it, and stands before the script, for it to read.
    """
    return Template(web_file("frame.html")).substitute(
        title=escape(title), subtitle=escape(subtitle), main=main, footer=footer, style=web_file(style), script=web_file(script),
        before=before, contents=contents, data=data,
    )  # fmt: skip
