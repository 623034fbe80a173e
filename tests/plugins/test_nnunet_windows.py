"""Windows by nnU-Net's rule: its steps and its Gaussian, against twins written from their description and against nnU-Net itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer

from engine.toy_networks import Segmenter, image
from medcam.engine.tiling import tile
from medcam.engine.windows import Windows, windowed_relevances
from medcam.errors import UsageError

CASES = [((37, 41, 29), (16, 20, 12)), ((20, 60, 33), (16, 20, 12)), ((16, 20, 12), (16, 20, 12)), ((9, 90), (16, 24))]


@pytest.mark.parametrize(("sides", "roi"), CASES)
@pytest.mark.parametrize("overlap", [0.5, 0.25, 0.3])
def test_windows_are_spread_evenly_and_no_further_apart_than_asked(
    sides: tuple[int, ...], roi: tuple[int, ...], overlap: float
) -> None:
    tiling = tile(sides, Windows(roi, overlap, rule="nnunet"))
    for whole, side, starts in zip(tiling.padded, roi, tiling.starts, strict=True):
        count = 1
        while (count > 1 and (whole - side) / (count - 1) > side * (1 - overlap)) or (count == 1 and whole > side):
            count += 1
        expected = [round(n * (whole - side) / max(count - 1, 1)) for n in range(count)]
        assert list(starts) == expected
    assert all(
        starts[-1] + side == whole for whole, side, starts in zip(tiling.padded, roi, tiling.starts, strict=True)
    )


@pytest.mark.parametrize("roi", [(16, 20, 12), (15, 9)])
def test_their_gaussian_is_a_point_in_the_middle_spread_and_cut_off_at_four_sigma(roi: tuple[int, ...]) -> None:
    tiling = tile([2 * side for side in roi], Windows(roi, rule="nnunet"), dtype=torch.float64)
    lines = []
    for side in roi:
        sigma = side / 8
        reach = int(4 * sigma + 0.5)
        weights = [math.exp(-0.5 * (n / sigma) ** 2) if abs(n) <= reach else 0.0 for n in range(-side, side + 1)]
        lines.append(np.array([weights[n - side // 2 + side] for n in range(side)]))
    bell = lines[0]
    for line in lines[1:]:
        bell = bell[..., None] * line
    bell = np.where(bell > 0, bell, bell[bell > 0].min()) / bell.max()
    np.testing.assert_allclose(tiling.importance.numpy(), bell, rtol=1e-9, atol=1e-14)


def test_a_stitched_output_is_the_weighted_mean_of_its_windows() -> None:
    network, volume = Segmenter(2).eval(), image(2, 1)
    windows = Windows((8, 6), 0.5, rule="nnunet")
    found = windowed_relevances(network, volume, windows, targets=[1], prediction=True)
    tiling = tile(volume.shape[2:], windows)
    total, weight = torch.zeros(3, *volume.shape[2:]), torch.zeros(volume.shape[2:])
    with torch.no_grad():
        for corner in tiling.corners:
            box = tiling.box(corner)
            total[(slice(None), *box)] += network(volume[(slice(None), slice(None), *box)])[0] * tiling.importance
            weight[box] += tiling.importance
    assert found.prediction is not None
    torch.testing.assert_close(found.prediction[0], total / weight)
    assert found.relevances[0].values.isfinite().all()


def test_a_recipe_names_the_rule_only_where_it_is_not_monais() -> None:
    assert Windows((8, 6), rule="nnunet").settings()["rule"] == "nnunet"
    assert "rule" not in Windows((8, 6)).settings()
    assert Windows.of(SlidingWindowInferer((8, 6))).rule == "monai"
    with pytest.raises(UsageError, match="'monai' or 'nnunet', not 'own'"):
        Windows((8, 6), rule="own")
    assert bool((tile((16, 12), Windows((8, 6), mode="constant", rule="nnunet")).importance == 1).all())


@pytest.mark.parametrize(("sides", "roi"), CASES)
def test_they_are_nnunets_own(sides: tuple[int, ...], roi: tuple[int, ...]) -> None:
    own = pytest.importorskip(
        "nnunetv2.inference.sliding_window_prediction", reason="nnunetv2, of the extra 'nnunet', is not installed"
    )
    tiling = tile(sides, Windows(roi, 0.5, rule="nnunet"))
    assert [list(starts) for starts in tiling.starts] == own.compute_steps_for_sliding_window(tiling.padded, roi, 0.5)
    bell = own.compute_gaussian(tuple(roi), dtype=torch.float32, device=torch.device("cpu"))
    torch.testing.assert_close(tiling.importance, bell)
