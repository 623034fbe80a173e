"""Several heatmaps of one image beside each other, for print: the same slices, the same size, and one scale that is named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medcam.errors import UsageError
from medcam.geometry import Grid, index_map
from medcam.render import THRESHOLD, Picture, Plane, display_range, overlay_rgb, planes_of, to_display
from medcam.report.layers import on_grid
from medcam.report.sheet import FAINT, INK, PLAIN, SMALL
from medcam.volume import Heatmap, Source, Volume

_NORMALS = {"axial": "SI", "coronal": "AP", "sagittal": "RL"}
# In inches.
_CELL, _GAP, _LEFT, _RIGHT, _TOP, _BOTTOM, _BETWEEN = 1.75, 0.08, 1.25, 0.95, 0.82, 0.45, 0.06


@dataclass(frozen=True, eq=False)
class _Column:
    plane: Plane
    index: int
    caption: str
    grey: Picture
    lesion: Bool[np.ndarray, "r c"] | None


def comparison(
    heatmaps: Mapping[str, Heatmap],
    volume: Volume,
    *,
    lesion: Volume | None = None,
    title: str,
    threshold: float = THRESHOLD,
    maximum: float | None = None,
) -> Figure:
    """Draw one row for each heatmap and one column for each plane, all through the same place: the first heatmap's peak.

    Parameters
    ----------
    heatmaps
        By what tells them apart, such as the method; on the image's grid.
    lesion
        A mask to outline wherever it is above 0.5, on any grid in the same frame of reference.
    title
        Must name no patient.
    threshold
        The fraction of the scale's top below which no colour is shown.
    maximum
        The relevance at the top of the scale, for maps whose scales compare; each map's own maximum if not given. The figure says which.

    Raises
    ------
    UsageError
        If there is no heatmap, or one does not lie on the image's grid.
    GeometryError
        If one is in another frame of reference.
    """
    _check(heatmaps, volume)
    columns = _columns(next(iter(heatmaps.values())), volume, lesion)
    names = ["image", *heatmaps]
    sizes = [_size_mm(column.grey) for column in columns]
    scale = min(_CELL / max(w for w, _ in sizes), _CELL / max(h for _, h in sizes))
    cell_height = max(h for _, h in sizes) * scale
    widths = [w * scale for w, _ in sizes]
    width = _LEFT + sum(widths) + _GAP * (len(columns) - 1) + _RIGHT
    height = _TOP + len(names) * (cell_height + _BETWEEN) + _BOTTOM
    width = max(width, 6.0)  # the line below the title
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    _say(figure, 0.1, 0.2, title, size=10.0, weight="bold")
    _say(figure, 0.1, 0.42, _scale_words(maximum, threshold, lesion), size=SMALL, colour=FAINT)
    window, top = display_range(volume), _TOP
    for name in names:
        left = _LEFT
        heatmap = heatmaps.get(name)
        _say(figure, _LEFT - 0.28, top + cell_height / 2, _wrapped(name), size=PLAIN, align="right")
        for column, across in zip(columns, widths, strict=True):
            down = column.grey.pixels.shape[0] * column.grey.spacing_mm[0] * scale
            box = (left, top + (cell_height - down) / 2, across, down)
            axes = figure.add_axes(_place(figure, box), label=f"{name} {column.plane}")
            axes.set_axis_off()
            _draw(axes, column, heatmap, volume.grid, window, maximum, threshold)
            if name == "image":
                _say(figure, left, _TOP - 0.12, column.caption, size=SMALL)
                _mark(axes, column, volume.source, scale)
            left += across + _GAP
        top += cell_height + _BETWEEN
    _bar(figure, (left + 0.1, _TOP + cell_height + _BETWEEN, 0.16, cell_height), threshold, maximum)
    _say(figure, 0.1, height - 0.18, "Research use only, not for diagnosis.", size=SMALL, colour=FAINT)
    return figure


def _check(heatmaps: Mapping[str, Heatmap], volume: Volume) -> None:
    if not heatmaps:
        raise UsageError("a comparison needs at least one heatmap")
    for name, each in heatmaps.items():
        index_map(each.grid, volume.grid)  # refuses two frames of reference
        if not each.grid.is_close(volume.grid):
            raise UsageError(
                f"the heatmap '{name}' lies on a grid of shape {each.grid.shape} and the image on another, of shape "
                f"{volume.grid.shape}; give the image that all heatmaps were made for"
            )


def _scale_words(maximum: float | None, threshold: float, lesion: Volume | None) -> str:
    own = maximum is None
    top = "its own maximum (scales of rows do not compare)" if own else f"{maximum:.3g}, the same for all rows"
    return f"Colours from {threshold:g} to 1 of {top}{'' if lesion is None else ' · dashed: lesion mask'}"


def _columns(first: Heatmap, volume: Volume, lesion: Volume | None) -> list[_Column]:
    grid, peak = volume.grid, first.peak()
    centre = peak.voxel if peak else tuple(n // 2 for n in grid.shape)
    mask = None if lesion is None else on_grid(lesion, grid).astype(np.uint8)
    columns = []
    for plane in planes_of(volume):
        axis = 2 if plane == "stored" else _normal(grid, plane)
        grey = to_display(volume.voxels, grid, plane, centre[axis])
        outline = None if mask is None else to_display(mask, grid, plane, centre[axis]).pixels > 0
        columns.append(_Column(plane, centre[axis], _caption(volume, plane, axis, centre), grey, outline))
    return columns


def _normal(grid: Grid, plane: Plane) -> int:
    """Return the array axis that leaves a plane."""
    return next(axis for axis, code in enumerate(grid.axis_codes) if code in _NORMALS[plane])


def _caption(volume: Volume, plane: Plane, axis: int, centre: Sequence[int]) -> str:
    if plane == "stored":
        return "as stored"
    if 1 in volume.grid.shape or not (volume.source.oriented and volume.source.spaced):
        return plane if volume.source.oriented else f"across {'ijk'[axis]}, {centre[axis]}"
    world = {"S": 2, "I": 2, "A": 1, "P": 1, "R": 0, "L": 0}[volume.grid.axis_codes[axis]]
    return f"{plane}, {'xyz'[world]} = {volume.grid.world_mm(np.array(centre))[world]:.1f} mm"


def _size_mm(picture: Picture) -> tuple[float, float]:
    """Return the width and height of a picture."""
    (rows, columns), (down, across) = picture.pixels.shape[:2], picture.spacing_mm
    return columns * across, rows * down


def _draw(
    axes: Axes, column: _Column, heatmap: Heatmap | None, grid: Grid, window: tuple[float, float],
    maximum: float | None, threshold: float,
) -> None:  # fmt: skip
    grey = column.grey.pixels
    shown = np.zeros(grey.shape, np.float32)
    top = 1.0
    if heatmap is not None:
        shown = to_display(heatmap.relevance, grid, column.plane, column.index).pixels
        top = heatmap.maximum if maximum is None else maximum
    pixels = overlay_rgb(grey, shown, window=window, maximum=top, threshold=threshold)
    axes.imshow(pixels, aspect="auto", origin="upper", interpolation="antialiased")
    axes.set_autoscale_on(False)
    if column.lesion is not None and column.lesion.any():
        rows, columns = column.lesion.shape
        # A border of background closes the outline of a lesion that reaches the edge of the picture.
        mask, x, y = np.pad(column.lesion, 1).astype(float), np.arange(-1, columns + 1), np.arange(-1, rows + 1)
        for colour, thickness, dash in (("black", 1.8, "solid"), ("white", 0.9, (0, (3, 2)))):
            axes.contour(x, y, mask, levels=[0.5], colors=[colour], linewidths=thickness, linestyles=[dash])
    if heatmap is not None and not heatmap.maximum > 0:
        _inside(axes, 0.5, 0.06, "no positive evidence", align="center")


def _mark(axes: Axes, column: _Column, source: Source, scale: float) -> None:
    """Write the letters of the patient's sides and draw a scale bar into a picture of the image alone."""
    if source.oriented:
        spots = ((0.04, 0.5, "left"), (0.96, 0.5, "right"), (0.5, 0.94, "center"), (0.5, 0.18, "center"))
        for (x, y, align), letter in zip(spots, column.grey.letters, strict=True):
            _inside(axes, x, y, letter, align=align)
    wide, _ = _size_mm(column.grey)
    decade = 10 ** math.floor(math.log10(0.4 * wide))
    length = max(factor * decade for factor in (1, 2, 5) if factor * decade <= 0.4 * wide)
    for colour, thickness in (("black", 3.6), ("white", 2.0)):
        axes.plot(
            [0.04, 0.04 + length / wide], [0.04, 0.04], color=colour, linewidth=thickness, transform=axes.transAxes
        )
    _inside(axes, 0.06 + length / wide, 0.045, f"{length:g} {source.length_unit}")


def _inside(axes: Axes, x: float, y: float, text: str, *, align: str = "left") -> None:
    from matplotlib.patheffects import withStroke

    written = axes.text(x, y, text, transform=axes.transAxes, fontsize=SMALL, color="white", ha=align, va="center")
    written.set_path_effects([withStroke(linewidth=1.6, foreground="black")])


def _bar(figure: Figure, box: tuple[float, float, float, float], threshold: float, maximum: float | None) -> None:
    # Blended over black to white as in the panels, so that every colour of the figure can be found in the bar.
    share, grey = np.meshgrid(np.linspace(1, 0, 256), np.linspace(0, 1, 32), indexing="ij")
    pixels = overlay_rgb(grey, share, window=(0.0, 1.0), maximum=1.0, threshold=threshold)
    axes = figure.add_axes(_place(figure, box), label="colour bar")
    axes.set_axis_off()
    axes.imshow(pixels, aspect="auto", origin="upper", interpolation="nearest")
    left, top, width, height = box
    for level in (0.0, threshold, 1.0):
        words = f"{level:g}" if maximum is None else f"{level * maximum:.3g}"
        _say(figure, left + width + 0.05, top + (1 - level) * height, words, size=SMALL)
    _say(figure, left, top - 0.14, "relative" if maximum is None else "relevance", size=SMALL)


def _place(figure: Figure, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Return (left, bottom, width, height) as fractions of the page for (left, top, ...) in inches from its top left."""
    page, (left, top, width, height) = figure.get_size_inches(), box
    return left / page[0], 1 - (top + height) / page[1], width / page[0], height / page[1]


def _say(
    figure: Figure, x: float, y: float, text: str, *, size: float, colour: str = INK, align: str = "left", weight: str = "normal"
) -> None:  # fmt: skip
    width, height = figure.get_size_inches()
    written = figure.text(
        x / width, 1 - y / height, text, fontsize=size, color=colour, fontweight=weight, ha=align, va="center"
    )
    # A dollar sign in the name of a class is not mathematics.
    written.set_parse_math(False)


def _wrapped(name: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(name, 15)[:4])
