"""The doors: the only room that knows tags, suffixes and LPS. `read` and `write` choose one by what lies there and by name."""

from __future__ import annotations

import difflib
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from medcam.errors import InputError, OutputError, UsageError
from medcam.volume import Heatmap, Volume


class Writer(Protocol):
    """Writes a heatmap into a folder, whole or not at all, and returns the files. `lesion` is drawn where the format can draw."""

    def __call__(
        self, heatmap: Heatmap, volume: Volume, folder: Path, label: str, *, threshold: float, lesion: Volume | None
    ) -> tuple[Path, ...]: ...


def read(path: str | Path, *, series: str | None = None, volume: int | None = None, allow_gaps: bool = False) -> Volume:
    """Read one image: a NIfTI file, a picture (PNG, JPEG, TIFF), or DICOM as a file, a folder or a zip.

    Parameters
    ----------
    series
        Which DICOM series, by number or UID (or the end of it), where there are several.
    volume
        Which volume of a 4D NIfTI, from 0.
    allow_gaps
        Fill missing DICOM slices by interpolation instead of refusing.

    Raises
    ------
    InputError
        If there is nothing at `path`, or it is damaged or of a kind that medcam does not read.
    GeometryError
        If the slices do not make one regular grid.
    """
    path = Path(path)
    try:
        kind = kind_of(path)
        if volume is not None and kind != "nifti":
            raise UsageError(
                "--volume chooses from a 4D NIfTI, and this image is none; a DICOM series is chosen by --series"
            )
        if kind == "nifti":
            from medcam.formats.nifti import read_nifti

            return read_nifti(path, volume=volume)
        if kind == "picture":
            from medcam.formats.picture import read_picture

            return read_picture(path)
        from medcam.formats.dicom import read_dicom

        return read_dicom(path, series=series, allow_gaps=allow_gaps)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def kind_of(path: Path) -> str:
    """Tell which door an image goes through: 'dicom', 'nifti' or 'picture'.

    Raises
    ------
    InputError
        If there is nothing at `path`, or nothing that medcam reads.
    """
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=1)
        raise InputError(f"there is nothing at {path}" + (f"; did you mean {near[0]}?" if near else ""))
    name = path.name.lower()
    if path.is_dir() or zipfile.is_zipfile(path):
        return "dicom"
    if name.endswith((".nii", ".nii.gz", ".hdr", ".img")):
        return "nifti"
    if name.endswith((".png", ".jpg", ".jpeg", ".tif", ".tiff")):
        return "picture"
    from medcam.formats.dicom import is_dicom

    if is_dicom(path):
        return "dicom"
    raise InputError(
        f"{path.name} is none of what medcam reads: NIfTI (.nii, .nii.gz), DICOM (a file, a folder or a zip), or a picture "
        "(PNG, JPEG, TIFF)"
    )


def write(
    heatmap: Heatmap,
    volume: Volume,
    folder: str | Path,
    *,
    formats: Iterable[str] = ("nifti", "png"),
    threshold: float = 0.5,
    label: str | None = None,
    lesion: Volume | None = None,
) -> tuple[Path, ...]:
    """Write a heatmap in several formats, and return the files written. Each is there whole or not at all.

    Parameters
    ----------
    volume
        The (first) image that was explained: overlays show it.
    formats
        Names from `WRITERS`.
    threshold
        The fraction of the maximum (0 to 1, both excluded) from which a mask is set and pictures are coloured.
    label
        How file names begin; by default the source's label, for DICOM part of its digest, and the method.
    lesion
        The lesion's mask, to be outlined where a format draws.

    Raises
    ------
    UsageError
        If a format is unknown or the threshold is not a fraction.
    OutputError
        If a file cannot be written, or the source cannot be written in this format.
    """
    wanted = check_formats(formats, volume, threshold=threshold)
    folder = Path(folder)
    if label is None:
        # Series of two patients often have one number: part of the digest keeps their files apart.
        own = f"_{heatmap.source.sha256[:6]}" if heatmap.source.format == "dicom" else ""
        # Of a method with options the name alone: the options stand in the recipe.
        method = re.sub(r"[^a-z0-9+]", "", heatmap.recipe.method.partition("(")[0].lower())
        label = f"{heatmap.source.label}{own}_{method}"
    written: list[Path] = []
    for name in wanted:
        try:
            written += WRITERS[name](heatmap, volume, folder, label, threshold=threshold, lesion=lesion)
        except OSError as error:
            raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error
    return tuple(written)


def check_formats(formats: Iterable[str], volume: Volume, *, threshold: float) -> list[str]:
    """Return the formats, each once, if `write` could write them for this image: to be asked before a long computation.

    Raises
    ------
    UsageError
        If a format is unknown, none is named, or the threshold is not a fraction.
    OutputError
        If the image cannot be the source of one of them.
    """
    wanted = [formats] if isinstance(formats, str) else list(dict.fromkeys(formats))
    if unknown := [name for name in wanted if name not in WRITERS] or ([] if wanted else [""]):
        raise UsageError(f"there is no format '{unknown[0]}'; medcam writes {', '.join(WRITERS)}")
    if not 0 < threshold < 1:
        raise UsageError(f"a threshold is a fraction of the maximum, above 0 and below 1, not {threshold}")
    if "dicom-sc" in wanted:
        from medcam.formats.dicom_derived import source_headers

        source_headers(volume.source)
    return wanted


def _nifti(
    heatmap: Heatmap, volume: Volume, folder: Path, label: str, *, threshold: float, lesion: Volume | None
) -> tuple[Path, ...]:
    from medcam.formats.nifti import write_nifti

    return write_nifti(heatmap, folder, label, threshold=threshold)


def _dicom_sc(
    heatmap: Heatmap, volume: Volume, folder: Path, label: str, *, threshold: float, lesion: Volume | None
) -> tuple[Path, ...]:
    from medcam.formats.dicom_secondary_capture import write_secondary_capture

    path = folder / f"{label}_sc.dcm"
    write_secondary_capture(heatmap, volume, path, threshold=threshold)
    return (path,)


def _png(
    heatmap: Heatmap, volume: Volume, folder: Path, label: str, *, threshold: float, lesion: Volume | None
) -> tuple[Path, ...]:
    from medcam.render import montage, save_png

    path = folder / f"{label}.png"
    save_png(montage(heatmap, volume, lesion=lesion, threshold=threshold), path)
    return (path,)


# A format is one file of this folder and one row here. Loaded on use: each needs libraries that the others do not.
WRITERS: dict[str, Writer] = {"nifti": _nifti, "dicom-sc": _dicom_sc, "png": _png}
