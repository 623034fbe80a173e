"""What a header says about the plane of its picture, checked: where it lies, how it is turned, how large its pixels are.

DICOM's LPS becomes medcam's RAS here (`ras_affine`) and nowhere else.

References
----------
DICOM PS3.3 C.7.6.2 (Image Plane).
"""

from __future__ import annotations

from collections.abc import Sized
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from pydicom import Dataset
from pydicom.dataelem import RawDataElement

from medcam.errors import GeometryError
from medcam.formats.dicom_files import UNREADABLE, said
from medcam.formats.dicom_view import Header, View
from medcam.geometry import Grid

_RAS_FROM_LPS = np.diag((-1.0, -1.0, 1.0))
# How far direction cosines may be from perpendicular unit vectors, and those of two pictures from each other.
COSINES = 1e-3
# Pixel spacings that differ by less than this share are one spacing, rounded.
_SPACING_SHARE = 1e-4
_AXES = ("sagittal", "coronal", "axial")
KEYWORDS = (
    "Rows",
    "Columns",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PatientOrientation",
    "FrameOfReferenceUID",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "EstimatedRadiographicMagnificationFactor",
    "NominalScannedPixelSpacing",
    "PixelAspectRatio",
    "SliceThickness",
    "SpacingBetweenSlices",
)


class Plane(NamedTuple):
    """Where a picture lies, in DICOM's own terms (LPS).

    Parameters
    ----------
    size
        (columns, rows).
    directions
        Of an image row (along which the column index grows) and of an image column, of length 1.
    spacing
        Between rows and between columns, mm.
    position
        Of the centre of the first pixel, mm.
    thickness
        Of the slice, or from slice to slice, or 1 mm where the file does not say.
    frame_of_reference
        Its UID, or None.
    name
        What to call the picture in messages.
    """

    size: tuple[int, int]
    directions: Float[np.ndarray, "2 3"]
    spacing: Float[np.ndarray, " 2"]
    position: Float[np.ndarray, " 3"]
    thickness: float
    frame_of_reference: str | None
    name: str

    @property
    def normal(self) -> Float[np.ndarray, " 3"]:
        """Row x column, of length 1."""
        across = np.cross(self.directions[0], self.directions[1])
        return np.asarray(across / np.linalg.norm(across))

    @property
    def orientation(self) -> str:
        """The nearest body plane and the normal, in words."""
        listed = ", ".join(f"{cosine:.3f}" for cosine in self.normal)
        return f"{_AXES[int(np.argmax(np.abs(self.normal)))]} with normal ({listed})"


def plane(header: Header) -> Plane:
    """Return where the picture lies.

    Raises
    ------
    GeometryError
        If an element for this is missing or damaged, by its name.
    """
    directions = _required(header, "ImageOrientationPatient", 6).reshape(2, 3)
    if np.abs(directions @ directions.T - np.eye(2)).max() > COSINES:
        raise GeometryError(
            f"ImageOrientationPatient of {name(header)} is {directions.ravel().tolist()}: rows and columns should be "
            "perpendicular and of length 1; export the series again as the scanner made it"
        )
    spacing = _required(header, "PixelSpacing", 2)
    if spacing.min() <= 0:
        raise GeometryError(
            f"PixelSpacing of {name(header)} is {spacing.tolist()} and should be positive millimetres; export the "
            "series again as the scanner made it"
        )
    return Plane(
        size(header),
        # Cosines are rounded in the file, and spacing is the length of a step.
        directions / np.linalg.norm(directions, axis=1, keepdims=True),
        spacing,
        _required(header, "ImagePositionPatient", 3),
        _thickness(header),
        frame_of_reference(header),
        name(header),
    )


def same_orientation(one: Plane, other: Plane) -> bool:
    """Tell whether two pictures are parallel and turned alike."""
    return bool(np.abs(one.directions - other.directions).max() <= COSINES)


def same_spacing(one: Plane, other: Plane) -> bool:
    """Tell whether the pixels of two pictures are of one size."""
    return bool(np.abs(one.spacing - other.spacing).max() <= _SPACING_SHARE * one.spacing.min())


def slice_grid(plane: Plane) -> Grid:
    """Return the grid of a picture that stands alone, as thick as it says."""
    affine = ras_affine(plane.directions, plane.spacing, plane.normal * plane.thickness, plane.position)
    return Grid((*plane.size, 1), affine, plane.frame_of_reference)


def ras_affine(
    directions: Float[np.ndarray, "2 3"],
    spacing: Float[np.ndarray, " 2"],
    step: Float[np.ndarray, " 3"],
    position: Float[np.ndarray, " 3"],
) -> Float[np.ndarray, "4 4"]:
    """Return `world_from_index` (RAS) of DICOM's numbers (LPS).

    Parameters
    ----------
    directions
        Of an image row (along which the column index grows) and of an image column.
    spacing
        Between rows and between columns, in DICOM's order.
    step
        From one slice to the next.
    position
        Of the centre of the first voxel.
    """
    lps = np.stack([directions[0] * spacing[1], directions[1] * spacing[0], step, position], axis=1)
    affine = np.eye(4)
    affine[:3] = _RAS_FROM_LPS @ lps
    return affine


def size(header: Header) -> tuple[int, int]:
    """Return (columns, rows)."""
    return int(header.get("Columns")), int(header.get("Rows"))


def frame_of_reference(header: Header) -> str | None:
    """Return the UID of the space that positions are told in, or None where the file names none."""
    uid = said(header, "FrameOfReferenceUID")
    return str(uid) if uid else None


def numbers(header: Header, keyword: str, count: int) -> Float[np.ndarray, " count"] | None:
    """Return the values of an element, or None where it is absent or empty.

    Raises
    ------
    GeometryError
        If there are not `count` finite numbers.
    """
    try:
        value = _raw_decimals(header, keyword) or header.get(keyword)
        if value is None or (isinstance(value, Sized) and len(value) == 0):
            return None
        found = np.array(value, np.float64).reshape(-1)
    except UNREADABLE:
        raise GeometryError(
            f"{keyword} of {name(header)} does not hold numbers; export the series again as the scanner made it"
        ) from None
    if found.shape != (count,) or not np.isfinite(found).all():
        raise GeometryError(
            f"{keyword} of {name(header)} should be {count} finite number{'s' if count > 1 else ''}, not "
            f"{found.tolist()}; export the series again as the scanner made it"
        )
    return found


def _raw_decimals(header: Header, keyword: str) -> list[float]:
    """Return the numbers of an element that pydicom has not parsed yet: ten times as fast as its own way, which keeps the
    text of each number. Empty where the element is another thing, to be read in the usual way.
    """
    if not isinstance(header, Dataset):
        return []
    element: object = header.get_item(keyword)
    if not isinstance(element, RawDataElement) or element.VR != "DS" or not element.value:
        return []
    return [float(each) for each in element.value.rstrip(b" \0").split(b"\\")]


def name(header: Header) -> str:
    """Return what to call a picture in messages: its numbers, which name no patient."""
    try:
        # In a damaged header anything may stand there, a name too.
        image = f"the image with InstanceNumber {int(said(header, 'InstanceNumber'))}"
    except (TypeError, ValueError):
        image = "an image without InstanceNumber"
    if isinstance(header, View) and header.number is not None:
        return f"frame {header.number} of {image}"
    return image


def _required(header: Header, keyword: str, count: int) -> Float[np.ndarray, " count"]:
    found = numbers(header, keyword, count)
    if found is None:
        raise GeometryError(
            f"{name(header)} has no {keyword}, so it cannot be placed in the patient; export the series again as the "
            "scanner made it"
        )
    return found


def _thickness(header: Header) -> float:
    for keyword in ("SliceThickness", "SpacingBetweenSlices"):
        found = numbers(header, keyword, 1)
        if found is not None and found[0] != 0:
            return float(abs(found[0]))
    return 1.0
