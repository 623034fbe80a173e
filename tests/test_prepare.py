"""Preprocessing that never loses where a voxel lies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai import transforms as mt

from conftest import blob, made_volume, oblique_grid
from medcam.errors import GeometryError, UsageError
from medcam.geometry import Grid
from medcam.prepare import Prepared, prepare
from medcam.volume import Volume

GRID = oblique_grid((31, 37, 23))
CENTRE = GRID.world_mm(np.array([20.0, 11.0, 14.0]))
FILM = Grid((90, 70, 1), np.array([[-0.7, 0, 0, 5], [0, 0, -1, 3], [0, -0.9, 0, 2], [0, 0, 0, 1.0]]))
SPOT = FILM.world_mm(np.array([60.0, 20, 0]))


def centroid_mm(ready: Prepared) -> np.ndarray:
    values = ready.tensor[0].double().numpy()
    values = values.reshape(ready.grid.shape) - values.min()
    values = np.clip(values - 0.2 * values.max(), 0, None)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in values.shape], indexing="ij"), -1)
    return ready.grid.world_mm((index * values[..., None]).sum((0, 1, 2)) / values.sum())


@pytest.mark.parametrize(
    "chain",
    [
        [mt.Orientationd("image", "RAS"), mt.Spacingd("image", (1.5, 1.5, 1.5)),
         mt.CropForegroundd("image", source_key="image", select_fn=lambda x: x > 1e-3), mt.Resized("image", (33, 28, 36)),
         mt.SpatialPadd("image", (48, 40, 44))],
        [mt.Orientation("LPS"), mt.Spacing((2, 2, 2)), mt.Flip(1), mt.Rotate90(1, (0, 2)), mt.NormalizeIntensity()],
        [mt.Transposed("image", (0, 3, 1, 2)), mt.ScaleIntensityd("image"), mt.ToTensord("image", track_meta=False)],
        [mt.CenterSpatialCropd("image", (20, 32, 20)), mt.BorderPadd("image", (1, 2, 3))],
        [mt.Rotated("image", (0.2, 0.1, 0.3), keep_size=False), mt.ThresholdIntensityd("image", 0.01)],
        [mt.ResizeWithPadOrCropd("image", (40, 30, 30)), mt.DivisiblePadd("image", 16), mt.GaussianSmoothd("image", 0.5)],
        [],
    ],
)  # fmt: skip
def test_a_bright_spot_keeps_its_place_through_a_chain(chain: list) -> None:
    ready = prepare([made_volume(blob(GRID, CENTRE), GRID)], mt.Compose(chain), spatial_dims=3)
    assert np.linalg.norm(centroid_mm(ready) - CENTRE) < 0.1
    assert ready.tensor.dtype == torch.float32


@pytest.mark.parametrize(
    "chain",
    [
        [mt.Resized("image", (64, 50))],
        [
            mt.Spacingd("image", (1.0, 1.0)),
            mt.SpatialPadd("image", (80, 96)),
            mt.Rotate90d("image"),
            mt.Flipd("image", 0),
        ],
        [mt.Transposed("image", (0, 2, 1)), mt.Resized("image", (64, 48))],
    ],
)
def test_a_film_keeps_its_place_in_two_dimensions(chain: list) -> None:
    ready = prepare([made_volume(blob(FILM, SPOT), FILM)], mt.Compose(chain), spatial_dims=2)
    assert ready.tensor.ndim == 3
    assert ready.grid.shape == (*ready.tensor.shape[1:], 1)
    # Resize's default mode averages over windows of whole pixels, which are not quite even.
    assert np.abs(ready.grid.index(centroid_mm(ready)) - ready.grid.index(SPOT)).max() < 0.25


def test_without_transforms_the_network_sees_the_voxels_themselves() -> None:
    voxels = np.random.default_rng(0).normal(size=GRID.shape).astype(np.float32)
    ready = prepare([made_volume(voxels, GRID)], None, spatial_dims=3)
    np.testing.assert_array_equal(ready.tensor[0].numpy(), voxels)
    assert ready.grid.is_close(GRID)


def test_monais_zoom_keeps_the_place_within_a_quarter_of_a_voxel() -> None:
    chain = mt.Compose([mt.Zoomd("image", 1.3, keep_size=False)])
    ready = prepare([made_volume(blob(GRID, CENTRE), GRID)], chain, spatial_dims=3)
    assert np.abs(ready.grid.index(centroid_mm(ready)) - ready.grid.index(CENTRE)).max() < 0.25


def test_a_step_that_forgets_the_place_but_moves_nothing_is_followed() -> None:
    chain = mt.Compose([mt.Lambda(lambda x: torch.as_tensor(np.asarray(x)) * 2)])
    assert prepare([made_volume(blob(GRID, CENTRE), GRID)], chain, spatial_dims=3).grid.is_close(GRID)


@pytest.mark.parametrize(
    "step",
    [
        mt.Lambdad("image", lambda x: x.flip(1)),
        mt.Lambda(lambda x: torch.as_tensor(np.asarray(x)).flip(3) * 2 + 1),
        mt.Lambdad("image", lambda x: x[:, :, :, :12]),
    ],
)
def test_a_step_that_moves_voxels_in_silence_is_refused(step: object) -> None:
    with pytest.raises(GeometryError, match="does not say"):
        prepare([made_volume(blob(GRID, CENTRE), GRID)], mt.Compose([step]), spatial_dims=3)


def test_intensity_steps_are_no_movement_even_if_they_turn_values_over() -> None:
    chain = mt.Compose([mt.Lambdad("image", lambda x: -x), mt.ScaleIntensityRanged("image", -1, 0, 0, 1, clip=True)])
    assert prepare([made_volume(blob(GRID, CENTRE), GRID)], chain, spatial_dims=3).grid.is_close(GRID)


def test_random_preprocessing_is_refused_and_leaves_the_seed_alone() -> None:
    with pytest.raises(UsageError, match="random"):
        prepare([made_volume(blob(GRID, CENTRE), GRID)], mt.Compose([mt.RandFlipd("image")]), spatial_dims=3)


def four() -> list[Volume]:
    return [made_volume(np.full(GRID.shape, n, np.float32), GRID) for n in range(4)]


@pytest.mark.parametrize(
    "chain",
    [
        mt.Compose([mt.ScaleIntensityRanged("image", 0, 1, 0, 1)]),
        mt.Compose([mt.ConcatItemsd(["t1", "t1c", "t2", "flair"], "all")]),
        None,
    ],
)
def test_several_images_become_channels_in_their_order(chain: object) -> None:
    ready = prepare(four(), chain, spatial_dims=3)
    assert ready.tensor.mean((1, 2, 3)).tolist() == [0, 1, 2, 3]


def test_the_other_images_are_put_on_the_grid_of_the_first() -> None:
    other = Grid((40, 40, 40), np.diag([1.5, 1.5, 1.5, 1]) + np.pad((CENTRE - 30)[:, None], ((0, 1), (3, 0))))
    volumes = [made_volume(np.zeros(GRID.shape), GRID), made_volume(blob(other, CENTRE), other)]
    ready = prepare(volumes, None, spatial_dims=3)
    second = Prepared(ready.tensor[1:], ready.grid, (), ())
    assert np.linalg.norm(centroid_mm(second) - CENTRE) < 0.2
    assert ready.notes == ("Image 2 lies on another grid than image 1 and was resampled onto it.",)


def test_images_of_different_frames_of_reference_are_refused_even_on_equal_grids() -> None:
    volumes = [made_volume(np.zeros(GRID.shape), oblique_grid(GRID.shape, frame=frame)) for frame in ("1.2", "1.3")]
    with pytest.raises(GeometryError, match="different frames of reference"):
        prepare(volumes, None, spatial_dims=3)


def test_images_and_keys_must_fit() -> None:
    with pytest.raises(UsageError, match="takes 2 images"):
        prepare(four(), mt.Compose([mt.ConcatItemsd(["a", "b"], "c")]), spatial_dims=3)


def test_a_2d_network_takes_one_slice() -> None:
    with pytest.raises(UsageError, match="--slice"):
        prepare(four()[:1], None, spatial_dims=2)
    assert prepare([four()[2].slice(3)], None, spatial_dims=2).tensor.shape == (1, *GRID.shape[:2])


def test_a_step_that_fails_is_named() -> None:
    with pytest.raises(UsageError, match="step Lambda failed"):
        prepare(four()[:1], mt.Compose([mt.Lambda(lambda x: x.nothing)]), spatial_dims=3)


def test_values_that_are_no_numbers_are_replaced_and_it_is_said() -> None:
    voxels = np.ones(GRID.shape, np.float32)
    voxels[2, 3, 4] = np.nan
    ready = prepare([made_volume(voxels, GRID)], None, spatial_dims=3)
    assert ready.tensor[0, 2, 3, 4] == 0
    assert "1 voxels that are not numbers" in ready.notes[0]


@pytest.mark.filterwarnings("ignore:.*nvImageCodec.*:UserWarning")
def test_a_chains_own_loader_has_nothing_to_do() -> None:
    chain = mt.Compose([mt.LoadImaged("image"), mt.EnsureChannelFirstd("image"), mt.ScaleIntensityd("image")])
    ready = prepare([made_volume(blob(GRID, CENTRE), GRID)], chain, spatial_dims=3)
    assert [step.partition("(")[0] for step in ready.steps] == ["ScaleIntensityd"]


def test_a_step_of_the_users_own_that_changes_the_image_much_is_noted() -> None:
    chain = mt.Compose([mt.Lambda(lambda x: torch.roll(x, 10, 1))])
    ready = prepare([made_volume(blob(GRID, CENTRE), GRID)], chain, spatial_dims=3)
    assert "Lambda changes the image much" in ready.notes[0]


def test_a_3d_network_takes_no_single_slice() -> None:
    with pytest.raises(UsageError, match="the network is 3D and the image has one slice"):
        prepare([four()[0].slice(2)], None, spatial_dims=3)
