"""Finding DICOM files: one file, a folder, or a zip, without trusting any of them.

Members of a zip are read where they are: nothing is unpacked to disk, so no member can name a place outside it.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, NamedTuple

import pydicom
from pydicom.errors import BytesLengthException

from medcam.errors import InputError
from medcam.formats.dicom_directory import is_directory, listed_files
from medcam.formats.dicom_view import Header
from medcam.whole_file import UNFINISHED

# A study of 4000 CT slices unpacks to 2 GiB, and zip shrinks real images to a half or a third.
_MAX_UNPACKED_BYTES = 4 * 2**30
_MAX_RATIO, _RATIO_MATTERS_FROM_BYTES = 200, 256 * 2**20
_MAX_MEMBERS = 200_000
# One inflated image: 65535 x 2048 pixels of 16 bits.
_MAX_INFLATED_BYTES = 256 * 2**20
# What pydicom raises for an element that is damaged, when it is first looked at.
UNREADABLE = (
    ValueError,
    TypeError,
    OverflowError,
    NotImplementedError,
    AttributeError,
    LookupError,
    BytesLengthException,
    # Items of a sequence that end early.
    OSError,
    EOFError,
    struct.error,
)
_DEFLATED = b"1.2.840.10008.1.2.1.99"


@dataclass(frozen=True)
class StoredFile:
    """A file that may be DICOM.

    Parameters
    ----------
    path
        Where it lies. For a member of a zip, the archive's path and the member's name: a name only, never opened.
    open
        Opens it for reading bytes.
    """

    path: Path
    open: Callable[[], IO[bytes]] = field(repr=False, compare=False)


def stored_file(path: Path) -> StoredFile:
    """Return a file of the disk."""
    return StoredFile(path, _opener(path))


@contextmanager
def files_in(path: Path) -> Iterator[list[StoredFile]]:
    """Yield the files at a path: itself, all below a folder (without links to folders), the members of a zip, or what the
    directory of a disc (DICOMDIR) lists.

    Raises
    ------
    InputError
        If nothing is there, or a zip is damaged, encrypted, or would unpack to more than any study.
    """
    if path.is_dir():
        yield [stored_file(each) for each in _walk(path)]
    elif not path.is_file():
        raise InputError(f"there is no file or folder {path.name}; check the path")
    elif _is_zip(path):
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
            raise InputError(f"the zip {path.name} is damaged ({error}); fetch it again") from error
        with archive:
            yield [StoredFile(path / _plain(m.filename), partial(archive.open, m)) for m in _members(archive, path)]
    elif is_directory(path):
        yield [stored_file(each) for each in listed_files(path)]
    else:
        yield [stored_file(path)]


class HeaderRead(NamedTuple):
    """A header, and where in the file the pixels start, if they can be read from there."""

    dataset: pydicom.FileDataset
    pixels_at: int | None


def read_header(file: StoredFile, keywords: Sequence[str]) -> pydicom.FileDataset | None:
    """Return these elements of a file's header, or None for a file that is not DICOM; raises as `open_header` does."""
    found = open_header(file, keywords)
    return None if found is None else found.dataset


def open_header(file: StoredFile, keywords: Sequence[str] = ()) -> HeaderRead | None:
    """Return these elements of a file's header (all that stands before the pixels if none are named), or None for a file
    that is not DICOM.

    A file without the preamble counts as DICOM if it starts like one and names its class, its instance and its series.

    Raises
    ------
    InputError
        If the file cannot be opened, or says that it is DICOM and cannot be parsed.
    """
    with naming(file), file.open() as stream:
        start = stream.read(1024)
        if not _starts_like_dicom(start):
            return None
        marked = start[128:132] == b"DICM"
        deflated = _DEFLATED in start
        if deflated:
            _refuse_deflate_bomb(start + stream.read())
        stream.seek(0)
        try:
            header = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=list(keywords) or None)
            # The dataset would keep the stream alive.
            header.buffer = None
            if marked or all(key in header for key in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID")):
                _name_syntax(header)
                return HeaderRead(header, None if deflated or keywords else stream.tell())
        except Exception as error:
            if marked:
                raise error
    return None


def read_dataset(file: StoredFile) -> tuple[bytes, pydicom.FileDataset]:
    """Return a file's bytes and all that is in it.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    with naming(file):
        with file.open() as stream:
            content = stream.read()
        if _DEFLATED in content[:1024]:
            _refuse_deflate_bomb(content)
        dataset = pydicom.dcmread(io.BytesIO(content), force=True)
        # The dataset would keep the whole file alive.
        dataset.buffer = None
        _name_syntax(dataset)
    return content, dataset


def said(header: Header, keyword: str) -> Any:
    """Return the value of an element, or None where it is absent, empty, or cannot be parsed."""
    try:
        value = header.get(keyword)
    except UNREADABLE:
        return None
    return None if value is None or (isinstance(value, Sized) and len(value) == 0) else value


def _name_syntax(dataset: pydicom.FileDataset) -> None:
    """Write down how a file is encoded where it does not say so itself."""
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian if implicit else explicit


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            # Pipes and devices would hang; links to files are fine.
            if not name.startswith(UNFINISHED) and (each := Path(parent, name)).is_file():
                yield each


def _opener(path: Path) -> Callable[[], IO[bytes]]:
    return lambda: path.open("rb")


def _is_zip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(132)[128:] != b"DICM" and zipfile.is_zipfile(path)


def _plain(name: str) -> Path:
    """Return a member's name without what would lead out of the archive if somebody took it for a path."""
    return Path(*(part for part in PurePosixPath(name).parts if part not in ("/", "..")))


def _members(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    members = [member for member in archive.infolist() if not member.is_dir()]
    unpacked = sum(member.file_size for member in members)
    ratio = unpacked / max(path.stat().st_size, 1)
    if unpacked > _MAX_UNPACKED_BYTES or len(members) > _MAX_MEMBERS:
        raise InputError(
            f"the zip {path.name} would unpack to {unpacked / 2**30:.1f} GiB in {len(members)} files; medcam reads at "
            f"most {_MAX_UNPACKED_BYTES / 2**30:.0f} GiB from a zip: unpack it yourself and give the folder"
        )
    if unpacked > _RATIO_MATTERS_FROM_BYTES and ratio > _MAX_RATIO:
        raise InputError(
            f"the zip {path.name} would unpack to {ratio:.0f} times its size, which no real images do; if you trust "
            "it, unpack it yourself and give the folder"
        )
    if any(member.flag_bits & 1 for member in members):
        raise InputError(f"the zip {path.name} is encrypted; unpack it with its password and give the folder")
    return members


def _starts_like_dicom(start: bytes) -> bool:
    if start[128:132] == b"DICM":
        return True
    # Without the preamble, the first element is one of the low ones of group 8 (or of the file meta group, 2).
    if len(start) <= 132:
        return False
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    tags = [(int.from_bytes(start[:2], order), int.from_bytes(start[2:4], order)) for order in orders]
    return any(group in (2, 8) and element <= 0x18 for group, element in tags)


def _refuse_deflate_bomb(content: bytes) -> None:
    # The file meta group tells its own length, and the deflated rest follows it.
    start = 144 + int.from_bytes(content[140:144], "little")
    inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content[start:], _MAX_INFLATED_BYTES)
    if len(inflated) == _MAX_INFLATED_BYTES:
        raise InputError(f"inflates to more than {_MAX_INFLATED_BYTES // 2**20} MiB, which no single image does")


@contextmanager
def naming(file: StoredFile) -> Iterator[None]:
    """Turn whatever a damaged file makes the libraries raise (nearly anything) into one error that names the file.

    The words of other errors are left out: they quote what was read, and folders are often named after patients.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{file.path.name} {error}") from error
    except OSError as error:
        raise InputError(f"{file.path.name} cannot be read ({error.strerror or type(error).__name__})") from error
    except Exception as error:
        raise InputError(
            f"{file.path.name} is damaged and cannot be read ({type(error).__name__}); fetch it again, or leave it out"
        ) from error
