"""One instance as a peer sent it: looked into only as far as the queue needs, and written down as a whole DICOM file.

References
----------
DICOM PS3.10 7 (file format), PS3.4 B (Storage Service Class).
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID

from medcam import __version__
from medcam.errors import InputError
from medcam.formats.dicom_files import StoredFile, read_header, said

# PS3.5 9.1; and 64 characters at most.
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_IMPLEMENTATION = "2.25.211395505717644615121962965015129145733"
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_READ = (*_NEEDED, "Modality", "AcquisitionNumber", "ImagesInAcquisition", "NumberOfSeriesRelatedInstances")


@dataclass(frozen=True)
class Arrival:
    """An instance to be kept. Neither its repr nor its fields name the patient.

    Parameters
    ----------
    peer
        Who sent it: 'AET@address'.
    group, expected
        What the header says of how many instances belong together: a name of the group within the series ('' for all of it), and
        their number; 0 where it does not say.
    content
        The whole file: preamble, meta group, and the dataset as it came.
    """

    uid: str
    sop_class: str
    syntax: str
    study: str
    series: str
    modality: str
    peer: str
    group: str
    expected: int
    sha256: str = field(repr=False)
    content: bytes = field(repr=False)


def arrival(dataset: bytes, *, uid: str, sop_class: str, syntax: str, peer: str) -> Arrival:
    """Return what came, if it can be kept under the names that it was announced with.

    Parameters
    ----------
    dataset
        Encoded as `syntax` says, without a meta group.
    uid, sop_class
        As the request says.

    Raises
    ------
    InputError
        If the dataset cannot be parsed, lacks an identifier, or is another instance than was announced. No value of it is repeated.
    """
    content = _file(dataset, uid=uid, sop_class=sop_class, syntax=syntax)
    header = read_header(StoredFile(Path("the instance"), lambda: io.BytesIO(content)), _READ)
    if header is None or any(not _is_uid(said(header, keyword)) for keyword in _NEEDED):
        raise InputError("the instance lacks a UID of its class, itself, its series or its study, or one is none")
    if (str(header.SOPInstanceUID), str(header.SOPClassUID)) != (uid, sop_class):
        raise InputError("the instance is not the one that the request announces")
    group, expected = _belonging(header)
    return Arrival(
        uid=uid, sop_class=sop_class, syntax=syntax, study=str(header.StudyInstanceUID), series=str(header.SeriesInstanceUID),
        modality=_short(header, "Modality"), peer=peer, group=group, expected=expected,
        sha256=hashlib.sha256(content).hexdigest(), content=content,
    )  # fmt: skip


def _file(dataset: bytes, *, uid: str, sop_class: str, syntax: str) -> bytes:
    if not all(map(_is_uid, (uid, sop_class, syntax))):
        raise InputError("the request names no UID of an instance, its class or its transfer syntax")
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop_class), UID(uid)
    meta.TransferSyntaxUID, meta.ImplementationClassUID = UID(syntax), UID(_IMPLEMENTATION)
    meta.ImplementationVersionName = f"medcam {__version__}"[:16]
    head = DicomBytesIO()
    write_file_meta_info(head, meta)
    return b"".join((bytes(128), b"DICM", head.getvalue(), dataset))


def _is_uid(value: object) -> bool:
    return value is not None and len(str(value)) <= 64 and bool(_UID.fullmatch(str(value)))


def _belonging(header: Dataset) -> tuple[str, int]:
    whole = _count(header, "NumberOfSeriesRelatedInstances")
    if whole:
        return "", whole
    number = _count(header, "AcquisitionNumber")
    return (f"acquisition {number}" if number is not None else "acquisition"), _count(
        header, "ImagesInAcquisition"
    ) or 0


def _count(header: Dataset, keyword: str) -> int | None:
    try:
        value = int(said(header, keyword))
    except (ValueError, TypeError, OverflowError):
        return None
    return value if 0 <= value < 2**31 else None


def _short(header: Dataset, keyword: str) -> str:
    """Return a code of the header; nothing where a damaged length has swallowed what follows it."""
    words = str(said(header, keyword) or "")
    return words if re.fullmatch(r"[A-Z0-9_ ]{1,16}", words) else ""
