"""Finding DICOM: files, folders and zips; which series lie there; choosing one; what is not read."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from formats.dicom_phantom import GEOMETRIES, MARKERS, stored_values, write_film, write_segmentation, write_series
from medcam.errors import InputError, UsageError
from medcam.formats import dicom_files
from medcam.formats.dicom import find_series, is_dicom, read_dicom

AFFINE = GEOMETRIES["oblique"]


def zipped(folder: Path, *, extra: dict[str, bytes] | None = None) -> Path:
    """Return a zip of a folder's files, with more members under any name."""
    path = folder.parent / f"{folder.name}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (extra or {}).items():
            archive.writestr(name, content)
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
    return path


def refusal(path: Path, kind: type[Exception] = InputError, *, series: str | None = None) -> str:
    """Return why a path is refused, having made sure that the message names no patient."""
    with pytest.raises(kind) as caught:
        read_dicom(path, series=series)
    assert not any(marker in str(caught.value) for marker in MARKERS)
    return str(caught.value)


def two_series(folder: Path) -> None:
    """Write series 4 (MR, 4 slices) and series 7 (CT, 3 slices)."""
    write_series(folder / "a", stored_values(), AFFINE, uid_seed="one")
    write_series(
        folder / "b", stored_values((6, 5, 3)), AFFINE, uid_seed="two", modality="CT", number=7, description="thin"
    )


def test_series_are_found_below_a_folder_and_sorted_by_number(tmp_path: Path) -> None:
    two_series(tmp_path)
    write_film(tmp_path / "deep" / "er", stored_values((9, 8, 1))[:, :, 0], number=None)
    (tmp_path / "notes.txt").write_text("not DICOM")
    (tmp_path / "empty").touch()
    found = find_series(tmp_path)
    assert [(one.number, one.modality, one.description, one.shape) for one in found] == [
        (4, "MR", "phantom", (7, 5, 4)),
        (7, "CT", "thin", (6, 5, 3)),
        (None, "DX", "film", (9, 8, 1)),
    ]
    assert [path.name for path in found[1].paths] == ["000.dcm", "001.dcm", "002.dcm"]
    assert not any(marker in repr(found) for marker in MARKERS)


def test_several_series_are_listed_one_a_line(tmp_path: Path) -> None:
    two_series(tmp_path)
    lines = refusal(tmp_path).splitlines()
    uids = [one.uid for one in find_series(tmp_path)]
    assert "holds 2 series; choose one with --series" in lines[0]
    assert lines[1:] == [
        f"  4  MR  phantom  4 slices of 7 x 5  ...{uids[0][-12:]}",
        f"  7  CT  thin  3 slices of 6 x 5  ...{uids[1][-12:]}",
    ]


def test_a_series_is_chosen_by_number_uid_or_the_end_of_it(tmp_path: Path) -> None:
    two_series(tmp_path)
    uid = find_series(tmp_path)[1].uid
    for selector in ("7", uid, uid[-12:], f" {uid[-20:]} "):
        assert read_dicom(tmp_path, series=selector).source.label == "CT_s7"
    assert read_dicom(tmp_path, series="4").source.label == "MR_s4"


@pytest.mark.parametrize("selector", ["8", "", "1.2.3"])
def test_a_selector_that_names_nothing_is_a_wrong_use_and_says_what_there_is(tmp_path: Path, selector: str) -> None:
    two_series(tmp_path)
    message = refusal(tmp_path, UsageError, series=selector)
    assert "names none" in message
    assert "  7  CT  thin  3 slices" in message


def test_a_selector_that_names_two_series_is_a_wrong_use(tmp_path: Path) -> None:
    for seed in ("one", "two"):
        write_series(tmp_path / seed, stored_values(), AFFINE, uid_seed=seed)
    assert "--series 4 names 2" in refusal(tmp_path, UsageError, series="4")


def test_localizers_and_segmentations_stand_aside(tmp_path: Path) -> None:
    write_series(tmp_path, stored_values(), AFFINE)
    tags = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write_series(tmp_path, stored_values((9, 9, 1)), GEOMETRIES["sagittal"], name="scout", tags=tags, uid_seed="scout")
    same = {**tags, "SOPInstanceUID": "1.2.3"}
    scout = stored_values((9, 9, 1), seed=1)
    write_series(tmp_path, scout, GEOMETRIES["coronal"], name="same", tags=same)
    write_segmentation(tmp_path)
    volume = read_dicom(tmp_path)
    assert volume.grid.shape == (7, 5, 4)
    assert volume.source.notes == ("left out of the volume: localizer",)
    assert len(find_series(tmp_path)) == 1
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "same", tmp_path / "alone")
    np.testing.assert_array_equal(read_dicom(tmp_path / "alone").voxels, scout)


def test_a_place_without_images_says_what_is_there_instead(tmp_path: Path) -> None:
    write_segmentation(tmp_path / "seg")
    assert "seg holds no DICOM image, only 1 SEG" in refusal(tmp_path / "seg")
    (tmp_path / "empty").mkdir()
    assert "empty holds no DICOM image;" in refusal(tmp_path / "empty")
    assert "there is no file or folder nowhere" in refusal(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no DICOM image"):
        find_series(tmp_path / "empty")


def test_a_zip_is_read_like_its_folder_whatever_its_members_are_called(tmp_path: Path) -> None:
    write_series(tmp_path / "study", stored_values(), AFFINE)
    outside = (tmp_path / "study" / "003.dcm").read_bytes()
    (tmp_path / "study" / "003.dcm").unlink()
    extra = {
        "../../escaped": outside,
        "/etc/absolute": b"no",
        "__MACOSX/._000.dcm": b"\0\5\x16\7 Mac",
        "a/b/c.txt": b"text",
    }
    path = zipped(tmp_path / "study", extra=extra)
    before = sorted(tmp_path.rglob("*"))
    volume = read_dicom(path)
    np.testing.assert_array_equal(volume.voxels, stored_values())
    assert volume.source.notes == ()
    assert all(path in one.parents and ".." not in one.parts for one in find_series(path)[0].paths)
    assert sorted(tmp_path.rglob("*")) == before
    assert is_dicom(path)


def test_a_zip_bomb_is_refused_before_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "study", stored_values(), AFFINE)
    path = zipped(tmp_path / "study", extra={"zeros": bytes(2_000_000)})
    monkeypatch.setattr(dicom_files, "_RATIO_MATTERS_FROM_BYTES", 1_000_000)
    assert "times its size" in refusal(path)
    monkeypatch.setattr(dicom_files, "_MAX_UNPACKED_BYTES", 1_900_000)
    assert "medcam reads at most 0 GiB from a zip" in refusal(path)
    assert not is_dicom(path)


def test_a_file_that_inflates_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_series(tmp_path, stored_values(), AFFINE, transfer_syntax=DeflatedExplicitVRLittleEndian)[0]
    assert is_dicom(path)
    monkeypatch.setattr(dicom_files, "_MAX_INFLATED_BYTES", 500)
    assert refusal(path).startswith("000.dcm inflates to more than")


def test_a_damaged_or_encrypted_zip_is_refused_by_name(tmp_path: Path) -> None:
    write_series(tmp_path / "study", stored_values((50, 50, 2)), AFFINE)
    content = bytearray(zipped(tmp_path / "study").read_bytes())
    (tmp_path / "cut.zip").write_bytes(content[:-30])
    assert "cut.zip" in refusal(tmp_path / "cut.zip")
    content[2000] ^= 255
    (tmp_path / "flipped.zip").write_bytes(content)
    assert "000.dcm is damaged" in refusal(tmp_path / "flipped.zip")
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = -1
        while (start := content.find(signature, start + 1)) >= 0:
            content[start + offset] |= 1
    (tmp_path / "secret.zip").write_bytes(content)
    assert "encrypted" in refusal(tmp_path / "secret.zip")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("name", ["{k}.dcm", "IM{k}"])
def test_files_are_known_by_their_content_in_every_plain_encoding(tmp_path: Path, syntax: str, name: str) -> None:
    write_series(tmp_path, stored_values(), AFFINE, transfer_syntax=syntax, name=name)
    np.testing.assert_array_equal(read_dicom(tmp_path).voxels, stored_values())


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_files_without_preamble_are_read_if_they_are_dicom_beyond_doubt(tmp_path: Path, syntax: str) -> None:
    paths = write_series(tmp_path / "s", stored_values(), AFFINE, transfer_syntax=syntax, preamble=False)
    np.testing.assert_array_equal(read_dicom(tmp_path / "s").voxels, stored_values())
    assert is_dicom(paths[0])
    (tmp_path / "looks_like").write_bytes(b"\x08\0\x05\0" + bytes(range(256)) * 4)
    assert not is_dicom(tmp_path / "looks_like")


def test_what_is_not_dicom_is_not_taken_for_it(tmp_path: Path) -> None:
    for name, content in {"text": b"hello " * 100, "zeros": bytes(1000), "empty": b"", "two": b"\2\0"}.items():
        (tmp_path / name).write_bytes(content)
        assert not is_dicom(tmp_path / name)
    assert not is_dicom(tmp_path)
    assert not is_dicom(tmp_path / "nowhere")
    write_film(tmp_path, stored_values()[:, :, 0])
    assert is_dicom(tmp_path)


def test_files_called_dcm_that_are_not_dicom_are_told(tmp_path: Path) -> None:
    write_series(tmp_path, stored_values(), AFFINE)
    (tmp_path / "zero.dcm").touch()
    assert read_dicom(tmp_path).source.notes == ("files that end in .dcm and are not DICOM were left out: 1",)


def test_a_file_cut_short_is_refused_by_its_name_alone(tmp_path: Path) -> None:
    folder = tmp_path / "Doe^Secret"
    paths = write_series(folder, stored_values((50, 50, 3)), AFFINE)
    paths[1].write_bytes(paths[1].read_bytes()[:-100])
    message = refusal(folder)
    assert "001.dcm holds pixels" in message
    assert "fetch it again" in message
    whole = paths[1].read_bytes()
    for length in range(150, len(whole) - 100, 50):
        paths[1].write_bytes(whole[:length])
        assert "001.dcm" in refusal(folder), length


def test_a_damaged_length_does_not_drag_the_patients_name_into_a_listing(tmp_path: Path) -> None:
    two_series(tmp_path)
    for path in (tmp_path / "b").iterdir():
        path.write_bytes(path.read_bytes().replace(b"LO\x04\0thin", b"LO\x16\0thin"))
    assert MARKERS[0] in str(pydicom.dcmread(tmp_path / "b" / "000.dcm").SeriesDescription)
    assert "  7  CT  no description  3 slices" in refusal(tmp_path)
    assert not any(marker in repr(find_series(tmp_path)) for marker in MARKERS)


def test_an_unreadable_file_is_named_without_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "Doe^Secret"
    write_series(folder, stored_values(), AFFINE)

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "000.dcm"))

    monkeypatch.setattr(Path, "open", denied)
    assert "000.dcm cannot be read (Permission denied)" in refusal(folder)


def test_links_in_a_circle_do_not_trap_the_search(tmp_path: Path) -> None:
    write_series(tmp_path / "s", stored_values(), AFFINE)
    (tmp_path / "s" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "s" / "broken").symlink_to(tmp_path / "gone")
    assert read_dicom(tmp_path).grid.shape == (7, 5, 4)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"NumberOfFrames": 3}, "3 frames (MR Image Storage) and does not say where each lies"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "mosaic"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "colour image (PhotometricInterpretation RGB)"),
        ({"PhotometricInterpretation": "YBR_FULL_422"}, "colour image"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour image (PhotometricInterpretation PALETTE COLOR)"),
    ],
)
def test_kinds_that_are_not_read_are_refused_by_name(tmp_path: Path, tags: dict[str, object], words: str) -> None:
    write_series(tmp_path, stored_values(), AFFINE, tags=tags)
    message = refusal(tmp_path)
    assert words in message
    assert "000.dcm" in message
    assert len(find_series(tmp_path)) == 1


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless])
def test_random_damage_is_read_or_refused_and_never_a_crash_or_a_leak(tmp_path: Path, syntax: str) -> None:
    tags = {"WindowCenter": "40", "WindowWidth": "400", "RescaleSlope": "2", "RescaleIntercept": "-5"}
    paths = write_series(tmp_path / "s", stored_values(), AFFINE, modality="CT", transfer_syntax=syntax, tags=tags)
    whole = paths[1].read_bytes()
    random = np.random.default_rng(7)
    refused = []
    for _ in range(150):
        content = bytearray(whole)
        for at in random.integers(0, len(content), 4):
            content[at] = random.choice([0, 32, 92, 255, random.integers(256)])
        paths[1].write_bytes(content)
        try:
            read_dicom(tmp_path / "s")
        except InputError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert not any(marker in message for marker in MARKERS for message in refused)
