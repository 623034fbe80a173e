"""Write what `Slicer --python-script load_in_slicer.py` shows: NIfTI or NRRD files, how they are looked at, and the script."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from jaxtyping import Num

from medcam.formats.exporting import Export
from medcam.formats.nifti import nifti_image, write_nifti
from medcam.formats.nrrd_writing import LESION_COLOUR, lesion_mask
from medcam.formats.slicer import (
    heatmap_name,
    image_values,
    mask_name,
    place_for_slicer,
    refuse_other_grid,
    write_scene,
)
from medcam.formats.slicer_look import look_at
from medcam.whole_file import whole_file

SCRIPT = "load_in_slicer.py"


def write_script(export: Export) -> tuple[Path, ...]:
    """Write a script that shows the heatmap in 3D Slicer as its scene does, with the files that it loads.

    These are the NRRD files of this export if it has them and no NIfTI, else its NIfTI files; of a sheared grid, which 3D Slicer reads
    from neither, the scene. What was not asked for is written with the script. The script is the same for all heatmaps, and shows
    those that lie in its own folder. The image is stored once for all of them.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    refuse_other_grid(export)
    grid = export.heatmap.grid
    if place_for_slicer(grid).world_from_stored is not None:
        # 3D Slicer does not read NIfTI files of slices that lie askew.
        scene = () if "slicer" in export.formats else write_scene(export)
        return (*scene, *_put_texts(export, {"scene": export.path(".mrb").name}))
    source = export.heatmap.source
    image = export.folder / f"{source.label}_{source.sha256[:6]}_image.nii.gz"
    voxels = {image: image_values(export.volume.voxels)}
    look, mask = _look(export, image), export.heatmap.mask(export.threshold)
    lesion = None if export.lesion is None else lesion_mask(export.lesion, grid)
    if mask.any():
        colour = look_at(export).colours[-1].tolist()
        look["masks"].append(_mask(export.path(f"_label{_suffix(export)}"), mask_name(export), colour, shown=False))
    if lesion is not None and lesion.any():
        path = export.path("_lesion_label.nii.gz")
        voxels[path] = lesion.astype(np.uint8)
        look["masks"].append(_mask(path, "lesion", LESION_COLOUR, shown=True))
    written = [] if {"nifti", "nrrd"} & set(export.formats) else list(write_nifti(export))
    for path, values in voxels.items():
        _put(values, export, path)
    return (*written, *voxels, *_put_texts(export, look))


def _put_texts(export: Export, look: Mapping[str, object]) -> tuple[Path, ...]:
    """Write how a heatmap is looked at, and the script."""
    texts = {
        export.path("_slicer.json"): json.dumps(look, ensure_ascii=False) + "\n",
        export.folder / SCRIPT: files("medcam.formats").joinpath(SCRIPT).read_text(encoding="utf-8"),
    }
    for path, text in texts.items():
        with whole_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return tuple(texts)


def _suffix(export: Export) -> str:
    return ".nrrd" if "nrrd" in export.formats and "nifti" not in export.formats else ".nii.gz"


def _look(export: Export, image: Path) -> dict[str, Any]:
    """Return how the heatmap is looked at, as JSON values. Positions are RAS+ mm, and files lie beside the script."""
    look = look_at(export)
    return {
        "image": image.name,
        "image_name": export.heatmap.source.label,
        "heatmap": export.path(_suffix(export)).name,
        "heatmap_name": heatmap_name(export),
        "window": look.window,
        "lowest": look.lowest,
        "highest": look.highest,
        "colours": look.colours.round(6).tolist(),
        "opacity": look.opacity,
        "views": {view.name: view.ras_from_slice.tolist() for view in look.views},
        "field_of_view_mm": look.field_of_view_mm,
        "peak": look.peak_mm,
        "oriented": look.oriented,
        "masks": [],
    }


def _mask(path: Path, name: str, colour: object, *, shown: bool) -> dict[str, Any]:
    return {"file": path.name, "name": name, "colour": colour, "shown": shown}


def _put(values: Num[np.ndarray, "i j k"], export: Export, path: Path) -> None:
    image = nifti_image(values, export.heatmap.grid, oriented=export.heatmap.source.oriented)
    with whole_file(path) as temporary:
        nibabel.save(image, temporary)
