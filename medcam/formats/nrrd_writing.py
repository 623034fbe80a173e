"""NRRD out: the float heatmap with its mask, and regions as a segmentation of 3D Slicer (.seg.nrrd).

ITK, and so SimpleITK and 3D Slicer, refuses sheared axes. What lies on the slices of a tilted gantry is resampled onto a grid
at right angles, in the same planes; its file is called upright and its sidecar says so.

References
----------
https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html#segmentations-file-format-seg-nrrd
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import matplotlib
import numpy as np
from jaxtyping import Bool, UInt8

from medcam.errors import UsageError
from medcam.formats.exporting import Export
from medcam.formats.nifti import WHAT_A_HEATMAP_IS, WHAT_A_MASK_IS, sidecar_values
from medcam.formats.nrrd_stream import Write, put_nrrd
from medcam.formats.stored import kept_values
from medcam.geometry import Grid, resample, upright
from medcam.options import between
from medcam.render import COLOURS
from medcam.volume import Heatmap, Volume
from medcam.whole_file import whole_file

# One fraction of the maximum or several; the export's own if None.
Thresholds: TypeAlias = Sequence[float | int] | float | int | None
# As DICOM segmentations name such regions.
_TERMS = "Segmentation category and type - DICOM master list~{}~^^~Anatomic codes - DICOM master list~^^~^^"
REGION_TERMS = _TERMS.format("SCT^309825002^Spatial and Relational Concept~DCM^130401^Visual explanation")
LESION_TERMS = _TERMS.format("SCT^49755003^Morphologically Altered Structure~SCT^52988006^Lesion")
LESION_COLOUR = (0.2, 1.0, 0.8)
_MOST_SEGMENTS = 255


@dataclass(frozen=True, eq=False)
class Segment:
    """One region of a segmentation: its name, where it is, its colour (0 to 1), and what it is in 3D Slicer's notation."""

    name: str
    mask: Bool[np.ndarray, "i j k"]
    colour: tuple[float, float, float]
    terms: str


def write_nrrd(export: Export) -> tuple[Path, ...]:
    """Write the float heatmap and its mask at the threshold, each with a JSON sidecar that holds the recipe.

    The heatmap is float32, raw and signed; voxels that were not looked at are stored as 0 and counted in the sidecar. The mask
    is uint8.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    heatmap = straightened(export.heatmap)
    straight = heatmap is export.heatmap
    end = "" if straight else "_upright"
    seen = np.isfinite(heatmap.relevance)
    mask = _above(export, heatmap, export.threshold).astype(np.uint8)
    # What was resampled does not come back as it was.
    kept = kept_values(heatmap, export.volume) if straight else {}
    written = []
    for ending, voxels, about, more in (
        (end, np.where(seen, heatmap.relevance, np.float32(0)), WHAT_A_HEATMAP_IS, kept),
        (f"{end}_label", mask, WHAT_A_MASK_IS, {}),
    ):
        path, sidecar = export.path(f"{ending}.nrrd"), export.path(f"{ending}.json")
        with whole_file(path) as temporary, temporary.open("wb") as stream:
            put_nrrd(stream.write, voxels, heatmap.grid.affine, {}, oriented=heatmap.source.oriented)
        values = sidecar_values(heatmap, export.threshold) | {"description": about, "file": path.name, **more}
        with whole_file(sidecar) as temporary:
            temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        written += [path, sidecar]
    return tuple(written)


def write_seg_nrrd(export: Export, *, thresholds: Thresholds = None) -> tuple[Path, ...]:
    """Write the regions above thresholds, and the lesion's mask if there is one, as a segmentation of 3D Slicer.

    Where no voxel speaks for the target and there is no lesion, nothing is written.

    Parameters
    ----------
    thresholds
        Fractions of the positive maximum, above 0 and below 1; the export's threshold by default.

    Raises
    ------
    UsageError
        If a threshold is no such fraction.
    OutputError
        If the file cannot be written.
    """
    fractions = _fractions(thresholds, export.threshold)
    heatmap = straightened(export.heatmap)
    segments = [_region(export, heatmap, fraction) for fraction in fractions]
    if export.lesion is not None:
        segments.append(Segment("lesion", lesion_mask(export.lesion, heatmap.grid), LESION_COLOUR, LESION_TERMS))
    segments = [segment for segment in segments if segment.mask.any()]
    if not segments:
        return ()
    path = export.path(".seg.nrrd")
    about = json.dumps(sidecar_values(heatmap, export.threshold))
    with whole_file(path) as temporary, temporary.open("wb") as stream:
        put_segmentation(
            stream.write, segments, heatmap.grid, oriented=heatmap.source.oriented, fields={"medcam": about}
        )
    return (path,)


def put_segmentation(
    write: Write,
    segments: Sequence[Segment],
    grid: Grid,
    *,
    oriented: bool = True,
    fields: Mapping[str, str] | None = None,
) -> None:
    """Write a segmentation of 3D Slicer (.seg.nrrd): overlapping segments in layers, slices in the order of a right-handed grid.

    Parameters
    ----------
    write
        What takes the file's bytes, one part after the other.
    grid
        At right angles.
    fields
        Further keys and values, of one line each.
    """
    affine, order = grid.affine.copy(), slice(None)
    if np.linalg.det(affine[:3, :3]) < 0:
        # 3D Slicer turns left-handed voxels over as it reads them, which some versions did wrongly.
        affine[:3, 3], affine[:3, 2] = grid.world_mm(np.array([0, 0, grid.shape[2] - 1])), -affine[:3, 2]
        order = slice(None, None, -1)
    layers: list[UInt8[np.ndarray, "i j k"]] = []
    keys: dict[str, str] = {}
    for n, segment in enumerate(segments):
        mask = segment.mask[:, :, order]
        layer = next((m for m, taken in enumerate(layers) if not taken[mask].any()), len(layers))
        if layer == len(layers):
            layers.append(np.zeros(grid.shape, np.uint8))
        label = n + 1
        layers[layer][mask] = label
        keys |= {f"Segment{n}_{key}": value for key, value in _keys(segment, label, layer, _extent(mask)).items()}
    voxels = np.stack(layers) if len(layers) > 1 else layers[0]
    put_nrrd(write, voxels, affine, keys | _ABOUT_ALL | dict(fields or {}), oriented=oriented)


def straightened(heatmap: Heatmap) -> Heatmap:
    """Return the heatmap, or what it is on an upright grid where its own is sheared: what no slice reaches was not looked at."""
    grid = upright(heatmap.grid)
    if grid is heatmap.grid:
        return heatmap
    note = (
        "The slices of a tilted gantry were resampled onto a grid at right angles: voxels are not those of the image."
    )
    return replace(
        heatmap, relevance=resample(heatmap.relevance, heatmap.grid, grid), grid=grid, notes=(*heatmap.notes, note)
    )


_ABOUT_ALL = {
    "Segmentation_MasterRepresentation": "Binary labelmap",
    "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
    "Segmentation_ReferenceImageExtentOffset": "0 0 0",
}


def _keys(segment: Segment, label: int, layer: int, extent: str) -> dict[str, str]:
    return {
        "ID": f"Segment_{label}",
        "Name": " ".join(segment.name.split()),
        "NameAutoGenerated": "0",
        "Color": " ".join(f"{part:.4g}" for part in segment.colour),
        "ColorAutoGenerated": "0",
        "LabelValue": str(label),
        "Layer": str(layer),
        "Extent": extent,
        "Tags": f"TerminologyEntry:{segment.terms}|",
    }


def _extent(mask: Bool[np.ndarray, "i j k"]) -> str:
    ends = []
    for others in ((1, 2), (0, 2), (0, 1)):
        lines = np.flatnonzero(mask.any(axis=others))
        ends += [lines[0], lines[-1]] if lines.size else [0, -1]
    return " ".join(str(int(end)) for end in ends)


def _fractions(thresholds: Thresholds, default: float) -> list[float]:
    wanted = default if thresholds is None else thresholds
    listed = sorted({*wanted} if isinstance(wanted, Sequence) else {wanted})
    for fraction in listed:
        between("thresholds", fraction, 0, 1)
    if not 0 < len(listed) < _MOST_SEGMENTS:
        raise UsageError(f"thresholds are 1 to {_MOST_SEGMENTS - 1} fractions of the maximum, not {len(listed)}")
    return [float(fraction) for fraction in listed]


def _region(export: Export, heatmap: Heatmap, fraction: float) -> Segment:
    red, green, blue, _ = matplotlib.colormaps[COLOURS](fraction)
    name = f"{heatmap.target}: relevance from {100 * fraction:g} % of its maximum"
    return Segment(name, _above(export, heatmap, fraction), (float(red), float(green), float(blue)), REGION_TERMS)


def _above(export: Export, heatmap: Heatmap, fraction: float) -> Bool[np.ndarray, "i j k"]:
    """Return where a fraction of the maximum is reached, which is that of the heatmap as it was before it was resampled."""
    if heatmap is export.heatmap:
        return heatmap.mask(fraction)
    highest = export.heatmap.maximum
    reached: np.ndarray = np.nan_to_num(heatmap.relevance, nan=-np.inf) >= fraction * highest
    return reached if highest > 0 else np.zeros(reached.shape, bool)


def lesion_mask(lesion: Volume, grid: Grid) -> Bool[np.ndarray, "i j k"]:
    """Return where a lesion lies on a grid, by nearest neighbour as medcam's figures outline it."""
    inside: np.ndarray = resample(lesion.voxels, lesion.grid, grid, nearest=True, outside=0.0) > 0.5
    return inside
