"""Does the network use the lesion at all? Ask this before blaming a map that lies elsewhere.

A network that ignores the lesion gives a map that ignores it, and that map is right. So: does the score change when the lesion is filled
with what lies round it, more than when a healthy region of the same shape is? And does the lesion alone bring the score back?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medcam.engine.study import Study
from medcam.errors import UsageError
from medcam.trials.fills import fill_named
from medcam.trials.scoring import check_domain


@dataclass(frozen=True, eq=False)
class Regions:
    """Healthy regions of the lesion's own shape.

    Parameters
    ----------
    masks
        By draw; empty where a sample has fewer places than draws.
    places
        How many places there are for it in each sample.
    """

    masks: Bool[Tensor, "d b *s"]
    places: Int[Tensor, " b"]


def healthy_regions(lesion: Bool[Tensor, "b *s"], domain: Bool[Tensor, "b *s"], *, draws: int, seed: int) -> Regions:
    """Return the lesion moved to random places where it lies wholly in the domain and touches no lesion voxel.

    Each sample's places are drawn without replacement; of a sample with fewer places than draws all are taken.

    Parameters
    ----------
    lesion
        All lesions of a sample move together.
    domain
        The body, or the organ.
    """
    masks = torch.zeros((draws, *lesion.shape), dtype=torch.bool, device=lesion.device)
    places = torch.zeros(len(lesion), dtype=torch.int64, device=lesion.device)
    for b, mask in enumerate(lesion):
        if not bool(mask.any()):
            continue
        offsets = _free(mask, domain[b] & ~_grown(mask))
        places[b] = len(offsets)
        # Each sample's own draws, so that it is tried as if alone.
        chosen = torch.randperm(len(offsets), generator=torch.Generator().manual_seed(seed))[:draws]
        voxels = mask.nonzero()
        for d, offset in enumerate(offsets[chosen.to(offsets.device)]):
            region = masks[d, b]
            region[tuple((voxels + offset).T)] = True
    return Regions(masks, places)


def _grown(mask: Bool[Tensor, "*s"]) -> Bool[Tensor, "*s"]:
    """Return the mask with all voxels that touch it."""
    grown = mask
    for axis in range(mask.ndim):
        n = mask.shape[axis]
        before, after = grown.narrow(axis, 0, n - 1), grown.narrow(axis, 1, n - 1)
        wider = grown.clone()
        wider.narrow(axis, 1, n - 1).logical_or_(before)
        wider.narrow(axis, 0, n - 1).logical_or_(after)
        grown = wider
    return grown


def _free(mask: Bool[Tensor, "*s"], allowed: Bool[Tensor, "*s"]) -> Int[Tensor, "p d"]:
    """Return by how much the mask may move so that all of it lies where it is allowed: a correlation, by Fourier transforms."""
    places = mask.nonzero()
    low, high = places.amin(0), places.amax(0)
    box = tuple(slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
    shape = tuple(mask.shape)
    cut = mask[box].double()
    # A transform of the volume's own size: of its circular correlation, the places where the box lies inside are the plain one.
    whole = torch.fft.rfftn(allowed.double()) * torch.fft.rfftn(cut, s=shape).conj()
    covered = torch.fft.irfftn(whole, s=shape)
    inside = covered[tuple(slice(0, n - size + 1) for n, size in zip(shape, cut.shape, strict=True))]
    moves: Tensor = (inside > len(places) - 0.5).nonzero() - low
    return moves


@dataclass(frozen=True, eq=False)
class LesionUse:
    """What the lesion is to the score, one value for each sample; all are NaN for a sample without a lesion.

    Parameters
    ----------
    fill
        What stood in place of what was removed.
    clean, nothing
        The score of the image, and with all of the domain filled.
    without, without_healthy
        The score with the lesion filled, and with healthy regions of its shape filled, by draw; NaN where there was no place.
    only, only_healthy
        The score with only the lesion kept, and with only a healthy region kept, by draw.
    places
        How many places healthy regions were drawn from. With few of them `chance` says little.
    """

    fill: str
    clean: Float[Tensor, " b"]
    nothing: Float[Tensor, " b"]
    without: Float[Tensor, " b"]
    without_healthy: Float[Tensor, "d b"]
    only: Float[Tensor, " b"]
    only_healthy: Float[Tensor, "d b"]
    places: Int[Tensor, " b"]

    @property
    def necessity(self) -> Float[Tensor, " b"]:
        """How far the score falls when the lesion is filled."""
        return self.clean - self.without

    @property
    def healthy(self) -> Float[Tensor, "d b"]:
        """How far it falls when a healthy region of its shape is filled."""
        return self.clean - self.without_healthy

    @property
    def excess(self) -> Float[Tensor, " b"]:
        """The lesion's necessity less the healthy regions' mean: what it is to the score beyond any region of its size."""
        return self.necessity - _mean(self.healthy)

    @property
    def share(self) -> Float[Tensor, " b"]:
        """The excess over all that the domain is to the score, `clean - nothing`: comparable between networks. NaN where that is 0."""
        return self._of_span(self.excess)

    @property
    def chance(self) -> Float[Tensor, " b"]:
        """The share of regions, the lesion included, whose removal costs at least as much as the lesion's: a p value for one case.

        At least 1 over (draws + 1). It tells that the lesion is unlike other regions, not that it matters: see `share`.
        """
        placed = self.healthy.isfinite()
        costly = ((self.healthy >= self.necessity) & placed).sum(0)
        count = placed.sum(0)
        return torch.where((count > 0) & self.necessity.isfinite(), (costly + 1) / (count + 1), torch.nan)

    @property
    def sufficiency(self) -> Float[Tensor, " b"]:
        """`(only - nothing) / (clean - nothing)`: 1 where the lesion alone brings back the whole score. NaN where there is nothing to bring
        back."""
        return self._of_span(self.only - self.nothing)

    @property
    def sufficiency_excess(self) -> Float[Tensor, " b"]:
        """The sufficiency less the healthy regions' mean: any region that stands alone has edges, and a network may take these for more."""
        return self._of_span(self.only - _mean(self.only_healthy))

    def _of_span(self, part: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        span = self.clean - self.nothing
        return torch.where(span != 0, part / span, torch.nan)


def lesion_use(
    study: Study,
    lesion: Bool[Tensor, "b *s"],
    *,
    fills: Sequence[str] = ("inpaint", "mean"),
    rest: str = "mean",
    domain: Bool[Tensor, "b *s"] | None = None,
    spacing_mm: Sequence[float | int] | None = None,
    draws: int = 20,
) -> tuple[LesionUse, ...]:
    """Return how necessary and how sufficient the lesion is to the score, one result for each fill.

    Takes `draws + 1` passes for each fill, and `draws + 2` more.

    Parameters
    ----------
    study
        Of logits, rather: a probability near 1 hardly moves.
    lesion
        On the network's input. All lesions together; give one at a time for the part of each.
    fills
        What the lesion is filled with: by default a smooth continuation of what surrounds it, and the domain's mean.
    rest
        What the rest of the domain is filled with when only the lesion is kept.
    domain
        The body, or the organ: where healthy regions may lie, and what is filled; by default all.

    Raises
    ------
    UsageError
        If the lesion does not have the input's shape, or an option is out of range.
    """
    expected = (study.inputs.shape[0], *study.inputs.shape[2:])
    if tuple(lesion.shape) != expected:
        raise UsageError(
            f"a lesion mask of shape {tuple(lesion.shape)} does not fit the network's input; its shape should be {expected}"
        )
    if not fills or draws < 1:
        raise UsageError(
            f"lesions are tried with at least one fill and one healthy region, not {len(fills)} and {draws}"
        )
    mask, inside = lesion.to(study.inputs.device), check_domain(study, domain)
    healthy = healthy_regions(mask, inside, draws=draws, seed=study.seed)
    regions = torch.cat([mask[None], healthy.masks])
    nothing = torch.where(regions.flatten(2).any(2), 0.0, torch.nan).to(study.scores)
    everything = torch.where(mask.flatten(1).any(1), 0.0, torch.nan).to(study.scores)

    def without(removed: Bool[Tensor, "n b *s"], fill: str) -> Float[Tensor, "n b"]:
        made = fill_named(study.inputs, fill, domain=inside, spacing_mm=spacing_mm)
        copies = study.inputs.expand(len(removed), *study.inputs.shape)
        return study.scores_of(len(removed), lambda part: made(copies[part], removed[part]))

    kept = without(torch.cat([inside[None] & ~regions, inside[None]]), rest)
    only, blank = kept[:-1] + nothing, kept[-1] + everything
    clean = study.scores + everything
    results = []
    for name in fills:
        left = without(regions, name) + nothing
        results.append(LesionUse(name, clean, blank, left[0], left[1:], only[0], only[1:], healthy.places))
    return tuple(results)


def _mean(values: Float[Tensor, "d b"]) -> Float[Tensor, " b"]:
    """Return the mean over the draws that there are, NaN where there is none."""
    placed = values.isfinite()
    count = placed.sum(0)
    return torch.where(count > 0, torch.where(placed, values, 0).sum(0) / count, torch.nan)
