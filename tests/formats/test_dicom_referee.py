"""dcm2niix as referee: what both read is the same image in the same place, and what medcam refuses it refuses for a reason."""

from __future__ import annotations

import gzip
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from formats.dicom_phantom import GEOMETRIES, affine_of, stored_values, write_series
from formats.dicom_phantom_frames import item, write_enhanced, write_mosaic
from formats.dicom_referee import converted, is_same_image
from medcam.errors import InputError
from medcam.formats.dicom import find_series, read_dicom

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
PYDICOM = Path(pydicom.__file__).parent / "data" / "test_files"
VOXELS = stored_values((17, 13, 6))

# The real series that both read: where they lie, and how many volumes each series holds.
SHARED_SERIES = {
    "dicom_hard/compressed/rle": 1,
    "dicom_hard/compressed/jpeg": 1,
    "dicom_hard/compressed/jpegls": 1,
    "dicom_hard/compressed/j2k": 1,
    "dicom_hard/enhanced_philips": 1,
    "dicom_hard/enhanced_siemens": 4,
    "dicom_hard/failing/notavolume/001": 4,
    "dicom_hard/failing/slicecount/001": 1,
    "dicom_hard/failing/sliceorientation/001": 2,
    "ct_dicomseg": 1,
    "dicom_mr_series/memprage_oblique.zip": 1,
    "cxr_dicom/MR-SIEMENS-DICOM-WithOverlays.dcm": 1,
}
# Slices of pydicom's own test files and of pydicom-data, in all encodings.
SLICES = """CT_small MR_small MR_small_RLE MR_small_bigendian MR_small_expb MR_small_implicit MR_small_jp2klossless
 MR_small_jpeg_ls_lossless MR_small_padded 693_J2KI examples_overlay"""
MORE_SLICES = "693_J2KR 693_UNCI 693_UNCR MR2_J2KI MR2_J2KR MR2_UNCI bad_sequence eCT_Supplemental explicit_VR-UN"
# Films and their like: dcm2niix does not know how the patient lies, but shows the same pixels.
FILMS = "JPEG2000 JPEGLSNearLossless_08 JPEGLSNearLossless_16"
MORE_FILMS = "RG1_J2KI RG3_UNCR JPEG-LL JPEG2000_UNC JPGLosslessP14SV1_1s_1f_8b mlut_18"
# What medcam refuses, and why, in the words of the refusal.
REFUSED = {
    "shared dicom_hard/failing/sliceincrement/001": "lie 10.000 mm apart, the others 5.000 mm: one slice is missing",
    "shared dicom_hard/failing/sliceincrement/002": "lie 1.499 mm apart, the others 0.750 mm: one slice is missing",
    "shared dicom_mr_series/ax_fse_t2_missing_slice.zip": "lie 5.000 mm apart, the others 2.500 mm: one slice is missing",
    "pydicom JPEG-lossy.dcm": "JPEG Extended.* cannot be decoded",
    "pydicom JPGExtended.dcm": "JPEG Extended.* cannot be decoded",
    "pydicom MR_truncated.dcm": "cut short",
    "pydicom SC_rgb_rle.dcm": "colour image",
    "pydicom examples_palette.dcm": "colour image",
    "data OBXXXX1A_2frame.dcm": "colour image",
    "data emri_small.dcm": "10 frames .* does not say where each lies",
    "data liver.dcm": "no DICOM image, only 1 SEG",
    "nibabel 0.dcm": "mosaic of 48 slices, and its 256 x 256 pixels are not 7 x 7 equal tiles",
    "nibabel csa_slice_norm.dcm": "holds no pixels",
}


def package(name: str) -> Path:
    """Return the folder of an installed package, or skip."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        pytest.skip(f"{name} is not installed")
    return Path(found.origin).parent


def place(name: str) -> Path:
    """Return a real file or folder by the name of what it comes with, or skip."""
    origin, _, path = name.partition(" ")
    roots: dict[str, Callable[[], Path]] = {
        "shared": lambda: SHARED.resolve(),
        "pydicom": lambda: PYDICOM,
        "data": lambda: package("data_store") / "data",
        "nibabel": lambda: package("nibabel") / "nicom" / "tests" / "data",
    }
    found = roots[origin]() / path
    if not found.exists():
        pytest.skip(f"{name} is not here")
    return found


def only_images(path: Path, folder: Path) -> Path:
    """Copy the images of the only series at a path into a folder of their own, for the referee."""
    folder.mkdir()
    if path.suffix == ".zip":
        shutil.unpack_archive(path, folder)
    else:
        for n, each in enumerate(find_series(path)[0].paths):
            shutil.copy(each, folder / f"{n}.dcm")
    return folder


def assert_referee_agrees(path: Path, tmp_path: Path, *, volumes: int = 1, out: str = "out") -> None:
    """Each volume of a series is one of the referee's, and the referee has no more."""
    expected = [each for file in converted(path, tmp_path / out).values() for each in file]
    assert len(expected) == volumes
    for n in range(volumes):
        volume = read_dicom(path, volume=n)
        assert sum(is_same_image(volume, *each) for each in expected) == 1, n


@pytest.mark.parametrize("name", SHARED_SERIES)
def test_real_series_are_what_the_referee_sees(tmp_path: Path, name: str) -> None:
    folder = only_images(place(f"shared {name}"), tmp_path / "in")
    assert_referee_agrees(folder, tmp_path, volumes=SHARED_SERIES[name])


@pytest.mark.parametrize(
    "name", [*(f"pydicom {n}" for n in SLICES.split()), *(f"data {n}" for n in MORE_SLICES.split())]
)
def test_real_slices_are_what_the_referee_sees(tmp_path: Path, name: str) -> None:
    assert_referee_agrees(only_images(place(f"{name}.dcm"), tmp_path / "in"), tmp_path)


@pytest.mark.parametrize("name", [*(f"pydicom {n}" for n in FILMS.split()), *(f"data {n}" for n in MORE_FILMS.split())])
def test_real_films_have_the_pixels_that_the_referee_sees(tmp_path: Path, name: str) -> None:
    folder = only_images(place(f"{name}.dcm"), tmp_path / "in")
    volume = read_dicom(folder)
    (((expected, _),),) = converted(folder, tmp_path / "out").values()
    header = volume.source.instances[0]
    if header.PhotometricInterpretation == "MONOCHROME1":
        expected = 2.0**header.BitsStored - 1 - expected
    if "ModalityLUTSequence" in header:
        table = np.array(header.ModalityLUTSequence[0].LUTData)
        first = int(header.ModalityLUTSequence[0].LUTDescriptor[1])
        expected = table[np.clip(expected.astype(int) - first, 0, len(table) - 1)]
    # The referee stores rows from bottom to top.
    np.testing.assert_array_equal(volume.voxels, expected[:, ::-1])


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name: str) -> None:
    with pytest.raises(InputError, match=REFUSED[name]):
        read_dicom(place(name))


def test_a_pixel_representation_that_the_stream_contradicts_is_read_as_others_read_it(tmp_path: Path) -> None:
    # The referee alone takes the header's word; GDCM (tests/formats/test_dicom_real.py) and medcam take the stream's.
    folder = only_images(PYDICOM / "J2K_pixelrep_mismatch.dcm", tmp_path / "in")
    (((expected, affine),),) = converted(folder, tmp_path / "out").values()
    volume = read_dicom(folder)
    assert not is_same_image(volume, expected, affine)
    assert volume.voxels.min() == -2000


def test_real_siemens_mosaics_are_two_volumes_by_their_b_value(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for b in (0, 1000):
        content = gzip.decompress(place(f"nibabel siemens_dwi_{b}.dcm.gz").read_bytes())
        (tmp_path / "in" / f"{b}.dcm").write_bytes(content)
    assert find_series(tmp_path / "in")[0].volumes == (
        "b 0 s/mm2, 48 slices of 128 x 128",
        "b 1000 s/mm2, 48 slices of 128 x 128",
    )
    # Their pixels were set to zero when they were published: this is about where they lie.
    (file,) = converted(tmp_path / "in", tmp_path / "out").values()
    assert len(file) == 2
    assert all(is_same_image(read_dicom(tmp_path / "in", volume=n), *file[n]) for n in range(2))


def test_a_real_philips_volume_of_one_file_is_what_the_referee_sees(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    content = gzip.decompress(place("nibabel philips_mprage.dcm.gz").read_bytes())
    (tmp_path / "in" / "a.dcm").write_bytes(content)
    assert_referee_agrees(tmp_path / "in", tmp_path)
    frames = read_dicom(tmp_path / "in").source.slices
    assert sorted(frame.number for frame in frames if frame is not None) == list(range(1, 177))


@pytest.mark.parametrize("kind", ["MR", "CT", "legacy MR", "legacy CT"])
@pytest.mark.parametrize(
    "geometry", ["oblique", "anisotropic", "sagittal", "against the normal", "mirrored in the plane"]
)
def test_enhanced_phantoms_are_what_the_referee_sees(tmp_path: Path, geometry: str, kind: str) -> None:
    order = [3, 0, 5, 1, 4, 2]
    write_enhanced(tmp_path / "in", VOXELS, GEOMETRIES[geometry], kind=kind, order=order, rescale=lambda n: (2, -100))
    assert_referee_agrees(tmp_path / "in", tmp_path)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_enhanced_phantoms_in_other_encodings_are_what_the_referee_sees(tmp_path: Path, syntax: str) -> None:
    voxels = stored_values((70, 66, 5))
    write_enhanced(tmp_path / "plain", voxels, GEOMETRIES["oblique"])
    write_enhanced(tmp_path / "in", voxels, GEOMETRIES["oblique"], transfer_syntax=syntax)
    np.testing.assert_array_equal(read_dicom(tmp_path / "in").voxels, voxels)
    # Not every build of the referee decodes every compression.
    assert_referee_agrees(tmp_path / "plain", tmp_path)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_mosaic_phantoms_are_what_the_referee_sees(tmp_path: Path, geometry: str) -> None:
    write_mosaic(tmp_path / "in", VOXELS, GEOMETRIES[geometry])
    assert_referee_agrees(tmp_path / "in", tmp_path)


def test_4d_phantoms_are_what_the_referee_sees(tmp_path: Path) -> None:
    for echo in (1, 2, 3):
        tags = {"EchoTime": f"{4.6 * echo:.1f}", "EchoNumbers": str(echo)}
        uids = {"slice_tags": lambda k, n=echo: {"SOPInstanceUID": f"1.2.{n}.{k}", "InstanceNumber": 6 * n + k}}
        voxels = stored_values((17, 13, 6), seed=echo)
        write_series(tmp_path / "in" / str(echo), voxels, GEOMETRIES["oblique"], tags=tags, **uids)
    assert_referee_agrees(tmp_path / "in", tmp_path, volumes=3)


def test_enhanced_4d_phantoms_are_what_the_referee_sees(tmp_path: Path) -> None:
    def groups(n: int) -> dict[str, object]:
        place, time = n % 6 + 1, n // 6 + 1
        return {"FrameContentSequence": item(TemporalPositionIndex=time, DimensionIndexValues=[1, place, time])}

    # StackID, InStackPositionNumber, TemporalPositionIndex. Of other vendors the referee mixes the times of one file.
    pointers = (0x00209056, 0x00209057, 0x00209128)
    dimensions = [item(DimensionIndexPointer=each, FunctionalGroupPointer=0x00209111) for each in pointers]
    tags = {"DimensionIndexSequence": dimensions, "Manufacturer": "Philips"}
    voxels = np.concatenate([stored_values((17, 13, 6), seed=time) for time in range(3)], axis=2)
    places = [n % 6 for n in range(18)]
    write_enhanced(tmp_path / "in", voxels, GEOMETRIES["oblique"], positions=places, frame_groups=groups, tags=tags)
    assert_referee_agrees(tmp_path / "in", tmp_path, volumes=3)


def test_tilted_phantoms_have_the_voxels_that_the_referee_sees_and_the_shear_that_it_leaves_out(tmp_path: Path) -> None:
    tilted = affine_of(np.array([[-1, 0, 0], [0, -1, 0.3], [0, 0, 1]]), (0.6, 0.6, 4), (60, 70, -20))
    write_series(tmp_path / "in", VOXELS, tilted, modality="CT")
    (((expected, affine),),) = converted(tmp_path / "in", tmp_path / "out").values()
    volume = read_dicom(tmp_path / "in")
    assert not is_same_image(volume, expected, affine)
    # In the referee's copy y runs the other way; its axes are perpendicular, as the slices' are not.
    np.testing.assert_array_equal(volume.voxels, expected[:, ::-1])
    np.testing.assert_allclose(volume.grid.affine, tilted, atol=1e-9)
