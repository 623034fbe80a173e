"""DICOM structure sets (RTSTRUCT) in: contours filled on the grid of the image that they were drawn on.

A voxel is in a structure where its centre lies in an odd number of the structure's contours on its slice: so holes are holes,
whether they are contours of their own or keyholes.

References
----------
DICOM PS3.3 C.8.8.5 (Structure Set), C.8.8.6 (ROI Contour).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from pydicom import Dataset

from medcam.errors import GeometryError, InputError
from medcam.formats.contours import inside
from medcam.formats.dicom_files import StoredFile, read_dataset, said
from medcam.formats.dicom_segments import named_damage
from medcam.formats.labels import Choose, Label, draw, readable
from medcam.geometry import Grid
from medcam.volume import Source, Volume

CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
# How far, in voxels, a contour may lie from its slice: files round to a tenth of a millimetre or so.
_OFF_SLICE = 0.1
_FARTHEST_MM = 1e6
_LPS = np.array([-1.0, -1.0, 1.0])


class _Structure(NamedTuple):
    """What is drawn of a structure, in (fractional) indices of the image: contours and points."""

    contours: list[Float[np.ndarray, "n 3"]]
    points: list[Float[np.ndarray, "n 3"]]


def read_contours(file: StoredFile, choose: Choose, *, like: Grid | None) -> Volume:
    """Read the chosen structures as a mask of labels, numbered as in the file, on the grid of an image.

    Parameters
    ----------
    choose
        Which structures.
    like
        The grid of the image that they were drawn on. What is drawn beyond it is left out, and that is noted.

    Raises
    ------
    InputError
        If the file is damaged, `like` is missing, the chosen structures overlap, or one holds other things than closed planar
        contours and points.
    GeometryError
        If a structure lies in another frame of reference, between the slices, oblique to them, or in no voxel.
    """
    content, dataset = read_dataset(file)
    name = file.path.name
    if like is None:
        raise InputError(
            f"{name} holds contours, which have no voxels of their own: give the image that they were drawn on (like=)"
        )
    with named_damage(file):
        rois = {int(roi.ROINumber): roi for roi in said(dataset, "StructureSetROISequence") or ()}
        drawn = {
            int(each.ReferencedROINumber): each
            for each in said(dataset, "ROIContourSequence") or ()
            if said(each, "ContourSequence")
        }
        labels = [Label(number, readable(said(roi, "ROIName"))) for number, roi in rois.items() if number in drawn]
        chosen = choose(labels)
        voxels = np.zeros(like.shape, np.uint16)
        notes: list[str] = []
        for label in chosen:
            _refuse_other_frame(rois[label.number], like, label)
            region = _filled(_structure(drawn[label.number], like, label), like, label, notes)
            draw(voxels, region, label, chosen, name)
    if not voxels.any():
        raise GeometryError(
            f"what is drawn in {name} holds the centre of no voxel of the image: it belongs to another image, or is smaller "
            f"than a voxel; {' '.join(notes)}".rstrip("; ")
        )
    source = Source("dicom", hashlib.sha256(content).hexdigest(), "RTSTRUCT", modality="RTSTRUCT", notes=tuple(notes))
    return Volume(voxels, like, "label", source)


def _refuse_other_frame(roi: Dataset, like: Grid, label: Label) -> None:
    frame = said(roi, "ReferencedFrameOfReferenceUID")
    if frame and like.frame_of_reference and str(frame) != like.frame_of_reference:
        raise GeometryError(
            f"the structure {_words(label)} lies in another frame of reference than the image ({frame} and "
            f"{like.frame_of_reference}), so their millimetres do not compare; give the image that it was drawn on"
        )


def _structure(drawn: Dataset, like: Grid, label: Label) -> _Structure:
    found = _Structure([], [])
    for contour in drawn.ContourSequence:
        kind = str(said(contour, "ContourGeometricType"))
        numbers = np.array(said(contour, "ContourData"), np.float64).reshape(-1)
        count = said(contour, "NumberOfContourPoints")
        if (
            numbers.size % 3
            or not (np.abs(numbers) < _FARTHEST_MM).all()
            or (count is not None and int(count) != numbers.size // 3)
        ):
            raise InputError(
                f"the structure {_words(label)} is damaged: a contour holds {numbers.size} coordinates of {count} points"
            )
        if kind not in (*_CLOSED, "POINT"):
            raise InputError(
                f"the structure {_words(label)} holds a contour of the kind {kind[:32]}; medcam fills closed planar contours "
                "and marks points"
            )
        index = like.index(numbers.reshape(-1, 3) * _LPS)
        (found.points if kind == "POINT" else found.contours).append(index)
    return found


def _filled(structure: _Structure, like: Grid, label: Label, notes: list[str]) -> Bool[np.ndarray, "i j k"]:
    """Return where a structure is, and note what of it is not."""
    region = np.zeros(like.shape, bool)
    axis = _axis(structure.contours, label)
    slices = np.moveaxis(region, axis, 0)
    across = [other for other in range(3) if other != axis]
    beyond, lost, used, known = 0, 0, set(), set()
    for contour in structure.contours:
        k = _slice_of(contour, axis, like, label)
        if k is None:
            beyond += 1
            continue
        outline = (k, np.round(contour, 6).tobytes())
        if outline in known:
            # A contour that is stored twice is one, and no hole in itself.
            continue
        known.add(outline)
        used.add(k)
        filled = inside(contour[:, across], (slices.shape[1], slices.shape[2]))
        lost += not filled.any()
        slices[k] ^= filled
    for point in structure.points:
        for index in np.floor(point + 0.5).astype(int):
            if (index >= 0).all() and (index < like.shape).all():
                region[tuple(index)] = True
            else:
                beyond += 1
    skipped = sorted(set(range(min(used), max(used) + 1)) - used) if used else []
    notes += [
        f"{_words(label)}: {words}"
        for words, is_so in (
            (f"{beyond} contours or points lie beyond the image and were left out.", beyond),
            (f"{lost} contours hold the centre of no voxel.", lost),
            (f"no contour on slices {', '.join(map(str, skipped[:20]))} between others: nothing is there.", skipped),
        )
        if is_so
    ]
    return region


def _axis(contours: Sequence[Float[np.ndarray, "n 3"]], label: Label) -> int:
    """Return the axis of the image across which all contours of a structure are flat, the slices' own if possible."""
    fitting = [axis for axis in (2, 1, 0) if all(np.ptp(each[:, axis]) <= _OFF_SLICE for each in contours)]
    if not fitting:
        raise GeometryError(
            f"contours of the structure {_words(label)} lie oblique to the image's slices; give the image that it was drawn on"
        )
    return fitting[0]


def _slice_of(contour: Float[np.ndarray, "n 3"], axis: int, like: Grid, label: Label) -> int | None:
    """Return the slice that a contour lies on, or None beyond the image."""
    place = float(contour[:, axis].mean())
    k = round(place)
    if not 0 <= k < like.shape[axis]:
        return None
    if abs(place - k) > _OFF_SLICE:
        raise GeometryError(
            f"a contour of the structure {_words(label)} lies between slices {int(np.floor(place))} and "
            f"{int(np.ceil(place))} of the image (from 0), {abs(place - k):.2f} of a step from the nearer one: it was drawn on "
            "another image; give that one"
        )
    return k


def _words(label: Label) -> str:
    return f"{label.number} '{label.name}'"
