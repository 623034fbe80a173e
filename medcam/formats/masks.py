"""Lesion masks in, from whatever they were drawn in: `read_mask`.

Boxes and points (CSV, COCO) belong here too: a file of them, told apart in `_read`, and drawn on the grid of `like` as contours
are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Num

from medcam.errors import InputError
from medcam.formats.labels import Choose, Label, choose, listing
from medcam.formats.reading import kind_of, read
from medcam.geometry import Grid
from medcam.volume import Volume

# The brightest grey of a picture: with shades between it and black, it is an outline that was smoothed, and no label.
_BRIGHTEST = (255, 65535)
_MOST_LABELS, _LARGEST_LABEL = 1024, 2**32 - 1


def read_mask(
    path: str | Path, *, label: str | int | None = None, like: Volume | Grid | None = None, volume: int | None = None
) -> Volume:
    """Read a mask of labels: a DICOM segmentation or structure set, NIfTI, NRRD, 3D Slicer's .seg.nrrd, MetaImage, a picture.

    Parameters
    ----------
    label
        The one label that is wanted, by number, or by name where the file names its labels. By default all.
    like
        The image that the mask was drawn on. Contours, which have no voxels, are filled on its grid, and a DICOM segmentation
        takes its slices where they fit. Other masks come on their own grid.
    volume
        Which volume of a 4D file, from 0.

    Returns
    -------
    Whole numbers: 0 where nothing is drawn, else the number of the label there; with `label`, 1 where that is.

    Raises
    ------
    UsageError
        If there is no such label.
    InputError
        If there is nothing at `path`, it is damaged, holds several masks or values between labels, or its labels overlap.
    GeometryError
        If it lies on no regular grid, or does not fit `like` where it must.
    """
    path = Path(path)
    chosen: list[Label] = []

    def wanted(labels: Sequence[Label]) -> tuple[Label, ...]:
        chosen[:] = choose(labels, label, path.name)
        return tuple(chosen)

    try:
        found = _read(path, wanted, like.grid if isinstance(like, Volume) else like, volume)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except MemoryError as error:
        raise InputError(f"{path.name} is too large for this computer's memory") from error
    drawn = found.voxels if label is None else found.voxels > 0
    voxels = drawn.astype(np.min_scalar_type(int(drawn.max())))
    named = (f"Labels: {listing(chosen)}.",) if any(each.name for each in chosen) else ()
    return Volume(voxels, found.grid, "label", replace(found.source, notes=(*found.source.notes, *named)))


def _read(path: Path, wanted: Choose, like: Grid | None, volume: int | None) -> Volume:
    """Read what lies there with labels by their numbers, those that are not wanted left out."""
    kind = kind_of(path)
    if kind == "dicom" and (drawn := _read_dicom(path, wanted, like)) is not None:
        return drawn
    if kind == "nrrd":
        from medcam.formats.nrrd import read_header
        from medcam.formats.nrrd_segments import is_segmentation, read_nrrd_segments

        if is_segmentation(file := read_header(path)):
            return read_nrrd_segments(path, file, wanted)
    if kind == "picture":
        from medcam.formats.picture import read_label_picture

        return _labels_of(read_label_picture(path), wanted, path.name, smoothed=_BRIGHTEST)
    return _labels_of(read(path, volume=volume), wanted, path.name)


def _read_dicom(path: Path, wanted: Choose, like: Grid | None) -> Volume | None:
    """Read the one segmentation or structure set at a path; None if there is none."""
    from medcam.formats import dicom_contours, dicom_segments
    from medcam.formats.dicom_files import files_in, read_header, said

    readers: dict[str, Callable[..., Volume]] = {
        dicom_contours.CLASS: dicom_contours.read_contours,
        **dict.fromkeys(dicom_segments.CLASSES, dicom_segments.read_segments),
    }
    with warnings.catch_warnings(), files_in(path) as files:
        # Of odd headers pydicom tells nothing that the errors here do not.
        warnings.simplefilter("ignore")
        headers = ((file, read_header(file, ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID"])) for file in files)
        kinds = ((file, str(said(header, "SOPClassUID"))) for file, header in headers if header is not None)
        found = [(file, readers[kind]) for file, kind in kinds if kind in readers]
        if len(found) > 1:
            names = ", ".join(file.path.name for file, _ in found[:10])
            raise InputError(f"{path.name} holds {len(found)} segmentations or structure sets; give one of {names}")
        return found[0][1](found[0][0], wanted, like=like) if found else None


def _labels_of(volume: Volume, wanted: Choose, name: str, *, smoothed: Sequence[int] = ()) -> Volume:
    """Take the values of an image for labels.

    Parameters
    ----------
    smoothed
        Values that other labels beside them make unlikely.
    """
    drawn = volume.voxels[volume.voxels != 0]
    if not np.array_equal(drawn, np.rint(drawn)):
        raise InputError(f"{name} holds values between labels, so it is no mask; give one of whole numbers")
    values = np.unique(drawn)
    if values.size > _MOST_LABELS or (values.size and not 0 < values.min() <= values.max() <= _LARGEST_LABEL):
        raise InputError(
            f"{name} holds {values.size} different values from {values.min():g} to {values.max():g}, so it is an image and no "
            "mask of labels; give the mask"
        )
    if not values.size:
        return replace(volume, voxels=np.zeros(volume.voxels.shape, np.uint8))
    chosen = [label.number for label in wanted([Label(int(value)) for value in values])]
    if len(chosen) == values.size > 1 and values.max() in smoothed:
        raise InputError(
            f"{name} holds {values.size} shades of grey up to {values.max()}: a mask with smoothed borders; save it without "
            f"smoothing, or choose one with --label (label={values.max()})"
        )
    return replace(volume, voxels=_only(volume.voxels, chosen, values.size))


def _only(voxels: Num[np.ndarray, "i j k"], chosen: Sequence[int], count: int) -> Num[np.ndarray, "i j k"]:
    kept = voxels if len(chosen) == count else np.where(np.isin(voxels, chosen), voxels, 0)
    return kept.astype(np.uint32)
