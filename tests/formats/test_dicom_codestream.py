"""What a compressed image says of its own size is read before any decoder may trust it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import JPEGLSLossless

from formats.dicom_phantom import GEOMETRIES, stored_values, write_series
from medcam.errors import InputError
from medcam.formats.dicom import read_dicom
from medcam.formats.dicom_codestream import declared


def jpeg(*, columns: int = 70, rows: int = 66, mode: str = "L", progressive: bool = False) -> bytes:
    """Return a JPEG stream that Pillow wrote."""
    pixels = np.random.default_rng(0).integers(0, 255, (rows, columns, 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(stream := io.BytesIO(), "JPEG", progressive=progressive, comment=b"made up")
    return stream.getvalue()


def jpeg_ls(folder: Path) -> Path:
    """Write one slice of 70 x 66 in JPEG-LS."""
    voxels = stored_values((70, 66, 1))
    return write_series(folder, voxels, GEOMETRIES["axial"], bits_stored=12, transfer_syntax=JPEGLSLossless)[0]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(("mode", "components"), [("L", 1), ("RGB", 3)])
def test_a_jpeg_declares_what_pillow_wrote(mode: str, components: int, progressive: bool) -> None:
    assert declared(jpeg(mode=mode, progressive=progressive)) == (66, 70, components, 8)


def test_fill_bytes_before_a_marker_are_allowed() -> None:
    stream = jpeg()
    assert declared(stream[:2] + b"\xff\xff" + stream[2:]) == (66, 70, 1, 8)


def test_a_jpeg_ls_declares_its_size(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(jpeg_ls(tmp_path))
    assert declared(get_frame(dataset.PixelData, 0, number_of_frames=1)) == (66, 70, 1, 12)


def test_a_jpeg_2000_declares_its_size() -> None:
    Image.fromarray(np.zeros((66, 70), np.uint8)).save(stream := io.BytesIO(), "JPEG2000", no_jp2=True)
    assert declared(stream.getvalue()) == (66, 70, 1, 8)


def test_other_streams_are_left_to_their_decoder() -> None:
    assert declared(b"") is None
    assert declared(bytes(64)) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda stream: stream[:8],
        lambda stream: stream[:2] + b"\0" * 5 + stream[2:],
        lambda stream: stream[:2] + b"\xff\xd3\0\4" + stream[2:],
        lambda stream: stream[:2] + b"\xff\xfe\0\1" + stream[2:],
        lambda stream: stream[:2] + b"\0\xfe\0\4no" + stream[2:],
        lambda stream: stream[:4],
    ],
)
def test_a_damaged_head_is_refused(damage: object) -> None:
    with pytest.raises(ValueError, match="head of the compressed stream"):
        declared(damage(jpeg()))


def test_a_stream_of_another_size_than_its_header_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = jpeg_ls(tmp_path)
    dataset = pydicom.dcmread(path)
    frame = bytearray(get_frame(dataset.PixelData, 0, number_of_frames=1))
    start = frame.index(b"\xff\xf7")
    frame[start + 5 : start + 9] = b"\xff\xff\xff\xff"
    dataset.PixelData = encapsulate([bytes(frame)])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    with pytest.raises(InputError, match=r"^000.dcm is damaged: .* declares 65535 rows, 65535 columns.* 66 rows"):
        read_dicom(path)
