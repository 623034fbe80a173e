"""Many methods and layers of one case: the same heatmaps as one by one, from one preparation and one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai import transforms as mt

from conftest import blob, made_volume, oblique_grid
from medcam.errors import UsageError
from medcam.lesion_net import LesionNet
from medcam.pipeline import explain, explain_all

GRID = oblique_grid((24, 31, 19), (1.2, 1.0, 2.0))
METHODS = ("grad-cam", "hires-cam", "occlusion(window=8, stride=8)")
LAYERS = ("features.1", "features.2")


def network() -> LesionNet:
    torch.manual_seed(3)
    return LesionNet(3, (3, 4, 5), dilations=(1, 1, 1)).eval()


def chain() -> mt.Compose:
    return mt.Compose([mt.Orientationd("image", "RAS"), mt.Resized("image", (24, 20, 28))])


@pytest.mark.parametrize("windows", [{}, {"window": (20, 16, 20), "overlap": 0.25}])
def test_each_heatmap_is_that_of_its_method_and_layer_alone(windows: dict[str, Any]) -> None:
    volume = made_volume(blob(GRID, GRID.world_mm(np.array([9.0, 20, 11]))), GRID)
    methods = METHODS if not windows else METHODS[:2]
    found = explain_all(volume, network(), methods=methods, layers=LAYERS, target=0, preprocessing=chain(), **windows)
    asked = [(method, layer) for method in methods for layer in (LAYERS if "cam" in method else ("",))]
    assert [(each.recipe.method, each.recipe.layer) for each in found] == asked
    for one, (method, layer) in zip(found, asked, strict=True):
        alone = explain(
            volume, network(), method=method, layer=layer or None, target=0, preprocessing=chain(), **windows
        )
        np.testing.assert_allclose(one.relevance, alone.relevance, rtol=1e-5, atol=1e-8)
        assert one.grid == GRID
        assert (one.recipe, one.notes, one.target) == (alone.recipe, alone.notes, alone.target)
        assert one.score == pytest.approx(alone.score, rel=1e-6)
    assert np.nanstd(found[0].relevance - found[1].relevance) > 0


def test_more_rules_cost_no_more_passes_and_all_share_one_preparation() -> None:
    seen: list[str] = []
    net = network()
    net.features.register_forward_hook(lambda *_: seen.append("pass"))
    counted = mt.Compose([chain(), mt.Lambdad("image", lambda x: seen.append("prepared") or x)])
    volume = made_volume(blob(GRID, GRID.world_mm(np.array([9.0, 20, 11]))), GRID)
    explain_all(volume, net, methods=METHODS[:1], layers=LAYERS, target=0, preprocessing=counted)
    of_one = list(seen)
    seen.clear()
    rules = ("grad-cam", "hires-cam", "layer-cam")
    assert len(explain_all(volume, net, methods=rules, layers=LAYERS, target=0, preprocessing=counted)) == 6
    assert seen == of_one
    assert seen.count("prepared") == 1


def test_a_layer_that_is_not_there_is_refused() -> None:
    volume = made_volume(blob(GRID, GRID.world_mm(np.array([9.0, 20, 11]))), GRID)
    with pytest.raises(UsageError, match=r"features\.7"):
        explain_all(volume, network(), layers=["features.1", "features.7"], target=0, preprocessing=chain())
