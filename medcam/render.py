"""Relevance into colours and figures: the only normalisation for display in medcam.

Every picture of a slice comes from `to_display`, which turns the array and never the axes of a figure: flipped axis
limits have put a finding on the wrong side of the patient before.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Num, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from medcam.errors import UsageError
from medcam.geometry import Grid, index_map, resample
from medcam.volume import Heatmap, Source, Volume
from medcam.whole_file import whole_file

Plane = Literal["axial", "coronal", "sagittal", "stored"]
_Box = tuple[float, float, float, float]
_Align = Literal["left", "center", "right"]

COLOURS = "plasma"
"""matplotlib's and NiiVue's name of the colours of relevance: perceptually uniform, and never grey like anatomy."""
THRESHOLD = 0.3
"""The fraction of the maximum below which no colour is shown, unless told otherwise."""
OPACITY = (0.45, 0.85)
_SOFT_TISSUE_HU = (-160.0, 240.0)

# Patient directions that a picture's columns and rows grow towards, by the radiological convention.
_LAYOUT = {"axial": ("L", "P"), "coronal": ("L", "I"), "sagittal": ("P", "I")}
_OPPOSITE = {"L": "R", "R": "L", "P": "A", "A": "P", "I": "S", "S": "I"}
_WORLD_AXIS = {"L": 0, "R": 0, "P": 1, "A": 1, "I": 2, "S": 2}

_BACKGROUND, _CELL, _INK, _FAINT, _WARNING = "#15171c", "#000000", "#f2f2f2", "#a9afba", "#ffc857"
# Sizes of a figure, in inches.
_PAD, _GAP, _MARGIN, _CAPTION, _HEADER, _LINE, _FOOTER, _BAR = 0.27, 0.14, 0.25, 0.3, 0.78, 0.18, 0.3, 1.3
_WIDEST, _TALLEST_ROW, _SMALLEST = 11.0, 3.6, 2.4


class Picture(NamedTuple):
    """A slice as it is shown: rows grow downwards, columns to the right; letters at the left, right, top and bottom."""

    pixels: np.ndarray
    spacing_mm: tuple[float, float]
    letters: tuple[str, str, str, str]


@dataclass(frozen=True)
class _View:
    normal: int
    row: int
    column: int
    row_flipped: bool
    column_flipped: bool
    letters: tuple[str, str, str, str]

    def place(self, index: Sequence[int], shape: Sequence[int]) -> tuple[int, int]:
        """Return the row and column of the picture that show the voxel `index`."""
        row, column = index[self.row], index[self.column]
        last_row, last_column = shape[self.row] - 1, shape[self.column] - 1
        return last_row - row if self.row_flipped else row, last_column - column if self.column_flipped else column


def _view(grid: Grid, plane: Plane) -> _View:
    codes = grid.axis_codes
    if plane == "stored":
        column, row, flips, right, bottom = 0, 1, (False, False), codes[0], codes[1]
    else:
        right, bottom = _LAYOUT[plane]
        axis_of = {_WORLD_AXIS[code]: axis for axis, code in enumerate(codes)}
        column, row = axis_of[_WORLD_AXIS[right]], axis_of[_WORLD_AXIS[bottom]]
        flips = (codes[row] != bottom, codes[column] != right)
    return _View(3 - row - column, row, column, *flips, (_OPPOSITE[right], right, _OPPOSITE[bottom], bottom))


def to_display(values: Num[np.ndarray, "i j k *c"], grid: Grid, plane: Plane, index: int) -> Picture:
    """Turn one slice of a volume into a picture: the one way from voxels to pixels.

    Parameters
    ----------
    values
        Voxels in stored axes, with or without colour channels behind them.
    plane
        'axial' (anterior on top) and 'coronal' (superior on top) have the patient's right on the left, 'sagittal'
        (superior on top) has anterior on the left; on an oblique grid they are the grid's own nearest planes.
        'stored' shows rows j downwards and columns i to the right.
    index
        Which slice, counted along the array axis that leaves the plane.

    Returns
    -------
    The pixels, a view of `values`; the distances between rows and between columns; the letters of the patient's sides.
    """
    view = _view(grid, plane)
    pixels = np.moveaxis(values, (view.row, view.column, view.normal), (0, 1, 2))[:, :, index]
    pixels = pixels[:: -1 if view.row_flipped else 1, :: -1 if view.column_flipped else 1]
    return Picture(pixels, (grid.spacing_mm[view.row], grid.spacing_mm[view.column]), view.letters)


def display_range(volume: Volume) -> tuple[float, float]:
    """Return the values that are shown black and white.

    The file's own window, if it shows anything of this image; else soft tissue for a CT that has some; else nearly the
    whole range above the smallest value, which is taken for background: a few bright voxels do not darken the rest.
    """
    # Every n-th voxel is plenty; the odd step does not fall in with the length of a row.
    sample = volume.voxels.ravel(order="K")[:: max(1, volume.voxels.size // 1_000_000) | 1]
    sample = sample[np.isfinite(sample)].astype(np.float64)
    if not sample.size:
        return 0.0, 1.0
    body = sample[sample > sample.min()]
    if volume.source.window is not None:
        centre, width = volume.source.window
        window = (centre - width / 2, centre + width / 2)
        if math.isfinite(centre) and math.isfinite(width) and width > 0 and _share(body, window) > 0.01:
            return window
    if volume.unit == "HU" and _share(body, _SOFT_TISSUE_HU) > 0.05:
        return _SOFT_TISSUE_HU
    low, high = np.percentile(body, (0.5, 99.5)) if body.size else (0.0, 0.0)
    if not low < high:
        low, high = sample.min(), sample.max()
    return (float(low), float(high)) if low < high else (float(low) - 0.5, float(low) + 0.5)


def _share(values: np.ndarray, window: tuple[float, float]) -> float:
    return float(np.mean((values >= window[0]) & (values <= window[1]))) if values.size else 0.0


def overlay_rgb(
    image: Num[np.ndarray, "*s"],
    relevance: Num[np.ndarray, "..."],
    *,
    window: tuple[float, float],
    maximum: float | None = None,
    threshold: float = THRESHOLD,
) -> UInt8[np.ndarray, "*s 3"]:
    """Blend the colours of relevance into a grey image; both become more opaque and brighter with the relevance.

    Parameters
    ----------
    window
        The values of the image that are shown black and white.
    maximum
        The relevance that gets the brightest colour; the largest one present if not given. Unless positive, all stays
        grey.
    threshold
        Relevance below this fraction of the maximum shows no colour, and neither do NaN and negative relevance.

    Raises
    ------
    UsageError
        If the shapes differ, or the threshold is not above 0 and below 1.
    """
    if np.shape(image) != np.shape(relevance):
        raise UsageError(f"an image of shape {np.shape(image)} cannot wear relevance of shape {np.shape(relevance)}")
    if not 0 < threshold < 1:
        raise UsageError(f"the threshold is a fraction of the maximum, above 0 and below 1, not {threshold}")
    if maximum is None:
        maximum = float(np.nanmax(relevance, initial=-np.inf, where=np.isfinite(relevance)))
    result = np.empty((*np.shape(image), 3), np.uint8)
    colours = 255 * matplotlib.colormaps[COLOURS](np.linspace(0, 1, 256))[:, :3]
    faintest, strongest = OPACITY
    # Slab by slice, so that the float copies stay small.
    for index in np.ndindex(np.shape(image)[:1]) if np.ndim(image) > 2 else [()]:
        grey = np.nan_to_num((np.asarray(image[index], np.float32) - window[0]) / (window[1] - window[0]), nan=0.0)
        result[index] = np.rint(255 * grey.clip(0, 1))[..., None]
        if not (math.isfinite(maximum) and maximum > 0):
            continue
        share = np.nan_to_num(np.asarray(relevance[index], np.float32) / maximum, nan=0.0)
        hot = share >= threshold
        if hot.any():
            part = share[hot].clip(0, 1)
            opacity = (faintest + (strongest - faintest) * (part - threshold) / (1 - threshold))[:, None]
            blended = opacity * colours[np.rint(255 * part).astype(int)] + (1 - opacity) * result[index][hot]
            result[index][hot] = np.rint(blended)
    return result


def save_png(figure: Figure, path: Path, *, dpi: int = 120) -> None:
    """Write a figure to a PNG file, whole or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")


@dataclass(frozen=True)
class _Panel:
    plane: Plane
    caption: str
    plain: Picture
    overlay: np.ndarray
    lesion: np.ndarray | None
    peak: tuple[int, int] | None

    @property
    def size_mm(self) -> tuple[float, float]:
        """Width and height of the picture."""
        (rows, columns), (down, across) = self.plain.pixels.shape[:2], self.plain.spacing_mm
        return columns * across, rows * down


def montage(
    heatmap: Heatmap,
    volume: Volume,
    *,
    lesion: Volume | None = None,
    title: str | None = None,
    threshold: float = THRESHOLD,
) -> Figure:
    """Draw the planes through the peak of a heatmap, plain and with the colours of relevance.

    A single slice is drawn as stored if it comes from DICOM or a picture file: those are stored as they are looked at.

    Parameters
    ----------
    volume
        The image, on the heatmap's grid.
    lesion
        A mask to outline wherever it is above 0.5, on any grid in the same frame of reference.
    title
        The first line; what was explained if not given.
    threshold
        The fraction of the heatmap's maximum below which no colour is shown.

    Raises
    ------
    UsageError
        If the image does not lie on the heatmap's grid.
    GeometryError
        If the image or the lesion is in another frame of reference.
    """
    index_map(heatmap.grid, volume.grid)  # refuses two frames of reference
    if not volume.grid.is_close(heatmap.grid):
        raise UsageError(
            f"the heatmap lies on a grid of shape {heatmap.grid.shape} and the image on another, of shape "
            f"{volume.grid.shape}; give the image that the heatmap was made for"
        )
    panels = _panels(heatmap, volume, lesion, threshold)
    rows = [[(panel, hot) for panel in panels] for hot in (False, True)]
    if len(panels) == 1:
        rows = [rows[0] + rows[1]]
    return _draw(rows, heatmap, title or heatmap.target, threshold)


def _panels(heatmap: Heatmap, volume: Volume, lesion: Volume | None, threshold: float) -> list[_Panel]:
    grid, peak = heatmap.grid, heatmap.peak()
    centre = peak.voxel if peak else tuple(n // 2 for n in grid.shape)
    window, maximum = display_range(volume), heatmap.maximum
    mask = None
    if lesion is not None:
        same = lesion.grid == grid
        mask = lesion.voxels if same else resample(lesion.voxels, lesion.grid, grid, nearest=True, outside=0.0)
    panels = []
    for plane in planes_of(volume):
        view = _view(grid, plane)
        index = centre[view.normal]
        image, relevance = (to_display(v, grid, plane, index) for v in (volume.voxels, heatmap.relevance))
        plain = overlay_rgb(image.pixels, np.zeros_like(relevance.pixels), window=window)
        overlay = overlay_rgb(image.pixels, relevance.pixels, window=window, maximum=maximum, threshold=threshold)
        outline = None if mask is None else to_display(mask, grid, plane, index).pixels > 0.5
        place = view.place(centre, grid.shape) if peak else None
        caption = _caption(heatmap, plane, view, centre)
        panels.append(_Panel(plane, caption, image._replace(pixels=plain), overlay, outline, place))
    return panels


def planes_of(volume: Volume) -> list[Plane]:
    """Return the planes in which an image is drawn: three, or the one that it has."""
    planes: list[Plane] = ["axial", "coronal", "sagittal"]
    if 1 not in volume.grid.shape:
        return planes
    if volume.grid.shape[2] == 1 and (volume.source.format in ("dicom", "picture") or not volume.source.oriented):
        return ["stored"]
    return [plane for plane in planes if volume.grid.shape[_view(volume.grid, plane).normal] == 1][:1]


def _caption(heatmap: Heatmap, plane: Plane, view: _View, centre: tuple[int, ...]) -> str:
    source, grid, axis = heatmap.source, heatmap.grid, "ijk"[view.normal]
    count = f"{axis} = {centre[view.normal]}"
    if plane == "stored":
        return "as stored"
    if not source.oriented:
        return f"across {axis} · {count}"
    down, across = (grid.affine[:3, a] / grid.spacing_mm[a] for a in (view.row, view.column))
    normal = np.cross(down, across)
    tilt = math.degrees(math.acos(min(1.0, float(np.abs(normal).max() / np.linalg.norm(normal)))))
    shear = math.degrees(math.asin(min(1.0, abs(float(down @ across)))))
    remarks = [f"oblique {tilt:.0f}°"] * (tilt > 2) + [f"sheared {shear:.0f}°"] * (shear > 2)
    name = f"{plane} ({', '.join(remarks)})" if remarks else plane
    if 1 in grid.shape:
        return name
    world = _WORLD_AXIS[grid.axis_codes[view.normal]]
    place = f"{'xyz'[world]} = {grid.world_mm(np.array(centre))[world]:.1f} mm"
    return f"{name} · {place if source.spaced else count}"


def _draw(rows: list[list[tuple[_Panel, bool]]], heatmap: Heatmap, title: str, threshold: float) -> Figure:
    sizes = [panel.size_mm for panel, _ in rows[0]]
    room = _WIDEST - len(sizes) * 2 * _PAD - (len(sizes) - 1) * _GAP
    tallest = _TALLEST_ROW * 2 / len(rows)
    scale = min(room / sum(width for width, _ in sizes), tallest / max(height for _, height in sizes))
    cell_widths = [max(width * scale, _SMALLEST) + 2 * _PAD for width, _ in sizes]
    cell_height = max(_SMALLEST, *(height * scale for _, height in sizes)) + 2 * _PAD
    text_width = sum(cell_widths) + (len(sizes) - 1) * _GAP + _BAR
    width = text_width + 2 * _MARGIN
    heading = title if len(title) <= (letters := int(8 * text_width)) else title[: letters - 3] + "..."
    details = [line for text in _details(heatmap) for line in textwrap.wrap(text, int(13 * text_width))]
    header = _HEADER + _LINE * (len(details) - 1)
    height = header + len(rows) * (cell_height + _CAPTION) + _FOOTER
    figure = Figure(figsize=(width, height), facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    _text(figure, _MARGIN, 0.28, heading, size=14.0)
    for n, line in enumerate(details):
        _text(figure, _MARGIN, 0.56 + n * _LINE, line, size=9.0, colour=_FAINT)
    top = header
    for row in rows:
        left = _MARGIN
        for (panel, hot), cell_width in zip(row, cell_widths, strict=True):
            _draw_cell(figure, panel, hot, (left, top, cell_width, cell_height), scale, heatmap)
            left += cell_width + _GAP
        top += cell_height + _CAPTION
    if rows[0][0][0].peak is not None:
        left, top = width - _MARGIN - _BAR + 0.35, top - _CAPTION - cell_height
        _draw_bar(figure, (left, top, 0.22, cell_height), threshold)
    _text(figure, _MARGIN, height - 0.2, "Research use only - not for diagnosis", size=9.0, colour=_WARNING)
    unseen = float(np.isnan(heatmap.relevance).mean())
    footnotes = ["dashed: lesion mask"] * (rows[0][0][0].lesion is not None)
    footnotes += [f"{100 * unseen:.1f} % of the image was not looked at"] * (unseen > 0)
    _text(figure, width - _MARGIN, height - 0.2, " · ".join(footnotes), size=9.0, colour=_FAINT, align="right")
    return figure


def _details(heatmap: Heatmap) -> list[str]:
    recipe = heatmap.recipe
    score = f"{recipe.score} {heatmap.score:.3g}"
    if heatmap.probability is not None and recipe.score != "probability":
        score = f"probability {heatmap.probability:.3g}, {score}"
    named = [f"{word} {name}" for word, name in (("layer", recipe.layer), ("model", recipe.model)) if name]
    return [" · ".join([score, recipe.method, *named, heatmap.source.label]), *heatmap.notes]


def _draw_cell(figure: Figure, panel: _Panel, hot: bool, box: _Box, scale: float, heatmap: Heatmap) -> None:
    left, top, width, height = box
    _draw_block(figure, box, _CELL)
    across, down = (scale * size for size in panel.size_mm)
    x, y = left + (width - across) / 2, top + (height - down) / 2
    axes = _axes(figure, (x, y, across, down), f"{panel.plane} {'overlay' if hot else 'plain'}")
    axes.imshow(
        panel.overlay if hot else panel.plain.pixels, aspect="auto", origin="upper", interpolation="antialiased"
    )
    axes.set_autoscale_on(False)
    if hot:
        _draw_marks(axes, panel, 1 / scale)
    if heatmap.source.oriented:
        middle, centre = left + width / 2, top + height / 2
        spots = [(x - 0.14, centre), (x + across + 0.14, centre), (middle, y - 0.14), (middle, y + down + 0.14)]
        for spot, letter in zip(spots, panel.plain.letters, strict=True):
            _text(figure, *spot, letter, size=10.0, align="center")
    _draw_scale_bar(figure, (left + 0.1, top + height - 0.13), min(0.95, width / 2 - 0.8), scale, heatmap.source)
    _text(figure, left + 0.02, top + height + 0.15, panel.caption, size=min(9.0, 115 * width / len(panel.caption)))
    remark = "no positive evidence" * (panel.peak is None)
    if panel.lesion is not None and not panel.lesion.any():
        remark = remark or "lesion elsewhere"
    _text(figure, left + width - 0.1, top + height - 0.13, remark * hot, size=8.0, colour=_WARNING, align="right")


def _draw_marks(axes: Axes, panel: _Panel, mm_per_inch: float) -> None:
    rows, columns = panel.plain.pixels.shape[:2]
    if panel.lesion is not None and panel.lesion.any():
        # A border of background closes the outline of a lesion that reaches the edge of the picture.
        mask, x, y = np.pad(panel.lesion, 1).astype(float), np.arange(-1, columns + 1), np.arange(-1, rows + 1)
        for colour, thickness, dash in (("black", 2.0, "solid"), ("white", 1.0, (0, (3, 2)))):
            axes.contour(x, y, mask, levels=[0.5], colors=[colour], linewidths=thickness, linestyles=[dash])
    if panel.peak is not None:
        # Lines from the edges that stop short of the peak, so that nothing covers it.
        row, column = panel.peak
        gap_y, gap_x = (0.35 * mm_per_inch / mm for mm in panel.plain.spacing_mm)
        for side in (-1, 1):
            xs, ys = (column + side * gap_x, column + side * columns), (row + side * gap_y, row + side * rows)
            for line in ((xs, (row, row)), ((column, column), ys)):
                axes.plot(*line, color=_INK, linewidth=0.7, alpha=0.7)


def _draw_scale_bar(figure: Figure, start: tuple[float, float], room: float, scale: float, source: Source) -> None:
    longest = room / scale
    decade = 10 ** math.floor(math.log10(longest))
    length = max(factor * decade for factor in (1, 2, 5) if factor * decade <= longest)
    (x, y), reach = start, length * scale
    _draw_block(figure, (x, y - 0.01, reach, 0.03), _INK)
    _text(figure, x + reach + 0.06, y, f"{length:g} {source.length_unit}", size=8.0)


def _draw_bar(figure: Figure, box: _Box, threshold: float) -> None:
    # Blended over black to white as in the panels, so that every colour of the figure can be found in the bar.
    share, grey = np.meshgrid(np.linspace(1, 0, 256), np.linspace(0, 1, 32), indexing="ij")
    pixels = overlay_rgb(grey, share, window=(0.0, 1.0), maximum=1.0, threshold=threshold)
    axes = _axes(figure, box, "colour bar")
    axes.imshow(pixels, aspect="auto", origin="upper", interpolation="nearest")
    axes.axhline(255 * (1 - threshold), color=_INK, linewidth=1)
    left, top, width, height = box
    for level, word in ((0.0, ""), (threshold, " threshold"), (1.0, "")):
        _text(figure, left + width + 0.06, top + (1 - level) * height, f"{level:g}{word}", size=8.0)
    label = "relative relevance (own maximum = 1)"
    _text(figure, left - 0.13, top + height / 2, label, size=min(9.0, 3.4 * height), align="center").set_rotation(90)


def _place(figure: Figure, box: _Box) -> _Box:
    """Return (left, bottom, width, height) as fractions of the page for (left, top, ...) in inches from its top left."""
    page, (left, top, width, height) = figure.get_size_inches(), box
    return left / page[0], 1 - (top + height) / page[1], width / page[0], height / page[1]


def _draw_block(figure: Figure, box: _Box, colour: str) -> None:
    left, bottom, width, height = _place(figure, box)
    figure.add_artist(Rectangle((left, bottom), width, height, facecolor=colour, zorder=-1))


def _axes(figure: Figure, box: _Box, name: str) -> Axes:
    axes = figure.add_axes(_place(figure, box), label=name)
    axes.set_axis_off()
    return axes


def _text(
    figure: Figure, x: float, y: float, text: str, *, size: float, colour: str = _INK, align: _Align = "left"
) -> Text:
    width, height = figure.get_size_inches()
    weight = "bold" if size >= 10 else "normal"
    written = figure.text(x / width, 1 - y / height, text, fontsize=size, fontweight=weight, color=colour)
    written.set(ha=align, va="center")
    # A dollar sign in the name of a class is not mathematics.
    written.set_parse_math(False)
    return written
