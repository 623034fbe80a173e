"""Where an X-ray film lies: it has no place in the patient, only a pixel size and, with luck, an orientation.

References
----------
DICOM PS3.3 C.7.6.1.1.1 (Patient Orientation), 10.7.1.3 (Pixel Spacing of projections).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from medcam.formats.dicom_files import said
from medcam.formats.dicom_geometry import Placement
from medcam.formats.dicom_plane import frame_of_reference, numbers, ras_affine, size
from medcam.formats.dicom_view import Header
from medcam.geometry import Grid

_LPS_DIRECTIONS = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}


def place_film(header: Header) -> Placement:
    """Place an image that does not say where it lies.

    The centre of its first pixel is the origin, and it is 1 mm thick. Nothing is turned or mirrored. Where the file
    does not say how the patient lies, rows run to the patient's left and columns to the feet, as on a chest film.

    Raises
    ------
    GeometryError
        If its numbers are damaged.
    """
    spacing, spaced, spacing_notes = _spacing(header)
    directions, oriented, orientation_notes = _directions(header)
    affine = ras_affine(directions, spacing, np.cross(directions[0], directions[1]), np.zeros(3))
    grid = Grid((*size(header), 1), affine, frame_of_reference(header))
    view = view_of(header)
    notes = (*spacing_notes, *orientation_notes, *((view,) if view else ()))
    return Placement(grid, (0,), oriented=oriented, placed=False, spaced=spaced, notes=notes)


def view_of(header: Header) -> str:
    """Return which view of the body a film shows, in the file's codes: 'view PA, laterality L'; '' where it does not say."""
    said_of = {
        "view": said(header, "ViewPosition"),
        "laterality": said(header, "ImageLaterality") or said(header, "Laterality"),
    }
    # A code has at most 16 characters; what is longer is damaged and may hold anything.
    codes = {what: str(code).strip() for what, code in said_of.items() if code is not None}
    return ", ".join(f"{what} {code}" for what, code in codes.items() if 0 < len(code) <= 16 and code.isprintable())


def _spacing(header: Header) -> tuple[Float[np.ndarray, " 2"], bool, tuple[str, ...]]:
    """Return (between rows, between columns), whether they are millimetres, and what to know about them."""
    at_detector = "at the detector: lengths in the patient are shorter"
    calibrated, detector, scanned = (
        _positive(header, keyword) for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
    )
    if calibrated is not None:
        same = detector is not None and np.array_equal(calibrated, detector)
        return calibrated, True, (f"pixel spacing from PixelSpacing, {at_detector}",) if same else ()
    if detector is not None:
        factor = numbers(header, "EstimatedRadiographicMagnificationFactor", 1)
        if factor is not None and factor[0] > 0:
            note = f"pixel spacing from ImagerPixelSpacing and EstimatedRadiographicMagnificationFactor {factor[0]:g}"
            return detector / factor[0], True, (note,)
        return detector, True, (f"pixel spacing from ImagerPixelSpacing, {at_detector}",)
    if scanned is not None:
        return scanned, True, ("pixel spacing from NominalScannedPixelSpacing, on the scanned film",)
    ratio = _positive(header, "PixelAspectRatio")
    aspect = np.ones(2) if ratio is None else np.array((ratio[0] / ratio[1], 1.0))
    return aspect, False, ("the file does not say how large a pixel is: lengths are in pixels",)


def _positive(header: Header, keyword: str) -> Float[np.ndarray, " 2"] | None:
    found = numbers(header, keyword, 2)
    return found if found is not None and found.min() > 0 else None


def _directions(header: Header) -> tuple[Float[np.ndarray, "2 3"], bool, tuple[str, ...]]:
    """Return where rows and columns run (LPS), whether the file says so, and what to know about it."""
    value = said(header, "PatientOrientation") or ()
    # 'LF' is mainly to the left and a little to the feet.
    letters = [str(each)[:1] for each in ((value,) if isinstance(value, str) else value)]
    if len(letters) == 2 and all(letter in _LPS_DIRECTIONS for letter in letters):
        directions = np.array([_LPS_DIRECTIONS[letter] for letter in letters], np.float64)
        if directions[0] @ directions[1] == 0:
            return directions, True, ()
    note = "the file does not say how the patient lies: placed as a frontal chest film, sides unknown"
    return np.array([_LPS_DIRECTIONS["L"], _LPS_DIRECTIONS["F"]], np.float64), False, (note,)
