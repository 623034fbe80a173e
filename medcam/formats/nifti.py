"""NIfTI in and out."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError

from medcam.errors import GeometryError, InputError
from medcam.formats.exporting import Export
from medcam.geometry import Grid
from medcam.volume import Heatmap, Source, Volume
from medcam.whole_file import whole_file

SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img")
_LARGEST_BYTES = 16 * 2**30
# Two statements of one grid that differ by less than this at every corner are one statement.
_CONFLICT_MM = 0.1
_MM_PER_UNIT = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}


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
    try:
        image: Any = nibabel.load(path)
        shape = tuple(int(n) for n in image.shape)
        kind = image.get_data_dtype()
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path.name} is not a readable NIfTI image: {_first_line(error)}") from error
    if not isinstance(image, (nibabel.Nifti1Image, nibabel.Nifti1Pair)):
        raise InputError(f"{path.name} is a {type(image).__name__}, not NIfTI; convert it first (dcm2niix, ITK-SNAP)")
    if kind.names is not None:
        raise InputError(f"{path.name} holds colours (RGB), not one value a voxel; convert it to grey first")
    if kind.kind == "c":
        raise InputError(f"{path.name} holds complex numbers; take the magnitude first")
    if np.prod([float(n) for n in shape]) * kind.itemsize > _LARGEST_BYTES:
        raise InputError(f"{path.name} claims {' x '.join(map(str, shape))} voxels, more than medcam reads (16 GiB)")
    chosen = _choose(path.name, shape, volume)
    try:
        voxels = np.asanyarray(image.dataobj[chosen])
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path.name} is damaged or cut short: {_first_line(error)}") from error
    voxels = voxels.reshape((*shape[:3], 1, 1, 1)[:3])
    if voxels.dtype.kind == "f":
        voxels = voxels.astype(np.float32)
    affine, oriented, notes = _affine(image, path.name)
    chosen_volume = "" if volume is None or len(shape) < 4 else f"_v{volume}"
    if chosen_volume:
        notes.append(f"Volume {volume} (from 0) of {path.name} was read.")
    try:
        grid = Grid((voxels.shape[0], voxels.shape[1], voxels.shape[2]), affine)
    except GeometryError as error:
        raise GeometryError(f"{path.name}: {error}") from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    name = path.name
    for suffix in (".gz", ".nii", ".hdr", ".img"):
        name = name.removesuffix(suffix)
    return Volume(
        voxels,
        grid,
        "a.u.",
        Source("nifti", digest, name + chosen_volume, oriented=oriented, placed=oriented, notes=tuple(notes)),
    )


def _choose(name: str, shape: tuple[int, ...], volume: int | None) -> tuple[Any, ...]:
    """Return the index that takes one 3D volume out of the file's array."""
    extra = shape[3:]
    count = int(np.prod(extra)) if extra else 1
    if sum(n > 1 for n in extra) > 1:
        raise InputError(
            f"{name} has {len(shape)} axes, {' x '.join(map(str, shape))}; medcam reads 3D, or one volume of 4D"
        )
    if count > 1 and volume is None:
        raise InputError(f"{name} is 4D with {count} volumes; choose one with --volume 0 to {count - 1}")
    if volume is not None and not 0 <= volume < count:
        raise InputError(f"{name} has {count} volume{'s' if count > 1 else ''}; --volume {volume} does not exist")
    return (..., *(volume if n > 1 else 0 for n in extra)) if extra else (...,)


def _affine(image: Any, name: str) -> tuple[np.ndarray, bool, list[str]]:
    header = image.header
    notes = []
    sform, s_code = header.get_sform(coded=True)
    try:
        qform, q_code = header.get_qform(coded=True)
    except (ValueError, np.linalg.LinAlgError):  # a quaternion that is none: the sform, if any, speaks alone
        qform, q_code = None, 0
    affine = np.array(image.affine, np.float64)
    oriented = bool(s_code) or bool(q_code)
    if not oriented:
        notes.append(
            f"{name} says neither where its voxels lie nor which way the patient faces; no orientation is claimed."
        )
    if s_code and q_code and sform is not None and qform is not None:
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in (*image.shape, 1, 1)[:3]], indexing="ij")).reshape(3, -1)
        apart = np.linalg.norm((sform - qform)[:3, :3] @ corners + (sform - qform)[:3, 3:], axis=0).max()
        if apart > _CONFLICT_MM:
            notes.append(f"{name}: its sform and qform place voxels up to {apart:.1f} mm apart; the sform is used.")
    unit = header.get_xyzt_units()[0]
    if (scale := _MM_PER_UNIT.get(unit, 1.0)) != 1.0:
        affine[:3] *= scale
        notes.append(f"{name} is in {unit}s; positions were converted to mm.")
    return affine, oriented, notes


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
    for ending, data, about in (
        ("", np.where(seen, heatmap.relevance, np.float32(0)), _HEATMAP),
        ("_label", heatmap.mask(export.threshold).astype(np.uint8), _MASK),
    ):
        path = export.path(f"{ending}.nii.gz")
        image = nifti_image(data, heatmap.grid, oriented=heatmap.source.oriented)
        with whole_file(path) as temporary:
            nibabel.save(image, temporary)
        sidecar = export.path(f"{ending}.json")
        values = sidecar_values(heatmap, export.threshold) | {"description": about, "file": path.name}
        with whole_file(sidecar) as temporary:
            temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        written += [path, sidecar]
    return tuple(written)


_HEATMAP = (
    "Relevance of each voxel for the target's score, raw and signed, in arbitrary units: positive speaks for the target. "
    "Not a probability, not a segmentation. Research use only."
)
_MASK = "1 where the relevance reaches the threshold. Not a segmentation of anatomy or disease. Research use only."


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
