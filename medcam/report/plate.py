"""A figure of a report with its words."""

from __future__ import annotations

from typing import NamedTuple

from matplotlib.figure import Figure


class Plate(NamedTuple):
    """A figure with the name of its files, its title, and what it shows in words, for those who do not see it."""

    name: str
    title: str
    figure: Figure
    words: str
