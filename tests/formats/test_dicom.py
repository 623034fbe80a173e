"""The DICOM door in: series of slices land where independent readers put them, or are refused by name."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from formats.dicom_phantom import (
    AXIAL,
    GEOMETRIES,
    MARKERS,
    affine_of,
    rotation,
    stored_values,
    write_series,
)
from medcam.errors import GeometryError, InputError
from medcam.formats.dicom import read_dicom
from medcam.volume import Volume

TILTED = affine_of(np.array([[-1, 0, 0], [0, -1, 0.3], [0, 0, 1]]), (0.6, 0.6, 4), (60, 70, -20))


def dcm2niix() -> str:
    """Return the path of dcm2niix: on the PATH, or in the PyPI package."""
    if found := shutil.which("dcm2niix"):
        return found
    return str(pytest.importorskip("dcm2niix", reason="dcm2niix is not installed").bin)


def canonical(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the same voxels in nibabel's nearest-to-RAS axis order."""
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(np.asarray(voxels, np.float32), affine))
    return np.asarray(image.dataobj), image.affine


def assert_same_image(volume: Volume, voxels: np.ndarray, affine: np.ndarray) -> None:
    """Both say the same of every point in the patient: equal voxels, and corners within a micrometre of each other."""
    found, found_affine = canonical(volume.voxels, volume.grid.affine)
    expected, expected_affine = canonical(voxels, affine)
    assert found.shape == expected.shape
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in found.shape])).reshape(3, -1)
    corners = np.vstack([corners, np.ones(corners.shape[1])])
    np.testing.assert_allclose(found_affine @ corners, expected_affine @ corners, atol=1e-3)
    np.testing.assert_array_equal(found, expected)


def by_simpleitk(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Return what SimpleITK's series reader sees, in RAS."""
    sitk = pytest.importorskip("SimpleITK")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(paths[0].parent))
    image = sitk.ReadImage(names if len(names) > 1 else names[0])
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, np.diag((-1, -1, 1, 1)) @ affine


def by_dcm2niix(folder: Path, out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return what dcm2niix makes of a folder."""
    out.mkdir()
    command = [dcm2niix(), "-z", "n", "-b", "n", "-m", "y", "-f", "out%s_%d", "-o", str(out), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    written = [path for path in out.glob("*.nii") if "_Tilt" not in path.name and "_Eq" not in path.name]
    assert len(written) == 1, [path.name for path in out.iterdir()]
    image = nibabel.load(written[0])
    return np.asarray(image.dataobj), image.affine


def refusal(path: Path, *, allow_gaps: bool = False, kind: type[Exception] = GeometryError) -> str:
    """Return why a path is refused, having made sure that the message names no patient."""
    with pytest.raises(kind) as caught:
        read_dicom(path, allow_gaps=allow_gaps)
    assert not any(marker in str(caught.value) for marker in MARKERS)
    assert str(path.parent) not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_series_lies_where_it_was_written_and_where_simpleitk_sees_it(tmp_path: Path, geometry: str) -> None:
    voxels = stored_values()
    paths = write_series(tmp_path / "s", voxels, GEOMETRIES[geometry])
    volume = read_dicom(tmp_path / "s")
    assert_same_image(volume, voxels, GEOMETRIES[geometry])
    assert_same_image(volume, *by_simpleitk(paths))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_series_lies_where_dcm2niix_puts_it(tmp_path: Path, geometry: str) -> None:
    write_series(tmp_path / "s", stored_values((17, 13, 6)), GEOMETRIES[geometry])
    assert_same_image(read_dicom(tmp_path / "s"), *by_dcm2niix(tmp_path / "s", tmp_path / "out"))


def test_array_axes_are_column_row_and_slice_along_the_normal(tmp_path: Path) -> None:
    voxels = stored_values((7, 5, 4))
    write_series(tmp_path, voxels, GEOMETRIES["axial"])
    volume = read_dicom(tmp_path)
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.grid.affine, GEOMETRIES["axial"], atol=1e-9)
    assert volume.grid.axis_codes == ("L", "P", "S")
    assert volume.voxels.dtype == np.float32


def test_slices_are_sorted_by_position_whatever_their_names_numbers_and_thickness_say(tmp_path: Path) -> None:
    voxels = stored_values((7, 5, 6))
    order = [3, 0, 5, 1, 4, 2]
    write_series(
        tmp_path,
        voxels,
        GEOMETRIES["oblique"],
        slice_tags=lambda k: {"InstanceNumber": order[k], "SliceThickness": 9, "SpacingBetweenSlices": -9},
        name="IM{k}",
    )
    for k, n in enumerate(order):
        (tmp_path / f"IM{k}").rename(tmp_path / f"{n}-file")
    assert_same_image(read_dicom(tmp_path), voxels, GEOMETRIES["oblique"])


@pytest.mark.parametrize(
    ("tags", "thickness_mm"),
    [
        ({"SliceThickness": "2.5"}, 2.5),
        ({"SliceThickness": None, "SpacingBetweenSlices": "-4"}, 4),
        ({"SliceThickness": "0"}, 1),
        ({"SliceThickness": ""}, 1),
    ],
)
def test_one_slice_is_as_thick_as_it_says(tmp_path: Path, tags: dict[str, str], thickness_mm: float) -> None:
    voxels = stored_values((7, 5, 1))
    paths = write_series(tmp_path, voxels, GEOMETRIES["oblique"], tags=tags)
    volume = read_dicom(paths[0])
    step = volume.grid.affine[:3, 2]
    assert volume.grid.spacing_mm[2] == pytest.approx(thickness_mm)
    np.testing.assert_allclose(step, GEOMETRIES["oblique"][:3, 2] / 2.5 * thickness_mm, atol=1e-6)
    image, affine = by_simpleitk(paths)
    np.testing.assert_array_equal(volume.voxels, image)
    np.testing.assert_allclose(volume.grid.affine[:, [0, 1, 3]], affine[:, [0, 1, 3]], atol=1e-6)


def test_one_file_of_a_folder_is_read_alone(tmp_path: Path) -> None:
    voxels = stored_values()
    paths = write_series(tmp_path, voxels, GEOMETRIES["axial"])
    volume = read_dicom(paths[2])
    np.testing.assert_array_equal(volume.voxels, voxels[:, :, 2:3])
    np.testing.assert_allclose(volume.grid.world_mm(np.zeros(3)), (GEOMETRIES["axial"] @ (0, 0, 2, 1))[:3])


def test_a_tilted_gantry_gives_a_sheared_grid_and_a_note(tmp_path: Path) -> None:
    voxels = stored_values()
    write_series(tmp_path / "s", voxels, TILTED, modality="CT")
    volume = read_dicom(tmp_path / "s")
    np.testing.assert_allclose(volume.grid.affine, TILTED, atol=1e-9)
    np.testing.assert_array_equal(volume.voxels, voxels)
    degrees = np.degrees(np.arctan(0.3))
    assert f"gantry tilt: the slices step {degrees:.1f} degrees off their normal" in volume.source.notes[0]


def test_a_missing_slice_is_refused_with_its_neighbours_and_distances(tmp_path: Path) -> None:
    write_series(tmp_path, stored_values((7, 5, 9)), GEOMETRIES["axial"], leave_out=[4])
    message = refusal(tmp_path)
    for words in (
        "slices 4 and 5 (the image with InstanceNumber 4 and the image with InstanceNumber 6,",
        "at -31.000 and -25.000 mm along the normal) lie 6.000 mm apart, the others 3.000 mm",
        "one slice is missing, at -28.000 mm along the normal",
        "--allow-gaps",
        "allow_gaps=True",
    ):
        assert words in message


def test_missing_slices_are_interpolated_on_request_and_told(tmp_path: Path) -> None:
    voxels = stored_values((7, 5, 9))
    write_series(tmp_path, voxels, TILTED, leave_out=[3, 4, 7])
    assert "3 slices are missing" in refusal(tmp_path)
    volume = read_dicom(tmp_path, allow_gaps=True)
    expected = voxels.astype(np.float64)
    expected[:, :, 3] = expected[:, :, 2] * 2 / 3 + expected[:, :, 5] / 3
    expected[:, :, 4] = expected[:, :, 2] / 3 + expected[:, :, 5] * 2 / 3
    expected[:, :, 7] = expected[:, :, 6] / 2 + expected[:, :, 8] / 2
    np.testing.assert_allclose(volume.voxels, expected, rtol=1e-6)
    np.testing.assert_allclose(volume.grid.affine, TILTED, atol=1e-9)
    assert [k for k, frame in enumerate(volume.source.slices) if frame is None] == [3, 4, 7]
    assert volume.source.header(5).InstanceNumber == 6
    assert any("slices 4, 5, 8 of 9" in note for note in volume.source.notes)


@pytest.mark.parametrize("allow_gaps", [False, True])
def test_uneven_steps_are_refused_in_all_cases(tmp_path: Path, allow_gaps: bool) -> None:
    z = [0, 1, 2, 3.5, 4.5, 5.5]
    positions = {"slice_tags": lambda k: {"ImagePositionPatient": [0, 0, z[k]]}}
    write_series(tmp_path, stored_values((7, 5, 6)), GEOMETRIES["axial"], **positions)
    message = refusal(tmp_path, allow_gaps=allow_gaps)
    assert "uneven" in message
    assert "1.000 mm (4 x), 1.500 mm (1 x)" in message


def test_a_slice_between_thick_slices_is_uneven_and_not_many_gaps(tmp_path: Path) -> None:
    z = [0, 5, 10, 11, 15, 20]
    positions = {"slice_tags": lambda k: {"ImagePositionPatient": [0, 0, z[k]]}}
    write_series(tmp_path, stored_values((7, 5, 6)), GEOMETRIES["axial"], **positions)
    assert "uneven" in refusal(tmp_path, allow_gaps=True)


def test_rounded_positions_are_even_and_the_affine_runs_from_first_to_last(tmp_path: Path) -> None:
    z = np.round(np.arange(12) * 1.2345, 2)
    positions = {"slice_tags": lambda k: {"ImagePositionPatient": [0, 0, str(z[k])]}}
    write_series(tmp_path, stored_values((7, 5, 12)), GEOMETRIES["axial"], **positions)
    volume = read_dicom(tmp_path)
    assert volume.grid.spacing_mm[2] == pytest.approx(z[-1] / 11)
    assert volume.source.notes == ()


def test_small_differences_that_add_up_are_refused(tmp_path: Path) -> None:
    z = np.cumsum(np.r_[0, np.full(40, 1.0), np.full(40, 1.009)])
    positions = {"slice_tags": lambda k: {"ImagePositionPatient": [0, 0, f"{z[k]:.4f}"]}}
    write_series(tmp_path, stored_values((3, 2, 81)), GEOMETRIES["axial"], **positions)
    assert "straight line" in refusal(tmp_path)


def test_two_images_at_one_position_with_nothing_to_tell_them_apart_are_refused(tmp_path: Path) -> None:
    def twice(k: int) -> dict[str, list[float]]:
        return {"ImagePositionPatient": [0, 0, min(k, 2)]}

    write_series(tmp_path, stored_values(), GEOMETRIES["axial"], slice_tags=twice)
    assert "share 1 of its 3 positions along the slice normal" in (message := refusal(tmp_path))
    assert "2.000 mm (2 images)" in message


def test_the_same_instance_stored_twice_counts_once(tmp_path: Path) -> None:
    voxels = stored_values()
    write_series(tmp_path / "a", voxels, GEOMETRIES["axial"])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    volume = read_dicom(tmp_path)
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert len(volume.source.instances) == 4
    assert volume.source.notes == ("files that repeat an image of the series were left out: 4",)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 0.02, 1, 0]}, "perpendicular and of length 1"),
        ({"ImageOrientationPatient": [1.01, 0, 0, 0, 1, 0]}, "perpendicular and of length 1"),
        ({"ImageOrientationPatient": None}, "no ImageOrientationPatient"),
        ({"ImageOrientationPatient": [1, 0, 0]}, "should be 6 finite numbers"),
        ({"ImagePositionPatient": None}, "no ImagePositionPatient"),
        ({"PixelSpacing": None}, "no PixelSpacing"),
        ({"PixelSpacing": [0, 0]}, "positive millimetres"),
    ],
)
def test_damaged_geometry_is_refused_by_the_name_of_the_element(
    tmp_path: Path, tags: dict[str, object], words: str
) -> None:
    write_series(tmp_path, stored_values(), GEOMETRIES["axial"], slice_tags=lambda k: tags if k == 1 else {})
    message = refusal(tmp_path)
    assert words in message
    assert "InstanceNumber 2" in message
    assert next(iter(tags)) in message


@pytest.mark.parametrize(
    ("value", "words"),
    [(b"secret", "does not hold numbers"), (b"nan   ", "finite numbers"), (b"inf   ", "finite numbers")],
)
def test_what_is_no_number_is_refused_without_being_repeated(tmp_path: Path, value: bytes, words: str) -> None:
    paths = write_series(tmp_path, stored_values(), GEOMETRIES["axial"], tags={"PixelSpacing": ["0.7654", "0.7654"]})
    paths[0].write_bytes(paths[0].read_bytes().replace(b"0.7654\\0.7654", value + b"\\0.7654"))
    message = refusal(tmp_path)
    assert "PixelSpacing of the image with InstanceNumber 1" in message
    assert words in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"FrameOfReferenceUID": "1.2.3"}, "frame of reference 2 of 2, 1 slice of 7 x 5"),
        ({"PixelSpacing": [0.7, 0.71]}, "pixels of 0.7 x 0.71 mm, 1 slice of 7 x 5"),
    ],
)
def test_slices_that_do_not_belong_together_are_volumes_to_choose_from(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    write_series(tmp_path, stored_values(), GEOMETRIES["axial"], slice_tags=lambda k: change if k == 3 else {})
    message = refusal(tmp_path)
    assert "holds 2 volumes" in message
    assert f"  1: {words}" in message
    assert read_dicom(tmp_path, volume=0).grid.shape == (7, 5, 3)


def test_slices_of_two_sizes_are_volumes_to_choose_from(tmp_path: Path) -> None:
    write_series(tmp_path, stored_values((7, 5, 3)), GEOMETRIES["axial"], name="a{k}")
    uids = {"slice_tags": lambda k: {"SOPInstanceUID": f"1.2.{k}"}}
    write_series(tmp_path, stored_values((7, 6, 1)), GEOMETRIES["axial"], name="b{k}", **uids)
    assert "  0: 3 slices of 7 x 5\n  1: 1 slice of 7 x 6" in refusal(tmp_path)
    assert read_dicom(tmp_path, volume=1).grid.shape == (7, 6, 1)


def test_a_header_that_asks_for_more_memory_than_any_volume_is_refused(tmp_path: Path) -> None:
    z = {"slice_tags": lambda k: {"ImagePositionPatient": [0, 0, 3 * k if k < 3 else 1_000_000]}}
    write_series(tmp_path, stored_values(), GEOMETRIES["axial"], **z, tags={"Rows": 60000, "Columns": 60000})
    assert "GiB" in refusal(tmp_path, allow_gaps=True, kind=InputError)


def test_the_source_says_what_was_read_and_no_patient(tmp_path: Path) -> None:
    paths = write_series(
        tmp_path,
        stored_values(),
        GEOMETRIES["against the normal"],
        modality="CT",
        number=12,
        tags={"WindowCenter": ["40", "300"], "WindowWidth": ["400", "1500"]},
    )
    source = (volume := read_dicom(tmp_path)).source
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in reversed(paths)]
    assert source.format == "dicom"
    assert source.sha256 == hashlib.sha256(b"".join(digests)).hexdigest()
    assert source.label == "CT_s12"
    assert source.modality == "CT"
    assert (source.oriented, source.spaced) == (True, True)
    assert source.window == (40, 400)
    assert source.notes == ()
    assert volume.grid.frame_of_reference == pydicom.dcmread(paths[0]).FrameOfReferenceUID
    assert [header.InstanceNumber for header in source.instances] == [4, 3, 2, 1]
    for header, path in zip(source.instances, reversed(paths), strict=True):
        original = pydicom.dcmread(path)
        assert header.PatientName == MARKERS[0]
        del original["PixelData"]
        assert header == original
    assert not any(marker in repr(source) + str(volume) for marker in MARKERS)


def test_the_window_is_that_of_the_middle_slice(tmp_path: Path) -> None:
    windows = {"slice_tags": lambda k: {"WindowCenter": str(10 * k), "WindowWidth": str(100 + k)}}
    write_series(tmp_path, stored_values((7, 5, 5)), GEOMETRIES["axial"], **windows)
    assert read_dicom(tmp_path).source.window == (20, 102)


def test_a_label_without_a_series_number_is_short_and_its_own(tmp_path: Path) -> None:
    labels = []
    for seed in ("a", "b"):
        write_series(tmp_path / seed, stored_values(), GEOMETRIES["axial"], number=None, uid_seed=seed)
        labels.append(read_dicom(tmp_path / seed).source.label)
    assert labels[0] != labels[1]
    assert all(label.startswith("MR_") and len(label) == 9 for label in labels)


def test_one_file_has_its_own_digest_and_no_frame_of_reference_is_none(tmp_path: Path) -> None:
    paths = write_series(tmp_path, stored_values(), GEOMETRIES["axial"], tags={"FrameOfReferenceUID": None})
    volume = read_dicom(paths[0])
    assert volume.source.sha256 == hashlib.sha256(paths[0].read_bytes()).hexdigest()
    assert volume.grid.frame_of_reference is None


def test_a_hair_of_rotation_between_slices_is_tolerated_and_a_turn_is_not(tmp_path: Path) -> None:
    for degrees, folder in ((0.02, "hair"), (0.5, "turn")):
        turned = (rotation((0, 0, 1), degrees) @ AXIAL)[:, :2].T.ravel()
        tags = {"ImageOrientationPatient": [round(float(c), 9) for c in turned * np.tile((-1, -1, 1), 2)]}
        write_series(
            tmp_path / folder, stored_values(), GEOMETRIES["axial"], slice_tags=lambda k, t=tags: t if k else {}
        )
    assert read_dicom(tmp_path / "hair").voxels.shape == (7, 5, 4)
    assert "axial with normal" in refusal(tmp_path / "turn")
