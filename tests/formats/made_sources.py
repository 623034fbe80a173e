"""Made-up DICOM sources that medcam's writers must all serve: a CT, an oblique MR, an enhanced MR, films, one put on another grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.uid import EnhancedMRImageStorage, generate_uid

from formats.dicom_phantom import GEOMETRIES, LPS_FROM_RAS, decimals, save, stored_values, write_film, write_series
from medcam.formats.dicom import read_dicom
from medcam.formats.exporting import Export
from medcam.geometry import Grid
from medcam.recipe import Recipe
from medcam.volume import Frame, Heatmap, Source, Volume

RECIPE = Recipe("net", "ab" * 32, "grad-cam", "features.3", "lesion (class 0)", inputs=("cd" * 32,))
SHAPE = (19, 14, 6)
WHEN = datetime(2024, 5, 6, 23, 30, 15, tzinfo=timezone.utc)
# What a scanner fills in, so that the only complaints left are about medcam's own work.
COMPLETE = {
    "StudyDate": "20240102",
    "StudyTime": "101112",
    "StudyID": "7",
    "AccessionNumber": "A1",
    "PatientBirthDate": "19500101",
    "PatientSex": "O",
    "ReferringPhysicianName": "Ref^Erring",
    "PositionReferenceIndicator": "",
    "StudyDescription": "an examination",
    "PatientAge": "073Y",
    "BodyPartExamined": "HEAD",
}
_FILM = {**COMPLETE, "PositionReferenceIndicator": None, "BodyPartExamined": "CHEST"}


def made_series(folder: Path, geometry: str = "oblique", *, allow_gaps: bool = False, **options: Any) -> Volume:
    """Write and read a series of single-frame images."""
    options["tags"] = {**COMPLETE, **options.get("tags", {})}
    write_series(folder, stored_values(SHAPE), GEOMETRIES[geometry], **options)
    return read_dicom(folder, allow_gaps=allow_gaps)


def made_film(folder: Path, modality: str, orientation: Sequence[str] | None = ("L", "F"), **tags: Any) -> Volume:
    """Write and read a film of unequal sides."""
    pixels = stored_values((23, 17, 1))[:, :, 0]
    path = write_film(folder, pixels, modality=modality, patient_orientation=orientation, tags={**_FILM, **tags})
    return read_dicom(path)


def made_enhanced(folder: Path, *, backwards: bool = True) -> Volume:
    """Write an enhanced MR of twelve frames, of which the volume is every second one, from the last frame to the first."""
    affine = GEOMETRIES["oblique"]
    voxels = stored_values(SHAPE)
    columns = LPS_FROM_RAS @ affine[:3]
    spacing = np.linalg.norm(columns[:, :3], axis=0)
    directions = columns[:, :2] / spacing[:2]
    first, *_ = write_series(folder / "template", voxels[:, :, :1], affine, tags=COMPLETE)
    header = read_dicom(first).source.instances[0]
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        del header[keyword]
    header.SOPClassUID, header.SOPInstanceUID = EnhancedMRImageStorage, generate_uid(entropy_srcs=["enhanced"])
    header.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    header.NumberOfFrames = 2 * SHAPE[2]
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = decimals([*directions[:, 0], *directions[:, 1]])
    measures.PixelSpacing, measures.SliceThickness = decimals(spacing[1::-1]), decimals([spacing[2]])[0]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    header.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for number in range(2 * SHAPE[2]):
        group, place = Dataset(), Dataset()
        k = SHAPE[2] - 1 - number // 2 if backwards else number // 2
        place.ImagePositionPatient = decimals(columns @ (0, 0, k, 1))
        group.PlanePositionSequence = [place]
        frames.append(group)
    header.PerFrameFunctionalGroupsSequence = frames
    pixels = np.repeat(voxels[:, :, ::-1] if backwards else voxels, 2, axis=2).transpose(2, 1, 0)
    header.PixelData = np.ascontiguousarray(pixels).tobytes()
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    header["PixelData"].VR = "OW"
    (folder / "enhanced").mkdir(parents=True)
    save(header, folder / "enhanced" / "enhanced.dcm")
    del header.PixelData
    slices = tuple(Frame(0, 2 * (SHAPE[2] - 1 - k if backwards else k) + 1) for k in range(SHAPE[2]))
    source = Source("dicom", "ee" * 32, "MR_s4", "MR", instances=(header,), slices=slices)
    grid = Grid(SHAPE, affine, str(header.FrameOfReferenceUID))
    return Volume(voxels.astype(np.float32), grid, "a.u.", source)


def regridded(volume: Volume) -> Volume:
    """Return a volume as a reader gives it that put a series on a grid of its own: no slice is a picture any more."""
    shape = (volume.grid.shape[0] - 2, volume.grid.shape[1] + 1, volume.grid.shape[2] - 1)
    turn = np.diag((1.1, 0.9, 1.2, 1.0))
    grid = Grid(shape, volume.grid.affine @ turn, volume.grid.frame_of_reference)
    voxels = np.random.default_rng(5).random(shape).astype(np.float32)
    return Volume(voxels, grid, volume.unit, replace(volume.source, slices=(None,) * shape[2]))


def blob(volume: Volume, at: Sequence[float], width_mm: float = 3.0) -> np.ndarray:
    """Return a Gaussian around a (fractional) index, with a negative rim."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in volume.grid.shape], indexing="ij"), -1)
    apart = np.linalg.norm(volume.grid.world_mm(index) - volume.grid.world_mm(np.array(at)), axis=-1)
    return (np.exp(-0.5 * (apart / width_mm) ** 2) - 0.05).astype(np.float32)


def heatmap(volume: Volume, relevance: np.ndarray | None = None, **changes: Any) -> Heatmap:
    """Return a heatmap of a volume: an off-centre blob if nothing else is given."""
    if relevance is None:
        relevance = blob(volume, [0.3 * n for n in volume.grid.shape])
    given = {"recipe": RECIPE, "target": RECIPE.target, "score": 2.5, "probability": 0.9, "notes": (), **changes}
    return Heatmap(relevance, volume.grid, volume.source, **given)


def made_export(volume: Volume, folder: Path, *, threshold: float = 0.3, **changes: Any) -> Export:
    """Return an export of a heatmap of a volume, at a fixed moment."""
    of_export = {name: changes.pop(name) for name in ("lesion", "measures", "formats") if name in changes}
    return Export(heatmap(volume, **changes), volume, folder, "out", threshold, WHEN, **of_export)


def every_source(folder: Path) -> dict[str, Volume]:
    """Return one volume of each kind that all writers must serve, from files below a folder."""
    return {name: source(folder, name) for name in SOURCES}


def source(folder: Path, name: str) -> Volume:
    """Return one of `SOURCES`, written below a folder."""
    if name == "a CT":
        return made_series(
            folder, "axial", modality="CT", slope=1, intercept=-1024, tags={"BodyPartExamined": "ABDOMEN"}
        )
    if name == "an oblique MR":
        return made_series(folder)
    if name == "an enhanced MR":
        return made_enhanced(folder)
    if name == "a CR":
        return made_film(folder, "CR", PixelSpacing=["0.2", "0.3"])
    if name == "a DX":
        return made_film(folder, "DX", ("P", "F"), ImagerPixelSpacing=["0.14", "0.14"])
    return regridded(made_series(folder))


SOURCES = ("a CT", "an oblique MR", "an enhanced MR", "a CR", "a DX", "one put on another grid")
