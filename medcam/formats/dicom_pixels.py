"""What DICOM pixels mean: stored numbers -> real-world values in which larger is brighter.

The errors raised here begin with a verb: who calls puts the name of the file before them.

References
----------
DICOM PS3.3 C.7.6.3 (Image Pixel), C.11.1 (Modality LUT), C.11.2 (VOI LUT); PS3.5 8 (encoding of pixels).
"""

from __future__ import annotations

import copy
import io
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Num
from pydicom import Dataset, FileDataset
from pydicom.dataelem import RawDataElement
from pydicom.encaps import encapsulate, generate_frames, get_frame
from pydicom.filereader import data_element_generator
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medcam.errors import InputError
from medcam.formats.dicom_codestream import declared
from medcam.formats.dicom_files import said
from medcam.formats.dicom_view import Header

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PIXEL_DATA, _UNDEFINED = 0x7FE00010, 0xFFFFFFFF
# What says how pixels are stored: (0028,0002) to (0028,0006), (0028,0010), (0028,0011), (0028,0100) to (0028,0103).
_PIXEL_MODULE = (0x280002, 0x280004, 0x280006, 0x280010, 0x280011, 0x280100, 0x280101, 0x280102, 0x280103)
# The decoders of each kind of compression, by how its transfer syntax starts: pydicom's names for them, in the order in
# which they are tried, and the wheels to install. pydicom would try whatever is there, but on a damaged stream
# pylibjpeg-rle panics past any handler and pylibjpeg-libjpeg (GPL) hangs; it alone knows 12 bits of JPEG Extended.
_DECODERS = (
    ("1.2.840.10008.1.2.5", ("pydicom",), "pydicom"),
    ("1.2.840.10008.1.2.4.51", ("gdcm", "pylibjpeg"), "pylibjpeg pylibjpeg-libjpeg"),
    ("1.2.840.10008.1.2.4.5", ("gdcm",), "python-gdcm"),
    ("1.2.840.10008.1.2.4.70", ("gdcm",), "python-gdcm"),
    ("1.2.840.10008.1.2.4.8", ("pyjpegls", "gdcm"), "pyjpegls"),
    ("1.2.840.10008.1.2.4.9", ("pylibjpeg", "gdcm"), "pylibjpeg pylibjpeg-openjpeg"),
    ("1.2.840.10008.1.2.4.20", ("pylibjpeg",), "pylibjpeg pylibjpeg-openjpeg"),
)


class Pixels(NamedTuple):
    """The pixels of an instance, not yet rescaled.

    Parameters
    ----------
    dataset
        What holds them, compressed or in any other way that the library reads.
    frames
        The compressed frames, where there are several.
    plain
        Instead of these: uncompressed frames, as they lie in the file.
    """

    dataset: Dataset
    frames: tuple[bytes, ...] = ()
    plain: Num[np.ndarray, "n j i"] | None = None


def plain_pixels(content: bytes, header: FileDataset, pixels_at: int) -> Pixels | None:
    """Return the pixels of an uncompressed file without a copy: words of 16 bits, little end first, as scanners write them.

    None where they are stored in any other way; nothing is refused here.

    Parameters
    ----------
    content
        The file.
    pixels_at
        Where in it the elements start that follow the header.
    """
    implicit, _ = header.original_encoding
    if header.file_meta.TransferSyntaxUID not in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
        return None
    rest = io.BytesIO(content)
    rest.seek(pixels_at)
    element = next(iter(data_element_generator(rest, bool(implicit), True, defer_size=1)), None)
    if not isinstance(element, RawDataElement) or element.tag != _PIXEL_DATA or element.length == _UNDEFINED:
        return None
    count, rows, columns = int(said(header, "NumberOfFrames") or 1), int(header.Rows), int(header.Columns)
    stored, size = int(header.BitsStored), count * rows * columns
    if header.BitsAllocated != 16 or not 0 < stored <= 16 or said(header, "HighBit") not in (None, stored - 1):
        return None
    if element.length < 2 * size or element.value_tell + 2 * size > len(content):
        return None
    signed = bool(header.PixelRepresentation)
    frames = np.frombuffer(content, "<i2" if signed else "<u2", size, element.value_tell)
    # Bits beside the stored ones, of old overlays, are for the library to cut off.
    lowest, highest = (-(1 << (stored - 1)), (1 << (stored - 1)) - 1) if signed else (0, (1 << stored) - 1)
    if stored < 16 and (frames.max() > highest or frames.min() < lowest):
        return None
    return Pixels(header, plain=frames.reshape(count, rows, columns))


def open_pixels(dataset: FileDataset) -> Pixels:
    """Return an instance's pixels, ready to decode any frame.

    Raises
    ------
    InputError
        If there are none, or fewer frames than the header says.
    """
    count = int(said(dataset, "NumberOfFrames") or 1)
    _refuse_missing(dataset)
    if count == 1 or not UID(str(dataset.file_meta.TransferSyntaxUID)).is_encapsulated:
        return Pixels(dataset)
    try:
        frames = tuple(generate_frames(dataset.PixelData, number_of_frames=count))
    except ValueError as error:
        raise InputError("is damaged: its compressed frames cannot be told apart; fetch it again") from error
    if len(frames) < count:
        raise InputError(f"holds {len(frames)} of its {count} frames; it may have been cut short: fetch it again")
    return Pixels(dataset, frames)


def real_world(
    pixels: Pixels, header: Header, frame: int = 0, *, out: Float32[np.ndarray, "j i"] | None = None
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

    Raises
    ------
    InputError
        If its pixels are missing, cut short, damaged, or compressed in a way for which no decoder is installed.
    Exception
        Whatever pydicom raises for a header that is damaged.
    """
    stored = _stored(pixels, frame) if pixels.plain is None else pixels.plain[frame]
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


def _refuse_missing(dataset: FileDataset) -> None:
    syntax = UID(str(dataset.file_meta.TransferSyntaxUID))
    if not syntax.is_transfer_syntax:
        raise InputError("names a transfer syntax that DICOM does not have; export it again")
    if "PixelData" not in dataset:
        raise InputError("holds no pixels; it may have been cut short: fetch it again")
    bits, high = int(dataset.BitsStored), said(dataset, "HighBit")
    if high is not None and int(high) != bits - 1:
        raise InputError(
            f"keeps its {bits} bits at the upper end of each word (HighBit {high}), which DICOM has given up; "
            "convert it with a current tool first"
        )
    if not syntax.is_encapsulated and dataset["PixelData"].is_undefined_length:
        raise InputError("is compressed and does not say how: its file header is missing; export it again")


def _stored(pixels: Pixels, frame: int) -> Num[np.ndarray, "j i"]:
    dataset = pixels.dataset
    syntax = UID(str(pixels.dataset.file_meta.TransferSyntaxUID))
    if pixels.frames:
        dataset = _alone(dataset, pixels.frames[frame])
    if syntax.is_encapsulated:
        _refuse_other_sizes(dataset)
    index = frame if not syntax.is_encapsulated and int(said(dataset, "NumberOfFrames") or 1) > 1 else None
    failures = []
    for plugin in _decoders(syntax) if syntax.is_encapsulated else ("",):
        try:
            return np.asarray(pixel_array(dataset, raw=True, index=index, decoding_plugin=plugin))
        except Exception as error:  # noqa: BLE001 (a damaged stream makes the decoders raise nearly anything)
            failures.append(error)
    raise InputError(
        f"holds pixels ({syntax.name}) that cannot be decoded; it may be damaged or cut short: fetch it again "
        f"({'; '.join(_brief(error) for error in failures)})"
    ) from failures[0]


def _alone(dataset: Dataset, frame: bytes) -> Dataset:
    """Return a compressed frame as a single-frame image."""
    alone = Dataset()
    for tag in _PIXEL_MODULE:
        if tag in dataset:
            alone.add(dataset[tag])
    alone.file_meta = dataset.file_meta
    alone.PixelData = encapsulate([frame])
    alone["PixelData"].is_undefined_length = True
    return alone


def _refuse_other_sizes(dataset: Dataset) -> None:
    try:
        found = declared(get_frame(dataset.PixelData, 0, number_of_frames=1))
    except ValueError as error:
        raise InputError(f"is damaged: {error}; fetch it again") from error
    expected = (int(dataset.Rows), int(dataset.Columns), 1)
    if found is not None and (found[:3] != expected or not 1 < found.bits <= int(dataset.BitsAllocated)):
        raise InputError(
            f"is damaged: its compressed stream declares {found.rows} rows, {found.columns} columns and "
            f"{found.components} component(s) of {found.bits} bits, its header {expected[0]} rows, {expected[1]} "
            f"columns and one component of at most {dataset.BitsAllocated} bits; fetch it again"
        )


def _brief(error: Exception) -> str:
    # Other errors quote what they read of the header.
    words = " ".join(str(error).split())[:300] if isinstance(error, (RuntimeError, ValueError)) else ""
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _decoders(syntax: UID) -> list[str]:
    """Return the installed decoders of a compression, the preferred one first."""
    known, wheels = next(((known, wheels) for start, known, wheels in _DECODERS if syntax.startswith(start)), ((), ""))
    try:
        available = get_decoder(syntax).available_plugins
    except NotImplementedError:
        available, wheels = (), ""
    if installed := [name for name in known if name in available]:
        return installed
    remedy = f"pip install {wheels}" if wheels else "convert it to an uncompressed image first"
    raise InputError(f"is compressed as {syntax.name}, and no decoder for that is installed: {remedy}")
