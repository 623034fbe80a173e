"""Enhanced images and mosaics: many pictures in one file, each placed and rescaled by what is said of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from formats.dicom_phantom import GEOMETRIES, MARKERS, stored_values, write_film, write_series
from formats.dicom_phantom_frames import item, write_enhanced, write_mosaic
from formats.dicom_referee import is_same_image
from medcam.errors import GeometryError, InputError, UsageError
from medcam.formats.dicom import find_series, read_dicom
from medcam.volume import Frame

OBLIQUE = GEOMETRIES["oblique"]
VOXELS = stored_values((7, 5, 6))
ORDER = [3, 0, 5, 1, 4, 2]


def refusal(path: Path, kind: type[Exception] = InputError, *, volume: int | None = None) -> str:
    """Return why a path is refused, having made sure that the message names no patient."""
    with pytest.raises(kind) as caught:
        read_dicom(path, volume=volume)
    assert not any(marker in str(caught.value) for marker in MARKERS)
    return str(caught.value)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("oriented_per_frame", [False, True])
def test_frames_lie_where_they_were_written_in_whatever_order(
    tmp_path: Path, geometry: str, oriented_per_frame: bool
) -> None:
    affine = GEOMETRIES[geometry]
    path = write_enhanced(tmp_path, VOXELS, affine, order=ORDER, oriented_per_frame=oriented_per_frame)
    volume = read_dicom(path)
    assert is_same_image(volume, VOXELS, affine)
    assert volume.grid.frame_of_reference == pydicom.dcmread(path).FrameOfReferenceUID
    assert volume.source.notes == ()


def test_each_frame_has_its_own_rescaling_and_window(tmp_path: Path) -> None:
    write_enhanced(tmp_path, VOXELS, OBLIQUE, kind="CT", order=ORDER, rescale=lambda n: (0.5 + n, -100 * n))
    volume = read_dicom(tmp_path)
    slices = np.arange(6)
    np.testing.assert_array_equal(volume.voxels, VOXELS * (0.5 + slices) - 100 * slices)
    assert volume.unit == "HU"
    assert volume.source.window == (103, 403)


def test_the_source_holds_one_instance_and_the_frame_of_each_slice(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path, VOXELS, OBLIQUE, order=ORDER)
    source = read_dicom(path).source
    assert len(source.instances) == 1
    assert source.slices == tuple(Frame(0, ORDER.index(k) + 1) for k in range(6))
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "PixelData" not in source.instances[0]
    assert len(source.instances[0].PerFrameFunctionalGroupsSequence) == 6
    original = pydicom.dcmread(path)
    del original["PixelData"]
    assert source.instances[0] == original


def test_a_volume_may_be_spread_over_files_of_several_frames(tmp_path: Path) -> None:
    for n, slices in enumerate(([0, 3], [1, 4, 5], [2])):
        write_enhanced(tmp_path, VOXELS[:, :, slices], OBLIQUE, positions=slices, name=f"{n}.dcm", instance=n + 1)
    volume = read_dicom(tmp_path)
    assert is_same_image(volume, VOXELS, OBLIQUE)
    assert [header.InstanceNumber for header in volume.source.instances] == [1, 2, 3]
    frames = [Frame(0, 1), Frame(1, 1), Frame(2, 1), Frame(0, 2), Frame(1, 2), Frame(1, 3)]
    assert list(volume.source.slices) == frames
    files = [hashlib.sha256((tmp_path / f"{n}.dcm").read_bytes()).digest() for n in range(3)]
    assert volume.source.sha256 == hashlib.sha256(b"".join(files)).hexdigest()


def test_plain_and_enhanced_files_of_one_series_make_one_volume(tmp_path: Path) -> None:
    write_enhanced(tmp_path, VOXELS[:, :, :4], OBLIQUE, uid_seed="series")
    write_series(tmp_path, VOXELS, OBLIQUE, leave_out=range(4))
    volume = read_dicom(tmp_path)
    assert is_same_image(volume, VOXELS, OBLIQUE)
    assert volume.source.slices[3:5] == (Frame(0, 4), Frame(1))


def test_what_a_converter_left_unassigned_is_found(tmp_path: Path) -> None:
    def groups(n: int) -> dict[str, Dataset]:
        return {"UnassignedPerFrameConvertedAttributesSequence": item(EchoTime=f"{4.6 * (1 + n // 3):.1f}")}

    write_enhanced(
        tmp_path, VOXELS, OBLIQUE, kind="legacy MR", positions=[0, 1, 2, 0, 1, 2], frame_groups=groups,
    )  # fmt: skip
    assert find_series(tmp_path)[0].volumes == ("TE 4.6 ms, 3 slices of 7 x 5", "TE 9.2 ms, 3 slices of 7 x 5")
    np.testing.assert_array_equal(read_dicom(tmp_path, volume=1).voxels, VOXELS[:, :, 3:])


def test_private_copies_of_a_frames_header_are_not_taken_for_it(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path, VOXELS, OBLIQUE)
    dataset = pydicom.dcmread(path)
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        copy = item(ImagePositionPatient=["1", "2", "3"], EchoTime="7")
        frame.private_block(0x2005, "Philips MR Imaging DD 005", create=True).add_new(0x0F, "SQ", [copy])
    dataset.save_as(path)
    assert is_same_image(read_dicom(path), VOXELS, OBLIQUE)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_frames_are_the_plain_ones(tmp_path: Path, syntax: str) -> None:
    voxels = stored_values((70, 66, 6))
    path = write_enhanced(tmp_path, voxels, OBLIQUE, order=ORDER, transfer_syntax=syntax)
    np.testing.assert_array_equal(read_dicom(path).voxels, voxels)


def test_compressed_frames_that_are_missing_are_told(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path, stored_values((70, 66, 6)), OBLIQUE, transfer_syntax=JPEGLSLossless)
    dataset = pydicom.dcmread(path)
    frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=6))
    dataset.PixelData = pydicom.encaps.encapsulate(frames[:4])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    assert "enhanced.dcm" in (message := refusal(path))
    assert "frames" in message


def test_an_enhanced_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path, VOXELS, OBLIQUE)
    path.write_bytes(path.read_bytes()[:-100])
    assert "cut short" in refusal(path)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"NumberOfFrames": 5}, "holds 5 frames and describes 6"),
        ({"NumberOfFrames": 2_000_000}, "holds 2000000 frames and describes 6"),
        ({"PerFrameFunctionalGroupsSequence": None}, "6 frames (Enhanced MR Image Storage) and does not say where"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, tags: dict[str, object], words: str) -> None:
    message = refusal(write_enhanced(tmp_path, VOXELS, OBLIQUE, tags=tags))
    assert words in message
    assert "enhanced.dcm" in message


def test_a_frame_without_a_place_is_named(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path, VOXELS, OBLIQUE)
    dataset = pydicom.dcmread(path)
    del dataset.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence
    dataset.save_as(path)
    assert "frame 4 of the image with InstanceNumber 1 has no ImagePositionPatient" in refusal(path, GeometryError)


def test_a_missing_frame_is_named_with_its_neighbours_and_its_place(tmp_path: Path) -> None:
    write_enhanced(tmp_path, VOXELS[:, :, [0, 1, 3, 4, 5]], GEOMETRIES["axial"], positions=[0, 1, 3, 4, 5])
    message = refusal(tmp_path, GeometryError)
    assert "frame 2 of the image with InstanceNumber 1 and frame 3 of the image with InstanceNumber 1" in message
    assert "one slice is missing, at -34.000 mm" in message


def test_stacks_of_one_file_are_volumes_of_their_own(tmp_path: Path) -> None:
    # Two groups of slices far apart, as of two breasts or two groups of vertebrae.
    def groups(n: int) -> dict[str, Dataset]:
        return {"FrameContentSequence": item(StackID="right" if n < 3 else "left")}

    write_enhanced(tmp_path, VOXELS, OBLIQUE, positions=[0, 1, 2, 20, 21, 22], frame_groups=groups)
    assert find_series(tmp_path)[0].volumes == ("stack 1 of 2, 3 slices of 7 x 5", "stack 2 of 2, 3 slices of 7 x 5")
    volume = read_dicom(tmp_path, volume=1)
    np.testing.assert_array_equal(volume.voxels, VOXELS[:, :, 3:])
    np.testing.assert_allclose(volume.grid.world_mm(np.zeros(3)), (OBLIQUE @ (0, 0, 20, 1))[:3], atol=1e-6)
    assert volume.source.label == "MR_s6_v1"


def test_a_multi_frame_secondary_capture_with_functional_groups_is_placed(tmp_path: Path) -> None:
    write_enhanced(tmp_path, VOXELS, OBLIQUE, kind="OT", order=ORDER)
    assert is_same_image(read_dicom(tmp_path), VOXELS, OBLIQUE)


def test_frames_without_any_place_are_pictures_to_choose_from(tmp_path: Path) -> None:
    # A film loop: frames follow each other in time and lie nowhere.
    frames = stored_values((9, 6, 3))
    path = write_film(tmp_path, frames[:, :, 0], modality="OT", tags={"NumberOfFrames": 3})
    dataset = pydicom.dcmread(path)
    dataset.PixelData = np.ascontiguousarray(frames.transpose(2, 1, 0)).tobytes()
    dataset.save_as(path)
    assert "  2: frame 3 of the image with InstanceNumber 1, 1 slice of 9 x 6" in refusal(path, GeometryError)
    volume = read_dicom(path, volume=2)
    np.testing.assert_array_equal(volume.voxels[:, :, 0], frames[:, :, 2])
    assert volume.source.slices == (Frame(0, 3),)


def test_no_frame_of_reference_is_none(tmp_path: Path) -> None:
    write_enhanced(tmp_path, VOXELS, OBLIQUE, tags={"FrameOfReferenceUID": None})
    assert read_dicom(tmp_path).grid.frame_of_reference is None


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("count", [1, 2, 4, 5, 9])
def test_the_tiles_of_a_mosaic_lie_where_they_were_written(tmp_path: Path, geometry: str, count: int) -> None:
    voxels = stored_values((7, 5, count))
    volume = read_dicom(write_mosaic(tmp_path, voxels, GEOMETRIES[geometry]))
    if count > 1:
        assert is_same_image(volume, voxels, GEOMETRIES[geometry])
    assert volume.source.slices == (Frame(0),) * count
    assert len(volume.source.instances) == 1


def test_a_compressed_mosaic_is_the_plain_one(tmp_path: Path) -> None:
    path = write_mosaic(tmp_path, VOXELS, OBLIQUE, transfer_syntax=JPEGLSLossless)
    assert is_same_image(read_dicom(path), VOXELS, OBLIQUE)


def test_mosaics_that_follow_each_other_in_time_are_volumes(tmp_path: Path) -> None:
    times = [stored_values((7, 5, 6), seed=n) for n in range(3)]
    for n, voxels in enumerate(times, 1):
        write_mosaic(tmp_path, voxels, OBLIQUE, name=f"{9 - n}.dcm", instance=n)
    assert find_series(tmp_path)[0].volumes == tuple(f"acquisition {n}, 6 slices of 7 x 5" for n in (1, 2, 3))
    for n, voxels in enumerate(times):
        assert is_same_image(read_dicom(tmp_path, volume=n), voxels, OBLIQUE)
    assert "there is no volume 3: the series holds 3" in refusal(tmp_path, UsageError, volume=3)
    assert "there is no volume -1" in refusal(tmp_path, UsageError, volume=-1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"with_csa": False}, r"the private header \(CSA\) .* is missing"),
        ({"csa": {"NumberOfImagesInMosaic": ("US", [])}}, "is missing"),
        ({"csa": {"SliceNormalVector": ("FD", [])}}, "is missing"),
        ({"csa": {"SliceNormalVector": ("FD", ["1", "0"])}}, "is damaged"),
        ({"csa": {"SliceNormalVector": ("FD", ["1", "0", "0"])}}, "not along their normal"),
        ({"csa": {"NumberOfImagesInMosaic": ("US", ["26"])}}, "21 x 15 pixels are not 6 x 6 equal tiles"),
        ({"tags": {"ImageType": ["ORIGINAL", "PRIMARY", "MOSAIC"], "Columns": 22}}, "22 x 15 pixels are not 3 x 3"),
    ],
)
def test_a_mosaic_that_cannot_be_unpacked_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    path = write_mosaic(tmp_path, VOXELS, OBLIQUE, **change)
    with pytest.raises(InputError, match=f"^mosaic.dcm is a mosaic.*{words}|^mosaic.dcm is a Siemens mosaic.*{words}"):
        read_dicom(path)


@pytest.mark.parametrize("length", [0, 3, 50, 90, 200, 300])
def test_a_damaged_private_header_is_refused(tmp_path: Path, length: int) -> None:
    path = write_mosaic(tmp_path, VOXELS, OBLIQUE)
    dataset = pydicom.dcmread(path)
    block = dataset.private_block(0x0029, "SIEMENS CSA HEADER")
    block[0x10].value = block[0x10].value[:length] + b"\xff" * 20
    dataset.save_as(path)
    assert "mosaic.dcm is a " in refusal(path)


def test_a_mosaic_is_known_when_an_anonymiser_took_its_name_away(tmp_path: Path) -> None:
    path = write_mosaic(tmp_path, VOXELS, OBLIQUE, tags={"ImageType": ["DERIVED", "SECONDARY"]})
    dataset = pydicom.dcmread(path)
    dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 6)
    dataset.save_as(path)
    assert is_same_image(read_dicom(path), VOXELS, OBLIQUE)


def test_a_grid_of_slices_of_another_maker_is_refused_by_name(tmp_path: Path) -> None:
    path = write_series(tmp_path, stored_values((14, 10, 1)), OBLIQUE)[0]
    dataset = pydicom.dcmread(path)
    dataset.private_block(0x0065, "Image Private Header", create=True).add_new(0x50, "DS", "4")
    dataset.save_as(path, enforce_file_format=True)
    assert "000.dcm is a grid of slices as United Imaging's scanners store them" in refusal(path)


def test_many_frames_are_read_in_reasonable_time(tmp_path: Path) -> None:
    # Headers of frames are looked into one element at a time: a quadratic search would take minutes here.
    voxels = stored_values((3, 2, 800))
    path = write_enhanced(tmp_path, voxels, OBLIQUE, transfer_syntax=ExplicitVRLittleEndian)
    np.testing.assert_array_equal(read_dicom(path).voxels, voxels)


@pytest.mark.parametrize("kind", ["enhanced", "mosaic"])
def test_random_damage_is_read_or_refused_and_never_a_crash_or_a_leak(tmp_path: Path, kind: str) -> None:
    written = write_enhanced if kind == "enhanced" else write_mosaic
    path = written(tmp_path, VOXELS, OBLIQUE)
    whole = path.read_bytes()
    random = np.random.default_rng(11)
    refused = []
    for _ in range(200):
        content = bytearray(whole[: random.integers(len(whole) // 2, len(whole) + 1)])
        for at in random.integers(0, len(content), 6):
            content[at] = random.choice([0, 32, 92, 255, random.integers(256)])
        path.write_bytes(content)
        try:
            read_dicom(path)
        except InputError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert not any(marker in message for marker in MARKERS for message in refused)
