"""The files of one case, read and held against each other: what does not belong together is refused, or told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from medcam.cohort.results import Entry
from medcam.errors import GeometryError, InputError
from medcam.formats import read, read_mask
from medcam.formats.annotations import is_annotation, read_annotation
from medcam.formats.stored import label_of, read_heatmap, read_heatmap_alone
from medcam.geometry import Grid, resample
from medcam.recipe import Recipe
from medcam.validate.body import body, fit, mirrored
from medcam.validate.localization import lesion_on
from medcam.volume import Heatmap, Volume

# The body is no domain where more of the lesion than this would fall out of it.
_LOST = 0.05
_ALONG = {"R": "left to right", "A": "front to back", "S": "top to bottom"}


@dataclass(frozen=True, eq=False)
class Truth:
    """Where the lesion is.

    Parameters
    ----------
    mask
        0 and 1, or labels; all 0 in a case without a lesion.
    boxes
        As experts drew them, or None.
    """

    mask: Volume
    boxes: Int[np.ndarray, "n 3 2"] | None = None


@dataclass(frozen=True, eq=False)
class Domain:
    """Where evidence may lie.

    Parameters
    ----------
    mask
        None for everywhere.
    notes
        How it was found, and what is doubtful of the lesion's mask.
    """

    mask: Volume | None
    notes: tuple[str, ...] = ()


def read_images(
    entry: Entry, *, allow_gaps: bool = False, regrid: bool = False, files: Sequence[Path] = ()
) -> tuple[Volume, ...]:
    """Return the images of a case; () where the table names none.

    Parameters
    ----------
    files
        Those of the DICOM series that the first image is, where they are known.
    """
    if files:
        from medcam.formats.dicom import read_files

        chosen: dict[str, Any] = {"series": entry.series or None, "volume": entry.volume}
        return (read_files(files, allow_gaps=allow_gaps, regrid=regrid, **chosen),)
    first = tuple(
        read(path, series=entry.series or None, volume=entry.volume, allow_gaps=allow_gaps, regrid=regrid)
        for path in entry.images[:1]
    )
    return (*first, *(read(path, allow_gaps=allow_gaps, regrid=regrid) for path in entry.images[1:]))


def heatmap_of(path: Path, image: Volume | None) -> tuple[Heatmap, Volume | None]:
    """Return a heatmap that medcam stored, or a map of another tool, and the image (or its slice) on whose grid it lies.

    A map of another tool lies on its own grid, and says neither what it explains nor how it was made.

    Raises
    ------
    InputError
        If it cannot be read, or was made of another image.
    """
    if _is_stored(path):
        return read_heatmap(path, image) if image is not None else (read_heatmap_alone(path), None)
    found = read(path)
    recipe = Recipe(model="", model_sha256="", method="", layer="", target="")
    note = "The heatmap is of another tool: what it explains and how it was made is not known."
    grid, source = found.grid, found.source
    # A map without a place lies on an image of its shape voxel by voxel.
    alike = image is not None and (source.placed or grid.shape != image.grid.shape)
    if image is not None and (not alike or grid.is_close(image.grid)):
        grid, source = image.grid, image.source
    relevance = np.asarray(found.voxels, np.float32)
    return Heatmap(relevance, grid, source, recipe, "", float("nan"), None, (note,)), image


def _is_stored(path: Path) -> bool:
    try:
        return path.with_name(f"{label_of(path)}.json").is_file()
    except InputError:  # any other name is no stored heatmap's
        return False


def truth_of(entry: Entry, image: Volume, *, drawn_on: tuple[int, int] | None = None) -> Truth:
    """Return the lesion's mask, of voxels, contours, boxes, polygons or points.

    Parameters
    ----------
    image
        That the lesion was drawn on.
    drawn_on
        See `read_annotation`.
    """
    if entry.mask is None:
        return Truth(Volume(np.zeros(image.grid.shape, np.uint8), image.grid, "label", image.source))
    if is_annotation(entry.mask):
        names = [*(path.name for path in entry.images), entry.case]
        found = read_annotation(entry.mask, image, names=names, label=entry.label, drawn_on=drawn_on)
        return Truth(found.mask, found.boxes)
    return Truth(read_mask(entry.mask, label=entry.label or None, like=image))


def domain_of(heatmap: Heatmap, image: Volume | None, organ: Volume | None, truth: Truth) -> Domain:
    """Return where evidence may lie: the organ that is given, else the body that is seen in a volume, else everywhere.

    Raises
    ------
    GeometryError
        If the lesion lies outside the body.
    """
    lesion = lesion_on(heatmap, truth.mask)
    notes = [note for note in (_moved(truth.mask.grid, heatmap.grid),) if note]
    along = [f"from {_ALONG.get(_side(code), 'side to side')}" for code in heatmap.grid.axis_codes]
    seen = None if image is None else _body_on(heatmap, image)
    if (
        image is not None
        and truth.boxes is None
        and (axis := mirrored(image_on(heatmap, image).voxels, lesion)) is not None
    ):
        notes.append(
            f"The lesion mask fits nothing that is seen, but would if it were mirrored {along[axis]}: see that it is not."
        )
    if seen is not None and lesion.any():
        how = fit(lesion, seen)
        if how.elsewhere:
            raise GeometryError(
                f"{how.outside:.0%} of the lesion mask lies outside the body: it was shifted or mirrored, or belongs to another image"
            )
        doubt = how.doubt(along)
        notes += [_sentence(doubt)] if doubt else []
        if organ is None and how.outside > _LOST:
            notes.append(
                f"The body was not taken for the domain, since {how.outside:.0%} of the lesion lies outside it."
            )
            seen = None
    if organ is not None:
        return Domain(organ, tuple(notes))
    if seen is None:
        air = ["All of the image counts, air too: give an organ or body mask."] if heatmap.grid.shape[2] > 1 else []
        return Domain(None, (*notes, *air))
    share = float(seen.mean())
    mask = Volume(seen.astype(np.uint8), heatmap.grid, "label", heatmap.source)
    return Domain(mask, (*notes, f"What counts is the body, {share:.0%} of the image, as its brightness shows it."))


def _body_on(heatmap: Heatmap, image: Volume) -> Bool[np.ndarray, "i j k"] | None:
    found = body(image.voxels, unit=image.unit)
    if found is None:
        return None
    return lesion_on(heatmap, Volume(found.astype(np.uint8), image.grid, "label", image.source))


def image_on(heatmap: Heatmap, image: Volume) -> Volume:
    """Return the image on the heatmap's grid, for the baselines that look at it; numbers only."""
    voxels = np.nan_to_num(np.asarray(image.voxels, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if not image.grid.is_close(heatmap.grid):
        voxels = resample(voxels, image.grid, heatmap.grid, outside=float(voxels.min()))
    return replace(image, voxels=voxels, grid=heatmap.grid)


def _moved(mask: Grid, image: Grid) -> str:
    """Return a sentence where a mask has the image's shape and yet another place, as after a header was changed."""
    if mask.shape != image.shape or mask.is_close(image, 1e-1):
        return ""
    corners = np.array([[0, 0, 0], [n - 1 for n in mask.shape]])
    apart = float(np.linalg.norm(mask.world_mm(corners) - image.world_mm(corners), axis=1).max())
    codes = "".join(mask.axis_codes), "".join(image.axis_codes)
    turned = f", and its axes run to {codes[0]} and not {codes[1]}" if codes[0] != codes[1] else ""
    return f"The lesion mask has the image's shape but lies up to {apart:.1f} mm from it{turned}: see that it belongs there."


def _side(code: str) -> str:
    return {"L": "R", "P": "A", "I": "S"}.get(code, code)


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + "."
