"""MetaImage through the door, with SimpleITK as the referee."""

from __future__ import annotations

import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from formats.itk_images import GRIDS, corners, counted, itk_image, itk_places
from medcam.errors import GeometryError, InputError
from medcam.formats import read

TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4", "MET_LONG": "i4",
    "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip


def by_hand(path: Path, more: str = "", data: bytes = b"", *, named: str = "LOCAL", **fields: str) -> Path:
    said = {"ObjectType": "Image", "NDims": "3", "DimSize": "3 4 5", "ElementType": "MET_UCHAR"} | fields
    header = "".join(f"{key} = {value}\n" for key, value in said.items()) + more + f"ElementDataFile = {named}\n"
    path.write_bytes(header.encode() + data)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", ["mha", "mhd"])
@pytest.mark.parametrize("name", GRIDS)
def test_what_simpleitk_writes_lies_where_it_says(tmp_path: Path, name: str, suffix: str, packed: bool) -> None:
    grid = GRIDS[name]
    image = itk_image(counted(grid.shape), grid)
    path = tmp_path / f"image.{suffix}"
    sitk.WriteImage(image, str(path), useCompression=packed)
    volume = read(path)
    np.testing.assert_array_equal(volume.voxels, counted(grid.shape))
    np.testing.assert_allclose(volume.grid.world_mm(corners(grid.shape)), itk_places(image), atol=1e-9)
    source = volume.source
    assert (source.format, source.label, source.oriented, source.placed, source.spaced) == (
        "metaimage",
        "image",
        True,
        True,
        True,
    )
    assert source.notes == ()


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("kind", TYPES)
def test_each_type_in_each_byte_order_is_what_simpleitk_reads(tmp_path: Path, kind: str, big: bool) -> None:
    data = (np.arange(60) + 60).astype(TYPES[kind]).reshape(3, 4, 5)
    stored = data.astype(data.dtype.newbyteorder(">" if big else "<")).tobytes("F")
    path = by_hand(tmp_path / "a.mha", f"BinaryDataByteOrderMSB = {big}\n", stored, ElementType=kind)
    voxels = read(path).voxels
    np.testing.assert_array_equal(voxels, data)
    np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T)
    assert voxels.dtype.isnative


@pytest.mark.parametrize(
    "fields",
    [
        "ElementSpacing = 1 2 3\n",
        "ElementSize = 1 2 3\n",
        "ElementSize = 9 9 9\nElementSpacing = 1 2 3\n",
        "Position = 1 2 3\nOrientation = 0 1 0 1 0 0 0 0 1\nElementSpacing = 1 2 3\n",
        "Origin = 1 2 3\nRotation = 0 0 1 1 0 0 0 1 0\nElementSpacing = 1 2 3\n",
        "Offset = 1 2 3\nTransformMatrix = 0 1 0 1 0 0 0 0 1\nCenterOfRotation = 5 5 5\n",
        "Offset = 1 2 3\nTransformMatrix = 1 0 0.2 0 1 0 0 0 1\nElementSpacing = 1 2 3\n",
        "AnatomicalOrientation = LPS\n",
    ],
)
def test_each_way_to_say_where_is_understood_as_simpleitk_does(tmp_path: Path, fields: str) -> None:
    path = by_hand(tmp_path / "a.mha", fields, counted((60,), "u1").tobytes())
    volume, itk = read(path), sitk.ReadImage(str(path))
    if "TransformMatrix = 1 0 0.2" in fields:  # of a sheared image SimpleITK makes up the length of its axes
        np.testing.assert_allclose(volume.grid.affine[:3, :3], [[-1, 0, 0], [0, -2, 0], [0.2, 0, 3]])
    else:
        np.testing.assert_allclose(volume.grid.world_mm(corners((3, 4, 5))), itk_places(itk), atol=1e-9)
    oriented = any(word in fields for word in ("TransformMatrix", "Orientation = 0", "Rotation"))
    assert (volume.source.oriented, volume.source.spaced) == (oriented, "Element" in fields)


def test_letters_that_contradict_the_matrix_are_said(tmp_path: Path) -> None:
    # SimpleITK names where an axis comes from, others where it goes to: both agree with the matrix.
    for letters, said in (("RAI", False), ("LPS", False), ("LPI", True), ("???", False)):
        fields = f"Offset = 0 0 0\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nElementSpacing = 1 2 3\nAnatomicalOrientation = {letters}\n"
        notes = read(by_hand(tmp_path / "a.mha", fields, bytes(60))).source.notes
        assert any("contradicts its TransformMatrix" in note for note in notes) == said, letters


def test_units_and_the_modality_are_read(tmp_path: Path) -> None:
    fields = "Offset = 1 2 3\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nElementSpacing = 1 2 3\nDistanceUnits = cm\nModality = MET_MOD_CT\n"
    volume = read(by_hand(tmp_path / "a.mha", fields, bytes(60)))
    np.testing.assert_allclose(volume.grid.affine[:3], [[-10, 0, 0, -10], [0, -20, 0, -20], [0, 0, 30, 30]])
    assert volume.source.modality == "CT"
    assert "converted to mm" in volume.source.notes[0]


def test_a_picture_is_a_film_and_says_nothing_of_the_patient(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(counted((6, 4)).T.copy())
    image.SetSpacing((0.5, 0.25))
    sitk.WriteImage(image, str(tmp_path / "film.mha"))
    film = read(tmp_path / "film.mha")
    np.testing.assert_array_equal(film.voxels[:, :, 0], counted((6, 4)))
    np.testing.assert_allclose(film.grid.affine[:3, :2], [[-0.5, 0], [0, 0], [0, -0.25]])
    assert (film.source.oriented, film.source.placed, film.source.spaced) == (False, False, True)


def test_of_several_volumes_or_channels_one_is_chosen(tmp_path: Path) -> None:
    grid, data = GRIDS["oblique"], counted((7, 9, 5, 3))
    each = [itk_image(data[..., n], grid) for n in range(3)]
    sitk.WriteImage(sitk.JoinSeries(each), str(tmp_path / "time.mha"))
    sitk.WriteImage(sitk.Compose(each), str(tmp_path / "vector.mha"))
    for name in ("time", "vector"):
        with pytest.raises(InputError, match="4D with 3 volumes; choose one with --volume 0 to 2"):
            read(tmp_path / f"{name}.mha")
        volume = read(tmp_path / f"{name}.mha", volume=1)
        np.testing.assert_array_equal(volume.voxels, data[..., 1])
        assert volume.grid.is_close(grid, 1e-6)
    flat = sitk.Compose([sitk.GetImageFromArray(counted((6, 4)).T + n) for n in range(2)])
    sitk.WriteImage(flat, str(tmp_path / "flat.mha"))
    np.testing.assert_array_equal(read(tmp_path / "flat.mha", volume=1).voxels[:, :, 0], counted((6, 4)) + 1)


def test_colours_are_refused(tmp_path: Path) -> None:
    path = by_hand(tmp_path / "a.mha", "ElementNumberOfChannels = 3\n", bytes(180))
    with pytest.raises(InputError, match="holds colours"):
        read(path)


def test_values_in_digits_and_behind_a_foreign_header_are_read(tmp_path: Path) -> None:
    data = counted((3, 4, 5)) - 7
    text = "".join(f"{n} " for n in data.ravel("F")).encode()
    path = by_hand(tmp_path / "a.mha", "BinaryData = False\n", text, ElementType="MET_SHORT")
    np.testing.assert_array_equal(read(path).voxels, data)
    np.testing.assert_array_equal(read(path).voxels, sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T)
    (tmp_path / "a.raw").write_bytes(b"foreign" + data.astype("<i2").tobytes("F"))
    for skip in (7, -1):
        path = by_hand(tmp_path / "b.mhd", f"HeaderSize = {skip}\n", ElementType="MET_SHORT", named="a.raw")
        np.testing.assert_array_equal(read(path).voxels, data)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T, data)


def test_many_data_files_make_one_volume(tmp_path: Path) -> None:
    data = counted((3, 4, 5), "u1")
    for k in range(5):
        (tmp_path / f"s{k + 1:02d}.raw").write_bytes(data[..., k].tobytes("F"))
    names = "\n".join(f"s{k + 1:02d}.raw" for k in range(5))
    for named in (f"LIST\n{names}", f"LIST 2D\n{names}", "s%02d.raw 1 5 1"):
        path = by_hand(tmp_path / "a.mhd", named=named)
        np.testing.assert_array_equal(read(path).voxels, data)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T, data)


@pytest.mark.parametrize(
    "named",
    [
        "/etc/passwd",
        "../secret.raw",
        "C:\\secret.raw",
        "..\\secret.raw",
        "LIST\n../secret.raw",
        "../secret%d.raw 1 1 1",
    ],
)
def test_a_header_leads_nowhere_outside_its_folder(tmp_path: Path, named: str) -> None:
    (tmp_path / "secret.raw").write_bytes(bytes(60))
    (tmp_path / "case").mkdir()
    with pytest.raises(InputError, match="outside its own folder"):
        read(by_hand(tmp_path / "case" / "a.mhd", named=named))


def test_a_pattern_may_not_ask_for_endless_names(tmp_path: Path) -> None:
    for named in (
        "s%0999999999d.raw 1 5 1",
        "s%s.raw 1 5 1",
        "s%d%d.raw 1 5 1",
        "s%d.raw 1 99999999999 1",
        "s%d.raw 1 5 0",
    ):
        with pytest.raises(InputError, match="by a pattern that medcam does not understand"):
            read(by_hand(tmp_path / "a.mhd", named=named))


def test_what_is_cut_short_or_too_long_is_an_error_and_never_zeros(tmp_path: Path) -> None:
    image = itk_image(np.random.default_rng(0).integers(-99, 99, (7, 9, 5)).astype(np.int16), GRIDS["oblique"])
    for packed in (False, True):
        sitk.WriteImage(image, str(tmp_path / "whole.mha"), useCompression=packed)
        whole = (tmp_path / "whole.mha").read_bytes()
        start = whole.index(b"LOCAL\n") + 6
        for cut in (len(whole) - 1, len(whole) - 60, start + 3, start):
            (tmp_path / "cut.mha").write_bytes(whole[:cut])
            with pytest.raises(InputError, match=r"cut\.mha is damaged or cut short"):
                read(tmp_path / "cut.mha")
        (tmp_path / "long.mha").write_bytes(whole.replace(b"DimSize = 7 9 5", b"DimSize = 7 9 4"))
        with pytest.raises(InputError, match="more bytes follow"):
            read(tmp_path / "long.mha")


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    zeros = zlib.compress(bytes(200 * 2**20), 9)
    for size, words in (
        ("90000 90000 900", "more than medcam reads"),
        ("4096 4096 200", "which no real image does"),
        ("64 64 64", "more bytes follow than the 262144"),
    ):
        padding = bytes(5 * 2**20) if size.endswith("200") else b""
        path = by_hand(tmp_path / "bomb.mha", "CompressedData = True\n", zeros + padding, DimSize=size)
        tracemalloc.start()
        with pytest.raises(InputError, match=words):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**26, size
        tracemalloc.stop()


def test_headers_that_contradict_themselves_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    for more, fields, words in (
        ("", {"NDims": "4"}, "claims 4 axes"),
        ("", {"DimSize": "3 4 -5"}, "claims 3 axes"),
        ("", {"DimSize": "3 4 many"}, "not a readable MetaImage"),
        ("", {"ElementType": "MET_STRING"}, "not a readable MetaImage"),
        ("NDims = 3\n", {}, "NDims twice"),
        ("TransformMatrix = 1 0 0 0\n", {}, "TransformMatrix should be 9 finite numbers"),
        ("ElementSpacing = 1 nan 1\n", {}, "ElementSpacing should be 3 finite numbers"),
        ("TransformMatrix = 1 0 0 1 0 0 0 0 1\n", {}, "folds space"),
    ):
        with pytest.raises((InputError, GeometryError), match=words):
            read(by_hand(path, more, bytes(60), **fields))
    path.write_bytes(b"ObjectType = Image\nNDims = 3\n")
    with pytest.raises(InputError, match="does not end in ElementDataFile"):
        read(path)
    path.write_bytes(bytes(9000))
    with pytest.raises(InputError, match="is no MetaImage"):
        read(path)


def test_a_file_without_a_suffix_is_known_by_how_it_starts(tmp_path: Path) -> None:
    by_hand(tmp_path / "scan", data=counted((60,), "u1").tobytes())
    assert read(tmp_path / "scan").voxels[2, 3, 4] == 59
