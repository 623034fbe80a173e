"""Deletion against Quantus in the same run, where it works: images of two dimensions.

A pass of the network costs both the same. Quantus's PixelFlipping ranks each channel for itself, and so takes a pass a step and channel.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medcam.trials.deletion import deletion_curve
from medcam.trials.fills import fill_named
from medcam.trials.order import order_of, patches_of
from medcam.trials.scoring import on_trial
from trials.toys import convolutional

pytestmark = [pytest.mark.slow, pytest.mark.alone]
STEPS, SIDE = 28, 224


class Deep(nn.Module):
    """Eight convolutions in four sizes, some 1e8 multiplications a pass."""

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for n in range(4):
            out = width * 2**n
            parts += [nn.Conv2d(channels, out, 3, 2, 1), nn.BatchNorm2d(out), nn.ReLU()]
            parts += [nn.Conv2d(out, out, 3, 1, 1), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        self.parts, self.last = nn.Sequential(*parts), nn.Linear(channels, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.last(self.parts(image).mean((2, 3)))


def ours(network: nn.Module, image: Tensor, maps: Tensor) -> np.ndarray:
    with on_trial(network, image, target=0, score="probability", activation="softmax") as study:
        order = order_of(
            maps, patches_of(maps.shape[1:]), domain=torch.ones(maps.shape, dtype=torch.bool), generator=study.generator()
        )  # fmt: skip
        shares = [(n + 1) / STEPS for n in range(STEPS)]
        return deletion_curve(study, order, fill_named(image, "zero"), shares=shares).scores.numpy()


def theirs(network: nn.Module, image: Tensor, maps: Tensor) -> np.ndarray:
    quantus = pytest.importorskip(
        "quantus", reason="Quantus is compared with where it is installed (in a place of its own)"
    )
    metric = quantus.PixelFlipping(
        features_in_step=SIDE * SIDE // STEPS, perturb_baseline=0.0, abs=False, normalise=False, disable_warnings=True
    )  # fmt: skip
    return np.array(
        metric(
            model=network, x_batch=image.numpy(), y_batch=np.zeros(len(image), int), a_batch=maps[:, None].numpy(),
            device="cpu", softmax=True,
        )
    )  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


@pytest.mark.parametrize(("channels", "at_least"), [(1, 0.8), (3, 2.4), (4, 3.0)])
def test_deletion_of_the_same_pixels_is_faster_than_quantus(channels: int, at_least: float) -> None:
    """On one channel both take the same passes, and nearly all of the time is the network's own; a fifth is left for noise."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, channels, SIDE, SIDE, generator=generator) + 0.5
    maps = torch.rand(1, SIDE, SIDE, generator=generator)
    for name, network in (("small", convolutional(2, channels)), ("deep", Deep(channels).eval())):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first = theirs(network, image, maps), ours(network, image, maps)
            taken = [
                (seconds(lambda n=network: theirs(n, image, maps)), seconds(lambda n=network: ours(n, image, maps)))
                for _ in range(4)
            ]
        if channels == 1:
            np.testing.assert_allclose(first[0], first[1], atol=1e-5)
        # With all pixels gone both have come to the same empty image, in STEPS passes and in STEPS for each channel.
        assert first[0].shape[1] == channels * first[1].shape[1]
        assert first[0][0, -1] == pytest.approx(first[1][0, -1], abs=1e-5)
        slow, fast = (min(each) for each in zip(*taken, strict=True))
        print(f"{channels} channels, {name}: Quantus {slow:.3f} s, medcam {fast:.3f} s: {slow / fast:.1f} times")
        if name == "deep":
            assert slow >= at_least * fast
