"""NRRD through the door, with SimpleITK and pynrrd as referees."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from formats.itk_images import GRIDS, corners, counted, itk_image, itk_places
from medcam.errors import GeometryError, InputError, UsageError
from medcam.formats import read

RAS_FROM = {
    "right-anterior-superior": (1, 1, 1), "RAS": (1, 1, 1), "left-anterior-superior": (-1, 1, 1), "LAS": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1), "LPS": (-1, -1, 1),
}  # fmt: skip


def write_by_hand(path: Path, header: str, data: bytes) -> Path:
    path.write_bytes(b"NRRD0005\n" + header.strip().encode() + b"\n\n" + data)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", ["nrrd", "nhdr"])
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
        "nrrd",
        "image",
        True,
        True,
        True,
    )
    assert source.notes == ()


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
@pytest.mark.parametrize("space", RAS_FROM)
def test_what_pynrrd_writes_in_any_space_lies_where_simpleitk_reads_it(
    tmp_path: Path, space: str, encoding: str
) -> None:
    grid, data, path = GRIDS["oblique"], counted((7, 9, 5), "i4"), tmp_path / "image.nrrd"
    signs = np.diag(RAS_FROM[space])
    fields = {
        "space": space, "encoding": encoding, "kinds": ["domain"] * 3,
        "space directions": (signs @ grid.affine[:3, :3]).T, "space origin": signs @ grid.affine[:3, 3],
    }  # fmt: skip
    nrrd.write(str(path), data, fields)
    volume = read(path)
    np.testing.assert_array_equal(volume.voxels, data)
    assert volume.grid.is_close(grid, 1e-9)
    if encoding != "bzip2":  # which SimpleITK does without
        itk = sitk.ReadImage(str(path))
        np.testing.assert_allclose(volume.grid.world_mm(corners(grid.shape)), itk_places(itk), atol=1e-9)
        np.testing.assert_array_equal(sitk.GetArrayViewFromImage(itk).T, volume.voxels)


@pytest.mark.parametrize("dtype", ["i1", "u1", ">i2", ">u2", "<i4", ">u4", "<i8", ">i8", ">u8", ">f4", ">f8"])
def test_each_type_in_each_byte_order_is_the_number_that_was_written(tmp_path: Path, dtype: str) -> None:
    data = counted((4, 5, 3), dtype) + np.dtype(dtype).type(60)
    nrrd.write(str(tmp_path / "image.nrrd"), data)
    voxels = read(tmp_path / "image.nrrd").voxels
    np.testing.assert_array_equal(voxels, nrrd.read(str(tmp_path / "image.nrrd"))[0])
    assert voxels.dtype.isnative
    assert voxels.dtype == np.float32 or voxels.dtype.kind != "f"


def test_hexadecimal_digits_are_bytes(tmp_path: Path) -> None:
    data = counted((3, 2, 2), "u1") * 21
    header = "type: uchar\ndimension: 3\nsizes: 3 2 2\nencoding: hex"
    path = write_by_hand(tmp_path / "a.nrrd", header, data.tobytes("F").hex().encode())
    np.testing.assert_array_equal(read(path).voxels, data)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T, data)


def test_a_sheared_grid_is_read_as_it_is(tmp_path: Path) -> None:
    affine = GRIDS["axial"].affine.copy()
    affine[1, 2] = 0.9
    fields = {"space": "RAS", "space directions": affine[:3, :3].T, "space origin": affine[:3, 3]}
    nrrd.write(str(tmp_path / "tilted.nrrd"), counted((7, 9, 5)), fields)
    np.testing.assert_allclose(read(tmp_path / "tilted.nrrd").grid.affine, affine, atol=1e-12)


def test_without_a_space_in_the_patient_no_orientation_is_claimed(tmp_path: Path) -> None:
    data = counted((4, 5, 3))
    for name, fields, spaced in (
        ("bare", {}, False),
        ("spacings", {"spacings": [0.5, 0.7, 2.0]}, True),
        (
            "scanner",
            {"space": "scanner-xyz", "space directions": np.diag([0.5, 0.7, 2.0]), "space origin": [1, 2, 3]},
            True,
        ),
    ):
        nrrd.write(str(tmp_path / f"{name}.nrrd"), data, fields)
        volume = read(tmp_path / f"{name}.nrrd")
        assert (volume.source.oriented, volume.source.placed, volume.source.spaced) == (False, False, spaced), name
        assert any("no orientation is claimed" in note for note in volume.source.notes)
        np.testing.assert_allclose(volume.grid.spacing_mm, (0.5, 0.7, 2.0) if spaced else (1, 1, 1))
        # As ITK takes it.
        itk = sitk.ReadImage(str(tmp_path / f"{name}.nrrd"))
        np.testing.assert_allclose(volume.grid.world_mm(corners(data.shape)), itk_places(itk), atol=1e-9)


def test_an_orientation_without_an_origin_has_no_place(tmp_path: Path) -> None:
    nrrd.write(str(tmp_path / "a.nrrd"), counted((4, 5, 3)), {"space": "LPS", "space directions": np.eye(3)})
    source = read(tmp_path / "a.nrrd").source
    assert (source.oriented, source.placed) == (True, False)
    assert "does not say where its first voxel lies" in source.notes[0]


def test_units_become_millimetres(tmp_path: Path) -> None:
    for unit, mm in (("cm", 10.0), ("um", 0.001), ("mm", 1.0), ("", 1.0)):
        fields = {
            "space": "LPS", "space directions": np.diag([1.0, 2, 3]), "space origin": [4.0, 5, 6], "space units": [unit] * 3,
        }  # fmt: skip
        nrrd.write(str(tmp_path / "a.nrrd"), counted((4, 5, 3)), fields)
        grid = read(tmp_path / "a.nrrd").grid
        np.testing.assert_allclose(
            grid.affine, np.diag([-mm, -2 * mm, 3 * mm, 1]) + np.outer([-4 * mm, -5 * mm, 6 * mm, 0], [0, 0, 0, 1])
        )


def test_a_picture_is_a_film_and_a_plane_in_space_stays_there(tmp_path: Path) -> None:
    data = counted((6, 4))
    image = sitk.GetImageFromArray(data.T.copy())
    image.SetSpacing((0.5, 0.25))
    sitk.WriteImage(image, str(tmp_path / "film.nrrd"))
    film = read(tmp_path / "film.nrrd")
    np.testing.assert_array_equal(film.voxels[:, :, 0], data)
    np.testing.assert_allclose(film.grid.affine[:3, :2], [[-0.5, 0], [0, 0], [0, -0.25]])
    assert (film.source.oriented, film.source.placed, film.source.spaced) == (False, False, True)

    grid = GRIDS["oblique"]
    fields = {"space": "RAS", "space directions": grid.affine[:3, :2].T, "space origin": grid.affine[:3, 3]}
    nrrd.write(str(tmp_path / "plane.nrrd"), data, fields)
    plane = read(tmp_path / "plane.nrrd")
    assert plane.source.placed
    index = np.array([[0, 0, 0], [5, 3, 0]])
    np.testing.assert_allclose(plane.grid.world_mm(index), grid.world_mm(index), atol=1e-9)
    assert plane.grid.spacing_mm[2] == pytest.approx(1)


def test_of_several_volumes_one_is_chosen_wherever_their_axis_lies(tmp_path: Path) -> None:
    grid = GRIDS["oblique"]
    data = counted((7, 9, 5, 4))
    sitk.WriteImage(
        sitk.JoinSeries([itk_image(data[..., n], grid) for n in range(4)]), str(tmp_path / "time.nrrd")
    )  # space dimension 4
    vector = sitk.Compose([itk_image(data[..., n], grid) for n in range(4)])  # components first
    sitk.WriteImage(vector, str(tmp_path / "vector.nrrd"))
    steps = np.vstack([grid.affine[:3, :3].T, np.full(3, np.nan)])
    fields = {
        "space": "RAS",
        "space directions": steps,
        "space origin": grid.affine[:3, 3],
        "kinds": ["domain"] * 3 + ["list"],
    }
    nrrd.write(str(tmp_path / "list.nrrd"), data, fields)
    for name in ("time", "vector", "list"):
        path = tmp_path / f"{name}.nrrd"
        with pytest.raises(InputError, match="4D with 4 volumes; choose one with --volume 0 to 3"):
            read(path)
        volume = read(path, volume=2)
        np.testing.assert_array_equal(volume.voxels, data[..., 2])
        assert volume.grid.shape == grid.shape
        assert volume.source.label == f"{name}_v2"
        if name != "time":  # a space of four dimensions has no name
            assert volume.grid.is_close(grid, 1e-6)
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "film.png")
    with pytest.raises(UsageError, match="of a kind that holds one"):
        read(tmp_path / "film.png", volume=1)


def test_colours_and_complex_numbers_are_refused(tmp_path: Path) -> None:
    for kind, count, words in (("RGB-color", 3, "holds colours"), ("complex", 2, "complex numbers")):
        nrrd.write(str(tmp_path / "a.nrrd"), counted((count, 4, 5, 3), "u1"), {"kinds": [kind, *["domain"] * 3]})
        with pytest.raises(InputError, match=words):
            read(tmp_path / "a.nrrd")


@pytest.mark.parametrize(
    "named",
    ["/etc/passwd", "../secret.raw", "sub/../../secret.raw", "C:\\secret.raw", "\\\\host\\s.raw", "..\\secret.raw"],
)
def test_a_header_leads_nowhere_outside_its_folder(tmp_path: Path, named: str) -> None:
    (tmp_path / "secret.raw").write_bytes(bytes(60))
    folder = tmp_path / "case"
    (folder / "sub").mkdir(parents=True)
    for words in (named, f"LIST\n{named}", f"{named}%d 1 1 1"):
        header = f"type: uchar\ndimension: 3\nsizes: 3 4 5\nencoding: raw\ndata file: {words}"
        with pytest.raises(InputError, match="outside its own folder"):
            read(write_by_hand(folder / "a.nhdr", header, b""))


def test_detached_data_in_one_file_or_many_is_found_beside_the_header(tmp_path: Path) -> None:
    data = counted((3, 4, 5))
    (tmp_path / "voxels").mkdir()
    for k in range(5):
        (tmp_path / "voxels" / f"s{k + 1:03d}.raw").write_bytes(
            b"skipped\n\0\0" + data[..., k].astype("<i2").tobytes("F")
        )
    names = "\n".join(f"voxels/s{k + 1:03d}.raw" for k in range(5))
    top = "type: short\nendian: little\ndimension: 3\nsizes: 3 4 5\nencoding: raw\nline skip: 1\nbyte skip: 2\n"
    for words in (f"data file: LIST\n{names}", "data file: voxels/s%03d.raw 1 5 1"):
        path = tmp_path / "a.nhdr"
        path.write_text(f"NRRD0005\n{top}{words}\n")
        volume = read(path)
        np.testing.assert_array_equal(volume.voxels, data)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T, data)
    (tmp_path / "voxels" / "s003.raw").write_bytes(b"skipped\n\0\0" + data[..., 0].astype("<i2").tobytes("F"))
    assert read(path).source.sha256 != volume.source.sha256
    (tmp_path / "voxels" / "s004.raw").unlink()
    with pytest.raises(InputError, match=r"s004\.raw, which is not there"):
        read(path)
    ends = "type: short\nendian: little\ndimension: 3\nsizes: 3 4 1\nencoding: raw\nbyte skip: -1\ndata file: voxels/s001.raw"
    np.testing.assert_array_equal(read(write_by_hand(tmp_path / "end.nhdr", ends, b"")).voxels, data[..., :1])


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
def test_what_is_cut_short_or_too_long_is_an_error_and_never_zeros(tmp_path: Path, encoding: str) -> None:
    data = np.random.default_rng(0).integers(-99, 99, (7, 6, 5)).astype(np.int16)
    nrrd.write(str(tmp_path / "whole.nrrd"), data, {"encoding": encoding})
    whole = (tmp_path / "whole.nrrd").read_bytes()
    for cut in (len(whole) - 1 if encoding != "ascii" else len(whole) - 9, len(whole) - 40, whole.index(b"\n\n") + 3):
        (tmp_path / "cut.nrrd").write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"cut\.nrrd is damaged or cut short"):
            read(tmp_path / "cut.nrrd")
    (tmp_path / "long.nrrd").write_bytes(whole.replace(b"sizes: 7 6 5", b"sizes: 7 6 4"))
    with pytest.raises(InputError, match="damaged"):
        read(tmp_path / "long.nrrd")
    if encoding == "gzip":
        flipped = bytearray(whole)
        flipped[-6] ^= 1  # the checksum
        (tmp_path / "flipped.nrrd").write_bytes(flipped)
        with pytest.raises(InputError, match="damaged"):
            read(tmp_path / "flipped.nrrd")


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    zeros = gzip.compress(bytes(200 * 2**20), 9)
    top = "type: uchar\ndimension: 3\nencoding: gzip\nsizes: "
    cases = {
        "claims terabytes": (top + "90000 90000 900", zeros, "more than medcam reads"),
        "claims gigabytes": (top + "4096 4096 200", zeros + bytes(5 * 2**20), "which no real image does"),
        "inflates": (top + "64 64 64", zeros, "more bytes follow than the 262144"),
        "holds nothing": (top + "1000 1000 800", b"", "cut short"),
        "claims more than can unpack": (top + "4096 4096 200", zeros, "cut short"),
        "overflows": (top + "4294967296 4294967296 2", b"", "more than medcam reads"),
    }
    for name, (header, data, words) in cases.items():
        path = write_by_hand(tmp_path / "bomb.nrrd", header, data)
        tracemalloc.start()
        with pytest.raises(InputError, match=words):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**26, name
        tracemalloc.stop()


def test_headers_that_contradict_themselves_are_refused_by_name(tmp_path: Path) -> None:
    good = "type: uchar\ndimension: 3\nsizes: 3 4 5\nencoding: raw"
    for change, words in (
        (good.replace("dimension: 3", "dimension: 4"), "claims 4 axes"),
        (good.replace("3 4 5", "3 4 -5"), "sizes"),
        (good.replace("type: uchar", "type: block"), "not a readable NRRD"),
        (good.replace("raw", "zstd"), "not a readable NRRD"),
        (good.replace("uchar", "short"), "in which order its bytes lie"),
        (good + "\nsizes: 3 4 5", "Duplicate"),
        (good + "\nspace directions: (1,0,0) (0,1,0)", "not a readable NRRD"),
        (good + "\nspace directions: (1,0,0) (1,0,0) (0,0,1)\nspace: LPS", "folds space"),
        (good + "\nspace directions: none (1,0,0) none\nspace: LPS", "1 axes in space"),
        (good + "\nspace directions: (1e300,0,0) (0,1,0) (0,0,1)\nspace: LPS", "no lengths in a patient"),
        (good + "\nspace directions: (1,nan,0) (0,1,0) (0,0,1)\nspace: LPS", "no lengths in a patient"),
        (good + "\nspacings: 1 2", "do not fit its axes"),
        (good + "\nspace units: mm mm cm\nspace directions: (1,0,0) (0,1,0) (0,0,1)", "in different units"),
    ):
        with pytest.raises((InputError, GeometryError), match=words):
            read(write_by_hand(tmp_path / "a.nrrd", change, bytes(60)))
    (tmp_path / "b.nrrd").write_bytes(b"NIFTI")
    with pytest.raises(InputError, match="does not start like"):
        read(tmp_path / "b.nrrd")


def test_a_file_without_a_suffix_is_known_by_how_it_starts(tmp_path: Path) -> None:
    nrrd.write(str(tmp_path / "a.nrrd"), counted((4, 5, 3)))
    (tmp_path / "a.nrrd").rename(tmp_path / "scan")
    np.testing.assert_array_equal(read(tmp_path / "scan").voxels, counted((4, 5, 3)))
