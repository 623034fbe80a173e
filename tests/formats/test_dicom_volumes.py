"""What a series holds: volumes of one echo, time, b-value or kind; orientations; views; what stands aside; what repeats."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from formats.dicom_phantom import GEOMETRIES, MARKERS, stored_values, write_film, write_series
from formats.dicom_phantom_frames import item, write_enhanced
from formats.dicom_referee import is_same_image
from medcam.cli import main
from medcam.errors import GeometryError, UsageError
from medcam.formats import dicom_series
from medcam.formats.dicom import find_series, read_dicom
from medcam.formats.dicom_fourth import Place, split

OBLIQUE = GEOMETRIES["oblique"]
AXIAL = GEOMETRIES["axial"]


def write_volumes(
    folder: Path, tags: list[Mapping[str, Any]], *, slice_tags: Callable[[int, int], Mapping[str, Any]] | None = None
) -> list[np.ndarray]:
    """Write a series of volumes that differ in these elements, and return their voxels; slices are numbered through."""
    written = []
    for n, own in enumerate(tags):
        voxels = stored_values((7, 5, 4), seed=n)

        def told(k: int, n: int = n) -> dict[str, Any]:
            more = slice_tags(n, k) if slice_tags else {}
            return {"SOPInstanceUID": f"1.2.{n}.{k}", "InstanceNumber": 4 * n + k + 1, **more}

        write_series(folder, voxels, OBLIQUE, tags=own, slice_tags=told, name=f"{n}_{{k}}")
        written.append(voxels)
    return written


def refusal(path: Path, kind: type[Exception] = GeometryError, *, volume: int | None = None) -> str:
    """Return why a path is refused, having made sure that the message names no patient."""
    with pytest.raises(kind) as caught:
        read_dicom(path, volume=volume)
    assert not any(marker in str(caught.value) for marker in MARKERS)
    return str(caught.value)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ([{"EchoNumbers": n, "EchoTime": t} for n, t in ((1, "4.6"), (2, "9.2"))], ["echo 1: TE 4.6 ms", "echo 2: TE 9.2 ms"]),
        ([{"EchoTime": t} for t in ("4.6", "12")], ["TE 4.6 ms", "TE 12 ms"]),
        ([{"InversionTime": t} for t in ("900", "1100")], ["TI 900 ms", "TI 1100 ms"]),
        ([{"FlipAngle": t} for t in ("5", "26")], ["flip angle 5 degrees", "flip angle 26 degrees"]),
        ([{"KVP": t} for t in ("80", "140")], ["tube voltage 80 kV", "tube voltage 140 kV"]),
        ([{"ConvolutionKernel": t} for t in ("B30f", "B70f")], ["kernel B30f", "kernel B70f"]),
        ([{"DiffusionBValue": t} for t in (0.0, 1000.0)], ["b 0 s/mm2", "b 1000 s/mm2"]),
        ([{"TriggerTime": t} for t in ("0", "40.5")], ["trigger time 0 ms", "trigger time 40.5 ms"]),
        ([{"TemporalPositionIdentifier": t} for t in (1, 2)], ["time 1", "time 2"]),
        ([{"AcquisitionNumber": t} for t in (9, 10)], ["acquisition 9", "acquisition 10"]),
        ([{"AcquisitionTime": t} for t in ("101112", "101113.5")], ["acquisition time 1", "acquisition time 2"]),
        ([{"ContentTime": t} for t in ("101112", "101113.5")], ["content time 1", "content time 2"]),
        (
            [{"ImageType": ["ORIGINAL", "PRIMARY", t]} for t in ("M", "P")],
            ["image type ORIGINAL/M", "image type ORIGINAL/P"],
        ),
        (
            [{"ImageType": t} for t in (["DERIVED", "PRIMARY", "ADC"], ["ORIGINAL", "PRIMARY", "TRACEW"])],
            ["image type DERIVED/ADC", "image type ORIGINAL/TRACEW"],
        ),
        ([{"DiffusionBValue": 0.0}, {}], ["no b", "b 0 s/mm2"]),
    ],
)  # fmt: skip
def test_volumes_are_told_apart_by_what_differs(
    tmp_path: Path, tags: list[Mapping[str, Any]], words: list[str]
) -> None:
    written = write_volumes(tmp_path, tags)
    found = find_series(tmp_path)[0]
    assert found.volumes == tuple(f"{each}, 4 slices of 7 x 5" for each in words)
    message = refusal(tmp_path)
    assert "the series holds 2 volumes" in message
    assert "--volume" in message
    assert all(f"  {n}: {each}" in message for n, each in enumerate(words))
    order = [1, 0] if "no b" in words else [0, 1]
    for n, which in enumerate(order):
        volume = read_dicom(tmp_path, volume=n)
        assert is_same_image(volume, written[which], OBLIQUE)
        assert f"volume {n} of 2 (from 0) in the series: {words[n]}, 4 slices of 7 x 5" in volume.source.notes
        assert volume.source.label == f"MR_s4_v{n}"


@pytest.mark.parametrize(
    ("group", "creator", "element", "vr", "values"),
    [
        (0x0019, "SIEMENS MR HEADER", 0x0C, "IS", ("0", "800")),
        (0x2001, "Philips Imaging DD 001", 0x03, "FL", (0.0, 800.0)),
        (0x0043, "GEMS_PARM_01", 0x39, "IS", (["1000000000", "8"], ["1000000800", "8"])),
    ],
)
def test_b_values_are_found_where_their_makers_keep_them(
    tmp_path: Path, group: int, creator: str, element: int, vr: str, values: tuple[Any, Any]
) -> None:
    written = write_volumes(tmp_path, [{}, {}])
    for n, value in enumerate(values):
        for k in range(4):
            dataset = pydicom.dcmread(path := tmp_path / f"{n}_{k}")
            dataset.private_block(group, creator, create=True).add_new(element, vr, value)
            dataset.save_as(path)
    assert find_series(tmp_path)[0].volumes == ("b 0 s/mm2, 4 slices of 7 x 5", "b 800 s/mm2, 4 slices of 7 x 5")
    np.testing.assert_array_equal(read_dicom(tmp_path, volume=1).voxels, written[1])


def test_several_axes_nest(tmp_path: Path) -> None:
    # b 0 once, b 1000 in two directions, each of these at two times.
    tags = [{"DiffusionBValue": 0.0, "TemporalPositionIdentifier": 1}]
    for direction in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]):
        for time in (1, 2):
            tags.append({
                "DiffusionBValue": 1000.0, "DiffusionGradientOrientation": direction, "TemporalPositionIdentifier": time
            })  # fmt: skip
    written = write_volumes(tmp_path, tags)
    assert [each.removesuffix(", 4 slices of 7 x 5") for each in find_series(tmp_path)[0].volumes] == [
        "b 0 s/mm2",
        "b 1000 s/mm2, gradient direction (0.000, 1.000, 0.000), time 1",
        "b 1000 s/mm2, gradient direction (0.000, 1.000, 0.000), time 2",
        "b 1000 s/mm2, gradient direction (1.000, 0.000, 0.000), time 1",
        "b 1000 s/mm2, gradient direction (1.000, 0.000, 0.000), time 2",
    ]
    np.testing.assert_array_equal(read_dicom(tmp_path, volume=2).voxels, written[4])


def test_an_element_that_differs_from_slice_to_slice_splits_nothing(tmp_path: Path) -> None:
    # Acquisition times differ in every image; only the temporal position tells volumes.
    def told(n: int, k: int) -> dict[str, Any]:
        return {"AcquisitionTime": f"1011{10 + 4 * n + k}", "TriggerTime": str(100 * n + 7 * k)}

    written = write_volumes(tmp_path, [{"TemporalPositionIdentifier": n} for n in (1, 2, 3)], slice_tags=told)
    assert find_series(tmp_path)[0].volumes == tuple(f"time {n}, 4 slices of 7 x 5" for n in (1, 2, 3))
    np.testing.assert_array_equal(read_dicom(tmp_path, volume=2).voxels, written[2])
    # In one volume it does not split either: nothing shares a position.
    for path in tmp_path.glob("[12]_*"):
        path.unlink()
    assert is_same_image(read_dicom(tmp_path), written[0], OBLIQUE)


@pytest.mark.parametrize("slice_by_slice", [False, True])
def test_the_order_of_instance_numbers_is_the_last_resort(tmp_path: Path, slice_by_slice: bool) -> None:
    def told(n: int, k: int) -> dict[str, Any]:
        return {"InstanceNumber": 3 * k + n + 1 if slice_by_slice else 4 * n + k + 1}

    written = write_volumes(tmp_path, [{}, {}, {}], slice_tags=told)
    # Files are found in the order of their names.
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name("".join(str(9 - int(digit)) for digit in path.name.split("_"))))
    words = "image 2 of 3 at each position, by InstanceNumber, 4 slices of 7 x 5"
    assert find_series(tmp_path)[0].volumes[1] == words
    for n in range(3):
        assert is_same_image(read_dicom(tmp_path, volume=n), written[n], OBLIQUE)


@pytest.mark.parametrize("number", [None, 1])
def test_without_instance_numbers_nothing_is_guessed(tmp_path: Path, number: int | None) -> None:
    write_volumes(tmp_path, [{}, {}], slice_tags=lambda n, k: {"InstanceNumber": number})
    assert "share 4 of its 4 positions along the slice normal, and nothing tells" in refusal(tmp_path)
    assert find_series(tmp_path)[0].volumes == ()


def test_a_volume_that_lacks_a_slice_of_the_others_says_so(tmp_path: Path) -> None:
    written = write_volumes(tmp_path, [{"EchoTime": t} for t in ("4", "8", "12")])
    (tmp_path / "1_3").unlink()
    volume = read_dicom(tmp_path, volume=1)
    np.testing.assert_array_equal(volume.voxels, written[1][:, :, :3])
    assert "the series has images at 4 positions, this volume at 3 of them" in volume.source.notes
    (tmp_path / "2_1").unlink()
    assert "one slice is missing" in refusal(tmp_path, volume=2)
    assert read_dicom(tmp_path, volume=0).grid.shape == (7, 5, 4)


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    for n in range(40):
        uids = {"SOPInstanceUID": f"1.2.{n}", "AcquisitionNumber": n, "InstanceNumber": n}
        write_series(tmp_path, stored_values((3, 2, 1)), OBLIQUE, tags=uids, name=str(n))
    message = refusal(tmp_path)
    assert "holds 40 volumes" in message
    assert len(message.splitlines()) == 21
    assert message.endswith("  ... and so on, up to 39")
    assert read_dicom(tmp_path, volume=39).source.instances[0].AcquisitionNumber == 39


def test_each_orientation_is_a_volume_of_its_own(tmp_path: Path) -> None:
    axial, sagittal = stored_values(), stored_values((6, 9, 3), seed=1)
    write_series(tmp_path, axial, AXIAL, name="a{k}")
    uids = {"slice_tags": lambda k: {"SOPInstanceUID": f"1.2.{k}"}}
    write_series(tmp_path, sagittal, GEOMETRIES["sagittal"], name="b{k}", **uids)
    message = refusal(tmp_path)
    assert "  0: axial with normal (0.000, 0.000, 1.000), pixels of 0.7 x 0.7 mm, 4 slices of 7 x 5" in message
    assert "  1: sagittal with normal (-1.000, 0.000, 0.000), pixels of 1.1 x 1.1 mm, 3 slices of 6 x 9" in message
    assert is_same_image(read_dicom(tmp_path, volume=0), axial, AXIAL)
    assert is_same_image(read_dicom(tmp_path, volume=1), sagittal, GEOMETRIES["sagittal"])


@pytest.mark.parametrize(
    ("tags", "affine", "aside"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, GEOMETRIES["coronal"], "localizer"),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, GEOMETRIES["coronal"], "derived from other images of the series"),
        ({"ImageType": ["DERIVED", "PRIMARY", "MPR"]}, AXIAL, "derived from other images of the series"),
        ({"ImageType": ["DERIVED", "PRIMARY", "PROJECTION IMAGE"]}, AXIAL, "derived from other images of the series"),
        (
            {"ImageOrientationPatient": None, "ImagePositionPatient": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
            AXIAL,
            "without a place in the patient",
        ),
    ],
)
def test_localizers_and_derived_images_stand_aside(
    tmp_path: Path, tags: Mapping[str, Any], affine: np.ndarray, aside: str
) -> None:
    scan, other = stored_values(), stored_values((9, 8, 2), seed=1)
    write_series(tmp_path, scan, AXIAL, name="a{k}")
    uids = {"slice_tags": lambda k: {"SOPInstanceUID": f"1.2.{k}", "InstanceNumber": 10 + k}}
    write_series(tmp_path, other[:, :, :1], affine, name="b{k}", tags=tags, **uids)
    volume = read_dicom(tmp_path)
    assert is_same_image(volume, scan, AXIAL)
    assert volume.source.notes == (f"left out of the volume: {aside}",)
    assert volume.source.label == "MR_s4"
    assert find_series(tmp_path)[0].volumes[1].endswith(f"1 slice of 9 x 8, {aside}")
    np.testing.assert_array_equal(read_dicom(tmp_path, volume=1).voxels, other[:, :, :1])
    # Alone in its series it is what was asked for.
    for path in tmp_path.glob("a*"):
        path.unlink()
    np.testing.assert_array_equal(read_dicom(tmp_path).voxels, other[:, :, :1])


def test_a_localizer_like_the_scan_stands_aside_too(tmp_path: Path) -> None:
    voxels = stored_values((7, 5, 5))
    kinds = {"slice_tags": lambda k: {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER" if k == 4 else "AXIAL"]}}
    write_series(tmp_path, voxels, AXIAL, **kinds)
    assert is_same_image(read_dicom(tmp_path), voxels[:, :, :4], AXIAL)
    assert find_series(tmp_path)[0].volumes == ("4 slices of 7 x 5", "1 slice of 7 x 5, localizer")


def test_a_reformatted_series_is_a_volume_like_any_other(tmp_path: Path) -> None:
    voxels = stored_values()
    write_series(tmp_path, voxels, OBLIQUE, tags={"ImageType": ["DERIVED", "SECONDARY", "MPR"]})
    volume = read_dicom(tmp_path)
    assert is_same_image(volume, voxels, OBLIQUE)
    assert volume.source.notes == ()


def test_colour_images_of_a_series_are_left_out_and_told(tmp_path: Path) -> None:
    voxels = stored_values()
    write_series(tmp_path, voxels, AXIAL, name="a{k}")
    tags = {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "SOPInstanceUID": "1.2.3"}
    write_series(tmp_path, voxels[:, :, :1], AXIAL, name="b", tags=tags)
    volume = read_dicom(tmp_path)
    assert is_same_image(volume, voxels, AXIAL)
    assert volume.source.notes == ("colour images of the series were left out: 1",)


def test_a_picture_sent_twice_under_new_identifiers_counts_once(tmp_path: Path) -> None:
    voxels = stored_values()
    write_series(tmp_path, voxels, AXIAL, name="a{k}")
    uids = {"slice_tags": lambda k: {"SOPInstanceUID": f"1.2.{k}", "InstanceNumber": 20 + k}}
    write_series(tmp_path, voxels, AXIAL, name="b{k}", leave_out=[0, 3], **uids)
    volume = read_dicom(tmp_path)
    assert is_same_image(volume, voxels, AXIAL)
    assert volume.source.notes == ("pictures that repeat another one at the same place were left out: 2",)
    # With other pixels they are no repetition.
    changed = voxels.copy()
    changed[3, 2, 1] += 1
    write_series(tmp_path, changed, AXIAL, name="b{k}", leave_out=[0, 3], **uids)
    assert "and nothing tells to which volume each belongs" in refusal(tmp_path)


def test_images_that_share_one_identifier_are_all_read(tmp_path: Path) -> None:
    voxels = stored_values()
    write_series(tmp_path, voxels, AXIAL, tags={"SOPInstanceUID": "1.2.3"})
    volume = read_dicom(tmp_path)
    assert is_same_image(volume, voxels, AXIAL)
    shutil.copy(tmp_path / "001.dcm", tmp_path / "again.dcm")
    again = read_dicom(tmp_path)
    assert is_same_image(again, voxels, AXIAL)
    assert again.source.notes == ("files that repeat an image of the series were left out: 1",)


def test_an_enhanced_file_lists_magnitude_and_phase_and_echoes(tmp_path: Path) -> None:
    def groups(n: int) -> dict[str, Dataset]:
        part, echo = divmod(n // 3, 2)
        component = ("MAGNITUDE", "PHASE")[part]
        return {
            "MREchoSequence": item(EffectiveEchoTime=4.6 * (echo + 1)),
            "MRImageFrameTypeSequence": item(
                FrameType=["ORIGINAL", "PRIMARY", "FFE", "NONE"], ComplexImageComponent=component
            ),
        }

    voxels = stored_values((7, 5, 12))
    write_enhanced(tmp_path, voxels, OBLIQUE, positions=[n % 3 for n in range(12)], frame_groups=groups)
    assert find_series(tmp_path)[0].volumes == tuple(
        f"component {part}, TE {time} ms, 3 slices of 7 x 5" for part in ("MAGNITUDE", "PHASE") for time in (4.6, 9.2)
    )
    np.testing.assert_array_equal(read_dicom(tmp_path, volume=3).voxels, voxels[:, :, 9:])


def test_a_film_says_which_view_it_is(tmp_path: Path) -> None:
    pixels = stored_values((9, 6, 1))[:, :, 0]
    tags = {"ViewPosition": "PA", "Laterality": "R"}
    assert "view PA, laterality R" in read_dicom(write_film(tmp_path, pixels, tags=tags)).source.notes
    # What is longer than any code is damaged, and may hold anything.
    path = write_film(tmp_path, pixels, tags={"ViewPosition": "AP"}, name="b.dcm")
    dataset = pydicom.dcmread(path)
    dataset["ViewPosition"].VR = "LO"
    dataset.ViewPosition = " ".join(MARKERS)
    dataset.save_as(path)
    assert not any("view" in note for note in read_dicom(path).source.notes)


def test_of_more_files_than_are_held_headers_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_volumes(tmp_path, [{}, {}])
    for n, value in enumerate(("0", "800")):
        for k in range(4):
            dataset = pydicom.dcmread(path := tmp_path / f"{n}_{k}")
            dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", value)
            dataset.save_as(path)
    held = find_series(tmp_path), read_dicom(tmp_path, volume=1)
    monkeypatch.setattr(dicom_series, "_HELD_FILES", 3)
    assert find_series(tmp_path) == held[0]
    volume = read_dicom(tmp_path, volume=1)
    np.testing.assert_array_equal(volume.voxels, written[1])
    assert volume.source == held[1].source
    assert volume.source.instances == held[1].source.instances


def test_a_volume_of_a_series_that_holds_one_may_be_named(tmp_path: Path) -> None:
    write_series(tmp_path, stored_values(), AXIAL)
    assert read_dicom(tmp_path, volume=0).source.label == "MR_s4"
    assert "there is no volume 1: the series holds 1" in refusal(tmp_path, UsageError, volume=1)


def test_splitting_is_the_same_for_any_order_of_the_pictures() -> None:
    headers = [item(EchoTime=str(t), InstanceNumber=str(n)) for n, t in enumerate((8, 4, 8, 4, 4, 8))]
    places = [
        Place(n, header, position) for n, (header, position) in enumerate(zip(headers, (0, 0, 1, 1, 2, 2), strict=True))
    ]
    found = split(places)
    assert [share.words for share in found] == ["TE 4 ms", "TE 8 ms"]
    assert [sorted(share.pictures) for share in found] == [[1, 3, 4], [0, 2, 5]]
    assert [sorted(share.pictures) for share in split(places[::-1])] == [[1, 3, 4], [0, 2, 5]]


@pytest.mark.parametrize("charset", ["", "ISO_IR 192", "ISO 2022 IR 87", "ISO_IR 999", ["", "ISO 2022 IR 149"]])
def test_any_character_set_is_read(tmp_path: Path, charset: str | list[str]) -> None:
    write_series(
        tmp_path, stored_values(), AXIAL, description="Sch\u00e4del", tags={"SpecificCharacterSet": "ISO_IR 192"}
    )
    with warnings.catch_warnings():
        # pydicom says that it cannot write these words in that set, which is what some devices do.
        warnings.simplefilter("ignore")
        for path in tmp_path.iterdir():
            dataset = pydicom.dcmread(path)
            dataset.SpecificCharacterSet = charset
            dataset.save_as(path)
    volume = read_dicom(tmp_path)
    assert volume.grid.shape == (7, 5, 4)
    assert find_series(tmp_path)[0].number == 4


def test_one_series_of_several_is_listed_alone(tmp_path: Path) -> None:
    write_volumes(tmp_path / "a", [{"EchoTime": "4"}, {"EchoTime": "8"}])
    write_series(tmp_path / "b", stored_values(), AXIAL, number=7, uid_seed="other")
    found = find_series(tmp_path, series="4")
    assert [(one.number, one.offered, len(one.volumes)) for one in found] == [(4, 2, 2)]
    assert find_series(tmp_path)[1].offered == 1
    with pytest.raises(UsageError, match="names none"):
        find_series(tmp_path, series="5")


def test_the_command_line_lists_volumes_and_reads_the_chosen_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_volumes(tmp_path, [{"EchoTime": "4"}, {"EchoTime": "8"}])
    assert main(["inspect", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[0].split()) == "volume 0 TE 4 ms, 4 slices of 7 x 5"
    assert lines[-1] == "choose one with --volume"
    assert main(["inspect", str(tmp_path), "--volume", "1"]) == 0
    assert "volume 1 of 2 (from 0) in the series: TE 8 ms" in capsys.readouterr().out


def test_the_command_line_resamples_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    z = [0, 1, 2, 3.5, 4.5, 5.5]
    places = {"slice_tags": lambda k: {"ImagePositionPatient": [0, 0, z[k]]}}
    write_series(tmp_path, stored_values((7, 5, 6)), AXIAL, **places)
    assert main(["inspect", str(tmp_path)]) == 4
    assert "--regrid" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path), "--regrid"]) == 0
    assert "7 x 5 x 7 voxels of 0.700 x 0.700 x 0.917 mm" in capsys.readouterr().out
