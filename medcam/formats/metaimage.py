"""MetaImage in: .mha, and .mhd with its data beside it, as ITK writes and reads them.

ITK's own reader is the referee in the tests and not used here: it follows paths out of the folder of a hostile header, and what crashes in
it cannot be caught.

References
----------
https://docs.itk.org/en/latest/learn/metaio.html
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medcam.errors import GeometryError, InputError
from medcam.formats import fourth_axis
from medcam.formats.header_geometry import Place, affine_of, grid_of, mm_per_unit
from medcam.formats.stored_array import StoredArray, data_files, digest, read_array, refuse_large
from medcam.geometry import Grid
from medcam.volume import Source, Volume

_LONGEST_HEADER = 2**20
# MetaIO's long has 4 bytes in every file, whatever it has on the machine.
_DTYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_MODALITIES = {"MET_MOD_CT": "CT", "MET_MOD_MR": "MR", "MET_MOD_US": "US", "MET_MOD_NM": "NM"}
# MetaIO names the side that an axis comes from, `Grid.axis_codes` the one that it goes to.
_OPPOSITE = str.maketrans("LRPAIS", "RLAPSI")


def read_metaimage(path: Path, *, volume: int | None = None) -> Volume:
    """Read a MetaImage on the grid that its header states, in its stored axes.

    A header without a TransformMatrix gives no orientation; its axes are then taken as left, posterior, superior, as ITK
    takes them, and those of a 2D image as a frontal film's.

    Parameters
    ----------
    volume
        Which volume of a fourth axis, or which channel, from 0.

    Raises
    ------
    InputError
        If the file is damaged, cut short, holds colours, or looks for its data outside its folder, or holds several
        volumes and none is chosen.
    GeometryError
        If its axes are not a regular grid.
    """
    fields, array = _header(path)
    channels = len(array.shape) - len(fields["DimSize"].split())
    sizes = array.shape[channels:]
    if channels and array.shape[0] in (3, 4) and array.dtype.itemsize == 1:
        raise InputError(f"{path.name} holds colours, not one value a voxel; convert it to grey first")
    place = _place(fields, len(sizes), path.name)
    grid = grid_of(sizes[:3], place, path.name)
    shape = (*grid.shape, *sizes[3:], *array.shape[:channels])
    chosen = fourth_axis.choose(path.name, shape, volume)
    voxels = np.moveaxis(read_array(array, path.name), range(channels), range(-channels, 0)).reshape(shape)[chosen]
    if voxels.dtype.kind == "f":
        voxels = voxels.astype(np.float32, copy=False)
    suffix, notes = fourth_axis.said(path.name, shape, volume)
    files = (path, *(data for data in array.files if data != path))
    source = Source(
        "metaimage", digest(*files), path.stem + suffix, modality=_MODALITIES.get(fields.get("Modality", "")),
        oriented=place.oriented, placed=place.placed, spaced=place.spaced,
        notes=(*place.notes, *_orientation_note(fields, grid, place, path.name), *notes),
    )  # fmt: skip
    return Volume(voxels, grid, "a.u.", source)


def _header(path: Path) -> tuple[Mapping[str, str], StoredArray]:
    """Return the fields, and where the array lies: channels first, where there are several."""
    fields, start, listed = _fields(path)
    try:
        sizes = tuple(int(word) for word in fields["DimSize"].split())
        channels = int(fields.get("ElementNumberOfChannels", "1"))
        dtype = np.dtype(_DTYPES[fields["ElementType"].upper().removesuffix("_ARRAY")])
        dimensions, skip, named = int(fields["NDims"]), int(fields.get("HeaderSize", "0")), fields["ElementDataFile"]
    except (KeyError, ValueError) as error:
        raise InputError(f"{path.name} is not a readable MetaImage: {error} in its header") from error
    if len(sizes) != dimensions or not 2 <= dimensions <= 4 or min(*sizes, channels) < 1 or skip < -1:
        raise InputError(
            f"{path.name} claims {dimensions} axes of sizes {sizes} and {channels} channels; medcam reads images of two "
            "to four axes"
        )
    shape = (*((channels,) if channels > 1 else ()), *sizes)
    refuse_large(path.name, shape, dtype.itemsize)
    local = named.upper() == "LOCAL"
    array = StoredArray(
        files=(path,) if local else data_files(path, named, listed),
        shape=shape,
        dtype=dtype.newbyteorder(">" if _is_true(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB") else "<"),
        encoding=_encoding(fields),
        offset=start if local else skip,
    )
    return fields, array


def _fields(path: Path) -> tuple[dict[str, str], int, list[str]]:
    """Return the fields of a header, where what follows it starts, and the files that it lists."""
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        while (line := stream.readline(_LONGEST_HEADER)) and stream.tell() < _LONGEST_HEADER:
            key, equals, value = line.decode("utf-8", "replace").partition("=")
            key, value = key.strip(), value.strip()
            if not equals and key:
                break
            if key in fields:
                raise InputError(f"{path.name} is damaged: its header says {key} twice")
            fields[key] = value
            if key == "ElementDataFile":
                start = stream.tell()
                rest = stream.read(_LONGEST_HEADER).splitlines() if value.split()[:1] == ["LIST"] else []
                return fields, start, [name for line in rest if (name := line.decode("utf-8", "replace").strip())]
    raise InputError(
        f"{path.name} is no MetaImage, or is cut short: its header does not end in ElementDataFile; fetch it again"
    )


def _place(fields: Mapping[str, str], dimensions: int, name: str) -> Place:
    """Return where the image lies; a fourth axis has no part in that."""
    count = min(dimensions, 3)
    matrix = _numbers(fields, ("TransformMatrix", "Orientation", "Rotation"), dimensions**2, name)
    offset = _numbers(fields, ("Offset", "Position", "Origin"), dimensions, name)
    spacing = _numbers(fields, ("ElementSpacing", "ElementSize"), dimensions, name)
    scale, notes = mm_per_unit((fields.get("DistanceUnits", ""),), name)
    oriented = matrix is not None and dimensions > 2
    if not oriented:
        notes = (*notes, f"{name} does not say which way the patient faces; no orientation is claimed.")
    if spacing is None:
        notes = (*notes, f"{name} does not say how large a voxel is: lengths are in pixels.")
    # The file holds the direction of one axis after the other.
    axes = np.eye(dimensions) if matrix is None else matrix.reshape(dimensions, dimensions)
    steps = (axes * (np.ones(dimensions) if spacing is None else spacing)[:, None])[:count, :count].T
    first = np.zeros(count) if offset is None else offset[:count]
    placed = oriented and offset is not None
    try:
        affine = affine_of(steps, first, scale=scale)
    except GeometryError as error:
        raise GeometryError(f"{name} is damaged: {error}") from error
    return Place(affine, oriented, placed, spacing is not None, notes)


def _orientation_note(fields: Mapping[str, str], grid: Grid, place: Place, name: str) -> tuple[str, ...]:
    """Return a note where the header's letters say neither in MetaIO's way nor in the other what its matrix says."""
    letters = fields.get("AnatomicalOrientation", "").upper()
    codes = "".join(grid.axis_codes)
    if not place.oriented or not letters or "?" in letters or codes in (letters, letters.translate(_OPPOSITE)):
        return ()
    return (f"{name}: its AnatomicalOrientation {letters[:8]} contradicts its TransformMatrix, which is used.",)


def _numbers(fields: Mapping[str, str], keys: tuple[str, ...], count: int, name: str) -> np.ndarray | None:
    """Return the numbers of the first of these fields that is there."""
    key = next((key for key in keys if key in fields), None)
    if key is None:
        return None
    try:
        found = np.array([float(word) for word in fields[key].split()])
    except ValueError:
        found = np.empty(0)
    if len(found) != count or not np.isfinite(found).all():
        raise InputError(f"{name} is damaged: its {key} should be {count} finite numbers")
    return found


def _encoding(fields: Mapping[str, str]) -> str:
    if not _is_true(fields, "BinaryData", default=True):
        return "text"
    return "zlib" if _is_true(fields, "CompressedData") else "raw"


def _is_true(fields: Mapping[str, str], *keys: str, default: bool = False) -> bool:
    """Tell whether the first of these fields that is there says True."""
    value = next((fields[key] for key in keys if key in fields), None)
    return default if value is None else value[:1] in ("T", "t", "1")
