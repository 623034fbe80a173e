"""What DICOM pixels mean: stored numbers -> real-world values in which larger is brighter.

References
----------
DICOM PS3.3 C.7.6.3 (Image Pixel), C.11.1 (Modality LUT), C.11.2 (VOI LUT); PS3.5 8 (encoding of pixels).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Num
from pydicom import Dataset, FileDataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

from medcam.errors import InputError
from medcam.formats.dicom_files import brief

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# What decodes each kind of compression, by how its transfer syntax starts. pylibjpeg-libjpeg is under the GPL.
_WHEELS = (
    ("1.2.840.10008.1.2.4.51", "pylibjpeg pylibjpeg-libjpeg"),
    ("1.2.840.10008.1.2.4.5", "python-gdcm"),
    ("1.2.840.10008.1.2.4.70", "python-gdcm"),
    ("1.2.840.10008.1.2.4.8", "pyjpegls"),
    ("1.2.840.10008.1.2.4.9", "pylibjpeg pylibjpeg-openjpeg"),
    ("1.2.840.10008.1.2.4.20", "pylibjpeg pylibjpeg-openjpeg"),
)


def real_world(dataset: FileDataset, file_name: str) -> Float32[np.ndarray, "j i"]:
    """Return the real-world values of a single-frame greyscale image, rows first.

    MONOCHROME1 is turned over within the range of the stored values, so that larger is brighter, once: a
    PresentationLUTShape of INVERSE says the same thing in other words.

    Raises
    ------
    InputError
        If its pixels are missing, cut short, damaged, or compressed in a way for which no decoder is installed.
    """
    stored = _stored(dataset, file_name)
    if stored.shape != (dataset.Rows, dataset.Columns):
        raise InputError(
            f"{file_name} is damaged: its pixels have shape {stored.shape}, its header says {dataset.Rows} rows and "
            f"{dataset.Columns} columns"
        )
    try:
        if "ModalityLUTSequence" in dataset:
            values = apply_modality_lut(stored, dataset).astype(np.float64)
        else:
            slope, intercept = rescale(dataset)
            values = stored * slope + intercept
        return np.asarray(mirror(dataset) - values if is_inverted(dataset) else values, np.float32)
    except (ValueError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise InputError(f"{file_name} is damaged: its rescaling cannot be read ({brief(error)})") from error


def is_inverted(dataset: Dataset) -> bool:
    """Tell whether small stored values are meant to be shown bright."""
    return str(dataset.get("PhotometricInterpretation")) == "MONOCHROME1"


def mirror(dataset: Dataset) -> float:
    """Return the sum of a real-world value and the one that takes its place when brightness is turned over."""
    if "ModalityLUTSequence" in dataset:
        return float(2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    slope, intercept = rescale(dataset)
    lowest_plus_highest = -1 if dataset.PixelRepresentation else 2 ** int(dataset.BitsStored) - 1
    return slope * lowest_plus_highest + 2 * intercept


def rescale(dataset: Dataset) -> tuple[float, float]:
    """Return (slope, intercept), 1 and 0 where the file does not say.

    Raises
    ------
    ValueError
        If they are not finite or the slope is zero.
    """
    slope, intercept = (dataset.get(keyword) for keyword in ("RescaleSlope", "RescaleIntercept"))
    pair = (1.0 if slope in (None, "") else float(slope), 0.0 if intercept in (None, "") else float(intercept))
    if not np.isfinite(pair).all() or pair[0] == 0:
        raise ValueError(f"a slope of {pair[0]} and an intercept of {pair[1]}")
    return pair


def display_window(dataset: Dataset) -> tuple[float, float] | None:
    """Return the first (centre, width) that the file asks for, as `real_world` values, or None if none makes sense."""
    try:
        centre, width = (
            float(np.ravel(np.array(dataset[keyword].value, np.float64))[0])
            for keyword in ("WindowCenter", "WindowWidth")
        )
    except (KeyError, ValueError, TypeError, IndexError):
        return None
    if not np.isfinite((centre, width)).all() or width <= 0:
        return None
    return (mirror(dataset) - centre if is_inverted(dataset) else centre), width


def unit(dataset: Dataset) -> str:
    """Return the unit of the real-world values: 'HU' for CT, else what the file says, or 'a.u.'."""
    said = str(dataset.get("RescaleType") or dataset.get("Units") or "").strip()
    if said and said != "US":
        return said
    return "HU" if dataset.get("Modality") == "CT" else "a.u."


def _stored(dataset: FileDataset, file_name: str) -> Num[np.ndarray, "j i"]:
    syntax = dataset.file_meta.TransferSyntaxUID
    if not any(keyword in dataset for keyword in PIXEL_KEYWORDS):
        raise InputError(f"{file_name} holds no pixels; it may have been cut short: fetch it again")
    if syntax.is_encapsulated:
        _refuse_without_decoder(syntax, file_name)
    elif "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
        raise InputError(f"{file_name} is compressed and does not say how: its file header is missing; export it again")
    try:
        stored = np.asarray(pixel_array(dataset, raw=True))
    except Exception as error:  # a damaged stream makes the decoders raise nearly anything
        wheel = _wheel(syntax)
        remedy = "fetch it again" + (f", or try the decoder that comes with: pip install {wheel}" if wheel else "")
        raise InputError(
            f"the pixels of {file_name} ({syntax.name}) cannot be decoded, so it may be damaged or cut short: {remedy} "
            f"({brief(error)})"
        ) from error
    return stored if syntax.is_encapsulated or stored.dtype.kind == "f" else _significant_bits(stored, dataset)


def _significant_bits(stored: Num[np.ndarray, "j i"], dataset: Dataset) -> Num[np.ndarray, "j i"]:
    """Return the stored values without what may lie in the bits beside them (old overlays), with their sign."""
    allocated, bits = int(dataset.BitsAllocated), int(dataset.BitsStored)
    high = int(dataset.get("HighBit", bits - 1))
    if bits == allocated or not bits - 1 <= high < allocated:
        return stored
    # To the left end of the word and back: what lay above is pushed out, and a signed shift brings the sign along.
    return np.asarray((stored << (allocated - 1 - high)) >> (allocated - bits))


def _wheel(syntax: UID) -> str | None:
    return next((wheel for start, wheel in _WHEELS if syntax.startswith(start)), None)


def _refuse_without_decoder(syntax: UID, file_name: str) -> None:
    wheel = _wheel(syntax)
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available, wheel = False, None
    if not available:
        remedy = f"pip install {wheel}" if wheel else "convert it to an uncompressed image first"
        raise InputError(f"{file_name} is compressed as {syntax.name}, and no decoder for that is installed: {remedy}")
