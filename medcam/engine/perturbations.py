"""Occlusion sensitivity and RISE: what the score does when parts of the input are hidden. No layer and no gradient is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from types import EllipsisType

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from medcam.engine.baselines import baseline, baseline_kind
from medcam.engine.cells import Cells
from medcam.engine.explainer import Explainer
from medcam.engine.study import Study
from medcam.errors import UsageError
from medcam.options import at_least, between, one_of

PerAxis = int | Sequence[int] | None


def occlusion(
    *,
    window: PerAxis = None,
    stride: PerAxis = None,
    baseline: str | float | int = "mean",
    background: float | int | None = None,
) -> Explainer:
    """Cover one window of the input after another; a window's value is the clean score less the covered one.

    Positive: what the window covers speaks for the target. The map lies on a coarse grid of its own, whose cells are the windows' centres.
    The windows cover every voxel: where they do not fit the input exactly they hang over both ends by the same (up to one voxel), and what
    hangs over covers nothing. One forward for each window that is looked at.

    Parameters
    ----------
    window
        Its sides in voxels, one number or one for each axis; by default an eighth of the input's.
    stride
        The step from window to window, likewise; by default half the window. Not larger than the window.
    baseline
        What covers: 'mean' of each sample's channel (the paper's grey), 'zero', 'min', 'blur' or a number.
    background
        A window in which no voxel of any channel exceeds this is not covered: its value is NaN, not looked at. Where that holds for all
        samples of the batch no forward is spent.

    Raises
    ------
    UsageError
        If an option is none of these, or does not fit the input.

    References
    ----------
    Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014, section 4.2, where the
    covered score itself is shown.
    """
    kind = baseline_kind(baseline)
    for option, given in (("window", window), ("stride", stride)):
        for n in given if isinstance(given, Sequence) else (given,):
            if n is not None:
                at_least(option, n)
    return Explainer(lambda study: _occlusion(study, window, stride, kind, background), needs=frozenset())


def _occlusion(
    study: Study, window: PerAxis, stride: PerAxis, kind: str | float, background: float | int | None
) -> Cells:
    inputs = study.inputs
    windows = windows_of(tuple(inputs.shape[2:]), window, stride)
    places = list(product(*(range(n) for n in windows.counts)))
    values = torch.full((inputs.shape[0], len(places)), torch.nan, dtype=study.scores.dtype, device=inputs.device)
    looked = list(range(len(places)))
    empty = None
    if background is not None:
        empty = windows.highest(inputs.amax(1)).flatten(1) <= background
        looked = (~empty).any(0).nonzero()[:, 0].tolist()
        _say_skipped(study, empty, background)
    blank = baseline(inputs, kind)

    def make(part: slice) -> Float[Tensor, "m b c *s"]:
        chosen = looked[part]
        copies = inputs.expand(len(chosen), *inputs.shape).clone()
        for copy, place in zip(copies, chosen, strict=True):
            box = windows.box(places[place])
            copy[box] = blank[box]
        return copies

    if looked:
        values[:, looked] = (study.scores - study.scores_of(len(looked), make)).mT
    if empty is not None:
        values = values.masked_fill(empty, torch.nan)
    return Cells(values.unflatten(1, windows.counts), *windows.cells)


def _say_skipped(study: Study, empty: Bool[Tensor, "b p"], background: float | int) -> None:
    skipped, total = empty.sum(1).tolist(), empty.shape[1]
    for n, count in enumerate(skipped):
        if count:
            study.note(
                f"{count} of {total} windows hold no voxel above {background:g} and were not covered; the map has no value there.",
                [n],
            )


@dataclass(frozen=True)
class Windows:
    """A regular grid of windows: along each axis `counts` of them, `sides` long, `steps` apart, the first at `starts` (not positive)."""

    shape: tuple[int, ...]
    counts: tuple[int, ...]
    sides: tuple[int, ...]
    steps: tuple[int, ...]
    starts: tuple[int, ...]

    @property
    def cells(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The stride and offset of the windows' centres."""
        centres = tuple(start + (side - 1) / 2 for start, side in zip(self.starts, self.sides, strict=True))
        return tuple(float(step) for step in self.steps), centres

    def box(self, place: Sequence[int]) -> tuple[slice | EllipsisType, ...]:
        """The index of the voxels of the input that a window covers."""
        along = (
            slice(max(0, start + step * c), start + step * c + side)
            for c, side, step, start in zip(place, self.sides, self.steps, self.starts, strict=True)
        )
        return (..., *along)

    def highest(self, values: Float[Tensor, "b *s"]) -> Float[Tensor, "b *m"]:
        """Return the largest value in each window, one axis after another."""
        for axis, n in enumerate(self.shape):
            count, side, step, start = (each[axis] for each in (self.counts, self.sides, self.steps, self.starts))
            over = (-start, (count - 1) * step + side + start - n)
            last = F.pad(values.movedim(axis + 1, -1), over, value=-torch.inf)
            values = last.unfold(-1, side, step).amax(-1).movedim(-1, axis + 1)
        return values


def windows_of(shape: tuple[int, ...], window: PerAxis, stride: PerAxis) -> Windows:
    """Return the windows that cover an input of this shape.

    Raises
    ------
    UsageError
        If there is not one number for each axis, a window is larger than the input, or a stride is larger than its window.
    """
    sides = _per_axis("window", window, shape, [max(1, round(n / 8)) for n in shape])
    steps = _per_axis("stride", stride, shape, [max(1, side // 2) for side in sides])
    size = " x ".join(map(str, shape))
    if any(side > n for side, n in zip(sides, shape, strict=True)):
        raise UsageError(f"a window of {' x '.join(map(str, sides))} voxels does not fit an input of {size}")
    if any(step > side for step, side in zip(steps, sides, strict=True)):
        raise UsageError(
            f"strides of {' x '.join(map(str, steps))} voxels leave gaps between windows of {' x '.join(map(str, sides))}; "
            "a stride is at most its window"
        )
    counts = [-(-(n - side) // step) + 1 for n, side, step in zip(shape, sides, steps, strict=True)]
    excess = [(m - 1) * step + side - n for n, m, side, step in zip(shape, counts, sides, steps, strict=True)]
    return Windows(shape, tuple(counts), tuple(sides), tuple(steps), tuple(-(e // 2) for e in excess))


def _per_axis(option: str, given: PerAxis, shape: tuple[int, ...], default: Sequence[int]) -> Sequence[int]:
    if given is None:
        return default
    values = list(given) if isinstance(given, Sequence) else [given] * len(shape)
    if len(values) != len(shape):
        raise UsageError(f"{option} has {len(values)} numbers, but the input has {len(shape)} axes")
    return values


def rise(
    *,
    masks: int = 4000,
    cells: int | Sequence[int] = 7,
    probability: float | int = 0.5,
    estimator: str = "paper",
    baseline: str | float | int = "zero",
) -> Explainer:
    """Hide the input behind random soft masks; a voxel's value is the mean score of the masks that show it.

    A mask is a small grid of cells, each shown with the given probability, enlarged linearly and shifted at random. The map has the input's
    size. All samples of a batch see the same masks. One forward for each mask; the note tells how well two halves of the masks agree.

    Parameters
    ----------
    masks
        How many. The paper takes 4000 and more.
    cells
        Of the small grid, along every axis or for each axis.
    probability
        With which a cell is shown.
    estimator
        'paper': the sum of score times mask over the masks, divided by their number and the probability. It is about the mean score
        everywhere, more where showing raises it: its zero means nothing, and a score that is negative throughout gives a negative map.
        'centred': the same with the mean score subtracted first, so positive speaks for the target. It varies less, above all for logits.
    baseline
        What a mask hides the input with: 'zero' (the paper), 'min', 'mean', 'blur' or a number. In CT and MR, zero may be tissue.

    Raises
    ------
    UsageError
        If an option is none of these, or there is not one number of cells for each axis.

    References
    ----------
    Petsiuk, Das and Saenko, RISE, BMVC 2018 (arXiv 1806.07421), eq. 6 and section 3.2. As in the authors' code
    (github.com/eclique/RISE) a cell is the input's side over the number of cells rounded up (down, as in the paper, would leave some inputs
    uncovered), and the grid is enlarged about the centres of its cells.
    """
    at_least("masks", masks)
    for n in cells if isinstance(cells, Sequence) else (cells,):
        at_least("cells", n)
    between("probability", probability, 0, 1)
    one_of("estimator", estimator, ("paper", "centred"))
    kind = baseline_kind(baseline)
    return Explainer(lambda study: _rise(study, masks, cells, probability, estimator, kind), needs=frozenset())


def _rise(
    study: Study, masks: int, cells: int | Sequence[int], probability: float | int, estimator: str, kind: str | float
) -> Cells:
    inputs = study.inputs
    shape = tuple(inputs.shape[2:])
    each = _per_axis("cells", cells, shape, ())
    # Positions in a large volume need single precision at least.
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    drawn = draw_masks(masks, tuple(each), shape, probability, study.generator()).to(inputs.device, dtype)
    blank = baseline(inputs, kind)

    def make(part: slice) -> Float[Tensor, "m b c *s"]:
        return torch.lerp(blank, inputs, drawn.at(part)[:, None, None].to(inputs.dtype))

    scores = study.scores_of(masks, make)
    if estimator == "centred":
        scores = scores - scores.mean(0)
    halves = [drawn.weighted_sum(scores[half::2], half) for half in range(2)]
    _say_agreement(study, halves, masks)
    ones, zeros = (1.0,) * len(shape), (0.0,) * len(shape)
    return Cells((halves[0] + halves[1]) / (masks * probability), ones, zeros)


def _say_agreement(study: Study, halves: list[Tensor], masks: int) -> None:
    if masks < 2:
        return
    first, second = (half.flatten(1) - half.flatten(1).mean(1, keepdim=True) for half in halves)
    for n, alike in enumerate(F.cosine_similarity(first, second, dim=1).tolist()):
        study.note(
            f"RISE used {masks} random masks; the maps of their two halves correlate at {alike:.2f} (at 1, more masks change nothing).",
            [n],
        )


@dataclass(frozen=True, eq=False)
class SoftMasks:
    """Random masks, kept as what makes them: `grids` of shown and hidden cells (`n *cells`), and each mask's shift in voxels (`n axes`)."""

    grids: Float[Tensor, "n *cells"]
    shifts: Float[Tensor, "n axes"]
    shape: tuple[int, ...]

    def to(self, device: torch.device, dtype: torch.dtype) -> SoftMasks:
        """Return them on another device."""
        return SoftMasks(self.grids.to(device, dtype), self.shifts.to(device, dtype), self.shape)

    def at(self, part: slice) -> Float[Tensor, "m *s"]:
        """Return some of the masks at the input's size."""
        rows, last = self._factors(part)
        return (rows @ last.mT).reshape(-1, *self.shape)

    def weighted_sum(self, weights: Float[Tensor, "m b"], first: int) -> Float[Tensor, "b *s"]:
        """Return the sum of every second mask from `first` on, each times its weight, without making one: a mask is a product of its axes,
        so the sum over masks is part of the product along the last."""
        batch, cells = weights.shape[1], self.grids.shape[-1]
        total = self.grids.new_zeros(batch, *self.shape).flatten(1, -2)
        step = max(1, self.shape[-1] // cells)  # so that no factor is larger than the sum
        for start in range(0, weights.shape[0], step):
            some = weights[start : start + step].to(self.grids.dtype)
            begin = first + 2 * start
            rows, last = self._factors(slice(begin, begin + 2 * some.shape[0], 2))
            left = torch.einsum("mb,mrc->brmc", some, rows).flatten(2)
            total += left @ last.mT.flatten(0, 1)
        return total.reshape(batch, *self.shape)

    def _factors(self, part: slice) -> tuple[Float[Tensor, "m rows c"], Float[Tensor, "m n c"]]:
        """Return the masks enlarged along all axes but the last, and the weights of the last axis' cells at its voxels."""
        result, shifts = self.grids[part], self.shifts[part]
        for axis, n in enumerate(self.shape):
            cells = result.shape[1]
            size = -(-n // cells)
            voxel = torch.arange(n, dtype=result.dtype, device=result.device) + shifts[:, axis, None]
            # The grid spans one cell more than the input, so that it may be shifted.
            place = ((voxel + 0.5) * (cells / ((cells + 1) * size)) - 0.5).clamp(0, cells - 1)
            centres = torch.arange(cells, dtype=result.dtype, device=result.device)
            weights = (1 - (place[..., None] - centres).abs()).clamp(min=0)
            turned = result.movedim(1, -1)
            if axis == len(self.shape) - 1:
                return turned.flatten(1, -2), weights
            # The axis moves to the end; after all of them have, they are in order again.
            result = (turned.flatten(1, -2) @ weights.mT).unflatten(1, turned.shape[1:-1])
        raise UsageError("a mask needs at least one axis")


def draw_masks(
    count: int, cells: tuple[int, ...], shape: tuple[int, ...], probability: float | int, generator: torch.Generator
) -> SoftMasks:
    """Return random masks for inputs of this shape."""
    grids = (torch.rand(count, *cells, generator=generator) < probability).float()
    sizes = [-(-n // c) for n, c in zip(shape, cells, strict=True)]
    shifts = torch.stack([torch.randint(size, (count,), generator=generator) for size in sizes], 1)
    return SoftMasks(grids, shifts.float(), shape)
