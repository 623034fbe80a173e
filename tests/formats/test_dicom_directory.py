"""A DICOMDIR stands for the files that it lists, and for nothing outside its folder."""

from __future__ import annotations

import gc
import shutil
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.fileset import FileSet

from formats.dicom_phantom import GEOMETRIES, MARKERS, stored_values, write_series
from formats.test_dicom_referee import PYDICOM
from medcam.errors import InputError
from medcam.formats import kind_of, read
from medcam.formats.dicom import find_series, is_dicom, read_dicom

DISC = PYDICOM / "dicomdirtests"


def disc(folder: Path) -> Path:
    """Return the DICOMDIR of a disc that pydicom writes: one series, beside a file that it does not list."""
    write_series(
        folder / "in",
        stored_values(),
        GEOMETRIES["oblique"],
        tags={"StudyDate": "20200101", "StudyTime": "101112", "StudyID": "1"},
    )
    files = FileSet()
    for path in sorted((folder / "in").iterdir()):
        files.add(path)
    with warnings.catch_warnings():
        # It leaves the folder in which it staged the files to the garbage collector, which says so.
        warnings.simplefilter("ignore", ResourceWarning)
        files.write(folder / "disc")
        del files
        gc.collect()
    write_series(folder / "disc", stored_values(), GEOMETRIES["axial"], uid_seed="unlisted", name="UNLISTED{k}")
    return folder / "disc" / "DICOMDIR"


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_dicom(path)
    assert not any(marker in str(caught.value) for marker in MARKERS)
    assert str(path.parent) not in str(caught.value)
    return str(caught.value)


def test_a_dicomdir_reads_what_it_lists(tmp_path: Path) -> None:
    path = disc(tmp_path)
    assert is_dicom(path)
    assert kind_of(path) == "dicom"
    np.testing.assert_array_equal(read(path).voxels, stored_values())
    assert len(find_series(path)) == 1
    # The folder is all that lies in it.
    assert len(find_series(path.parent)) == 2


def test_names_are_compared_without_case(tmp_path: Path) -> None:
    path = disc(tmp_path)
    for each in sorted(path.parent.rglob("*"), reverse=True):
        each.rename(each.with_name(each.name.lower()))
    np.testing.assert_array_equal(read_dicom(path.with_name("dicomdir")).voxels, stored_values())


@pytest.mark.parametrize(
    "name", ["DICOMDIR", "DICOMDIR-bigEnd", "DICOMDIR-implicit", "DICOMDIR-nooffset", "DICOMDIR-reordered"]
)
def test_a_real_disc_lists_its_series_in_any_encoding_even_with_damaged_offsets(name: str) -> None:
    found = find_series(DISC / name)
    assert len(found) == 12
    # Of the 31 images that pydicom's own reader lists, two are a series of localizers.
    assert sum(one.shape[2] for one in found) == 29
    volume = read_dicom(DISC / name, series="3")
    assert volume.grid.shape == (16, 16, 1)
    assert "view AP" in " ".join(volume.source.notes)


def test_a_file_that_is_listed_and_missing_is_told(tmp_path: Path) -> None:
    path = disc(tmp_path)
    next(
        each for each in path.parent.rglob("*") if each.is_file() and "UNLISTED" not in each.name and each != path
    ).unlink()
    message = refusal(path)
    assert "DICOMDIR lists 4 files, and 1 of them are not there" in message
    assert "give the folder itself" in message


@pytest.mark.parametrize(
    "name", [["..", "OUTSIDE"], ["/etc", "passwd"], ["A", "..", "..", "OUTSIDE"], ["..\\\\OUTSIDE"], ["."]]
)
def test_names_that_lead_out_of_the_folder_are_not_followed(tmp_path: Path, name: list[str]) -> None:
    path = disc(tmp_path)
    shutil.copy(next((tmp_path / "in").iterdir()), tmp_path / "OUTSIDE")
    dataset = pydicom.dcmread(path)
    record = next(each for each in dataset.DirectoryRecordSequence if "ReferencedFileID" in each)
    record["ReferencedFileID"].VR = "LO"
    record.ReferencedFileID = name
    dataset.save_as(path)
    assert "1 of them are not there" in refusal(path)


def test_a_damaged_or_empty_dicomdir_is_refused(tmp_path: Path) -> None:
    path = disc(tmp_path)
    whole = path.read_bytes()
    for length in range(400, len(whole), 97):
        path.write_bytes(whole[:length])
        try:
            found = read_dicom(path)
        except InputError:
            continue
        assert found.grid.shape[:2] == (7, 5)
    assert "no DICOM image" in refusal(DISC / "DICOMDIR-empty.dcm")
