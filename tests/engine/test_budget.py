"""How many perturbed copies run at once: by shapes and a budget of memory, never none."""

from __future__ import annotations

import pytest
import torch

from engine.toy_networks import Classifier, image
from medcam.engine import relevance
from medcam.engine.budget import copies_within
from medcam.engine.layers import feature_layers
from medcam.errors import UsageError


def test_the_widest_layer_decides_and_a_batch_counts_as_a_whole() -> None:
    network, x = Classifier(2).eval(), torch.randn(1, 2, 64, 48)
    layers = feature_layers(network, x)
    widest = max(layer.channels * layer.shape[0] * layer.shape[1] for layer in layers)
    assert widest == 5 * 64 * 48  # the stem
    one = 3 * widest * 4 / 2**20
    assert copies_within(10 * one * 1.001, x, layers) == 10
    assert copies_within(10 * one * 1.001, x.expand(5, -1, -1, -1), layers) == 2
    assert copies_within(0.001, x, layers) == 1
    assert copies_within(10**6, x, layers) == 64


def test_a_budget_changes_how_and_not_what() -> None:
    network, x = Classifier(2).eval(), image(2)
    few, many = (
        relevance(network, x, layer="block", target=[2, 0, 1], method="score-cam", memory_mb=mb).values
        for mb in (0.001, 500)
    )
    torch.testing.assert_close(few, many, rtol=1e-4, atol=1e-6)
    with pytest.raises(UsageError, match="a positive number of megabytes, not 0"):
        relevance(network, x, layer="block", target=1, memory_mb=0)
