"""What counts as an instance, and what is refused before anything leaves."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MediaStorageDirectoryStorage,
    RLELossless,
)

from formats.dicom_phantom import GEOMETRIES, MARKERS, stored_values, write_film, write_series
from medcam.errors import InputError, UsageError
from medcam.pacs.instances import collect


def series(folder: Path, **options: object) -> list[Path]:
    return write_series(folder, stored_values((36, 41, 2)), GEOMETRIES["oblique"], **options)  # type: ignore[arg-type]


def test_instances_are_found_in_folders_and_zips_and_the_rest_is_listed(tmp_path: Path) -> None:
    series(tmp_path / "in" / "deep")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    (tmp_path / "in" / "heat.nii.gz").write_bytes(b"\x1f\x8b")
    series(tmp_path / "zipped", uid_seed="zip")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for path in sorted((tmp_path / "zipped").iterdir()):
            archive.write(path, f"a/{path.name}")
    found = collect([tmp_path / "in", tmp_path / "in.zip"])
    assert [one.name for one in found.instances] == ["000.dcm", "001.dcm"] * 2
    assert set(found.others) == {"notes.txt", "heat.nii.gz"}
    assert {one.kind for one in found.instances} == {"MR Image"}


def test_an_instance_is_read_as_it_lies_there(tmp_path: Path) -> None:
    paths = series(tmp_path, transfer_syntax=JPEG2000Lossless)
    first = collect([tmp_path]).instances[0]
    dataset = pydicom.dcmread(paths[0])
    assert first.content() == paths[0].read_bytes()
    assert (first.sop_class, first.uid, first.study, first.series, first.syntax, first.size) == (
        dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID, JPEG2000Lossless,
        paths[0].stat().st_size,
    )  # fmt: skip


@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian])
def test_a_file_without_a_meta_group_gets_one(syntax: str | None, tmp_path: Path) -> None:
    paths = series(tmp_path, preamble=False, **({"transfer_syntax": syntax} if syntax else {}))
    original = pydicom.dcmread(paths[0], force=True)
    one = collect([tmp_path]).instances[0]
    read_back = pydicom.dcmread(io.BytesIO(one.content()))
    assert read_back == original
    assert read_back.file_meta.MediaStorageSOPInstanceUID == original.SOPInstanceUID
    assert one.syntax == read_back.file_meta.TransferSyntaxUID


def test_a_meta_group_of_another_instance_is_put_right(tmp_path: Path) -> None:
    (path, _) = series(tmp_path)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.save_as(path)
    (one, _) = collect([tmp_path]).instances
    assert (
        pydicom.dcmread(io.BytesIO(one.content())).file_meta.MediaStorageSOPInstanceUID
        == one.uid
        == dataset.SOPInstanceUID
    )


@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_a_file_that_ends_too_early_is_refused(syntax: str | None, tmp_path: Path) -> None:
    paths = series(tmp_path, **({"transfer_syntax": syntax} if syntax else {}))
    paths[1].write_bytes(paths[1].read_bytes()[:-60])
    with pytest.raises(InputError, match=r"001\.dcm .*(ends before|damaged)"):
        collect([tmp_path])


def test_a_file_that_is_not_dicom_is_refused_if_it_was_named_itself(tmp_path: Path) -> None:
    (tmp_path / "heat.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match=r"heat\.png is not a DICOM instance"):
        collect([tmp_path / "heat.png"])


def test_a_folder_without_dicom_is_refused(tmp_path: Path) -> None:
    (tmp_path / "heat.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match="no DICOM instance among 1 files"):
        collect([tmp_path])


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file or folder"):
        collect([tmp_path / "nothing"])


def test_a_dicomdir_is_no_instance(tmp_path: Path) -> None:
    write_film(tmp_path / "disc", stored_values((9, 11, 1))[:, :, 0])
    directory = Dataset()
    directory.FileSetID = "DISC"
    directory.DirectoryRecordSequence = []
    directory.file_meta = FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.save_as(tmp_path / "disc" / "DICOMDIR", enforce_file_format=True)
    found = collect([tmp_path / "disc"])
    assert len(found.instances) == 1
    assert found.others == ("DICOMDIR",)


def test_copies_go_once_and_that_is_said(tmp_path: Path) -> None:
    paths = series(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    found = collect([tmp_path])
    assert len(found.instances) == len(paths)
    assert found.notes == ("2 files are copies of others, and go once",)


def test_two_objects_of_one_uid_are_refused() -> None:
    names = [Path(str(get_testdata_file(name))) for name in ("MR_small.dcm", "MR_small_implicit.dcm")]
    with pytest.raises(InputError, match=r"MR_small\.dcm and MR_small_implicit\.dcm differ"):
        collect(names)


def test_several_patients_are_sent_only_if_asked(tmp_path: Path) -> None:
    series(tmp_path / "a")
    series(tmp_path / "b", uid_seed="b", tags={"PatientID": "ANOTHER-77", "StudyInstanceUID": "1.2.3.4"})
    with pytest.raises(UsageError, match="of 2 patients") as caught:
        collect([tmp_path])
    assert "ANOTHER-77" not in str(caught.value)
    assert len(collect([tmp_path], several_patients=True).instances) == 4


def test_one_study_of_two_patients_is_refused_whatever_was_asked(tmp_path: Path) -> None:
    series(tmp_path / "a")
    series(tmp_path / "b", uid_seed="b", tags={"PatientID": "ANOTHER-77"})
    with pytest.raises(InputError, match="of one study") as caught:
        collect([tmp_path], several_patients=True)
    assert "ANOTHER-77" not in str(caught.value)


def test_an_instance_does_not_show_whose_it_is(tmp_path: Path) -> None:
    series(tmp_path)
    assert not any(marker in repr(collect([tmp_path])) for marker in MARKERS)
