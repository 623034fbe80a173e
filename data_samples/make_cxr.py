"""Draw the sample chest film, one nodule in the patient's right lung, and write it as DICOM, PNG and NIfTI with the nodule's mask.

    python data_samples/make_cxr.py [--out DIR]

The picture is ours, drawn from a seed by `examples/synthetic_films.py`; the patient does not exist. The files are the same to the byte
from one run to the next, up to the versions of the libraries that compress and write them.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))
from synthetic_films import implant_nodule, synthetic_film  # noqa: E402

COLUMNS, ROWS = 512, 560
SPACING = 0.7  # mm, both ways
SEED = 20240229
DIAMETER, CONTRAST = 36.0, 0.34  # of the nodule: pixels, share of the film's range


def draw() -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Return the film, 12 bits in `(columns, rows)`, and the mask of its nodule."""
    rng = np.random.default_rng(SEED)
    film = synthetic_film(rng, COLUMNS, ROWS)
    right_lung = film.lungs.copy()
    right_lung[COLUMNS // 3 :] = False  # the patient's right is on the left of the picture
    right_lung[:, : ROWS * 2 // 5] = right_lung[:, ROWS * 3 // 5 :] = False  # middle zone
    absorption, mask = implant_nodule(film.absorption, right_lung, rng, DIAMETER, CONTRAST)
    return np.round(np.clip(absorption, 0, 1) * 4095).astype(np.uint16), mask.astype(np.uint8)


def affine() -> NDArray[np.float64]:
    """Return the voxel-to-RAS matrix (mm) of a PA film: columns to the patient's left, rows to the feet, depth to the back."""
    matrix = np.eye(4)
    matrix[:3, 0] = (-SPACING, 0, 0)
    matrix[:3, 1] = (0, 0, -SPACING)
    matrix[:3, 2] = (0, -1, 0)
    return matrix


def write_dicom(path: Path, film: NDArray[np.uint16]) -> None:
    """Write a Computed Radiography image."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["medcam demo film", "instance"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = generate_uid(entropy_srcs=["medcam demo film", "implementation"])
    header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)

    header.SpecificCharacterSet = "ISO_IR 100"
    header.PatientName = "MEDCAM^DEMO"
    header.PatientID = "MEDCAM-DEMO-CXR"
    header.PatientBirthDate = "19500101"
    header.PatientSex = "O"

    header.StudyInstanceUID = generate_uid(entropy_srcs=["medcam demo film", "study"])
    header.StudyDate = header.SeriesDate = header.AcquisitionDate = header.ContentDate = "20200101"
    header.StudyTime = header.SeriesTime = header.AcquisitionTime = header.ContentTime = "120000"
    header.StudyID = "1"
    header.AccessionNumber = "1"
    header.ReferringPhysicianName = "NOBODY^"
    header.StudyDescription = "Synthetic chest film"

    header.Modality = "CR"
    header.SeriesInstanceUID = generate_uid(entropy_srcs=["medcam demo film", "series"])
    header.SeriesNumber = 1
    header.SeriesDescription = "Drawn by medcam, one nodule in the right lung"
    header.BodyPartExamined = "CHEST"
    header.ViewPosition = "PA"
    header.Manufacturer = "medcam"
    header.ManufacturerModelName = "synthetic_films"
    header.SoftwareVersions = "0.1"
    header.DeviceSerialNumber = "0"

    header.SOPClassUID = meta.MediaStorageSOPClassUID
    header.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    header.InstanceNumber = 1
    header.AcquisitionNumber = 1
    header.ImageType = ["DERIVED", "PRIMARY"]
    header.DerivationDescription = "Drawn by a program; no patient"
    header.PatientOrientation = ["L", "F"]
    header.BurnedInAnnotation = "NO"
    header.LossyImageCompression = "00"
    header.ImagerPixelSpacing = [SPACING, SPACING]
    header.PixelSpacing = [SPACING, SPACING]
    region = Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "51185008", "SCT", "Chest"
    header.AnatomicRegionSequence = [region]

    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.Columns, header.Rows = film.shape
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 12, 11
    header.PixelRepresentation = 0
    header.WindowCenter, header.WindowWidth = 2048, 4096
    header.PixelData = np.ascontiguousarray(film.T).astype("<u2").tobytes()
    header.save_as(path, enforce_file_format=True)


def write_nifti(path: Path, voxels: NDArray[np.int16] | NDArray[np.uint8]) -> None:
    """Write a film of one slice; nothing of the time of writing goes into the file."""
    image = nib.Nifti1Image(voxels[:, :, None], affine())
    image.set_sform(affine(), code=1)
    image.set_qform(affine(), code=1)
    image.header.set_xyzt_units("mm")
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=9, mtime=0))


def main(argv: Sequence[str] | None = None) -> int:
    """Write the four files."""
    parser = argparse.ArgumentParser(description="Draw the sample chest film.")
    parser.add_argument("--out", type=Path, default=HERE / "cxr", help="folder to write")
    out: Path = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    film, mask = draw()
    write_dicom(out / "film.dcm", film)
    Image.fromarray(np.ascontiguousarray((film // 16).T.astype(np.uint8))).save(out / "film.png", optimize=True)
    write_nifti(out / "film.nii.gz", film.astype(np.int16))
    write_nifti(out / "film_nodule.nii.gz", mask)
    for path in sorted(out.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
