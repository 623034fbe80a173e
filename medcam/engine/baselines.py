"""What an image without evidence looks like: the reference that Integrated Gradients starts from, and what masks put in place of voxels.

No value is neutral for every network. Zero is air in a CT scaled to 0..1 and average tissue in an MRI scaled to mean 0, so the choice is
the user's.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from medcam.errors import UsageError

BASELINES = ("zero", "min", "mean", "blur")
# The Gaussian's sigma as a share of each side: wide enough to wash out organs, narrow enough to keep where the body is.
_BLUR = 0.1


def baseline(inputs: Float[Tensor, "b c *s"], kind: str | float | Tensor, *, blur: float = _BLUR) -> Float[Tensor, "b c *s"]:  # fmt: skip
    """Return an image without evidence for each sample and channel, each as if alone.

    Parameters
    ----------
    kind
        'zero'; 'min', each channel's lowest value (air, or padding); 'mean', its mean; 'blur', a Gaussian blur of it; or a value, or a
        tensor that broadcasts to the input, in the units that the network sees.
    blur
        The blur's standard deviation as a share of each side. The Gaussian is cut at the border and rescaled to sum to 1, so a constant
        image stays what it is.

    Raises
    ------
    UsageError
        If the kind is unknown, or the tensor does not fit.
    """
    if isinstance(kind, str):
        return _named(inputs, kind, blur)
    given = torch.as_tensor(kind, dtype=inputs.dtype, device=inputs.device)
    try:
        return given.expand_as(inputs)
    except RuntimeError:
        raise UsageError(
            f"a baseline of shape {tuple(given.shape)} does not broadcast to the input's {tuple(inputs.shape)}"
        ) from None


def _named(inputs: Tensor, kind: str, blur: float) -> Tensor:
    axes = tuple(range(2, inputs.ndim))
    if kind == "zero":
        return torch.zeros_like(inputs)
    if kind == "min":
        return inputs.amin(axes, keepdim=True).expand_as(inputs)
    if kind == "mean":
        return inputs.mean(axes, keepdim=True).expand_as(inputs)
    if kind == "blur":
        return blurred(inputs, blur)
    raise UsageError(f"a baseline is {', '.join(map(repr, BASELINES))}, a value or a tensor, not {kind!r}")


def blurred(inputs: Float[Tensor, "b c *s"], share: float) -> Float[Tensor, "b c *s"]:
    """Return each channel blurred by a Gaussian whose sigma is that share of each side, one axis after the other.

    Raises
    ------
    UsageError
        If the share is not positive.
    """
    if not share > 0:
        raise UsageError(f"the blur's width is a share of the sides above 0, not {share}")
    result = inputs
    for axis in range(2, inputs.ndim):
        n = inputs.shape[axis]
        place = torch.arange(n, dtype=torch.float64, device=inputs.device)
        weights = torch.exp(-0.5 * ((place[:, None] - place) / (share * n)) ** 2)
        weights = (weights / weights.sum(1, keepdim=True)).to(inputs.dtype)
        result = (result.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return result


def baseline_kind(value: object) -> str | float:
    """Return what `baseline` takes: a name or a number.

    Raises
    ------
    UsageError
        If the value is neither.
    """
    if isinstance(value, str) and value in BASELINES:
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    names = ", ".join(f"'{name}'" for name in BASELINES)
    raise UsageError(f"baseline is one of {names}, or a number, not {value!r}")
