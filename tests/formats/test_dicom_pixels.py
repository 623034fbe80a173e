"""What DICOM pixels mean, and where X-ray films lie."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import HTJ2K as HTJ2K_ANY
from pydicom.uid import HTJ2KLossless, HTJ2KLosslessRPCL, JPEG2000Lossless, JPEGLSLossless, RLELossless

from formats.dicom_phantom import GEOMETRIES, stored_values, write_film, write_series
from medcam.errors import GeometryError, InputError
from medcam.formats import dicom_decoding
from medcam.formats.dicom import read_dicom

AFFINE = GEOMETRIES["oblique"]
# A picture of 24 x 20 pixels by OpenJPH (imagecodecs), the only free encoder of High-Throughput JPEG 2000.
HTJ2K = """
/0//UQApQAAAAAAYAAAAFAAAAAAAAAAAAAAAGAAAABQAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJ
CQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAjUAAf+TwAAmBfoFB3QAwAATQAATQAASAP78Aod0ANj+Aod0AP0ncwDA
ABNAABJAABIAZfkAC3QAOTIzAP4XcwDAABaEAAFTAABUgKJgjskJI0DnABgtwQh9mADgieb3AFD4tQCfvc/4AEj+tQDAABdDAABdFAABdEBauM
EqwiTiQANJxl2wMP4nKLQaJ8V8owWs7KCIglImugDciUN0mURjPa2vSLQ37NV+idnJaHgs+BPa9zEEQBLSJrsAoA13O0BoJAMpDxNCyEOgxwaU
ZfUYHOYF7XuZoniCcgG7AMAAL22AAF7nAAC9iDm5myqWLYHJ8J5UkQhBQDbzWPISOTTkEARkM49lTiM7EO1Aynw5ZiNBOBDtQMp88fBgZMNVk4
5LEBDZuGpCIAkhp9Oqhu8FlYTAXVebCNABeB8vT2TH3vW8tiVaEaKqWgJwZwOAVA+UK3I4XgGRuKAIWzIeuCEJJyjClkjRpjKX5EbucuGqyFaZ
S7q3xG3lgXDJZiobx23lgXCRBCYQIRGEREASEEHABCEkgpCIUI5bYdgAOZKDchPRHLfCsAFKCAFSlhVVQskheJFXEgPOtBgMqCgkgsiRQPIAsi
cy1LACpZJMvCRnwhiylDLxElOKl5QkeakULykkcpgkuRSPZ0pSjiHJF5OpVCqVTCaTqVSWJZmZ8VLOxGBImcnEl0zKAoSiz0lR+7bDd55FCKer
UosNthH+0tlU4IC8IEEv6CCkUwL/2Q==
"""


def film_pixels(*, bits: int = 12) -> np.ndarray:
    """Return a film i j of random stored values."""
    return stored_values((9, 6, 1), bits=bits)[:, :, 0]


@pytest.mark.parametrize(
    ("modality", "tags", "unit"),
    [
        ("CT", {}, "HU"),
        ("CT", {"RescaleType": "US"}, "HU"),
        ("CT", {"RescaleType": "Z_EFF"}, "Z_EFF"),
        ("MR", {}, "a.u."),
        ("MR", {"RescaleType": "US"}, "a.u."),
        ("PT", {"Units": "BQML"}, "BQML"),
    ],
)
def test_each_slice_is_rescaled_by_its_own_slope(
    tmp_path: Path, modality: str, tags: dict[str, str], unit: str
) -> None:
    voxels = stored_values().astype(np.int16) - 1000
    write_series(
        tmp_path,
        voxels,
        AFFINE,
        modality=modality,
        tags=tags,
        slice_tags=lambda k: {"RescaleSlope": str(0.5 + k), "RescaleIntercept": str(-100 * k)},
    )
    volume = read_dicom(tmp_path)
    slices = np.arange(4)
    np.testing.assert_array_equal(volume.voxels, voxels * (0.5 + slices) - 100 * slices)
    assert volume.unit == unit


def test_a_modality_table_is_looked_up(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor = [16, 5, 12]
    table.add_new("LUTData", "US", [n * n * 3 for n in range(16)])
    table.ModalityLUTType = "US"
    pixels = (film_pixels() % 30).astype(np.uint16)
    path = write_film(tmp_path, pixels, modality="CR", tags={"ModalityLUTSequence": [table]})
    # What lies below the table's first input takes its first entry, what lies above takes its last.
    expected = np.array(table.LUTData)[np.clip(pixels.astype(int) - 5, 0, 15)]
    np.testing.assert_array_equal(read_dicom(path).voxels[:, :, 0], expected)
    path = write_film(
        tmp_path,
        pixels,
        photometric="MONOCHROME1",
        tags={"ModalityLUTSequence": [table], "WindowCenter": 100, "WindowWidth": 50},
    )
    volume = read_dicom(path)
    np.testing.assert_array_equal(volume.voxels[:, :, 0], 4095.0 - expected)
    assert volume.source.window == (3995, 50)


@pytest.mark.parametrize("tags", [{}, {"PresentationLUTShape": "INVERSE"}])
def test_monochrome1_is_turned_over_once_within_its_stored_range(tmp_path: Path, tags: dict[str, str]) -> None:
    pixels = film_pixels()
    window = {"WindowCenter": "1000", "WindowWidth": "300", "RescaleSlope": "2", "RescaleIntercept": "10"}
    path = write_film(tmp_path, pixels, photometric="MONOCHROME1", bits_stored=12, tags={**tags, **window})
    volume = read_dicom(path)
    np.testing.assert_array_equal(volume.voxels[:, :, 0], (4095.0 - pixels) * 2 + 10)
    # 1000 was shown in the middle: stored 495, which is 3600 turned over, which is 7210 rescaled.
    assert volume.source.window == (7210, 300)
    assert sum("MONOCHROME1" in note for note in volume.source.notes) == 1


def test_signed_monochrome1_is_turned_over_about_minus_a_half(tmp_path: Path) -> None:
    pixels = film_pixels().astype(np.int16) - 2048
    path = write_film(tmp_path, pixels, photometric="MONOCHROME1", bits_stored=12)
    np.testing.assert_array_equal(read_dicom(path).voxels[:, :, 0], -1.0 - pixels)


def test_bits_beside_the_stored_ones_do_not_count(tmp_path: Path) -> None:
    pixels = film_pixels()
    overlaid = pixels | 0xA000
    path = write_film(tmp_path, overlaid.astype(np.uint16), bits_stored=12)
    np.testing.assert_array_equal(read_dicom(path).voxels[:, :, 0], pixels)
    signed = pixels.astype(np.int16) - 2048
    unextended = (signed & 0x0FFF).astype(np.int16)
    path = write_film(tmp_path, unextended, bits_stored=12)
    np.testing.assert_array_equal(read_dicom(path).voxels[:, :, 0], signed)
    path = write_film(tmp_path, (pixels << 4).astype(np.uint16), bits_stored=12, tags={"HighBit": 15})
    with pytest.raises(InputError, match="12 bits at the upper end"):
        read_dicom(path)


def test_eight_bit_films_of_odd_size_are_read(tmp_path: Path) -> None:
    pixels = stored_values((7, 5, 1), bits=8)[:, :, 0].astype(np.uint8)
    path = write_film(tmp_path, pixels, photometric="MONOCHROME1")
    np.testing.assert_array_equal(read_dicom(path).voxels[:, :, 0], 255.0 - pixels)


def test_padding_is_left_as_it_is(tmp_path: Path) -> None:
    voxels = stored_values().astype(np.int16)
    voxels[0] = -2000
    write_series(tmp_path, voxels, AFFINE, modality="CT", tags={"PixelPaddingValue": -2000})
    np.testing.assert_array_equal(read_dicom(tmp_path).voxels, voxels)


@pytest.mark.parametrize(
    ("tags", "window"),
    [
        ({"WindowCenter": ["40", "90"], "WindowWidth": ["400", "80"]}, (40, 400)),
        ({"WindowCenter": "40", "WindowWidth": "0"}, None),
        ({"WindowCenter": "40"}, None),
        ({"WindowCenter": "", "WindowWidth": ""}, None),
    ],
)
def test_the_first_sane_window_is_kept(
    tmp_path: Path, tags: dict[str, object], window: tuple[float, float] | None
) -> None:
    assert read_dicom(write_film(tmp_path, film_pixels(), tags=tags)).source.window == window


@pytest.mark.parametrize("tags", [{"RescaleSlope": "0", "RescaleIntercept": "0"}, {"ModalityLUTSequence": [Dataset()]}])
def test_a_rescaling_that_makes_no_sense_is_refused(tmp_path: Path, tags: dict[str, object]) -> None:
    path = write_film(tmp_path, film_pixels(), tags=tags)
    with pytest.raises(InputError, match=r"film.dcm (has a RescaleSlope of 0|is damaged)"):
        read_dicom(path)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_compressed_slices_are_the_plain_ones(tmp_path: Path, syntax: str) -> None:
    voxels = stored_values((70, 66, 4)).astype(np.int16) - 1000
    try:
        write_series(tmp_path, voxels, AFFINE, transfer_syntax=syntax)
    except RuntimeError as error:
        pytest.skip(f"no encoder: {error}")
    np.testing.assert_array_equal(read_dicom(tmp_path).voxels, voxels)


@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K_ANY])
def test_high_throughput_jpeg_2000_is_decoded(tmp_path: Path, syntax: str) -> None:
    j, i = np.mgrid[:20, :24]
    pixels = (i * 37 + j * 53 + (i * j) % 7 * 11).astype(np.uint16).T
    dataset = pydicom.dcmread(write_film(tmp_path, pixels, tags={"PixelSpacing": [0.2, 0.3]}))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([base64.b64decode(HTJ2K)])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "film.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_dicom(tmp_path).voxels[:, :, 0], pixels)


def test_a_damaged_stream_is_refused_by_the_file_and_its_compression(tmp_path: Path) -> None:
    paths = write_series(tmp_path, stored_values((40, 30, 2)), AFFINE, transfer_syntax=JPEGLSLossless)
    content = bytearray(paths[1].read_bytes())
    start = content.find(b"\xff\xd8\xff")
    content[start + 40 : start + 400] = bytes(360)
    paths[1].write_bytes(content)
    with pytest.raises(InputError, match=r"001.dcm holds pixels \(JPEG-LS Lossless"):
        read_dicom(tmp_path)


@pytest.mark.parametrize(
    ("syntax", "wheel"),
    [
        ("1.2.840.10008.1.2.4.50", "python-gdcm"),
        ("1.2.840.10008.1.2.4.51", "pylibjpeg pylibjpeg-libjpeg"),
        ("1.2.840.10008.1.2.4.57", "python-gdcm"),
        ("1.2.840.10008.1.2.4.70", "python-gdcm"),
        ("1.2.840.10008.1.2.4.80", "pyjpegls"),
        ("1.2.840.10008.1.2.4.90", "pylibjpeg pylibjpeg-openjpeg"),
        ("1.2.840.10008.1.2.4.201", "pylibjpeg pylibjpeg-openjpeg"),
        ("1.2.840.10008.1.2.4.100", "convert it"),
    ],
)
def test_a_missing_decoder_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str, wheel: str
) -> None:
    path = write_film(tmp_path, film_pixels(), transfer_syntax=RLELossless)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset.save_as(path)
    find = dicom_decoding.get_decoder

    class Bare:
        available_plugins = ()

    monkeypatch.setattr(dicom_decoding, "get_decoder", lambda uid: find(uid) and Bare)
    with pytest.raises(InputError, match=f"^film.dcm is compressed as {pydicom.uid.UID(syntax).name[:12]}") as caught:
        read_dicom(path)
    assert wheel in str(caught.value)


@pytest.mark.parametrize(
    ("tags", "spacing", "spaced", "note"),
    [
        ({"PixelSpacing": [0.2, 0.3]}, (0.3, 0.2), True, None),
        ({"PixelSpacing": [0.2, 0.3], "ImagerPixelSpacing": [0.25, 0.375]}, (0.3, 0.2), True, None),
        ({"PixelSpacing": [0.2, 0.3], "ImagerPixelSpacing": [0.2, 0.3]}, (0.3, 0.2), True, "at the detector"),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.2, 0.3]}, (0.3, 0.2), True, "ImagerPixelSpacing, at"),
        (
            {"ImagerPixelSpacing": [0.2, 0.3], "EstimatedRadiographicMagnificationFactor": 1.25},
            (0.24, 0.16),
            True,
            "EstimatedRadiographicMagnificationFactor 1.25",
        ),
        ({"ImagerPixelSpacing": [0, 0.1], "NominalScannedPixelSpacing": [0.2, 0.3]}, (0.3, 0.2), True, "scanned film"),
        ({}, (1, 1), False, "lengths are in pixels"),
        ({"PixelAspectRatio": [3, 2]}, (1, 1.5), False, "lengths are in pixels"),
        ({"PixelSpacing": [0, 0], "PixelAspectRatio": [0, 2]}, (1, 1), False, "lengths are in pixels"),
    ],
)
def test_a_film_takes_the_best_pixel_size_that_it_names(
    tmp_path: Path, tags: dict[str, object], spacing: tuple[float, float], spaced: bool, note: str | None
) -> None:
    volume = read_dicom(write_film(tmp_path, film_pixels(), tags=tags))
    assert volume.grid.spacing_mm == pytest.approx((*spacing, 1))
    assert volume.source.spaced is spaced
    assert len(volume.source.notes) == (note is not None)
    assert note is None or note in volume.source.notes[0]


@pytest.mark.parametrize(
    ("orientation", "codes"),
    [
        (("L", "F"), ("L", "I", "P")),
        (("R", "F"), ("R", "I", "A")),
        (("A", "F"), ("A", "I", "L")),
        (("P", "H"), ("P", "S", "L")),
        (("LF", "FR"), ("L", "I", "P")),
    ],
)
def test_a_film_lies_as_its_letters_say(
    tmp_path: Path, orientation: tuple[str, str], codes: tuple[str, str, str]
) -> None:
    pixels = film_pixels()
    tags = {"PixelSpacing": [0.5, 0.25]}
    volume = read_dicom(write_film(tmp_path, pixels, patient_orientation=orientation, tags=tags))
    assert volume.grid.axis_codes == codes
    assert volume.source.oriented
    assert volume.grid.shape == (9, 6, 1)
    np.testing.assert_array_equal(volume.voxels[:, :, 0], pixels)


@pytest.mark.parametrize("orientation", [None, ("L", "R"), ("L",), ("X", "F"), ("", "")])
def test_a_film_without_orientation_is_placed_as_a_frontal_film_and_says_so(
    tmp_path: Path, orientation: tuple[str, ...] | None
) -> None:
    tags = {"PixelSpacing": [0.5, 0.25]}
    volume = read_dicom(write_film(tmp_path, film_pixels(), patient_orientation=orientation, tags=tags))
    expected = np.array([[-0.25, 0, 0, 0], [0, 0, -1, 0], [0, -0.5, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(volume.grid.affine, expected)
    assert not volume.source.oriented
    assert "sides unknown" in volume.source.notes[0]


def test_two_films_in_one_series_are_chosen_by_their_view(tmp_path: Path) -> None:
    films = [stored_values((9, 6, 1), seed=n)[:, :, 0] for n in (1, 2)]
    for n, (pixels, view) in enumerate(zip(films, ("PA", "LL"), strict=True), 1):
        tags = {"SOPInstanceUID": f"1.2.{n}", "InstanceNumber": n, "ViewPosition": view, "ImageLaterality": "U"}
        write_film(tmp_path, pixels, name=f"{n}", tags=tags)
    with pytest.raises(GeometryError, match="holds 2 volumes") as caught:
        read_dicom(tmp_path)
    assert "  1: view LL, laterality U, the image with InstanceNumber 2, 1 slice of 9 x 6" in str(caught.value)
    volume = read_dicom(tmp_path, volume=1)
    np.testing.assert_array_equal(volume.voxels[:, :, 0], films[1])
    assert "view LL, laterality U" in volume.source.notes
    assert read_dicom(tmp_path / "1").source.notes[-1] == "view PA, laterality U"


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_a_slice_that_should_say_where_it_lies_is_no_film(tmp_path: Path, modality: str) -> None:
    path = write_film(tmp_path, film_pixels(), modality=modality)
    with pytest.raises(GeometryError, match="no ImageOrientationPatient"):
        read_dicom(path)


def test_overlays_are_ignored_and_told(tmp_path: Path) -> None:
    path = write_film(tmp_path, film_pixels())
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x60023000, "OW", b"\1\0" * 4)
    dataset.save_as(path)
    volume = read_dicom(path)
    np.testing.assert_array_equal(volume.voxels[:, :, 0], film_pixels())
    assert volume.source.notes[-1] == "overlays were ignored"
    assert (0x6002, 0x3000) in volume.source.instances[0]
