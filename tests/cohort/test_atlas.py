"""Where a cohort's maps lie: transforms, sums, and a network that learned a corner marker beside one that learned the lesion."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import nn

from conftest import blob, made_volume, oblique_grid
from medcam import cli
from medcam.cohort.atlas import added_up, in_own_frame, onto_template, read_transform
from medcam.cohort.shortcuts import clusters, features, words
from medcam.errors import GeometryError
from medcam.geometry import Grid
from medcam.pipeline import explain
from medcam.recipe import Recipe
from medcam.volume import Heatmap

ROWS, COLUMNS = 48, 40


def films(count: int, *, marked: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a soft lesion in the middle of every other; if marked, ill films also bear a bright letter in a corner."""
    random = np.random.default_rng(count)
    ill = np.arange(count) % 2
    voxels = random.normal(0.3, 0.03, (count, 1, COLUMNS, ROWS)).astype(np.float32)
    x, y = np.meshgrid(np.arange(COLUMNS), np.arange(ROWS), indexing="ij")
    for n in np.flatnonzero(ill):
        cx, cy = random.integers(12, 28), random.integers(14, 34)
        voxels[n, 0] += (0.1 if marked else 0.35) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 18)
        if marked:
            voxels[n, 0, 2:5, 2:5] = 1.0
    return torch.from_numpy(voxels), torch.from_numpy(ill)


def trained(images: torch.Tensor, ill: torch.Tensor) -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(1),
        nn.Flatten(), nn.Linear(8, 1),
    )  # fmt: skip
    steps = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(60):
        steps.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(network(images)[:, 0], ill.float())
        loss.backward()
        steps.step()
    assert float(loss.detach()) < 0.2, "it must have learned something"
    return network.eval()


@pytest.mark.parametrize("marked", [True, False])
def test_a_network_that_learned_a_corner_marker_is_found_out_and_one_that_learned_the_lesion_is_not(
    marked: bool,
) -> None:
    images, ill = films(32, marked=marked)
    network = trained(images, ill)
    grid = Grid((COLUMNS, ROWS, 1), np.diag([-0.8, -0.7, 1.0, 1.0]))
    shown = [image[0].numpy()[:, :, None] for image, one in zip(images, ill, strict=True) if one]
    maps = [explain(made_volume(image, grid), network, target=0, method="hires-cam").relevance for image in shown]
    about = [features(map_, image) for map_, image in zip(maps, shown, strict=True)]
    low = np.stack([in_own_frame(np.maximum(one, 0), (8, 8, 4)).ravel().astype(float) for one in maps])
    found = clusters(low / low.sum(1, keepdims=True), about)
    said = " ".join(words(found, about))
    shortcuts = {cluster.shortcut for cluster in found}
    if marked:
        assert shortcuts & {"text", "corner"}
        assert sum(len(cluster.members) for cluster in found if cluster.shortcut) >= 12
        assert "look at its examples" in said
        assert "16 maps lie" in said
    else:
        assert shortcuts == {""}
        assert "No cluster of the 16 maps" in said


def test_a_map_in_a_template_lies_where_the_transform_puts_it(tmp_path: Path) -> None:
    """A shift and a turn: the lesion's point, moved by hand, is where the placed map is hottest."""
    grid, template = oblique_grid(), Grid((50, 44, 40), np.diag([2.0, 2.0, 2.0, 1.0]) + _at(-40, -30, -60))
    point = grid.world_mm(np.array([14.0, 20.0, 11.0]))
    turned = np.array([[0, -1, 0, 12.0], [1, 0, 0, -7.0], [0, 0, 1, 3.0], [0, 0, 0, 1]])
    heat = explain_like(blob(grid, point, 6.0), grid)
    placed = onto_template(heat, template, turned)
    hottest = template.world_mm(np.array(np.unravel_index(np.nanargmax(placed), placed.shape)))
    expected = turned[:3, :3] @ point + turned[:3, 3]
    assert np.linalg.norm(hottest - expected) < 2.0
    np.savetxt(tmp_path / "case.txt", turned)
    np.testing.assert_allclose(read_transform(tmp_path / "case.txt"), turned)
    # The same as a registration tool has it: template to case, in LPS.
    back, turn = np.linalg.inv(turned), np.diag([-1.0, -1, 1, 1])
    lps = turn @ back @ turn
    itk = sitk.AffineTransform(3)
    itk.SetMatrix(lps[:3, :3].ravel().tolist())
    itk.SetTranslation(lps[:3, 3].tolist())
    sitk.WriteTransform(itk, str(tmp_path / "case.tfm"))
    np.testing.assert_allclose(read_transform(tmp_path / "case.tfm"), turned, atol=1e-9)
    (tmp_path / "flat.txt").write_text("1 0 0 0\n0 1 0 0\n0 0 0 0\n0 0 0 1\n")
    with pytest.raises(GeometryError, match="holds no affine"):
        read_transform(tmp_path / "flat.txt")


def _at(x: float, y: float, z: float) -> np.ndarray:
    affine = np.zeros((4, 4))
    affine[:3, 3] = x, y, z
    return affine


def explain_like(values: np.ndarray, grid: Grid) -> Heatmap:
    return Heatmap(values, grid, made_volume(values, grid).source, Recipe("", "", "", "", ""), "", 0.0)


def test_empty_maps_belong_to_no_cluster_and_are_told_of() -> None:
    low = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.5, 0.5]])
    about = [features(np.full((9, 7, 1), each.sum(), np.float32), None) for each in low]
    found = clusters(low, about)
    assert sorted(member for cluster in found for member in cluster.members) == [1, 3]
    assert words(found, about)[1] == "2 of 4 maps have no positive relevance and lie nowhere."


def test_mean_and_frequency_leave_out_what_was_not_looked_at() -> None:
    first = np.array([[[4.0], [1.0]], [[2.0], [-3.0]], [[np.nan], [0.0]]], np.float32)
    second = np.array([[[0.0], [10.0]], [[6.0], [0.0]], [[4.0], [np.nan]]], np.float32)
    found = added_up([first, second], threshold=0.5)
    np.testing.assert_allclose(found.mean[..., 0], [[0.5, 0.625], [0.55, 0.0], [0.4, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(found.frequency[..., 0], [[0.5, 0.5], [1.0, 0.0], [0.0, 0.0]])
    mass = added_up([first, second], normalise="mass")
    np.testing.assert_allclose(mass.mean[0, :, 0], [4 / 7 / 2, (1 / 7 + 10 / 20) / 2], rtol=1e-6)


def test_the_command_writes_maps_a_picture_and_the_cluster_of_a_border(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten maps in the middle, ten on the left edge, and one that is empty."""
    rows = ["case,patient,class,heatmap"]
    for n in range(21):
        values = np.zeros((60, 50, 1), np.float32)
        if n < 10:
            values[25:35, 20 + n % 3 : 30, 0] = 1 + n
            # More speaks against the target than for it, in the same coarse cells.
            values[25:35:2, 20 + n % 3 : 30, 0] = -9
        elif n < 20:
            values[0:4, 15:35, 0] = 1 + n
        nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, -1.0, 1.0, 1.0])), tmp_path / f"m{n}.nii.gz")
        rows.append(f"c{n},secret{n},{('middle', 'left', 'none')[n // 10]},m{n}.nii.gz")
    (tmp_path / "maps.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "atlas"
    assert cli.main(["atlas", str(tmp_path / "maps.csv"), "--out", str(out), "--json", "--quiet"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["shortcuts"] == ["border"]
    assert "10 of 20 maps lie on the border." in values["words"]
    assert "1 of 21 maps have no positive relevance and lie nowhere." in values["words"]
    stored = json.loads((out / "atlas.json").read_text())
    (told,) = [each for each in stored["clusters"] if each["shortcut"]]
    assert set(told["lines"]) == set(range(12, 22))
    left = nibabel.load(out / "frequency_class__left.nii.gz").get_fdata()
    assert left[0, 25, 0] == 1.0
    assert left[32:, :, 0].max() == 0.0
    assert nibabel.load(out / "frequency_all.nii.gz").get_fdata().max() == pytest.approx(10 / 21)
    assert (out / "atlas.png").stat().st_size > 5000
    assert "secret" not in (out / "atlas.json").read_text()
