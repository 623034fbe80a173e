"""Which cases there are at a path: rows of a table, images of a BIDS dataset, series of a DICOM archive, files of a folder."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from medcam.cohort.bids import parsed
from medcam.cohort.cases import read_table
from medcam.cohort.layouts import without_ending
from medcam.cohort.manifest import NAME
from medcam.cohort.planning import Case, Cases
from medcam.cohort.results import Entry
from medcam.errors import InputError, UsageError
from medcam.formats import READERS
from medcam.whole_file import UNFINISHED

if TYPE_CHECKING:
    from medcam.formats.dicom_studies import ArchivedSeries

_BIDS = "dataset_description.json"
# The second file of a pair, which is read with the first.
_SECOND = {".img": ".hdr"}
# Rows of a table begin in its second line; cases of a folder are counted as if they stood in one.
_FIRST_LINE = 2
_DIGITS = 12


def cases_in(
    path: Path, *, with_model: bool, suffix: str | None = None, datatype: str | None = None, volume: int | None = None
) -> Cases:
    """Return the cases at a path, in order.

    A BIDS dataset gives the images of one suffix, named by their entities; a patient is a subject. Any other folder gives each series of
    DICOM images that is read without a choice, named by digests of its study and its own UID, a patient by a digest of PatientID; and each
    other image, named by its path, a patient of its own.

    Parameters
    ----------
    with_model
        Whether there is a network to make heatmaps, without which a folder of images gives nothing.
    suffix, datatype
        Of a BIDS dataset: which images, such as 'T1w' and 'anat'.
    volume
        Which volume of images that hold several.

    Raises
    ------
    InputError
        If there is nothing there, no case, or the table cannot be used.
    UsageError
        If what was asked does not fit what is there.
    """
    # Workers may stand elsewhere.
    path = path.absolute()
    if path.is_file():
        if suffix or datatype or volume is not None:
            raise UsageError("--suffix, --datatype and --volume choose from a folder; a table names each image itself")
        entries = read_table(path, with_model=with_model, with_lesions=False, with_files=False)
        return Cases(tuple(map(Case, entries)), path.parent)
    if not path.is_dir():
        raise InputError(f"there is nothing at {path}")
    if not with_model:
        raise UsageError("a folder of images needs --model; a table can name heatmaps that were made before")
    if suffix or datatype or (path / _BIDS).is_file():
        return _of_bids(path, suffix, datatype, volume)
    return _of_folder(path, volume)


def _of_bids(root: Path, suffix: str | None, datatype: str | None, volume: int | None) -> Cases:
    images = [
        (name, path)
        for path in _files_below(root)
        if path.relative_to(root).parts[0].startswith("sub-")
        and (name := parsed(path.name)) is not None
        and name.ending in (".nii", ".nii.gz")
        and datatype in (None, path.parent.name)
    ]
    found = Counter(name.suffix for name, _ in images)
    words = ", ".join(f"{count} {each}" for each, count in sorted(found.items())) or "none"
    if suffix is None and len(found) > 1:
        raise UsageError(f"the dataset holds images of several suffixes ({words}); choose one with --suffix")
    chosen = [(name, path) for name, path in images if suffix in (None, name.suffix)]
    if not chosen:
        raise InputError(
            f"{root.name} holds no image of a subject named by BIDS with that suffix and datatype (there are {words})"
        )
    return Cases(
        tuple(
            Case(Entry(line, path.name.removesuffix(name.ending), name.subject, "", (path,), volume=volume))
            for line, (name, path) in enumerate(chosen, _FIRST_LINE)
        ),
        root,
        found=True,
    )


def _of_folder(root: Path, volume: int | None) -> Cases:
    """Return the cases of a folder: its DICOM series, and its other images."""
    from medcam.formats.dicom_studies import series_among

    files = list(_files_below(root))
    plain = [path for path in files if _is_image(path)]
    others = set(files) - set(plain)
    archived = series_among(path for path in files if path in others and not _is_second(path))
    series, notes = _explainable(archived, volume)
    zips = sum(path.suffix.lower() == ".zip" for path in files)
    notes += (f"Zip archives were left out: {zips}. Unpack them, or name them in a table.",) if zips else ()
    cases = [_of_series(one, volume) for one in series]
    names = {path: "/".join(without_ending(path.relative_to(root))) for path in plain}
    twice = Counter(names.values())
    for path, short in names.items():
        # Two formats of one image are two cases.
        name = short if twice[short] == 1 else path.relative_to(root).as_posix()
        cases.append(Case(Entry(0, name, name, "", (path,), volume=volume)))
    if not cases:
        told = f": {' '.join(notes)}" if notes else ""
        raise InputError(f"{root.name} holds no image that medcam explains{told}")
    numbered = (Case(_at(case.entry, line), case.series, case.name) for line, case in enumerate(cases, _FIRST_LINE))
    return Cases(tuple(numbered), root, notes, found=True)


def _explainable(
    archived: Sequence[ArchivedSeries], volume: int | None
) -> tuple[list[ArchivedSeries], tuple[str, ...]]:
    """Return the series that are explained, or fail because a file is damaged, and what is told of the others."""
    by_study: dict[str, list[ArchivedSeries]] = defaultdict(list)
    for each in archived:
        by_study[each.study].append(each)
    kept: list[ArchivedSeries] = []
    left: Counter[str] = Counter()
    for of_study in by_study.values():
        images = [each for each in of_study if not each.localizer] or of_study
        left["that are localizers"] += len(of_study) - len(images)
        for each in images:
            if each.uid and each.error:
                left["of a kind that is not read"] += 1
            elif each.volumes > 1 and volume is None:
                left["that hold several volumes (choose one with --volume)"] += 1
            else:
                kept.append(each)
    return kept, tuple(f"Series {why} were left out: {count}." for why, count in left.items() if count)


def _of_series(series: ArchivedSeries, volume: int | None) -> Case:
    modality = "".join(letter for letter in series.modality if letter.isalnum() and letter.isascii()) or "image"
    number = "" if series.number is None else f"_s{series.number}"
    own = _digest_of(series)
    name = f"study-{series.study[:_DIGITS]}/{modality}{number}_{own}"
    folder = Path(os.path.commonpath([path.parent for path in series.paths]))
    chosen = volume if series.volumes > 1 else None
    return Case(Entry(0, name, series.patient, "", (folder,), series=series.uid, volume=chosen), series.paths, name)


def _digest_of(series: ArchivedSeries) -> str:
    """Return a short digest of a series: of its UID, or of its folder where that cannot be read."""
    return hashlib.sha256((series.uid or str(series.paths[0].parent)).encode()).hexdigest()[:_DIGITS]


def _at(entry: Entry, line: int) -> Entry:
    return replace(entry, line=line)


def _files_below(root: Path) -> Iterator[Path]:
    """Yield the files below a folder in order, without what medcam wrote, and what is hidden."""
    for parent, folders, names in os.walk(root):
        if NAME in names:
            folders.clear()
            continue
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for name in sorted(names):
            if not name.startswith((".", UNFINISHED)) and (path := Path(parent, name)).is_file():
                yield path


def _is_image(path: Path) -> bool:
    name = path.name.lower()
    suffixes = (suffix for kind, row in READERS.items() if kind != "dicom" for suffix in row.suffixes)
    return name.endswith(tuple(suffixes)) and not _is_second(path)


def _is_second(path: Path) -> bool:
    first = _SECOND.get(path.suffix.lower())
    return first is not None and path.with_suffix(first).is_file()
