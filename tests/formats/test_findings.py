"""The findings of a heatmap against a flood fill by hand."""

from __future__ import annotations

from collections import deque
from itertools import product

import numpy as np
import pytest

from conftest import oblique_grid
from medcam.formats.findings import findings
from medcam.geometry import Grid
from medcam.recipe import Recipe
from medcam.volume import Heatmap, Source

RECIPE = Recipe("net", "ab" * 32, "grad-cam", "features.3", "lesion (class 0)")


def placed(relevance: np.ndarray, grid: Grid) -> Heatmap:
    return Heatmap(relevance.astype(np.float32), grid, Source("array", "0" * 64), RECIPE, RECIPE.target, 1.0)


def flooded(mask: np.ndarray) -> list[set[tuple[int, ...]]]:
    """Return the regions of a mask, by walking from voxel to voxel."""
    left = {tuple(int(n) for n in voxel) for voxel in np.argwhere(mask)}
    regions = []
    while left:
        start = min(left)
        region, queue = {start}, deque([start])
        left.remove(start)
        while queue:
            i, j, k = queue.popleft()
            for a, b, c in product((-1, 0, 1), repeat=3):
                if (near := (i + a, j + b, k + c)) in left:
                    left.remove(near)
                    region.add(near)
                    queue.append(near)
        regions.append(region)
    return regions


def test_findings_are_what_a_flood_fill_finds() -> None:
    grid = oblique_grid((11, 8, 5))
    relevance = np.random.default_rng(3).random(grid.shape) ** 4 - 0.01
    relevance[2, 3, 1] = np.nan
    found = findings(placed(relevance, grid), 0.3)
    regions = flooded(np.nan_to_num(relevance, nan=-1) >= 0.3 * np.float32(np.nanmax(relevance)))
    assert len(found) == len(regions) > 3
    # A box of 1.2 x 0.9 x 2.4 mm.
    expected = sorted(
        ((max((relevance[v], v) for v in region), len(region)) for region in regions), key=lambda one: -one[0][0]
    )
    for finding, ((peak, voxel), count) in zip(found, expected, strict=True):
        assert (finding.peak.voxel, finding.voxels) == (voxel, count)
        assert finding.peak.relevance == pytest.approx(peak)
        assert finding.peak.world_mm == pytest.approx(grid.affine[:3, :3] @ voxel + grid.affine[:3, 3])
        assert finding.size == pytest.approx(count * 1.2 * 0.9 * 2.4)


def test_corners_connect_and_a_gap_of_one_voxel_does_not() -> None:
    grid = oblique_grid((7, 6, 5))
    relevance = np.zeros(grid.shape)
    relevance[1, 1, 1], relevance[2, 2, 2], relevance[4, 2, 2], relevance[6, 5, 4] = 1.0, 0.9, 0.8, 0.2
    found = findings(placed(relevance, grid), 0.5)
    assert [(one.peak.voxel, one.voxels) for one in found] == [((1, 1, 1), 2), ((4, 2, 2), 1)]


def test_a_film_has_areas_and_the_first_of_equals_comes_first() -> None:
    grid = Grid((9, 7, 1), np.diag((0.2, 0.3, 1.0, 1.0)))
    relevance = np.zeros(grid.shape)
    relevance[1:3, 5, 0], relevance[7, 2, 0], relevance[7, 4, 0] = 1.0, 1.0, 0.7
    found = findings(placed(relevance, grid), 0.5)
    assert [one.peak.voxel for one in found] == [(1, 5, 0), (7, 2, 0), (7, 4, 0)]
    assert [one.size for one in found] == pytest.approx([0.12, 0.06, 0.06])


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_where_nothing_speaks_for_the_target_nothing_is_found(value: float) -> None:
    grid = oblique_grid((4, 3, 2))
    assert findings(placed(np.full(grid.shape, value), grid), 0.5) == ()


def test_the_first_finding_has_the_peak_of_the_heatmap() -> None:
    grid = oblique_grid((6, 5, 4))
    relevance = np.random.default_rng(0).random((4, 5, 6)).T
    heatmap = placed(relevance, grid)
    assert findings(heatmap, 0.9)[0].peak == heatmap.peak()
