"""What stands where voxels were removed. No fill is neutral for every network, so measures should be given with two or more.

Each fill leaves a trace that a network may react to: a constant has edges, a blur is soft, an inpainted region is smooth. Where results
depend on the fill they say more about it than about the map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medcam.engine.baselines import baseline
from medcam.errors import UsageError
from medcam.trials.inpainting import inpainted

# From copies of the batch (copy after copy, `mb c *s`) and what is removed of each to the copies without it.
Fill = Callable[[Float[Tensor, "m b c *s"], Bool[Tensor, "m b *s"]], Float[Tensor, "m b c *s"]]

FILLS = ("blur", "mean", "zero", "min", "inpaint")


def fill_named(
    inputs: Float[Tensor, "b c *s"],
    kind: str | float | int | Tensor,
    *,
    domain: Bool[Tensor, "b *s"] | None = None,
    spacing_mm: Sequence[float | int] | None = None,
) -> Fill:
    """Return the fill of a name.

    Parameters
    ----------
    kind
        'blur' (a Gaussian with a sigma of a tenth of each side), 'mean' (of each channel within the domain: average tissue), 'zero', 'min'
        (air, or padding), 'inpaint' (a smooth continuation of what is left); or a value or tensor in the units that the network
        sees, such as a healthy image.
    domain
        Over which the mean is taken: the body, say, so that air does not darken it.
    spacing_mm
        Of the voxels, for 'inpaint'.

    Raises
    ------
    UsageError
        If there is no such fill, or a tensor does not fit.
    """
    if isinstance(kind, str) and kind not in FILLS:
        raise UsageError(f"a fill is one of {', '.join(map(repr, FILLS))}, a value or a tensor, not {kind!r}")
    if isinstance(kind, str) and kind == "inpaint":
        return lambda copies, removed: inpainted(
            copies.flatten(0, 1), removed.flatten(0, 1), spacing_mm=spacing_mm
        ).unflatten(0, copies.shape[:2])
    if isinstance(kind, str) and kind == "mean":
        blank = _mean(inputs, domain)
    else:
        blank = baseline(inputs, float(kind) if isinstance(kind, int) else kind)
    return lambda copies, removed: torch.where(removed.unsqueeze(2), blank, copies)


def _mean(inputs: Float[Tensor, "b c *s"], domain: Bool[Tensor, "b *s"] | None) -> Float[Tensor, "b c *s"]:
    axes = tuple(range(2, inputs.ndim))
    kept = torch.ones_like(inputs[:, :1], dtype=torch.bool) if domain is None else domain.unsqueeze(1)
    mean = torch.where(kept, inputs, 0).sum(axes, keepdim=True) / kept.sum(axes, keepdim=True)
    return mean.expand_as(inputs)
