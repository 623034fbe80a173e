"""Siemens mosaics: the slices of a volume as tiles of one large picture, row after row.

The header describes the large picture as if it were one slice about the same centre, and a private header (CSA) tells
how many tiles hold slices and which way they are stacked. Without it that is a guess, so the file is refused.

References
----------
The layout and the meaning of the CSA header: nibabel's documentation, "Siemens mosaic format" and "Siemens format DICOM".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydicom import Dataset

from medcam.errors import InputError
from medcam.formats.dicom_files import UNREADABLE, said
from medcam.formats.dicom_plane import numbers, plane, size
from medcam.formats.dicom_view import View

_CONVERT = (
    "convert it to NIfTI with the original files (dcm2niix does), or export it as single-frame or enhanced images"
)


def is_mosaic(header: Dataset) -> bool:
    """Tell whether an image holds the slices of a volume as tiles."""
    kind = said(header, "ImageType") or ()
    words = (kind,) if isinstance(kind, str) else tuple(str(each) for each in kind)
    return "MOSAIC" in words or _counted(header, 0x0019, "SIEMENS MR HEADER", 0x0A) or _is_united_imaging(header)


def tiles(header: Dataset) -> tuple[tuple[View, tuple[int, int]], ...]:
    """Return what is said of each slice, and the first column and row of its tile, in the order in which they are stacked.

    Raises
    ------
    InputError
        If the header lacks what places the slices.
    GeometryError
        If the large picture itself does not say where it lies.
    """
    if _is_united_imaging(header):
        raise InputError(f"is a grid of slices as United Imaging's scanners store them; {_CONVERT}")
    count, stacked = _csa(header)
    across = math.ceil(math.sqrt(count))
    columns, rows = (side // across for side in size(header))
    if not columns or not rows or size(header) != (columns * across, rows * across):
        raise InputError(
            f"is a mosaic of {count} slices, and its {size(header)[0]} x {size(header)[1]} pixels are not {across} x "
            f"{across} equal tiles; fetch it again"
        )
    whole = plane(header)
    if abs(abs(float(stacked @ whole.normal)) - 1) > 1e-3:
        raise InputError(
            f"is a mosaic whose slices are stacked along {stacked.tolist()}, not along their normal; {_CONVERT}"
        )
    # The large picture and the tile share their centre.
    margin = (np.array(size(header)) - (columns, rows)) / 2 * whole.spacing[::-1]
    first = whole.position + margin @ whole.directions
    between = numbers(header, "SpacingBetweenSlices", 1)
    step = stacked * (whole.thickness if between is None or between[0] == 0 else abs(float(between[0])))
    return tuple(
        (
            View(header, own={"Columns": columns, "Rows": rows, "ImagePositionPatient": list(first + k * step)}),
            (k % across * columns, k // across * rows),
        )
        for k in range(count)
    )


def _csa(header: Dataset) -> tuple[int, np.ndarray]:
    """Return the number of slices and the direction in which they are stacked (LPS)."""
    # Loading this part of nibabel warns that it is experimental.
    from nibabel.nicom import csareader

    try:
        csa: Mapping[str, Any] | None = csareader.get_csa_header(header)
        count = int(csareader.get_n_mosaic(csa) or 0) if csa else 0
        stacked = csareader.get_slice_normal(csa) if csa else None
    except (csareader.CSAError, AssertionError, struct.error, *UNREADABLE) as error:
        raise InputError(
            f"is a mosaic whose Siemens header (CSA) is damaged ({type(error).__name__}); {_CONVERT}"
        ) from error
    if count < 1 or stacked is None or not np.isfinite(np.asarray(stacked, np.float64)).all():
        raise InputError(
            "is a Siemens mosaic, and the private header (CSA) that says how many slices it holds and which way they are "
            f"stacked is missing; {_CONVERT}"
        )
    return count, np.asarray(stacked, np.float64)


def _is_united_imaging(header: Dataset) -> bool:
    return _counted(header, 0x0065, "Image Private Header", 0x50)


def _counted(header: Dataset, group: int, creator: str, element: int) -> bool:
    """Tell whether a private element counts several slices in one picture."""
    # Looking for a block by its creator takes long, and few images have one of this group at all.
    if not any((group << 16) + block in header for block in range(0x10, 0x14)):
        return False
    try:
        return int(header.private_block(group, creator)[element].value) > 1
    except UNREADABLE:
        return False
