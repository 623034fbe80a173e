"""What makes a map doubtful, measured on the device and said in words: never a blank or noisy map in silence."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, prod

import torch
from jaxtyping import Float
from torch import Tensor

# The mean of a gradient that cancels by construction is rounding noise: about this share of the mean absolute gradient at most.
_CANCELLED = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}
_FEW_CELLS = 4
_SATURATED = 1e-6


def gradient_sizes(slope: Float[Tensor, "b c *t"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Return the mean absolute gradient of each sample, and the largest mean gradient of a channel."""
    channels = slope.flatten(2)
    size = torch.linalg.vector_norm(channels, 1, (1, 2)) / max(1, channels[0].numel())
    return size, channels.mean(2).abs().amax(1)


def measure(
    values: Float[Tensor, "b *t"], size: Float[Tensor, " b"] | None, mean: Float[Tensor, " b"] | None
) -> Float[Tensor, "b 4"]:
    """Return what `doubts` needs of each sample: the lowest and the highest value of its map, and `gradient_sizes` (0 for methods without a
    gradient). Nothing is read back from the device."""
    low, high = torch.aminmax(values.flatten(1), dim=1)  # a value that is not a number wins both
    none = torch.zeros_like(low) if size is None or mean is None else low
    return torch.stack([low, high, none if size is None else size.to(low), none if mean is None else mean.to(low)], 1)


def cancels(size: float, mean: float, dtype: torch.dtype, cells: int) -> bool:
    """Tell whether a gradient's mean over each channel is rounding noise, as it must be in front of an instance norm."""
    return cells > 1 and size > 0 and mean / size < _CANCELLED.get(dtype, 1e-5)


def doubts(
    row: Sequence[float], *, gradient: bool, pooled: bool, dtype: torch.dtype, cells: Sequence[int], behind: str | None
) -> list[str]:
    """Return the sentences that a row of `measure` calls for.

    Parameters
    ----------
    gradient, pooled
        Whether the method takes a gradient, and whether it averages the gradient over each channel.
    dtype
        In which precision the network computed the gradient.
    cells
        The layer's cells along each axis.
    behind
        The name of a layer behind the normalisation, if one is known.
    """
    _, high, size, mean = row
    if not all(map(isfinite, row)):
        return [
            "The map holds values that are not finite: the network's features or gradients overflow. Do not use it."
        ]
    if gradient and size == 0:
        return ["The score's gradient at this layer is zero everywhere (a saturated or dead output); the map is blank."]
    if pooled and cancels(size, mean, dtype, prod(cells)):
        where = f"Choose the layer behind it, '{behind}'," if behind else "Choose a layer behind the normalisation,"
        return [
            "The gradient's mean over each channel cancels to rounding noise, as it must in front of an instance norm; this map is "
            f"noise. {where} or a method that does not average gradients, such as hires-cam."
        ]
    if not high > 0:
        return ["Nothing in the image speaks for the target at this layer: the map has no positive value."]
    return []


def few_cells(layer: str, cells: Sequence[int]) -> list[str]:
    """Return a sentence if the layer is too coarse to say where something is."""
    if min(cells) >= _FEW_CELLS:
        return []
    return [f"Layer '{layer}' has only {' x '.join(map(str, cells))} cells; the map cannot be finer than that."]


def saturated(probability: float) -> list[str]:
    """Return a sentence if a probability is so near 0 or 1 that its gradient vanishes."""
    if _SATURATED < probability < 1 - _SATURATED:
        return []
    return [
        f"The explained probability is {probability:.6g}, where a softmax or sigmoid is saturated and its gradient nearly vanishes; "
        "explain the logit instead."
    ]
