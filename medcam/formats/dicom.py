"""Read DICOM: a file, a folder or a zip of classic single-frame images -> `Volume`.

Only greyscale images with one frame a file are read; what cannot be placed without guessing is refused by name.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from pydicom import Dataset, FileDataset

from medcam.errors import GeometryError, InputError
from medcam.formats import dicom_pixels, dicom_series
from medcam.formats.dicom_files import StoredFile, files_in, naming, read_dataset, read_header, said
from medcam.formats.dicom_film import place_film
from medcam.formats.dicom_geometry import Placement, numbers, place_slices
from medcam.formats.dicom_series import Image, Series
from medcam.volume import Frame, Source, Volume

__all__ = ["Series", "find_series", "is_dicom", "read_dicom"]

_MAX_VOLUME_BYTES = 16 * 2**30
# The classes that must say where their images lie: CT, MR, PET.
_PLACED = tuple(f"1.2.840.10008.5.1.4.1.1.{n}" for n in (2, 4, 128))


class _Slice(NamedTuple):
    """What was read of a slice besides its voxels."""

    header: FileDataset
    digest: bytes
    window: tuple[float, float] | None


def is_dicom(path: Path) -> bool:
    """Tell whether a path is a DICOM file, or a folder or zip that holds one."""
    try:
        with _quiet(), files_in(path) as files:
            return any(_is_readable(file) for file in files)
    except (InputError, OSError):
        return False


def find_series(path: Path) -> tuple[Series, ...]:
    """Return the series of images at a path (a file, a folder with all below it, or a zip), sorted by number.

    Localizers count only where there is nothing else. Segmentations, reports and the like are no images.

    Raises
    ------
    InputError
        If nothing there is a DICOM image, or a DICOM file is damaged.
    """
    with _quiet(), files_in(path) as files:
        found = dicom_series.scan(files, path.name)
    return tuple(one.series for one in dicom_series.main(found))


def read_dicom(path: Path, *, series: str | None = None, allow_gaps: bool = False) -> Volume:
    """Read one series of single-frame greyscale images as a volume, or one X-ray film.

    Parameters
    ----------
    path
        A file (that image alone), a folder, or a zip.
    series
        Which series, where there are several: its SeriesNumber, its SeriesInstanceUID, or the end of that.
    allow_gaps
        Interpolate missing slices between their neighbours instead of refusing the series.

    Returns
    -------
    The volume, float32. Slices are sorted along their normal; values are rescaled, and MONOCHROME1 is turned over so
    that larger is brighter. `source.window` is the middle slice's; `source.notes` says what was changed or assumed.

    Raises
    ------
    UsageError
        If no series is called so.
    InputError
        If there is no image, there are several series and none was chosen, a file is damaged, or the images are of a
        kind that is not read (several frames, mosaics, colour).
    GeometryError
        If the images are not one regular grid in space.
    """
    with _quiet(), files_in(path) as files:
        chosen = dicom_series.choose(dicom_series.scan(files, path.name), series, path.name)
        for image in chosen.images:
            dicom_series.refuse_unread_kind(image)
        placement = _place([image.header for image in chosen.images], allow_gaps)
        voxels, slices = _read_voxels(chosen.images, placement)
        source = _source(chosen.series, slices, placement, chosen.notes)
        unit = dicom_pixels.unit(next(one.header for one in slices if one is not None))
    return Volume(voxels, placement.grid, unit, source)


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


def _place(headers: Sequence[Dataset], allow_gaps: bool) -> Placement:
    placed = any(numbers(header, "ImagePositionPatient", 3) is not None for header in headers)
    if placed or any(said(header, "SOPClassUID") in _PLACED for header in headers):
        placement = place_slices(headers, allow_gaps=allow_gaps)
    elif len(headers) > 1:
        raise GeometryError(
            f"the series holds {len(headers)} images that do not say where they lie in the patient, so they are no "
            "volume; give the file of the one you want"
        )
    else:
        placement = place_film(headers[0])
    columns, rows, slices = placement.grid.shape
    if (size := columns * rows * slices * 4) > _MAX_VOLUME_BYTES:
        raise InputError(
            f"a volume of {columns} x {rows} x {slices} voxels would take {size / 2**30:.0f} GiB; medcam reads at most "
            f"{_MAX_VOLUME_BYTES / 2**30:.0f} GiB: check whether the header is damaged"
        )
    return placement


def _read_voxels(
    images: Sequence[Image], placement: Placement
) -> tuple[Float32[np.ndarray, "i j k"], tuple[_Slice | None, ...]]:
    """Return the voxels, and what was read for each slice k, or None where it was interpolated."""
    columns, rows, count = placement.grid.shape
    present = [(k, images[n]) for k, n in enumerate(placement.order) if n is not None]
    # Slices lie one after the other in memory, as they come from the files; the volume is a view with the axes i j k.
    voxels = np.empty((count, rows, columns), np.float32)

    def read(k: int, image: Image) -> _Slice:
        content, dataset = read_dataset(image.file)
        with naming(image.file):
            voxels[k] = dicom_pixels.real_world(dataset)
            window = dicom_pixels.display_window(dataset)
        for keyword in dicom_pixels.PIXEL_KEYWORDS:
            if keyword in dataset:
                del dataset[keyword]
        return _Slice(dataset, hashlib.sha256(content).digest(), window)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        read_slices = pool.map(read, *zip(*present, strict=True))
        slices = {k: one for (k, _), one in zip(present, read_slices, strict=True)}
    known = np.array(sorted(slices))
    for k in set(range(count)) - set(slices):
        after = int(np.searchsorted(known, k))
        low, high = int(known[after - 1]), int(known[after])
        share = np.float32((k - low) / (high - low))
        voxels[k] = voxels[low] * (1 - share) + voxels[high] * share
    return voxels.transpose(2, 1, 0), tuple(slices.get(k) for k in range(count))


def _source(series: Series, slices: Sequence[_Slice | None], placement: Placement, notes: Sequence[str]) -> Source:
    read, numbers = [one for one in slices if one is not None], count()
    middle = read[len(read) // 2]
    notes = [*placement.notes, *notes]
    if dicom_pixels.is_inverted(middle.header):
        notes.append("MONOCHROME1: values were turned over, so that larger is brighter")
    if any((group, 0x3000) in one.header for one in read for group in range(0x6000, 0x6020, 2)):
        notes.append("overlays were ignored")
    digests = [one.digest for one in read]
    digest = digests[0].hex() if len(digests) == 1 else hashlib.sha256(b"".join(digests)).hexdigest()
    return Source(
        format="dicom",
        sha256=digest,
        label=_label(series),
        modality=series.modality or None,
        oriented=placement.oriented,
        placed=placement.placed,
        spaced=placement.spaced,
        window=middle.window,
        instances=tuple(one.header for one in read),
        slices=tuple(None if one is None else Frame(next(numbers)) for one in slices),
        notes=tuple(notes),
    )


def _label(series: Series) -> str:
    modality = re.sub("[^A-Za-z0-9]", "", series.modality) or "image"
    if series.number is not None:
        return f"{modality}_s{series.number}"
    return f"{modality}_{hashlib.sha256(series.uid.encode()).hexdigest()[:6]}"
