"""Which series of images lie among DICOM files, and which of them is meant."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydicom import Dataset

from medcam.errors import InputError, UsageError
from medcam.formats import dicom_fourth, dicom_plane
from medcam.formats.dicom_files import StoredFile, open_header, said
from medcam.formats.dicom_pictures import Instance, frame_count, kind_of

_KEYWORDS = (
    *dicom_plane.KEYWORDS,
    *dicom_fourth.KEYWORDS,
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "Modality",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
)
# Objects that hold a grid of numbers and are no images, by words in the name of their class.
_NOT_IMAGES = ("Segmentation", "Parametric Map", "RT Dose", "Presentation State")
# Up to this many files, headers are kept whole, so that none is parsed twice; of more, only what tells series apart.
_HELD_FILES = 2000


@dataclass(frozen=True)
class Series:
    """One DICOM series as found on disk. Its repr names no patient.

    Parameters
    ----------
    uid, number, modality, description
        SeriesInstanceUID, SeriesNumber, Modality and SeriesDescription; '' or None where the file does not say.
    shape
        Columns, rows, and how many pictures there are: of many frames in one file, each counts.
    paths
        The files, in the order in which they were found. Members of a zip are written archive/member.
    volumes
        What there is to choose from by number (from 0), in words; empty where the images cannot be placed.
    offered
        How many of these are a choice of their own; the others are localizers and the like, left out unless asked for.
    """

    uid: str
    number: int | None
    modality: str
    description: str
    shape: tuple[int, int, int]
    paths: tuple[Path, ...] = field(repr=False)
    volumes: tuple[str, ...] = ()
    offered: int = 0


class Found(NamedTuple):
    """A series with its instances, whether they are localizers, and what the user should know about how it was found."""

    series: Series
    instances: tuple[Instance, ...]
    localizers: bool
    notes: tuple[str, ...]


def scan(files: Sequence[StoredFile], place: str) -> list[Found]:
    """Return every series of images, sorted by number; series of nothing but localizers are told.

    Parameters
    ----------
    place
        How to call the folder, zip or file in messages.

    Raises
    ------
    InputError
        If there is no DICOM image among the files, or a DICOM file cannot be parsed.
    """
    instances: dict[str, list[Instance]] = defaultdict(list)
    others: Counter[str] = Counter()
    misnamed = 0
    keywords = () if len(files) <= _HELD_FILES else _KEYWORDS
    for file in files:
        read = open_header(file, keywords)
        if read is None:
            # '._name' is what a Mac puts beside each file that it zips.
            misnamed += file.path.suffix.lower() == ".dcm" and not file.path.name.startswith("._")
        elif _is_image(read.dataset, file.path.name):
            instances[_text(read.dataset, "SeriesInstanceUID")].append(
                Instance(file, read.dataset, read.pixels_at, not keywords)
            )
        else:
            others[_text(read.dataset, "Modality") or kind_of(read.dataset)] += 1
    if not instances:
        only = f", only {', '.join(f'{count} {kind}' for kind, count in sorted(others.items()))}" if others else ""
        raise InputError(f"{place} holds no DICOM image{only}; give a DICOM image, or a folder or zip that holds some")
    notes = (f"files that end in .dcm and are not DICOM were left out: {misnamed}",) if misnamed else ()
    found = [_found(uid, members, notes) for uid, members in instances.items()]
    return sorted(found, key=lambda one: (one.series.number is None, one.series.number or 0, one.series.uid))


def whole(instances: Sequence[Instance]) -> tuple[Instance, ...]:
    """Return the same instances with all of their headers, which of many files are not kept.

    Raises
    ------
    InputError
        If a file is no longer there, or no longer what it was.
    """
    return tuple(each if each.whole else _read_whole(each) for each in instances)


def _read_whole(instance: Instance) -> Instance:
    read = open_header(instance.file)
    if read is None:
        raise InputError(f"{instance.file.path.name} has changed while it was read; try again")
    return Instance(instance.file, read.dataset, read.pixels_at)


def main(found: Sequence[Found]) -> list[Found]:
    """Return the series that are not localizers, or all where there is nothing else."""
    return [one for one in found if not one.localizers] or list(found)


def choose(found: Sequence[Found], selector: str | None, place: str) -> Found:
    """Return the series that the selector names: by SeriesInstanceUID, by SeriesNumber, or by the end of the UID.

    Raises
    ------
    InputError
        If there are several and no selector.
    UsageError
        If the selector names none or several.
    """
    offered = main(found)
    if selector is None:
        if len(offered) == 1:
            return offered[0]
        raise InputError(
            f"{place} holds {len(offered)} series; choose one with --series, by its number or the end of its UID:\n"
            f"{_listing(offered)}"
        )
    wanted = selector.strip()
    for candidates in (offered, found):
        for matches in (
            [one for one in candidates if one.series.uid == wanted],
            [one for one in candidates if str(one.series.number) == wanted],
            [one for one in candidates if wanted and one.series.uid.endswith(wanted)],
        ):
            if len(matches) == 1:
                return matches[0]
            if matches:
                raise UsageError(f"--series {wanted} names {len(matches)}; give more of the UID:\n{_listing(matches)}")
    raise UsageError(f"--series {wanted} names none of the series in {place}, which are\n{_listing(offered)}")


def _found(uid: str, instances: Sequence[Instance], notes: tuple[str, ...]) -> Found:
    kept = _without_repeats(instances)
    if len(kept) < len(instances):
        notes = (*notes, f"files that repeat an image of the series were left out: {len(instances) - len(kept)}")
    header = kept[0].header
    series = Series(
        uid=uid,
        number=_integer(header, "SeriesNumber"),
        modality=_text(header, "Modality"),
        description=_text(header, "SeriesDescription"),
        shape=(int(header.Columns), int(header.Rows), sum(frame_count(each.header) for each in kept)),
        paths=tuple(each.file.path for each in kept),
    )
    return Found(series, kept, all("LOCALIZER" in _image_type(each.header) for each in kept), notes)


def _without_repeats(instances: Sequence[Instance]) -> tuple[Instance, ...]:
    """Leave out what is stored twice. An image without a UID is always its own, and so is one whose header says otherwise:
    there are programs that give all images of a series one UID.
    """
    kept: dict[tuple[str, ...], Instance] = {}
    uids = Counter(str(said(each.header, "SOPInstanceUID")) for each in instances)
    for number, each in enumerate(instances):
        uid = str(said(each.header, "SOPInstanceUID") or "")
        if uids[uid] == 1 or not uid:
            kept[uid, str(number)] = each
        else:
            kept.setdefault((uid, *(str(said(each.header, keyword)) for keyword in _KEYWORDS)), each)
    return tuple(kept.values())


def _listing(found: Sequence[Found]) -> str:
    """Return one line a series: number, modality, description, size, and enough of the end of its UID to tell it."""
    uids = [one.series.uid for one in found]
    shown = next((n for n in range(12, 64) if len({uid[-n:] for uid in uids}) == len(uids)), 64)
    lines = []
    for one in found:
        number, description = one.series.number, one.series.description or "no description"
        columns, rows, count = one.series.shape
        size = f"{count} slice{'s' if count > 1 else ''} of {columns} x {rows}"
        lines.append(f"  {number}  {one.series.modality or '?'}  {description}  {size}  ...{one.series.uid[-shown:]}")
    return "\n".join(lines)


def _is_image(header: Dataset, file_name: str) -> bool:
    kind = kind_of(header)
    if any(word in kind for word in _NOT_IMAGES):
        return False
    sized = bool(_integer(header, "Rows") and _integer(header, "Columns"))
    # A header that ends early, left out in silence, would be a slice less at the end of a volume. Of all that DICOM
    # stores, only the directory of a disc belongs to no series.
    cut = said(header, "SeriesInstanceUID") is None and "Directory" not in kind
    if not sized and ("Image Storage" in kind or cut):
        raise InputError(f"{file_name} ({kind}) has no Rows or Columns; it may have been cut short: fetch it again")
    return sized


def _text(header: Dataset, keyword: str) -> str:
    """Return the words of an element, or '' where there are none that can be shown.

    A damaged length swallows what follows, the patient's name too; it shows in the bytes between the elements.
    """
    words = str(said(header, keyword) or "")
    return words if len(words) <= 64 and words.isprintable() else ""


def _image_type(header: Dataset) -> tuple[str, ...]:
    value = said(header, "ImageType") or ()
    return (value,) if isinstance(value, str) else tuple(str(each) for each in value)


def _integer(header: Dataset, keyword: str) -> int | None:
    try:
        return int(said(header, keyword))
    except (ValueError, TypeError):
        return None
