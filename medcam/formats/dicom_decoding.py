"""How DICOM pixels are stored, and how they are decoded: files -> stored numbers, frame by frame.

The errors raised here begin with a verb: who calls puts the name of the file before them.

References
----------
DICOM PS3.5 8 (encoding of pixels), A.4 (encapsulated pixels); PS3.3 C.7.6.3 (Image Pixel).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Num
from pydicom import Dataset, FileDataset
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames, get_frame
from pydicom.filereader import data_element_generator
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medcam.errors import InputError
from medcam.formats.dicom_codestream import declared
from medcam.formats.dicom_files import said

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PIXEL_DATA, _UNDEFINED = 0x7FE00010, 0xFFFFFFFF
# What says how pixels are stored.
_PIXEL_MODULE = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)
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


class Stream(NamedTuple):
    """A compressed frame, apart from its file: how it is compressed, what its header says of pixels, and the bytes."""

    syntax: str
    says: Mapping[str, Any]
    content: bytes


def stored(pixels: Pixels, frame: int) -> Num[np.ndarray, "j i"]:
    """Return a frame (from 0) as the numbers that are stored.

    Raises
    ------
    InputError
        If it is damaged, cut short, or compressed in a way for which no decoder is installed.
    """
    if pixels.plain is not None:
        return np.asarray(pixels.plain[frame])
    compressed = stream(pixels, frame)
    if compressed is not None:
        return decoded(compressed)
    dataset = pixels.dataset
    index = frame if int(said(dataset, "NumberOfFrames") or 1) > 1 else None
    try:
        return np.asarray(pixel_array(dataset, raw=True, index=index))
    except Exception as error:
        raise _undecoded(UID(str(dataset.file_meta.TransferSyntaxUID)), [error]) from error


def stream(pixels: Pixels, frame: int) -> Stream | None:
    """Return a frame's compressed stream, or None where nothing is compressed.

    Raises
    ------
    InputError
        If its fragments are damaged.
    """
    dataset = pixels.dataset
    syntax = UID(str(dataset.file_meta.TransferSyntaxUID))
    if pixels.plain is not None or not syntax.is_encapsulated:
        return None
    try:
        content = pixels.frames[frame] if pixels.frames else get_frame(dataset.PixelData, 0, number_of_frames=1)
    except ValueError as error:
        raise InputError(f"is damaged: {error}; fetch it again") from error
    says = {keyword: dataset.get(keyword) for keyword in _PIXEL_MODULE}
    return Stream(str(syntax), {key: value for key, value in says.items() if value is not None}, content)


def decoded(compressed: Stream) -> Num[np.ndarray, "j i"]:
    """Return the numbers that a compressed frame holds, by the preferred decoder that is installed and copes with it.

    Raises
    ------
    InputError
        If none does, or none is installed.
    """
    syntax, alone = UID(compressed.syntax), Dataset()
    alone.file_meta = FileMetaDataset()
    alone.file_meta.TransferSyntaxUID = syntax
    for keyword, value in compressed.says.items():
        setattr(alone, keyword, value)
    _refuse_other_sizes(alone, compressed.content)
    alone.PixelData = encapsulate([compressed.content])
    alone["PixelData"].is_undefined_length = True
    failures: list[Exception] = []
    for plugin in _decoders(syntax):
        try:
            return np.asarray(pixel_array(alone, raw=True, decoding_plugin=plugin))
        except Exception as error:  # noqa: BLE001 (a damaged stream makes the decoders raise nearly anything)
            failures.append(error)
    raise _undecoded(syntax, failures) from failures[0]


def _undecoded(syntax: UID, failures: list[Exception]) -> InputError:
    return InputError(
        f"holds pixels ({syntax.name}) that cannot be decoded; it may be damaged or cut short: fetch it again "
        f"({'; '.join(_brief(error) for error in failures)})"
    )


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


def _refuse_other_sizes(dataset: Dataset, content: bytes) -> None:
    try:
        found = declared(content)
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
