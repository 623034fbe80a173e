"""How much of a voxel a mask fills: against closed forms, an independent count, and what no change of axes may alter."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import oblique_grid
from medcam.errors import GeometryError
from medcam.geometry import Grid
from medcam.occupancy import occupancy


def volume_mm3(grid: Grid) -> float:
    return abs(float(np.linalg.det(grid.affine[:3, :3])))


def random_mask(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Some boxes and single voxels, away from the border."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    for _ in range(4):
        low = [int(rng.integers(1, max(2, n // 2))) for n in shape]
        high = [int(rng.integers(a + 1, n)) if a + 1 < n else a + 1 for a, n in zip(low, shape, strict=True)]
        mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] ^= True
    mask[tuple(n // 2 for n in shape)] = True
    return mask


def counted(mask: np.ndarray, grid: Grid, onto: Grid, voxel: tuple[int, ...], per_axis: int) -> float:
    """The share of one voxel, by a loop over points in it, each asked by hand in which voxel of the mask it lies."""
    inside = 0
    index_from_world = np.linalg.inv(grid.affine)
    for step in product(range(per_axis), repeat=3):
        point = onto.affine @ [*(v - 0.5 + (s + 0.5) / per_axis for v, s in zip(voxel, step, strict=True)), 1]
        i, j, k = (int(np.floor(x + 0.5)) for x in (index_from_world @ point)[:3])
        inside += all(0 <= n < side for n, side in zip((i, j, k), grid.shape, strict=True)) and bool(mask[i, j, k])
    return inside / per_axis**3


def moved(
    grid: Grid, shape: tuple[int, int, int], stride: tuple[float, float, float], offset: tuple[float, float, float]
) -> Grid:
    x, y, z = (float(s) for s in stride)
    a, b, c = (float(o) for o in offset)
    return grid.coarsened(shape, (x, y, z), (a, b, c))


def test_a_box_has_the_shares_that_geometry_says() -> None:
    grid = oblique_grid((12, 9, 7))
    mask = np.zeros(grid.shape, bool)
    mask[3:5, 4, 2] = True
    # Cells of 4 x 3 x 2 voxels: cell (0, 1, 1) holds i 0..3, j 3..5, k 2..3.
    onto = moved(grid, (3, 3, 3), (4, 3, 2), (1.5, 1, 0.5))
    shares = np.zeros((3, 3, 3))
    shares[0, 1, 1] = shares[1, 1, 1] = 1 / 24
    np.testing.assert_allclose(occupancy(mask, grid, onto), shares, atol=1e-6)
    # A quarter of a voxel further along i: of voxel 3 a quarter lies in the neighbour's cell... of voxel 4 nothing changes hands.
    onto = moved(grid, (3, 3, 3), (4, 3, 2), (1.25, 1, 0.5))
    shares[0, 1, 1], shares[1, 1, 1] = 0.75 / 24, 1.25 / 24
    np.testing.assert_allclose(occupancy(mask, grid, onto), shares, atol=1e-6)


def test_the_same_grid_gives_the_mask_itself() -> None:
    for grid in (oblique_grid((12, 9, 7)), Grid((5, 8, 6), np.diag([-1.5, 2, 3, 1.0]))):
        mask = random_mask(grid.shape)
        np.testing.assert_array_equal(occupancy(mask, grid, grid), mask)


@given(
    stride=st.tuples(*[st.floats(0.3, 4)] * 3), shift=st.tuples(*[st.floats(-2, 2)] * 3), seed=st.integers(0, 99),
    flips=st.tuples(*[st.booleans()] * 3), order=st.permutations(range(3)),
)  # fmt: skip
def test_along_common_axes_volume_is_kept_whatever_the_axes(
    stride: tuple[float, ...], shift: tuple[float, ...], seed: int, flips: tuple[bool, ...], order: list[int]
) -> None:
    grid = oblique_grid((9, 7, 5))
    mask = random_mask(grid.shape, seed)
    counts = [int(np.ceil((n + 4) / s)) + 1 for n, s in zip(grid.shape, stride, strict=True)]
    onto = moved(grid, tuple(counts), stride, tuple(s / 2 - 2.5 + d - 0.5 for s, d in zip(stride, shift, strict=True)))
    shares = occupancy(mask, grid, onto)
    assert shares.min() >= 0
    assert shares.max() <= 1
    low, high = (onto.index(grid.world_mm(edge)) for edge in (np.full(3, -0.5), np.array(grid.shape) - 0.5))
    if (low >= -0.5).all() and (high <= np.array(counts) - 0.5).all():
        assert shares.sum() * volume_mm3(onto) == pytest.approx(mask.sum() * volume_mm3(grid), rel=1e-5)

    # The same cells named by other axes hold the same shares.
    turn = np.eye(4)
    turn[:3, :3] = np.eye(3)[:, order]
    turned = np.transpose(shares, order)
    for axis in range(3):
        if flips[axis]:
            turn[:3, 3] += turn[:3, axis] * (turned.shape[axis] - 1)
            turn[:3, axis] *= -1
            turned = np.flip(turned, axis)
    again = occupancy(mask, grid, Grid(turned.shape, onto.affine @ turn))
    np.testing.assert_allclose(again, turned, atol=1e-6)


@pytest.mark.parametrize("stride", [(4, 3, 2), (0.4, 0.7, 0.5), (1, 1, 1)], ids=["coarser", "finer", "alike"])
def test_between_oblique_grids_shares_are_those_of_a_count_and_volume_is_kept(
    stride: tuple[float, float, float],
) -> None:
    grid = Grid((14, 11, 9), np.diag([1.0, -1.3, 2.0, 1.0]))
    mask = random_mask(grid.shape, 3)
    centre = grid.world_mm((np.array(grid.shape) - 1) / 2)
    side = tuple(int(np.ceil(26 / s)) for s in stride)
    onto = oblique_grid(side, stride)
    affine = onto.affine.copy()
    affine[:3, 3] += centre - onto.world_mm((np.array(side) - 1) / 2)
    onto = Grid(side, affine)
    shares = occupancy(mask, grid, onto)
    assert shares.sum() * volume_mm3(onto) == pytest.approx(mask.sum() * volume_mm3(grid), rel=0.02)
    rng = np.random.default_rng(0)
    partly = np.argwhere((shares > 0) & (shares < 1))
    for voxel in partly[rng.choice(len(partly), min(6, len(partly)), replace=False)]:
        assert shares[tuple(voxel)] == pytest.approx(counted(mask, grid, onto, tuple(voxel), 16), abs=0.09)
    # Far inside is 1, far outside 0.
    solid = occupancy(np.ones(grid.shape, bool), grid, onto)
    assert solid[tuple(n // 2 for n in side)] == 1
    assert solid[0, 0, 0] == 0


def test_turned_oblique_cells_hold_the_same_shares() -> None:
    grid, onto = Grid((14, 11, 9), np.diag([1.0, -1.3, 2.0, 1.0])), oblique_grid((7, 8, 6), (2.1, 1.9, 3.3))
    affine = onto.affine.copy()
    affine[:3, 3] += grid.world_mm(np.array([6.5, 5, 4])) - onto.world_mm(np.array([3, 3.5, 2.5]))
    onto, mask = Grid(onto.shape, affine), random_mask(grid.shape, 5)
    shares = occupancy(mask, grid, onto)
    assert (shares > 0).sum() > 20
    turn = np.array([[0, 0, -1, 6], [1, 0, 0, 0], [0, -1, 0, 5], [0, 0, 0, 1.0]])
    again = occupancy(mask, grid, Grid((8, 6, 7), onto.affine @ turn))
    np.testing.assert_allclose(again, np.transpose(shares, (1, 2, 0))[:, ::-1, ::-1], atol=1e-6)


def test_a_lesion_of_one_fine_voxel_does_not_vanish_on_a_coarse_grid() -> None:
    fine = oblique_grid((40, 40, 40), (0.5, 0.5, 0.5))
    mask = np.zeros(fine.shape, bool)
    mask[21, 17, 23] = True
    aligned = moved(fine, (4, 4, 4), (10, 10, 10), (4.5, 4.5, 4.5))
    tilted = Grid(
        (12, 12, 12),
        np.diag([5.0, 5, 5, 1]) + np.pad((fine.world_mm(np.array([20.0, 20, 20])) - 27)[:, None], ((0, 1), (3, 0))),
    )
    for onto in (aligned, tilted):
        shares = occupancy(mask, fine, onto)
        assert shares.sum() * volume_mm3(onto) == pytest.approx(volume_mm3(fine), rel=0.3)
        hit = np.unravel_index(np.argmax(shares), shares.shape)
        np.testing.assert_allclose(hit, np.rint(onto.index(fine.world_mm(np.array([21, 17, 23])))))


def test_a_mask_elsewhere_or_empty_fills_nothing_and_one_of_another_shape_or_frame_is_refused() -> None:
    grid = oblique_grid((6, 7, 5))
    far = Grid((4, 4, 4), np.diag([1.0, 1, 1, 1]) + np.pad([[5000.0], [0], [0]], ((0, 1), (3, 0))))
    assert not occupancy(np.zeros(grid.shape, bool), grid, far).any()
    assert not occupancy(np.ones(grid.shape, bool), grid, far).any()
    assert not occupancy(np.ones(grid.shape, bool), grid, moved(grid, (3, 3, 3), (1, 1, 1), (90, 0, 0))).any()
    with pytest.raises(GeometryError, match="cannot lie on a grid"):
        occupancy(np.ones((2, 2, 2), bool), grid, grid)
    with pytest.raises(GeometryError, match="different frames of reference"):
        occupancy(
            np.ones(grid.shape, bool), oblique_grid(grid.shape, frame="1.2"), oblique_grid(grid.shape, frame="1.3")
        )
