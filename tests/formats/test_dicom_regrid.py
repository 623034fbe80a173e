"""Resampling onto an even, orthogonal grid: on request only, and right against closed forms and the referee."""

from __future__ import annotations

import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from formats.dicom_phantom import GEOMETRIES, LPS_FROM_RAS, OBLIQUE, affine_of, decimals, stored_values, write_series
from formats.dicom_phantom_frames import write_enhanced
from formats.dicom_referee import canonical, dcm2niix
from formats.test_dicom_referee import only_images, place
from medcam.errors import GeometryError
from medcam.formats.dicom import read_dicom
from medcam.volume import Volume

UNEVEN = np.array([0, 2, 4, 5.5, 8, 11.5, 13])
SHEAR = np.array([[1, 0, 0], [0, 1, 0.45], [0, 0, 1]])
# Values that interpolation in straight lines keeps: affine in patient space.
GRADIENT, LEVEL = np.array([3.0, -2.0, 5.0]), 1000.0


def write_ramp(folder: Path, affine: np.ndarray, along: np.ndarray, *, shape: tuple[int, int] = (19, 17)) -> None:
    """Write slices at `along` (mm along the slice axis of the affine) whose values are affine in patient space (RAS)."""
    step = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
    positions = affine[:3, 3] + along[:, None] * step
    i, j = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    voxels = np.empty((*shape, len(along)), np.uint16)
    for k, origin in enumerate(positions):
        world = origin + i[..., None] * affine[:3, 0] + j[..., None] * affine[:3, 1]
        # A hundredth of a unit is one step of the stored value.
        voxels[:, :, k] = np.rint((world @ GRADIENT + LEVEL) * 30)
    tags = {"slice_tags": lambda k: {"ImagePositionPatient": decimals(LPS_FROM_RAS @ positions[k])}}
    write_series(folder, voxels, affine, **tags, slope=1 / 30, intercept=0)


def assert_is_ramp(volume: Volume, *, tolerance: float = 0.05) -> np.ndarray:
    """Every voxel that the slices reach has the value of its place; return which do.

    Within half a pixel of a slice's edge the edge's own value holds: nothing is extrapolated.
    """
    index = np.stack(np.meshgrid(*[np.arange(n) for n in volume.grid.shape], indexing="ij"), -1)
    expected = volume.grid.world_mm(index) @ GRADIENT + LEVEL
    off = np.abs(volume.voxels - expected)
    half = np.abs(GRADIENT @ volume.grid.affine[:3, :2]).max() / 2
    assert ((off < half + tolerance) | (volume.voxels == volume.voxels.min())).all()
    return off < tolerance


def assert_orthogonal(volume: Volume) -> None:
    axes = volume.grid.affine[:3, :3] / np.linalg.norm(volume.grid.affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)


def test_uneven_slices_are_refused_and_the_way_out_is_named(tmp_path: Path) -> None:
    write_ramp(tmp_path, affine_of(OBLIQUE, (0.8, 0.9, 1), (20, 30, -40)), UNEVEN)
    with pytest.raises(GeometryError, match=r"uneven distances.*--regrid \(regrid=True\)"):
        read_dicom(tmp_path)


def test_uneven_slices_become_even_between_the_first_and_the_last(tmp_path: Path) -> None:
    affine = affine_of(OBLIQUE, (0.8, 0.9, 1), (20, 30, -40))
    write_ramp(tmp_path, affine, UNEVEN)
    volume = read_dicom(tmp_path, regrid=True)
    # 13 mm in steps of at most 1.5 mm, the shortest.
    assert volume.grid.shape == (19, 17, 10)
    assert volume.grid.spacing_mm == pytest.approx((0.8, 0.9, 13 / 9), abs=1e-6)
    assert_orthogonal(volume)
    assert assert_is_ramp(volume).all()
    step = affine[:3, 2]
    np.testing.assert_allclose(volume.grid.world_mm(np.array([0, 0, 0])), affine[:3, 3], atol=1e-6)
    np.testing.assert_allclose(volume.grid.world_mm(np.array([0, 0, 9])), affine[:3, 3] + 13 * step, atol=1e-6)


def test_after_resampling_no_slice_is_a_picture_and_all_headers_are_kept(tmp_path: Path) -> None:
    write_ramp(tmp_path, affine_of(OBLIQUE, (0.8, 0.9, 1), (20, 30, -40)), UNEVEN)
    source = read_dicom(tmp_path, regrid=True).source
    assert source.slices == (None,) * 10
    assert [header.InstanceNumber for header in source.instances] == list(range(1, 8))
    assert "7 uneven slices were resampled onto 10 even ones, 1.444 mm apart" in source.notes[0]


def test_no_step_is_shorter_than_a_pixel(tmp_path: Path) -> None:
    write_ramp(tmp_path, affine_of(OBLIQUE, (0.8, 0.9, 1), (20, 30, -40)), np.array([0, 3, 3.35, 6.3, 9.4]))
    volume = read_dicom(tmp_path, regrid=True)
    assert volume.grid.shape[2] == int(np.ceil(9.4 / 0.8)) + 1
    assert_is_ramp(volume)


@pytest.mark.parametrize("sign", [1, -1])
def test_tilted_slices_stay_where_they_are_and_shift_within_themselves(tmp_path: Path, sign: int) -> None:
    affine = affine_of(OBLIQUE @ (SHEAR * (1, 1, sign)), (0.8, 0.9, 2), (20, 30, -40))
    affine[:3, 2] *= 1 / np.linalg.norm(affine[:3, 2]) * 2.5
    write_ramp(tmp_path, affine, np.arange(6) * 2.5)
    sheared = read_dicom(tmp_path)
    volume = read_dicom(tmp_path, regrid=True)
    assert_orthogonal(volume)
    reached = assert_is_ramp(volume)
    # Each slice has its own pixels, as many as it had, but for a line that shifting by parts of a pixel costs.
    assert volume.grid.shape[2] == 6
    assert volume.grid.shape[1] > 17
    assert (reached.sum(axis=(0, 1)) >= 19 * 16).all()
    normal = np.cross(affine[:3, 0], affine[:3, 1]) / (0.8 * 0.9)
    for k in range(6):
        apart = sheared.grid.world_mm(np.array([0, 0, k])) - volume.grid.world_mm(np.array([0, 0, k]))
        assert apart @ normal == pytest.approx(0, abs=1e-6)
    assert "6 tilted slices were resampled onto 6 even ones" in volume.source.notes[0]


def test_tilted_and_uneven_slices_of_an_enhanced_image_are_resampled_alike(tmp_path: Path) -> None:
    affine = affine_of(OBLIQUE @ SHEAR, (0.8, 0.9, 2), (20, 30, -40))
    voxels = stored_values((9, 8, 4))
    write_enhanced(tmp_path, voxels, affine, positions=[0, 2, 3, 7])
    with pytest.raises(GeometryError, match="slices are missing"):
        read_dicom(tmp_path, regrid=True)
    volume = read_dicom(tmp_path, regrid=True, allow_gaps=True)
    assert volume.grid.shape[2] == 8
    assert volume.source.slices == (None,) * 8
    assert_orthogonal(volume)


def test_what_lies_on_no_straight_line_is_resampled_too(tmp_path: Path) -> None:
    affine = affine_of(OBLIQUE, (0.8, 0.9, 2), (20, 30, -40))
    write_ramp(tmp_path, affine, np.arange(5) * 2.0)
    for k, path in enumerate(sorted(tmp_path.iterdir())):
        dataset = pydicom.dcmread(path)
        # The patient table was moved sideways between slices; the picture moved with its place.
        moved = np.array(dataset.ImagePositionPatient, float) + (k % 2) * 1.6 * (LPS_FROM_RAS @ affine[:3, 0]) / 0.8
        ramp = (k % 2) * 1.6 * affine[:3, 0] / 0.8 @ GRADIENT
        dataset.ImagePositionPatient = decimals(moved)
        dataset.RescaleIntercept = decimals([ramp])[0]
        dataset.save_as(path)
    with pytest.raises(GeometryError, match=r"straight line.*--regrid"):
        read_dicom(tmp_path)
    volume = read_dicom(tmp_path, regrid=True)
    assert volume.grid.shape == (21, 17, 5)
    assert_is_ramp(volume)


def test_what_is_even_and_orthogonal_is_left_as_it_is(tmp_path: Path) -> None:
    voxels = stored_values()
    write_series(tmp_path, voxels, GEOMETRIES["oblique"])
    volume = read_dicom(tmp_path, regrid=True)
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert None not in volume.source.slices
    assert volume.source.notes == ()
    path = next(tmp_path.iterdir())
    assert read_dicom(path, regrid=True).grid.shape == (7, 5, 1)


def test_missing_slices_of_an_even_series_are_still_asked_for(tmp_path: Path) -> None:
    voxels = stored_values((7, 5, 6))
    write_series(tmp_path, voxels, GEOMETRIES["oblique"], leave_out=[2])
    with pytest.raises(GeometryError, match="one slice is missing"):
        read_dicom(tmp_path, regrid=True)
    volume = read_dicom(tmp_path, regrid=True, allow_gaps=True)
    assert [k for k, frame in enumerate(volume.source.slices) if frame is None] == [2]


def test_a_real_tilted_series_is_straightened_as_the_referee_does(tmp_path: Path) -> None:
    folder = only_images(place("shared dicom_hard/failing/gantrytilting/001"), tmp_path / "in")
    volume = read_dicom(folder, regrid=True)
    assert_orthogonal(volume)
    (tmp_path / "out").mkdir()
    command = [
        dcm2niix(),
        "-z",
        "n",
        "-b",
        "n",
        "-m",
        "y",
        "-p",
        "n",
        "-f",
        "out",
        "-o",
        str(tmp_path / "out"),
        str(folder),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = (tmp_path / "out").glob("*_Tilt*.nii")
    image = nibabel.load(path)
    mine, my_affine = canonical(volume.voxels, volume.grid.affine)
    theirs, their_affine = canonical(np.asarray(image.dataobj), image.affine)
    assert mine.shape == theirs.shape
    np.testing.assert_allclose(my_affine, their_affine, atol=1e-5)
    # The referee rounds to whole numbers, and goes a row less far at the edges.
    apart = np.abs(mine - theirs)[:, 10:-10]
    assert apart.max() < 0.51
    assert theirs.std() > 50
