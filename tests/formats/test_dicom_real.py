"""Real files: each is placed right, or refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from formats.test_dicom import assert_same_image, by_dcm2niix, by_simpleitk, canonical
from medcam.errors import GeometryError, InputError
from medcam.formats.dicom import find_series, read_dicom

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def shared(name: str) -> Path:
    """Return a path in the folder of third-party images, or skip."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"the third-party image {name} is not here")
    return path.resolve()


def unpacked(name: str, folder: Path) -> list[Path]:
    """Return the files of a zip of third-party images, unpacked."""
    shutil.unpack_archive(shared(name), folder)
    return sorted(folder.iterdir())


def test_a_real_series_with_a_missing_slice_is_refused_and_then_filled(tmp_path: Path) -> None:
    path = shared("dicom_mr_series/ax_fse_t2_missing_slice.zip")
    with pytest.raises(
        GeometryError, match=r"slices 10 and 11 \(.*InstanceNumber 34 and.*Number 36,.*5.000 mm .* 2.500"
    ):
        read_dicom(path)
    volume = read_dicom(path, allow_gaps=True)
    assert volume.grid.shape == (384, 512, 21)
    assert volume.source.slices[10] is None
    # Every slice that is there lies where its own header says, to a micrometre.
    for k in range(21):
        if (header := volume.source.header(k)) is not None:
            x, y, z = header.ImagePositionPatient
            np.testing.assert_allclose(volume.grid.world_mm(np.array([0, 0, k])), (-x, -y, z), atol=2e-3)
    np.testing.assert_allclose(
        volume.voxels[:, :, 10], (volume.voxels[:, :, 9] + volume.voxels[:, :, 11]) / 2, rtol=1e-6
    )


def test_a_real_oblique_series_lies_where_dcm2niix_and_simpleitk_put_it(tmp_path: Path) -> None:
    files = unpacked("dicom_mr_series/memprage_oblique.zip", tmp_path / "s")
    volume = read_dicom(shared("dicom_mr_series/memprage_oblique.zip"))
    assert volume.grid.shape == (192, 192, 80)
    assert volume.source.notes == ()
    assert_same_image(volume, *by_simpleitk(files))
    assert_same_image(volume, *by_dcm2niix(tmp_path / "s", tmp_path / "out"))


def test_a_real_segmentation_stands_aside_from_the_ct_it_was_drawn_on(tmp_path: Path) -> None:
    folder = shared("ct_dicomseg")
    volume = read_dicom(folder)
    assert volume.grid.shape == (512, 512, 3)
    assert (volume.unit, volume.source.label, volume.source.window) == ("HU", "CT_s2", (40, 400))
    for name in ("01.dcm", "02.dcm", "03.dcm"):
        shutil.copy(folder / name, tmp_path)
    assert_same_image(volume, *by_simpleitk(sorted(tmp_path.iterdir())))
    with pytest.raises(InputError, match="only 1 SEG"):
        read_dicom(folder / "liver.dcm")


def test_a_chest_film_with_broken_spacing_is_turned_over_and_measured_in_pixels() -> None:
    path = shared("cxr_dicom/RG1_J2KI.dcm")
    volume = read_dicom(path)
    assert volume.grid.shape == (1841, 1955, 1)
    assert volume.grid.spacing_mm == (1, 1, 1)
    assert volume.grid.axis_codes == ("L", "I", "P")
    assert (volume.source.spaced, volume.source.oriented, volume.source.label) == (False, True, "CR_s1")
    assert volume.source.window == (2**15 - 1 - 15000, 30000)
    stored = pydicom.dcmread(path).pixel_array
    np.testing.assert_array_equal(volume.voxels[:, :, 0].T, 2.0**15 - 1 - stored)
    # Bone and soft tissue are bright, the air beside the shoulders is dark: the right way round for a network.
    assert np.median(volume.voxels[800:1040, 300:1600]) > np.median(volume.voxels[:60, :200])


def test_a_film_with_inverse_presentation_is_turned_over_once() -> None:
    path = shared("cxr_dicom/DX_thorax.dcm")
    volume = read_dicom(path)
    np.testing.assert_array_equal(volume.voxels[:, :, 0].T, 255.0 - pydicom.dcmread(path).pixel_array)
    assert volume.grid.spacing_mm == pytest.approx((1.2012, 1.2, 1), abs=1e-6)
    assert volume.source.window == (127, 256)
    assert "at the detector" in volume.source.notes[0]


def test_a_secondary_capture_of_a_film_is_read_without_orientation() -> None:
    volume = read_dicom(shared("cxr_dicom/Fake_MONOHR1.dcm"))
    assert volume.grid.spacing_mm == pytest.approx((0.168, 0.168, 1))
    assert (volume.source.oriented, volume.source.spaced, volume.source.label) == (False, True, "CR_s1")


def test_an_mr_slice_with_an_overlay_shows_the_tissue_alone() -> None:
    path = shared("cxr_dicom/MR-SIEMENS-DICOM-WithOverlays.dcm")
    volume = read_dicom(path)
    np.testing.assert_array_equal(volume.voxels[:, :, 0].T, pydicom.dcmread(path).pixel_array)
    assert volume.source.notes == ("overlays were ignored",)
    assert volume.source.window == (450, 790)


def test_one_series_in_four_compressions_is_one_volume() -> None:
    volumes = [read_dicom(shared(f"dicom_hard/compressed/{name}")) for name in ("rle", "jpeg", "jpegls", "j2k")]
    for other in volumes[1:]:
        np.testing.assert_array_equal(other.voxels, volumes[0].voxels)
        assert other.grid == volumes[0].grid
    assert volumes[0].voxels.max() > 200


def test_a_real_tilted_gantry_lies_where_dcm2niix_puts_it(tmp_path: Path) -> None:
    folder = shared("dicom_hard/failing/gantrytilting/001")
    volume = read_dicom(folder)
    assert "gantry tilt: the slices step 14.0 degrees" in volume.source.notes[0]
    for k, header in enumerate(volume.source.instances):
        x, y, z = header.ImagePositionPatient
        np.testing.assert_allclose(volume.grid.world_mm(np.array([0, 0, k])), (-x, -y, z), atol=1e-6)
    voxels, _ = by_dcm2niix(folder, tmp_path / "out")
    np.testing.assert_array_equal(*(canonical(array, np.eye(4))[0] for array in (volume.voxels[:, ::-1], voxels)))


def test_a_gap_in_a_tilted_series_is_filled_along_the_tilt() -> None:
    path = shared("dicom_hard/failing/sliceincrement/002")
    with pytest.raises(GeometryError, match=r"InstanceNumber 3 and .* 5,"):
        read_dicom(path)
    volume = read_dicom(path, allow_gaps=True)
    x, y, z = volume.source.header(4).ImagePositionPatient
    np.testing.assert_allclose(volume.grid.world_mm(np.array([0, 0, 4])), (-x, -y, z), atol=1e-6)
    assert len(volume.source.notes) == 2


def test_two_slices_lie_where_dicom2nifti_says() -> None:
    volume = read_dicom(shared("dicom_hard/failing/slicecount/001"))
    truth = nibabel.load(shared("dicom_hard/failing/slicecount/001_ground_truth.nii.gz"))
    assert_same_image(volume, np.asarray(truth.dataobj), truth.affine)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("failing/notavolume/001", GeometryError, r"(?s)holds 4 volumes.*  3: acquisition 15, 1 slice of 512 x 512"),
        ("failing/sliceincrement/001", GeometryError, "lie 10.000 mm apart, the others 5.000 mm: one slice is missing"),
        ("failing/sliceorientation/001", GeometryError, r"(?s)holds 2 volumes.*with normal.*with normal"),
        ("enhanced_siemens", GeometryError, r"(?s)holds 4 volumes.*  3: time 4, 6 slices of 64 x 64"),
        ("failing", InputError, "holds 6 series"),
    ],
)
def test_what_is_no_volume_is_refused_by_name(name: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        read_dicom(shared(f"dicom_hard/{name}"))


def test_series_are_told_apart_in_a_folder_of_many() -> None:
    found = find_series(shared("dicom_hard/failing"))
    assert [(one.number, one.modality, one.shape[2]) for one in found] == [
        (2, "CT", 4),
        (3, "CT", 4),
        (4, "CT", 4),
        (4, "CT", 4),
        (4, "MR", 2),
        (202, "MR", 4),
    ]


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm"])
def test_pydicoms_own_files_lie_where_simpleitk_puts_them(tmp_path: Path, name: str) -> None:
    shutil.copy(get_testdata_file(name, download=False), tmp_path)
    volume = read_dicom(tmp_path)
    voxels, affine = by_simpleitk([tmp_path / name])
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.grid.affine[:, [0, 1, 3]], affine[:, [0, 1, 3]], atol=1e-6)


def test_one_image_in_every_transfer_syntax_is_one_volume() -> None:
    names = "MR_small_RLE MR_small_bigendian MR_small_implicit MR_small_jp2klossless MR_small_jpeg_ls_lossless"
    plain = read_dicom(Path(get_testdata_file("MR_small.dcm")))
    for name in [*names.split(), "MR_small_padded"]:
        other = read_dicom(Path(get_testdata_file(f"{name}.dcm")))
        np.testing.assert_array_equal(other.voxels, plain.voxels)
        np.testing.assert_array_equal(other.grid.affine, plain.grid.affine)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("MR_truncated.dcm", "MR_truncated.dcm .*cut short"),
        ("rtdose_1frame.dcm", "no DICOM image, only 1 RTDOSE"),
        ("reportsi.dcm", "no DICOM image, only 1 SR"),
        ("rtstruct.dcm", "no DICOM image, only 1 RTSTRUCT"),
        ("SC_rgb_rle.dcm", "colour image"),
        ("examples_palette.dcm", "colour image"),
        ("README.txt", "no DICOM image"),
    ],
)
def test_pydicoms_files_that_are_no_greyscale_image_are_refused(name: str, words: str) -> None:
    path = get_testdata_file(name, download=False) or Path(pydicom.__file__).parent / "data" / "test_files" / name
    with pytest.raises(InputError, match=words):
        read_dicom(Path(path))
