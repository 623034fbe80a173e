"""NRRD in: attached (.nrrd) and detached (.nhdr) files, in whatever space they name.

References
----------
Gordon Kindlmann, Definition of NRRD File Format, http://teem.sourceforge.net/nrrd/format.html, section 'Space and orientation information'.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
from jaxtyping import Float

from medcam.errors import GeometryError, InputError
from medcam.formats import fourth_axis
from medcam.formats.header_geometry import LPS, Place, affine_of, grid_of, mm_per_unit
from medcam.formats.stored_array import StoredArray, data_files, digest, read_array, refuse_large
from medcam.volume import Source, Volume

# What pynrrd raises for damaged headers.
_UNREADABLE = (nrrd.NRRDError, Warning, ValueError, LookupError, TypeError, AttributeError, OverflowError)
# A segmentation of 3D Slicer takes about a kilobyte a segment.
_LONGEST_HEADER = 4 * 2**20
_NAMES = {
    "int8": ("signed char", "int8", "int8_t"),
    "uint8": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "int16": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "uint16": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "int32": ("int", "signed int", "int32", "int32_t"),
    "uint32": ("uint", "unsigned int", "uint32", "uint32_t"),
    "int64": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "uint64": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "float32": ("float",),
    "float64": ("double",),
}
_DTYPES = {name: np.dtype(dtype) for dtype, names in _NAMES.items() for name in names}
_ENCODINGS = {
    "raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2", "hex": "hex",
    "ascii": "text", "text": "text", "txt": "text",
}  # fmt: skip
# What makes RAS of the spaces that lie in the patient.
_RAS_FROM = {
    "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1), "rast": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1), "last": (-1, 1, 1),
    "left-posterior-superior": LPS, "lps": LPS, "lpst": LPS,
}  # fmt: skip
_COLOURS = ("RGB-color", "HSV-color", "XYZ-color", "RGBA-color", "3-color", "4-color")


@dataclass(frozen=True)
class NrrdFile:
    """What a header says.

    Parameters
    ----------
    fields
        Its fields and key/value pairs, by name.
    array
        Where the values lie, and how.
    spatial
        Which of the array's axes run through space, in their order.
    """

    fields: Mapping[str, Any] = field(repr=False)
    array: StoredArray
    spatial: tuple[int, ...]

    @property
    def extra(self) -> tuple[int, ...]:
        """The axes that do not run through space."""
        return tuple(axis for axis in range(len(self.array.shape)) if axis not in self.spatial)


def read_nrrd(path: Path, *, volume: int | None = None) -> Volume:
    """Read a NRRD image on the grid that its header states, in its stored axes.

    A header without a space that lies in the patient gives no orientation; its axes are then taken as left, posterior,
    superior, as ITK takes them, and those of a 2D image as a frontal film's.

    Parameters
    ----------
    volume
        Which volume, from 0, where a fourth axis (time, a list, a vector's components) does not run through space.

    Raises
    ------
    InputError
        If the file is damaged, cut short, holds colours, or looks for its data outside its folder, or is 4D and no volume is chosen.
    GeometryError
        If its axes are not a regular grid.
    """
    file = read_header(path)
    kinds = file.fields.get("kinds", [])
    if colours := [kind for kind in kinds if kind in _COLOURS]:
        raise InputError(f"{path.name} holds colours ({colours[0]}), not one value a voxel; convert it to grey first")
    if "complex" in kinds:
        raise InputError(f"{path.name} holds complex numbers; take the magnitude first")
    found = place(file, path.name)
    grid = grid_of([file.array.shape[axis] for axis in file.spatial], found, path.name)
    shape = (*grid.shape, *(file.array.shape[axis] for axis in file.extra))
    chosen = fourth_axis.choose(path.name, shape, volume)
    voxels = read_array(file.array, path.name).transpose(*file.spatial, *file.extra).reshape(shape)[chosen]
    if voxels.dtype.kind == "f":
        voxels = voxels.astype(np.float32, copy=False)
    suffix, notes = fourth_axis.said(path.name, shape, volume)
    files = (path, *(data for data in file.array.files if data != path))
    source = Source(
        "nrrd", digest(*files), path.stem + suffix,
        oriented=found.oriented, placed=found.placed, spaced=found.spaced, notes=(*found.notes, *notes),
    )  # fmt: skip
    return Volume(voxels, grid, "a.u.", source)


def read_header(path: Path) -> NrrdFile:
    """Return what a NRRD header says of its array, without reading that.

    Raises
    ------
    InputError
        If it is no NRRD header, or contradicts itself, or names data outside its folder.
    """
    lines, start, listed = _lines(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fields = nrrd.read_header(lines)
        shape = tuple(int(n) for n in fields["sizes"])
        dtype, encoding = _DTYPES[fields["type"].lower()], _ENCODINGS[fields["encoding"].lower()]
        spatial = _spatial(fields, len(shape))
    except _UNREADABLE as error:
        raise InputError(
            f"{path.name} is not a readable NRRD image: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    if len(shape) != fields.get("dimension") or min(shape) < 1:
        raise InputError(f"{path.name} is damaged: it claims {fields.get('dimension')} axes, of sizes {shape}")
    refuse_large(path.name, shape, dtype.itemsize)
    if dtype.itemsize > 1 and encoding != "text":
        order = fields.get("endian")
        if order not in ("little", "big"):
            raise InputError(f"{path.name} does not say in which order its bytes lie (endian)")
        dtype = dtype.newbyteorder("<" if order == "little" else ">")
    skip = fields.get("byte skip", fields.get("byteskip", 0))
    named = fields.get("data file", fields.get("datafile"))
    array = StoredArray(
        files=(path,) if named is None else data_files(path, named, listed),
        shape=shape,
        dtype=dtype,
        encoding=encoding,
        offset=-1 if skip == -1 else start if named is None else 0,
        lines=0 if skip == -1 else fields.get("line skip", fields.get("lineskip", 0)),
        skipped=0 if skip == -1 else skip,
    )
    return NrrdFile(fields, array, spatial)


def place(file: NrrdFile, name: str) -> Place:
    """Return where the image lies.

    Raises
    ------
    GeometryError
        If it has not two or three axes in space, or they are in different units.
    """
    if not 2 <= len(file.spatial) <= 3:
        raise GeometryError(f"{name} has {len(file.spatial)} axes in space; medcam reads images of two or three")
    try:
        return _by_directions(file, name) if "space directions" in file.fields else _by_spacings(file, name)
    except GeometryError as error:
        raise GeometryError(f"{name} is damaged: {error}") from error
    except (ValueError, TypeError, IndexError) as error:
        raise InputError(f"{name} is damaged: its spacings, directions or origin do not fit its axes") from error


def _lines(path: Path) -> tuple[list[str], int, list[str]]:
    """Return the header's lines, where what follows them starts, and the files that it lists."""
    lines: list[str] = []
    with path.open("rb") as stream:
        if not (magic := stream.readline(64)).startswith(b"NRRD"):
            raise InputError(f"{path.name} does not start like a NRRD file; fetch it again, or name it as what it is")
        lines.append(magic.decode("ascii", "replace").rstrip())
        while (line := stream.readline(_LONGEST_HEADER)) and line.strip():
            if stream.tell() > _LONGEST_HEADER:
                raise InputError(f"{path.name} is damaged: its header does not end")
            lines.append(line.decode("utf-8", "replace").rstrip())
            key, _, value = lines[-1].partition(":")
            if key.strip().lower() in ("data file", "datafile") and value.split()[:1] == ["LIST"]:
                rest = stream.read(_LONGEST_HEADER).decode("utf-8", "replace").splitlines()
                return lines, stream.tell(), [name.strip() for name in rest if name.strip()]
        return lines, stream.tell(), []


def _spatial(fields: Mapping[str, Any], dimension: int) -> tuple[int, ...]:
    axes = range(dimension)
    if "space directions" in fields:
        return tuple(axis for axis in axes if np.any(np.nan_to_num(_directions(fields)[axis])))
    kinds = fields.get("kinds") or ["domain"] * dimension
    inside = [axis for axis in axes if kinds[axis] in ("domain", "space", "none", "???")]
    return tuple(inside[:3])


def _directions(fields: Mapping[str, Any]) -> Float[np.ndarray, "axes n"]:
    """Return the step of each axis in the first three dimensions of the space; NaN for axes that do not run through it."""
    rows = list(fields["space directions"])
    if len(rows) != len(fields["sizes"]):
        raise ValueError(f"{len(rows)} space directions for {len(fields['sizes'])} axes")
    width = max(len(row) for row in rows if row is not None)
    return np.array([np.full(width, np.nan) if row is None else row for row in rows], np.float64)[:, :3]


def _by_directions(file: NrrdFile, name: str) -> Place:
    fields = file.fields
    steps = _directions(fields)[list(file.spatial)].T
    origin = fields.get("space origin")
    first = np.zeros(len(steps)) if origin is None else np.asarray(origin, np.float64)[: len(steps)]
    scale, notes = mm_per_unit(fields.get("space units", ()), name)
    signs = _RAS_FROM.get(str(fields.get("space", "")).lower().removesuffix("-time")) if len(steps) == 3 else None
    if signs is None:
        notes = (*notes, f"{name} names no space in the patient; no orientation is claimed.")
    if origin is None:
        notes = (*notes, f"{name} does not say where its first voxel lies.")
    affine = affine_of(steps, first, ras_from_world=signs or LPS, scale=scale)
    return Place(affine, signs is not None, signs is not None and origin is not None, True, notes)


def _by_spacings(file: NrrdFile, name: str) -> Place:
    """Place an image that gives the size of its voxels at most."""
    axes, count = list(file.spatial), len(file.spatial)
    found = np.asarray(file.fields.get("spacings", [np.nan] * len(file.array.shape)), np.float64)[axes]
    spaced = bool(np.isfinite(found).all())
    units = file.fields.get("units", [""] * len(file.array.shape))
    scale, notes = mm_per_unit([units[axis] for axis in axes] if spaced else (), name)
    if not spaced:
        notes = (*notes, f"{name} does not say how large a voxel is: lengths are in pixels.")
    steps = np.diag(np.abs(found) if spaced else np.ones(count))
    notes = (*notes, f"{name} names no space in the patient; no orientation is claimed.")
    return Place(affine_of(steps, np.zeros(count), scale=scale), False, False, spaced, notes)
