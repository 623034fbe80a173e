"""Segmentations of 3D Slicer (.seg.nrrd) in: their segments as labels, whichever layers they lie in.

References
----------
https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html#segmentations-file-format-seg-nrrd
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medcam.errors import InputError
from medcam.formats.header_geometry import grid_of
from medcam.formats.labels import Choose, Label, draw, readable
from medcam.formats.nrrd import NrrdFile, place
from medcam.formats.stored_array import digest, read_array
from medcam.volume import Source, Volume

_MOST_SEGMENTS = 65_535


class _Segment(NamedTuple):
    label: Label
    layer: int
    value: int


def is_segmentation(file: NrrdFile) -> bool:
    """Tell whether a NRRD file says which segments its labels are."""
    return "Segment0_ID" in file.fields or "Segment0_Name" in file.fields


def read_nrrd_segments(path: Path, file: NrrdFile, choose: Choose) -> Volume:
    """Read the chosen segments as a mask of labels: with the values that they have in the file, or if these repeat, in their order from 1.

    Raises
    ------
    InputError
        If the file is damaged, or the chosen segments overlap.
    GeometryError
        If its axes are not a regular grid.
    """
    segments = _segments(file.fields, path.name)
    chosen = choose([segment.label for segment in segments])
    found = place(file, path.name)
    grid = grid_of([file.array.shape[axis] for axis in file.spatial], found, path.name)
    layers = read_array(file.array, path.name).transpose(*file.extra, *file.spatial).reshape(-1, *grid.shape)
    voxels = np.zeros(grid.shape, np.uint16)
    for segment in segments:
        if segment.label in chosen:
            if not 0 <= segment.layer < len(layers):
                raise InputError(
                    f"{path.name} is damaged: it has {len(layers)} layers, and a segment in layer {segment.layer}"
                )
            draw(voxels, layers[segment.layer] == segment.value, segment.label, chosen, path.name)
    files = (path, *(data for data in file.array.files if data != path))
    name = path.name.removesuffix(".nrrd").removesuffix(".seg")
    source = Source(
        "nrrd", digest(*files), name, oriented=found.oriented, placed=found.placed, spaced=found.spaced, notes=found.notes
    )  # fmt: skip
    return Volume(voxels, grid, "label", source)


def _segments(fields: Mapping[str, Any], name: str) -> list[_Segment]:
    there = list(takewhile(lambda n: f"Segment{n}_ID" in fields or f"Segment{n}_Name" in fields, count()))
    try:
        # Files from before 3D Slicer 4.11 give each segment a layer of its own.
        values = [int(fields.get(f"Segment{n}_LabelValue", 1)) for n in there]
        layers = [int(fields.get(f"Segment{n}_Layer", n)) for n in there]
    except ValueError as error:
        raise InputError(f"{name} is damaged: a segment's label or layer is no number") from error
    own = len(set(values)) == len(values) and all(0 < value <= _MOST_SEGMENTS for value in values)
    return [
        _Segment(Label(values[n] if own else n + 1, readable(fields.get(f"Segment{n}_Name"))), layers[n], values[n])
        for n in there
    ]
