"""Arrays that lie in files behind a text header (NRRD, MetaImage): found beside the header only, and read whole or not at all.

No more is unpacked than the header claims, and memory is touched only as bytes arrive, so that neither a header that claims terabytes nor a
few compressed kilobytes that inflate to gigabytes take more than a refusal.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

import numpy as np
from jaxtyping import Num

from medcam.errors import InputError

LARGEST_BYTES = 16 * 2**30
# Real images shrink to a half or a third, masks to a thousandth: only what is both large and unlike an image is refused.
_MAX_RATIO, _RATIO_MATTERS_FROM_BYTES = 200, 2 * 2**30
# How many bytes come out of one at most.
_MOST_UNPACKED = {"raw": 1, "gzip": 1040, "zlib": 1040}
_CHUNK = 2**22
# No number is written in more characters than this.
_CHARACTERS_A_VALUE = 40
_MOST_FILES = 65_536
_PATTERN = re.compile(r"[^%]*%0?\d{0,2}d[^%]*")


@dataclass(frozen=True)
class StoredArray:
    """Where an array lies, and how.

    Parameters
    ----------
    files
        The files that hold it, one after the other along its slowest axis.
    shape
        Its axes, the fastest first.
    dtype
        Of its values as stored, with the order of their bytes.
    encoding
        'raw', 'gzip', 'zlib', 'bzip2', 'text' or 'hex'.
    offset
        Where the data starts in each file, or -1 where it ends the file.
    lines, skipped
        How many lines, and then how many bytes (of what is unpacked, where it is packed), come before the values.
    surplus
        How many bytes may follow the values; None does not look.
    """

    files: tuple[Path, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    encoding: str = "raw"
    offset: int = 0
    lines: int = 0
    skipped: int = 0
    surplus: int | None = 0


def refuse_large(name: str, shape: tuple[int, ...], itemsize: int) -> None:
    """Refuse what no memory holds.

    Raises
    ------
    InputError
        If the array is larger than medcam reads.
    """
    if prod(shape) * itemsize > LARGEST_BYTES:
        raise InputError(
            f"{name} claims {' x '.join(map(str, shape))} voxels, more than medcam reads ({LARGEST_BYTES // 2**30} GiB)"
        )


def read_array(stored: StoredArray, name: str) -> Num[np.ndarray, "..."]:
    """Return the array in the machine's byte order, its fastest axis first.

    Parameters
    ----------
    name
        How to call the image in errors.

    Raises
    ------
    InputError
        If the data is cut short, damaged, more than the header says, or larger than medcam reads.
    OSError
        If a file cannot be opened.
    """
    refuse_large(name, stored.shape, stored.dtype.itemsize)
    total, count = prod(stored.shape), len(stored.files)
    if total == 0 or total % count:
        raise InputError(f"{name} claims {' x '.join(map(str, stored.shape))} voxels, which {count} files cannot hold")
    wanted, there = total * stored.dtype.itemsize, sum(file.stat().st_size for file in stored.files)
    if wanted > there * _MOST_UNPACKED.get(stored.encoding, wanted):
        raise InputError(
            f"{name} is damaged or cut short: {there} bytes cannot hold the {wanted} that its header claims"
        )
    if wanted > max(_RATIO_MATTERS_FROM_BYTES, _MAX_RATIO * there):
        raise InputError(
            f"{name} would unpack to {wanted / there:.0f} times its size, which no real image does; if you trust it, save "
            "it unpacked"
        )
    try:
        values = np.empty(total, stored.dtype)
    except (MemoryError, ValueError) as error:
        raise InputError(f"{name} is too large for this computer's memory") from error
    for part, file in zip(values.reshape(count, -1), stored.files, strict=True):
        try:
            with file.open("rb") as stream:
                _fill(part, stream, stored, file.stat().st_size)
        except (EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{name} is damaged or cut short: {_words(error)}") from error
    native = values.astype(stored.dtype.newbyteorder("="), copy=False)
    return native.reshape(stored.shape, order="F")


def digest(*files: Path) -> str:
    """Return the SHA-256 of a file, or of the digests of several, in hexadecimal digits."""
    each = []
    for file in files:
        running = hashlib.sha256()
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                running.update(chunk)
        each.append(running)
    return each[0].hexdigest() if len(each) == 1 else hashlib.sha256(b"".join(one.digest() for one in each)).hexdigest()


def data_files(header: Path, named: str, listed: Sequence[str]) -> tuple[Path, ...]:
    """Return the files that a header names: one, a LIST of them, or 'slice%03d.raw 1 24 1' (pattern, first, last, step).

    All must lie in the header's folder or below it.

    Raises
    ------
    InputError
        If a name leads elsewhere, or a file is not there.
    """
    words = named.split()
    if words[:1] == ["LIST"]:
        if not listed:
            raise InputError(f"{header.name} lists no data file")
        return tuple(_beside(header, name) for name in listed)
    return _numbered(header, words) if "%" in named and len(words) > 1 else (_beside(header, named),)


def _numbered(header: Path, words: list[str]) -> tuple[Path, ...]:
    pattern, *numbers = words
    try:
        first, last, step = (int(number) for number in [*numbers, "1"][:3])
        count = (last - first) // step + 1
    except (ValueError, ZeroDivisionError):
        count = 0
    if not _PATTERN.fullmatch(pattern) or not 0 < count <= _MOST_FILES:
        raise InputError(f"{header.name} names its data files by a pattern that medcam does not understand")
    return tuple(_beside(header, pattern % (first + n * step)) for n in range(count))


def _beside(header: Path, name: str) -> Path:
    steps = PureWindowsPath(name)
    if not name or name.startswith(("/", "\\")) or steps.drive or ".." in steps.parts or "\0" in name:
        raise InputError(
            f"{header.name} looks for its voxels outside its own folder, and medcam does not follow; put the data file "
            "beside the header and name it there without a folder"
        )
    file = header.parent / PurePosixPath(name)
    if not file.is_file():
        raise InputError(f"{header.name} keeps its voxels in {file.name}, which is not there; fetch both files")
    return file


def _fill(part: np.ndarray, stream: IO[bytes], stored: StoredArray, size: int) -> None:
    """Read one file's values into `part`."""
    if stored.offset >= 0:
        stream.seek(stored.offset)
    elif stored.encoding != "raw":
        raise ValueError("its header does not say where the packed data starts")
    elif size < part.nbytes:
        raise EOFError(f"{size} bytes where {part.nbytes} were expected")
    else:
        stream.seek(size - part.nbytes)
    for _ in range(stored.lines):
        if not stream.readline(_CHUNK):
            raise EOFError("fewer lines than its header wants skipped")
    if stored.encoding in ("text", "hex"):
        part[...] = _written(stream, part, stored.encoding)
        return
    if stored.skipped < 0:
        raise ValueError(f"its header wants {stored.skipped} bytes skipped")
    read = _reader(stream, stored.encoding)
    if stored.encoding == "raw":
        stream.seek(stored.skipped, 1)
    else:
        for _ in _pieces(read, stored.skipped):
            pass
    place, done = part.view(np.uint8), 0
    for piece in _pieces(read, len(place)):
        place[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
    # Reading on also makes the decompressor compare its checksum.
    if stored.surplus is not None:
        left = stored.surplus
        while rest := read(left + 1):
            left -= len(rest)
            if left < 0:
                raise ValueError(f"more bytes follow than the {len(place)} that its header claims")


def _pieces(read: Callable[[int], bytes], count: int) -> Iterator[bytes]:
    """Yield so many bytes, piece by piece."""
    done = 0
    while done < count:
        piece = read(min(_CHUNK, count - done))
        if not piece:
            raise EOFError(f"{done} bytes where {count} were expected")
        done += len(piece)
        yield piece


def _reader(stream: IO[bytes], encoding: str) -> Callable[[int], bytes]:
    """Return what reads up to so many unpacked bytes, and none at the end."""
    if encoding == "raw":
        return stream.read
    if encoding == "gzip":
        return gzip.GzipFile(fileobj=stream).read
    if encoding == "bzip2":
        return bz2.BZ2File(stream).read
    # A zlib or a gzip stream, whichever it is.
    unpacker, waiting = zlib.decompressobj(zlib.MAX_WBITS | 32), b""

    def read(count: int) -> bytes:
        nonlocal waiting
        while not unpacker.eof:
            waiting = waiting or stream.read(_CHUNK)
            if not waiting:
                raise EOFError("the packed data ends early")
            unpacked = unpacker.decompress(waiting, count)
            waiting = unpacker.unconsumed_tail
            if unpacked:
                return unpacked
        return b""

    return read


def _written(stream: IO[bytes], part: np.ndarray, encoding: str) -> np.ndarray:
    """Return values that are written in digits."""
    most = part.size * _CHARACTERS_A_VALUE + _CHUNK
    content = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f"more text follows than {part.size} values take")
    if encoding == "hex":
        return np.frombuffer(bytes.fromhex(content.decode("ascii", "replace")), part.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = part.dtype.kind in "iu" and part.dtype.itemsize < 8
        try:
            values = np.fromstring(content.decode("ascii", "replace"), np.int64 if whole else part.dtype, sep=" ")
        except DeprecationWarning as error:
            raise ValueError("what should be numbers is none") from error
    if values.size != part.size:
        raise EOFError(f"{values.size} values where {part.size} were expected")
    if whole and not np.array_equal(values.astype(part.dtype), values):
        raise ValueError(f"its values do not fit the type {part.dtype} that its header claims")
    return values


def _words(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
