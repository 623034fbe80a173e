"""All that one export writes: valid, one study of one patient, every reference leads somewhere, each place is the blob's."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom import Dataset

from formats.derived_sources import REAL, real_volume
from formats.dicom_phantom import GEOMETRIES, MARKERS, stored_values
from formats.dicom_phantom_frames import write_mosaic
from formats.made_sources import COMPLETE, SHAPE, SOURCES, blob, heatmap, made_export, made_series, source
from formats.validators import complaints, disagreements
from medcam import formats
from medcam.errors import OutputError, UsageError
from medcam.formats.dicom import read_dicom
from medcam.formats.dicom_key_objects import key_objects, key_objects_instance
from medcam.formats.dicom_report import structured_report
from medcam.formats.dicom_secondary_capture import secondary_capture
from medcam.options import options_of
from medcam.volume import Volume

IODS = {
    "sc": ("MultiframeTrueColorSCImage", "SCImage"),
    "seg": ("Segmentation",),
    "pm": ("ParametricMap",),
    "sr": ("Comprehensive3DSR",),
    "ps": ("GrayscaleSoftcopyPresentationState",),
    "ko": ("KeyObjectSelectionDocument",),
}
WANTED = {
    "a CT": "sc seg pm sr ps ko",
    "an oblique MR": "sc seg pm sr ps ko",
    "an enhanced MR": "sc seg pm sr ps ko",
    "a CR": "sc seg sr ps ko",
    "a DX": "sc seg sr ps ko",
    "another grid": "sc seg pm sr ko",
}


def place(volume: Volume) -> list[float]:
    """Return an off-centre place, as a fractional index."""
    return [share * n * (n > 1) for share, n in zip((0.61, 0.31, 0.71), volume.grid.shape, strict=True)]


def everything(name: str, folder: Path) -> tuple[Volume, dict[str, Path]]:
    """Write every format that a source can have, through the front door; return the files by kind."""
    volume = source(folder / "source", name)
    spacing = volume.grid.spacing_mm if volume.source.placed else volume.grid.spacing_mm[:2]
    found = heatmap(volume, blob(volume, place(volume), 1.5 * max(spacing)))
    wanted = [f"dicom-{kind}" for kind in WANTED[name].split()]
    measures = {"hit": True, "peak_distance": 3.2}
    paths = formats.write(found, volume, folder / "out", formats=wanted, threshold=0.4, measures=measures)
    return volume, {path.stem.rpartition("_")[2]: path for path in paths}


def sources(folder: Path) -> list[Path]:
    return sorted((folder / "source").rglob("*.dcm"))


def references(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Return the class and UID of every instance that a dataset refers to, however deep."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                if "ReferencedSOPInstanceUID" in item:
                    yield item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID
                yield from references(item)


@pytest.mark.parametrize("name", SOURCES)
def test_all_objects_of_an_export_are_valid_and_belong_together(name: str, tmp_path: Path) -> None:
    _, files = everything(name, tmp_path)
    assert " ".join(files) == WANTED[name]
    for kind, path in files.items():
        assert complaints(path, *IODS[kind]) == [], kind
    assert disagreements([*sources(tmp_path), *files.values()]) == []
    objects = {kind: pydicom.dcmread(path) for kind, path in files.items()}
    there = {
        (each.SOPClassUID, each.SOPInstanceUID)
        for each in (*objects.values(), *(pydicom.dcmread(path, stop_before_pixels=True) for path in sources(tmp_path)))
    }
    for kind, dataset in objects.items():
        assert set(references(dataset)) <= there, kind
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription"):
        assert len({objects[kind][keyword].value for kind in objects}) == len(objects), keyword
    for dataset in objects.values():
        assert "NOT FOR DIAGNOSTIC USE" in dataset.SeriesDescription
        made_by = dataset.ContributingEquipmentSequence[0].ContributionDescription
        del dataset.PatientName, dataset.PatientID
        assert not [marker for marker in MARKERS if marker in str(dataset)]
        for word in ("medcam", "grad-cam", "features.3", "lesion (class 0)", "net", "ab" * 32, "Research use only"):
            assert word in made_by


@pytest.mark.parametrize("name", REAL)
def test_validators_complain_of_objects_on_real_images_only_about_the_sources_own_words(
    name: str, real_data: Path, tmp_path: Path
) -> None:
    volume = real_volume(name, real_data, tmp_path / "source")
    found = heatmap(volume, blob(volume, place(volume), 20 * max(volume.grid.spacing_mm)))
    written = formats.write(
        found, volume, tmp_path / "out", formats="dicom-sc(slices='key'),dicom-sr,dicom-ps,dicom-ko"
    )
    for path, kind in zip(written, ("sc", "sr", "ps", "ko"), strict=True):
        # A state says for its series which side an unnamed part of the body is on: unknown.
        own = (*REAL[name], "Laterality") if kind == "ps" else REAL[name]
        assert [line for line in complaints(path, *IODS[kind]) if not any(f"</{word}(" in line for word in own)] == []


def evidence(document: Dataset) -> set[str]:
    (study,) = document.CurrentRequestedProcedureEvidenceSequence
    return {
        item.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }


@pytest.mark.parametrize("name", SOURCES)
def test_the_report_refers_to_the_pictures_and_the_selection_to_all(name: str, tmp_path: Path) -> None:
    volume, files = everything(name, tmp_path)
    objects = {kind: pydicom.dcmread(path) for kind, path in files.items()}
    pictures = {objects[kind].SOPInstanceUID for kind in ("pm", "seg", "sc") if kind in objects}
    report = objects["sr"]
    groups = [
        item for item in report.ContentSequence if item.ConceptNameCodeSequence[0].CodeMeaning == "Imaging Measurements"
    ]
    for group in groups[0].ContentSequence:
        shown = [item for item in group.ContentSequence if item.ValueType == "IMAGE"]
        assert {item.ConceptNameCodeSequence[0].CodeValue for item in shown} == {"130401"}
        assert {item.RelationshipType for item in shown} == {"CONTAINS"}
        assert {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in shown} == pictures
    origin = {header.SOPInstanceUID for header in volume.source.instances}
    assert evidence(report) == pictures | origin
    selection = objects["ko"]
    assert selection.ConceptNameCodeSequence[0].CodeValue == "113009"
    others = {objects[kind].SOPInstanceUID for kind in objects if kind != "ko"}
    listed = {
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID: item.ValueType
        for item in selection.ContentSequence
        if "ReferencedSOPSequence" in item
    }
    assert set(listed) == evidence(selection) == others
    assert {listed[uid] for uid in pictures} == {"IMAGE"}
    assert {listed[uid] for uid in others - pictures} == {"COMPOSITE"}
    (description,) = (
        item.TextValue
        for item in selection.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Key Object Description"
    )
    assert description.startswith("NOT FOR DIAGNOSTIC USE. grad-cam of lesion (class 0)")
    assert selection.StudyInstanceUID == volume.source.instances[0].StudyInstanceUID


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ("a CR", "a DX")])
def test_report_and_overlay_name_one_place_to_simpleitk_and_dcm2niix(name: str, tmp_path: Path) -> None:
    volume, files = everything(name, tmp_path)
    at = place(volume)
    (point,) = (each for each in points(pydicom.dcmread(files["sr"])))
    assert np.abs(volume.grid.index(np.array(point) * (-1, -1, 1)) - at).max() <= 0.5
    image = SimpleITK.ReadImage(str(files["sc"]))
    pixels = SimpleITK.GetArrayFromImage(image).astype(int)
    k, j, i = hottest(pixels)
    assert (
        np.abs(volume.grid.index(np.array(image.TransformIndexToPhysicalPoint((i, j, k))) * (-1, -1, 1)) - at).max()
        <= 0.5
    )
    # What the report calls the peak is where the overlay is hottest, to less than a voxel.
    found = np.array(image.TransformPhysicalPointToContinuousIndex([float(mm) for mm in point]))
    assert np.abs(found - (i, j, k)).max() <= 0.51
    dcm2niix = pytest.importorskip("dcm2niix").bin
    (tmp_path / "alone").mkdir()
    shutil.copy(files["sc"], tmp_path / "alone")
    subprocess.run(
        [dcm2niix, "-z", "n", "-b", "n", "-o", tmp_path, tmp_path / "alone"], capture_output=True, check=True
    )
    (nifti,) = tmp_path.glob("*.nii")
    overlay = nibabel.load(nifti)
    colours = np.asanyarray(overlay.dataobj)
    colours = np.stack([colours[channel].astype(int) for channel in "RGB"], -1).reshape(*overlay.shape[:3], 3)
    world = overlay.affine @ [*hottest(colours), 1]
    assert np.abs(volume.grid.index(world[:3]) - at).max() <= 0.5


@pytest.mark.parametrize("name", ["a CR", "a DX"])
def test_report_and_overlay_of_a_film_name_one_pixel(name: str, tmp_path: Path) -> None:
    volume, files = everything(name, tmp_path)
    i, j, _ = place(volume)
    (point,) = points(pydicom.dcmread(files["sr"]))
    assert np.abs(np.array(point) - 0.5 - (i, j)).max() <= 0.5
    row, column = hottest(pydicom.dcmread(files["sc"]).pixel_array.astype(int))
    assert max(abs(row - j), abs(column - i)) <= 0.5


def points(report: Dataset) -> Iterator[list[float]]:
    for item in report.get("ContentSequence", ()):
        if item.ValueType.startswith("SCOORD"):
            yield list(item.GraphicData)
        yield from points(item)


def hottest(pixels: np.ndarray) -> tuple[int, ...]:
    """Return the index of the brightest colour of the colour table's upper end."""
    flat = np.argmax(pixels[..., :2].min(-1) - pixels[..., 2])
    return tuple(int(n) for n in np.unravel_index(flat, pixels.shape[:-1]))


def test_the_tiles_of_a_mosaic_are_placed_and_referred_to_as_a_whole(tmp_path: Path) -> None:
    write_mosaic(tmp_path / "source", stored_values(SHAPE), GEOMETRIES["oblique"], tags=COMPLETE)
    volume = read_dicom(tmp_path / "source")
    found = heatmap(volume, blob(volume, place(volume), 2.0))
    written = formats.write(found, volume, tmp_path / "out", formats=["dicom-sc", "dicom-sr", "dicom-ko"])
    for path, kind in zip(written, ("sc", "sr", "ko"), strict=True):
        assert complaints(path, *IODS[kind]) == []
    overlay, report, _ = (pydicom.dcmread(path) for path in written)
    (item,) = overlay.SourceImageSequence
    assert item.SpatialLocationsPreserved == "NO"
    assert overlay.NumberOfFrames == SHAPE[2]
    image = SimpleITK.ReadImage(str(written[0]))
    k, j, i = hottest(SimpleITK.GetArrayFromImage(image).astype(int))
    for point in (image.TransformIndexToPhysicalPoint((i, j, k)), next(points(report))):
        assert np.abs(volume.grid.index(np.array(point) * (-1, -1, 1)) - place(volume)).max() <= 0.5
    with pytest.raises(OutputError, match="tiles of a mosaic"):
        formats.write(found, volume, tmp_path / "out", formats=["dicom-ps"])


def test_a_selection_of_nothing_is_refused_before_anything_is_computed_and_else_not_written(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    with pytest.raises(UsageError, match="lists the other DICOM objects of an export, and this one writes none"):
        formats.check_formats("nifti,dicom-ko", volume, threshold=0.5)
    assert len(formats.check_formats("dicom-ko,dicom-seg", volume, threshold=0.5)) == 2
    # A segmentation was asked for, and has nothing to show.
    flat = np.zeros(volume.grid.shape, np.float32)
    assert formats.write(heatmap(volume, flat), volume, tmp_path / "out", formats=["dicom-seg", "dicom-ko"]) == ()
    assert key_objects_instance(made_export(volume, tmp_path, formats={"nifti": {}, "dicom-ko": {}})) is None


def test_what_is_not_written_is_not_selected(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    flat = np.zeros(volume.grid.shape, np.float32)
    # Without evidence there is no region to segment and no outline to draw, only an overlay that says so.
    found = formats.write(
        heatmap(volume, flat), volume, tmp_path / "out", formats=["dicom-sc", "dicom-seg", "dicom-ps", "dicom-ko"]
    )
    assert [path.stem.rpartition("_")[2] for path in found] == ["sc", "ko"]
    selection = pydicom.dcmread(found[1])
    assert evidence(selection) == {pydicom.dcmread(found[0]).SOPInstanceUID}
    assert complaints(found[1], "KeyObjectSelectionDocument") == []


def test_another_selection_is_another_instance(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    seen = set()
    rows: dict[str, Any] = {"dicom-sc": secondary_capture, "dicom-sr": structured_report}
    for names in (["dicom-sc"], ["dicom-sr"], ["dicom-sc", "dicom-sr"], ["dicom-sr", "dicom-sc"]):
        export = made_export(volume, tmp_path, formats={name: options_of(rows[name]) for name in names})
        (path,) = key_objects(export)
        selection = pydicom.dcmread(path)
        assert (selection.SOPClassUID, selection.SOPInstanceUID, selection.SeriesInstanceUID) == key_objects_instance(
            export
        )
        seen.add(selection.SOPInstanceUID)
    assert len(seen) == 3
