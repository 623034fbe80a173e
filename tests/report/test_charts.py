"""Figures show the numbers: positions are read back from what was drawn."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from report.cohorts import cohort

from medcam.cohort.results import HEATMAP
from medcam.report.charts import (
    Band,
    Estimate,
    Group,
    curves_chart,
    forest,
    froc_chart,
    randomization_chart,
    sizes_chart,
)
from medcam.report.cohort_numbers import headline, lines
from medcam.report.plates import plates
from medcam.report.sheet import COLOURS, DASHES, DPI, MARKERS, save_figure, svg_bytes
from medcam.validate.bootstrap import Interval
from medcam.validate.lesions import LUNA_RATES, Findings, froc

COHORT = cohort()
NAN = math.nan


def interval(value: float, low: float = NAN, high: float = NAN) -> Interval:
    return Interval(value, low, high, 0.95, "expanded", 24, 12)


def drawn(figure: Figure, gid: str) -> list[tuple[np.ndarray, np.ndarray]]:
    found = [line for axes in figure.axes for line in axes.lines if line.get_gid() == gid]
    return [(np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)) for line in found]


def words_of(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts] + [text.get_text() for text in figure.texts]


def test_points_and_intervals_of_a_forest_lie_where_the_numbers_say() -> None:
    rows = [interval(0.5, 0.31, 0.66), interval(0.2, 0.1, 0.25), interval(0.9)]
    groups = [
        Group("first", (Estimate("heatmap", rows[0]), Estimate("centre", rows[1], 1)), chance=0.07),
        Group("second $x$", (Estimate("heatmap", rows[2]),)),
    ]
    figure = forest(groups, title="24 cases", axis="share")
    points = drawn(figure, "point")
    assert [float(x[0]) for x, _ in points] == [0.5, 0.2, 0.9]
    heights = [float(y[0]) for _, y in points]
    assert heights == sorted(heights)
    # Of the third there is no interval, and none is drawn.
    assert [x.tolist() for x, _ in drawn(figure, "interval")] == [[0.31, 0.66], [0.1, 0.25]]
    assert [y.tolist() for _, y in drawn(figure, "interval")] == [[y, y] for y in heights[:2]]
    ((x, y),) = drawn(figure, "chance")
    assert x.tolist() == [0.07, 0.07]
    assert y[0] < heights[0] < heights[1] < y[1] < heights[2]
    words = words_of(figure)
    assert {"0.50 [0.31, 0.66]", "0.90", "24/12", "second $x$", "24 cases"} <= set(words)
    top, bottom = figure.axes[0].get_ylim()[1], figure.axes[0].get_ylim()[0]
    assert top < heights[0] < bottom


def test_an_undefined_number_is_said_and_not_drawn() -> None:
    figure = forest([Group("one", (Estimate("heatmap", interval(NAN)),))], title="t", axis="share")
    assert drawn(figure, "point") == []
    assert "not defined" in words_of(figure)


def test_a_forest_below_zero_shows_all_of_it() -> None:
    figure = forest([Group("one", (Estimate("a", interval(-3.0, -4.5, 1.0)),))], title="t", axis="score")
    low, high = figure.axes[0].get_xlim()
    assert low < -4.5
    assert high > 1.0


def test_operating_points_are_those_of_the_curve() -> None:
    curve = froc([Findings((0.9, 0.4), (0.5, 0.1)), Findings((float("-inf"),), (0.7,)), Findings((), ())])
    figure = froc_chart({"heatmap": curve}, title="t")
    ((x, y),) = drawn(figure, "points heatmap")
    assert x.tolist() == list(LUNA_RATES)
    assert y.tolist() == [curve.at(rate) for rate in LUNA_RATES]
    # The line is a step whose height at any rate is what the curve gives there.
    ((x, y),) = drawn(figure, "curve heatmap")
    for rate in np.linspace(0.07, 7.9, 40):
        assert y[np.searchsorted(x, rate, side="right") - 1] == pytest.approx(curve.at(rate))


def test_the_froc_of_a_map_without_findings_is_a_line_at_nothing() -> None:
    curve = froc([Findings((float("-inf"),), ()), Findings((float("-inf"),), ())])
    ((_, y),) = drawn(froc_chart({"heatmap": curve}, title="t"), "curve heatmap")
    assert set(y.tolist()) == {0.0}


def test_deletion_lies_above_grey_controls() -> None:
    x = np.linspace(0, 1, 5)
    bands = {"grad-cam": Band(x, 1 - x, 0.9 - x, 1.1 - x), "random": Band(x, 1 - x / 2, 0.8 - x / 2, 1.2 - x / 2, True)}
    figure = curves_chart(bands, title="t", x_axis="share removed", y_axis="score")
    lines_ = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines_) == ["random", "grad-cam"]
    assert len(set(to_rgb(lines_["random"].get_color()))) == 1
    np.testing.assert_allclose(lines_["grad-cam"].get_ydata(), 1 - x)
    shade = next(c for c in figure.axes[0].collections if c.get_gid() == "band random")
    heights = shade.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(0.3)
    assert heights.max() == pytest.approx(1.2)


def test_randomization_shows_the_line_of_random_pairs() -> None:
    steps = [interval(0.9, 0.8, 0.95), interval(0.2, 0.1, 0.3)]
    figure = randomization_chart(["a", "$b$"], steps, interval(0.4, 0.35, 0.45), title="t", measure="SSIM")
    ((x, y),) = drawn(figure, "curve")
    assert (x.tolist(), y.tolist()) == ([0, 1], [0.9, 0.2])
    assert [y.tolist() for _, y in drawn(figure, "interval")] == [[0.8, 0.95], [0.1, 0.3]]
    ((_, y),) = drawn(figure, "baseline")
    assert set(y) == {0.4}
    figure.canvas.draw()
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["a", "$b$"]


def test_each_lesion_and_each_class_of_sizes_is_drawn() -> None:
    sizes, found = np.array([0.05, 0.4, 0.8, 20.0]), np.array([False, True, False, True])
    classes = {"small": (0.05, 0.05, interval(0.0)), "middle": (0.4, 0.8, interval(0.5, 0.1, 0.9))}
    figure = sizes_chart(sizes, found, classes, title="t", unit="mL")
    ((hit, _),) = drawn(figure, "lesion found")
    ((missed, _),) = drawn(figure, "lesion missed")
    assert (hit.tolist(), missed.tolist()) == ([0.4, 20.0], [0.05, 0.8])
    ((x, y),) = drawn(figure, "class middle")
    assert x.tolist() == pytest.approx([0.4, math.sqrt(0.32), 0.8])
    assert set(y) == {0.5}


def test_the_charts_of_a_cohort_hold_its_summary() -> None:
    by_name = {plate.name: plate for plate in plates(COHORT)}
    assert list(by_name) == ["forest_localization", "forest_distances", "froc", "lesion_sizes", "forest_trials_shares"]
    found = lines(COHORT)
    chosen = [line for line in found if line.row.measure in headline(COHORT, found)]
    values = {line.row.interval.value for line in chosen if line.row.unit == ""}
    points = drawn(by_name["forest_localization"].figure, "point")
    assert {float(x[0]) for x, _ in points} == values
    for plate in by_name.values():
        assert "13 cases of 7 patients" in words_of(plate.figure)[-1]
        assert plate.words.endswith(".")
    own = next(line for line in chosen if line.row.map == HEATMAP and line.row.measure == "hit")
    assert f"{own.row.interval.value:.2f}" in by_name["forest_localization"].words


def test_series_differ_in_marker_dash_and_grey() -> None:
    assert len(set(MARKERS)) == len(set(map(str, DASHES))) == len(set(COLOURS)) == 7
    grey = sorted(float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114))) for colour in COLOURS[:3])
    assert min(np.diff(grey)) > 0.03


def test_a_figure_is_written_as_picture_and_vectors_the_same_each_time(tmp_path: Path) -> None:
    def made(folder: Path) -> list[bytes]:
        figure = forest([Group("g", (Estimate("a", interval(0.5, 0.4, 0.6)),))], title="title", axis="share")
        return [path.read_bytes() for path in save_figure(figure, folder, "one")] + [svg_bytes(figure)]

    first, second = made(tmp_path / "a"), made(tmp_path / "b")
    assert first == second
    with Image.open(tmp_path / "a" / "one.png") as image:
        assert image.size[0] == round(7.2 * DPI)
        assert image.info["dpi"][0] == pytest.approx(DPI, abs=0.5)
    assert first[1].startswith(b"%PDF")
    assert b"/Subtype /Image" not in first[1]
    # Letters stay letters: the font is embedded as TrueType.
    assert b"/FontFile2" in first[1]
