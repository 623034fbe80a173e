"""Write a heatmap for 3D Slicer, as a scene that opens whole.

Slicer refuses sheared voxels, and turns left-handed ones over as it reads them, which some versions did wrongly. So voxels are stored
perpendicular and right-handed, none of them changed: the slices of a left-handed grid in reverse order, and the tilt of a gantry as a
transform of all that lies in the scene.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num

from medcam.errors import OutputError
from medcam.formats.exporting import Export
from medcam.formats.nifti import sidecar_values
from medcam.formats.nrrd_stream import Write, put_nrrd
from medcam.formats.nrrd_writing import (
    LESION_COLOUR,
    LESION_TERMS,
    REGION_TERMS,
    Segment,
    lesion_mask,
    put_segmentation,
)
from medcam.formats.slicer_look import Look, look_at
from medcam.formats.slicer_scene import Item, Scene, scene_text
from medcam.geometry import Grid
from medcam.whole_file import whole_file

# What rounding leaves between perpendicular axes: cosines below this.
_PERPENDICULAR = 1e-4
# The same export gives the same bytes, so the files of a bundle are as old as a zip can say.
_NO_DATE = (1980, 1, 1, 0, 0, 0)

Put = Callable[[Write], object]


class Placed(NamedTuple):
    """How 3D Slicer takes the voxels of a grid: their affine, what reverses slices if need be, and what takes them to their places."""

    affine: Float[np.ndarray, "4 4"]
    slices: slice
    world_from_stored: Float[np.ndarray, "4 4"] | None


def write_scene(export: Export) -> tuple[Path, ...]:
    """Write a scene bundle (.mrb): image, heatmap, colours, threshold, mask, lesion if given, peak, and views through the peak.

    The image is stored as int16 where that holds its values, else as float32, and its smallest value where it has none. Voxels of the
    heatmap that were not looked at are stored as 0; the text in the scene counts them.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    refuse_other_grid(export)
    path = export.path(".mrb")
    # Unpackers of old do not agree on other letters.
    top = re.sub(r"[^A-Za-z0-9._+-]+", "_", export.label) or "scene"
    with whole_file(path) as temporary, zipfile.ZipFile(temporary, "w") as bundle:
        for name, put in _contents(export, top).items():
            with bundle.open(zipfile.ZipInfo(f"{top}/{name}", _NO_DATE), "w", force_zip64=True) as stream:
                put(stream.write)
    return (path,)


def refuse_other_grid(export: Export) -> None:
    """Raise an OutputError if the image is not the one that the heatmap was made for."""
    mine, theirs = export.heatmap.grid, export.volume.grid
    if not theirs.is_close(mine):
        raise OutputError(
            f"the heatmap lies on a grid of shape {mine.shape} and the image on another, of shape {theirs.shape}; give the "
            "image that the heatmap was made for"
        )


def _contents(export: Export, top: str) -> dict[str, Put]:
    """Return what writes each file of the bundle, by its path in it."""
    heatmap, grid = export.heatmap, export.heatmap.grid
    look, placed = look_at(export), place_for_slicer(grid)
    mask = heatmap.mask(export.threshold)
    lesion = None if export.lesion is None else lesion_mask(export.lesion, grid)
    image, colours, peak = (Item(name, f"Data/{file}") for name, file in (
        (heatmap.source.label, "image.nrrd"), ("colours of relevance", "colours.ctbl"), ("peak", "peak.mrk.json"),
    ))  # fmt: skip
    relevance, above = Item(heatmap_name(export), "Data/relevance.nrrd"), Item(mask_name(export), "Data/mask.seg.nrrd")
    drawn = Item("lesion", "Data/lesion.seg.nrrd")
    scene = Scene(
        look,
        image,
        relevance,
        colours,
        peak if look.peak_mm else None,
        above if mask.any() else None,
        drawn if lesion is not None and lesion.any() else None,
        json.dumps(sidecar_values(heatmap, export.threshold), indent=2, ensure_ascii=False),
        placed.world_from_stored,
    )
    texts = {f"{top}.mrml": scene_text(scene), colours.file: _colour_table(look)}
    if look.peak_mm:
        texts[peak.file] = _point(look.peak_mm)
    files: dict[str, Put] = {name: partial(_put_text, text) for name, text in texts.items()}
    files[image.file] = partial(_put, image_values(export.volume.voxels), placed)
    files[relevance.file] = partial(_put, np.nan_to_num(heatmap.relevance, nan=0.0), placed)
    red, green, blue = (float(part) for part in look.colours[-1])
    for item, where, colour, terms in (
        (above, mask, (red, green, blue), REGION_TERMS),
        (drawn, lesion, LESION_COLOUR, LESION_TERMS),
    ):
        if where is not None and where.any():
            files[item.file] = partial(_put_segment, Segment(item.name, where, colour, terms), placed)
    return files


def heatmap_name(export: Export) -> str:
    """Return what a heatmap is called in 3D Slicer."""
    return f"{export.heatmap.recipe.method} of {export.heatmap.target}"


def mask_name(export: Export) -> str:
    """Return what the mask at the threshold is called in 3D Slicer."""
    return f"relevance from {100 * export.threshold:g} % of its maximum"


def place_for_slicer(grid: Grid) -> Placed:
    """Return how 3D Slicer takes the voxels of a grid: perpendicular, with the first slice first along a right-handed normal."""
    affine, columns = grid.affine.copy(), grid.affine[:3, :3]
    reverse = bool(np.linalg.det(columns) < 0)
    if reverse:
        affine[:3, 3] = grid.world_mm(np.array([0, 0, grid.shape[2] - 1]))
        affine[:3, 2] = -affine[:3, 2]
    step = slice(None, None, -1 if reverse else 1)
    directions = columns / np.array(grid.spacing_mm)
    if np.abs(directions.T @ directions - np.eye(3)).max() < _PERPENDICULAR:
        return Placed(affine, step, None)
    # Rows keep their place; what stands askew to them is put upright, and the transform leans it over again.
    upright, upper = np.linalg.qr(affine[:3, :3])
    stored = affine.copy()
    stored[:3, :3] = upright * np.diag(upper)
    return Placed(stored, step, affine @ np.linalg.inv(stored))


def image_values(voxels: Num[np.ndarray, "i j k"]) -> Num[np.ndarray, "i j k"]:
    """Return an image as uint8, int16 or float32, the first that holds its values: what every version of 3D Slicer shows."""
    finite = voxels
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        seen = voxels[np.isfinite(voxels)]
        finite = np.where(np.isfinite(voxels), voxels, seen.min() if seen.size else 0)
    limits = np.iinfo(np.int16)
    if finite.dtype == np.uint8:
        return finite
    # Slice by slice, so that nothing of the image's size is made only to be compared.
    whole = all(np.array_equal(each, np.rint(each)) for each in np.moveaxis(finite, 2, 0))
    fits = finite.min() >= limits.min and finite.max() <= limits.max
    return finite.astype(np.int16 if whole and fits else np.float32)


def _put(voxels: Num[np.ndarray, "i j k"], placed: Placed, write: Write) -> None:
    put_nrrd(write, voxels[:, :, placed.slices], placed.affine, {})


def _put_text(text: str, write: Write) -> None:
    write(text.encode())


def _put_segment(segment: Segment, placed: Placed, write: Write) -> None:
    mask = segment.mask[:, :, placed.slices]
    # With a surface, its eye shows it in 3D at once.
    surface = {"Segmentation_ContainedRepresentationNames": "Binary labelmap|Closed surface|"}
    put_segmentation(
        write,
        [replace(segment, mask=mask)],
        Grid((mask.shape[0], mask.shape[1], mask.shape[2]), placed.affine),
        fields=surface,
    )


def _colour_table(look: Look) -> str:
    lines = [
        f"{n} {n / 255:.3f} {' '.join(str(round(255 * float(part))) for part in row)} 255"
        for n, row in enumerate(look.colours)
    ]
    return "\n".join(["# Color table file colours.ctbl", f"# {len(lines)} values", *lines, ""])


def _point(place_mm: tuple[float, float, float]) -> str:
    x, y, z = place_mm
    point = {"id": "1", "label": "peak", "position": [-x, -y, z], "locked": True, "positionStatus": "defined"}
    point |= {"selected": True, "visibility": True}
    markups = {
        "type": "Fiducial",
        "coordinateSystem": "LPS",
        "locked": True,
        "labelFormat": "%N",
        "controlPoints": [point],
    }
    schema = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json#"
    return json.dumps({"@schema": schema, "markups": [markups]}, indent=1)
