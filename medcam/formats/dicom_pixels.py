"""What DICOM pixels mean: stored numbers -> real-world values in which larger is brighter.

The errors raised here begin with a verb: who calls puts the name of the file before them.

References
----------
DICOM PS3.3 C.11.1 (Modality LUT), C.11.2 (VOI LUT).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32, Num
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut

from medcam.errors import InputError
from medcam.formats import dicom_decoding
from medcam.formats.dicom_decoding import Pixels, open_pixels
from medcam.formats.dicom_files import said
from medcam.formats.dicom_view import Header

__all__ = [
    "Pixels",
    "display_window",
    "is_grey",
    "is_inverted",
    "mirror",
    "open_pixels",
    "real_world",
    "rescale",
    "unit",
]

Decode: TypeAlias = Callable[[Pixels, int], np.ndarray]


def real_world(
    pixels: Pixels,
    header: Header,
    frame: int = 0,
    *,
    out: Float32[np.ndarray, "j i"] | None = None,
    decode: Decode = dicom_decoding.stored,
) -> Float32[np.ndarray, "j i"]:
    """Return the real-world values of a greyscale picture, rows first.

    MONOCHROME1 is turned over within the range of the stored values, so that larger is brighter, once: a
    PresentationLUTShape of INVERSE says the same thing in other words.

    Parameters
    ----------
    header
        What is said of the picture.
    frame
        Which frame it is, from 0.
    out
        An array to put them in.
    decode
        What returns the stored numbers of a frame.

    Raises
    ------
    InputError
        If its pixels are missing, cut short, damaged, or compressed in a way for which no decoder is installed.
    Exception
        Whatever pydicom raises for a header that is damaged.
    """
    stored = decode(pixels, frame)
    rows, columns = int(pixels.dataset.Rows), int(pixels.dataset.Columns)
    if stored.shape != (rows, columns):
        raise InputError(
            f"is damaged: its pixels have shape {stored.shape}, its header says {rows} rows and {columns} columns; "
            "fetch it again"
        )
    out = np.empty(stored.shape, np.float32) if out is None else out
    inverted = is_inverted(header)
    table = header.get("ModalityLUTSequence")
    slope, intercept = (1.0, 0.0) if table else rescale(header)
    whole = intercept.is_integer() and abs(intercept) < 2**23 and stored.dtype.itemsize <= 2
    if slope == 1 and whole and not inverted and not table:
        # Exact in float32, and several times faster than by way of float64.
        np.add(stored, np.float32(intercept), out=out, dtype=np.float32)
        return out
    values = _by_table(stored, table[0], pixels.dataset) if table else stored * slope + intercept
    out[...] = mirror(header) - values if inverted else values
    return out


def is_grey(header: Header) -> bool:
    """Tell whether an image has one grey value a pixel."""
    samples = said(header, "SamplesPerPixel")
    return said(header, "PhotometricInterpretation") in ("MONOCHROME1", "MONOCHROME2") and samples in (None, 1)


def is_inverted(header: Header) -> bool:
    """Tell whether small stored values are meant to be shown bright."""
    return str(header.get("PhotometricInterpretation")) == "MONOCHROME1"


def mirror(header: Header) -> float:
    """Return the sum of a real-world value and the one that takes its place when brightness is turned over."""
    if table := header.get("ModalityLUTSequence"):
        return float(2 ** int(table[0].LUTDescriptor[2]) - 1)
    slope, intercept = rescale(header)
    lowest_plus_highest = -1 if header.get("PixelRepresentation") else 2 ** int(header.get("BitsStored")) - 1
    return slope * lowest_plus_highest + 2 * intercept


def rescale(header: Header) -> tuple[float, float]:
    """Return (slope, intercept), 1 and 0 where the file does not say.

    Raises
    ------
    InputError
        If they are not finite or the slope is zero.
    """
    slope, intercept = (header.get(keyword) for keyword in ("RescaleSlope", "RescaleIntercept"))
    # An empty element is None.
    pair = (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))
    if not np.isfinite(pair).all() or pair[0] == 0:
        raise InputError(f"has a RescaleSlope of {pair[0]} and a RescaleIntercept of {pair[1]}; export it again")
    return pair


def display_window(header: Header) -> tuple[float, float] | None:
    """Return the first (centre, width) that the file asks for, as `real_world` values, or None if none makes sense."""
    said_centre, said_width = said(header, "WindowCenter"), said(header, "WindowWidth")
    if said_centre is None or said_width is None:
        return None
    centre, width = float(np.ravel(said_centre)[0]), float(np.ravel(said_width)[0])
    if not np.isfinite((centre, width)).all() or width <= 0:
        return None
    return (mirror(header) - centre if is_inverted(header) else centre), width


def unit(header: Header) -> str:
    """Return the unit of the real-world values: 'HU' for CT, else what the file says, or 'a.u.'."""
    named = str(said(header, "RescaleType") or said(header, "Units") or "").strip()
    # 'US' is DICOM's word for unspecified.
    if named and named != "US":
        return named
    return "HU" if said(header, "Modality") == "CT" else "a.u."


def _by_table(stored: Num[np.ndarray, "j i"], item: Dataset, dataset: Dataset) -> Num[np.ndarray, "j i"]:
    # pydicom refuses entries of other than 8 or 16 bits, which do occur and are stored in 16 all the same.
    table = copy.deepcopy(item)
    table.LUTDescriptor = [*table.LUTDescriptor[:2], 16]
    holder = Dataset()
    holder.ModalityLUTSequence = [table]
    holder.file_meta = dataset.file_meta
    return np.asarray(apply_modality_lut(stored, holder), np.float64)
