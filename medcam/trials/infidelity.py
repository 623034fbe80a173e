"""Infidelity and sensitivity: does the map foretell how the score moves, and does it hold still when the image hardly moves?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import EllipsisType

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medcam.engine.baselines import baseline
from medcam.engine.study import Study
from medcam.errors import UsageError
from medcam.trials.scoring import Explain, check_maps


@dataclass(frozen=True, eq=False)
class Infidelity:
    """How far what a map foretells lies from how the score moves, one value for each sample.

    Parameters
    ----------
    raw
        The mean of `(I·Φ - (f(x) - f(x - I)))²`, for maps in units of the score per unit of the input, such as gradients.
    scale
        The factor of the map that makes this smallest.
    scaled
        The smallest: the map times its best factor. For maps in units of their own, such as CAMs, only this means something.
    unexplained
        `scaled` over the mean squared change of the score: 0 where the map foretells all, 1 where no factor of it is better than nothing.
        NaN where the score never moves.
    """

    raw: Float[Tensor, " b"]
    scale: Float[Tensor, " b"]
    scaled: Float[Tensor, " b"]
    unexplained: Float[Tensor, " b"]


def infidelity(
    study: Study,
    maps: Float[Tensor, "b *s"] | Float[Tensor, "b c *s"],
    *,
    perturbation: str = "noise",
    size: float | int = 0.2,
    samples: int = 200,
) -> Infidelity:
    """Return the infidelity of maps, raw and with the best factor; one pass for each sample of the perturbation.

    Parameters
    ----------
    maps
        One value a voxel, which then stands for each channel, or one for each channel. Voxels that are NaN are not perturbed.
    perturbation
        'noise': Gaussian, in all voxels. 'box': one box at a random place is replaced by the image's blur, so that what is taken away is an
        image too.
    size
        Of the noise, in standard deviations of each channel; of the box, as a share of each side.
    samples
        How many perturbations, each of the clean image: they do not add up. All samples of the batch see the same.

    Raises
    ------
    UsageError
        If an option is out of range, or the maps do not fit the input.

    References
    ----------
    Yeh et al., On the (in)fidelity and sensitivity of explanations, NeurIPS 2019, definition 2.1; the factor: its section 3, as the
    authors' code and captum's `normalize` have it.
    """
    if perturbation not in ("noise", "box") or samples < 1:
        raise UsageError(
            f"a perturbation is 'noise' or 'box' with at least one sample, not {perturbation!r} with {samples}"
        )
    if not size > 0 or (perturbation == "box" and size > 1):
        raise UsageError(f"a perturbation's size is above 0 (and at most 1 for a box), not {size}")
    inputs = study.inputs
    attribution = maps.to(inputs.device) if maps.shape == inputs.shape else check_maps(study, maps).unsqueeze(1)
    known = torch.isfinite(attribution)
    attribution = torch.where(known, attribution, 0).double()
    known = known.expand_as(inputs)
    foretold: list[Tensor] = []
    draw = (_noises if perturbation == "noise" else _boxes)(study, size)

    def make(part: slice) -> Float[Tensor, "m b c *s"]:
        drawn = torch.stack([draw() for _ in range(part.start, part.stop)])
        change = torch.where(known, drawn, 0)
        # What the network sees is rounded; what it was taken from must be the same.
        copies = inputs - change
        seen = inputs.double() - copies.double()
        foretold.append((seen * attribution).flatten(2).sum(2))
        return copies

    scores = study.scores_of(samples, make)
    told, moved = torch.cat(foretold), (study.scores - scores).double()
    square = (told**2).sum(0)
    scale = torch.where(square > 0, (told * moved).sum(0) / square, 0)
    apart = ((scale * told - moved) ** 2).mean(0)
    whole = (moved**2).mean(0)
    return Infidelity(((told - moved) ** 2).mean(0), scale, apart, torch.where(whole > 0, apart / whole, torch.nan))


def _noises(study: Study, size: float | int) -> Callable[[], Float[Tensor, "b c *s"]]:
    inputs, generator = study.inputs, study.generator()
    width = float(size) * _deviation(inputs)
    return lambda: width * torch.randn(inputs.shape[1:], generator=generator).to(inputs)


def _boxes(study: Study, size: float | int) -> Callable[[], Float[Tensor, "b c *s"]]:
    inputs, generator = study.inputs, study.generator()
    shape = tuple(inputs.shape[2:])
    sides = [max(1, round(size * n)) for n in shape]
    detail = inputs - baseline(inputs, "blur")

    def draw() -> Float[Tensor, "b c *s"]:
        starts = [
            int(torch.randint(n - side + 1, (1,), generator=generator)) for n, side in zip(shape, sides, strict=True)
        ]
        box: tuple[slice | EllipsisType, ...] = (
            ...,
            *(slice(start, start + side) for start, side in zip(starts, sides, strict=True)),
        )
        taken = torch.zeros_like(detail)
        taken[box] = detail[box]
        return taken

    return draw


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """How far a map moves when its image hardly does, one value for each sample.

    Parameters
    ----------
    largest
        The largest of `‖Φ(x + δ) - Φ(x)‖ / ‖Φ(x)‖` over the noises; NaN for a map that is 0, and where a noisy one has no number.
    score_change
        The largest change of the score over the same noises. A map that moves while the score does not is the map's fault.
    """

    largest: Float[Tensor, " b"]
    score_change: Float[Tensor, " b"]


def sensitivity(
    study: Study, model: nn.Module, explain: Explain, *, radius: float | int = 0.1, samples: int = 10
) -> Sensitivity:
    """Return the sensitivity of a way to explain; one explanation for each noise, and one without.

    Parameters
    ----------
    explain
        Such as `explaining(method='grad-cam', layer=..., target=...)`; name the target, or a noisy image may be explained for
        another class.
    radius
        Noise is uniform between minus and plus this, in standard deviations of each channel.

    Raises
    ------
    UsageError
        If an option is out of range.

    References
    ----------
    Yeh et al., NeurIPS 2019, definition 3.1 (the maximum over a ball is estimated from samples, so it is a lower bound).
    """
    if not radius > 0 or samples < 1:
        raise UsageError(f"sensitivity takes a radius above 0 and at least one noise, not {radius} and {samples}")
    inputs, generator = study.inputs, study.generator()
    width = float(radius) * _deviation(inputs)
    clean = explain(model, inputs).flatten(1).double()
    seen = torch.isfinite(clean)
    size = torch.where(seen, clean, 0).norm(dim=1)
    largest = torch.zeros_like(size)
    moved = torch.zeros_like(study.scores)
    for _ in range(samples):
        drawn = 2 * torch.rand(inputs.shape[1:], generator=generator).to(inputs) - 1
        noisy = inputs + width * drawn
        change = torch.where(seen, explain(model, noisy).flatten(1).double() - clean, 0).norm(dim=1)
        # torch.maximum keeps a NaN.
        largest = torch.maximum(largest, change)
        moved = torch.maximum(moved, (_score(study, noisy) - study.scores).abs())
    return Sensitivity(torch.where(size > 0, largest / size, torch.nan), moved)


def _score(study: Study, inputs: Float[Tensor, "b c *s"]) -> Float[Tensor, " b"]:
    return study.scores_of(1, lambda _: inputs[None])[0]


def _deviation(inputs: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *one"]:
    return inputs.std(tuple(range(2, inputs.ndim)), keepdim=True, unbiased=False)
