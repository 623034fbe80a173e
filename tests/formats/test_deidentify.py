"""De-identified sources: nothing of the patient is left by anybody's list, and all that is derived still belongs together."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset
from pydicom.datadict import keyword_for_tag
from pydicom.tag import Tag

from formats.dicom_phantom import GEOMETRIES, MARKERS, stored_values
from formats.identified_phantom import TRACES, UID_ROOT, identified, standard_tags
from formats.made_sources import heatmap, made_enhanced, made_film, made_series
from formats.validators import complaints, disagreements
from medcam.errors import InputError, OutputError, UsageError
from medcam.formats import WRITERS, check_formats, write
from medcam.formats.deidentify import deidentified, deidentified_heatmap, new_secret, read_secret
from medcam.geometry import Grid
from medcam.volume import Frame, Source, Volume

SECRET = b"a secret of a test, and long enough"


def volume_of(header: Dataset) -> Volume:
    """One slice whose source has this header."""
    grid = Grid((7, 5, 1), GEOMETRIES["oblique"], f"{UID_ROOT}4")
    source = Source("dicom", "ab" * 32, "MR_s4", instances=(header,), slices=(Frame(0, None),))
    return Volume(stored_values((7, 5, 1)), grid, "a.u.", source)


def clean_header(header: Dataset, secret: bytes = SECRET) -> Dataset:
    clean: Dataset = deidentified(volume_of(header), secret).source.instances[0]
    return clean


def in_bytes(dataset: Dataset) -> bytes:
    """The dataset as a file, with all that its items hold."""
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@pytest.fixture(scope="module")
def everything() -> Dataset:
    """A header in which every standard attribute tells of the patient."""
    return identified(standard_tags())


@pytest.fixture(scope="module")
def cleaned(everything: Dataset) -> Dataset:
    return clean_header(everything)


def table() -> dict[str, list[tuple[int, ...]]]:
    from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector

    found: dict[str, list[tuple[int, ...]]] = dicom_anonymization_database_selector("dicomfields_2026c")
    return found


def test_the_table_is_the_whole_table_of_its_edition() -> None:
    assert len(set(table()["ALL_TAGS"])) == 655


def test_nothing_of_the_patient_is_left_of_any_attribute_of_the_table() -> None:
    # Groups 0 and 2 are of messages and of files, and never stand in a data set.
    listed = [Tag(numbers) for numbers in table()["ALL_TAGS"] if len(numbers) == 2 and numbers[0] >= 8]
    listed += [Tag(0x50000030), Tag(0x60003000), Tag(0x60004000), Tag(0x60223000)]
    header = identified(tag for tag in listed if keyword_for_tag(tag))
    for number in (0x50003000, 0x60003000, 0x60223000):
        header.add_new(number, "OW", b"PHI ")
    # Attributes newer than pydicom's dictionary, which a scanner may write all the same.
    for tag in listed:
        if not keyword_for_tag(tag):
            header.add_new(tag, "LO", "PHI newer")
    before = in_bytes(header)
    assert all(trace in before for trace in TRACES)
    after = in_bytes(clean_header(header))
    assert [trace for trace in TRACES if trace in after] == []


def test_each_attribute_gets_what_the_table_asks_for(everything: Dataset, cleaned: Dataset) -> None:
    ours = {"PatientName", "PatientID"}
    seen: set[str] = set()
    for name in ("X", "Z", "U", "D", "Z_D", "X_Z", "X_D", "X_Z_D"):
        for numbers in table()[f"{name}_TAGS"]:
            tag = Tag(numbers[:2])
            if len(numbers) > 2 or tag not in everything or keyword_for_tag(tag) in ours:
                continue
            before, after = everything[tag], cleaned.get(tag)
            seen.add(name)
            if name == "X":
                assert after is None, tag
            elif name in ("Z", "X_Z"):
                assert after is not None, tag
                assert after.is_empty, tag
            elif name == "U":
                assert after is not None, tag
                assert str(after.value).startswith("2.25."), tag
            elif before.VR == "SQ":
                assert after is None, tag
            else:
                assert after is not None, tag
                assert after.VM == 1, tag
                assert after.value != before.value, tag
    assert seen == {"X", "Z", "U", "D", "Z_D", "X_Z", "X_D", "X_Z_D"}


def test_what_gdcms_profile_removes_or_replaces_is_gone_here_too(everything: Dataset, cleaned: Dataset) -> None:
    import gdcm

    listed = gdcm.Anonymizer.GetBasicApplicationLevelConfidentialityProfileAttributes()
    tags = [Tag(each.GetGroup(), each.GetElement()) for each in listed]
    assert len([tag for tag in tags if tag in everything]) > 40
    for tag in tags:
        if tag in everything:
            assert tag not in cleaned or cleaned[tag].value != everything[tag].value, keyword_for_tag(tag)


def test_what_orthancs_profile_removes_or_replaces_is_gone_here_too(
    everything: Dataset, cleaned: Dataset, tmp_path: Path
) -> None:
    from pacs import servers

    node = servers.orthanc(tmp_path / "orthanc")
    node.start()
    try:
        kept = node.post("/instances", in_bytes(everything)).json()["ID"]
        answer = node.post(f"/instances/{kept}/anonymize", json.dumps({"DicomVersion": "2021b"})).content
    finally:
        node.kill()
    theirs = pydicom.dcmread(io.BytesIO(answer))
    changed = [
        tag
        for tag in everything.keys()  # noqa: SIM118  iterating a Dataset parses its elements
        if not tag.is_private and (tag not in theirs or theirs[tag].value != everything[tag].value)
    ]
    assert len(changed) > 500
    for tag in changed:
        assert tag not in cleaned or cleaned[tag].value != everything[tag].value, keyword_for_tag(tag)


def test_items_at_any_depth_are_cleaned_and_private_attributes_go(everything: Dataset, cleaned: Dataset) -> None:
    kept = [element for element in cleaned if element.VR == "SQ" and element.value]
    assert len(kept) > 300

    def visit(dataset: Dataset, depth: int) -> int:
        assert not [tag for tag in dataset.keys() if tag.is_private]  # noqa: SIM118
        deepest = depth
        for element in dataset:
            if depth and element.keyword in ("PatientName", "StudyDescription", "InstanceCreatorUID", "StudyDate"):
                assert str(element.value) in ("", "None") or str(element.value).startswith("2.25.")
            if element.VR == "SQ":
                deepest = max([deepest, *(visit(item, depth + 1) for item in element.value)])
        return deepest

    assert visit(cleaned, 0) >= 3


def test_the_header_says_what_was_done(cleaned: Dataset) -> None:
    assert cleaned.PatientIdentityRemoved == "YES"
    assert cleaned.LongitudinalTemporalInformationModified == "REMOVED"
    codes = cleaned.DeidentificationMethodCodeSequence
    assert ("113100", "DCM") in [(item.get("CodeValue"), item.get("CodingSchemeDesignator")) for item in codes]
    assert "PS3.15" in cleaned.DeidentificationMethod
    assert len(cleaned.DeidentificationMethod) <= 64
    assert not any(trace in str(cleaned.file_meta).encode() for trace in TRACES)


def test_what_was_done_before_is_kept() -> None:
    header = identified([])
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "113101", "DCM", "Clean Pixel Data Option"
    header.DeidentificationMethodCodeSequence = [item]
    twice = clean_header(clean_header(header))
    assert [each.CodeValue for each in twice.DeidentificationMethodCodeSequence] == ["113101", "113100"]


def test_the_header_that_was_given_stays_as_it_was(everything: Dataset) -> None:
    before = in_bytes(everything)
    clean_header(everything)
    assert in_bytes(everything) == before


def test_one_secret_gives_one_pseudonym_and_another_secret_another() -> None:
    header = identified([Tag("PatientID"), Tag("PatientName"), Tag("StudyInstanceUID")])
    other_series = identified([Tag("PatientID"), Tag("StudyInstanceUID")])
    other_series.SOPInstanceUID = f"{UID_ROOT}77"
    other_patient = identified([Tag("PatientID")])
    other_patient.PatientID = "SOMEBODY-ELSE"
    first, second, third = map(clean_header, (header, other_series, other_patient))
    assert first.PatientID == second.PatientID != third.PatientID
    assert first.StudyInstanceUID == second.StudyInstanceUID
    assert first.SOPInstanceUID != second.SOPInstanceUID
    strange = clean_header(header, b"another secret of the same length..")
    assert strange.PatientID != first.PatientID
    assert strange.StudyInstanceUID != first.StudyInstanceUID


def test_patients_without_a_number_are_told_apart_by_what_is_known() -> None:
    nameless, named, other = (identified([]) for _ in range(3))
    named.PatientName, other.PatientName = "A", "B"
    stranger = identified([])
    stranger.StudyInstanceUID = f"{UID_ROOT}99"
    ids = [clean_header(each).PatientID for each in (nameless, named, other, stranger)]
    assert len(set(ids)) == 4
    assert all(len(each) == 16 for each in ids)


def test_digests_and_places_lead_to_no_original(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    clean = deidentified(volume, SECRET)
    assert clean.source.sha256 != volume.source.sha256
    assert len(clean.source.sha256) == 64
    assert clean.grid.frame_of_reference not in (None, volume.grid.frame_of_reference)
    assert {each.FrameOfReferenceUID for each in clean.source.instances} == {clean.grid.frame_of_reference}
    assert (clean.voxels == volume.voxels).all()
    assert (clean.grid.affine == volume.grid.affine).all()
    again = deidentified(volume, SECRET)
    assert (again.source.sha256, again.grid) == (clean.source.sha256, clean.grid)


def test_a_series_without_a_number_is_not_labelled_by_its_uid(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series", number=None)
    clean = deidentified(volume, SECRET)
    assert clean.source.label != volume.source.label
    assert clean.source.label.startswith("MR_")


def test_an_image_that_is_not_dicom_loses_its_digest() -> None:
    volume = Volume(
        stored_values((7, 5, 4)), Grid((7, 5, 4), GEOMETRIES["oblique"]), "a.u.", Source("nifti", "cd" * 32)
    )
    clean = deidentified(volume, SECRET)
    assert clean.source == replace(volume.source, sha256=clean.source.sha256)
    assert clean.source.sha256 != volume.source.sha256


def test_a_heatmap_made_before_goes_with_its_de_identified_source(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    before = heatmap(volume)
    before = replace(before, recipe=replace(before.recipe, inputs=(volume.source.sha256,)))
    clean = deidentified(volume, SECRET)
    after = deidentified_heatmap(before, clean, SECRET)
    assert after.recipe.inputs == (clean.source.sha256,)
    assert after.source is clean.source
    assert after.grid.is_close(clean.grid)
    assert (after.relevance == before.relevance).all()
    write(after, clean, tmp_path / "out", formats="dicom-sc")


def test_text_burned_into_pixels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="burned into its pixels"):
        deidentified(made_series(tmp_path / "series", tags={"BurnedInAnnotation": "YES"}), SECRET)


def test_what_headers_cannot_hide_is_said(tmp_path: Path) -> None:
    notes = " ".join(deidentified(made_series(tmp_path / "series"), SECRET).source.notes)
    assert "look before you share" in notes
    assert "face" in notes


def test_a_secret_in_a_file_is_made_once_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    made = read_secret(path)
    assert read_secret(path) == made
    assert path.stat().st_mode & 0o077 == 0
    assert new_secret() != new_secret()
    path.write_text("short")
    with pytest.raises(UsageError, match="too few for a secret"):
        read_secret(path)
    with pytest.raises(UsageError, match="cannot read or make"):
        read_secret(tmp_path / "nowhere" / "secret")


SOURCES = {
    "a CT": lambda folder: made_series(folder, "axial", modality="CT", slope=1, intercept=-1024),
    "an oblique MR": made_series,
    "an enhanced MR": made_enhanced,
    "a DX": lambda folder: made_film(folder, "DX", ImagerPixelSpacing=["0.14", "0.14"]),
}
# Formats that a film without a place in the patient cannot have are refused by `check_formats`.
DICOM = [name for name in WRITERS if name.startswith("dicom-")]


def formats_for(volume: Volume) -> list[str]:
    possible = []
    for name in DICOM:
        with contextlib.suppress(OutputError):
            # Key objects are a list of the others.
            check_formats([*possible, name], volume, threshold=0.4)
            possible.append(name)
    return possible


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "an oblique MR" else pytest.mark.slow) for name in SOURCES]
)
def test_what_is_derived_is_valid_and_belongs_together(name: str, tmp_path: Path) -> None:
    volume = SOURCES[name](tmp_path / "source")
    clean = deidentified(volume, SECRET)
    formats = formats_for(clean)
    assert {"dicom-sc", "dicom-seg"} <= set(formats)
    files = write(heatmap(clean), clean, tmp_path / "out", formats=formats, threshold=0.4)
    derived = [pydicom.dcmread(path) for path in files if path.suffix == ".dcm"]
    assert len(derived) >= len(formats) - 1
    iods = {"MultiframeTrueColorSCImage", "SCImage", "Segmentation", "ParametricMap", "Comprehensive3DSR",
            "KeyObjectSelectionDocument", "GrayscaleSoftcopyPresentationState", "ColorSoftcopyPresentationState",
            "PseudoColorSoftcopyPresentationState"}  # fmt: skip
    for path in files:
        if path.suffix == ".dcm":
            found = complaints(path, *iods)
            assert [line for line in found if line.startswith("Error")] == []
    sources = [tmp_path / f"clean{n}.dcm" for n in range(len(clean.source.instances))]
    for path, header in zip(sources, clean.source.instances, strict=True):
        header.save_as(path, enforce_file_format=True)
    assert disagreements([*sources, *(path for path in files if path.suffix == ".dcm")]) == []
    originals = {
        str(header.get(keyword)) for header in volume.source.instances for keyword in UIDS if header.get(keyword)
    }
    known = {str(header.SOPInstanceUID) for header in clean.source.instances} | {
        str(one.SOPInstanceUID) for one in derived
    }
    for one in derived:
        assert one.PatientIdentityRemoved == "YES"
        assert (one.PatientID, one.StudyInstanceUID) == (derived[0].PatientID, derived[0].StudyInstanceUID)
        assert "113100" in [item.CodeValue for item in one.DeidentificationMethodCodeSequence]
        assert one.LongitudinalTemporalInformationModified == "REMOVED"
        assert not one.get("StudyDate")
        assert not one.get("PatientBirthDate")
        referred = {element.value for element in every_element(one) if element.keyword == "ReferencedSOPInstanceUID"}
        assert referred
        assert {str(uid) for uid in referred} <= known
        dates = {str(element.value) for element in every_element(one) if element.VR == "DA" and element.value}
        assert dates <= {"19000101"}
        moments = {str(element.value)[:8] for element in every_element(one) if element.VR == "DT" and element.value}
        assert moments <= {"19000101"}
        content = in_bytes(one)
        assert [uid for uid in originals if uid.encode() in content] == []
        assert [marker for marker in (*MARKERS, "A1", "Ref^Erring") if f"\0{marker}".encode() in content] == []


UIDS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")


def every_element(dataset: Dataset) -> Iterator[pydicom.DataElement]:
    for element in dataset:
        yield element
        if element.VR == "SQ":
            for item in element.value:
                yield from every_element(item)
