"""Which reader an image goes through: by what lies there, then by name."""

from __future__ import annotations

import difflib
import zipfile
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from medcam.errors import InputError, UsageError
from medcam.options import function_at, options_of
from medcam.volume import Volume


@dataclass(frozen=True)
class Reader:
    """A row of `READERS`.

    Parameters
    ----------
    names
        What it reads, in words for the user.
    suffixes
        How the names of its files end, in small letters.
    function
        Where its function is ('package.module:function', loaded on use): of a path, its keyword-only parameters being the choices that it
        offers ('volume', 'series', 'allow_gaps', 'regrid').
    start
        How its files start, for those whose names do not tell.
    """

    names: str
    suffixes: tuple[str, ...]
    function: str
    start: bytes | None = None


# Other packages add rows by the entry point group `medcam.readers`, each named by the suffix that it reads:
# ".mgz" = "package.module:function".
READERS: dict[str, Reader] = {
    "dicom": Reader("DICOM (a file, a folder or a zip)", (".dcm", ".ima"), "medcam.formats.dicom:read_dicom"),
    "nifti": Reader("NIfTI (.nii, .nii.gz, .hdr with .img)", (".nii", ".nii.gz", ".hdr", ".img"), "medcam.formats.nifti:read_nifti"),
    "nrrd": Reader("NRRD (.nrrd, .nhdr)", (".nrrd", ".nhdr"), "medcam.formats.nrrd:read_nrrd", b"NRRD000"),
    "metaimage": Reader("MetaImage (.mha, .mhd)", (".mha", ".mhd"), "medcam.formats.metaimage:read_metaimage", b"ObjectType"),
    "picture": Reader(
        "a picture (PNG, JPEG, TIFF)", (".png", ".jpg", ".jpeg", ".tif", ".tiff"), "medcam.formats.picture:read_picture"
    ),
}  # fmt: skip


def read(
    path: str | Path,
    *,
    series: str | None = None,
    volume: int | None = None,
    allow_gaps: bool = False,
    regrid: bool = False,
) -> Volume:
    """Read one image: DICOM as a file, a folder or a zip, NIfTI, NRRD, MetaImage, or a picture (PNG, JPEG, TIFF).

    Parameters
    ----------
    series
        Which DICOM series, by number or UID (or the end of it), where there are several.
    volume
        Which volume of an image that holds several, from 0.
    allow_gaps
        Fill missing DICOM slices by interpolation instead of refusing.
    regrid
        Interpolate DICOM slices that are tilted or unevenly spaced onto a grid that is orthogonal and even.

    Raises
    ------
    InputError
        If there is nothing at `path`, or it is damaged or of a kind that medcam does not read.
    GeometryError
        If it does not lie on one regular grid.
    UsageError
        If a volume is chosen of an image that cannot hold several.
    """
    path = Path(path)
    try:
        kind = kind_of(path)
        function = function_at(READERS[kind].function) if kind in READERS else _added()[kind].load()
        offered = options_of(function)
        if volume is not None and "volume" not in offered:
            raise UsageError(
                f"--volume chooses from an image that holds several, and {path.name} is of a kind that holds one"
            )
        given = {"series": series, "volume": volume, "allow_gaps": allow_gaps, "regrid": regrid}
        found: Volume = function(path, **{name: value for name, value in given.items() if name in offered})
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except MemoryError as error:
        raise InputError(f"{path.name} is too large for this computer's memory") from error
    return found


def kind_of(path: Path) -> str:
    """Tell which reader an image goes through: a name from `READERS`, or the suffix that another package reads.

    Raises
    ------
    InputError
        If there is nothing at `path`, or nothing that medcam reads.
    """
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=1)
        raise InputError(f"there is nothing at {path}" + (f"; did you mean {near[0]}?" if near else ""))
    if path.is_dir():
        return "dicom"
    if not path.is_file():
        raise InputError(f"{path} is neither a file nor a folder")
    start = _start(path)
    # Scanners and archives give DICOM files any suffix.
    if start[128:] == b"DICM" or zipfile.is_zipfile(path):
        return "dicom"
    name = path.name.lower()
    rows = [(suffix, kind) for kind, row in READERS.items() for suffix in row.suffixes]
    for suffix, kind in (*rows, *((suffix.lower(), suffix) for suffix in _added())):
        if name.endswith(suffix):
            return kind
    for kind, row in READERS.items():
        if row.start is not None and start.startswith(row.start):
            return kind
    from medcam.formats.dicom import is_dicom

    if is_dicom(path):
        return "dicom"
    *names, last = (row.names for row in READERS.values())
    raise InputError(f"{path.name} is none of what medcam reads: {', '.join(names)}, or {last}")


def _start(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(132)


def _added() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group="medcam.readers")}
