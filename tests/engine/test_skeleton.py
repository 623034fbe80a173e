"""The convolutions of a skeleton keep less and give the same gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medcam.engine.skeleton import skeleton


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 3, "padding": 1}, {"kernel_size": 1}, {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 3, "padding": 2, "dilation": 2}, {"kernel_size": 3, "padding": 1, "groups": 2},
        {"kernel_size": 2, "padding": 3}, {"kernel_size": 4, "stride": 3, "bias": False},
    ],
)  # fmt: skip
def test_the_gradient_at_a_convolutions_input_is_torchs_own(
    dims: int, transposed: bool, geometry: dict[str, int]
) -> None:
    if transposed and geometry.get("stride") == 2:
        geometry = {**geometry, "output_padding": 1}
    name = f"Conv{'Transpose' if transposed else ''}{dims}d"
    network = nn.Sequential(getattr(nn, name)(4, 6, **geometry)).double()
    x = torch.randn(2, 4, *(9, 11, 8)[:dims], dtype=torch.float64, requires_grad=True)
    plain = network(x)
    slope = torch.randn_like(plain)
    (expected,) = torch.autograd.grad(plain, x, slope)
    with skeleton(network) as copied:
        lean = copied(x)
        (found,) = torch.autograd.grad(lean, x, slope)
    torch.testing.assert_close(lean, plain)
    torch.testing.assert_close(found, expected)
