"""Made-up DICOM: series of slices and X-ray films with any geometry, encoding and defect, written by pydicom.

Every file carries a patient's name and number (`MARKERS`), so that a test can see whether they leak.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from pydicom.valuerep import DS

MARKERS = ("Doe^Secret", "PATIENT-0815")
CLASSES = {
    "CT": CTImageStorage,
    "MR": MRImageStorage,
    "PT": PositronEmissionTomographyImageStorage,
    "CR": ComputedRadiographyImageStorage,
    "DX": DigitalXRayImageStorageForPresentation,
    "OT": SecondaryCaptureImageStorage,
}
LPS_FROM_RAS = np.diag((-1.0, -1.0, 1.0))


def rotation(axis: Sequence[float], degrees: float) -> np.ndarray:
    """Return the 3x3 matrix of a turn about an axis (Rodrigues)."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def affine_of(directions: np.ndarray, spacing: Sequence[float], origin: Sequence[float] = (0, 0, 0)) -> np.ndarray:
    """Return the RAS affine with these unit directions as columns, spacing along i j k, and first voxel centre."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions, float) @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


# Axial as a scanner stores it: columns to the patient's left, rows to posterior, slices to superior.
AXIAL = np.diag((-1.0, -1.0, 1.0))
# Columns to posterior, rows to inferior, slices to the right.
SAGITTAL = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], float)
# Columns to left, rows to inferior, slices to posterior.
CORONAL = np.array([[-1, 0, 0], [0, 0, -1], [0, -1, 0]], float)
OBLIQUE = rotation((1, 2, 3), 25) @ AXIAL
GEOMETRIES = {
    "axial": affine_of(AXIAL, (0.7, 0.7, 3), (90, 110.5, -40)),
    "sagittal": affine_of(SAGITTAL, (1.1, 1.1, 0.9), (-70, 95, 130)),
    "coronal": affine_of(CORONAL, (0.9, 0.9, 2), (88, 60, 120)),
    "oblique": affine_of(OBLIQUE, (0.8, 0.8, 2.5), (80.25, 101.5, -33)),
    "anisotropic": affine_of(OBLIQUE, (0.6, 1.3, 2.1), (10, -20, 30)),
    "mirrored in the plane": affine_of(AXIAL @ np.diag((-1, 1, -1)), (0.7, 0.9, 3), (-80, 70, 12)),
    "turned in the plane": affine_of(AXIAL @ np.diag((-1, -1, 1)), (0.7, 0.9, 3), (-80, -70, 12)),
    "against the normal": affine_of(OBLIQUE @ np.diag((1, 1, -1)), (0.7, 0.9, 3), (-80, -70, 12)),
}


def stored_values(shape: tuple[int, int, int] = (7, 5, 4), *, bits: int = 12, seed: int = 0) -> np.ndarray:
    """Return random voxels i j k that fit into so many unsigned bits, with both ends of the range among them."""
    voxels = np.random.default_rng(seed).integers(0, 2**bits, shape).astype(np.uint16)
    voxels.flat[0], voxels.flat[-1] = 0, 2**bits - 1
    return voxels


def write_series(
    folder: Path,
    voxels: np.ndarray,
    affine: np.ndarray,
    *,
    modality: str = "MR",
    number: int | None = 4,
    description: str = "phantom",
    bits_stored: int | None = None,
    slope: float | None = None,
    intercept: float | None = None,
    photometric: str = "MONOCHROME2",
    transfer_syntax: str = ExplicitVRLittleEndian,
    leave_out: Sequence[int] = (),
    tags: Mapping[str, Any] | None = None,
    slice_tags: Callable[[int], Mapping[str, Any]] | None = None,
    preamble: bool = True,
    name: str = "{k:03d}.dcm",
    uid_seed: str = "series",
) -> list[Path]:
    """Write one file for each slice k and return their paths, in the order of k.

    Parameters
    ----------
    voxels
        Stored integers, i j k. Signed dtypes are written as signed.
    affine
        RAS+ mm; its first two columns perpendicular, the third as you like (a tilted gantry, or against the normal).
    leave_out
        Slices that go missing.
    tags, slice_tags
        Elements to set by keyword, in all slices or in slice k, after all others; None deletes. `Tags` may be wrong.
    preamble
        Without it the file starts with the dataset: no preamble, no file meta group.
    name
        File name, with `{k}`.
    uid_seed
        Series with different seeds have different SeriesInstanceUIDs; all share one study and frame of reference.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns = LPS_FROM_RAS @ np.asarray(affine, float)[:3]
    spacing = np.linalg.norm(columns[:, :3], axis=0)
    directions = columns[:, :2] / spacing[:2]
    normal = np.cross(directions[:, 0], directions[:, 1])
    paths = []
    for k in range(voxels.shape[2]):
        if k in leave_out:
            continue
        dataset = image(voxels[:, :, k], modality, number, description, bits_stored, photometric, f"{uid_seed}/{k}")
        dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[uid_seed])
        dataset.InstanceNumber = k + 1
        dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame of reference"])
        dataset.ImageOrientationPatient = decimals([*directions[:, 0], *directions[:, 1]])
        dataset.ImagePositionPatient = decimals(columns @ (0, 0, k, 1))
        dataset.PixelSpacing = decimals([spacing[1], spacing[0]])
        dataset.SliceThickness = decimals([abs(columns[:, 2] @ normal)])[0]
        if slope is not None or intercept is not None:
            dataset.RescaleSlope, dataset.RescaleIntercept = decimals([slope or 1, intercept or 0])
        change(dataset, {**(tags or {}), **(slice_tags(k) if slice_tags else {})})
        paths.append(save(dataset, folder / name.format(k=k), transfer_syntax=transfer_syntax, preamble=preamble))
    return paths


def write_film(
    folder: Path,
    pixels: np.ndarray,
    *,
    modality: str = "DX",
    number: int | None = 1,
    bits_stored: int | None = None,
    photometric: str = "MONOCHROME2",
    patient_orientation: Sequence[str] | None = ("L", "F"),
    tags: Mapping[str, Any] | None = None,
    transfer_syntax: str = ExplicitVRLittleEndian,
    name: str = "film.dcm",
    uid_seed: str = "film",
) -> Path:
    """Write one X-ray film (stored integers, i j), without any place in the patient; spacing goes by `tags`."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset = image(pixels, modality, number, "film", bits_stored, photometric, uid_seed)
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[uid_seed])
    dataset.InstanceNumber = 1
    if patient_orientation is not None:
        dataset.PatientOrientation = list(patient_orientation)
    change(dataset, tags or {})
    return save(dataset, folder / name, transfer_syntax=transfer_syntax, preamble=True)


def write_segmentation(folder: Path, *, name: str = "seg.dcm") -> Path:
    """Write a stub of a DICOM SEG: a multi-frame object that is no image."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset = image(np.zeros((8, 8), np.uint8), "SEG", 300, "segmentation", None, "MONOCHROME2", "seg")
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["seg"])
    dataset.NumberOfFrames = 1
    return save(dataset, folder / name)


def save(dataset: Dataset, path: Path, *, transfer_syntax: str = ExplicitVRLittleEndian, preamble: bool = True) -> Path:
    """Write a dataset, compressed if the transfer syntax says so (RLE, JPEG-LS and JPEG 2000 can be written)."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if UID(transfer_syntax).is_encapsulated:
        dataset.compress(transfer_syntax, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    if preamble:
        dataset.save_as(path, enforce_file_format=True)
    else:
        implicit = dataset.file_meta.TransferSyntaxUID.is_implicit_VR
        del dataset.file_meta
        dataset.save_as(path, implicit_vr=implicit, little_endian=True)
    return path


def decimals(values: Sequence[float] | np.ndarray) -> list[DS]:
    """Return numbers as DICOM writes them: at most 16 characters."""
    return [DS(float(value), auto_format=True) for value in values]


def image(
    pixels: np.ndarray,
    modality: str,
    number: int | None,
    description: str,
    bits_stored: int | None,
    photometric: str,
    uid_seed: str,
) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = CLASSES.get(modality, SecondaryCaptureImageStorage)
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[uid_seed, "instance"])
    dataset.PatientName, dataset.PatientID = MARKERS
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = dataset.StudyID = ""
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.Modality = modality
    dataset.SeriesNumber = number
    dataset.SeriesDescription = description
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = photometric
    dataset.Columns, dataset.Rows = pixels.shape
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = bits_stored or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    content = np.ascontiguousarray(pixels.T).tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 else "OW"
    return dataset


def change(dataset: Dataset, tags: Mapping[str, Any]) -> None:
    for keyword, value in tags.items():
        if value is not None:
            setattr(dataset, keyword, value)
        elif keyword in dataset:
            delattr(dataset, keyword)
