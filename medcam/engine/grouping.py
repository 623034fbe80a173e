"""Channels into groups, by the likeness of their maps: k-means on the device, each sample for itself.

Everything is a product with the matrix of inner products of a sample's maps, so neither the number of cells nor a host's speed counts, and
all numbers of groups that are asked for are tried at once. The random numbers are shared by the samples of a batch: each is grouped as if
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

_ITERATIONS = 20
Inner = Callable[[Float[Tensor, "b k n"]], Float[Tensor, "b k n"]]


def kmeans(
    maps: Float[Tensor, "b k t"], counts: Sequence[int], generator: torch.Generator
) -> tuple[Int[Tensor, "b r k"], Float[Tensor, "b r"]]:
    """Group the rows of each sample into `counts[r]` groups, for every r, by Lloyd's iterations from k-means++ seeds.

    Fewer groups come out where rows coincide. Twenty iterations are made, without asking whether they have settled: asking would wait for
    the device.

    Returns
    -------
    The group of each row, and the sum of squared distances of the rows to their group's mean, in double precision.
    """
    squares = maps.double().square().sum(2)
    inner = _inner_products(maps)
    most = max(counts)
    seeds = _seeds(inner, squares, torch.rand(most, generator=generator, dtype=torch.float64).to(maps.device))
    active = torch.tensor([r * most + g for r, count in enumerate(counts) for g in range(count)], device=maps.device)
    return _lloyd(inner, squares, seeds, active, len(counts))


def elbow(inertia: Float[Tensor, "b r"], counts: Sequence[int]) -> Int[Tensor, " b"]:
    """Return which of the increasing `counts` is the elbow of each sample's inertia: where it lies farthest below the straight line from
    the first to the last. Neither of these can be the elbow, so there must be three at least.

    References
    ----------
    Satopää et al., Finding a "Kneedle" in a Haystack, ICDCS Workshops 2011: its difference curve, without the smoothing.
    """
    steps = torch.tensor(list(counts), dtype=inertia.dtype, device=inertia.device)
    along = (steps - steps[0]) / (steps[-1] - steps[0]).clamp(min=1)
    first, last = inertia[:, :1], inertia[:, -1:]
    fallen = (first - inertia) / (first - last).clamp(min=torch.finfo(inertia.dtype).tiny)
    return (fallen - along)[:, 1:-1].argmax(1) + 1


def group_means(labels: Int[Tensor, "b k"], maps: Float[Tensor, "b k *t"], count: int) -> Float[Tensor, "b {count} *t"]:
    """Return the mean map of each group, zero where a group has no member."""
    share = members(labels, count, maps.dtype)
    share = share / share.sum(2, keepdim=True).clamp(min=1)
    return (share @ maps.flatten(2)).reshape(maps.shape[0], count, *maps.shape[2:])


def members(labels: Int[Tensor, "b k"], count: int, dtype: torch.dtype) -> Float[Tensor, "b {count} k"]:
    """Return 1 where a row belongs to a group, else 0."""
    return (labels[:, None] == torch.arange(count, device=labels.device)[:, None]).to(dtype)


def _inner_products(maps: Float[Tensor, "b k t"]) -> Inner:
    """Return the product with the matrix of inner products of the rows, by the shorter way; nearly all the work is here, so in the maps'
    own precision."""
    if maps.shape[2] <= maps.shape[1]:
        return lambda columns: (maps @ (maps.mT @ columns.to(maps.dtype))).double()
    gram = maps @ maps.mT
    return lambda columns: (gram @ columns.to(maps.dtype)).double()


def _seeds(inner: Inner, squares: Float[Tensor, "b k"], draws: Float[Tensor, " g"]) -> Int[Tensor, "b g"]:
    """Return k-means++ seeds: each row is drawn in proportion to its squared distance from the nearest seed so far.

    The first n of them are seeds for n groups.

    References
    ----------
    Arthur and Vassilvitskii, k-means++: The Advantages of Careful Seeding, SODA 2007, section 2.2.
    """
    batch, rows = squares.shape
    chosen = (draws[0] * rows).long().expand(batch)
    seeds, nearest = [chosen], torch.full_like(squares, float("inf"))
    for draw in draws[1:]:
        here = torch.zeros_like(squares).scatter_(1, chosen[:, None], 1)
        apart = squares + squares.gather(1, chosen[:, None]) - 2 * inner(here[..., None])[..., 0]
        # A seed's distance from itself is zero, which rounding may miss.
        nearest = torch.minimum(nearest, apart.clamp(min=0)).masked_fill(here.bool(), 0)
        mass = nearest.cumsum(1)
        chosen = torch.searchsorted(mass, draw * mass[:, -1:], right=True)[:, 0].clamp(max=rows - 1)
        seeds.append(chosen)
    return torch.stack(seeds, 1)


def _lloyd(
    inner: Inner, squares: Float[Tensor, "b k"], seeds: Int[Tensor, "b g"], active: Int[Tensor, " a"], runs: int
) -> tuple[Int[Tensor, "b {runs} k"], Float[Tensor, "b {runs}"]]:
    """Move the means of all runs side by side, and return labels and inertia. `active` says which of the (run, group) pairs exist."""
    (batch, rows), groups = squares.shape, seeds.shape[1]
    own = squares.new_zeros(batch, rows, groups).scatter_(1, seeds[:, None], 1).repeat(1, 1, runs)[:, :, active]
    labels = torch.zeros(batch, rows, runs, dtype=torch.long, device=squares.device)
    distances = squares.new_full((batch, rows, runs * groups), torch.inf)
    for step in range(_ITERATIONS + 1):
        sizes = own.sum(1, keepdim=True)
        share = own / sizes.clamp(min=1)
        across = inner(share)  # of each row with each mean
        means = (share * across).sum(1, keepdim=True)  # of each mean with itself
        if step == _ITERATIONS:
            break
        distances[:, :, active] = (means - 2 * across).masked_fill(sizes == 0, torch.inf)
        labels = distances.unflatten(2, (runs, groups)).argmin(3)
        own = (
            (labels[..., None] == torch.arange(groups, device=labels.device)).flatten(2)[:, :, active].to(squares.dtype)
        )
    kept = squares.new_zeros(batch, runs * groups)
    kept[:, active] = (sizes * means)[:, 0]
    inertia = squares.sum(1, keepdim=True) - kept.unflatten(1, (runs, groups)).sum(2)
    return labels.movedim(2, 1), inertia.clamp(min=0)
