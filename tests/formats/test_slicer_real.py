"""Scenes of real images, as 3D Slicer's own library shows them: every voxel in its place, colours where the blob is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from formats.asked_slicer import asked
from medcam.formats import read, write
from medcam.recipe import Recipe
from medcam.volume import Heatmap, Volume

IMAGES = {
    "CT": "ct_dicomseg",
    "oblique MR with a gap": "dicom_mr_series/memprage_oblique.zip",
    "CT with a tilted gantry": "dicom_hard/failing/gantrytilting",
    "enhanced MR": "dicom_hard/enhanced_philips",
    "CR without a pixel size": "cxr_dicom/RG1_J2KI.dcm",
    "DX": "cxr_dicom/DX_thorax.dcm",
    "NIfTI": "mri_misc/someones_anatomy.nii.gz",
}
THRESHOLD, SIDE = 0.5, 500


def blob_on(volume: Volume) -> Heatmap:
    """A Gaussian off the middle, a tenth of the image wide, computed near its centre only."""
    grid = volume.grid
    peak = np.array([int(n * share) for n, share in zip(grid.shape, (0.6, 0.4, 0.55), strict=True)])
    width = 0.06 * max(n * mm for n, mm in zip(grid.shape, grid.spacing_mm, strict=True))
    relevance = np.zeros(grid.shape, np.float32)
    reach = [int(4 * width / mm) + 1 for mm in grid.spacing_mm]
    box = tuple(slice(max(0, p - r), min(n, p + r + 1)) for p, r, n in zip(peak, reach, grid.shape, strict=True))
    index = np.moveaxis(np.mgrid[box], 0, -1)
    apart = np.linalg.norm((index - peak) @ grid.affine[:3, :3].T, axis=-1)
    relevance[box] = np.exp(-0.5 * (apart / width) ** 2)
    recipe = Recipe("net", "ab" * 32, "grad-cam", "features", "blob", inputs=(volume.source.sha256,))
    return Heatmap(relevance, grid, volume.source, recipe, "blob", 1.0)


@pytest.fixture(scope="module")
def seen(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Volume, Heatmap, Any, Path]]:
    """What 3D Slicer makes of each image's scene."""
    home = tmp_path_factory.mktemp("real")
    made, requests = {}, []
    for n, (name, path) in enumerate(IMAGES.items()):
        volume = read(real_data / path, allow_gaps=True)
        heatmap = blob_on(volume)
        (scene,) = write(heatmap, volume, home / str(n), formats="slicer", threshold=THRESHOLD)
        peak = heatmap.peak()
        assert peak is not None
        corners = volume.grid.world_mm(np.array([peak.voxel, (0, 0, 0), np.array(volume.grid.shape) - 1]))
        views = ["Red"] if volume.grid.shape[2] == 1 else ["Red", "Yellow", "Green"]
        shape = {view: {"pixels": [SIDE, SIDE], "mm": None} for view in views}
        requests.append({"scene": str(scene), "folder": str(home / str(n)), "points": corners.tolist(), "views": shape})
        made[name] = (volume, heatmap)
    answers = asked(requests, home)
    return {
        name: (*made[name], answer, home / str(n)) for n, (name, answer) in enumerate(zip(IMAGES, answers, strict=True))
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_a_real_image_is_shown_in_its_place(name: str, seen: dict[str, tuple[Volume, Heatmap, Any, Path]]) -> None:
    volume, heatmap, answer, folder = seen[name]
    grid, peak = volume.grid, heatmap.peak()
    assert peak is not None
    places = (peak.voxel, (0, 0, 0), tuple(n - 1 for n in grid.shape))
    image, relevance = answer["volumes"]
    np.testing.assert_array_equal(image["values"], [volume.voxels[each] for each in places])
    np.testing.assert_array_equal(relevance["values"], [heatmap.relevance[each] for each in places])
    (mask,) = answer["segmentations"]
    expected = grid.world_mm(np.argwhere(heatmap.mask(THRESHOLD))).mean(axis=0)
    np.testing.assert_allclose(mask["centroid"], expected, atol=0.01)
    for view, stands in answer["views"].items():
        shown = np.load(folder / f"{view}.npy").astype(int)
        coloured = np.ptp(shown, axis=-1) > 2
        # Rows count downwards from the top, and VTK's middle of an even number of pixels is the lower left corner of the next.
        middle = np.array([SIDE // 2 - 1, SIDE // 2])
        pixel = stands["field_of_view"][0] / SIDE
        # A blob that the image's edge cuts off is not around its peak; few slices cut this one.
        if volume.grid.shape[2] > 20 or view == "Red":
            assert np.linalg.norm(np.argwhere(coloured).mean(axis=0) - middle) < 1, view
        np.testing.assert_allclose(
            np.array(stands["ras_from_slice"])[:3, 3], grid.world_mm(np.array(peak.voxel)), atol=1e-6
        )
        assert coloured.sum() * pixel**2 > 1
