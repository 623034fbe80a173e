"""The report: valid, read by dcmqi, dcmtk and highdicom, each finding in its place and of its size, nothing claimed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from highdicom.sr import srread
from pydicom import Dataset

from formats.derived_sources import program
from formats.dicom_phantom import MARKERS
from formats.made_sources import RECIPE, SHAPE, SOURCES, blob, made_export, made_film, made_series, source
from formats.validators import complaints, of_dcmtk
from medcam.errors import OutputError, UsageError
from medcam.formats.dicom_report import structured_report, structured_report_instance
from medcam.formats.dicom_segmentation import segmentation
from medcam.options import options_of
from medcam.recipe import Recipe
from medcam.volume import Source, Volume

MEASURES = {"hit": True, "peak_distance": 3.2, "mass_in_lesion": 0.4, "lesion_size": (1.5, "mL"), "dice@otsu": np.nan}


def written(volume: Volume, folder: Path, *, most: int = 10, **changes: Any) -> pydicom.Dataset:
    (path,) = structured_report(made_export(volume, folder, **changes), most=most)
    return pydicom.dcmread(path)


def three(volume: Volume) -> np.ndarray:
    """Return three separate blobs, with peaks of about 1, 0.8 and 0.6."""
    parts = [height * blob(volume, at, 1.2) for height, at in ((1.0, (4, 9, 4)), (0.8, (13, 3, 1)), (0.6, (14, 10, 4)))]
    return np.asarray(np.max(parts, axis=0))


def items(dataset: Dataset) -> Iterable[Dataset]:
    """Return every content item, however deep."""
    for item in dataset.get("ContentSequence", ()):
        yield item
        yield from items(item)


def named(dataset: Dataset, meaning: str) -> list[Dataset]:
    return [item for item in items(dataset) if item.ConceptNameCodeSequence[0].CodeMeaning == meaning]


def groups(dataset: Dataset) -> list[Dataset]:
    return named(dataset, "Measurement Group")


def value(item: Dataset) -> tuple[float, str]:
    measured = item.MeasuredValueSequence[0]
    return float(measured.NumericValue), measured.MeasurementUnitsCodeSequence[0].CodeValue


def labelled(group: Dataset) -> dict[str, tuple[float, str]]:
    """Return the numbers of a group by what they are called: their tracking identifier, or else their concept."""
    found = {}
    for item in group.ContentSequence:
        if item.ValueType == "NUM":
            words = [each.TextValue for each in item.get("ContentSequence", ()) if each.ValueType == "TEXT"]
            found[words[0] if words else item.ConceptNameCodeSequence[0].CodeMeaning] = value(item)
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_the_validator_has_nothing_against_a_report_on(name: str, tmp_path: Path) -> None:
    written(source(tmp_path / "source", name), tmp_path, measures=MEASURES)
    assert complaints(tmp_path / "out_sr.dcm", "Comprehensive3DSR") == []


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ("a CR", "a DX")])
def test_the_peak_is_told_in_the_space_of_the_source_where_simpleitk_finds_it(name: str, tmp_path: Path) -> None:
    volume = source(tmp_path / "source", name)
    at = [share * n for share, n in zip((0.61, 0.61, 0.7), volume.grid.shape, strict=True)]
    report = written(volume, tmp_path, relevance=blob(volume, at, 3.0))
    (point,) = (item for item in items(report) if item.ValueType == "SCOORD3D")
    assert (point.GraphicType, len(point.GraphicData)) == ("POINT", 3)
    assert point.ReferencedFrameOfReferenceUID == volume.source.instances[0].FrameOfReferenceUID
    x, y, z = point.GraphicData
    assert np.abs(volume.grid.index(np.array([-x, -y, z])) - at).max() <= 0.5
    if name in ("a CT", "an oblique MR"):
        files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "source"))
        found = SimpleITK.ReadImage(files).TransformPhysicalPointToContinuousIndex(
            [float(mm) for mm in point.GraphicData]
        )
        assert np.abs(np.array(found) - at).max() <= 0.5


@pytest.mark.parametrize("orientation", [("L", "F"), ("P", "F"), None])
def test_the_peak_on_a_film_is_a_point_of_the_film(orientation: tuple[str, str] | None, tmp_path: Path) -> None:
    volume = made_film(tmp_path / "film", "DX", orientation, PixelSpacing=["0.2", "0.3"])
    report = written(volume, tmp_path, relevance=blob(volume, (15.2, 4.1, 0), 0.7))
    (point,) = (item for item in items(report) if item.ValueType == "SCOORD")
    # The centre of the first pixel is at 0.5, 0.5: an image's coordinates start at its corner.
    assert (point.GraphicType, list(point.GraphicData)) == ("POINT", [15.5, 4.5])
    (image,) = point.ContentSequence
    assert image.RelationshipType == "SELECTED FROM"
    reference = image.ReferencedSOPSequence[0]
    assert reference.ReferencedSOPInstanceUID == volume.source.instances[0].SOPInstanceUID


def test_without_a_named_space_the_peak_is_a_point_of_its_slice(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series", tags={"FrameOfReferenceUID": None})
    report = written(volume, tmp_path, relevance=blob(volume, (13, 3, 1), 1.2))
    (point,) = (item for item in items(report) if item.ValueType == "SCOORD")
    assert list(point.GraphicData) == [13.5, 3.5]
    reference = point.ContentSequence[0].ReferencedSOPSequence[0]
    assert reference.ReferencedSOPInstanceUID == volume.source.header(1).SOPInstanceUID
    assert complaints(tmp_path / "out_sr.dcm", "Comprehensive3DSR") == []


def test_findings_are_told_strongest_first_with_place_and_size(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    relevance = three(volume)
    whole, *found = groups(written(volume, tmp_path, relevance=relevance))
    assert len(found) == 3
    # A voxel is 0.8 x 0.8 x 2.5 mm. Each blob stands alone, so that its own height tells its voxels.
    hot = relevance >= np.float32(0.3) * relevance.max()
    near = [np.s_[:9, 5:, 3:], np.s_[9:, :7, :3], np.s_[10:, 7:, 3:]]
    for group, region, peak in zip(found, near, ((4, 9, 4), (13, 3, 1), (14, 10, 4)), strict=True):
        numbers = labelled(group)
        assert numbers["Volume"] == (pytest.approx(hot[region].sum() * 0.8 * 0.8 * 2.5), "mm3")
        assert numbers["Gradient-weighted class activation"][0] == pytest.approx(relevance[peak])
        share = numbers["peak relative to the maximum of the heatmap"]
        assert share == (pytest.approx(relevance[peak] / relevance.max()), "1")
        (point,) = (item for item in group.ContentSequence if item.ValueType == "SCOORD3D")
        lps = volume.grid.world_mm(np.array(peak)) * (-1, -1, 1)
        assert list(point.GraphicData) == pytest.approx(lps, abs=1e-4)
    numbers = labelled(whole)
    assert numbers["regions above the threshold"][0] == 3
    assert numbers["Volume"][0] == pytest.approx(hot.sum() * 1.6)
    assert numbers["share of the maximum"][0] == 0.3
    cut = groups(written(volume, tmp_path, relevance=relevance, most=1))
    assert len(cut) == 2
    assert labelled(cut[0])["regions above the threshold"][0] == 3


@pytest.mark.parametrize(("spaced", "expected"), [(True, True), (False, False)])
def test_a_film_has_an_area_only_where_its_pixels_have_a_size(spaced: bool, expected: bool, tmp_path: Path) -> None:
    tags = {"PixelSpacing": ["0.2", "0.3"]} if spaced else {}
    volume = made_film(tmp_path / "film", "CR", **tags)
    relevance = np.zeros(volume.grid.shape, np.float32)
    relevance[3:5, 7:10] = 1.0
    whole, finding = groups(written(volume, tmp_path, relevance=relevance))
    for group in (whole, finding):
        assert labelled(group).get("Area") == ((pytest.approx(6 * 0.06), "mm2") if expected else None)
        assert "Volume" not in labelled(group)


def test_class_score_and_what_was_measured_are_told_with_their_units(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    whole, finding = groups(written(volume, tmp_path, measures=MEASURES, notes=("A note.",)))
    for group in (whole, finding):
        numbers = labelled(group)
        assert (numbers["logit"], numbers["Probability"]) == ((2.5, "1"), (0.9, "1"))
        assert [item.TextValue for item in named(group, "Classification")] == ["lesion (class 0)"]
    numbers = labelled(whole)
    assert numbers["hit"] == (1.0, "1")
    assert numbers["peak distance"] == (3.2, "mm")
    assert numbers["mass in lesion"] == (0.4, "1")
    assert numbers["lesion size"] == (1.5, "ml")
    assert "dice@otsu" not in numbers
    comments = [item.TextValue for item in named(whole, "Comment")]
    assert "Not defined: dice@otsu." in comments
    assert "A note." in comments
    assert "Ratio" in {item.ConceptNameCodeSequence[0].CodeMeaning for item in whole.ContentSequence}
    probability = replace(RECIPE, score="probability")
    (numbers, _) = (labelled(group) for group in groups(written(volume, tmp_path, recipe=probability, score=0.7)))
    assert numbers["Probability"] == (0.7, "1")
    assert "probability" not in numbers


@pytest.mark.parametrize("fill", [0.0, -1.0, np.nan])
def test_no_evidence_is_a_finding_too(fill: float, tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    report = written(volume, tmp_path, relevance=np.full(SHAPE, fill, np.float32))
    assert complaints(tmp_path / "out_sr.dcm", "Comprehensive3DSR") == []
    (group,) = groups(report)
    (absent,) = (
        item
        for item in group.ContentSequence
        if item.ValueType == "CODE" and item.ConceptCodeSequence[0].CodeMeaning == "Absent"
    )
    assert absent.ConceptNameCodeSequence[0].CodeMeaning == "Gradient-weighted class activation"
    assert any("no positive evidence" in item.TextValue for item in named(group, "Comment"))
    assert labelled(group)["regions above the threshold"][0] == 0
    assert labelled(group).get("share of the image that was not looked at") == ((1.0, "1") if np.isnan(fill) else None)
    assert not [item for item in items(report) if item.ValueType.startswith("SCOORD")]
    assert "no positive evidence" in report.SeriesDescription


def test_the_recipe_is_inside_and_nobody_vouches_for_it(tmp_path: Path) -> None:
    report = written(made_series(tmp_path / "series"), tmp_path)
    assert (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    assert "VerifyingObserverSequence" not in report
    parameters = "".join(item.TextValue for item in named(report, "Algorithm Parameters"))
    assert Recipe.from_json(json.loads(parameters)) == RECIPE
    assert [item.TextValue for item in named(report, "Algorithm Name")] == ["medcam grad-cam"]
    assert [item.ConceptCodeSequence[0].CodeMeaning for item in named(report, "Observer Type")] == ["Device"]
    assert [item.TextValue for item in named(report, "Device Observer Name")] == ["medcam"]
    (language,) = named(report, "Language of Content Item and Descendants")
    assert language.ConceptCodeSequence[0].CodeValue == "en-US"
    for group in groups(report):
        assert any("NOT FOR DIAGNOSTIC USE. Research use only" in item.TextValue for item in named(group, "Comment"))
    assert report.SeriesDescription == "grad-cam report: lesion (class 0) NOT FOR DIAGNOSTIC USE"
    del report.PatientName, report.PatientID
    assert not [marker for marker in MARKERS if marker in str(report)]


def test_evidence_is_the_source_and_the_procedure_is_its_own(tmp_path: Path) -> None:
    procedure = Dataset()
    procedure.CodeValue, procedure.CodingSchemeDesignator, procedure.CodeMeaning = "24566-5", "LN", "CT Head"
    volume = made_series(tmp_path / "series", tags={"ProcedureCodeSequence": [procedure]})
    report = written(volume, tmp_path)
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == volume.source.instances[0].SeriesInstanceUID
    uids = [header.SOPInstanceUID for header in volume.source.instances]
    assert [item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence] == uids
    library = named(report, "Image Library Group")[0]
    assert [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in library.ContentSequence] == uids
    (reported,) = named(report, "Procedure reported")
    assert reported.ConceptCodeSequence[0].CodeMeaning == "CT Head"


@pytest.mark.parametrize("name", SOURCES)
def test_dcmqi_dcmtk_and_highdicom_read_the_report(name: str, tmp_path: Path) -> None:
    reader, printer = program("tid1500reader"), of_dcmtk("dsrdump")
    volume = source(tmp_path / "source", name)
    report = written(volume, tmp_path, measures=MEASURES)
    path, found = tmp_path / "out_sr.dcm", tmp_path / "found.json"
    subprocess.run([reader, "--inputDICOM", path, "--outputMetadata", found], check=True, capture_output=True)
    whole, finding = json.loads(found.read_text())["Measurements"]
    assert (whole["TrackingIdentifier"], finding["TrackingIdentifier"]) == ("medcam heatmap", "medcam finding 1")
    assert finding["TrackingUniqueIdentifier"] == named(groups(report)[1], "Tracking Unique Identifier")[0].UID
    numbers = {item["quantity"]["CodeMeaning"]: float(item["value"]) for item in finding["measurementItems"]}
    assert numbers["Gradient-weighted class activation"] == pytest.approx(
        labelled(groups(report)[1])["Gradient-weighted class activation"][0]
    )
    assert numbers["Probability"] == 0.9
    assert whole["measurementAlgorithmIdentification"]["AlgorithmName"] == "medcam grad-cam"
    printed = subprocess.run([printer, path], check=True, capture_output=True, text=True).stdout
    assert "Imaging Measurement Report" in printed
    assert "UNVERIFIED" in printed
    assert "(POINT," in printed
    assert [group.tracking_identifier for group in srread(path).content.get_image_measurement_groups()] == [
        "medcam heatmap",
        "medcam finding 1",
    ]


def test_every_tracking_identifier_has_a_uid_of_its_own_that_stays(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    reports = [written(volume, tmp_path, relevance=three(volume), measures=MEASURES) for _ in range(2)]
    uids = [[named(group, "Tracking Unique Identifier")[0].UID for group in groups(report)] for report in reports]
    assert uids[0] == uids[1]
    assert len(set(uids[0])) == 4
    assert max(len(uid) for uid in uids[0]) <= 64


def test_another_content_is_another_instance_and_it_is_known_before(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    seen = set()
    shown = {"dicom-seg": options_of(segmentation)}
    for changes in ({}, {"measures": MEASURES}, {"threshold": 0.5}, {"formats": shown}, {"most": 3}):
        most = changes.pop("most", 10)
        report = written(volume, tmp_path, most=most, **changes)
        instance = structured_report_instance(made_export(volume, tmp_path, **changes), most=most)
        assert (report.SOPClassUID, report.SOPInstanceUID, report.SeriesInstanceUID) == instance
        seen.add(report.SOPInstanceUID)
    assert len(seen) == 5


def test_what_cannot_be_reported_is_refused(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    with pytest.raises(UsageError, match="most is a whole number"):
        written(volume, tmp_path, most=0)
    plain = Volume(volume.voxels, volume.grid, "a.u.", Source("nifti", ""))
    with pytest.raises(OutputError, match="read from nifti"):
        written(plain, tmp_path)
    assert not (tmp_path / "out_sr.dcm").exists()
