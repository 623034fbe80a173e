"""Films that come as pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medcam.errors import InputError
from medcam.formats import read
from medcam.formats.picture import read_label_picture

PIXELS = np.arange(7 * 5, dtype=np.uint8).reshape(7, 5) * 3  # 7 rows, 5 columns


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff"])
def test_i_runs_along_a_row_and_j_down_the_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"film.{suffix}"
    Image.fromarray(PIXELS).save(path)
    volume = read(path)
    assert volume.grid.shape == (5, 7, 1)
    assert volume.voxels[4, 2, 0] == PIXELS[2, 4]
    assert not volume.source.oriented
    assert volume.source.length_unit == "pixels"


def test_16_bit_and_jpeg_and_equal_channels_are_grey(tmp_path: Path) -> None:
    deep = PIXELS.astype(np.uint16) * 600
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read(tmp_path / "deep.png").voxels[:, :, 0].T, deep)
    Image.fromarray(PIXELS).convert("RGB").save(tmp_path / "grey.jpg", quality=100)
    assert np.abs(read(tmp_path / "grey.jpg").voxels[:, :, 0].T.astype(int) - PIXELS).max() < 8
    Image.fromarray(PIXELS).convert("LA").save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read(tmp_path / "alpha.png").voxels[:, :, 0].T, PIXELS)
    Image.fromarray(PIXELS > 30).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read(tmp_path / "mask.png").voxels[:, :, 0].T, PIXELS > 30)


def test_values_are_in_the_machines_byte_order_whatever_the_files(tmp_path: Path) -> None:
    deep = (PIXELS.astype(np.uint16) * 600).astype(">u2")
    Image.frombytes("I;16B", (5, 7), deep.tobytes()).save(tmp_path / "big.tif")
    voxels = read(tmp_path / "big.tif").voxels
    assert voxels.dtype.isnative
    np.testing.assert_array_equal(voxels[:, :, 0].T, PIXELS.astype(np.uint16) * 600)


def test_only_pictures_are_opened_as_pictures(tmp_path: Path) -> None:
    # Pillow would hand PostScript to another program.
    Image.fromarray(PIXELS).save(tmp_path / "film.eps")
    (tmp_path / "film.eps").rename(tmp_path / "film.png")
    with pytest.raises(InputError, match="not a readable picture"):
        read(tmp_path / "film.png")


def test_labels_are_the_numbers_of_a_palettes_colours(tmp_path: Path) -> None:
    labels = np.zeros((7, 5), np.uint8)
    labels[2:4, 1], labels[6, 4] = 1, 2
    picture = Image.frombytes("P", (5, 7), labels.tobytes())
    picture.putpalette([0, 0, 0, 200, 30, 30, 10, 240, 10])
    picture.save(tmp_path / "labels.png")
    np.testing.assert_array_equal(read_label_picture(tmp_path / "labels.png").voxels[:, :, 0].T, labels)
    with pytest.raises(InputError, match="in colour"):
        read(tmp_path / "labels.png")
    Image.fromarray(labels * 100).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_label_picture(tmp_path / "grey.png").voxels[:, :, 0].T, labels * 100)
    Image.fromarray(labels * 100).save(tmp_path / "grey.jpg")
    with pytest.raises(InputError, match="blurs the borders of labels"):
        read_label_picture(tmp_path / "grey.jpg")


def test_colours_pages_and_damage_are_refused(tmp_path: Path) -> None:
    colours = np.zeros((7, 5, 3), np.uint8)
    colours[..., 0] = 200
    Image.fromarray(colours).save(tmp_path / "red.png")
    page = Image.fromarray(PIXELS)
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page, page])
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 80), np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    (tmp_path / "text.jpg").write_text("no picture")
    for name, words in (
        ("red.png", "in colour"),
        ("pages.tif", "3 pages"),
        ("cut.png", "cut short"),
        ("text.jpg", "not a readable"),
    ):
        with pytest.raises(InputError, match=words):
            read(tmp_path / name)


def test_a_picture_that_asks_to_be_turned_is(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = 3
    image.save(tmp_path / "turned.png", exif=exif)
    volume = read(tmp_path / "turned.png")
    np.testing.assert_array_equal(volume.voxels[:, :, 0].T, PIXELS[::-1, ::-1])
    assert any("EXIF" in note for note in volume.source.notes)
