"""What is sent: the DICOM instances among the files that a user named, each complete and known by its UIDs."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.uid import UID

from medcam.errors import InputError, UsageError
from medcam.formats.dicom_files import StoredFile, files_in, naming, read_dataset, read_header, said

_UNDEFINED_LENGTH = 0xFFFFFFFF
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


@dataclass(frozen=True)
class Instance:
    """One DICOM object that can be sent. Neither its repr nor its fields name the patient.

    Parameters
    ----------
    name
        Of its file, without folders.
    patient
        A digest that is equal for equal patients.
    content
        Reads the object: a whole DICOM file, with its preamble and meta group.
    """

    name: str
    sop_class: str
    uid: str
    syntax: str
    study: str
    series: str
    patient: str = field(repr=False)
    sha256: str = field(repr=False)
    size: int = 0
    content: Callable[[], bytes] = field(repr=False, compare=False, default=bytes)

    @property
    def kind(self) -> str:
        """The object's class in words: 'CT Image'."""
        return UID(self.sop_class).name.removesuffix(" Storage")

    def dataset(self) -> Dataset:
        """Return the object, with its meta group."""
        return dcmread(io.BytesIO(self.content()))


@dataclass(frozen=True)
class Collected:
    """What was found: instances in the order of their files, and the names of files that are no DICOM instances."""

    instances: tuple[Instance, ...]
    others: tuple[str, ...]
    notes: tuple[str, ...] = ()


def collect(paths: Sequence[Path], *, several_patients: bool = False) -> Collected:
    """Return the instances in files, folders and zips. Files of other kinds are listed, unless one was named itself.

    Parameters
    ----------
    several_patients
        Whether instances of several patients may go together.

    Raises
    ------
    InputError
        If there is no instance, a file is damaged or cut off, a file named by itself is not DICOM, one UID stands for two
        different objects, or one study has two patients.
    UsageError
        If there are several patients and that was not asked for.
    """
    found: list[Instance] = []
    others: list[str] = []
    for path in paths:
        with files_in(path) as files:
            for file in files:
                one = _instance(file)
                if one is not None:
                    found.append(one)
                elif path.is_file() and len(files) == 1:
                    raise InputError(f"{file.path.name} is not a DICOM instance, and only those can be sent to a PACS")
                else:
                    others.append(file.path.name)
    if not found:
        raise InputError(
            f"there is no DICOM instance among {len(others)} files; a PACS takes only DICOM: export with --formats dicom-sc, "
            "dicom-seg and the like first"
        )
    instances, notes = _each_once(found)
    _refuse_mixed_patients(instances, several_patients)
    return Collected(instances, tuple(others), notes)


def _instance(file: StoredFile) -> Instance | None:
    header = read_header(file, (*_NEEDED, "PatientID", "IssuerOfPatientID", "PatientName"))
    if header is None or any(not said(header, keyword) for keyword in _NEEDED):
        return None  # not DICOM, or DICOM that is no instance of a study: a DICOMDIR, a colour palette
    content = _whole_content(file)
    with naming(file):
        syntax = _meta(content).TransferSyntaxUID
    who = "\n".join(str(said(header, keyword) or "") for keyword in ("PatientID", "IssuerOfPatientID"))
    if not said(header, "PatientID"):
        who += f"\n{said(header, 'PatientName') or ''}"
    return Instance(
        name=file.path.name,
        sop_class=str(header.SOPClassUID),
        uid=str(header.SOPInstanceUID),
        syntax=str(syntax),
        study=str(header.StudyInstanceUID),
        series=str(header.SeriesInstanceUID),
        patient=hashlib.sha256(who.encode()).hexdigest(),
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        content=lambda: _whole_content(file),
    )


def _whole_content(file: StoredFile) -> bytes:
    """Return the file's bytes, refusing one that ends too early; without a complete meta group it is given one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        content, dataset = read_dataset(file)
    with naming(file):
        # pydicom warns, or says nothing, where pixels end too early; what was sent so would look complete to the PACS.
        if any("End of file" in str(one.message) for one in caught) or _is_cut_off(dataset):
            raise InputError("ends before its content does; fetch or write it again")
        if _has_own_meta(content, dataset):
            return content
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        written = io.BytesIO()
        dataset.save_as(written, enforce_file_format=True)
        return written.getvalue()


def _has_own_meta(content: bytes, dataset: Dataset) -> bool:
    if content[128:132] != b"DICM":
        return False
    meta = _meta(content)
    return (
        meta.get("MediaStorageSOPClassUID") == dataset.SOPClassUID
        and meta.get("MediaStorageSOPInstanceUID") == dataset.SOPInstanceUID
        and bool(meta.get("TransferSyntaxUID"))
    )


def _meta(content: bytes) -> Dataset:
    return dcmread(io.BytesIO(content), stop_before_pixels=True, force=True, specific_tags=["SOPInstanceUID"]).file_meta


def _is_cut_off(dataset: Dataset) -> bool:
    elements: list[object] = [dataset.get_item(tag) for tag in dataset.keys()]  # noqa: SIM118  iterating parses them
    return any(
        isinstance(each, RawDataElement) and each.length != _UNDEFINED_LENGTH and len(each.value or b"") < each.length
        for each in elements
    )


def _each_once(found: Sequence[Instance]) -> tuple[tuple[Instance, ...], tuple[str, ...]]:
    first: dict[str, Instance] = {}
    twice = 0
    for one in found:
        known = first.setdefault(one.uid, one)
        if known.sha256 != one.sha256:
            raise InputError(
                f"{known.name} and {one.name} differ and have one SOPInstanceUID (...{one.uid[-12:]}): a PACS would keep one "
                "of them; leave one out"
            )
        twice += known is not one
    notes = (f"{twice} files are copies of others, and go once",) if twice else ()
    return tuple(first.values()), notes


def _refuse_mixed_patients(instances: Sequence[Instance], several_patients: bool) -> None:
    patient_of: dict[str, Instance] = {}
    for one in instances:
        known = patient_of.setdefault(one.study, one)
        if known.patient != one.patient:
            raise InputError(
                f"{known.name} and {one.name} are of one study (StudyInstanceUID) and of two patients (PatientID); one of them "
                "was changed: put it right before it is sent"
            )
    count = len({one.patient for one in instances})
    if count > 1 and not several_patients:
        raise UsageError(f"these are instances of {count} patients; if they are all meant, add --several-patients")
