"""Where each frame of a derived multi-frame image lies, and which picture it was made from: functional groups and dimensions.

Frames follow the heatmap's own grid, slices interpolated into a gap included, and lie in the order of their positions along
row x column: dcmqi's and OHIF's readers of Parametric Maps take that order for granted, and place a file in the opposite
order as its mirror image, without a word.

References
----------
DICOM PS3.3 C.7.6.16 (functional groups), C.7.6.17 (dimensions), C.7.6.2 (Image Plane).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.valuerep import DSfloat

from medcam.errors import OutputError
from medcam.formats import dicom_slices
from medcam.formats.dicom_derived import keeps_places, source_image
from medcam.formats.dicom_files import said
from medcam.formats.dicom_plane import numbers
from medcam.formats.dicom_slices import LPS_FROM_RAS, picture_header, picture_slices
from medcam.geometry import Grid
from medcam.volume import Heatmap, Source, Volume

# Rows and columns of a frame are perpendicular; what DICOM's 16 characters can hold is far below these.
_COSINES = 1e-4
# What is nearer than this is the same place; slices may lie further off the regular grid, and are then put on it.
_SAME_MM = 0.01
_DECIMALS = 6


class Picture(NamedTuple):
    """One frame to be written: the slice k that it shows, and the segment that it shows of it (from 1), if any."""

    k: int
    segment: int | None = None


@dataclass(frozen=True)
class Stack:
    """Where the slices of a grid lie, in DICOM's words and millimetres (LPS).

    Parameters
    ----------
    directions
        Of an image row and of an image column.
    spacing_mm
        Between rows and between columns, in DICOM's order.
    positions_mm
        Of the centre of the first voxel of each slice k.
    step_mm
        From one slice to the next, along the normal.
    lean_mm
        How far the last slice lies off the normal through the first, by a tilted gantry.
    order
        The slices, in the order of their positions along row x column.
    """

    directions: Float[np.ndarray, "2 3"]
    spacing_mm: tuple[float, float]
    positions_mm: Float[np.ndarray, "k 3"]
    step_mm: float
    lean_mm: float
    order: tuple[int, ...]


def stack_of(grid: Grid) -> Stack:
    """Return where the slices of a grid lie.

    Raises
    ------
    OutputError
        If the rows and the columns of a slice are not perpendicular, which DICOM cannot say. A tilted gantry it can.
    """
    lps = LPS_FROM_RAS @ grid.affine[:3]
    lengths = np.linalg.norm(lps[:, :2], axis=0)
    directions = (lps[:, :2] / lengths).T
    if abs(float(directions[0] @ directions[1])) > _COSINES:
        raise OutputError(
            "the rows and columns of this heatmap are not perpendicular, and DICOM frames are; put it on a regular grid "
            "first, or write NIfTI"
        )
    normal = np.cross(directions[0], directions[1])
    step = float(lps[:, 2] @ normal)
    count = grid.shape[2]
    positions = (lps[:, 3] + np.arange(count)[:, None] * lps[:, 2]).round(_DECIMALS)
    order = range(count) if step > 0 else range(count - 1, -1, -1)
    lean = float(np.linalg.norm(lps[:, 2] - step * normal)) * (count - 1)
    return Stack(directions, (float(lengths[1]), float(lengths[0])), positions, abs(step), lean, tuple(order))


def stack_as_stored(heatmap: Heatmap) -> Stack:
    """Return where the slices of a heatmap lie, in the very numbers of its source where these differ by no more than rounding.

    Cornerstone (OHIF) compares direction cosines digit by digit.

    Raises
    ------
    OutputError
        As `stack_of`.
    """
    stack, source = stack_of(heatmap.grid), heatmap.source
    headers = {k: picture_header(source, k) for k in range(heatmap.grid.shape[2])} if keeps_places(heatmap) else {}
    positions = stack.positions_mm.copy()
    directions, spacing = stack.directions, np.array(stack.spacing_mm)
    for k, header in headers.items():
        if header is not None:
            positions[k] = _rounded(numbers(header, "ImagePositionPatient", 3), positions[k], _SAME_MM)
            directions = _rounded(numbers(header, "ImageOrientationPatient", 6), directions, _COSINES)
            spacing = _rounded(numbers(header, "PixelSpacing", 2), spacing, _SAME_MM * spacing.min())
    down, across = (float(length) for length in spacing)
    return replace(stack, directions=directions, spacing_mm=(down, across), positions_mm=positions)


def _rounded(theirs: np.ndarray | None, ours: np.ndarray, tolerance: float) -> np.ndarray:
    """Return what the source says, in our shape, if it is what we say up to rounding."""
    if theirs is None or np.abs(theirs - ours.ravel()).max() > tolerance:
        return ours
    return theirs.reshape(ours.shape)


def refuse_other_place(heatmap: Heatmap, volume: Volume) -> None:
    """Refuse a heatmap whose slices do not lie where the pictures of its source say that they lie.

    Raises
    ------
    OutputError
        If the heatmap lies on another grid than the image, or the image elsewhere than its own source.
    """
    grid = heatmap.grid
    if not grid.is_close(volume.grid):
        raise OutputError(
            f"the heatmap lies on a grid of shape {grid.shape} and the image on another, of shape {volume.grid.shape}; "
            "give the image that the heatmap was made for"
        )
    dicom_slices.refuse_other_place(heatmap.source, grid)


def add_frames(
    dataset: Dataset,
    heatmap: Heatmap,
    stack: Stack | None,
    pictures: Sequence[Picture],
    *,
    derivation: Dataset,
    uid: str,
) -> None:
    """Add what places the frames: dimensions, and shared and per-frame functional groups.

    Parameters
    ----------
    stack
        None for an image that does not say where in the patient it lies.
    pictures
        The frames, in the order in which their pixels are stored.
    derivation
        The code of how a frame was made from its source image.
    uid
        Of the organisation of dimensions.
    """
    kept = keeps_places(heatmap)
    dataset.NumberOfFrames = len(pictures)
    _add_dimensions(dataset, stack, pictures, uid)
    shared = Dataset()
    if stack is not None:
        orientation = Dataset()
        orientation.ImageOrientationPatient = decimals(_cosines(heatmap.source, stack, same_place=kept))
        shared.PlaneOrientationSequence = [orientation]
        shared.PixelMeasuresSequence = [_measures(heatmap.source, stack, same_place=kept)]
    dataset.SharedFunctionalGroupsSequence = [shared]
    rank = {k: n for n, k in enumerate(stack.order if stack else range(heatmap.grid.shape[2]), 1)}
    items = []
    for picture in pictures:
        item = Dataset()
        item.FrameContentSequence = [_content(picture, rank[picture.k], placed=stack is not None)]
        if stack is not None:
            place = Dataset()
            place.ImagePositionPatient = decimals(stack.positions_mm[picture.k])
            item.PlanePositionSequence = [place]
        item.DerivationImageSequence = _derivation(heatmap.source, picture.k, derivation, same_place=kept)
        if picture.segment is not None:
            segment = Dataset()
            segment.ReferencedSegmentNumber = picture.segment
            item.SegmentIdentificationSequence = [segment]
        items.append(item)
    dataset.PerFrameFunctionalGroupsSequence = items


def _add_dimensions(dataset: Dataset, stack: Stack | None, pictures: Sequence[Picture], uid: str) -> None:
    pointers = [("ReferencedSegmentNumber", "SegmentIdentificationSequence")] * (pictures[0].segment is not None)
    if stack is not None:
        pointers.append(("ImagePositionPatient", "PlanePositionSequence"))
    else:
        pointers.append(("InStackPositionNumber", "FrameContentSequence"))
    dataset.DimensionIndexSequence = []
    for keyword, group in pointers:
        item = Dataset()
        item.DimensionOrganizationUID = uid
        item.DimensionIndexPointer = tag_for_keyword(keyword)
        item.FunctionalGroupPointer = tag_for_keyword(group)
        item.DimensionDescriptionLabel = keyword
        dataset.DimensionIndexSequence.append(item)
    organization = Dataset()
    organization.DimensionOrganizationUID = uid
    dataset.DimensionOrganizationSequence = [organization]
    if stack is not None and len(pictures) == len(stack.order) > 1:
        dataset.DimensionOrganizationType = "3D"


def _cosines(source: Source, stack: Stack, *, same_place: bool) -> Float[np.ndarray, " 6"]:
    """Return the directions of rows and columns, in the source's own digits where these mean the same: OHIF's reader of
    Parametric Maps takes cosines that differ in the sixteenth digit for another plane, and refuses the map.
    """
    header = picture_header(source, picture_slices(source)[0]) if same_place else None
    own = None if header is None else numbers(header, "ImageOrientationPatient", 6)
    directions = stack.directions.ravel()
    return directions if own is None or np.abs(own - directions).max() > _COSINES else own


def _measures(source: Source, stack: Stack, *, same_place: bool) -> Dataset:
    """Return a Pixel Measures item. A film gets none: its pixels are the source's, and it has no thickness to state."""
    measures = Dataset()
    measures.PixelSpacing = decimals(stack.spacing_mm)
    header = picture_header(source, picture_slices(source)[0]) if same_place else None
    thickness = None if header is None else said(header, "SliceThickness")
    measures.SliceThickness = decimals([thickness or stack.step_mm])[0]
    measures.SpacingBetweenSlices = decimals([stack.step_mm])[0]
    return measures


def _content(picture: Picture, rank: int, *, placed: bool) -> Dataset:
    content = Dataset()
    content.DimensionIndexValues = [rank] if picture.segment is None else [picture.segment, rank]
    content.StackID, content.InStackPositionNumber = "1", rank
    return content


def _derivation(source: Source, k: int, derivation: Dataset, *, same_place: bool) -> list[Dataset]:
    """Return what the Derivation Image Sequence of a frame of slice k holds: nothing where the slice is no picture."""
    frame = source.slices[k] if k < len(source.slices) else None
    if frame is None:
        return []
    item = Dataset()
    item.DerivationCodeSequence = [derivation]
    numbers = () if frame.number is None else (frame.number,)
    item.SourceImageSequence = [source_image(source.instances[frame.instance], numbers, same_place=same_place)]
    return [item]


def decimals(values: object) -> list[DSfloat]:
    """Return numbers in at most 16 characters, as DICOM writes them."""
    return [DSfloat(float(value), auto_format=True) for value in np.ravel(np.array(values, float))]
