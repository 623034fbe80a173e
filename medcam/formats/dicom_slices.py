"""The pictures that a source's slices are: where each lies, and how an object of one or all of them refers to them.

References
----------
DICOM PS3.3 C.7.6.2 (Image Plane), C.7.6.16.2 (Plane Position and Orientation of a frame), 10.3 (Image SOP Instance Reference).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from pydicom import Dataset

from medcam.errors import OutputError
from medcam.formats import dicom_derived
from medcam.formats.dicom_files import said
from medcam.formats.dicom_mosaic import is_mosaic
from medcam.formats.dicom_plane import numbers, size
from medcam.formats.dicom_view import Header, View
from medcam.geometry import Grid
from medcam.volume import Frame, Source

# As the reader: a slice may lie this share of a step off its place on the regular grid.
_DRIFT_SHARE, _DRIFT_MM = 0.1, 0.01
LPS_FROM_RAS = np.diag((-1.0, -1.0, 1.0))


class Plane(NamedTuple):
    """Where a picture lies: the centre of its first pixel, and the steps to the next column and the next row (LPS mm)."""

    position: Float[np.ndarray, " 3"]
    across: Float[np.ndarray, " 3"]
    down: Float[np.ndarray, " 3"]


def picture_slices(source: Source) -> list[int]:
    """Return the slices k that are pictures of the source; all where none is, because the volume was put on another grid.

    A slice that was interpolated into a gap between others is no picture.
    """
    count = len(source.slices)
    return [k for k in range(count) if source.slices[k] is not None] or list(range(count))


def picture_header(source: Source, k: int) -> Header | None:
    """Return what is said of the picture that slice k is: by its instance, or by that and the frame's functional groups.

    None where slice k is no picture with pixels of its own: interpolated, put on another grid, or a tile of a mosaic.
    """
    frame = source.slices[k]
    if frame is None or is_mosaic(source.instances[frame.instance]):
        return None
    header: Dataset = source.instances[frame.instance]
    if frame.number is None:
        return header
    frames = said(header, "PerFrameFunctionalGroupsSequence") or ()
    own = tuple(frames[frame.number - 1 : frame.number])
    return View(header, frame.number, (*own, *tuple(said(header, "SharedFunctionalGroupsSequence") or ())[:1]))


def slice_plane(source: Source, grid: Grid, k: int) -> Plane:
    """Return where slice k lies: as its own header says, else as the grid says."""
    across, down = (LPS_FROM_RAS @ grid.affine[:3, :2]).T
    header = picture_header(source, k)
    own = None if header is None else _plane(header)
    return Plane(LPS_FROM_RAS @ grid.world_mm(np.array([0, 0, k])) if own is None else own.position, across, down)


def _plane(header: Header) -> Plane | None:
    position = numbers(header, "ImagePositionPatient", 3)
    directions = numbers(header, "ImageOrientationPatient", 6)
    spacing = numbers(header, "PixelSpacing", 2)
    if position is None or directions is None or spacing is None:
        return None
    return Plane(position, directions[:3] * spacing[1], directions[3:] * spacing[0])


def refuse_other_place(source: Source, grid: Grid) -> None:
    """Refuse a grid whose slices do not lie where the headers of their pictures say.

    Raises
    ------
    OutputError
        If a slice has another size than its picture, or lies elsewhere.
    """
    tolerance = max(_DRIFT_MM, _DRIFT_SHARE * grid.spacing_mm[2])
    columns, rows, slices = grid.shape
    if len(source.slices) != slices:
        raise OutputError(
            f"the heatmap has {slices} slices and its DICOM source {len(source.slices)}; write the heatmap that lies on "
            "the source's own grid"
        )
    corners = np.array([(0, 0), (columns - 1, 0), (0, rows - 1)])
    for k in range(slices):
        if (header := picture_header(source, k)) is None:
            continue
        if (found := size(header)) != (columns, rows):
            raise OutputError(
                f"the heatmap has {columns} x {rows} voxels a slice and its DICOM source {found[0]} x {found[1]}; "
                "write the heatmap that lies on the source's own grid"
            )
        if (plane := _plane(header)) is None:
            continue
        theirs = plane.position + corners[:, :1] * plane.across + corners[:, 1:] * plane.down
        ours = grid.world_mm(np.insert(corners, 2, k, axis=1)) @ LPS_FROM_RAS
        off = float(np.linalg.norm(theirs - ours, axis=1).max())
        if off > tolerance:
            raise OutputError(
                f"slice {k} of the heatmap lies {off:.2f} mm from where its DICOM header says; "
                "write the heatmap that lies on the source's own grid"
            )


def only(source: Source, slices: Sequence[int]) -> Source:
    """Return a source of these slices alone, with the instances that they are pictures of.

    Slices of a volume that was put on another grid are no pictures: every instance stays.
    """
    frames = [source.slices[k] for k in slices]
    if not any(frames):
        return source
    used = sorted({frame.instance for frame in frames if frame is not None})
    place = {instance: n for n, instance in enumerate(used)}
    return replace(
        source,
        instances=tuple(source.instances[instance] for instance in used),
        slices=tuple(None if frame is None else Frame(place[frame.instance], frame.number) for frame in frames),
    )


def picture_reference(source: Source, k: int) -> Dataset | None:
    """Return an item that refers to the picture that slice k is, with its frame; None if it has no pixels of its own."""
    frame = source.slices[k]
    if frame is None or picture_header(source, k) is None:
        return None
    item = dicom_derived.reference(source.instances[frame.instance])
    if frame.number is not None:
        item.ReferencedFrameNumber = frame.number
    return item
