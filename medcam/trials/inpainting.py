"""Removed voxels as the weighted means of their neighbours: one sparse linear system, solved without building it.

Each removed voxel is the mean of its neighbours, weighted by their nearness; known ones count as they are. The system is symmetric and
positive, so conjugate gradients solve it with nothing but shifted sums of the volume, all samples, channels and masks at once. A direct
solver fills its factors with about the square of the number of voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from types import EllipsisType

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medcam.errors import ModelError, UsageError

# Steps along each axis to a neighbour, and its weight.
Steps = tuple[tuple[tuple[int, ...], float], ...]
_Index = tuple[slice | EllipsisType, ...]

# The residual over the right-hand side at which a solution is good: its error is far below the noise that ROAD adds.
_TOLERANCE = 1e-5
_MOST = 2000
# Rounds between looks at the residual, each of which waits for the device.
_LOOK = 8
# Voxels times channels that are solved for at once.
_VALUES = 1 << 22


def inpainted(
    inputs: Float[Tensor, "n c *s"],
    removed: Bool[Tensor, "n *s"],
    *,
    spacing_mm: Sequence[float | int] | None = None,
    falloff: float | int | None = None,
) -> Float[Tensor, "n c *s"]:
    """Return images whose removed voxels are smooth continuations of what is left.

    A removed voxel is the mean of its neighbours (26 in a volume, 8 in an image) inside the image, each weighted by its distance to the
    power of minus `falloff`. What is not removed stays as it is. A sample of which nothing is left becomes its channels' means.

    Parameters
    ----------
    removed
        True where a voxel is to be replaced, in all channels.
    spacing_mm
        Of the voxels along each axis; by default all alike.
    falloff
        By default 1 in volumes. In images 2, so that for square pixels a diagonal neighbour counts half, as in the paper.

    Raises
    ------
    UsageError
        If there is not one positive spacing for each axis.
    ModelError
        If the image holds values that are not finite, or the system does not converge.

    References
    ----------
    Rong et al., A consistent and efficient evaluation strategy for attribution methods, ICML 2022, section 4.3, eq. 9 (ROAD).
    """
    axes = removed.ndim - 1
    steps = stencil(axes, spacing_mm, falloff)
    if not bool(removed.any()):
        return inputs
    if not bool(torch.isfinite(inputs).all()):
        raise ModelError(
            "an image with values that are not finite cannot be filled; the preprocessing should not let them through"
        )
    inner: _Index = (..., *_bounds(removed))
    result, centres = inputs.clone(), _centres(inputs, removed)
    # A few samples at a time: the solver keeps some ten volumes for each.
    count = max(1, _VALUES // math.prod(inputs[inner].shape[1:]))
    for start in range(0, len(inputs), count):
        part = slice(start, start + count)
        result[part][inner] = _solved(inputs[part][inner], removed[part][inner].unsqueeze(1), steps, centres[part])
    return result


def stencil(axes: int, spacing_mm: Sequence[float | int] | None, falloff: float | int | None) -> Steps:
    """Return half of a voxel's neighbours, as steps along each axis, with their weights; the other half lies opposite.

    Raises
    ------
    UsageError
        If there is not one positive spacing for each axis.
    """
    spacing = [1.0] * axes if spacing_mm is None else [float(mm) for mm in spacing_mm]
    if len(spacing) != axes or min(spacing) <= 0:
        raise UsageError(f"an image with {axes} axes has as many positive spacings, not {spacing_mm}")
    power = (2.0 if axes == 2 else 1.0) if falloff is None else float(falloff)
    # Weights only count by their ratios; in units of the smallest step they do not overflow.
    unit = min(spacing)
    half = [step for step in product((-1, 0, 1), repeat=axes) if step > (0,) * axes]
    return tuple(
        (step, math.hypot(*(n * mm / unit for n, mm in zip(step, spacing, strict=True))) ** -power) for step in half
    )


def _bounds(removed: Bool[Tensor, "n *s"]) -> tuple[slice, ...]:
    """Return the box that holds what is removed and its neighbours: nothing outside it matters."""
    found = []
    for axis in range(1, removed.ndim):
        others = [other for other in range(removed.ndim) if other != axis]
        along = removed.any(dim=others[0]) if len(others) == 1 else removed.amax(others)
        places = along.nonzero()[:, 0]
        first, last = int(places[0]), int(places[-1])
        found.append(slice(max(0, first - 1), min(removed.shape[axis], last + 2)))
    return tuple(found)


def _centres(inputs: Float[Tensor, "n c *s"], removed: Bool[Tensor, "n *s"]) -> Float[Tensor, "n c *one"]:
    """Return the mean of what is left of each sample and channel, or of all of it where nothing is left."""
    axes = tuple(range(2, inputs.ndim))
    left = ~removed.unsqueeze(1)
    count = left.sum(axes, keepdim=True)
    known = torch.where(left, inputs, 0).sum(axes, keepdim=True) / count.clamp(min=1)
    return torch.where(count > 0, known, inputs.mean(axes, keepdim=True))


def _solved(
    inputs: Float[Tensor, "n c *s"], removed: Bool[Tensor, "n 1 *s"], steps: Steps, centres: Float[Tensor, "n c *one"]
) -> Float[Tensor, "n c *s"]:
    axes = tuple(range(2, inputs.ndim))
    values = (inputs - centres).to(torch.promote_types(inputs.dtype, torch.float32))
    mask = removed.to(values.dtype)
    weight = _neighbours(torch.ones_like(values[:1, :1]), steps)
    known = torch.where(removed, 0, values)
    right = mask * _neighbours(known, steps)
    # In the order of the textbook: x, residual, preconditioned residual, direction.
    x = torch.zeros_like(values)
    residual = right
    turned = residual / weight
    direction = turned
    size = (residual * turned).sum(axes, keepdim=True)
    goal = size * _TOLERANCE**2
    # A sample that is done stands still, so that what it becomes does not depend on the others.
    open_ = size > goal
    for round_ in range(1, _MOST + 1):
        spread = mask * (weight * direction - _neighbours(direction, steps))
        step = open_ * size / (direction * spread).sum(axes, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
        x = x + step * direction
        residual = residual - step * spread
        turned = residual / weight
        new = (residual * turned).sum(axes, keepdim=True)
        direction = turned + new / size.clamp(min=torch.finfo(values.dtype).tiny) * direction
        size = new
        if round_ % _LOOK == 0:
            open_ = open_ & (size > goal)
            if not bool(open_.any()):
                return torch.where(removed, x + centres, inputs).to(inputs.dtype)
    raise ModelError(f"filling {int(removed.sum())} removed voxels did not converge in {_MOST} rounds")


def _neighbours(values: Float[Tensor, "n c *s"], steps: Steps) -> Float[Tensor, "n c *s"]:
    """Return each voxel's weighted sum of its neighbours inside the image."""
    total = torch.zeros_like(values)
    for step, weight in steps:
        here: _Index = (..., *(slice(max(0, n), min(0, n) or None) for n in step))
        there: _Index = (..., *(slice(max(0, -n), min(0, -n) or None) for n in step))
        total[here].add_(values[there], alpha=weight)
        total[there].add_(values[here], alpha=weight)
    return total
