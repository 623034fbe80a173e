"""How a heatmap is looked at in 3D Slicer: colours, window, threshold, and where the slice views stand."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib
import numpy as np
from jaxtyping import Float

from medcam.formats.exporting import Export
from medcam.geometry import Grid
from medcam.render import COLOURS, OPACITY, Plane, display_range, planes_of, to_display

# 3D Slicer's views, and how its own presets look through them: where the normal of the slice points, RAS.
_VIEWS: dict[Plane, tuple[str, str | None, tuple[int, int, int]]] = {
    "axial": ("Red", "Axial", (0, 0, 1)),
    "sagittal": ("Yellow", "Sagittal", (-1, 0, 0)),
    "coronal": ("Green", "Coronal", (0, 1, 0)),
}
_MARGIN = 1.05
_SAME = 1e-6


@dataclass(frozen=True, eq=False)
class SliceView:
    """One slice view: its name in 3D Slicer, the preset that it equals, if any, and where it stands.

    `ras_from_slice` has the directions to the right and upwards on the screen and of the slice's normal as columns, then the middle.
    """

    name: str
    preset: str | None
    ras_from_slice: Float[np.ndarray, "4 4"]


@dataclass(frozen=True, eq=False)
class Look:
    """What is shown of a heatmap, and how.

    Parameters
    ----------
    window
        The values of the image that are shown black and white.
    lowest, highest
        The relevance from which colours show, and that of the brightest one. Where nothing is positive no voxel reaches `lowest`.
    colours
        Red, green and blue (0 to 1) of relevance from 0 to `highest`.
    opacity
        Of all colours alike: 3D Slicer's views have one for each layer, the mean of what rises with the relevance in medcam's figures.
    views
        The slice views: three, or one for an image of a single slice.
    field_of_view_mm
        The width and height of what a view shows.
    spacing_mm
        The distance between neighbouring slices in each view.
    peak_mm
        Where the hottest voxel is, RAS+ mm, or None.
    oriented, spaced
        Whether the patient's sides, and lengths in mm, may be shown.
    """

    window: tuple[float, float]
    lowest: float
    highest: float
    colours: Float[np.ndarray, "256 3"]
    opacity: float
    views: tuple[SliceView, ...]
    field_of_view_mm: float
    spacing_mm: float
    peak_mm: tuple[float, float, float] | None
    oriented: bool
    spaced: bool


def look_at(export: Export) -> Look:
    """Return how an export is looked at: as in medcam's figures, with each view through the peak and centred on it."""
    heatmap, grid = export.heatmap, export.heatmap.grid
    peak = heatmap.peak()
    highest = heatmap.maximum if peak else 1.0
    middle = np.array(peak.world_mm) if peak else grid.world_mm((np.array(grid.shape) - 1) / 2)
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in grid.shape], indexing="ij")).reshape(3, -1).T
    views = tuple(_slice_view(grid, plane, middle) for plane in planes_of(export.volume))
    # Of the corners only what lies in the picture's plane: the whole image is to be seen.
    reach = max(np.abs((grid.world_mm(corners) - middle) @ view.ras_from_slice[:3, :2]).max() for view in views)
    return Look(
        window=display_range(export.volume),
        lowest=export.threshold * highest,
        highest=highest,
        colours=_colours(),
        opacity=sum(OPACITY) / len(OPACITY),
        views=views,
        field_of_view_mm=2 * _MARGIN * float(reach),
        spacing_mm=grid.spacing_mm[2],
        peak_mm=peak.world_mm if peak else None,
        oriented=heatmap.source.oriented,
        spaced=heatmap.source.spaced,
    )


def _colours() -> Float[np.ndarray, "256 3"]:
    colours: np.ndarray = np.array(matplotlib.colormaps[COLOURS](np.linspace(0, 1, 256)))[:, :3]
    return colours


def _slice_view(grid: Grid, plane: Plane, middle_mm: np.ndarray) -> SliceView:
    # What a picture of voxel indices shows tells which way the axes of the grid run on the screen.
    index = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1)
    shown = to_display(index, Grid((2, 2, 2), grid.affine), plane, 0).pixels
    directions = _nearest_rotation(grid)
    right, up = directions @ (shown[0, 1] - shown[0, 0]), directions @ (shown[0, 0] - shown[1, 0])
    name, preset, normal = _VIEWS.get(plane, ("Red", None, (0, 0, 0)))
    across = np.cross(right, up)
    # Some of Slicer's presets are left-handed, and it takes them for what they are called.
    across = -across if across @ normal < 0 else across
    ras_from_slice = np.eye(4)
    ras_from_slice[:3] = np.column_stack([right, up, across, middle_mm])
    upright = np.abs(ras_from_slice[:3, :3]).max(axis=0).min() > 1 - _SAME
    return SliceView(name, preset if upright else None, ras_from_slice)


def _nearest_rotation(grid: Grid) -> Float[np.ndarray, "3 3"]:
    """Return the directions of the grid's axes; of a sheared grid, the perpendicular ones nearest to them."""
    u, _, vt = np.linalg.svd(grid.affine[:3, :3] / np.array(grid.spacing_mm))
    directions: np.ndarray = u @ vt
    return directions
