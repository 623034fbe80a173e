"""Read DICOM -> `Volume`: find the series, the volume in it, where its pictures lie, and their values.

    files_in -> scan, choose (series) -> pictures_of -> volumes_of, choose_volume -> place_slices -> read_voxels

A picture is what a plain file holds one of, an enhanced one a frame each, a mosaic a tile each. What cannot be placed
without guessing is refused by name.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from medcam.errors import InputError
from medcam.formats import dicom_pixels, dicom_series
from medcam.formats.dicom_files import StoredFile, files_in, naming, read_header, stored_file
from medcam.formats.dicom_film import place_film
from medcam.formats.dicom_geometry import Placement, place_slices, refuse_size
from medcam.formats.dicom_plane import size
from medcam.formats.dicom_reading import digest_of, read_voxels
from medcam.formats.dicom_regrid import resampled
from medcam.formats.dicom_series import Found, Series
from medcam.formats.dicom_volumes import Candidate, choose_volume, volumes_of
from medcam.volume import Frame, Source, Volume

__all__ = ["Series", "find_series", "is_dicom", "read_dicom", "read_files"]


def is_dicom(path: Path) -> bool:
    """Tell whether a path is a DICOM file, or a folder or zip that holds one."""
    try:
        with _quiet(), files_in(path) as files:
            return any(_is_readable(file) for file in files)
    except (InputError, OSError):
        return False


def find_series(path: Path, *, series: str | None = None) -> tuple[Series, ...]:
    """Return the series of images at a path (a file, a folder with all below it, a zip, a DICOMDIR), sorted by number.

    Localizers count only where there is nothing else. Segmentations, reports and the like are no images.

    Parameters
    ----------
    series
        Only the one that is called so, by its SeriesNumber, its SeriesInstanceUID, or the end of that.

    Raises
    ------
    InputError
        If nothing there is a DICOM image, or a DICOM file is damaged.
    UsageError
        If no series is called so.
    """
    with _quiet(), files_in(path) as files:
        found = dicom_series.scan(files, path.name)
        chosen = dicom_series.main(found) if series is None else [dicom_series.choose(found, series, path.name)]
        return tuple(_with_volumes(one) for one in chosen)


def read_dicom(
    path: Path,
    *,
    series: str | None = None,
    volume: int | None = None,
    allow_gaps: bool = False,
    regrid: bool = False,
) -> Volume:
    """Read one volume of a series of greyscale images, or one X-ray film.

    Parameters
    ----------
    path
        A file (that alone), a folder, a zip, or a DICOMDIR (what it lists).
    series
        Which series, where there are several: its SeriesNumber, its SeriesInstanceUID, or the end of that.
    volume
        Which volume of the series (from 0), where it holds several: echoes, times, b-values, phases, kinds of image,
        orientations, views. `find_series` lists them.
    allow_gaps
        Interpolate missing slices between their neighbours instead of refusing the series.
    regrid
        Resample uneven or tilted slices onto an even, orthogonal grid. Its slices are then no slice of the source.

    Returns
    -------
    The volume, float32. Slices are sorted along their normal; values are rescaled, and MONOCHROME1 is turned over so
    that larger is brighter. `source.window` is the middle slice's; `source.notes` says what was changed or assumed.

    Raises
    ------
    UsageError
        If no series or no volume is called so.
    InputError
        If there is no image, there are several series and none was chosen, a file is damaged, or the images are of a
        kind that is not read.
    GeometryError
        If the series holds several volumes and none was chosen, or the images are not one regular grid in space.
    """
    with _quiet(), files_in(path) as files:
        return _read(files, path.name, series, volume, allow_gaps=allow_gaps, regrid=regrid)


def read_files(
    paths: Sequence[Path],
    *,
    series: str | None = None,
    volume: int | None = None,
    allow_gaps: bool = False,
    regrid: bool = False,
) -> Volume:
    """Read one volume from files that are named one by one, wherever they lie, as `read_dicom` does from a folder.

    Raises
    ------
    UsageError, InputError, GeometryError
        As `read_dicom`.
    """
    if gone := next((path for path in paths if not path.is_file()), None):
        raise InputError(f"there is no file {gone.name} any more; see whether the series was moved")
    files = [stored_file(path) for path in paths]
    with _quiet():
        return _read(files, paths[0].parent.name, series, volume, allow_gaps=allow_gaps, regrid=regrid)


def _read(
    files: Sequence[StoredFile], place: str, series: str | None, volume: int | None, *, allow_gaps: bool, regrid: bool
) -> Volume:
    found = dicom_series.choose(dicom_series.scan(files, place), series, place)
    candidates = volumes_of(dicom_series.whole(found.instances), digest=digest_of)
    number, candidate = choose_volume(candidates, volume)
    placement = _place(candidate, allow_gaps=allow_gaps, regrid=regrid)
    pictures = [None if n is None else candidate.pictures[n] for n in placement.order]
    voxels, digests = read_voxels(pictures, size(candidate.pictures[0].header))
    label = _label(found.series, number if volume is not None and len(candidates) > 1 else None)
    source = _source(found, candidate, placement, digests, label)
    unit = dicom_pixels.unit(next(each for each in pictures if each is not None).header)
    if placement.stored:
        voxels = resampled(voxels, placement.stored, placement.grid)
    # Slices lie one after the other in memory, as they come from the files; the volume is a view with the axes i j k.
    return Volume(voxels.transpose(2, 1, 0), placement.grid, unit, source)


def _with_volumes(found: Found) -> Series:
    try:
        candidates = volumes_of(dicom_series.whole(found.instances), digest=digest_of)
    except InputError:
        return found.series
    offered = sum(not each.aside for each in candidates)
    return replace(found.series, volumes=tuple(each.line for each in candidates), offered=offered)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom's warnings about odd headers from the user: they tell nothing that this module does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _is_readable(file: StoredFile) -> bool:
    try:
        return read_header(file, ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID"]) is not None
    except InputError:
        return False


def _place(candidate: Candidate, *, allow_gaps: bool, regrid: bool) -> Placement:
    if candidate.planes:
        return place_slices(candidate.planes, allow_gaps=allow_gaps, regrid=regrid)
    header = candidate.pictures[0].header
    refuse_size(*size(header), 1)
    return place_film(header)


def _source(
    found: Found, candidate: Candidate, placement: Placement, digests: Mapping[int, bytes], label: str
) -> Source:
    pictures = [None if n is None else candidate.pictures[n] for n in placement.order]
    present = [each for each in pictures if each is not None]
    middle = present[len(present) // 2]
    instances = list({id(each.instance): each.instance for each in present}.values())
    numbered = {id(instance): n for n, instance in enumerate(instances)}
    notes = [*placement.notes, *candidate.notes, *found.notes]
    if dicom_pixels.is_inverted(middle.header):
        notes.append("MONOCHROME1: values were turned over, so that larger is brighter")
    if any((group, 0x3000) in one.header for one in instances for group in range(0x6000, 0x6020, 2)):
        notes.append("overlays were ignored")
    with naming(middle.instance.file):
        window = dicom_pixels.display_window(middle.header)
    ordered = [digests[id(each)] for each in instances]
    slices = tuple(None if each is None else Frame(numbered[id(each.instance)], each.number) for each in pictures)
    return Source(
        format="dicom",
        sha256=ordered[0].hex() if len(ordered) == 1 else hashlib.sha256(b"".join(ordered)).hexdigest(),
        label=label,
        modality=found.series.modality or None,
        oriented=placement.oriented,
        placed=placement.placed,
        spaced=placement.spaced,
        window=window,
        instances=tuple(each.header for each in instances),
        slices=(None,) * placement.grid.shape[2] if placement.stored else slices,
        notes=tuple(notes),
    )


def _label(series: Series, volume: int | None) -> str:
    modality = re.sub("[^A-Za-z0-9]", "", series.modality) or "image"
    number = f"s{series.number}" if series.number is not None else hashlib.sha256(series.uid.encode()).hexdigest()[:6]
    return f"{modality}_{number}" if volume is None else f"{modality}_{number}_v{volume}"
