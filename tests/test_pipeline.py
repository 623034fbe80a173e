"""From volumes to a placed heatmap: the answer is known, and must come back where it belongs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai import transforms as mt
from torch import Tensor, nn

from conftest import blob, made_volume, oblique_grid
from medcam.errors import ModelError, UsageError
from medcam.geometry import Grid
from medcam.models import Model, wrap_module
from medcam.pipeline import explain
from medcam.recipe import Recipe

GRID = oblique_grid((40, 44, 30), (1.2, 1.0, 2.0))


class BrightestCell(nn.Module):
    """Averages 4-voxel cells (centred on index 1.5 + 4 c) and scores the sum of their squares: the map is hottest in the brightest cell."""

    def __init__(self, dims: int = 3) -> None:
        super().__init__()
        self.cells = {2: nn.Conv2d, 3: nn.Conv3d}[dims](1, 2, 4, stride=4, bias=False)
        self.head = nn.Linear(2, 2, bias=False)
        nn.init.constant_(self.cells.weight, 1 / 4**dims)
        nn.init.constant_(self.head.weight, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.cells(x) ** 2).flatten(2).sum(2))


CHAIN = [
    mt.Orientationd("image", "RAS"), mt.Spacingd("image", (1.5, 1.5, 1.5)),
    mt.CropForegroundd("image", source_key="image", select_fn=lambda x: x > 1e-4, margin=3), mt.Resized("image", (40, 36, 44)),
    mt.SpatialPadd("image", (48, 48, 48)),
]  # fmt: skip


@pytest.mark.parametrize("index", [(8.0, 30.0, 6.0), (25.0, 12.0, 21.0), (31.0, 35.0, 14.0)])
def test_the_peak_survives_the_preprocessing_within_half_a_feature_cell(index: tuple[float, float, float]) -> None:
    centre = GRID.world_mm(np.array(index))
    volume = made_volume(blob(GRID, centre, 3.0), GRID)
    heatmap = explain(volume, BrightestCell().eval(), target=1, preprocessing=mt.Compose(CHAIN))
    peak = heatmap.peak()
    assert peak is not None
    assert heatmap.grid == GRID
    assert heatmap.recipe.stride == (4.0, 4.0, 4.0)
    assert heatmap.recipe.offset == (1.5, 1.5, 1.5)
    # Half a cell of the resized image along each axis, in mm, and half a source voxel for reading the peak off the source grid.
    from medcam.prepare import prepare

    ready = prepare([volume], mt.Compose(CHAIN), spatial_dims=3)
    apart = np.abs(ready.grid.index(np.array(peak.world_mm)) - ready.grid.index(centre))
    half_voxel = np.abs(np.linalg.inv(ready.grid.affine[:3, :3]) @ GRID.affine[:3, :3]).sum(1) / 2
    assert (apart <= 2 + half_voxel).all()


def test_what_the_network_did_not_see_is_not_a_number_and_all_it_saw_is() -> None:
    volume = made_volume(blob(GRID, GRID.world_mm(np.array([20.0, 20, 15]))), GRID)
    chain = mt.Compose([mt.CenterSpatialCropd("image", (24, 24, 16))])
    heatmap = explain(volume, BrightestCell().eval(), target=0, preprocessing=chain)
    seen = np.isfinite(heatmap.relevance)
    expected = np.zeros(GRID.shape, bool)
    expected[8:32, 10:34, 7:23] = True
    np.testing.assert_array_equal(seen, expected)


def test_all_that_the_network_saw_is_looked_at_also_where_cells_do_not_reach_the_edge() -> None:
    # Two strided convolutions: cells lie on voxels 0, 4, 8, ..., so the last three voxels have no cell beyond them.
    network = nn.Sequential(
        nn.Conv3d(1, 2, 3, 2, 1), nn.Conv3d(2, 2, 3, 2, 1), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten()
    )
    heatmap = explain(
        made_volume(blob(GRID, GRID.world_mm(np.array([20.0, 20, 15]))), GRID), network.eval(), layer="1", target=0
    )
    assert heatmap.recipe.offset == (0.0, 0.0, 0.0)
    assert np.isfinite(heatmap.relevance).all()


def test_a_film_is_explained_in_two_dimensions() -> None:
    film = Grid((64, 48, 1), np.array([[-0.7, 0, 0, 5], [0, 0, -1, 3], [0, -0.9, 0, 2], [0, 0, 0, 1.0]]))
    centre = film.world_mm(np.array([50.0, 10, 0]))
    heatmap = explain(made_volume(blob(film, centre, 2.0), film), BrightestCell(2).eval(), target=0)
    peak = heatmap.peak()
    assert peak is not None
    assert np.linalg.norm(np.array(peak.world_mm) - centre) < 2.5
    assert any("No preprocessing" in note for note in heatmap.notes)


def named(network: nn.Module) -> Model:
    return wrap_module(network.eval(), class_names=("no lesion", "lesion"))


def test_a_target_may_be_a_name_a_number_or_left_to_the_network() -> None:
    volume = made_volume(blob(GRID, GRID.world_mm(np.array([20.0, 20, 15]))), GRID)
    for target in ("lesion", "LESION", 1, "1"):
        assert explain(volume, named(BrightestCell()), target=target).target == "lesion (class 1)"
    chosen = explain(volume, named(BrightestCell()))
    assert "the predicted class, no lesion (class 0), is explained" in " ".join(chosen.notes)
    with pytest.raises(UsageError, match="no class 'tumour'; its classes are no lesion, lesion"):
        explain(volume, named(BrightestCell()), target="tumour")


def test_the_wrong_number_of_channels_is_explained() -> None:
    volume = made_volume(np.zeros(GRID.shape), GRID)
    with pytest.raises(UsageError, match="takes 1 channels and the prepared image has 2"):
        explain([volume, volume], BrightestCell().eval())
    with pytest.raises(UsageError, match="takes 4 channels and the prepared image has 1"):
        explain(volume, nn.Sequential(nn.Conv3d(4, 1, 3), nn.Flatten()).eval())


def test_four_images_are_four_channels_on_the_grid_of_the_first() -> None:
    class LastChannel(BrightestCell):
        def __init__(self) -> None:
            super().__init__()
            self.cells = nn.Conv3d(4, 2, 4, stride=4, bias=False)
            with torch.no_grad():
                self.cells.weight.zero_()[:, 3] = 1 / 64

    centre = GRID.world_mm(np.array([30.0, 12, 20]))
    other = Grid((50, 50, 50), np.diag([1.5, 1.5, 1.5, 1]) + np.pad((centre - 40)[:, None], ((0, 1), (3, 0))))
    flat = made_volume(np.zeros(GRID.shape, np.float32), GRID)
    heatmap = explain([flat, flat, flat, made_volume(blob(other, centre), other)], LastChannel().eval(), target=0)
    peak = heatmap.peak()
    assert peak is not None
    assert (np.abs(GRID.index(np.array(peak.world_mm)) - GRID.index(centre)) <= 2.5).all()
    assert len(heatmap.recipe.inputs) == 4
    assert "Image 4 lies on another grid" in " ".join(heatmap.notes)


@pytest.mark.filterwarnings("ignore:.*jit.*deprecated:DeprecationWarning")
def test_torchscript_is_refused_and_told_what_can_serve_it() -> None:
    scripted = torch.jit.trace(BrightestCell().eval(), torch.zeros(1, 1, 8, 8, 8))
    with pytest.raises(UsageError, match="TorchScript"):
        explain(made_volume(np.zeros(GRID.shape, np.float32), GRID), scripted)


def test_an_image_the_network_cannot_take_is_a_model_error() -> None:
    class Picky(BrightestCell):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("only 96 cubed will do")

    with pytest.raises(ModelError, match=r"shape \(1, 1, 40, 44, 30\): only 96 cubed will do"):
        explain(made_volume(np.zeros(GRID.shape), GRID), Picky())


def test_the_recipe_makes_the_same_heatmap_again_bit_for_bit() -> None:
    volume = made_volume(blob(GRID, GRID.world_mm(np.array([20.0, 20, 15]))), GRID)
    one, two = (explain(volume, BrightestCell().eval(), preprocessing=mt.Compose(CHAIN)) for _ in range(2))
    np.testing.assert_array_equal(one.relevance, two.relevance)
    assert one.recipe == two.recipe
    assert Recipe.from_json(one.recipe.to_json()) == one.recipe
    assert tuple(step.partition("(")[0] for step in one.recipe.preprocessing) == (
        "Orientationd",
        "Spacingd",
        "CropForegroundd",
        "Resized",
        "SpatialPadd",
    )
    assert set(one.recipe.versions) >= {"medcam", "torch", "monai", "numpy"}
    assert torch.get_default_dtype() == torch.float32
