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
    active = torch.arange(most, device=maps.device) < torch.tensor(list(counts), device=maps.device)[:, None]
    return _lloyd(inner, squares, seeds, active)


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
    """Return the product with the matrix of inner products of the rows, by the shorter way."""
    if maps.shape[2] <= maps.shape[1]:
        rows = maps.double()
        return lambda columns: rows @ (rows.mT @ columns)
    gram = (maps @ maps.mT).double()
    return lambda columns: gram @ columns


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
    inner: Inner, squares: Float[Tensor, "b k"], seeds: Int[Tensor, "b g"], active: Tensor
) -> tuple[Int[Tensor, "b r k"], Float[Tensor, "b r"]]:
    """Move the means of every run r, whose groups are those that `active` (`r g`) says, and return labels and inertia."""
    (batch, rows), (runs, groups) = squares.shape, active.shape
    seeded = torch.zeros(batch, rows, groups, dtype=squares.dtype, device=squares.device)
    members_of = seeded.scatter_(1, seeds[:, None], 1)[:, :, None] * active  # b k r g
    labels = torch.zeros(batch, rows, runs, dtype=torch.long, device=squares.device)
    for step in range(_ITERATIONS + 1):
        sizes = members_of.sum(1, keepdim=True)
        share = members_of / sizes.clamp(min=1)
        across = inner(share.flatten(2)).unflatten(2, (runs, groups))  # of each row with each mean
        means = (share * across).sum(1, keepdim=True)  # of each mean with itself
        if step == _ITERATIONS:
            break
        labels = (means - 2 * across).masked_fill(sizes == 0, float("inf")).argmin(3)
        members_of = (labels[..., None] == torch.arange(groups, device=labels.device)).to(squares.dtype)
    inertia = squares.sum(1, keepdim=True) - (sizes * means).sum((1, 3))
    return labels.movedim(2, 1), inertia.clamp(min=0)
