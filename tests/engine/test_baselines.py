"""Images without evidence: for each sample and channel as if alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from medcam.engine.baselines import BASELINES, baseline, blurred
from medcam.errors import UsageError

DIMS = pytest.mark.parametrize("dims", [2, 3])


def image(dims: int) -> torch.Tensor:
    return torch.randn(3, 2, *(5, 4, 3)[:dims], dtype=torch.float64) + torch.arange(3).reshape(3, *[1] * (dims + 1))


def blurred_by_loops(channel: np.ndarray, share: float) -> np.ndarray:
    """A Gaussian over all axes at once, its weights within the image rescaled to sum to 1."""
    result = np.zeros_like(channel)
    for place in np.ndindex(*channel.shape):
        total = weight = 0.0
        for other in np.ndindex(*channel.shape):
            apart = sum(((p - o) / (share * n)) ** 2 for p, o, n in zip(place, other, channel.shape, strict=True))
            total += math.exp(-apart / 2) * channel[other]
            weight += math.exp(-apart / 2)
        result[place] = total / weight
    return result


@DIMS
def test_each_kind_is_what_it_says_for_each_sample_and_channel(dims: int) -> None:
    x = image(dims)
    ways = {
        "zero": lambda c: 0 * c,
        "min": lambda c: 0 * c + c.min(),
        "mean": lambda c: 0 * c + c.mean(),
        "blur": lambda c: blurred_by_loops(c, 0.1),
    }
    assert set(ways) == set(BASELINES)
    for kind, way in ways.items():
        expected = np.stack([np.stack([way(channel) for channel in sample]) for sample in x.numpy()])
        np.testing.assert_allclose(baseline(x, kind).numpy(), expected, atol=1e-12, err_msg=kind)
        together, alone = baseline(x, kind), torch.cat([baseline(x[n : n + 1], kind) for n in range(3)])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-14)
    np.testing.assert_allclose(blurred(x, 0.4)[1, 0].numpy(), blurred_by_loops(x[1, 0].numpy(), 0.4), atol=1e-12)


@DIMS
def test_a_value_or_a_tensor_may_be_given(dims: int) -> None:
    x = image(dims)
    assert (baseline(x, -1.0) == -1).all()
    each = torch.tensor([3.0, 4.0]).reshape(1, 2, *[1] * dims)
    assert torch.equal(baseline(x, each), each.double().expand_as(x))


@DIMS
def test_a_blur_keeps_a_constant_image(dims: int) -> None:
    torch.testing.assert_close(baseline(torch.full_like(image(dims), 3.0), "blur"), torch.full_like(image(dims), 3.0))


def test_what_cannot_be_a_baseline_is_refused() -> None:
    with pytest.raises(UsageError, match="'zero', 'min', 'mean', 'blur', a value or a tensor, not 'black'"):
        baseline(image(2), "black")
    with pytest.raises(UsageError, match="does not broadcast"):
        baseline(image(2), torch.zeros(7))
    with pytest.raises(UsageError, match="above 0"):
        baseline(image(2), "blur", blur=0.0)
