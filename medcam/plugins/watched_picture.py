"""The picture of a look: each watched image with its map now and at earlier looks, on one scale, in one slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from medcam.geometry import Grid
from medcam.plugins.watched_maps import Maps
from medcam.plugins.watched_numbers import maximum_of, peak_of
from medcam.plugins.watched_scene import Scene
from medcam.render import Picture, Plane, display_range, overlay_rgb, to_display
from medcam.volume import Source, Volume
from medcam.whole_file import whole_file

_INK, _FAINT, _DPI = "#1a1a1a", "#5f5f5f", 110
# In inches.
_CELL, _GAP, _LEFT, _RIGHT, _TOP, _BOTTOM, _LINE, _NARROWEST = 1.55, 0.06, 1.0, 1.0, 0.95, 0.42, 0.2, 5.6
# So many images are drawn; all are measured.
_ROWS = 8


@dataclass(frozen=True, eq=False)
class _Slice:
    """Which slice of a scene is drawn, and how a volume becomes its picture."""

    scene: Scene
    axis: int
    index: int

    def picture(self, values: np.ndarray) -> Picture:
        solid = values.reshape(self.scene.grid.shape)
        if self.scene.placed:
            plane: Plane = "axial" if self.axis == _axial(self.scene.grid) and values.ndim == 3 else "stored"
            return to_display(solid, self.scene.grid, plane, self.index)
        # The first axis of a plain tensor runs downwards, as in torch's pictures.
        return Picture(solid[:, :, self.index], (1.0, 1.0), ("", "", "", ""))

    @property
    def words(self) -> str:
        if self.scene.voxels.ndim == 2:
            return ""
        if not self.scene.placed:
            return f"slice {self.index}"
        middle = [(n - 1) / 2 for n in self.scene.grid.shape]
        middle[self.axis] = self.index
        return f"axial, z = {self.scene.grid.world_mm(np.array(middle))[2]:.1f} mm"


def write_picture(scenes: Sequence[Scene], looks: Sequence[Maps], folder: Path, *, threshold: float | int) -> Path:
    """Write the picture of the last of some looks, whole or not at all, and return its path.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    path = folder / f"picture_{looks[-1].step:08d}.png"
    figure = picture(scenes, looks, threshold=threshold)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, format="png", metadata={"Software": None})
    return path


def picture(scenes: Sequence[Scene], looks: Sequence[Maps], *, threshold: float | int) -> Figure:
    """Draw a row for each image and a column for each look, all columns of a row on one scale, in rising order of steps.

    The slice is the one with most lesion, else that of the last look's peak, else the middle one. A ring marks each look's peak where it
    lies in that slice.
    """
    shown = list(scenes)[:_ROWS]
    maps = [[one.on_input()[n] for one in looks] for n in range(len(shown))]
    slices = [_slice(scene, row[-1]) for scene, row in zip(shown, maps, strict=True)]
    width = max(_NARROWEST, _LEFT + (1 + len(looks)) * (_CELL + _GAP) + _RIGHT)
    tallest = max(_size(cut.picture(cut.scene.voxels))[1] for cut in slices)
    height = _TOP + len(shown) * (tallest + _LINE + _GAP) + _BOTTOM
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    found = looks[-1].relevance
    title = " · ".join(word for word in (found.method, found.layer, found.target) if word)
    _say(figure, 0.1, 0.2, title, size=10.0, weight="bold")
    scale = f"Colours from {threshold:g} to 1 of the number at the right, the same for a whole row · ring: peak"
    outlined = any(scene.lesion is not None for scene in shown)
    _say(figure, 0.1, 0.42, scale + (" · white line: lesion" if outlined else ""), size=7.5, colour=_FAINT)
    for column, head in enumerate(["image", *(f"step {one.step}" for one in looks)]):
        _say(figure, _LEFT + column * (_CELL + _GAP) + _CELL / 2, _TOP - 0.14, head, size=8.5, align="center")
    for n, (cut, row) in enumerate(zip(slices, maps, strict=True)):
        top = _TOP + n * (tallest + _LINE + _GAP)
        _draw_row(figure, (top, tallest), cut, row, [float(one.relevance.scores[n]) for one in looks], threshold)
    more = f"{len(scenes) - _ROWS} more images are in the table. " if len(scenes) > _ROWS else ""
    _say(figure, 0.1, height - 0.17, f"{more}Research use only, not for diagnosis.", size=7.5, colour=_FAINT)
    return figure


def _slice(scene: Scene, relevance: Float32[np.ndarray, "*s"]) -> _Slice:
    axis = _axial(scene.grid) if scene.placed and scene.voxels.ndim == 3 else 2
    if scene.voxels.ndim == 2:
        return _Slice(scene, 2, 0)
    if scene.lesion is not None and scene.lesion.any():
        others = tuple(a for a in range(3) if a != axis)
        return _Slice(scene, axis, int(scene.lesion.sum(axis=others).argmax()))
    peak = peak_of(relevance)
    return _Slice(scene, axis, scene.grid.shape[axis] // 2 if peak is None else peak[axis])


def _axial(grid: Grid) -> int:
    """Return the array axis that runs from feet to head."""
    return next(axis for axis, code in enumerate(grid.axis_codes) if code in "SI")


def _draw_row(
    figure: Figure, place: tuple[float, float], cut: _Slice, row: Sequence[np.ndarray], scores: Sequence[float],
    threshold: float | int,
) -> None:  # fmt: skip
    (top, height), scene = place, cut.scene
    tops = [maximum_of(values) for values in row]
    highest = max((value for value in tops if value > 0), default=0.0)
    grey = cut.picture(scene.voxels)
    window = display_range(Volume(scene.voxels.reshape(scene.grid.shape), scene.grid, "a.u.", Source("array", "")))
    lesion = None if scene.lesion is None else cut.picture(scene.lesion.astype(np.uint8)).pixels
    _say(figure, _LEFT - 0.1, top + height / 2 - 0.1, scene.name, size=8.5, align="right")
    _say(figure, _LEFT - 0.1, top + height / 2 + 0.1, cut.words, size=6.5, colour=_FAINT, align="right")
    for column, values in enumerate([None, *row]):
        left = _LEFT + column * (_CELL + _GAP)
        shown = np.zeros(grey.pixels.shape, np.float32) if values is None else cut.picture(values).pixels
        axes = _axes(figure, left, top + height / 2, grey)
        axes.imshow(
            overlay_rgb(grey.pixels, shown, window=window, maximum=highest, threshold=threshold), aspect="auto",
            origin="upper", interpolation="nearest",
        )  # fmt: skip
        axes.set_autoscale_on(False)
        if lesion is not None and lesion.any():
            inside = np.pad(lesion, 1).astype(float)
            x, y = (np.arange(-1, n - 1) for n in reversed(inside.shape))
            axes.contour(x, y, inside, levels=[0.5], colors=["white"], linewidths=[0.9])
        if values is None:
            _letters(axes, grey)
        else:
            _mark_peak(axes, cut, values)
            words = f"{'nothing for it · ' if not tops[column - 1] > 0 else ''}score {scores[column - 1]:.3g}"
            _say(figure, left + _CELL / 2, top + height + 0.11, words, size=7.0, colour=_FAINT, align="center")
    _bar(figure, _LEFT + (1 + len(row)) * (_CELL + _GAP) + 0.05, place, highest, threshold)


def _mark_peak(axes: Axes, cut: _Slice, values: np.ndarray) -> None:
    peak = peak_of(values)
    if peak is None or (*peak, 0)[cut.axis] != cut.index:
        return
    # The picture of the peak alone says where it is drawn, whichever way the picture is turned.
    alone = np.zeros(values.shape, np.uint8)
    alone[peak] = 1
    down, across = np.argwhere(cut.picture(alone).pixels)[0]
    for colour, thickness in (("black", 2.4), ("white", 1.2)):
        axes.plot(across, down, marker="o", markersize=9, mfc="none", mec=colour, mew=thickness)


def _letters(axes: Axes, grey: Picture) -> None:
    spots = ((0.05, 0.5), (0.95, 0.5), (0.5, 0.94), (0.5, 0.06))
    for (x, y), letter in zip(spots, grey.letters, strict=True):
        written = axes.text(
            x, y, letter, transform=axes.transAxes, fontsize=7.5, color="white", ha="center", va="center"
        )
        written.set_path_effects([withStroke(linewidth=1.6, foreground="black")])


def _bar(figure: Figure, left: float, place: tuple[float, float], highest: float, threshold: float | int) -> None:
    top, height = place
    if not highest > 0:
        return
    share, grey = np.meshgrid(np.linspace(1, 0, 128), np.linspace(0, 1, 16), indexing="ij")
    pixels = overlay_rgb(grey, share, window=(0.0, 1.0), maximum=1.0, threshold=threshold)
    axes = _box(figure, left, top, 0.12, height)
    axes.imshow(pixels, aspect="auto", origin="upper", interpolation="nearest")
    for level in (threshold, 1.0):
        _say(figure, left + 0.17, top + (1 - level) * height + 0.05, f"{level * highest:.2g}", size=7.5)


def _axes(figure: Figure, left: float, middle: float, picture: Picture) -> Axes:
    """Return axes in the middle of a cell, in the picture's own proportions."""
    wide, high = _size(picture)
    return _box(figure, left + (_CELL - wide) / 2, middle - high / 2, wide, high)


def _size(picture: Picture) -> tuple[float, float]:
    """Return the width and height of a picture that fills a cell, in inches."""
    (rows, columns), (down, across) = picture.pixels.shape[:2], picture.spacing_mm
    scale = _CELL / max(columns * across, rows * down)
    return columns * across * scale, rows * down * scale


def _box(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    page = figure.get_size_inches()
    axes = figure.add_axes((left / page[0], 1 - (top + height) / page[1], width / page[0], height / page[1]))
    axes.set_axis_off()
    return axes


def _say(
    figure: Figure, x: float, y: float, text: str, *, size: float, colour: str = _INK, align: str = "left", weight: str = "normal"
) -> None:  # fmt: skip
    width, height = figure.get_size_inches()
    written = figure.text(
        x / width, 1 - y / height, text, fontsize=size, color=colour, fontweight=weight, ha=align, va="center"
    )
    # A dollar sign in the name of a class is not mathematics.
    written.set_parse_math(False)
