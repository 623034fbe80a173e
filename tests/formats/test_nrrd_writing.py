"""NRRD files of heatmaps and segmentations, read back by SimpleITK, pynrrd, slicerio and 3D Slicer's own library."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
import slicerio

from conftest import blob, oblique_grid
from medcam.errors import InputError, UsageError
from medcam.formats import read, write
from medcam.formats.nrrd_writing import straightened
from medcam.formats.stored import read_heatmap
from medcam.geometry import Grid, upright
from medcam.recipe import Recipe
from medcam.volume import Heatmap, Source, Volume

RECIPE = Recipe(
    model="net", model_sha256="ab", method="grad-cam", layer="features", target="lesion (class 0)", stride=(4.0,)
)
LEAN = np.diag([-1.5, -1.2, 3.0, 1.0])
LEAN[1, 2] = 0.83
GRIDS = {
    "oblique": oblique_grid((17, 19, 11)),
    "axial": Grid((17, 19, 11), np.diag([-1.5, -1.2, 3.0, 1.0])),
    "sagittal": Grid((17, 19, 11), np.array([[0, 0, 2.0, -20], [-1, 0, 0, 30], [0, -1.3, 0, 40], [0, 0, 0, 1]])),
    "left-handed": Grid((17, 19, 11), np.diag([1.0, -2.0, 3.0, 1.0])),
    "one slice": oblique_grid((22, 25, 1)),
    "tilted": Grid((17, 19, 11), LEAN),
}
PLACE = {
    name: grid.world_mm(np.array([n * part // 1 for n, part in zip(grid.shape, (0.7, 0.3, 0.6), strict=True)]))
    for name, grid in GRIDS.items()
}


def case(name: str, *, oriented: bool = True) -> tuple[Heatmap, Volume, Volume]:
    """A heatmap with one peak and a voxel that was not looked at, its image, and a lesion beside the peak."""
    grid = GRIDS[name]
    relevance = blob(grid, PLACE[name], 5.0)
    relevance[0, 0, 0] = np.nan
    source = Source("nifti", "00", "case", oriented=oriented)
    lesion = (blob(grid, PLACE[name] + [4, 0, 0], 1.0) > np.exp(-0.5 * 16)).astype(np.uint8)
    image = Volume(np.zeros(grid.shape, np.float32), grid, "a.u.", source)
    return (
        Heatmap(relevance, grid, source, RECIPE, "lesion (class 0)", 1.5, 0.8, ("a note",)),
        image,
        replace(image, voxels=lesion),
    )


def lps(point: np.ndarray) -> np.ndarray:
    return np.asarray(point) * [-1, -1, 1]


@pytest.fixture(scope="module")
def slicer_reads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What 3D Slicer reads of each case: the heatmap and the segmentation."""
    python = os.environ.get("MEDCAM_SLICER_PYTHON")
    if not python:
        pytest.skip("MEDCAM_SLICER_PYTHON names no Python that has slicer-core, 3D Slicer's own library")
    home = tmp_path_factory.mktemp("slicer")
    requests = []
    for n, name in enumerate(GRIDS):
        heatmap, image, lesion = case(name)
        files = write(heatmap, image, home / str(n), formats="nrrd,seg-nrrd(thresholds=[0.3, 0.6])", lesion=lesion)
        requests += [["volume", str(files[0])], ["segmentation", str(files[-1])]]
    (home / "requests.json").write_text(json.dumps(requests))
    reader = Path(__file__).with_name("slicer_nrrd_reader.py")
    command = [python, str(reader), str(home / "requests.json"), str(home / "answers.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads((home / "answers.json").read_text())
    return {name: answers[2 * n : 2 * n + 2] for n, name in enumerate(GRIDS)}


@pytest.mark.parametrize("name", GRIDS)
def test_the_peak_and_the_mask_come_back_in_other_readers(tmp_path: Path, name: str) -> None:
    heatmap, image, _ = case(name)
    files = write(heatmap, image, tmp_path, formats="nrrd", threshold=0.4)
    end = "_upright" if name == "tilted" else ""
    assert [f.name for f in files] == [
        f"case_gradcam{end}.nrrd", f"case_gradcam{end}.json", f"case_gradcam{end}_label.nrrd", f"case_gradcam{end}_label.json",
    ]  # fmt: skip
    itk = sitk.ReadImage(str(files[0]))
    values = sitk.GetArrayFromImage(itk).T
    index = [int(n) for n in np.unravel_index(np.argmax(values), values.shape)]
    # On the same grid the voxel itself; resampled, within half a voxel.
    allowed = 1e-4 if not end else 0.5 * max(heatmap.grid.spacing_mm)
    np.testing.assert_allclose(itk.TransformIndexToPhysicalPoint(index), lps(PLACE[name]), atol=allowed)
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(files[2]))).T
    assert (values.dtype, mask.dtype) == (np.float32, np.uint8)
    np.testing.assert_array_equal(mask, values >= np.float32(0.4) * np.nanmax(heatmap.relevance))
    if not end:
        np.testing.assert_array_equal(values, np.nan_to_num(heatmap.relevance))
        back = read(files[0])
        assert back.grid.is_close(heatmap.grid)
        np.testing.assert_array_equal(back.voxels, values)
    sidecar = json.loads(files[1].read_text())
    assert Recipe.from_json(sidecar["recipe"]) == RECIPE
    assert sidecar["voxels_not_looked_at"] >= 1
    assert any("tilted gantry" in note for note in sidecar["notes"]) == bool(end)


@pytest.mark.parametrize("name", GRIDS)
def test_3d_slicer_reads_values_and_segments_where_they_are(slicer_reads: dict[str, list[Any]], name: str) -> None:
    (volume, segments), (heatmap, _, lesion) = slicer_reads[name], case(name)
    straight = straightened(heatmap)
    peak = straight.peak()
    assert peak is not None
    np.testing.assert_allclose(volume["peak"], peak.world_mm, atol=1e-3)
    assert volume["sum"] == pytest.approx(np.nansum(straight.relevance), rel=1e-4)
    expected = segments_of(heatmap, lesion)
    assert [each["name"] for each in segments] == list(expected)
    for each in segments:
        mask = expected[each["name"]]
        assert each["voxels"] == mask.sum()
        np.testing.assert_allclose(each["centroid"], straight.grid.world_mm(np.argwhere(mask)).mean(axis=0), atol=0.01)
        assert ("130401" in each["terms"]) == (each["name"] != "lesion")


def segments_of(heatmap: Heatmap, lesion: Volume) -> dict[str, np.ndarray]:
    """The regions, by a way of their own: voxel by voxel at the places of the upright grid."""
    grid = upright(heatmap.grid)
    relevance = np.nan_to_num(straightened(heatmap).relevance, nan=-1)
    found = {
        f"lesion (class 0): relevance from {percent} % of its maximum": relevance
        >= percent / 100 * np.nanmax(heatmap.relevance)
        for percent in (30, 60)
    }
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    place = lesion.grid.index(grid.world_mm(index))
    near = np.floor(place + 0.5).astype(int)
    inside = ((place > -0.5) & (place < np.array(lesion.grid.shape) - 0.5)).all(axis=-1)
    i, j, k = np.moveaxis(np.clip(near, 0, np.array(lesion.grid.shape) - 1), -1, 0)
    return {**found, "lesion": inside & (lesion.voxels[i, j, k] > 0)}


@pytest.mark.parametrize("name", GRIDS)
def test_slicerio_reads_the_same_segments(tmp_path: Path, name: str) -> None:
    heatmap, image, lesion = case(name)
    (path,) = write(heatmap, image, tmp_path, formats="seg-nrrd(thresholds=[0.3, 0.6])", lesion=lesion)
    assert path.name == "case_gradcam.seg.nrrd"
    segmentation = slicerio.read_segmentation(str(path))
    expected = segments_of(heatmap, lesion)
    assert [segment["name"] for segment in segmentation["segments"]] == list(expected)
    to_lps = segmentation["ijkToLPS"]
    for segment in segmentation["segments"]:
        layered = (
            segmentation["voxels"] if segmentation["voxels"].ndim == 3 else segmentation["voxels"][segment["layer"]]
        )
        index = np.argwhere(layered == segment["labelValue"])
        assert len(index) == expected[segment["name"]].sum()
        centre = (to_lps @ [*index.mean(axis=0), 1])[:3]
        truth = upright(heatmap.grid).world_mm(np.argwhere(expected[segment["name"]])).mean(axis=0)
        np.testing.assert_allclose(centre, lps(truth), atol=1e-6)
        terms = segment["terminology"]
        code = "52988006" if segment["name"] == "lesion" else "130401"
        assert terms["type"][1] == code
    _, header = nrrd.read(str(path))
    about = json.loads(header["medcam"])
    assert about["recipe"]["method"] == "grad-cam"
    # Of a left-handed grid the slices are stored in the other order.
    assert np.linalg.det(np.array(header["space directions"])[-3:]) > 0


def test_a_stored_heatmap_comes_back_unless_it_was_resampled(tmp_path: Path) -> None:
    for name in ("oblique", "tilted"):
        heatmap, image, _ = case(name)
        image = replace(image, source=replace(image.source, sha256="12"))
        heatmap = replace(heatmap, source=image.source, recipe=replace(RECIPE, inputs=("12",)))
        path = write(heatmap, image, tmp_path, formats="nrrd", label=name)[0]
        if name == "tilted":
            with pytest.raises(InputError, match=r"tilted_upright\.json"):
                read_heatmap(path, image)
            continue
        back, _ = read_heatmap(path, image)
        np.testing.assert_array_equal(back.relevance, heatmap.relevance)
        assert (back.recipe, back.target, back.score) == (heatmap.recipe, heatmap.target, heatmap.score)


def test_a_segment_that_overlaps_none_shares_its_layer(tmp_path: Path) -> None:
    heatmap, image, lesion = case("axial")
    far = np.zeros(lesion.grid.shape, np.uint8)
    far[0:2, -2:, 0] = 1
    (path,) = write(heatmap, image, tmp_path, formats="seg-nrrd", lesion=replace(lesion, voxels=far))
    voxels, header = nrrd.read(str(path))
    assert voxels.shape == heatmap.grid.shape
    assert header["Segment1_Extent"] == "0 1 17 18 0 0"
    np.testing.assert_array_equal(voxels == 2, far)
    np.testing.assert_array_equal(voxels == 1, heatmap.mask(0.5))


def test_nothing_to_show_is_no_file_and_wrong_thresholds_are_refused(tmp_path: Path) -> None:
    heatmap, image, _ = case("axial")
    flat = replace(heatmap, relevance=np.zeros(heatmap.grid.shape, np.float32))
    assert write(flat, image, tmp_path, formats="seg-nrrd") == ()
    assert len(write(flat, image, tmp_path, formats="nrrd")) == 4
    for wrong in ("1.5", "[0.3, 0]", "[]"):
        with pytest.raises(UsageError, match="thresholds"):
            write(heatmap, image, tmp_path / "no", formats=f"seg-nrrd(thresholds={wrong})")
    assert not (tmp_path / "no").exists()


def test_a_file_of_unknown_sides_names_none_and_simpleitk_still_finds_the_place(tmp_path: Path) -> None:
    heatmap, image, _ = case("oblique", oriented=False)
    path = write(heatmap, image, tmp_path, formats="nrrd")[0]
    assert not read(path).source.oriented
    assert read(path).grid.is_close(heatmap.grid)
    itk = sitk.ReadImage(str(path))
    np.testing.assert_allclose(itk.TransformIndexToPhysicalPoint([0, 0, 0]), lps(heatmap.grid.affine[:3, 3]), atol=1e-9)


def test_the_same_heatmap_gives_the_same_bytes_and_no_line_comes_from_a_name(tmp_path: Path) -> None:
    heatmap, image, lesion = case("oblique")
    heatmap = replace(heatmap, target="lesion\nSegmentation_MasterRepresentation:=Closed surface (class 0)")
    one, two = (write(heatmap, image, tmp_path / n, formats="nrrd,seg-nrrd", lesion=lesion) for n in "ab")
    assert [f.read_bytes() for f in one] == [f.read_bytes() for f in two]
    assert nrrd.read_header(str(one[-1]))["Segmentation_MasterRepresentation"] == "Binary labelmap"
