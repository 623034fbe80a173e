"""What a compressed image says of its own size, read before any decoder may trust it.

Decoders are native code: they allocate what the stream asks for, and some end the whole program over a damaged head.
One picture of the header's size with one component is all that a greyscale DICOM file may hold.

References
----------
ISO/IEC 10918-1 B.2.2 (frame header of JPEG), 14495-1 C.2.2 (JPEG-LS), 15444-1 A.5.1 (image and tile size of JPEG 2000).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

# Start of frame: baseline, extended, progressive, lossless, their arithmetic kin, and JPEG-LS.
_FRAMES = frozenset((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7))
# What else may stand before the first scan: tables, restart interval, applications' own, comments, JPEG-LS presets.
_OTHERS = frozenset((0xC4, 0xCC, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xF8, 0xFE))
_SCAN = 0xDA


class Declared(NamedTuple):
    """Size, number of components, and the bits of each, as a stream declares them."""

    rows: int
    columns: int
    components: int
    bits: int


def declared(stream: bytes) -> Declared | None:
    """Return what a JPEG, JPEG-LS or JPEG 2000 stream declares, or None for a stream of another kind.

    Raises
    ------
    ValueError
        If it starts like one of these and its head is damaged.
    """
    try:
        if stream.startswith(b"\xff\x4f\xff\x51"):
            right, bottom, left, top = struct.unpack_from(">4I", stream, 8)
            components, bits = struct.unpack_from(">HB", stream, 40)
            return Declared(bottom - top, right - left, components, (bits & 0x7F) + 1)
        if stream.startswith(b"\xff\xd8"):
            return _jpeg_frame(stream)
    except struct.error as error:
        raise ValueError("the head of the compressed stream is cut short") from error
    return None


def _jpeg_frame(stream: bytes) -> Declared:
    """Walk all segments up to the first scan: bytes between them are what ends a program that trusts GDCM."""
    at, frame = 2, None
    while True:
        fill, marker, length = struct.unpack_from(">BBH", stream, at)
        if (fill, marker) == (0xFF, 0xFF):
            at += 1
            continue
        known = marker in _FRAMES or marker in _OTHERS or (marker == _SCAN and frame is not None)
        if fill != 0xFF or length < 2 or not known:
            raise ValueError("the head of the compressed stream is damaged")
        if marker in _FRAMES:
            bits, rows, columns, components = struct.unpack_from(">BHHB", stream, at + 4)
            frame = Declared(rows, columns, components, bits)
        if marker == _SCAN and frame is not None:
            return frame
        at += 2 + length
