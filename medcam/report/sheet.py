"""The white sheet that figures for papers are drawn on: its colours, margins and letters, and its files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medcam.whole_file import whole_file

Align = Literal["left", "center", "right"]
DPI = 150
INK, FAINT, RULE = "#1a1a1a", "#5f5f5f", "#d9d9d9"
# Okabe and Ito's colours, which all kinds of colour vision tell apart; the first is the heatmap's own.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
Dash = str | tuple[int, tuple[int, ...]]
DASHES: tuple[Dash, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 2)))
# Of a journal's full column, in inches; and sizes of letters, in points.
WIDTH, SMALL, PLAIN = 7.2, 7.5, 8.5
_TOP = 0.42


def save_figure(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write a figure as `NAME.png` (150 dpi) and `NAME.pdf` (vectors, text as text); the same figure gives the same bytes.

    Raises
    ------
    OutputError
        If one cannot be written.
    """
    png, pdf = folder / f"{name}.png", folder / f"{name}.pdf"
    with whole_file(png) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png", metadata={"Software": None})
    # Type 42 keeps letters letters, which journals ask for.
    with matplotlib.rc_context({"pdf.fonttype": 42}), whole_file(pdf) as temporary:
        figure.savefig(temporary, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return png, pdf


def svg_bytes(figure: Figure) -> bytes:
    """Return a figure as SVG, letters as outlines, so that it looks the same everywhere; the same figure gives the same bytes."""
    drawn = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "medcam", "svg.fonttype": "path"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return drawn.getvalue()


def sheet(title: str, height: float, *, left: float, right: float, bottom: float = 0.55) -> tuple[Figure, Axes]:
    """Return a white sheet of a column's width; margins in inches."""
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((left / WIDTH, bottom / height, 1 - (left + right) / WIDTH, 1 - (bottom + _TOP) / height))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(FAINT)
    axes.tick_params(labelsize=SMALL, colors=INK)
    written = figure.text(0.1 / WIDTH, 1 - 0.2 / height, title, fontsize=10, fontweight="bold", color=INK, va="center")
    written.set_parse_math(False)
    return figure, axes


def write(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    size: float = SMALL,
    colour: str = INK,
    align: Align = "left",
    weight: str = "normal",
) -> None:
    """Write beside the axes: x as a fraction of their width, y in their own numbers."""
    written = axes.text(
        x,
        y,
        text,
        transform=axes.get_yaxis_transform(),
        fontsize=size,
        color=colour,
        fontweight=weight,
        ha=align,
        va="center",
    )
    # A dollar sign in the name of a class is not mathematics.
    written.set_parse_math(False)


def label(axes: Axes, x: str, y: str) -> None:
    """Name both axes."""
    for written in (axes.set_xlabel(x, fontsize=PLAIN, color=INK), axes.set_ylabel(y, fontsize=PLAIN, color=INK)):
        written.set_parse_math(False)


def legend(axes: Axes) -> None:
    """Tell the lines apart at the right of the axes, where it hides nothing."""
    box = axes.legend(fontsize=SMALL, frameon=False, handlelength=3.2, loc="center left", bbox_to_anchor=(1.02, 0.5))
    for written in box.get_texts():
        written.set_parse_math(False)
