"""In which order voxels are taken: a map ranked once, and masks made from the ranks when they are needed.

Maps hold ties, above all zeros behind a rectifier. A threshold at a percentile would take all of a tie or none; here ties are broken at
random, by the seed, so that as much is taken as was asked for, and how much was chance is told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medcam.errors import UsageError

PATCH_MM = 8.0
NEVER = torch.iinfo(torch.int32).max


@dataclass(frozen=True, eq=False)
class Patches:
    """A volume cut into boxes that go one after the other, `sides` voxels along each axis; at the upper border they may be smaller."""

    shape: tuple[int, ...]
    sides: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many there are along each axis."""
        return tuple(-(-n // side) for n, side in zip(self.shape, self.sides, strict=True))

    def label(self, device: torch.device) -> Int[Tensor, " v"]:
        """Return the number of each voxel's patch, voxels in the order of memory."""
        total = torch.zeros(self.shape, dtype=torch.int64, device=device)
        for axis, (n, side, count) in enumerate(zip(self.shape, self.sides, self.counts, strict=True)):
            along = torch.arange(n, device=device) // side
            total = total * count + along.reshape(-1, *[1] * (len(self.shape) - 1 - axis))
        return total.flatten()


def patches_of(
    shape: Sequence[int], *, spacing_mm: Sequence[float | int] | None = None, patch_mm: float | int | None = None
) -> Patches:
    """Return the patches in which voxels of an input are taken.

    Parameters
    ----------
    spacing_mm
        Of the voxels along each axis; by default a voxel counts as a millimetre.
    patch_mm
        Their side, rounded to voxels and at least one; by default 8 mm in volumes, so that a curve takes a hundred passes and not millions
        of voxels, and one pixel in images.

    Raises
    ------
    UsageError
        If there is not one positive spacing for each axis, or the side is not positive.
    """
    spacing = [1.0] * len(shape) if spacing_mm is None else [float(mm) for mm in spacing_mm]
    if len(spacing) != len(shape) or min(spacing) <= 0:
        raise UsageError(f"an input with {len(shape)} axes has as many positive spacings, not {spacing_mm}")
    if patch_mm is not None and not patch_mm > 0:
        raise UsageError(f"a patch's side is a positive number of millimetres, not {patch_mm}")
    side = patch_mm if patch_mm is not None else PATCH_MM if len(shape) == 3 else 0.0
    return Patches(tuple(shape), tuple(max(1, math.floor(side / mm + 0.5)) for mm in spacing))


@dataclass(frozen=True, eq=False)
class Order:
    """The voxels of each sample, in the order in which they are taken.

    Parameters
    ----------
    place
        The place of each voxel's patch, from 0 for what is taken first; `NEVER` for voxels outside the domain, which are never taken.
    reached
        How many voxels have been taken when so many patches have.
    tied
        The share of the domain's voxels whose patch shares its value with another one, so that chance put it in its place.
    """

    place: Int[Tensor, "b *s"]
    reached: Int[Tensor, "b p"]
    tied: Float[Tensor, " b"]

    def cuts(self, shares: Sequence[float]) -> tuple[Int[Tensor, "b k"], Float[Tensor, "b k"]]:
        """Return how many patches to take for each share of the voxels, and the share that this really is."""
        total = self.reached[:, -1:]
        wanted = torch.tensor([shares], dtype=torch.float64, device=total.device) * total
        after = torch.searchsorted(self.reached.double(), wanted.expand(len(total), -1).contiguous())
        before = (after - 1).clamp(min=0)
        near, far = (self.reached.gather(1, at) for at in (before, after.clamp(max=self.reached.shape[1] - 1)))
        chosen = torch.where((wanted - near).abs() <= (far - wanted).abs(), before, after)
        return chosen, (self.reached.gather(1, chosen) / total).to(torch.float32)

    def reversed(self) -> Order:
        """Return the order from the last to the first."""
        size = self.reached.diff(dim=1)
        count = (size > 0).sum(1)
        last = (count - 1).reshape(-1, *[1] * (self.place.ndim - 1))
        # Patches with no voxel in the domain stand at the end, in either direction.
        number = torch.arange(size.shape[1], device=size.device)
        source = torch.where(number < count[:, None], count[:, None] - 1 - number, number)
        sizes = size.gather(1, source)
        reached = torch.cat([torch.zeros_like(sizes[:, :1]), sizes.cumsum(1)], 1)
        return Order(torch.where(self.place == NEVER, NEVER, last - self.place).to(torch.int32), reached, self.tied)

    def first(self, cut: Int[Tensor, "m b"]) -> Bool[Tensor, "m b *s"]:
        """Return the voxels of the first patches, for several numbers of them."""
        return self.place < self._edge(cut)

    def rest(self, cut: Int[Tensor, "m b"]) -> Bool[Tensor, "m b *s"]:
        """Return the other voxels of the domain."""
        return (self.place >= self._edge(cut)) & (self.place != NEVER)

    def _edge(self, cut: Int[Tensor, "m b"]) -> Int[Tensor, "m b *one"]:
        return cut.reshape(*cut.shape, *[1] * (self.place.ndim - 1)).to(torch.int32)


def order_of(
    maps: Float[Tensor, "b *s"], patches: Patches, *, domain: Bool[Tensor, "b *s"], generator: torch.Generator
) -> Order:
    """Return the patches of each map from the highest mean to the lowest; those without a number (not looked at) come last.

    Ties are broken by the generator, alike in all samples.
    """
    label = patches.label(maps.device)
    inside = domain.flatten(1)
    sizes, means = _pooled(maps.flatten(1), inside, label, patches)
    ranked, same = _sorted(means, generator)
    place = torch.empty_like(ranked, dtype=torch.int32)
    place.scatter_(1, ranked, torch.arange(means.shape[1], dtype=torch.int32, device=means.device).expand_as(ranked))
    ordered = sizes.gather(1, ranked)
    pad = torch.zeros_like(same[:, :1])
    tied = (torch.cat([same, pad], 1) | torch.cat([pad, same], 1)) * ordered
    return Order(
        torch.where(inside, place[:, label], NEVER).unflatten(1, maps.shape[1:]),
        torch.cat([torch.zeros_like(sizes[:, :1]), ordered.cumsum(1)], 1),
        tied.sum(1) / sizes.sum(1),
    )


def _sorted(values: Float[Tensor, "b p"], generator: torch.Generator) -> tuple[Int[Tensor, "b p"], Bool[Tensor, "b q"]]:
    """Return the places of values from the highest on, ties at random, and which neighbours in this order are tied.

    A value and its place in a random order are packed into one whole number, and these are sorted: no two are the same, so any way of
    sorting gives the same order, and the quickest may be taken.
    """
    shuffle = torch.randperm(values.shape[1], generator=generator).to(values.device)
    # A float's bits rise with it, those of negative ones fall; adding 0 makes the two zeros one.
    bits = (values + 0.0).contiguous().view(torch.int32)
    rising = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    keys = (~rising).to(torch.int64) << 32
    turn = torch.empty_like(shuffle).scatter_(0, shuffle, torch.arange(len(shuffle), device=shuffle.device))
    keys |= turn
    # On a CPU numpy sorts whole numbers several times as fast as torch.
    ordered = torch.from_numpy(np.sort(keys.numpy(), axis=1)) if keys.device.type == "cpu" else keys.sort(dim=1).values
    high = ordered >> 32
    return shuffle[ordered & 0xFFFFFFFF], high[:, 1:] == high[:, :-1]


def _pooled(
    flat: Float[Tensor, "b v"], inside: Bool[Tensor, "b v"], label: Int[Tensor, " v"], patches: Patches
) -> tuple[Int[Tensor, "b p"], Float[Tensor, "b p"]]:
    """Return the number of domain voxels and the mean of each patch: the least number there is for one without a number, and less for one
    outside the domain."""
    seen = inside & torch.isfinite(flat)
    least = torch.finfo(torch.float32).min
    if patches.counts == patches.shape:
        values = torch.where(seen, flat, least).float()
        return inside.to(torch.int64), torch.where(inside, values, -torch.inf)

    def gathered(values: Tensor) -> Tensor:
        total = torch.zeros(len(flat), math.prod(patches.counts), dtype=values.dtype, device=flat.device)
        return total.index_add_(1, label, values)

    sizes, numbers = gathered(inside.to(torch.int64)), gathered(seen.to(torch.int64))
    # Summed in double precision and rounded to single, patches of equal values tie, whatever the order of their sums.
    means = (gathered(torch.where(seen, flat, 0).double()) / numbers).float()
    return sizes, torch.where(sizes > 0, torch.where(numbers > 0, means, least), -torch.inf)


def surrogates(
    maps: Float[Tensor, "b *s"], kind: str, *, domain: Bool[Tensor, "b *s"], generator: torch.Generator
) -> Float[Tensor, "b *s"]:
    """Return maps that know nothing of the image, to compare a map with.

    Parameters
    ----------
    kind
        'random': every voxel for itself (in patches: every patch). 'shifted': the map moved round the volume by at least a quarter of each
        side. 'blob': a random map with the map's own values and spatial autocorrelation. Removing scattered voxels and removing a blob
        act differently on a network, so a map of blobs is judged by the last two.

    Raises
    ------
    UsageError
        If the kind is none of these.

    References
    ----------
    Theiler et al., Testing for nonlinearity in time series: the method of surrogate data, Physica D 1992, section 2.4.3 (a random map with
    the power spectrum, put to the values of the original by rank).
    """
    shape = tuple(maps.shape[1:])
    if kind == "random":
        noise = torch.rand(shape, generator=generator).to(maps)
        return noise.expand_as(maps)
    if kind == "shifted":
        moves = [int(torch.randint(n // 4, n - n // 4 + 1, (1,), generator=generator)) if n > 1 else 0 for n in shape]
        return maps.roll(moves, tuple(range(1, maps.ndim)))
    if kind != "blob":
        raise UsageError(f"a control is 'random', 'shifted' or 'blob', not {kind!r}")
    axes = tuple(range(1, maps.ndim))
    # What was not looked at, and what lies outside, counts as the least of what was seen: it has no structure of its own.
    kept = domain & torch.isfinite(maps)
    low = torch.where(kept, maps, torch.inf).flatten(1).amin(1).reshape(-1, *[1] * len(shape))
    whole = torch.where(kept, maps, torch.where(torch.isfinite(low), low, 0)).double()
    noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(maps.device)
    turns = torch.fft.rfftn(noise)
    turns = turns / turns.abs().clamp(min=torch.finfo(torch.float64).tiny)
    drawn = torch.fft.irfftn(torch.fft.rfftn(whole, dim=axes).abs() * turns, s=shape, dim=axes)
    values = whole.flatten(1).sort(1).values
    ranks = drawn.flatten(1).argsort(1).argsort(1)
    result: Tensor = values.gather(1, ranks).unflatten(1, shape).to(maps.dtype)
    return result
