"""What the long fuzz run damages: files of every kind that medcam reads, and how each is read."""

from __future__ import annotations

import gzip
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from formats import test_fuzzed_files as small
from formats.dicom_phantom import GEOMETRIES, stored_values, write_film, write_series
from formats.dicom_phantom_frames import write_enhanced, write_mosaic
from formats.test_dicom_directory import disc
from formats.test_stored import source as stored_source
from formats.test_stored import stored
from medcam.formats import read, read_mask
from medcam.formats.stored import read_heatmap, read_heatmap_alone

# Names that a hostile file may bear.
NAMES = ("../../escaped", "/absolute", "a\nb", "x" * 300, "\N{PILE OF POO}" * 20, "con:aux", "..", "a/../../b")


@dataclass(frozen=True)
class Subject:
    """A kind of file.

    Parameters
    ----------
    make
        Writes it whole into a new folder.
    read
        Reads what lies there, damaged or not.
    damaged
        Which files of it are damaged, as a glob.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    damaged: str = "*"


def damage(folder: Path, subject: Subject, rng: np.random.Generator) -> None:
    """Change one or two of a subject's files: their bytes, or under their packing, or what they are called in a zip."""
    files = sorted(path for path in folder.rglob(subject.damaged) if path.is_file())
    for path in rng.choice(np.array(files, object), size=min(len(files), int(rng.integers(1, 3))), replace=False):
        content = path.read_bytes()
        header = len(content) if rng.random() < 0.5 else 700
        if path.suffix == ".gz" and rng.random() < 0.5:
            path.write_bytes(gzip.compress(small.mutated(gzip.decompress(content), rng, header=header), 1))
        elif path.suffix == ".zip" and rng.random() < 0.7:
            _damage_zip(path, rng, header)
        else:
            path.write_bytes(small.mutated(content, rng, header=header))


def _damage_zip(path: Path, rng: np.random.Generator, header: int) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for n, (name, content) in enumerate(members.items()):
            named = f"{NAMES[int(rng.integers(0, len(NAMES)))]}{n or ''}" if rng.random() < 0.2 else name
            archive.writestr(named, small.mutated(content, rng, header=header) if rng.random() < 0.4 else content)


def _series(**options: str | bool) -> Callable[[Path], object]:
    # Odd pixel counts are what decoders stumble over.
    return lambda folder: write_series(folder, stored_values((37, 41, 4)), GEOMETRIES["oblique"], **options)  # type: ignore[arg-type]


def _zip(folder: Path) -> None:
    write_series(folder / "in", stored_values(), GEOMETRIES["oblique"])
    with zipfile.ZipFile(folder / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((folder / "in").iterdir()):
            archive.write(path, path.name)
    shutil.rmtree(folder / "in")


def _disc(folder: Path) -> None:
    made = disc(folder / "made").parent
    for path in made.iterdir():
        path.rename(folder / path.name)
    shutil.rmtree(folder / "made")


def _pair(folder: Path) -> None:
    folder.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Pair(small.DATA, np.diag([1.5, 2, 3, 1])), folder / "a.hdr")


def _detached(ending: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(small.DATA), str(folder / f"a.{ending}"))

    return make


def _file(name: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    def written(folder: Path) -> None:
        folder.mkdir(parents=True)
        make(folder / name)

    return written


def _mask(name: str) -> Callable[[Path], None]:
    def written(folder: Path) -> None:
        small.source_series(folder / "ct")
        small.MASKS[name](folder / name)

    return written


def _stored(formats: str) -> Callable[[Path], None]:
    def written(folder: Path) -> None:
        stored(folder / "out", stored_source(folder / "study"), formats=formats)

    return written


def _first(pattern: str) -> Callable[[Path], Path]:
    return lambda folder: next(iter(sorted(folder.rglob(pattern))), folder)


def _read_stored(folder: Path, pattern: str) -> None:
    path = _first(pattern)(folder)
    read_heatmap_alone(path)
    read_heatmap(path, read(folder / "study"))


def _files() -> dict[str, Subject]:
    pictures = {
        name: Subject(_file(name, make), lambda folder, name=name: read(folder / name))
        for name, make in small.SEEDS.items()
    }
    masks = {
        f"mask {name}": Subject(
            _mask(name), lambda folder, name=name: read_mask(folder / name, like=read(folder / "ct")), name
        )
        for name in small.MASKS
    }
    return pictures | masks


_DICOM: Mapping[str, Callable[[Path], object]] = {
    "DICOM series": _series(),
    "DICOM implicit, bare": _series(transfer_syntax=ImplicitVRLittleEndian, preamble=False),
    "DICOM deflated": _series(transfer_syntax=DeflatedExplicitVRLittleEndian),
    "DICOM JPEG-LS": _series(transfer_syntax=JPEGLSLossless),
    "DICOM JPEG 2000": _series(transfer_syntax=JPEG2000Lossless),
    "DICOM RLE": _series(transfer_syntax=RLELossless),
    "DICOM enhanced": lambda folder: write_enhanced(folder, stored_values((7, 5, 6)), GEOMETRIES["oblique"]),
    "DICOM enhanced, RLE": lambda folder: write_enhanced(
        folder, stored_values((8, 6, 6)), GEOMETRIES["oblique"], transfer_syntax=RLELossless
    ),
    "DICOM mosaic": lambda folder: write_mosaic(folder, stored_values((8, 6, 5)), GEOMETRIES["oblique"]),
    "DICOM film": lambda folder: write_film(folder, stored_values((23, 17, 1))[:, :, 0]),
}
# A kind of file is one row: its name, how it is written, how it is read.
SUBJECTS: dict[str, Subject] = {
    **_files(),
    "NIfTI pair": Subject(_pair, lambda folder: read(folder / "a.hdr")),
    "NHDR": Subject(_detached("nhdr"), lambda folder: read(folder / "a.nhdr")),
    "MHD": Subject(_detached("mhd"), lambda folder: read(folder / "a.mhd")),
    **{name: Subject(make, read) for name, make in _DICOM.items()},
    "zip": Subject(_zip, lambda folder: read(folder / "study.zip")),
    "DICOMDIR": Subject(_disc, lambda folder: read(folder / "DICOMDIR"), "DICOMDIR"),
    "stored NIfTI": Subject(_stored("nifti"), lambda folder: _read_stored(folder, "out/*rise.nii.gz"), "out/*"),
    "stored sidecar": Subject(_stored("nrrd"), lambda folder: _read_stored(folder, "out/*.nrrd"), "*.json"),
}
