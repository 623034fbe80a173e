"""All series of an archive of DICOM files, whatever folders they lie in, without holding more than one folder's headers."""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medcam.errors import InputError
from medcam.formats import dicom_series
from medcam.formats.dicom_files import read_header, said, stored_file
from medcam.formats.dicom_reading import digest_of
from medcam.formats.dicom_series import Found
from medcam.formats.dicom_volumes import volumes_of

_IDENTITY = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID", "SeriesInstanceUID")


@dataclass(frozen=True)
class ArchivedSeries:
    """A series of an archive. Patient and study are named by digests only, and its repr names neither.

    Parameters
    ----------
    patient, study
        Digests of PatientID (with its issuer) and of StudyInstanceUID. Without a PatientID each study is its own patient.
    uid, number, modality
        As in `Series`.
    paths
        Its files, in the order in which they were found.
    volumes
        How many volumes there are to choose from; 1 where it is explained without a choice.
    localizer
        Whether it holds nothing but localizers.
    error
        Why it cannot be read; '' if it can. Then `uid` is '' where not even that is known.
    """

    patient: str = field(repr=False)
    study: str = field(repr=False)
    uid: str = field(repr=False)
    number: int | None
    modality: str
    paths: tuple[Path, ...] = field(repr=False)
    volumes: int = 1
    localizer: bool = False
    error: str = ""


def series_among(paths: Iterable[Path]) -> tuple[ArchivedSeries, ...]:
    """Return all series of images among files, those too that cannot be read, sorted by study and number.

    Files that are no DICOM are left out, and so are objects that are no images. A folder with a damaged file gives one series that says so:
    which of its series lacks a slice cannot be known.
    """
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        folders[path.parent].append(path)
    met: dict[tuple[str, str], ArchivedSeries] = {}
    spread: set[tuple[str, str]] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for folder in folders.values():
            for series in _in_folder(folder):
                key = (series.study, series.uid or str(series.paths[0]))
                if key in met:
                    spread.add(key)
                    series = replace(met[key], paths=(*met[key].paths, *series.paths))
                met[key] = series
        for key in spread:
            # A series that is spread over folders is judged as a whole.
            whole = [one for one in _in_folder(met[key].paths) if one.uid == met[key].uid or one.error]
            met[key] = whole[0] if len(whole) == 1 else met[key]
    return tuple(sorted(met.values(), key=lambda one: (one.study, one.number is None, one.number or 0, one.uid)))


def _in_folder(paths: Sequence[Path]) -> list[ArchivedSeries]:
    try:
        found = dicom_series.scan([stored_file(path) for path in paths], paths[0].parent.name)
    except InputError as error:
        return [_damaged(paths, str(error))] if _some_dicom(paths) else []
    return [_archived(one) for one in found]


def _archived(found: Found) -> ArchivedSeries:
    series = found.series
    patient, study = _whose(series.paths[0])
    bare = ArchivedSeries(
        patient, study, series.uid, series.number, series.modality, series.paths, localizer=found.localizers
    )
    try:
        candidates = volumes_of(dicom_series.whole(found.instances), digest=digest_of)
    except InputError as error:
        return replace(bare, error=str(error))
    return replace(bare, volumes=sum(not each.aside for each in candidates) or len(candidates))


def _whose(path: Path) -> tuple[str, str]:
    """Return digests of the patient and of the study that a file belongs to."""
    header = read_header(stored_file(path), _IDENTITY)
    named = {keyword: str(said(header, keyword) or "") if header is not None else "" for keyword in _IDENTITY}
    study = _digest("study", named["StudyInstanceUID"] or named["SeriesInstanceUID"] or str(path.parent))
    if not named["PatientID"]:
        return study, study
    return _digest("patient", named["IssuerOfPatientID"], named["PatientID"]), study


def _damaged(paths: Sequence[Path], error: str) -> ArchivedSeries:
    for path in paths:
        try:
            patient, study = _whose(path)
        except InputError:
            continue
        return ArchivedSeries(patient, study, "", None, "", tuple(paths), error=error)
    own = _digest("folder", str(paths[0].parent))
    return ArchivedSeries(own, own, "", None, "", tuple(paths), error=error)


def _some_dicom(paths: Sequence[Path]) -> bool:
    """Tell whether a folder that gave no series holds DICOM images all the same, damaged ones."""
    for path in paths:
        try:
            header = read_header(stored_file(path), ["SOPClassUID", "SeriesInstanceUID", "Rows"])
        except InputError:
            return True
        if header is not None and said(header, "Rows"):
            return True
    return False


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
