"""ROAD: remove what the map shows, and let the neighbours hide that anything was removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medcam.engine.study import Study
from medcam.errors import UsageError
from medcam.trials.deletion import Curve, deletion_curve
from medcam.trials.fills import Fill
from medcam.trials.inpainting import inpainted
from medcam.trials.order import Order, Patches, order_of, surrogates
from medcam.trials.scoring import check_domain, check_maps

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# A control of blobs of the map's own size: ROAD likes blurred maps, and this says how much.
CONTROL = "blob"


@dataclass(frozen=True, eq=False)
class Road:
    """Scores with the most, or the least, relevant voxels replaced.

    Parameters
    ----------
    most_first, least_first
        Against the realised share of voxels that were replaced.
    control_most_first, control_least_first
        The same for a random map with the map's own values and autocorrelation, averaged over draws.
    tied
        The share of voxels whose order was chance.
    """

    most_first: Curve
    least_first: Curve
    control_most_first: Curve
    control_least_first: Curve
    tied: Float[Tensor, " b"]

    @property
    def combined(self) -> Float[Tensor, " b"]:
        """Half the mean of least-first less most-first: above 0 where the map tells more from less important voxels."""
        return _combined(self.most_first, self.least_first)

    @property
    def control(self) -> Float[Tensor, " b"]:
        """The same of the control. What a map scores above it, it does not owe to its blobs."""
        return _combined(self.control_most_first, self.control_least_first)


def road(
    study: Study,
    maps: Float[Tensor, "b *s"],
    *,
    shares: Sequence[float | int] = SHARES,
    noise: float | int = 0.01,
    spacing_mm: Sequence[float | int] | None = None,
    domain: Bool[Tensor, "b *s"] | None = None,
    draws: int = 2,
) -> Road:
    """Return ROAD of maps, in images and volumes.

    Takes two passes for each share, and as many for each draw of the control.

    Parameters
    ----------
    shares
        Of the voxels that are replaced, each above 0 and below 1.
    noise
        The standard deviation of the Gaussian noise that is added to replaced voxels, in units of each channel's own standard deviation.
        The same noise, by the study's seed, is used at all shares, so that they differ by what was replaced.
    spacing_mm
        Of the voxels: near neighbours count more.
    domain
        The voxels that are ranked and replaced, such as the body; by default all.
    draws
        How many random maps the control averages.

    Raises
    ------
    UsageError
        If an option is out of range.

    References
    ----------
    Rong et al., A consistent and efficient evaluation strategy for attribution methods, ICML 2022. Its figures are accuracies; `on_trial`
    says how to get them. The combination is that of the library pytorch-grad-cam (`ROADCombined`).
    """
    if not shares or not all(0 < share < 1 for share in shares) or list(shares) != sorted(shares):
        raise UsageError(f"shares of replaced voxels rise between 0 and 1, unlike {list(shares)}")
    if noise < 0 or draws < 1:
        raise UsageError(f"noise is at least 0 and a control takes at least one draw, not {noise} and {draws}")
    ranked, inside = check_maps(study, maps), check_domain(study, domain)
    fill = _noisy(study, noise, spacing_mm)
    patches = Patches(tuple(ranked.shape[1:]), (1,) * (ranked.ndim - 1))
    generator = study.generator()

    def both(of: Float[Tensor, "b *s"]) -> tuple[Order, Curve, Curve]:
        order = order_of(of, patches, domain=inside, generator=study.generator())
        most = deletion_curve(study, order, fill, shares=shares)
        return order, most, deletion_curve(study, order.reversed(), fill, shares=shares)

    own, most, least = both(ranked)
    others = [both(surrogates(ranked, CONTROL, domain=inside, generator=generator)) for _ in range(draws)]
    return Road(most, least, _mean([one[1] for one in others]), _mean([one[2] for one in others]), own.tied)


def _noisy(study: Study, noise: float | int, spacing_mm: Sequence[float | int] | None) -> Fill:
    inputs = study.inputs
    drawn = torch.randn(inputs.shape[1:], generator=study.generator()).to(inputs)
    axes = tuple(range(2, inputs.ndim))
    added = noise * inputs.std(axes, keepdim=True, unbiased=False) * drawn

    def fill(copies: Float[Tensor, "m b c *s"], removed: Bool[Tensor, "m b *s"]) -> Float[Tensor, "m b c *s"]:
        flat = inpainted(copies.flatten(0, 1), removed.flatten(0, 1), spacing_mm=spacing_mm)
        filled = flat.unflatten(0, copies.shape[:2])
        noised: Tensor = filled + torch.where(removed.unsqueeze(2), added, 0)
        return noised

    return fill


def _mean(curves: Sequence[Curve]) -> Curve:
    return Curve(
        torch.stack([one.shares for one in curves]).mean(0), torch.stack([one.scores for one in curves]).mean(0)
    )


def _combined(most: Curve, least: Curve) -> Float[Tensor, " b"]:
    apart: Tensor = (least.scores - most.scores).mean(1) / 2
    return apart
