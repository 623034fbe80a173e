"""Make the sample MRI: a synthetic FLAIR-like head with one lesion on the patient's left, as NIfTI and as a DICOM series.

    python data_samples/make_mri.py

The voxel grid is oblique and anisotropic, as a real axial acquisition is: what treats voxel axes as body axes goes wrong on it. The head
is of the kind that the demonstration model is trained on, but its seed is used nowhere else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from torch import Generator

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))

from synthetic_heads import Recipe, centred_affine, load_anatomy, make_head  # noqa: E402

SEED = 20260
SHAPE = (112, 134, 66)
SPACING = (1.7, 1.7, 2.6)
TILT_DEGREES = {"x": 8.0, "z": -7.0}
# White matter near 1 becomes this many units.
SCALE = 400.0

# FLAIR-like: dark fluid, grey matter a little brighter than white. The lesion lies deep in the left frontoparietal white matter.
RECIPE = Recipe(
    intensities=(1.18, 1.0, 0.18, 0.12, 1.25, 0.5, 0.2),
    lesion_diameter=19.0,
    lesion_contrast=1.5,
    lesion_centre=(-42.0, -24.0, 26.0),
    spots=8,
    turn=(-3.0, 2.0, 3.0),
    shift=(2.0, -3.0, 1.0),
    stretch=(0.98, 0.97, 1.0),
    warp=2.5,
    bias=0.1,
    blur=(0.3, 0.3, 0.3),
    noise=0.025,
    stripped=False,
    masked_air=False,
)


def grid_axes() -> np.ndarray:
    """Return one voxel step on each axis as a column, mm RAS+: i near the patient's left, j near posterior, k near superior."""
    about_x, about_z = (np.radians(TILT_DEGREES[axis]) for axis in "xz")
    c, s = np.cos(about_x), np.sin(about_x)
    tilt_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    c, s = np.cos(about_z), np.sin(about_z)
    tilt_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return tilt_x @ tilt_z @ np.diag([-1.0, -1.0, 1.0]) @ np.diag(SPACING)


def make_volume() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the head. Returns the image (int16), the lesion (uint8), both `i j k`, and the affine."""
    affine = centred_affine(SHAPE, grid_axes())
    head = make_head(load_anatomy(resolution=1), SHAPE, affine, RECIPE, Generator().manual_seed(SEED))
    image = np.clip(np.round(head.image.numpy() * SCALE), 0, 4095).astype(np.int16)
    return image, head.lesion.numpy().astype(np.uint8), affine


def write_nifti(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    """Write voxels in scanner coordinates, mm, the same place in sform and qform."""
    nifti = nib.Nifti1Image(values, affine)
    nifti.set_sform(affine, code=1)
    nifti.set_qform(affine, code=1)
    nifti.header.set_xyzt_units("mm")
    nib.save(nifti, path)


def write_dicom(folder: Path, image: np.ndarray, affine: np.ndarray) -> None:
    """Write voxels as a series of classic MR images, one file a slice."""

    def uid(name: str) -> str:
        return generate_uid(entropy_srcs=["medcam", "demo mri", str(SEED), name])

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.dcm"):
        old.unlink()
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    directions = lps[:3, :3] / spacing
    for k in range(image.shape[2]):
        position = lps[:3, :3] @ [0, 0, k] + lps[:3, 3]
        meta = FileMetaDataset()
        meta.FileMetaInformationVersion = b"\x00\x01"
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = uid(f"slice {k}")
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.ImplementationClassUID = uid("implementation")
        meta.ImplementationVersionName = "MEDCAM_SAMPLE"
        ds = Dataset()
        ds.file_meta = meta
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.ImageType = ["DERIVED", "PRIMARY", "OTHER"]
        ds.InstanceCreationDate, ds.InstanceCreationTime = "20200102", "100000"
        ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20200102"
        ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "100000"
        ds.AccessionNumber = ""
        ds.Modality = "MR"
        ds.Manufacturer = "medcam"
        ds.ReferringPhysicianName = ""
        ds.StudyDescription = "medcam demonstration"
        ds.SeriesDescription = "FLAIR, synthetic"
        ds.ManufacturerModelName = "synthetic head"
        ds.DerivationDescription = "Synthetic head drawn from the MNI152 tissue maps"
        ds.PatientName, ds.PatientID = "MEDCAM^DEMO", "MEDCAM-DEMO-MRI"
        ds.PatientBirthDate, ds.PatientSex = "19700101", "O"
        ds.PatientAge = "050Y"
        ds.BodyPartExamined = "BRAIN"
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions = ["SE", "IR"], "SK", ""
        ds.MRAcquisitionType = "3D"
        ds.SliceThickness = ds.SpacingBetweenSlices = _decimal(spacing[2])
        ds.RepetitionTime, ds.EchoTime, ds.InversionTime = "9000", "120", "2500"
        ds.EchoTrainLength, ds.MagneticFieldStrength = 16, "3"
        ds.DeviceSerialNumber, ds.SoftwareVersions = "1", "1"
        ds.ProtocolName = "FLAIR, synthetic"
        ds.PatientPosition = "HFS"
        ds.StudyInstanceUID, ds.SeriesInstanceUID = uid("study"), uid("series")
        ds.StudyID, ds.SeriesNumber, ds.AcquisitionNumber, ds.InstanceNumber = "1", 1, 1, k + 1
        ds.ImagePositionPatient = [_decimal(value) for value in position]
        ds.ImageOrientationPatient = [_decimal(value) for value in (*directions[:, 0], *directions[:, 1])]
        ds.FrameOfReferenceUID = uid("frame of reference")
        ds.PositionReferenceIndicator = ""
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.Rows, ds.Columns = image.shape[1], image.shape[0]
        ds.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.BurnedInAnnotation = "NO"
        ds.LossyImageCompression = "00"
        ds.WindowCenter, ds.WindowWidth = "350", "700"
        ds.PixelData = np.ascontiguousarray(image[:, :, k].T).astype("<u2").tobytes()
        pydicom.dcmwrite(folder / f"slice_{k + 1:03d}.dcm", ds, enforce_file_format=True)


def _decimal(value: float) -> str:
    """Write a number as a DICOM decimal string, at most 16 characters."""
    text = f"{value:.10f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text[:16]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "mri", help="folder to write to")
    folder: Path = parser.parse_args(arguments).out
    folder.mkdir(parents=True, exist_ok=True)
    image, lesion, affine = make_volume()
    write_nifti(folder / "head_flair.nii.gz", image, affine)
    write_nifti(folder / "head_lesion.nii.gz", lesion, affine)
    write_dicom(folder / "head_flair_dicom", image, affine)
    centroid = affine[:3, :3] @ np.argwhere(lesion).mean(axis=0) + affine[:3, 3]
    print(f"lesion: {int(lesion.sum())} voxels, centroid {np.round(centroid, 1)} mm RAS+")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
