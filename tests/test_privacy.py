"""The patient's identity goes from the source's headers into those of derived DICOM objects and of what is sent, and nowhere else.

Written over the table of formats: a new one is covered by being there.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import logging
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom
import pytest
from PIL import Image
from pydicom import Dataset

from formats.dicom_phantom import GEOMETRIES, stored_values, write_series
from medcam.cli import main
from medcam.formats import CHECKS, WRITERS, read
from pacs.servers import free_port

# What a header says of a patient, each word found nowhere else.
IDENTITY = {
    "PatientName": "Quixotic^Zebedee",
    "PatientID": "MRN-7719-ZQ",
    "PatientBirthDate": "19130317",
    "PatientAddress": "Xylophone Lane 5",
    "PatientTelephoneNumbers": "0815-4711",
    "PatientComments": "brother of Balthazarq",
    "OtherPatientNames": "Oldname^Zebulonq",
    "PatientMotherBirthName": "Vortexina",
    "AccessionNumber": "ACC-ZQ-551",
    "StudyID": "STUDYZQ77",
    "StudyDescription": "follow-up of Zebedeeq",
    "ReferringPhysicianName": "Snorkelbaum^Ottilie",
    "OperatorsName": "Grimbart^Isolde",
    "InstitutionName": "Quokka Hospital",
    "InstitutionAddress": "Wombat Street 9",
    "AdmittingDiagnosesDescription": "sequela of Jabberwock",
    "AdditionalPatientHistory": "history with Bandersnatch",
    "ImageComments": "seen by Frumious",
    "ProtocolName": "protocol Mimsyq",
    "RequestedProcedureDescription": "Borogove",
    "StationName": "SNARKSTATION",
    "DeviceSerialNumber": "SERIAL-BOOJUM",
}
_COMMON = {"brother", "follow-up", "sequela", "history", "protocol", "Hospital", "Street"}
# These parts are looked for, however the rest is written.
MARKERS = sorted(
    part for value in IDENTITY.values() for part in re.split(r"[\^ ]", value) if len(part) > 5 and part not in _COMMON
)
# The elements of patient and study that a derived object shares with its source.
SHARED = {
    "PatientName", "PatientID", "PatientBirthDate", "PatientComments", "OtherPatientNames", "AccessionNumber", "StudyID",
    "StudyDescription", "ReferringPhysicianName", "AdmittingDiagnosesDescription", "AdditionalPatientHistory",
}  # fmt: skip
MODEL = ("--model", "demo-mri", "--target", "not:0")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return written(tmp_path / "source")


def written(folder: Path, **options: Any) -> Path:
    tags = {"StudyDate": "20240102", "StudyTime": "101112", **IDENTITY, **options.pop("tags", {})}
    write_series(folder, stored_values((29, 24, 18)), GEOMETRIES["oblique"], tags=tags, **options)
    return folder


def all_formats() -> str:
    return ",".join(WRITERS)


def layers(content: bytes, depth: int = 0) -> Iterator[bytes]:
    """Bytes, and what lies in them: gzip, zip, deflated or not behind base64, at any depth."""
    yield content
    if depth > 4:
        return
    if content[:2] == b"\x1f\x8b":
        yield from layers(gzip.decompress(content), depth + 1)
    if content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.infolist():
                yield member.filename.encode()
                yield from layers(archive.read(member), depth + 1)
    if content[:4] == b"NRRD":
        head, _, data = content.partition(b"\n\n")
        yield from layers(gzip.decompress(data) if b"gz" in head else data, depth + 1)
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            yield repr(picture.info).encode()
    for run in re.findall(rb"[A-Za-z0-9+/]{64,}={0,2}", content):
        try:
            inner = base64.b64decode(run + b"=" * (-len(run) % 4))
        except ValueError:
            continue
        yield from layers(inner, depth + 1)
        for how in (zlib.MAX_WBITS, -zlib.MAX_WBITS):
            try:
                yield zlib.decompress(inner, how)
            except zlib.error:
                continue


def found_in(content: bytes | str) -> set[str]:
    """The markers that stand in some bytes, in any layer and in the encodings that text comes in."""
    raw = content if isinstance(content, bytes) else content.encode()
    return {
        marker
        for layer in layers(raw)
        for marker in MARKERS
        if marker.encode() in layer or marker.encode("utf-16-le") in layer or marker.lower().encode() in layer.lower()
    }


def every_element(dataset: Dataset) -> Iterator[pydicom.DataElement]:
    for element in dataset:
        yield element
        if element.VR == "SQ":
            for item in element.value:
                yield from every_element(item)


def leaks(folder: Path) -> dict[str, set[str]]:
    """What is told of the patient below a folder, in names and contents; of DICOM objects, in elements that are not the patient's."""
    told: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*")):
        if found := found_in(str(path.relative_to(folder))):
            told[f"the name {path.name}"] = found
        if not path.is_file():
            continue
        if path.suffix == ".dcm":
            dataset = pydicom.dcmread(path)
            assert dataset.PatientID == IDENTITY["PatientID"]
            others = [element for element in every_element(dataset) if element.keyword not in SHARED]
            found = {marker for each in others if each.VR != "SQ" for marker in found_in(str(each.value))}
            with path.open("rb") as stream:
                found |= found_in(stream.read(132))
        else:
            found = found_in(path.read_bytes())
        if found:
            told[path.name] = found
    return told


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[..., tuple[int, str]]:
    """`medcam`, its exit code, and all that it said: stdout, stderr and every line of every logger."""
    caplog.set_level(logging.DEBUG)

    def call(*words: object) -> tuple[int, str]:
        code = main([str(word) for word in words])
        caught = capsys.readouterr()
        # pydicom tells its own log what it finds wrong with a value; medcam shows that to nobody.
        logged = "\n".join(one.getMessage() for one in caplog.records if one.name != "pydicom")
        caplog.clear()
        return code, f"{caught.out}\n{caught.err}\n{logged}"

    return call


def test_the_markers_are_seen_where_they_are(source: Path, tmp_path: Path) -> None:
    assert len(MARKERS) > 25
    content = next(source.iterdir()).read_bytes()
    assert found_in(content) >= set(MARKERS) - {"0815-4711"}
    text = "x" * 100 + MARKERS[3]
    for packed in (
        gzip.compress(text.encode()),
        base64.b64encode(text.encode() * 3),
        base64.b64encode(zlib.compress((text + "".join(map(str, range(99)))).encode())),
        b"NRRD0005\nencoding: gz\n\n" + gzip.compress(text.encode()),
    ):
        assert MARKERS[3] in found_in(packed)
    with zipfile.ZipFile(tmp_path / "a.mrb", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("scene.mrml", text)
    assert MARKERS[3] in found_in((tmp_path / "a.mrb").read_bytes())


def test_what_is_explained_and_exported_tells_of_the_patient_in_dicom_alone(
    source: Path, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    code, said = run("explain", source, *MODEL, "--formats", all_formats(), "--out", tmp_path / "explained")
    assert code == 0, said
    assert found_in(said) == set()
    assert leaks(tmp_path / "explained") == {}
    kinds = {path.suffix for path in (tmp_path / "explained").iterdir()}
    assert kinds >= {".dcm", ".png", ".html", ".json", ".gz", ".nrrd", ".mrb", ".py"}
    (stored,) = (tmp_path / "explained").glob("*gradcam.nii.gz")
    code, said = run("export", stored, "--source", source, "--formats", all_formats(), "--out", tmp_path / "exported")
    assert code == 0, said
    assert found_in(said) == set()
    assert leaks(tmp_path / "exported") == {}
    code, said = run("inspect", source, "--json")
    assert code == 0
    assert found_in(said) == set()


def test_what_is_sent_tells_of_the_patient_in_the_instances_alone(
    source: Path, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    spool = tmp_path / "spool"
    nobody = f"dicom://NODE@127.0.0.1:{free_port()}"
    for words in (
        ("send", source, "--to", nobody, "--dry-run"),
        ("send", source, "--to", nobody, "--attempts", 1),
        ("send", "--status"),
        ("send", "--resume", "--attempts", 1, "--json"),
        ("send", source, "--to", f"http://127.0.0.1:{free_port()}/dicom-web", "--attempts", 1, "--debug"),
    ):
        _, said = run(*words, "--spool", spool)
        assert found_in(said) == set()
    for path in spool.rglob("*"):
        assert found_in(str(path.relative_to(spool))) == set()
        if path.is_file() and path.suffix != ".dcm":
            assert found_in(path.read_bytes()) == set(), path.name


def cut_off(folder: Path) -> None:
    path = min(folder.iterdir())
    path.write_bytes(path.read_bytes()[:-200])


def without(count: int) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for path in sorted(folder.iterdir())[4 : 4 + count]:
            path.unlink()

    return remove


def changed(**tags: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for path in folder.iterdir():
            dataset = pydicom.dcmread(path)
            for keyword, value in tags.items():
                # As bytes, so that pydicom writes what no device should.
                if value is None:
                    delattr(dataset, keyword)
                else:
                    element = dataset[keyword]
                    dataset[keyword] = pydicom.dataelem.RawDataElement(
                        element.tag, element.VR, len(value), value, 0, False, True
                    )
            dataset.save_as(path)

    return change


TEXT = b"Quixotic^Zebedee MRN-7719-ZQ"
# What is done to the source, what is asked, and the exit code that it ends with.
FAILURES: dict[str, tuple[Callable[[Path], object], Sequence[object], int]] = {
    "a file cut off": (cut_off, (), 4),
    "a missing slice": (without(1), (), 4),
    "an unknown series": (lambda _: None, ("--series", "77"), 2),
    "an unknown class": (lambda _: None, ("--target", "spleen"), 2),
    "an unknown layer": (lambda _: None, ("--layer", "nowhere"), 2),
    "an unknown model": (lambda _: None, ("--model", "nothing.pt"), 3),
    "a name as position": (changed(ImagePositionPatient=TEXT), (), 4),
    "a name as spacing": (changed(PixelSpacing=TEXT), (), 4),
    "a name as orientation": (changed(ImageOrientationPatient=TEXT), (), 4),
    "a name as number of rows": (changed(Rows=TEXT), (), 4),
    "a name as photometric interpretation": (changed(PhotometricInterpretation=TEXT), (), 4),
    "no identifiers": (changed(StudyInstanceUID=None), ("--formats", "dicom-sc"), 5),
    "nowhere to write": (lambda folder: (folder.parent / "out").write_text("a file"), (), 5),
}


@pytest.mark.parametrize("name", FAILURES)
def test_no_error_tells_of_the_patient(
    name: str, tmp_path: Path, source: Path, run: Callable[..., tuple[int, str]]
) -> None:
    spoil, words, expected = FAILURES[name]
    spoil(source)
    code, said = run("explain", source, *MODEL, "--out", tmp_path / "out", *words, "--debug")
    assert "medcam: error: " in said
    assert code == expected, said
    assert found_in(said) == set()
    if (tmp_path / "out").is_dir():
        assert leaks(tmp_path / "out") == {}


@pytest.mark.parametrize(
    "tags",
    [
        {"SeriesNumber": TEXT}, {"RescaleSlope": TEXT}, {"WindowCenter": TEXT}, {"BitsStored": TEXT}, {"FrameOfReferenceUID": TEXT},
        {"SliceThickness": TEXT}, {"ImageType": TEXT}, {"InstanceNumber": TEXT},
    ],
    ids=lambda tags: next(iter(tags)),
)  # fmt: skip
def test_a_name_in_the_wrong_place_goes_nowhere_however_it_ends(
    tags: dict[str, bytes], tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    given = {"RescaleSlope": "1", "RescaleIntercept": "0", "WindowCenter": "500", "WindowWidth": "900"}
    source = written(tmp_path / "source", tags=given)
    changed(**tags)(source)
    code, said = run("explain", source, *MODEL, "--formats", "nifti,png", "--out", tmp_path / "out", "--debug")
    assert code in (0, 2, 4, 5), said
    assert found_in(said) == set()
    if (tmp_path / "out").is_dir():
        assert leaks(tmp_path / "out") == {}


def test_no_repr_tells_of_the_patient(source: Path) -> None:
    from formats.made_sources import heatmap, made_export
    from medcam.formats.deidentify import deidentified, new_secret
    from medcam.pacs.instances import collect

    volume = read(source)
    for each in (
        volume, volume.source, volume.grid, heatmap(volume), heatmap(volume).recipe, made_export(volume, source),
        collect([source]), deidentified(volume, new_secret()),
    ):  # fmt: skip
        assert found_in(repr(each)) == set()
        assert found_in(str(each)) == set()
    assert set(CHECKS) <= set(WRITERS)


def traces(folder: Path, source: Path) -> dict[str, set[str]]:
    """What leads back to the patient or to the original files: identity, UIDs, dates, digests."""
    volume = read(source)
    known = {str(header.get(keyword)) for header in volume.source.instances for keyword in UIDS}
    known |= {volume.source.sha256, "20240102"}
    told = {}
    for path in sorted(folder.iterdir()):
        parts = list(layers(path.read_bytes()))
        found = found_in(path.read_bytes()) | {each for each in known if any(each.encode() in part for part in parts)}
        if volume.source.sha256[:6] in path.name:
            found.add(path.name)
        if found:
            told[path.name] = found
    return told


def test_de_identified_results_tell_of_the_patient_nowhere_at_all(
    source: Path, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    key = tmp_path / "key"
    told, hidden = tmp_path / "told", tmp_path / "hidden"
    assert run("explain", source, *MODEL, "--formats", "nifti", "--out", told)[0] == 0
    assert traces(told, source) != {}
    code, said = run(
        "explain", source, *MODEL, "--formats", all_formats(), "--out", hidden, "--deidentify-key", key, "--deidentify"
    )
    assert code == 0, said
    assert found_in(said) == set()
    assert len(list(hidden.iterdir())) > len(WRITERS)
    assert traces(hidden, source) == {}

    # Of a heatmap that was stored with its digest, and of one that was stored without.
    (open_one,), (hidden_one,) = told.glob("*gradcam.nii.gz"), hidden.glob("*gradcam.nii.gz")
    objects = ("--source", source, "--formats", "dicom-sc,dicom-seg,nifti")
    assert run("export", open_one, *objects, "--out", tmp_path / "a", "--deidentify-key", key)[0] == 0
    assert run("export", hidden_one, *objects, "--out", tmp_path / "b", "--deidentify-key", key)[0] == 0
    assert run("export", open_one, *objects, "--out", tmp_path / "c", "--deidentify")[0] == 0
    assert all(traces(tmp_path / folder, source) == {} for folder in "abc")
    uids = {
        folder: {str(pydicom.dcmread(path).SOPInstanceUID) for path in (tmp_path / folder).glob("*.dcm")}
        for folder in "abc"
    }
    first = {str(pydicom.dcmread(path).SOPInstanceUID) for path in hidden.glob("*.dcm")}
    assert uids["a"] == uids["b"] <= first
    assert not uids["c"] & first
    # Without the key, nothing leads from the hidden one to its image.
    code, said = run("export", hidden_one, *objects, "--out", tmp_path / "d", "--deidentify")
    assert code == 4
    assert "another image" in said


UIDS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")


def test_the_spools_own_listing_is_json_without_the_patient(
    source: Path, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    run("send", source, "--to", f"dicom://NODE@127.0.0.1:{free_port()}", "--attempts", 1, "--spool", tmp_path / "spool")
    _, said = run("send", "--status", "--json", "--spool", tmp_path / "spool", "--quiet")
    listed = json.loads(said[: said.rindex("}") + 1])
    assert len(listed["instances"]) == 18
