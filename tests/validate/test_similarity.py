"""How alike maps are: against MONAI, scipy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics.regression import SSIMMetric
from scipy import stats
from scipy.ndimage import gaussian_filter

from medcam.errors import GeometryError, UsageError
from medcam.validate.similarity import (
    degenerate,
    pearson,
    scaled,
    shift_mm,
    similarity,
    spearman,
    ssim,
    top_overlap,
)

SPACING = (0.8, 1.3, 2.6)


def blobs(seed: int, shape: tuple[int, ...] = (19, 23, 13)) -> np.ndarray:
    return gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.0).astype(np.float32)


@pytest.mark.parametrize("shape", [(19, 23, 13), (31, 17)])
def test_structural_similarity_is_monais(shape: tuple[int, ...]) -> None:
    x, y = scaled(blobs(0, shape)), scaled(blobs(0, shape) + 0.7 * blobs(1, shape))
    theirs = SSIMMetric(len(shape), data_range=1.0)(torch.tensor(x)[None, None], torch.tensor(y)[None, None])
    ours = ssim(x, y, data_range=1.0)
    assert ours == pytest.approx(float(theirs), abs=1e-5)
    assert 0.1 < ours < 0.9


def test_a_wrong_range_inflates_structural_similarity_so_it_has_no_default() -> None:
    x, y = scaled(blobs(0)), scaled(blobs(1))
    assert ssim(x, y, data_range=2.0) > ssim(x, y, data_range=1.0) + 0.02
    with pytest.raises(TypeError):
        ssim(x, y)
    with pytest.raises(UsageError, match="above 0"):
        ssim(x, y, data_range=0)


def test_a_map_is_like_itself_in_every_way() -> None:
    x = blobs(0)
    found = similarity(x, 3 * x, spacing_mm=SPACING)
    assert (found.ssim, found.spearman, found.spearman_absolute, found.pearson) == pytest.approx((1, 1, 1, 1))
    assert (found.top_overlap, found.shift_mm) == pytest.approx((1, 0), abs=1e-5)
    turned = similarity(x, -x, spacing_mm=SPACING)
    assert (turned.spearman, turned.spearman_absolute, turned.pearson) == pytest.approx((-1, 1, -1))


def test_correlations_are_scipys_over_the_voxels_that_both_have() -> None:
    x, y = blobs(0).round(1), blobs(1) + blobs(0)
    x[:3], y[-2:] = np.nan, np.nan
    both = np.isfinite(x) & np.isfinite(y)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x[both], y[both]).statistic)
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x[both].astype(float), y[both].astype(float)).statistic)


def test_a_degenerate_map_is_like_nothing() -> None:
    x = blobs(0)
    for nothing in (np.zeros_like(x), np.full_like(x, np.nan), np.full_like(x, 3.5)):
        assert degenerate(nothing)
        found = similarity(x, nothing, spacing_mm=SPACING)
        assert np.isnan([found.ssim, found.spearman, found.spearman_absolute, found.pearson, found.top_overlap]).all()
    assert np.isnan(shift_mm(x, -abs(x), spacing_mm=SPACING))
    assert not degenerate(x)


def test_the_overlap_of_the_highest_voxels_is_counted_by_chance_under_ties() -> None:
    x = np.arange(20.0).reshape(4, 5)
    y = x.copy()
    y[3, 4] = -1
    # The highest two of x are 18 and 19; of y 17 and 18.
    assert top_overlap(x, y) == pytest.approx(1 / 3)
    flat = np.zeros((4, 5))
    flat[0, 0] = 1
    # One voxel is sure, and one of the other 19 has a chance of 1/19 each.
    both = 1 + 19 / 19**2
    assert top_overlap(flat, flat) == pytest.approx(both / (4 - both))
    random = np.random.default_rng(0).normal(size=(2, 40, 50, 60))
    assert top_overlap(random[0], random[1]) == pytest.approx(0.1 / 1.9, abs=0.003)
    with pytest.raises(UsageError, match="share"):
        top_overlap(x, y, share=0)


def test_the_shift_is_in_millimetres_of_each_axis() -> None:
    x = np.zeros((9, 7, 5))
    x[2, 3, 1] = 2.0
    moved = np.roll(x, (1, -2, 3), (0, 1, 2)) - 0.5
    assert shift_mm(x, moved, spacing_mm=SPACING) == pytest.approx(np.linalg.norm([0.8, 2.6, 7.8]))
    flipped = shift_mm(x[::-1], moved[::-1], spacing_mm=SPACING)
    assert flipped == pytest.approx(shift_mm(x, moved, spacing_mm=SPACING))
    turned = shift_mm(x.transpose(2, 0, 1), moved.transpose(2, 0, 1), spacing_mm=(2.6, 0.8, 1.3))
    assert turned == pytest.approx(flipped)


def test_maps_on_different_grids_are_refused() -> None:
    with pytest.raises(GeometryError, match="one grid"):
        pearson(np.zeros((3, 4)), np.zeros((4, 3)))
    with pytest.raises(GeometryError, match="2 spacings"):
        shift_mm(np.zeros((3, 4, 2)), np.zeros((3, 4, 2)), spacing_mm=(1, 1))
