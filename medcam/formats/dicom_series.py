"""Which series of images lie among DICOM files, and which of them is meant."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydicom import Dataset, FileDataset
from pydicom.uid import UID

from medcam.errors import InputError, UsageError
from medcam.formats import dicom_geometry
from medcam.formats.dicom_files import StoredFile, read_header, said

_KEYWORDS = (
    *dicom_geometry.KEYWORDS,
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
# Objects that hold a grid of numbers and are no images, and images of many frames, by words in the name of their class.
_NOT_IMAGES = ("Segmentation", "Parametric Map", "RT Dose", "Presentation State")
_MANY_FRAMES = ("Enhanced", "Multi-frame", "3D", "Tomosynthesis")


@dataclass(frozen=True)
class Series:
    """One DICOM series as found on disk. Its repr names no patient.

    Parameters
    ----------
    uid, number, modality, description
        SeriesInstanceUID, SeriesNumber, Modality and SeriesDescription; '' or None where the file does not say.
    shape
        Columns, rows, and how many images there are.
    paths
        The files, in the order in which they were found. Members of a zip are written archive/member.
    """

    uid: str
    number: int | None
    modality: str
    description: str
    shape: tuple[int, int, int]
    paths: tuple[Path, ...] = field(repr=False)


class Image(NamedTuple):
    """A file and what its header says about series and place."""

    file: StoredFile
    header: FileDataset


class Found(NamedTuple):
    """A series with its images, whether they are localizers, and what the user should know about how it was found."""

    series: Series
    images: tuple[Image, ...]
    localizers: bool
    notes: tuple[str, ...]


def scan(files: Sequence[StoredFile], place: str) -> list[Found]:
    """Return every series of images, sorted by number; the localizers of a series are one of their own.

    Parameters
    ----------
    place
        How to call the folder, zip or file in messages.

    Raises
    ------
    InputError
        If there is no DICOM image among the files, or a DICOM file cannot be parsed.
    """
    images: dict[tuple[str, bool], list[Image]] = defaultdict(list)
    others: Counter[str] = Counter()
    misnamed = 0
    for file in files:
        header = read_header(file, _KEYWORDS)
        if header is None:
            # '._name' is what a Mac puts beside each file that it zips.
            misnamed += file.path.suffix.lower() == ".dcm" and not file.path.name.startswith("._")
        elif _is_image(header, file.path.name):
            uid, is_localizer = _text(header, "SeriesInstanceUID"), "LOCALIZER" in _image_type(header)
            images[uid, is_localizer].append(Image(file, header))
        else:
            others[_text(header, "Modality") or _kind(header)] += 1
    if not images:
        only = f", only {', '.join(f'{count} {kind}' for kind, count in sorted(others.items()))}" if others else ""
        raise InputError(f"{place} holds no DICOM image{only}; give a DICOM image, or a folder or zip that holds some")
    notes = (f"files that end in .dcm and are not DICOM were left out: {misnamed}",) if misnamed else ()
    found = []
    for (uid, is_localizer), members in images.items():
        left_out = ("localizer images of the series were left out",) if (uid, not is_localizer) in images else ()
        found.append(_found(uid, members, is_localizer, notes if is_localizer else (*notes, *left_out)))
    return sorted(found, key=lambda one: (one.series.number is None, one.series.number or 0, one.series.uid))


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


def refuse_unread_kind(image: Image) -> None:
    """Refuse what is not one greyscale picture a file.

    Raises
    ------
    InputError
        If the image has several frames, is a mosaic, or is coloured.
    """
    header, file_name = image.header, image.file.path.name
    convert = "convert it to NIfTI first (dcm2niix does) and give that"
    frames = _integer(header, "NumberOfFrames") or 1
    if frames > 1 or any(word in _kind(header) for word in _MANY_FRAMES):
        raise InputError(
            f"{file_name} is a multi-frame image ({_kind(header)}, {frames} frames); medcam reads one frame a file: "
            f"{convert}"
        )
    if "MOSAIC" in _image_type(header):
        raise InputError(f"{file_name} is a mosaic (all slices of a volume in one picture); {convert}")
    photometric = _text(header, "PhotometricInterpretation")
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or (_integer(header, "SamplesPerPixel") or 1) != 1:
        raise InputError(
            f"{file_name} is a colour image (PhotometricInterpretation {photometric}); medcam reads greyscale images "
            "(MONOCHROME1 or MONOCHROME2): give the original images of the study"
        )


def _found(uid: str, images: Sequence[Image], is_localizer: bool, notes: tuple[str, ...]) -> Found:
    # The same instance may be stored twice; an image without a UID is always its own.
    unique = {str(said(image.header, "SOPInstanceUID") or image.file.path): image for image in reversed(images)}
    kept = tuple(reversed(unique.values()))
    header = kept[0].header
    series = Series(
        uid=uid,
        number=_integer(header, "SeriesNumber"),
        modality=_text(header, "Modality"),
        description=_text(header, "SeriesDescription"),
        shape=(int(header.Columns), int(header.Rows), len(kept)),
        paths=tuple(image.file.path for image in kept),
    )
    return Found(series, kept, is_localizer, notes)


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
    kind = _kind(header)
    if any(word in kind for word in _NOT_IMAGES):
        return False
    sized = bool(_integer(header, "Rows") and _integer(header, "Columns"))
    # A header that ends early, left out in silence, would be a slice less at the end of a volume. Of all that DICOM
    # stores, only the directory of a disc belongs to no series.
    cut = said(header, "SeriesInstanceUID") is None and "Directory" not in kind
    if not sized and ("Image Storage" in kind or cut):
        raise InputError(f"{file_name} ({kind}) has no Rows or Columns; it may have been cut short: fetch it again")
    return sized


def _kind(header: Dataset) -> str:
    uid = said(header, "SOPClassUID") or said(header.file_meta, "MediaStorageSOPClassUID")
    known = UID(str(uid))
    return known.name if known.name != known else "object of no public class"


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
