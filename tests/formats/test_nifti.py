"""NIfTI through the door and back, with nibabel and SimpleITK as referees."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from conftest import blob, oblique_grid
from medcam.errors import GeometryError, InputError, OutputError, UsageError
from medcam.formats import read, write
from medcam.geometry import Grid
from medcam.recipe import Recipe
from medcam.volume import Heatmap, Source, Volume

RECIPE = Recipe(
    model="net", model_sha256="ab", method="grad-cam", layer="features", target="lesion (class 0)", stride=(4.0,)
)

GRIDS = {
    "oblique": oblique_grid(),
    "axial LPS": Grid((7, 9, 5), np.diag([-1.5, -1.2, 3.0, 1.0])),
    "sagittal": Grid((9, 7, 5), np.array([[0, 0, 2.0, -20], [-1, 0, 0, 30], [0, -1.3, 0, 40], [0, 0, 0, 1]])),
    "coronal": Grid((9, 7, 5), np.array([[-1.1, 0, 0, -20], [0, 0, 2.2, 30], [0, -1.3, 0, 40], [0, 0, 0, 1]])),
    "one slice": oblique_grid((12, 15, 1)),
    "flipped": Grid((6, 8, 7), np.diag([1.0, -2.0, 3.0, 1.0])),
}


def saved(path: Path, data: np.ndarray, affine: np.ndarray, **codes: int) -> Path:
    image = nibabel.Nifti1Image(data, affine)
    for name, code in codes.items():
        getattr(image, f"set_{name}")(affine, code)
    nibabel.save(image, path)
    return path


def heatmap(grid: Grid, values: np.ndarray) -> tuple[Heatmap, Volume]:
    source = Source("nifti", "00", "case")
    return Heatmap(values, grid, source, RECIPE, "lesion (class 0)", 1.5, 0.8, ("a note",)), Volume(
        values, grid, "a.u.", source
    )


@pytest.mark.parametrize("name", GRIDS)
def test_voxels_and_grid_are_those_that_nibabel_reads(tmp_path: Path, name: str) -> None:
    grid = GRIDS[name]
    data = np.arange(np.prod(grid.shape), dtype=np.int16).reshape(grid.shape)
    volume = read(saved(tmp_path / "image.nii.gz", data, grid.affine))
    np.testing.assert_array_equal(volume.voxels, data)
    np.testing.assert_allclose(volume.grid.affine, grid.affine, atol=1e-5)
    assert volume.source.label == "image"


@pytest.mark.parametrize("name", GRIDS)
def test_the_peak_comes_back_in_other_readers_within_half_a_voxel(tmp_path: Path, name: str) -> None:
    grid = GRIDS[name]
    centre = grid.world_mm(np.array(grid.shape) * [0.7, 0.3, 0.6] // 1)
    placed, volume = heatmap(grid, blob(grid, centre))
    files = write(placed, volume, tmp_path, formats=["nifti"])
    assert [f.name for f in files] == [
        "case_gradcam.nii.gz",
        "case_gradcam.json",
        "case_gradcam_label.nii.gz",
        "case_gradcam_label.json",
    ]
    for path in (files[0], files[2]):
        image = nibabel.load(path)
        index = np.unravel_index(np.argmax(image.get_fdata()), image.shape)
        if path == files[0]:
            np.testing.assert_allclose(image.affine @ [*index, 1], [*centre, 1], atol=1e-3)
        assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
        assert image.header.get_xyzt_units()[0] == "mm"
    itk = sitk.ReadImage(str(files[0]))
    flat = int(np.argmax(sitk.GetArrayViewFromImage(itk)))
    k, j, i = np.unravel_index(flat, itk.GetSize()[::-1])
    lps = np.array(itk.TransformIndexToPhysicalPoint((int(i), int(j), int(k))))
    np.testing.assert_allclose(lps * [-1, -1, 1], centre, atol=1e-2)


def test_the_mask_is_cut_at_the_stated_threshold_and_the_sidecars_hold_the_recipe(tmp_path: Path) -> None:
    grid = oblique_grid()
    values = blob(grid, grid.world_mm(np.array([12.0, 20, 9])))
    values[0] = np.nan
    placed, volume = heatmap(grid, values)
    files = write(placed, volume, tmp_path, formats=["nifti"], threshold=0.3, label="x")
    mask = np.asarray(nibabel.load(files[2]).dataobj)
    np.testing.assert_array_equal(mask, np.nan_to_num(values) >= 0.3 * np.nanmax(values))
    floats = np.asarray(nibabel.load(files[0]).dataobj)
    assert floats.dtype == np.float32
    np.testing.assert_array_equal(floats, np.nan_to_num(values))
    for path in (files[1], files[3]):
        sidecar = json.loads(path.read_text())
        assert Recipe.from_json(sidecar["recipe"]) == RECIPE
        assert sidecar["threshold"]["fraction_of_maximum"] == 0.3
        assert sidecar["voxels_not_looked_at"] == 37 * 23
        assert sidecar["notes"] == ["a note"]
        assert sidecar["peak"]["voxel"] == [12, 20, 9]


def test_the_same_heatmap_gives_the_same_bytes(tmp_path: Path) -> None:
    placed, volume = heatmap(oblique_grid(), np.ones((31, 37, 23), np.float32))
    one, two = (write(placed, volume, tmp_path / n, formats=["nifti"]) for n in "ab")
    assert [f.read_bytes() for f in one] == [f.read_bytes() for f in two]


def test_a_sheared_grid_gets_no_qform(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[1, 2] = 0.33
    grid = Grid((5, 6, 7), affine)
    placed, volume = heatmap(grid, np.ones(grid.shape, np.float32))
    image = nibabel.load(write(placed, volume, tmp_path, formats=["nifti"])[0])
    assert image.header["qform_code"] == 0
    np.testing.assert_allclose(image.affine, affine, atol=1e-6)
    assert read(tmp_path / "case_gradcam.nii.gz").grid.is_close(grid)


def test_scaling_is_applied(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4))
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(nibabel.Nifti1Image(np.full((3, 4, 5), 12.5), np.eye(4), image.header), tmp_path / "a.nii")
    np.testing.assert_allclose(read(tmp_path / "a.nii").voxels, 12.5)


def test_a_4d_image_is_refused_until_a_volume_is_chosen(tmp_path: Path) -> None:
    data = np.arange(3 * 4 * 5 * 6, dtype=np.int16).reshape(3, 4, 5, 6)
    path = saved(tmp_path / "a.nii.gz", data, np.eye(4))
    with pytest.raises(InputError, match="4D with 6 volumes; choose one with --volume 0 to 5"):
        read(path)
    np.testing.assert_array_equal(read(path, volume=4).voxels, data[..., 4])
    with pytest.raises(InputError, match="--volume 6 does not exist"):
        read(path, volume=6)
    single = saved(tmp_path / "b.nii.gz", data[..., :1], np.eye(4))
    np.testing.assert_array_equal(read(single).voxels, data[..., 0])
    flat = saved(tmp_path / "c.nii.gz", data[..., 0, 0], np.eye(4))
    assert read(flat).grid.shape == (3, 4, 1)


def test_sform_wins_over_a_qform_that_disagrees_and_it_is_said(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((5, 6, 7), np.int16), np.diag([2.0, 2, 2, 1]))
    image.set_sform(np.diag([2.0, 2, 2, 1]), 1)
    image.set_qform(np.diag([3.0, 2, 2, 1]), 1)
    nibabel.save(image, tmp_path / "a.nii")
    volume = read(tmp_path / "a.nii")
    assert volume.grid.spacing_mm[0] == 2
    assert "its sform and qform place voxels up to 4.0 mm apart" in volume.source.notes[0]


def test_an_image_without_codes_claims_no_orientation(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((5, 6, 7), np.int16), None)
    image.header.set_zooms((2, 3, 4))
    nibabel.save(image, tmp_path / "a.nii")
    volume = read(tmp_path / "a.nii")
    assert not volume.source.oriented
    assert volume.grid.spacing_mm == (2, 3, 4)


def test_metres_become_millimetres(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((5, 6, 7), np.int16), np.diag([0.002, 0.003, 0.001, 1]))
    image.header.set_xyzt_units("meter")
    image.set_sform(image.affine, 1)
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read(tmp_path / "a.nii").grid.spacing_mm, (2, 3, 1), rtol=1e-5)


@pytest.mark.parametrize("kind", ["RGB", "complex"])
def test_colours_and_complex_numbers_are_refused(tmp_path: Path, kind: str) -> None:
    dtype = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]) if kind == "RGB" else np.complex64
    path = saved(tmp_path / "a.nii", np.zeros((3, 4, 5), dtype), np.eye(4))
    with pytest.raises(InputError, match=r"colours \(RGB\)|complex numbers"):
        read(path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = saved(tmp_path / "a.nii.gz", np.random.default_rng(0).normal(size=(20, 20, 20)), np.eye(4)).read_bytes()
    for name, content in (
        ("cut.nii.gz", whole[: len(whole) // 2]), ("empty.nii.gz", b""), ("text.nii", b"hello" * 200), ("half.nii", whole[:300]),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read(tmp_path / name)


@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "<i8", ">i8", ">u8", ">f4", ">f8", "u4"])
def test_each_type_in_each_byte_order_is_the_number_that_nibabel_reads(tmp_path: Path, dtype: str) -> None:
    data = (np.arange(60) + 60).reshape(3, 4, 5).astype(dtype)
    header = nibabel.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(dtype)
    image = nibabel.Nifti1Image(data, np.diag([2.0, 3, 4, 1]), header)
    for name in ("a.nii", "a.nii.gz", "a.img"):
        (nibabel.Nifti1Pair(data, image.affine, header) if name == "a.img" else image).to_filename(tmp_path / name)
        voxels = read(tmp_path / name).voxels
        np.testing.assert_array_equal(voxels, np.asanyarray(nibabel.load(tmp_path / name).dataobj))
        assert voxels.dtype.isnative
        assert voxels.dtype.kind != "f" or voxels.dtype == np.float32
    assert (tmp_path / "a.nii").read_bytes()[:2] == (b"\0\0" if dtype[0] == ">" else b"\\\1")


def test_a_pair_of_files_is_one_image_known_by_both(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)), tmp_path / "a.img")
    one, other = read(tmp_path / "a.img"), read(tmp_path / "a.hdr")
    np.testing.assert_array_equal(one.voxels, other.voxels)
    assert one.source == other.source
    voxels = bytearray((tmp_path / "a.img").read_bytes())
    voxels[7] ^= 1
    (tmp_path / "a.img").write_bytes(voxels)
    assert read(tmp_path / "a.hdr").source.sha256 != one.source.sha256
    (tmp_path / "a.img").unlink()
    with pytest.raises(InputError, match=r"a\.img is not there"):
        read(tmp_path / "a.hdr")


def test_nifti_2_and_what_is_packed_without_saying_so_are_read(tmp_path: Path) -> None:
    data = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    nibabel.save(nibabel.Nifti2Image(data, np.diag([2.0, 3, 4, 1])), tmp_path / "a.nii")
    (tmp_path / "b.nii").write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
    for name in "ab":
        np.testing.assert_array_equal(read(tmp_path / f"{name}.nii").voxels, data)
    nibabel.save(nibabel.Spm99AnalyzeImage(data, np.eye(4)), tmp_path / "c.img")
    with pytest.raises(InputError, match=r"c\.img is ANALYZE, not NIfTI"):
        read(tmp_path / "c.img")


def test_of_a_packed_4d_image_each_volume_is_nibabels(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 999, (5, 4, 3, 1, 6)).astype(np.int16)
    image = nibabel.Nifti1Image(data, np.eye(4))
    image.header.set_slope_inter(0.1, -3)
    image.to_filename(tmp_path / "a.nii.gz")
    for volume in (0, 5):
        expected = np.asanyarray(nibabel.load(tmp_path / "a.nii.gz").dataobj)[:, :, :, 0, volume]
        np.testing.assert_array_equal(read(tmp_path / "a.nii.gz", volume=volume).voxels, expected.astype(np.float32))


def test_an_unknown_unit_is_millimetres_and_a_missing_size_is_said(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((5, 6, 7), np.int16), np.diag([2.0, 3, 4, 1]))
    image.to_filename(tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[123] = 7  # xyzt_units: no unit
    (tmp_path / "a.nii").write_bytes(raw)
    volume = read(tmp_path / "a.nii")
    assert (volume.grid.spacing_mm, volume.source.spaced, volume.source.notes) == ((2, 3, 4), True, ())
    raw[254:256] = bytes(2)  # no sform
    raw[252:254] = bytes(2)  # no qform
    raw[80:92] = bytes(12)  # no size
    (tmp_path / "a.nii").write_bytes(raw)
    volume = read(tmp_path / "a.nii")
    assert (volume.source.spaced, volume.source.placed) == (False, False)
    assert any("how large a voxel is" in note for note in volume.source.notes)


def test_what_is_cut_short_or_damaged_is_an_error_and_never_zeros(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(-99, 99, (9, 8, 7)).astype(np.int16)
    for suffix in ("nii", "nii.gz"):
        whole = saved(tmp_path / f"whole.{suffix}", data, np.eye(4)).read_bytes()
        # Of a packed file also the checksum must be there, and be right.
        for cut in (len(whole) - 1, len(whole) - 9, len(whole) // 2, 200, 3, 0):
            (tmp_path / f"cut.{suffix}").write_bytes(whole[:cut])
            with pytest.raises(InputError, match="cut"):
                read(tmp_path / f"cut.{suffix}")
    flipped = bytearray(whole)
    flipped[-7] ^= 1
    (tmp_path / "flipped.nii.gz").write_bytes(flipped)
    with pytest.raises(InputError, match=r"flipped\.nii\.gz is damaged"):
        read(tmp_path / "flipped.nii.gz")
    (tmp_path / "padded.nii").write_bytes((tmp_path / "whole.nii").read_bytes() + bytes(512))
    np.testing.assert_array_equal(read(tmp_path / "padded.nii").voxels, data)


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header["magic"], header["vox_offset"] = b"n+1", 352

    def claiming(name: str, shape: tuple[int, int, int], data: bytes, offset: int = 352) -> Path:
        header["dim"][:4], header["vox_offset"] = (3, *shape), offset
        content = header.binaryblock + b"\0\0\0\0" + data
        # Files are padded: what 5 MB unpack to at most is no reason to refuse yet.
        padding = bytes(5 * 2**20) if name.startswith("c") else b""
        (tmp_path / name).write_bytes((gzip.compress(content, 9) if name.endswith("gz") else content) + padding)
        return tmp_path / name

    zeros = bytes(200 * 2**20)
    extension = (2**31 - 16).to_bytes(4, "little") + bytes(4)
    for path, words in (
        (claiming("a.nii", (32000, 32000, 32000), b""), "more than medcam reads"),
        (claiming("b.nii", (2000, 2000, 2000), b""), "cut short"),
        (claiming("c.nii.gz", (1500, 1500, 1500), zeros), "which no real image does"),
        (claiming("d.nii.gz", (1000, 1000, 1000), b""), "cut short"),
        (claiming("e.nii.gz", (64, 64, 64), zeros), "more bytes follow"),
        (claiming("f.nii.gz", (64, 64, 64), b"\1\0\0\0" + extension + zeros, 2**28), "from byte 268435456"),
    ):
        tracemalloc.start()
        with pytest.raises(InputError, match=words):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**26, path.name
        tracemalloc.stop()


def test_an_affine_that_folds_space_is_a_geometry_error(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4))
    image.header["srow_x"] = 0
    image.header["sform_code"] = 1
    image.to_filename(tmp_path / "ok.nii")
    raw = bytearray((tmp_path / "ok.nii").read_bytes())
    raw[280:296] = bytes(16)
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(GeometryError, match=r"a\.nii: the affine folds"):
        read(tmp_path / "a.nii")


def test_what_is_not_there_or_not_known_is_said(tmp_path: Path) -> None:
    saved(tmp_path / "brain.nii.gz", np.zeros((3, 4, 5), np.int16), np.eye(4))
    with pytest.raises(InputError, match=r"did you mean brain\.nii\.gz"):
        read(tmp_path / "brian.nii.gz")
    (tmp_path / "notes.txt").write_text("x" * 400)
    with pytest.raises(InputError, match=r"notes\.txt is none of what medcam reads"):
        read(tmp_path / "notes.txt")


def test_wrong_wishes_for_writing_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    placed, volume = heatmap(oblique_grid(), np.ones((31, 37, 23), np.float32))
    with pytest.raises(UsageError, match="no format 'pdf'"):
        write(placed, volume, tmp_path, formats=["nifti", "pdf"])
    with pytest.raises(UsageError, match="fraction of the maximum"):
        write(placed, volume, tmp_path, formats=["nifti"], threshold=1.5)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed, volume = heatmap(oblique_grid(), np.ones((31, 37, 23), np.float32))
    old = tmp_path / "case_gradcam.nii.gz"
    old.write_text("old")

    def full(_image: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medcam.formats.nifti.nibabel.save", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write(placed, volume, tmp_path, formats=["nifti"])
    assert [p.name for p in tmp_path.iterdir()] == ["case_gradcam.nii.gz"]
    assert old.read_text() == "old"


@pytest.mark.parametrize(
    "name",
    [
        "mri_misc/someones_anatomy.nii.gz",
        "mri_misc/t1_crop.nii.gz",
        "ct_dicomseg/example_ct_sm.nii.gz",
        "ct_dicomseg/example_ct_sm_T300_output.nii.gz",
    ],
)
def test_a_real_image_is_what_nibabel_and_simpleitk_read(real_data: Path, name: str) -> None:
    path = real_data / name
    volume, oracle, itk = read(path), nibabel.load(path), sitk.ReadImage(str(path))
    np.testing.assert_array_equal(volume.voxels, np.asanyarray(oracle.dataobj).astype(volume.voxels.dtype))
    np.testing.assert_array_equal(volume.grid.affine, oracle.affine)
    index = [5, 40, 20]
    lps = np.array(itk.TransformIndexToPhysicalPoint(index))
    np.testing.assert_allclose(volume.grid.world_mm(np.array(index)), lps * [-1, -1, 1], atol=1e-3)


def test_another_heatmap_of_the_same_name_does_not_take_its_place(tmp_path: Path) -> None:
    grid = GRIDS["coronal"]
    placed, volume = heatmap(grid, np.random.default_rng(1).normal(size=grid.shape).astype(np.float32))
    other = replace(placed, recipe=replace(placed.recipe, target="another"), target="another")
    first = write(placed, volume, tmp_path, formats=["nifti"])
    again = write(placed, volume, tmp_path, formats=["nifti"])
    beside = write(other, volume, tmp_path, formats=["nifti"])
    assert first == again
    assert not {path.name for path in first} & {path.name for path in beside}
    assert json.loads(first[1].read_text())["target"] != json.loads(beside[1].read_text())["target"]
