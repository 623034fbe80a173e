"""Test-time augmentation: one map averaged over flipped and brightened versions of the input."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from medcam.engine.cells import Cells, resampled
from medcam.errors import UsageError

Flip = tuple[int, ...]


def augmented(
    explain: Callable[[Float[Tensor, "b c *s"], Flip], Cells],
    inputs: Float[Tensor, "b c *s"],
    *,
    flips: Sequence[Flip] | None = None,
    factors: Sequence[float] = (1.0,),
) -> Cells:
    """Return the mean of the raw maps of the input and of its flips, each at several intensities, on the cells of the input's own map.

    Maps are turned back in input coordinates: what a flipped input shows at index i lies at n - 1 - i, which in general is on no cell of
    the unflipped map, so it is interpolated. (Flipping the array of cells would shift every map by the asymmetry of the cells.)

    Parameters
    ----------
    explain
        Explains a version of the inputs. It is told the flip as well, since a target that names a place must be flipped with it, and it
        should explain the class that the unflipped input was found to have.
    flips
        The spatial axes (0 is the first) of each flip beside the input itself; each axis alone by default. A flip that makes another body
        of this one (the liver on the left) asks the network about images that it has not learned.
    factors
        What each version is multiplied by. pytorch-grad-cam's `aug_smooth` is one horizontal flip and (1.0, 0.9, 1.1).

    Raises
    ------
    UsageError
        If a flip names an axis that is none, or there is no factor.
    """
    size = inputs.shape[2:]
    flips = [(axis,) for axis in range(len(size))] if flips is None else flips
    if not factors or any(axis not in range(len(size)) for flip in flips for axis in flip):
        raise UsageError(
            f"a flip names axes 0 to {len(size) - 1}, and there is at least one factor; these are {list(flips)} and {list(factors)}"
        )
    versions: list[tuple[Flip, float]] = [(flip, factor) for flip in ((), *flips) for factor in factors]
    own = explain(_version(inputs, *versions[0]), ())
    total = own.values.clone()
    for flip, factor in versions[1:]:
        turned = _turned_back(explain(_version(inputs, flip, factor), flip), flip, size)
        total += resampled(turned, own.shape, stride=own.stride, offset=own.offset)
    return Cells(total / len(versions), own.stride, own.offset)


def _version(inputs: Tensor, flip: Flip, factor: float) -> Tensor:
    flipped = inputs.flip([axis + 2 for axis in flip]) if flip else inputs
    return flipped if factor == 1 else flipped * factor


def _turned_back(found: Cells, flip: Flip, size: Sequence[int]) -> Cells:
    """Say where a flipped input's cells lie in the input itself: they count from its other end, which is a stride below zero."""
    return Cells(
        found.values,
        tuple(-stride if axis in flip else stride for axis, stride in enumerate(found.stride)),
        tuple(size[axis] - 1 - offset if axis in flip else offset for axis, offset in enumerate(found.offset)),
    )
