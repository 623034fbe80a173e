"""NIfTI in and out."""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from math import prod
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from medcam.errors import GeometryError, InputError
from medcam.formats import fourth_axis
from medcam.formats.exporting import Export
from medcam.formats.stored import kept_values
from medcam.formats.stored_array import StoredArray, digest, read_array
from medcam.geometry import Grid
from medcam.volume import Heatmap, Source, Volume
from medcam.whole_file import whole_file

# Two statements of one grid that differ by less than this at every corner are one statement.
_CONFLICT_MM = 0.1
_MM_PER_UNIT = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}
# What may follow the voxels: some programs pad their files.
_PADDING_BYTES = 2**20
# Headers may carry extensions, of which medcam reads none.
_LARGEST_HEADER = 2**28
_UNREADABLE = (
    HeaderDataError,
    WrapStructError,
    ValueError,
    LookupError,
    TypeError,
    OverflowError,
    EOFError,
    zlib.error,
    np.linalg.LinAlgError,
)
_SILENT = logging.getLogger("medcam.formats.nifti")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False


def read_nifti(path: Path, *, volume: int | None = None) -> Volume:
    """Read a NIfTI image: its values after scl_slope, on the grid of its sform, else its qform, as nibabel takes them.

    Parameters
    ----------
    volume
        Which volume of a 4D image, from 0.

    Raises
    ------
    InputError
        If the file is damaged, holds colours or complex numbers, or is 4D and no volume is chosen.
    GeometryError
        If its affine is not a regular grid.
    """
    header, spaced = _header(path)
    try:
        shape = tuple(int(n) for n in header.get_data_shape())
        dtype, offset = header.get_data_dtype(), int(header.get_data_offset())
        slope, intercept = header.get_slope_inter()
        affine, oriented, notes = _affine(header, path.name)
    except _UNREADABLE as error:
        raise InputError(f"{path.name} is not a readable NIfTI image: {_first_line(error)}") from error
    if dtype.names is not None:
        raise InputError(f"{path.name} holds colours (RGB), not one value a voxel; convert it to grey first")
    if dtype.kind == "c":
        raise InputError(f"{path.name} holds complex numbers; take the magnitude first")
    if len(shape) < 1 or min(shape) < 1 or not 0 <= offset < _LARGEST_HEADER:
        raise InputError(
            f"{path.name} is damaged: it claims {' x '.join(map(str, shape))} voxels from byte {offset} on"
        )
    fourth_axis.choose(path.name, (*shape, 1, 1)[: max(3, len(shape))], volume)
    i, j, k = (*shape, 1, 1)[:3]
    try:
        grid = Grid((i, j, k), affine)
    except GeometryError as error:
        raise GeometryError(f"{path.name}: {error}") from error
    data = _data_file(path, header)
    stored = StoredArray(
        files=(data,),
        shape=grid.shape,
        dtype=dtype,
        encoding="gzip" if _is_gzip(data) else "raw",
        skipped=offset + (volume or 0) * i * j * k * dtype.itemsize,
        surplus=_PADDING_BYTES if prod(shape) == i * j * k else None,
    )
    voxels = _scaled(read_array(stored, path.name), slope, intercept)
    if not spaced:
        notes.append(f"{path.name} does not say how large a voxel is: 1 mm was taken along some axis.")
    suffix, chosen = fourth_axis.said(path.name, shape, volume)
    name = path.name
    for ending in (".gz", ".nii", ".hdr", ".img"):
        name = name.removesuffix(ending)
    source = Source(
        "nifti", digest(*dict.fromkeys((_header_file(path), data))), name + suffix,
        oriented=oriented, placed=oriented, spaced=spaced, notes=(*notes, *chosen),
    )  # fmt: skip
    return Volume(voxels, grid, "a.u.", source)


def _header(path: Path) -> tuple[Any, bool]:
    """Return the header as nibabel reads and mends it, without its extensions, and whether it gives the size of a voxel."""
    file = _header_file(path)
    try:
        with gzip.open(file) if _is_gzip(file) else file.open("rb") as stream:
            block = stream.read(540)
        sizes = {int.from_bytes(block[:4], order) for order in ("little", "big")}
        if 540 in sizes and block[4:7] in (b"n+2", b"ni2"):
            header = nibabel.Nifti2Header(block, check=False)
        elif 348 in sizes and block[344:347] in (b"n+1", b"ni1"):
            header = nibabel.Nifti1Header(block[:348], check=False)
        elif 348 in sizes:
            raise InputError(f"{path.name} is ANALYZE, not NIfTI, and says little of where it lies; convert it first")
        else:
            raise InputError(f"{path.name} is not a readable NIfTI image: it does not start like one, or is cut short")
        sized = header["pixdim"][1:4] != 0
        header.check_fix(logger=_SILENT)
    except (*_UNREADABLE, gzip.BadGzipFile) as error:
        raise InputError(f"{path.name} is not a readable NIfTI image: {_first_line(error)}") from error
    # With an sform the size of a voxel is said twice, and of an axis with one voxel nobody needs it.
    lacking = not int(header["sform_code"]) and bool((~sized & (header["dim"][1:4] > 1)).any())
    return header, not lacking


def _header_file(path: Path) -> Path:
    return _sibling(path, ".hdr") if path.suffix.lower() == ".img" else path


def _data_file(path: Path, header: Any) -> Path:
    alone = bytes(header["magic"])[:2] == b"n+"
    return _header_file(path) if alone else _sibling(path, ".img")


def _sibling(path: Path, suffix: str) -> Path:
    for file in (path.with_suffix(suffix), path.with_suffix(suffix.upper())):
        if file.is_file():
            return file
    raise InputError(f"{path.name} is one of a pair of files, and {path.stem}{suffix} is not there; fetch both")


def _is_gzip(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _scaled(stored: np.ndarray, slope: float | None, intercept: float | None) -> np.ndarray:
    """Return the values that the header says; whole numbers stay so where it does not scale."""
    slope, intercept = 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)
    if (slope, intercept) == (1.0, 0.0):
        return stored.astype(np.float32, copy=False) if stored.dtype.kind == "f" else stored
    values = np.empty(stored.shape, np.float32, order="F")
    for k in range(stored.shape[2]):
        values[..., k] = stored[..., k].astype(np.float64) * slope + intercept
    return values


def _affine(header: Any, name: str) -> tuple[np.ndarray, bool, list[str]]:
    notes = []
    sform, s_code = header.get_sform(coded=True)
    try:
        qform, q_code = header.get_qform(coded=True)
    except (ValueError, np.linalg.LinAlgError):  # a quaternion that is none: the sform, if any, speaks alone
        qform, q_code = None, 0
    affine = np.array(header.get_best_affine(), np.float64)
    oriented = bool(s_code) or bool(q_code)
    if not oriented:
        notes.append(
            f"{name} says neither where its voxels lie nor which way the patient faces; no orientation is claimed."
        )
    if s_code and q_code and sform is not None and qform is not None:
        shape = (*header.get_data_shape(), 1, 1)[:3]
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1)
        apart = np.linalg.norm((sform - qform)[:3, :3] @ corners + (sform - qform)[:3, 3:], axis=0).max()
        if apart > _CONFLICT_MM:
            notes.append(f"{name}: its sform and qform place voxels up to {apart:.1f} mm apart; the sform is used.")
    scale, unit = _mm_per_unit(header)
    if scale != 1.0:
        affine[:3] *= scale
        notes.append(f"{name} is in {unit}s; positions were converted to mm.")
    return affine, oriented, notes


def _mm_per_unit(header: Any) -> tuple[float, str]:
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError:  # a code that stands for no unit
        unit = "unknown"
    return _MM_PER_UNIT.get(unit, 1.0), unit


def write_nifti(export: Export) -> tuple[Path, ...]:
    """Write the float heatmap and its mask at the threshold, each with a JSON sidecar that holds the recipe.

    The heatmap is float32, raw and signed; voxels that were not looked at are stored as 0 and counted in the sidecar. The mask is uint8,
    and 'label' in its name makes 3D Slicer open it as a label map.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    heatmap = export.heatmap
    seen = np.isfinite(heatmap.relevance)
    written = []
    for ending, data, about, kept in (
        ("", np.where(seen, heatmap.relevance, np.float32(0)), WHAT_A_HEATMAP_IS, kept_values(heatmap, export.volume)),
        ("_label", heatmap.mask(export.threshold).astype(np.uint8), WHAT_A_MASK_IS, {}),
    ):
        path = export.path(f"{ending}.nii.gz")
        image = nifti_image(data, heatmap.grid, oriented=heatmap.source.oriented)
        with whole_file(path) as temporary:
            nibabel.save(image, temporary)
        sidecar = export.path(f"{ending}.json")
        values = sidecar_values(heatmap, export.threshold) | {"description": about, "file": path.name, **kept}
        with whole_file(sidecar) as temporary:
            temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        written += [path, sidecar]
    return tuple(written)


WHAT_A_HEATMAP_IS = (
    "Relevance of each voxel for the target's score, raw and signed, in arbitrary units: positive speaks for the target. "
    "Not a probability, not a segmentation. Research use only."
)
WHAT_A_MASK_IS = (
    "1 where the relevance reaches the threshold. Not a segmentation of anatomy or disease. Research use only."
)


def nifti_image(data: np.ndarray, grid: Grid, *, oriented: bool = True) -> nibabel.Nifti1Image:
    """Return an image whose sform and qform agree, in mm, unscaled. A sheared grid gets no qform, which cannot say shear."""
    image = nibabel.Nifti1Image(data, grid.affine)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(1, 0)
    # 1: scanner; 2: aligned to something, all that can be said where the file named no orientation.
    code = 1 if oriented else 2
    image.set_sform(grid.affine, code)
    axes = grid.affine[:3, :3] / np.array(grid.spacing_mm)
    sheared = np.abs(axes.T @ axes - np.eye(3)).max() > 1e-4
    image.set_qform(None if sheared else grid.affine, 0 if sheared else code)
    return image


def sidecar_values(heatmap: Heatmap, threshold: float) -> dict[str, Any]:
    """Return what every sidecar says of a heatmap, as JSON values. Positions are RAS+ mm."""
    peak = heatmap.peak()
    return {
        "target": heatmap.target,
        "score": heatmap.score,
        "probability": heatmap.probability,
        "peak": None
        if peak is None
        else {"voxel": peak.voxel, "world_ras": peak.world_mm, "relevance": peak.relevance},
        "length_unit": heatmap.source.length_unit,
        "oriented": heatmap.source.oriented,
        "placed": heatmap.source.placed,
        "threshold": {"fraction_of_maximum": threshold, "relevance": threshold * heatmap.maximum if peak else None},
        "voxels_not_looked_at": int((~np.isfinite(heatmap.relevance)).sum()),
        "notes": list(heatmap.notes),
        "recipe": heatmap.recipe.to_json(),
    }


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
