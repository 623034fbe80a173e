"""Lesions that were drawn as boxes, polygons or points: CSV and COCO JSON become masks on the image's own grid.

A pixel's index is that of its centre: the image's first pixel spans from 0 to 1 in the pixels that boxes are measured in, and its
centre lies at 0.5. A pixel belongs to a box or polygon that holds its centre. For points, pixel 12 is the one of index 12.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from medcam.errors import InputError
from medcam.formats.comma_separated import read_csv
from medcam.formats.labels import readable
from medcam.volume import Volume

_BOX, _POINT, _POINT_MM = ("x", "y", "w", "h"), ("i", "j"), ("x_mm", "y_mm", "z_mm")
_NAMES = {
    "image": ("image index", "image", "image_id", "file", "file_name", "case"),
    "label": ("finding label", "label", "class", "finding"),
    "w": ("w", "width"),
    "h": ("h", "height"),
    "d": ("d", "depth"),
}


@dataclass(frozen=True, eq=False)
class Annotation:
    """What experts drew of one image.

    Parameters
    ----------
    mask
        On the image's grid, each lesion by its number, from 1; where two overlap the smaller is seen.
    boxes
        First and last voxel of each box along each axis, both in it; one a lesion, in the order of the file. None for points.
    """

    mask: Volume
    boxes: Int[np.ndarray, "n 3 2"] | None


def is_annotation(path: Path) -> bool:
    """Tell whether a file holds boxes, polygons or points, by its name."""
    return path.suffix.lower() in (".csv", ".tsv", ".json")


def read_annotation(
    path: str | Path,
    image: Volume,
    *,
    names: Sequence[str],
    label: str = "",
    drawn_on: tuple[int, int] | None = None,
) -> Annotation:
    """Read what was drawn of one image.

    CSV of boxes, as NIH ChestX-ray14's: `Image Index,Finding Label,x,y,w,h`, in pixels from the upper left corner, with optional `z,d`
    (first slice, and how many) and `image_width,image_height` (of the picture they were drawn on). CSV of points: `image,i,j,k` (indices
    of voxels) or `image,x_mm,y_mm,z_mm` (RAS+), with an optional `radius_mm`. COCO JSON: `bbox`, or `segmentation` by polygons.

    Parameters
    ----------
    names
        How the file may call the image: its file's name, or the case's.
    label
        Only what bears this label; '' for all.
    drawn_on
        The size of the picture in whose pixels boxes are given, where it is neither the image's own nor stated in the file.

    Raises
    ------
    InputError
        If the file is damaged, nothing of it belongs to the image, or something lies outside the image.
    """
    path = Path(path)
    wanted = {Path(name).name.casefold() for name in names} | {_stem(name) for name in names}
    read = _of_coco if path.suffix.lower() == ".json" else _of_csv
    shapes = read(path, wanted, label)
    if not shapes:
        which = f" with the label '{label}'" if label else ""
        raise InputError(
            f"{path.name} holds nothing that was drawn of this image{which}; images are found by their file's name"
        )
    masks, boxes = [], []
    for where, shape in shapes:
        try:
            mask, box = _drawn(shape, image, drawn_on)
        except InputError as error:
            raise InputError(f"{path.name}, {where}: {error}") from None
        masks.append(mask)
        boxes.append(box)
    known = np.array([box for box in boxes if box is not None], np.int64).reshape(-1, 3, 2)
    return Annotation(_together(masks, image, path), known if len(known) == len(masks) else None)


@dataclass(frozen=True)
class _Shape:
    """One thing that was drawn: a box, a polygon or a point."""

    box: tuple[float, float, float, float] | None = None
    slices: tuple[float, float] | None = None
    rings: tuple[tuple[tuple[float, float], ...], ...] = ()
    voxel: tuple[float, float, float] | None = None
    point_mm: tuple[float, float, float] | None = None
    radius_mm: float = 0.0
    size: tuple[float, float] | None = None


def _stem(name: str) -> str:
    return Path(name).name.partition(".")[0].casefold()


def _of_csv(path: Path, wanted: set[str], label: str) -> list[tuple[str, _Shape]]:
    found = []
    for line, given in read_csv(path)[1]:
        # NIH's own file calls the columns 'Bbox [x', 'y', 'w' and 'h]'.
        row = {name.removeprefix("bbox [").rstrip("]"): value for name, value in given.items()}
        of = _field(row, "image")
        if of is None:
            raise InputError(
                f"{path.name} has no column 'image' (or 'Image Index') that says what each row was drawn on"
            )
        if not ({Path(of).name.casefold(), _stem(of)} & wanted):
            continue
        if label and (_field(row, "label") or "").casefold() != label.casefold():
            continue
        where = f"line {line}"
        found.append((where, _shape_of_row(row, f"{path.name}, {where}")))
    return found


def _field(row: Mapping[str, str], name: str) -> str | None:
    return next((row[each] for each in _NAMES.get(name, (name,)) if each in row), None)


def _shape_of_row(row: Mapping[str, str], where: str) -> _Shape:
    def number(name: str) -> float:
        text = _field(row, name)
        try:
            value = float(text or "")
        except ValueError:
            value = float("nan")
        if not np.isfinite(value):
            raise InputError(f"{where}: '{name}' should be a number, not '{readable(text)}'")
        return value

    def has(*columns: str) -> bool:
        return all(_field(row, name) for name in columns)

    radius = number("radius_mm") if has("radius_mm") else 0.0
    if has(*_BOX):
        size = (number("image_width"), number("image_height")) if has("image_width", "image_height") else None
        slices = (number("z"), number("d")) if has("z", "d") else None
        return _Shape(box=(number("x"), number("y"), number("w"), number("h")), slices=slices, size=size)
    if has(*_POINT_MM):
        return _Shape(point_mm=(number("x_mm"), number("y_mm"), number("z_mm")), radius_mm=radius)
    if has(*_POINT):
        return _Shape(voxel=(number("i"), number("j"), number("k") if has("k") else 0.0), radius_mm=radius)
    raise InputError(f"{where}: it needs x, y, w and h of a box, i, j (and k) of a point, or x_mm, y_mm and z_mm")


def _of_coco(path: Path, wanted: set[str], label: str) -> list[tuple[str, _Shape]]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        images = [
            each
            for each in values["images"]
            if {Path(each["file_name"]).name.casefold(), _stem(each["file_name"])} & wanted
        ]
        names = {each["id"]: str(each["name"]) for each in values.get("categories", [])}
        found: list[tuple[str, _Shape]] = []
        for image in images:
            size = (float(image["width"]), float(image["height"])) if "width" in image and "height" in image else None
            for drawn in values["annotations"]:
                if drawn["image_id"] != image["id"]:
                    continue
                if label and names.get(drawn.get("category_id"), "").casefold() != label.casefold():
                    continue
                found.append((f"annotation {drawn.get('id', len(found) + 1)}", _shape_of_coco(drawn, size)))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        said = f"the entry {error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise InputError(f"{path.name} is no COCO file of images and annotations: {said}") from error
    return found


def _shape_of_coco(drawn: Mapping[str, Any], size: tuple[float, float] | None) -> _Shape:
    rings = drawn.get("segmentation") or []
    if isinstance(rings, dict):
        raise ValueError("segmentation by run lengths; save polygons, or the mask as a picture")
    polygons = tuple(tuple((float(x), float(y)) for x, y in zip(ring[::2], ring[1::2], strict=True)) for ring in rings)
    box = drawn.get("bbox")
    if box is None and not polygons:
        raise ValueError("an annotation has neither bbox nor segmentation")
    x, y, w, h = map(float, box) if box is not None else _around(polygons)
    return _Shape(box=(x, y, w, h), rings=polygons, size=size)


def _around(polygons: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float, float, float]:
    points = np.array([point for ring in polygons for point in ring])
    low, high = points.min(0), points.max(0)
    return float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])


def _drawn(
    shape: _Shape, image: Volume, drawn_on: tuple[int, int] | None
) -> tuple[Bool[np.ndarray, "i j k"], Int[np.ndarray, "3 2"] | None]:
    """Return one shape as a mask, and its box."""
    sides = image.grid.shape
    if shape.box is None:
        return _point(shape, image), None
    width, height = shape.size or drawn_on or sides[:2]
    if width <= 0 or height <= 0:
        raise InputError(f"the picture it was drawn on has {width:g} x {height:g} pixels")
    # Pictures may be stretched differently along their sides.
    scale = np.array([sides[0] / width, sides[1] / height])
    x, y, w, h = shape.box
    box = np.array([_covered(x, w, scale[0], sides[0]), _covered(y, h, scale[1], sides[1]), _slices(shape, sides[2])])
    mask = np.zeros(sides, bool)
    within = tuple(slice(int(low), int(high) + 1) for low, high in box)
    mask[within] = _inside(shape.rings, scale, box)[:, :, None] if shape.rings else True
    if not mask.any():
        raise InputError("the polygon holds the centre of no pixel")
    return mask, box


def _covered(start: float, length: float, scale: float, n: int) -> tuple[int, int]:
    """Return the first and last pixel whose centres a side of a box covers, or the one that it lies in if it covers none."""
    low, high = start * scale, (start + length) * scale
    if length <= 0 or high <= 0 or low >= n:
        raise InputError(
            f"the box spans {start:g} to {start + length:g} pixels and the image 0 to {n / scale:g}; say with "
            "image_width and image_height (--drawn-on) how large the picture was that it was drawn on"
        )
    first, last = int(np.ceil(low - 0.5)), int(np.ceil(high - 0.5)) - 1
    if last < first:
        first = last = int((low + high) / 2)
    return max(first, 0), min(last, n - 1)


def _slices(shape: _Shape, n: int) -> tuple[int, int]:
    if shape.slices is None:
        if n > 1:
            raise InputError(f"the image has {n} slices, and the box says neither its first (z) nor how many (d)")
        return 0, 0
    z, d = shape.slices
    first, last = max(int(z), 0), min(int(z + d) - 1, n - 1)
    if d < 1 or last < first:
        raise InputError(f"the box lies in slices {z:g} to {z + d - 1:g}, and the image has 0 to {n - 1}")
    return first, last


def _inside(
    rings: Sequence[Sequence[tuple[float, float]]], scale: Float[np.ndarray, "2"], box: Int[np.ndarray, "3 2"]
) -> Bool[np.ndarray, "i j"]:
    """Tell which pixels of a box have their centres in one of the polygons."""
    from matplotlib.path import Path as Ring

    i, j = (np.arange(low, high + 1) + 0.5 for low, high in box[:2])
    centres = np.stack(np.meshgrid(i, j, indexing="ij"), -1).reshape(-1, 2)
    inside = np.zeros(len(centres), bool)
    for ring in rings:
        inside |= Ring(np.asarray(ring) * scale).contains_points(centres)
    return inside.reshape(len(i), len(j))


def _point(shape: _Shape, image: Volume) -> Bool[np.ndarray, "i j k"]:
    grid = image.grid
    if shape.point_mm is not None:
        if not image.source.placed:
            raise InputError("a point in millimetres needs an image with a place in the patient; give i and j")
        index = grid.index(np.array(shape.point_mm))
    else:
        index = np.asarray(shape.voxel, np.float64)
    if ((index < -0.5) | (index > np.array(grid.shape) - 0.5)).any():
        raise InputError(f"the point lies outside the image, which has {grid.shape} voxels")
    mask = np.zeros(grid.shape, bool)
    i, j, k = np.clip(np.rint(index).astype(int), 0, np.array(grid.shape) - 1)
    mask[i, j, k] = True
    if shape.radius_mm > 0:
        reach = np.ceil(shape.radius_mm / np.asarray(grid.spacing_mm)).astype(int) + 1
        low = np.clip(np.array([i, j, k]) - reach, 0, None)
        high = np.clip(np.array([i, j, k]) + reach + 1, None, grid.shape)
        near = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), -1)
        apart = np.linalg.norm(grid.world_mm(near) - grid.world_mm(index), axis=-1)
        mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] |= apart <= shape.radius_mm
    return mask


def _together(masks: Sequence[Bool[np.ndarray, "i j k"]], image: Volume, path: Path) -> Volume:
    """Return all masks as labels; the smaller is drawn over the larger."""
    voxels = np.zeros(image.grid.shape, np.uint16)
    for n in sorted(range(len(masks)), key=lambda n: -int(masks[n].sum())):
        voxels[masks[n]] = n + 1
    note = f"{len(masks)} lesions were drawn in {path.suffix.lstrip('.').upper()}."
    source = replace(image.source, label="annotation", notes=(note,))
    return Volume(voxels, image.grid, "label", source)
