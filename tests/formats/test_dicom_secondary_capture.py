"""The overlay as a DICOM picture: valid, in its place, of the same patient, and the same each time it is made."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.data import get_testdata_file
from pydicom.uid import ImplicitVRLittleEndian

from formats.dicom_phantom import GEOMETRIES, MARKERS, stored_values, write_film, write_series
from formats.made_sources import COMPLETE, RECIPE, SHAPE, blob, heatmap, made_export, made_series
from formats.validators import complaints, disagreements
from medcam import render
from medcam.errors import OutputError
from medcam.formats.dicom import read_dicom
from medcam.formats.dicom_body_part import add_body_part
from medcam.formats.dicom_secondary_capture import secondary_capture
from medcam.volume import Source, Volume


def written(volume: Volume, folder: Path, **changes: Any) -> pydicom.Dataset:
    (path,) = secondary_capture(made_export(volume, folder, **changes))
    return pydicom.dcmread(path)


MADE = {
    "an oblique MR": {"modality": "MR"},
    "a CT": {
        "modality": "CT",
        "geometry": "axial",
        "slope": 1,
        "intercept": -1024,
        "tags": {"BodyPartExamined": "ABDOMEN"},
    },
    "a right knee": {"tags": {"BodyPartExamined": "KNEE", "Laterality": "R"}},
    "no named part": {"tags": {"BodyPartExamined": None}},
    "the chest by another name": {"tags": {"BodyPartExamined": "THORAX"}},
    "no frame of reference": {"tags": {"FrameOfReferenceUID": None}},
    "a missing slice": {"leave_out": (2,), "allow_gaps": True},
    "lossy images": {
        "tags": {
            "LossyImageCompression": "01",
            "LossyImageCompressionRatio": "12.5",
            "LossyImageCompressionMethod": "ISO_10918_1",
        }
    },
    "removed identity": {"tags": {"PatientIdentityRemoved": "YES", "DeidentificationMethod": "by hand"}},
    "an empty method of removal": {"tags": {"DeidentificationMethod": ""}},
    "an empty character set": {"tags": {"SpecificCharacterSet": ""}},
}


@pytest.mark.parametrize("case", MADE)
def test_the_validator_has_nothing_against_an_overlay_on(case: str, tmp_path: Path) -> None:
    written(made_series(tmp_path / "series", **MADE[case]), tmp_path)
    assert complaints(tmp_path / "out_sc.dcm") == []


@pytest.mark.parametrize(
    ("modality", "orientation", "tags"),
    [
        ("CR", ("L", "F"), {"BodyPartExamined": "CHEST", "PixelSpacing": ["0.2", "0.3"]}),
        ("CR", None, {"PixelSpacing": ["0", "0"]}),
        ("DX", ("A", "F"), {"ImagerPixelSpacing": ["0.14", "0.14"]}),
        ("DX", ("P", "F"), {"ImagerPixelSpacing": ["0.14", "0.14"], "PixelSpacing": ["0", "0"]}),
        ("DX", ("L", "F"), {"BodyPartExamined": "HAND", "ImageLaterality": "L"}),
    ],
)
def test_the_validator_has_nothing_against_an_overlay_on_a_film(
    modality: str, orientation: tuple[str, str] | None, tags: dict[str, Any], tmp_path: Path
) -> None:
    pixels = stored_values((23, 17, 1))[:, :, 0]
    given = {**COMPLETE, "BodyPartExamined": None, "PositionReferenceIndicator": None, **tags}
    path = write_film(tmp_path / "film", pixels, modality=modality, patient_orientation=orientation, tags=given)
    dataset = written(read_dicom(path), tmp_path)
    assert complaints(tmp_path / "out_sc.dcm") == []
    assert (dataset.Rows, dataset.Columns) == (17, 23)
    assert "NumberOfFrames" not in dataset
    assert dataset.PatientOrientation == (list(orientation) if orientation else "")
    assert "PerFrameFunctionalGroupsSequence" not in dataset
    assert dataset.get("PixelSpacing") == ([0.2, 0.3] if tags.get("PixelSpacing") == ["0.2", "0.3"] else None)


REAL = {
    "cxr_dicom/RG1_J2KI.dcm": ("ReferringPhysicianName", "OtherPatientIDs"),
    "cxr_dicom/DX_thorax.dcm": (),
    "ct_dicomseg": ("PatientName",),
    "dicom_mr_series/memprage_oblique.zip": ("PatientName",),
    "CT_small.dcm": ("PatientWeight",),
    "MR_small.dcm": ("NameOfPhysiciansReadingStudy",),
}


def real_source(name: str, real_data: Path, folder: Path) -> Path:
    if "/" not in name and name.endswith(".dcm"):
        return Path(get_testdata_file(name))
    if not name.startswith("ct_dicomseg"):
        return real_data / name
    # The folder also holds a segmentation and NIfTI files.
    folder.mkdir()
    for file in sorted((real_data / name).glob("0*.dcm")):
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("name", REAL)
def test_the_validator_complains_of_real_overlays_only_about_the_sources_own_words(
    name: str, real_data: Path, tmp_path: Path
) -> None:
    volume = read_dicom(real_source(name, real_data, tmp_path / "source"), allow_gaps=True)
    dataset = written(volume, tmp_path)
    found = complaints(tmp_path / "out_sc.dcm")
    assert [line for line in found if line.startswith("Error")] == []
    assert [line for line in found if not any(f"</{keyword}(" in line for keyword in REAL[name])] == []
    assert dataset.get("NumberOfFrames", 1) == len(volume.source.instances)


def test_sources_and_overlay_are_one_study_of_one_patient(tmp_path: Path) -> None:
    written(made_series(tmp_path / "series"), tmp_path)
    files = [*sorted((tmp_path / "series").iterdir()), tmp_path / "out_sc.dcm"]
    assert disagreements(files) == []


def series_by_simpleitk(folder: Path) -> SimpleITK.Image:
    files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    return SimpleITK.ReadImage(files)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_simpleitk_finds_the_overlay_where_it_finds_the_source(geometry: str, tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series", geometry)
    written(volume, tmp_path)
    source, overlay = series_by_simpleitk(tmp_path / "series"), SimpleITK.ReadImage(str(tmp_path / "out_sc.dcm"))
    assert overlay.GetSize() == source.GetSize() == SHAPE
    corners = [(0, 0, 0), (18, 0, 0), (0, 13, 0), (0, 0, 5), (18, 13, 5)]
    for corner in corners:
        expected = source.TransformIndexToPhysicalPoint(corner)
        assert overlay.TransformIndexToPhysicalPoint(corner) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("geometry", ["axial", "sagittal", "oblique", "mirrored in the plane"])
def test_dcm2niix_finds_the_overlay_where_it_finds_the_source(geometry: str, tmp_path: Path) -> None:
    dcm2niix = pytest.importorskip("dcm2niix").bin
    written(made_series(tmp_path / "series", geometry), tmp_path)
    (tmp_path / "one").mkdir()
    shutil.move(tmp_path / "out_sc.dcm", tmp_path / "one")
    images = []
    for folder in ("series", "one"):
        (out := tmp_path / f"{folder}_nifti").mkdir()
        subprocess.run([dcm2niix, "-z", "n", "-b", "n", "-o", out, tmp_path / folder], capture_output=True, check=True)
        (file,) = out.glob("*.nii")
        images.append(nibabel.load(file))
    source, overlay = images
    assert overlay.shape[:3] == source.shape == SHAPE
    corners = np.array([(0, 0, 0, 1), (18, 0, 0, 1), (0, 13, 0, 1), (0, 0, 5, 1)]).T
    assert np.linalg.norm((overlay.affine @ corners - source.affine @ corners)[:3], axis=0).max() <= 1e-3


def test_the_frames_hold_the_rendered_pixels_with_one_scale_for_all(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    heat = heatmap(volume)
    frames = written(volume, tmp_path).pixel_array
    expected = render.overlay_rgb(volume.voxels, heat.relevance, window=render.display_range(volume))
    np.testing.assert_array_equal(frames, expected.transpose(2, 1, 0, 3))
    coloured = np.ptp(frames.astype(int), axis=-1) > 0
    assert coloured.any(axis=(1, 2)).sum() > 1
    assert not coloured.all(axis=(1, 2)).any()
    by_itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "out_sc.dcm")))
    np.testing.assert_array_equal(by_itk, frames)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_hottest_colour_lies_within_half_a_voxel_of_the_blob(geometry: str, tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series", geometry)
    at = (12.2, 3.9, 4.1)
    written(volume, tmp_path, relevance=blob(volume, at, 2.5 * max(volume.grid.spacing_mm)))
    image = SimpleITK.ReadImage(str(tmp_path / "out_sc.dcm"))
    pixels = SimpleITK.GetArrayFromImage(image).astype(int)
    k, j, i = np.unravel_index(np.argmax(pixels[..., :2].min(-1) - pixels[..., 2]), pixels.shape[:3])
    x, y, z = image.TransformIndexToPhysicalPoint((int(i), int(j), int(k)))
    off = volume.grid.index(np.array([-x, -y, z])) - at
    assert np.abs(off).max() <= 0.5


def test_each_frame_refers_to_its_place_and_interpolated_slices_have_none(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series", leave_out=(2,), allow_gaps=True)
    dataset = written(volume, tmp_path)
    headers = volume.source.instances
    assert dataset.NumberOfFrames == len(headers) == SHAPE[2] - 1
    places = [frame.PlanePositionSequence[0].ImagePositionPatient for frame in dataset.PerFrameFunctionalGroupsSequence]
    np.testing.assert_allclose(places, [header.ImagePositionPatient for header in headers], atol=1e-9)
    steps = np.diff(dataset.SliceLocationVector)
    assert steps == pytest.approx([2.5, 5.0, 2.5, 2.5], abs=1e-6)
    sources = [str(header.SOPInstanceUID) for header in headers]
    assert [item.ReferencedSOPInstanceUID for item in dataset.SourceImageSequence] == sources
    assert {item.PurposeOfReferenceCodeSequence[0].CodeValue for item in dataset.SourceImageSequence} == {"121322"}
    (series,) = dataset.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == headers[0].SeriesInstanceUID
    assert [item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence] == sources
    assert dataset.FrameOfReferenceUID == headers[0].FrameOfReferenceUID


def test_it_says_what_it_is_and_what_it_is_not(tmp_path: Path) -> None:
    long = replace(RECIPE, target="a target of many words " * 9)
    volume = made_series(tmp_path / "series", number=9001)
    dataset = written(volume, tmp_path, recipe=long, target=long.target, notes=("One note.", "Another\\note."))
    assert dataset.SeriesDescription.startswith("grad-cam: a target of many words")
    assert dataset.SeriesDescription.endswith("NOT FOR DIAGNOSTIC USE")
    assert len(dataset.SeriesDescription) <= 64
    assert dataset.SeriesNumber == 9101
    for word in ("grad-cam", "features.3", "net", "ab" * 32, "Research use only"):
        assert word in dataset.DerivationDescription
    assert dataset.ImageComments == "One note. Another/note."
    assert dataset.ImageType[:2] == ["DERIVED", "SECONDARY"]
    assert (dataset.BurnedInAnnotation, dataset.ConversionType, dataset.Modality) == ("NO", "WSD", "OT")
    assert dataset.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_a_heatmap_without_evidence_is_a_grey_picture_that_says_so(value: float, tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    dataset = written(volume, tmp_path, relevance=np.full(SHAPE, value, np.float32))
    assert (np.ptp(dataset.pixel_array, axis=-1) == 0).all()
    assert "no positive evidence" in dataset.SeriesDescription
    assert "no positive evidence" in dataset.DerivationDescription


PATIENT = ("PatientName", "PatientID", "IssuerOfPatientID", "PatientComments", "StudyDescription", "StudyInstanceUID")


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Müller^Jürgen".encode("latin-1")),
        ("ISO_IR 192", "Müller^Jürgen".encode()),
        (["", "ISO 2022 IR 87"], b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"),
        (None, "Müller^Jürgen".encode("latin-1")),
        (None, "Müller^Jürgen".encode()),
        (None, b"Mueller^Juergen "),
        ("ISO_IR 100", b"no caret, and spaces  "),
    ],
)
@pytest.mark.parametrize("implicit", [False, True])
def test_the_patient_is_the_same_byte_by_byte(
    charset: str | list[str] | None, name: bytes, implicit: bool, tmp_path: Path
) -> None:
    padded = name + b" " * (len(name) % 2)
    # The bytes go in behind pydicom's back: it would encode them its own way.
    placeholder = "X" * len(padded)
    other = pydicom.Dataset()
    other.PatientID, other.IssuerOfPatientID, other.TypeOfPatientID = "0815-b", "another clinic", "TEXT"
    tags = {
        "SpecificCharacterSet": charset,
        "PatientName": placeholder,
        "IssuerOfPatientID": "clinic ",
        "PatientComments": placeholder,
        "OtherPatientIDsSequence": [other],
    }
    syntax = {"transfer_syntax": ImplicitVRLittleEndian} if implicit else {}
    paths = write_series(
        tmp_path / "series", stored_values(SHAPE), GEOMETRIES["axial"], tags={**COMPLETE, **tags}, **syntax
    )
    for path in paths:
        path.write_bytes(path.read_bytes().replace(placeholder.encode(), padded))
    dataset = written(read_dicom(tmp_path / "series"), tmp_path)
    source = pydicom.dcmread(paths[0])
    for keyword in PATIENT:
        assert dataset.get_item(keyword).value == source.get_item(keyword).value, keyword
    assert dataset.OtherPatientIDsSequence[0].PatientID == "0815-b"
    if charset is not None:
        assert str(dataset.PatientName) == str(source.PatientName)
    elif name.startswith("Müller".encode()) or name.startswith("Müller".encode("latin-1")):
        assert str(dataset.PatientName) == "Müller^Jürgen"
    assert bool(dataset.SpecificCharacterSet)


def test_medcams_own_words_fit_the_sources_character_set(tmp_path: Path) -> None:
    words = {"recipe": replace(RECIPE, target="Läsion 病変"), "target": "Läsion 病変"}
    latin = written(made_series(tmp_path / "a", tags={"SpecificCharacterSet": "ISO_IR 100"}), tmp_path, **words)
    assert latin.SeriesDescription == "grad-cam: Lasion NOT FOR DIAGNOSTIC USE"
    unicode = written(made_series(tmp_path / "b"), tmp_path, **words)
    assert unicode.SpecificCharacterSet == "ISO_IR 192"
    assert unicode.SeriesDescription == "grad-cam: Läsion 病変 NOT FOR DIAGNOSTIC USE"


def test_identity_stays_in_the_patients_own_elements(tmp_path: Path) -> None:
    dataset = written(made_series(tmp_path / "series"), tmp_path)
    assert (str(dataset.PatientName), dataset.PatientID) == MARKERS
    del dataset.PatientName, dataset.PatientID
    for marker in MARKERS:
        assert marker not in str(dataset)


def test_the_same_result_has_the_same_uids_and_another_has_others(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    other_source = made_series(tmp_path / "other", uid_seed="other")
    first, again = written(volume, tmp_path), written(volume, tmp_path)
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert first[keyword].value == again[keyword].value
        assert len(first[keyword].value) <= 64
    assert first.file_meta.MediaStorageSOPInstanceUID == first.SOPInstanceUID
    changed = [
        written(volume, tmp_path, recipe=replace(RECIPE, method="hirescam")),
        written(volume, tmp_path, recipe=replace(RECIPE, model_sha256="ef" * 32)),
        written(other_source, tmp_path),
    ]
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert len({dataset[keyword].value for dataset in (first, *changed)}) == 4
    assert first.StudyInstanceUID == changed[0].StudyInstanceUID


def test_a_model_without_digest_does_not_lend_its_uid_to_another_result(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    recipe = replace(RECIPE, model_sha256="")
    one, same = written(volume, tmp_path, recipe=recipe), written(volume, tmp_path, recipe=recipe)
    other = written(volume, tmp_path, recipe=recipe, relevance=blob(volume, (3, 3, 3)))
    assert one.SOPInstanceUID == same.SOPInstanceUID != other.SOPInstanceUID


def test_two_files_of_one_export_are_equal_to_the_byte(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series", tags={"TimezoneOffsetFromUTC": "+0930"})
    dataset = written(volume, tmp_path)
    content = (tmp_path / "out_sc.dcm").read_bytes()
    written(volume, tmp_path)
    assert (tmp_path / "out_sc.dcm").read_bytes() == content
    # In the source's time zone, as are the times copied from it.
    assert (dataset.ContentDate, dataset.ContentTime, dataset.TimezoneOffsetFromUTC) == ("20240507", "090015", "+0930")
    assert (dataset.SeriesDate, dataset.InstanceCreationTime) == ("20240507", "090015")


def test_what_happened_to_the_sources_pixels_is_carried_on(tmp_path: Path) -> None:
    tags = {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": "12.5",
        "BurnedInAnnotation": "YES",
        "RecognizableVisualFeatures": "YES",
    }
    dataset = written(made_series(tmp_path / "series", slice_tags=lambda k: tags if k == 3 else {}), tmp_path)
    assert {keyword: str(dataset[keyword].value) for keyword in tags} == tags
    clean = written(made_series(tmp_path / "clean", uid_seed="clean"), tmp_path)
    assert "LossyImageCompression" not in clean
    assert clean.BurnedInAnnotation == "NO"


@pytest.mark.parametrize(
    ("part", "side", "expected"),
    [
        ("HEAD", None, ("HEAD", None)),
        ("CHEST", "", ("CHEST", None)),
        ("THORAX", None, ("CHEST", None)),
        ("KNEE", "R", ("KNEE", "R")),
        ("KNEE", None, ("KNEE", None)),
        (None, None, (None, "U")),
        (None, "L", (None, "L")),
    ],
)
def test_sides_are_named_where_the_body_part_has_one(
    part: str | None, side: str | None, expected: tuple[str | None, str | None]
) -> None:
    header, dataset = pydicom.Dataset(), pydicom.Dataset()
    if part is not None:
        header.BodyPartExamined = part
    if side is not None:
        header.Laterality = side
    add_body_part(dataset, header)
    assert (dataset.get("BodyPartExamined"), dataset.get("ImageLaterality")) == expected


def test_a_knee_of_an_unknown_side_is_the_sources_one_fault(tmp_path: Path) -> None:
    dataset = written(made_series(tmp_path / "series", tags={"BodyPartExamined": "KNEE"}), tmp_path)
    assert dataset.Laterality == ""
    (found,) = complaints(tmp_path / "out_sc.dcm")
    assert found.startswith("Warning - </Laterality(")


def test_an_image_that_is_not_dicom_is_refused_with_what_to_do(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    plain = Volume(volume.voxels, volume.grid, "a.u.", Source("nifti", ""))
    with pytest.raises(OutputError, match=r"read from nifti.*NIfTI or PNG"):
        secondary_capture(made_export(plain, tmp_path))
    headerless = tuple(pydicom.Dataset() for _ in range(SHAPE[2]))
    nameless = Volume(volume.voxels, volume.grid, "a.u.", replace(volume.source, instances=headerless))
    with pytest.raises(OutputError, match="lack SOPClassUID, SOPInstanceUID"):
        secondary_capture(made_export(nameless, tmp_path))
    assert not (tmp_path / "out_sc.dcm").exists()


@pytest.mark.parametrize("change", ["moved", "turned over", "sorted backwards", "cut"])
def test_a_heatmap_that_is_not_where_the_headers_are_is_refused(change: str, tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    affine, shape, headers = volume.grid.affine.copy(), volume.grid.shape, volume.source.instances
    if change == "moved":
        affine[2, 3] += 0.3
    elif change == "turned over":
        affine[:3, 1] *= -1
    elif change == "sorted backwards":
        headers = headers[::-1]
    else:
        shape = (shape[0] - 1, *shape[1:])
    grid = replace(volume.grid, shape=shape, affine=affine)
    other = Volume(np.zeros(shape, np.float32), grid, "a.u.", replace(volume.source, instances=headers))
    with pytest.raises(OutputError, match="DICOM"):
        secondary_capture(made_export(other, tmp_path))
    assert not (tmp_path / "out_sc.dcm").exists()


def test_a_heatmap_of_another_image_is_refused(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    other = made_series(tmp_path / "other", "axial", uid_seed="other")
    with pytest.raises(OutputError, match="another"):
        secondary_capture(replace(made_export(other, tmp_path), volume=volume))


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(self: pydicom.Dataset, filename: Path, **_: object) -> None:
        Path(filename).write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    volume = made_series(tmp_path / "series")
    monkeypatch.setattr(pydicom.Dataset, "save_as", fill)
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="No space left on device"):
        secondary_capture(made_export(volume, tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_an_odd_number_of_pixels_is_padded(tmp_path: Path) -> None:
    path = write_film(
        tmp_path, stored_values((5, 7, 1))[:, :, 0], tags={**COMPLETE, "PositionReferenceIndicator": None}
    )
    dataset = written(read_dicom(path), tmp_path / "out")
    assert len(dataset.PixelData) == 106
    assert dataset.pixel_array.shape == (7, 5, 3)
