"""Where in a segmentation a class is scored: the regions of Seg-Grad-CAM and a few more.

A region is found once, on the clean output, and never moves. Voxels are indexed on the network's output, not on the image it was made from.

References
----------
Vinogradova et al., Towards Interpretable Semantic Segmentation via Gradient-weighted Class Activation Mapping, AAAI 2020, eq. 2: the score
is the sum of the class's logits over a set of pixels: one pixel, all that are predicted as the class, or a connected component of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from scipy import ndimage
from torch import Tensor

from medcam.errors import UsageError

# Why a sample has not the region it was to have; its score is then summed over the whole output.
NOWHERE, NO_BORDER = 1, 2


@dataclass(frozen=True, eq=False)
class Voxels:
    """What a region may look at: the grid `b *s` of the output, and (by a call, since it costs) where the class is predicted."""

    shape: tuple[int, ...]
    device: torch.device
    predicted: Callable[[], Bool[Tensor, "b *s"]]


@dataclass(frozen=True, eq=False)
class Found:
    """The voxels of a region (None: all), and for each sample 0 or why they are the whole output instead (NOWHERE, NO_BORDER)."""

    mask: Bool[Tensor, "b *s"] | None
    lacking: Int[Tensor, " b"] | None = None


@final
@dataclass(frozen=True, eq=False)
class Region:
    """Where the score is summed: its words, with {} for the class, and how it is found."""

    words: str
    find: Callable[[Voxels], Found]


def whole_output() -> Region:
    """Return the region of all voxels."""
    return Region("{} over the whole output", _whole)


def predicted_region() -> Region:
    """Return the region that the network predicts as the class: the default. Where that is empty, the whole output."""
    return Region("{}", _predicted)


def component(number: int = 0) -> Region:
    """Return one connected component of the predicted region, which costs a copy to the host.

    Voxels that touch, be it at a corner, belong together (8 neighbours in 2D, 26 in 3D).

    Parameters
    ----------
    number
        By size, 0 being the largest and -1 the smallest; among equals, in the order of voxels. A sample that has no voxel of the class
        at all is scored over the whole output if the largest or smallest was asked for; any other component must exist.
    """
    named = {0: "largest component of {}", -1: "smallest component of {}"}
    return Region(named.get(number, f"component {number} of {{}}"), partial(_component, number=_whole_number(number)))


def component_at(*voxel: int) -> Region:
    """Return the connected component of the predicted region that holds a voxel; see `component`."""
    return Region(f"component of {{}} at voxel {voxel}", partial(_component_at, voxel=_index(voxel)))


def boundary(*radius: int) -> Region:
    """Return the band of voxels, inside and outside, within `radius` of the predicted region's border.

    Distance is counted in steps to any of the 8 or 26 neighbours; the edge of the image is no border. Where the class is predicted nowhere
    or everywhere there is no border, and the whole output is scored.

    Parameters
    ----------
    radius
        In voxels of the output: one for all axes, or one for each.
    """
    steps = tuple(map(_whole_number, radius))
    if not steps or min(steps) < 0 or max(steps) == 0:
        raise UsageError(
            f"the radius of a boundary is a number of voxels, at least 1, or one for each axis, not {radius}"
        )
    width = " x ".join(map(str, steps))
    return Region(f"border of {{}} (within {width} voxel{'s' if steps != (1,) else ''})", partial(_band, radius=steps))


def given(mask: Any) -> Region:
    """Return a region of your own.

    Parameters
    ----------
    mask
        An array or tensor of true and false (or 1 and 0) on the output's grid: `*s` for all samples, or `b *s`. It must not be empty.
    """
    found = mask.detach().as_subclass(Tensor) if isinstance(mask, Tensor) else torch.as_tensor(np.array(mask))
    if found.dtype != torch.bool and not ((found == 0) | (found == 1)).all():
        raise UsageError(
            f"a region holds true and false (or 1 and 0); this one has other values, of type {found.dtype}"
        )
    return Region("{} in a given region", partial(_given, mask=found != 0))


def voxel(*index: int) -> Region:
    """Return the region of one voxel."""
    return Region(f"{{}} at voxel {index}", partial(_voxel, index=_index(index)))


def _whole(_voxels: Voxels) -> Found:
    return Found(None)


def _predicted(voxels: Voxels) -> Found:
    mask = voxels.predicted()
    there = _any(mask)
    return Found(mask | _spread(~there, mask), (~there).long() * NOWHERE)


def _component(voxels: Voxels, *, number: int) -> Found:
    def choose(labels: np.ndarray, count: int, sample: int) -> int:
        if count == 0 and number in (0, -1):
            return 0
        if not -count <= number < count:
            there = (
                f"numbered 0 to {count - 1} from the largest"
                if count > 1
                else "number 0"
                if count
                else "nowhere predicted"
            )
            parts = f"{count} component{'' if count == 1 else 's'}"
            raise UsageError(
                f"there is no component {number} of the class in sample {sample}: it has {parts}, {there}; choose another"
            )
        sizes = np.bincount(labels.ravel())[1:]
        return int(np.argsort(-sizes, kind="stable")[number]) + 1

    return _labelled(voxels, choose)


def _component_at(voxels: Voxels, *, voxel: tuple[int, ...]) -> Found:
    _inside(voxel, voxels.shape[1:])

    def choose(labels: np.ndarray, _count: int, sample: int) -> int:
        if not labels[voxel]:
            raise UsageError(
                f"the network does not predict the class at voxel {voxel} of sample {sample}; choose another"
            )
        return int(labels[voxel])

    return _labelled(voxels, choose)


def _labelled(voxels: Voxels, choose: Callable[[np.ndarray, int, int], int]) -> Found:
    """Return the chosen component of each sample; 0 stands for none, and then the whole output."""
    mask = voxels.predicted().cpu().numpy()
    chosen = np.ones_like(mask)
    lacking = torch.zeros(len(mask), dtype=torch.long)
    for n, own in enumerate(mask):
        labels, count = ndimage.label(own, structure=np.ones((3,) * own.ndim))
        if wanted := choose(labels, count, n):
            chosen[n] = labels == wanted
        else:
            lacking[n] = NOWHERE
    return Found(torch.from_numpy(chosen).to(voxels.device), lacking.to(voxels.device))


def _band(voxels: Voxels, *, radius: tuple[int, ...]) -> Found:
    axes = len(voxels.shape) - 1
    if len(radius) not in (1, axes):
        raise UsageError(
            f"the boundary has {len(radius)} radii and the output has {axes} axes; give one, or one for each axis"
        )
    along = radius * axes if len(radius) == 1 else radius
    mask = voxels.predicted()
    band = _dilated(mask, along) & _dilated(~mask, along)
    there, bordered = _any(mask), _any(band)
    lacking = torch.where(there, NO_BORDER, NOWHERE) * ~bordered
    return Found(band | _spread(~bordered, band), lacking)


def _dilated(mask: Bool[Tensor, "b *s"], radius: Sequence[int]) -> Bool[Tensor, "b *s"]:
    """Return what lies within a box of these radii around a mask, one axis at a time."""
    found = mask.float()
    for axis, steps in enumerate(radius, start=1):
        if steps:
            rows = found.movedim(axis, -1)
            wide = F.max_pool1d(rows.reshape(-1, 1, rows.shape[-1]), 2 * steps + 1, stride=1, padding=steps)
            found = wide.reshape(rows.shape).movedim(-1, axis)
    return found > 0


def _given(voxels: Voxels, *, mask: Tensor) -> Found:
    grid = voxels.shape[1:]
    if tuple(mask.shape) not in (grid, voxels.shape, (1, *grid)):
        raise UsageError(
            f"the region has shape {tuple(mask.shape)} and the network's output has voxels {grid} in a batch of {voxels.shape[0]}; "
            "a region lies on the output's grid"
        )
    every = mask.expand(voxels.shape)
    for n, there in enumerate(_any(every).tolist()):
        if not there:
            raise UsageError(f"the region given for sample {n} is empty, so there is nothing to explain")
    return Found(every.to(voxels.device, non_blocking=True))


def _voxel(voxels: Voxels, *, index: tuple[int, ...]) -> Found:
    _inside(index, voxels.shape[1:])
    mask = torch.zeros(voxels.shape, dtype=torch.bool, device=voxels.device)
    place: tuple[Any, ...] = (slice(None), *index)
    mask[place] = True
    return Found(mask)


def _any(mask: Bool[Tensor, "b *s"]) -> Bool[Tensor, " b"]:
    return mask.flatten(1).any(1)


def _spread(flags: Bool[Tensor, " b"], mask: Bool[Tensor, "b *s"]) -> Tensor:
    return flags.reshape(-1, *[1] * (mask.ndim - 1))


def _whole_number(value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise UsageError(f"a region is described by whole numbers, not {value!r}")
    return int(value)


def _index(voxel: Sequence[Any]) -> tuple[int, ...]:
    found = tuple(map(_whole_number, voxel))
    if len(found) not in (2, 3):
        raise UsageError(
            f"a voxel is named by an index along each axis of the output, such as (10, 20, 5), not {found}"
        )
    return found


def _inside(voxel: tuple[int, ...], grid: tuple[int, ...]) -> None:
    if len(voxel) != len(grid) or not all(0 <= at < side for at, side in zip(voxel, grid, strict=True)):
        raise UsageError(
            f"there is no voxel {voxel}: the network's output has {' x '.join(map(str, grid))} voxels, counted from 0"
        )
