"""What derived objects share: a library's object from a real header's defects, the source's own patient in it, and stable UIDs."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pydicom
import pytest
from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from highdicom.sr import CodedConcept
from pydicom.uid import KeyObjectSelectionDocumentStorage

from formats.derived_sources import disagreements, export_of, series
from formats.dicom_phantom import GEOMETRIES, MARKERS, stored_values, write_series
from medcam.errors import OutputError
from medcam.formats.dicom import read_dicom
from medcam.formats.dicom_derived import (
    add_references,
    derived_instance,
    derived_uid,
    finalised,
    sanitised,
    source_instances,
)
from medcam.formats.dicom_segmentation import segmentation
from medcam.recipe import Recipe
from medcam.volume import Frame, Heatmap, Source, Volume

RECIPE = Recipe("net", "ab" * 32, "grad-cam", "features.3", "lesion (class 0)", inputs=("cd" * 32,))
SHAPE = (7, 5, 4)
WHEN = datetime(2024, 5, 6, 23, 30, 15, tzinfo=timezone.utc)


def read(folder: Path, **tags: object) -> Volume:
    write_series(folder, stored_values(SHAPE), GEOMETRIES["oblique"], tags=tags)
    return read_dicom(folder)


def heatmap(volume: Volume, **changes: object) -> Heatmap:
    given = {"recipe": RECIPE, "target": RECIPE.target, "score": 2.5, **changes}
    return Heatmap(np.ones(volume.grid.shape, np.float32), volume.grid, volume.source, **given)  # type: ignore[arg-type]


def key_objects(headers: list[pydicom.Dataset]) -> KeyObjectSelectionDocument:
    """Return a selection of images as highdicom makes it, with a text that only UTF-8 holds."""
    title = CodedConcept("113009", "DCM", "For Research")
    content = KeyObjectSelection(title, headers, description="Läsion 病変")
    return KeyObjectSelectionDocument(
        headers, content, series_instance_uid="1.2.3", series_number=5, sop_instance_uid="1.2.4", instance_number=1,
        manufacturer="somebody", institution_name="somewhere",
    )  # fmt: skip


# Each as it is found in real files, and each makes highdicom stop.
DEFECTS = {
    "an empty character set": {"SpecificCharacterSet": ""},
    "a sex of no known form": {"PatientSex": "U"},
    "no number of the study": {"StudyID": None},
}


@pytest.mark.parametrize("case", DEFECTS)
def test_a_library_takes_sanitised_headers_and_the_patient_comes_back(case: str, tmp_path: Path) -> None:
    volume = read(tmp_path / "series", **DEFECTS[case], PatientComments="a comment")
    with pytest.raises((ValueError, AttributeError)):
        key_objects(list(volume.source.instances))
    heat = heatmap(volume)
    instance = derived_instance(heat, sop_class=KeyObjectSelectionDocumentStorage, role="test")
    made = key_objects([sanitised(header) for header in volume.source.instances])
    assert not any(marker in str(made) for marker in MARKERS)
    finalised(made, heat, instance=instance, number=9007, when=WHEN).save_as(
        tmp_path / "ko.dcm", enforce_file_format=True
    )
    dataset, source = pydicom.dcmread(tmp_path / "ko.dcm"), pydicom.dcmread(tmp_path / "series" / "000.dcm")
    for keyword in ("PatientName", "PatientID", "PatientSex", "PatientComments", "StudyInstanceUID"):
        assert dataset.get_item(keyword).value == source.get_item(keyword).value, keyword
    assert (dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.SeriesInstanceUID) == instance
    assert (dataset.SeriesNumber, dataset.Modality, dataset.Manufacturer) == (9007, "KO", "medcam")
    assert dataset.SeriesDescription == "grad-cam: lesion (class 0) NOT FOR DIAGNOSTIC USE"
    assert len(dataset.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]) > 0
    assert len(dataset.ContributingEquipmentSequence) == 1


def test_what_the_source_says_with_no_value_stays_where_a_standard_object_may_hold_it(tmp_path: Path) -> None:
    empty = {"StudyDescription": "", "PatientSize": None, "ClinicalTrialSiteID": "", "DeidentificationMethod": ""}
    volume = series(tmp_path / "source", "oblique", tags=empty | {"ClinicalTrialSponsorName": "a sponsor"})
    export = export_of(volume, tmp_path)
    (path,) = segmentation(export)
    dataset = pydicom.dcmread(path)
    assert [keyword in dataset for keyword in empty] == [True, False, True, False]
    different = [line for line in disagreements(tmp_path / "source", path) if "DeidentificationMethod" not in line]
    assert different == []


def test_texts_however_deep_fit_the_sources_character_set(tmp_path: Path) -> None:
    def text_of(**tags: object) -> str:
        volume = read(tmp_path / str(tags), **tags)
        made = key_objects([sanitised(header) for header in volume.source.instances])
        heat = heatmap(volume)
        final = finalised(
            made, heat, instance=derived_instance(heat, sop_class="1.2", role="x"), number=9001, when=WHEN
        )
        assert any("病" in str(item.get("TextValue")) for item in made.ContentSequence)
        final.save_as(tmp_path / "ko.dcm", enforce_file_format=True)
        (text,) = [
            item.TextValue for item in pydicom.dcmread(tmp_path / "ko.dcm").ContentSequence if "TextValue" in item
        ]
        return str(text)

    assert text_of(SpecificCharacterSet="ISO_IR 100") == "Lasion"
    assert text_of(SpecificCharacterSet="ISO_IR 192") == "Läsion 病変"


def test_the_moment_is_written_in_the_sources_time_zone(tmp_path: Path) -> None:
    volume = read(tmp_path, TimezoneOffsetFromUTC="-0330")
    heat = heatmap(volume)
    when = WHEN.astimezone(timezone(timedelta(hours=2)))
    final = finalised(
        pydicom.Dataset(), heat, instance=derived_instance(heat, sop_class="1.2", role="x"), number=4, when=when
    )
    assert (final.ContentDate, final.ContentTime, final.TimezoneOffsetFromUTC) == ("20240506", "200015", "-0330")
    assert final.SeriesNumber == 104


def test_uids_change_with_whatever_changes_the_object_and_with_nothing_else(tmp_path: Path) -> None:
    volume = read(tmp_path)
    heat = heatmap(volume)
    slices = tuple(Frame(0, n + 1) for n in range(SHAPE[2]))
    resampled = replace(volume.source, slices=(None,) * SHAPE[2])
    affine = volume.grid.affine.copy()
    affine[0, 3] += 0.5
    moved = replace(volume.grid, affine=affine)
    others = [
        derived_uid(heat, "another role"),
        derived_uid(heatmap(volume, recipe=replace(RECIPE, seed=1)), "role"),
        derived_uid(replace(heat, source=replace(volume.source, slices=slices)), "role"),
        derived_uid(replace(heat, source=resampled), "role"),
        derived_uid(replace(heat, source=resampled, grid=moved), "role"),
    ]
    assert len({derived_uid(heat, "role"), *others}) == 6
    again = heatmap(read_dicom(tmp_path))
    assert derived_uid(again, "role") == derived_uid(heat, "role")
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in others)


def test_frames_of_multi_frame_images_are_named_and_each_image_once(tmp_path: Path) -> None:
    volume = read(tmp_path)
    two = volume.source.instances[:2]
    slices = (Frame(0, 3), Frame(0, 1), None, Frame(1, 2))
    dataset = pydicom.Dataset()
    add_references(dataset, replace(volume.source, instances=two, slices=slices), same_place=True)
    assert [item.ReferencedFrameNumber for item in dataset.SourceImageSequence] == [[1, 3], 2]
    assert [item.SpatialLocationsPreserved for item in dataset.SourceImageSequence] == ["YES", "YES"]
    (series,) = dataset.ReferencedSeriesSequence
    assert [item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence] == [
        header.SOPInstanceUID for header in two
    ]
    resampled = pydicom.Dataset()
    add_references(resampled, replace(volume.source, instances=two, slices=(None, None)), same_place=False)
    assert ["ReferencedFrameNumber" in item for item in resampled.SourceImageSequence] == [False, False]
    assert [item.SpatialLocationsPreserved for item in resampled.SourceImageSequence] == ["NO", "NO"]


def test_a_source_that_cannot_be_referred_to_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"read from nifti.*NIfTI or PNG"):
        source_instances(Source("nifti", ""))
