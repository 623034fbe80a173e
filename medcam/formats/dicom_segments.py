"""DICOM segmentations in (binary, fractional and label map): their segments as labels on a grid.

Frames that show nothing are not stored, so a segmentation need not say on which slices it was drawn. It lies on the slices of
the image that it was drawn on, if that is given, else on the regular grid that its own frames make.

References
----------
DICOM PS3.3 C.8.20 (Segmentation Image); PS3.5 8.1.1 (frames of single bits follow each other without padding).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from pydicom import FileDataset
from pydicom.uid import UID

from medcam.errors import GeometryError, InputError, MedcamError
from medcam.formats.dicom_files import StoredFile, naming, read_dataset, said
from medcam.formats.dicom_film import place_film
from medcam.formats.dicom_geometry import place_slices, refuse_size
from medcam.formats.dicom_pictures import Instance, Picture, pictures_of
from medcam.formats.dicom_pixels import Pixels, open_pixels, real_world
from medcam.formats.dicom_plane import Plane, numbers, plane, ras_affine, same_orientation, same_spacing
from medcam.formats.dicom_view import View
from medcam.formats.labels import Choose, Label, draw, readable
from medcam.geometry import Grid
from medcam.volume import Source, Volume

CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_LABEL_MAP = CLASSES[1]
# How far, in voxels, a frame may lie from the slice that it belongs to.
_OFF_SLICE = 0.1
_SAME_PLANE_MM = 1e-3


class _Stack(NamedTuple):
    """The grid of a segmentation, the slice of each of its frames, and what `Source` says of such a grid."""

    grid: Grid
    slices: Sequence[int]
    oriented: bool = True
    placed: bool = True
    spaced: bool = True


def read_segments(file: StoredFile, choose: Choose, *, like: Grid | None = None) -> Volume:
    """Read the chosen segments as a mask of labels, numbered as in the file.

    Parameters
    ----------
    choose
        Which segments.
    like
        The grid of the image that they were drawn on.

    Returns
    -------
    uint16 labels: on `like` if every frame lies on one of its slices, else on the frames' own grid, with empty slices where
    there is no frame. Of a fractional segmentation a voxel counts from half of the largest fraction on.

    Raises
    ------
    InputError
        If the file is damaged, or the chosen segments overlap.
    GeometryError
        If its frames make no regular grid and lie on no slices of `like`.
    """
    content, dataset = read_dataset(file)
    with named_damage(file):
        chosen = choose(_labels(dataset))
        pictures = pictures_of(Instance(file, dataset))
        stack = _stack(pictures, like)
        columns, rows, count = stack.grid.shape
        refuse_size(columns, rows, count)
        voxels = np.zeros((count, rows, columns), np.uint16)
        with naming(file):
            pixels = open_pixels(dataset)
        for picture, k in zip(pictures, stack.slices, strict=True):
            with naming(file):
                drawn = _drawn(dataset, pixels, picture, chosen)
            for label, inside in drawn:
                draw(voxels[k], inside, label, chosen, file.path.name)
    half = "A voxel counts from half of the largest fraction on." if _is_fractional(dataset) else ""
    source = Source(
        "dicom", hashlib.sha256(content).hexdigest(), "SEG", modality="SEG", oriented=stack.oriented, placed=stack.placed,
        spaced=stack.spaced, notes=(half,) if half else (),
    )  # fmt: skip
    return Volume(voxels.transpose(2, 1, 0), stack.grid, "label", source)


@contextmanager
def named_damage(file: StoredFile) -> Iterator[None]:
    """Turn whatever a damaged file makes the libraries raise into one error that names the file."""
    try:
        yield
    except MedcamError:
        raise
    except Exception as error:
        raise InputError(
            f"{file.path.name} is damaged and cannot be read ({type(error).__name__}); fetch it again"
        ) from error


def _labels(dataset: FileDataset) -> list[Label]:
    return [
        Label(int(segment.SegmentNumber), readable(said(segment, "SegmentLabel")))
        for segment in said(dataset, "SegmentSequence") or ()
        # Of a label map segment 0 is what is in no segment.
        if int(segment.SegmentNumber) > 0
    ]


def _stack(pictures: Sequence[Picture], like: Grid | None) -> _Stack:
    if numbers(pictures[0].header, "ImagePositionPatient", 3) is None:
        film = place_film(pictures[0].header)
        return _Stack(film.grid, [0] * len(pictures), film.oriented, film.placed, film.spaced)
    planes = [plane(picture.header) for picture in pictures]
    slices = None if like is None else _slices_of(like, planes)
    return _own_stack(planes, pictures) if like is None or slices is None else _Stack(like, slices)


def _slices_of(like: Grid, planes: Sequence[Plane]) -> list[int] | None:
    """Return the slice of `like` that each frame is, or None where one is none."""
    columns, rows, count = like.shape
    if any(each.size != (columns, rows) for each in planes):
        return None
    if {like.frame_of_reference, planes[0].frame_of_reference} - {None, like.frame_of_reference}:
        return None
    ends = np.array([[0, 0, 0], [columns - 1, 0, 0], [0, rows - 1, 0]])
    found = []
    for each in planes:
        affine = ras_affine(each.directions, each.spacing, each.normal, each.position)
        index = like.index(ends @ affine[:3, :3].T + affine[:3, 3])
        k = round(float(index[0, 2]))
        if not 0 <= k < count or np.abs(index - ends - [0, 0, k]).max() > _OFF_SLICE:
            return None
        found.append(k)
    return found


def _own_stack(planes: Sequence[Plane], pictures: Sequence[Picture]) -> _Stack:
    """Return the regular grid that the frames make."""
    first = planes[0]
    for each in planes:
        if each.size != first.size or not same_orientation(each, first) or not same_spacing(each, first):
            raise GeometryError(
                "the frames of the segmentation differ in size or orientation, so they make no volume; give the image that "
                "it was drawn on (like=)"
            )
    along = np.array([each.position for each in planes]) @ first.normal
    order = np.argsort(along, kind="stable")
    # Frames of several segments lie on one slice.
    starts = np.flatnonzero(np.diff(along[order], prepend=-np.inf) > _SAME_PLANE_MM)
    pile = [planes[order[n]] for n in starts]
    which = np.empty(len(planes), int)
    which[order] = np.searchsorted(starts, np.arange(len(planes)), "right") - 1
    spacing = numbers(pictures[0].header, "SpacingBetweenSlices", 1)
    if spacing is not None and (regular := _by_spacing(pile, abs(float(spacing[0])))) is not None:
        grid, slots = regular
    else:
        placement = place_slices(pile, allow_gaps=True)
        at = {n: k for k, n in enumerate(placement.order) if n is not None}
        grid, slots = placement.grid, [at[n] for n in range(len(pile))]
    return _Stack(grid, [slots[n] for n in which])


def _by_spacing(pile: Sequence[Plane], spacing: float) -> tuple[Grid, list[int]] | None:
    """Return the grid that is so many mm from slice to slice, and the slices of the frames; None if they do not fit that."""
    first, last = pile[0], pile[-1]
    steps = (
        (np.array([each.position for each in pile]) - first.position) @ first.normal / spacing if spacing > 0 else None
    )
    if steps is None or np.abs(steps - np.rint(steps)).max() > _OFF_SLICE:
        return None
    slots = [int(n) for n in np.rint(steps)]
    # Gantry tilt leads from slice to slice off the normal.
    step: Float[np.ndarray, "3"] = (last.position - first.position) / slots[-1] if slots[-1] else first.normal * spacing
    affine = ras_affine(first.directions, first.spacing, step, first.position)
    return Grid((*first.size, slots[-1] + 1), affine, first.frame_of_reference), slots


def _is_fractional(dataset: FileDataset) -> bool:
    return str(said(dataset, "SegmentationType")).upper() == "FRACTIONAL"


def _drawn(
    dataset: FileDataset, pixels: Pixels, picture: Picture, chosen: Sequence[Label]
) -> list[tuple[Label, Bool[np.ndarray, "j i"]]]:
    """Return the chosen labels in a frame, and where each is."""
    if said(dataset, "SOPClassUID") == _LABEL_MAP:
        values = real_world(pixels, picture.header, picture.frame)
        return [(label, inside) for label in chosen if (inside := values == label.number).any()]
    number = _segment_of(picture)
    label = next((each for each in chosen if each.number == number), None)
    if label is None:
        return []
    if int(dataset.BitsAllocated) == 1 and not UID(str(dataset.file_meta.TransferSyntaxUID)).is_encapsulated:
        return [(label, _bits(dataset, picture.frame))]
    values = real_world(pixels, picture.header, picture.frame)
    least = float(dataset.MaximumFractionalValue) / 2 if _is_fractional(dataset) else 1
    return [(label, values >= least)]


def _segment_of(picture: Picture) -> int:
    groups = picture.header.groups if isinstance(picture.header, View) else ()
    for group in groups:
        if found := group.get("SegmentIdentificationSequence"):
            return int(found[0].ReferencedSegmentNumber)
    raise InputError(f"does not say of which segment its frame {picture.frame + 1} is; export it again")


def _bits(dataset: Any, frame: int) -> Bool[np.ndarray, "j i"]:
    """Return a frame of single bits; pydicom and others take each for starting at a whole byte."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    first = frame * rows * columns
    content = np.frombuffer(dataset.PixelData, np.uint8)[first // 8 : (first + rows * columns + 7) // 8]
    bits = np.unpackbits(content, bitorder="little")[first % 8 :][: rows * columns]
    if bits.size < rows * columns:
        raise InputError("is cut short: it holds fewer frames than it says; fetch it again")
    return bits.reshape(rows, columns).astype(bool)
