"""Ablation-CAM: how much the score falls when a channel is silenced."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medcam.engine import cams
from medcam.engine.explainer import Explainer
from medcam.engine.study import Study

# A head that is a sum over channels is told by silencing this many random halves of them at once.
_PROBES = 8
_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def ablation_cam() -> Explainer:
    """Weigh each channel by the share of the score that is lost without it.

    A channel is silenced by setting it to zero. Only what follows the layer runs again. Where that is no more than pooling and one linear
    layer, the loss of every channel follows from one gradient; this is tested on random halves of the channels before it is relied on.

    The paper divides by the score, which turns the map's sign where the score is negative; here it is divided by the score's size.

    References
    ----------
    Desai & Ramaswamy, Ablation-CAM, WACV 2020, eqs. 3 and 4, without the ReLU of eq. 4.
    """
    return Explainer(_explain, needs=frozenset({"activation", "tail"}))


def _explain(study: Study) -> Float[Tensor, "b *t"]:
    losses = _additive_losses(study)
    if losses is None:
        losses = _losses(study)
    size = study.scores.abs().to(losses)
    weights = losses / torch.where(size > 0, size, torch.ones_like(size))[:, None]
    return cams.combine(weights, study.activation)


def _losses(study: Study) -> Float[Tensor, "b c"]:
    """Return what the score loses without each channel, by running the tail without it."""
    clean = study.activation
    channels = clean.shape[1]

    def without(some: slice) -> Float[Tensor, "m b c *t"]:
        copies = clean.repeat(some.stop - some.start, *[1] * clean.ndim).reshape(-1, *clean.shape)
        for copy, channel in zip(copies, range(some.start, some.stop), strict=True):
            copy[:, channel] = 0
        return copies

    return (study.scores - study.scores_from(channels, without)).T


def _additive_losses(study: Study) -> Float[Tensor, "b c"] | None:
    """Return what the score loses without each channel where it is a sum of homogeneous terms of one channel each, else None.

    Then term k is the inner product of its activation and its gradient (Euler's theorem).
    """
    tail = study.tail
    if tail is None or len(tail.weighted) != 1 or not isinstance(tail.weighted[0], _LINEAR):
        return None
    clean = study.activation
    terms = (study.tail_gradient() * clean).flatten(2).sum(2)
    halves = torch.rand((_PROBES, clean.shape[1]), generator=study.generator()) < 0.5
    halves = halves.to(clean.device)

    def without(some: slice) -> Float[Tensor, "m b c *t"]:
        kept = ~halves[some].reshape(-1, 1, clean.shape[1], *[1] * (clean.ndim - 2))
        return clean * kept

    lost = study.scores - study.scores_from(_PROBES, without)
    expected = torch.einsum("pc,bc->pb", halves.to(terms.dtype), terms)
    tolerance = 1e-4 * (terms.abs().sum(1) + study.scores.abs())
    return terms if bool(((lost - expected).abs() <= tolerance).all()) else None
