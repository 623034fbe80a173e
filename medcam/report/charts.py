"""Figures for papers: told apart by colour-blind eyes and in grey print, with the number of patients in each title."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medcam.report.cohort_numbers import number, spoken
from medcam.report.sheet import (
    COLOURS,
    DASHES,
    FAINT,
    INK,
    MARKERS,
    PLAIN,
    RULE,
    SMALL,
    WIDTH,
    label,
    legend,
    sheet,
    write,
)
from medcam.validate.bootstrap import Interval
from medcam.validate.lesions import LUNA_RATES, Froc

_ROW = 0.21
# In inches: a letter of a name, and how far behind the axes values and counts stand.
_LETTER, _VALUE, _COUNT = 0.066, 0.1, 1.85


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, to be drawn on a line of its own. The style tells series apart, 0 being the map under test."""

    label: str
    interval: Interval
    style: int = 0


@dataclass(frozen=True)
class Group:
    """Estimates of one measure, under its name; chance is marked across them unless it is NaN."""

    title: str
    rows: tuple[Estimate, ...]
    unit: str = ""
    chance: float = float("nan")


@dataclass(frozen=True, eq=False)
class Band:
    """A curve over cases: its mean and, unless it is a single line, the limits around it.

    Parameters
    ----------
    x
        Such as the share of voxels that were removed, from 0 to 1.
    middle, low, high
        At each x.
    control
        Whether it knows nothing of the map, such as removal at random: drawn grey and behind.
    """

    x: Float[np.ndarray, " k"]
    middle: Float[np.ndarray, " k"]
    low: Float[np.ndarray, " k"]
    high: Float[np.ndarray, " k"]
    control: bool = False


def forest(groups: Sequence[Group], *, title: str, axis: str) -> Figure:
    """Draw estimates with their intervals, grouped by measure, the numbers beside them; a dashed line marks chance.

    Parameters
    ----------
    groups
        All of one unit.
    title
        Says how many patients and cases there are.
    axis
        What the horizontal axis is.
    """
    count = sum(len(group.rows) + 1.4 for group in groups)
    words = [*(group.title for group in groups), *(row.label for group in groups for row in group.rows)]
    left = max(2.45, 0.2 + _LETTER * max(map(len, words), default=0))
    figure, axes = sheet(title, count * _ROW + 1.0, left=left, right=2.4)
    # Columns beside the axes keep their places, however wide these are.
    inch = 1 / (WIDTH - left - 2.4)
    y = 0.0
    for group in groups:
        write(axes, -0.08 * inch, y, group.title, align="right", weight="bold", size=PLAIN, colour=INK)
        first = y + 0.5
        for row in group.rows:
            y += 1.0
            _draw_estimate(axes, row, y, group.unit, inch)
        if not math.isnan(group.chance):
            (line,) = axes.plot([group.chance] * 2, [first, y + 0.5], color=INK, linewidth=1.1, linestyle=(0, (2, 1.5)))
            line.set_gid("chance")
        y += 1.4
    axes.set_ylim(y - 0.5, -0.9)
    axes.set_xlim(*_range(groups))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    level = next((row.interval.level for group in groups for row in group.rows), 0.95)
    dashed = any(not math.isnan(group.chance) for group in groups)
    label(axes, f"{axis} (point and {100 * level:g} % interval{'; dashed: chance' if dashed else ''})", "")
    write(axes, 1 + _VALUE * inch, -0.62, "value [interval]", size=SMALL, colour=FAINT)
    write(axes, 1 + _COUNT * inch, -0.62, "cases/patients", size=SMALL, colour=FAINT, align="center")
    return figure


def _draw_estimate(axes: Axes, row: Estimate, y: float, unit: str, inch: float) -> None:
    interval, n = row.interval, row.style % len(COLOURS)
    write(axes, -0.08 * inch, y, row.label, align="right", size=SMALL, colour=INK)
    if not (math.isnan(interval.low) or math.isnan(interval.high)):
        (line,) = axes.plot(
            [interval.low, interval.high], [y, y], color=COLOURS[n], linewidth=1.6, solid_capstyle="butt"
        )
        line.set_gid("interval")
    if not math.isnan(interval.value):
        face = COLOURS[n] if n == 0 else "white"
        (point,) = axes.plot(
            [interval.value],
            [y],
            MARKERS[n],
            color=COLOURS[n],
            markerfacecolor=face,
            markersize=5,
            clip_on=False,
            zorder=3,
        )
        point.set_gid("point")
    write(axes, 1 + _VALUE * inch, y, spoken(interval, unit), size=SMALL, colour=INK)
    write(axes, 1 + _COUNT * inch, y, f"{interval.cases}/{interval.patients}", size=SMALL, colour=FAINT, align="center")


def _range(groups: Sequence[Group]) -> tuple[float, float]:
    """Return the axis' limits: from 0 unless something lies below; shares end at 1 where they come near it."""
    values = [v for g in groups for row in g.rows for v in (row.interval.value, row.interval.low, row.interval.high)]
    known = [v for v in (*values, *(g.chance for g in groups)) if not math.isnan(v)] or [0.0, 1.0]
    low, high = min(0.0, *known), max(known)
    share = low == 0 and all(group.unit == "" for group in groups) and 0.55 < high <= 1
    return low * 1.05, 1.0 if share else 1.06 * high or 1.0


def froc_chart(curves: Mapping[str, Froc], *, title: str, rates: Sequence[float] = LUNA_RATES) -> Figure:
    """Draw the free-response curves of maps as steps, with the operating points that their score averages.

    Parameters
    ----------
    curves
        By name, the map under test first.
    rates
        False findings a scan at which the curve is read.
    """
    figure, axes = sheet(title, 3.7, left=0.7, right=2.4)
    most = max([*rates, *(float(c.false_per_scan.max()) for c in curves.values() if c.false_per_scan.size)])
    least = min(rates) / 2
    for n, (name, curve) in enumerate(curves.items()):
        x, y = _steps(curve, least, most)
        (line,) = axes.plot(x, y, drawstyle="steps-post", color=COLOURS[n % 7], linestyle=DASHES[n % 7])
        line.set_linewidth(1.8 if n == 0 else 1.2)
        line.set_label(f"{name} (mean {number(curve.score(rates))})")
        line.set_gid(f"curve {name}")
        read = [curve.at(rate) for rate in rates]
        face = COLOURS[n % 7] if n == 0 else "white"
        (points,) = axes.plot(rates, read, MARKERS[n % 7], color=COLOURS[n % 7], markerfacecolor=face, markersize=4.5)
        points.set_gid(f"points {name}")
    axes.set_xscale("log", base=2)
    axes.set_xlim(least, most)
    axes.set_ylim(0, 1.02)
    axes.set_xticks(list(rates), [f"1/{round(1 / rate)}" if rate < 1 else f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    axes.grid(color=RULE, linewidth=0.6)
    label(axes, "false findings a scan", "share of lesions found")
    legend(axes)
    return figure


def _steps(curve: Froc, least: float, most: float) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Return the corners of the curve between two rates: nothing is found for less than the first point costs."""
    rates, seen = np.asarray(curve.false_per_scan, float), np.asarray(curve.sensitivity, float)
    order = np.lexsort((seen, rates))
    inside = order[rates[order] > least]
    last = seen.max() if seen.size else 0.0
    x = np.concatenate([[least], rates[inside], [most]])
    return x, np.concatenate([[curve.at(least)], seen[inside], [last]])


def curves_chart(curves: Mapping[str, Band], *, title: str, x_axis: str, y_axis: str) -> Figure:
    """Draw curves over cases with their bands, such as deletion and insertion; controls lie grey behind."""
    figure, axes = sheet(title, 3.5, left=0.75, right=2.1)
    ordered = sorted(curves.items(), key=lambda each: not each[1].control)
    tested = 0
    for name, band in ordered:
        colour, dash = (FAINT, (0, (1, 1.5))) if band.control else (COLOURS[tested % 7], DASHES[tested % 7])
        shade = axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
        shade.set_gid(f"band {name}")
        (line,) = axes.plot(band.x, band.middle, color=colour, linestyle=dash, linewidth=1.7, label=name)
        line.set_gid(f"curve {name}")
        tested += not band.control
    axes.set_xlim(min(float(b.x.min()) for b in curves.values()), max(float(b.x.max()) for b in curves.values()))
    axes.grid(color=RULE, linewidth=0.6)
    label(axes, x_axis, y_axis)
    legend(axes)
    return figure


def randomization_chart(
    stages: Sequence[str], similarity: Sequence[Interval], baseline: Interval, *, title: str, measure: str
) -> Figure:
    """Draw how alike maps stay to the learned network's while more and more of it is randomized.

    Parameters
    ----------
    stages
        What was randomized at each step.
    similarity
        To the learned network's map, at each step.
    baseline
        Of maps of different patients: a map that depends on the weights falls below it.
    measure
        Of similarity: 'SSIM', 'Spearman'.
    """
    figure, axes = sheet(title, 3.9, left=0.75, right=2.1, bottom=1.05)
    x = np.arange(len(stages))
    if not math.isnan(baseline.low):
        axes.axhspan(baseline.low, baseline.high, color=FAINT, alpha=0.18, linewidth=0).set_gid("baseline band")
    line = axes.axhline(
        baseline.value, color=FAINT, linestyle=(0, (1, 1.5)), linewidth=1.7, label="maps of different patients"
    )
    line.set_gid("baseline")
    for at, each in zip(x, similarity, strict=True):
        if not (math.isnan(each.low) or math.isnan(each.high)):
            (bar,) = axes.plot([at, at], [each.low, each.high], color=COLOURS[0], linewidth=1.6)
            bar.set_gid("interval")
    (curve,) = axes.plot(
        x, [each.value for each in similarity], "-o", color=COLOURS[0], markersize=5, linewidth=1.2,
        label="randomized weights",
    )  # fmt: skip
    curve.set_gid("curve")
    axes.set_xticks(x, list(stages), rotation=30, ha="right", rotation_mode="anchor")
    for written in axes.get_xticklabels():
        written.set_parse_math(False)
    axes.set_xlim(-0.5, len(stages) - 0.5)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    label(axes, "weights randomized, up to and with this stage", f"similarity ({measure})")
    legend(axes)
    return figure


def sizes_chart(
    sizes: Float[np.ndarray, " n"],
    found: Bool[np.ndarray, " n"],
    classes: Mapping[str, tuple[float, float, Interval]],
    *,
    title: str,
    unit: str,
) -> Figure:
    """Draw which lesions are found by their size: each lesion as a tick above or below, and the share of each class of sizes.

    Parameters
    ----------
    sizes, found
        Of each lesion.
    classes
        By name: the smallest and largest size in it, and the share of lesions that are found.
    unit
        Of the sizes: 'mL', or 'cm²' of a film.
    """
    figure, axes = sheet(title, 3.5, left=0.75, right=2.3)
    for where, level, word in ((found, 1.05, "lesion found"), (~found, -0.05, "lesion missed")):
        colour = COLOURS[0] if level > 1 else COLOURS[1]
        (ticks,) = axes.plot(
            sizes[where], np.full(int(where.sum()), level), "|", color=colour, markersize=9, clip_on=False, label=word
        )
        ticks.set_gid(word)
    for n, (name, (low, high, share)) in enumerate(classes.items()):
        middle = math.sqrt(low * high)
        if not (math.isnan(share.low) or math.isnan(share.high)):
            (bar,) = axes.plot([middle] * 2, [share.low, share.high], color=INK, linewidth=1.4)
            bar.set_gid("interval")
        words = "share found, by class of size" if n == 0 else None
        (point,) = axes.plot(
            [low, middle, high], [share.value] * 3, "-o", color=INK, markersize=5, markevery=[1], label=words
        )
        point.set_gid(f"class {name}")
        axes.annotate(
            f"{number(share.value)}\n(n={share.cases})",
            (middle, share.value),
            (4, 4),
            textcoords="offset points",
            fontsize=SMALL,
            color=INK,
        )
    axes.set_xscale("log")
    axes.set_ylim(-0.12, 1.12)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    label(axes, f"lesion size ({unit}, logarithmic)", "share of lesions found")
    legend(axes)
    return figure
