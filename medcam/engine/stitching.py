"""Putting together what windows gave: scores on voxels, as MONAI does, and maps on cells that all windows share.

A layer's cells lie at `offset + stride * c` in each window, and windows begin anywhere, so the cells of two windows need not fall on each
other. The common cells are those of the first window, carried on through the volume. Where another window begins at a whole number of
cells, its values are taken as they are; else they are read at the common cells by linear interpolation, so nothing moves: a value's place
is right to the interpolation's own blur, and at a window's rim, where there is no neighbour to interpolate with, to half a cell.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from medcam.engine.cells import Cells, at_positions
from medcam.engine.tiling import Tiling

ALL = slice(None)
# So many rows are divided and given on at once.
_ROWS = 16
# Positions this near to whole cells are whole: footprints are rounded to four digits.
_WHOLE = 1e-3


@final
class Shares:
    """What part of the blended output each voxel of a window makes: its importance over that of all windows there.

    Only the rows of one window are kept, since windows come row by row.
    """

    def __init__(self, tiling: Tiling) -> None:
        self.tiling = tiling
        self._first = -1
        self._summed: Tensor | None = None

    def summed(self, first: int) -> Float[Tensor, "r *s"]:
        """Return the summed importance on the rows of the windows that begin at `first`."""
        if self._summed is None or first != self._first:
            self._first, self._summed = first, self.tiling.summed(first)
        return self._summed

    def of(self, corner: Sequence[int]) -> Float[Tensor, "*roi"]:
        """Return the share of the window that begins there."""
        rows = self.summed(corner[0])
        return self.tiling.importance / rows[self.tiling.rows(corner, ALL)]


@final
class Stitch:
    """The blended output of windows: what MONAI's `sliding_window_inference` gives, bit for bit, but only some rows of it at a time.

    Parameters
    ----------
    give
        Takes the volume's number, its first row, and rows `k r *s` that no later window reaches; padding is cut off.
    """

    def __init__(self, tiling: Tiling, give: Callable[[int, int, Float[Tensor, "k r *s"]], None]) -> None:
        self._tiling, self._give = tiling, give
        self._shares = Shares(tiling)
        self._at = (-1, 0)
        self._rows: Tensor | None = None

    def add(self, volume: int, corner: Sequence[int], weighted: Float[Tensor, "k *roi"]) -> None:
        """Add a window, already weighed by its importance. Windows come in the order of `Tiling.corners`, volume after volume."""
        if self._rows is None:
            self._rows = weighted.new_zeros((len(weighted), self._tiling.roi[0], *self._tiling.padded[1:]))
            self._at = (volume, corner[0])
        if (volume, corner[0]) != self._at:
            same = volume == self._at[0]
            self._pass_on(corner[0] - self._at[1] if same else self._tiling.roi[0])
            self._at = (volume, corner[0])
        self._rows[self._tiling.rows(corner, ALL, ALL)] += weighted

    def finish(self) -> None:
        """Give what is left."""
        if self._rows is not None:
            self._pass_on(self._tiling.roi[0])
            self._rows = None

    def _pass_on(self, count: int) -> None:
        rows, (volume, first) = self._rows, self._at
        if rows is None:
            return
        summed, before = self._shares.summed(first), self._tiling.before[0]
        low, high = max(first, before), min(first + count, before + self._tiling.image[0])
        for start in range(low, high, _ROWS):
            some = slice(start - first, min(start + _ROWS, high) - first)
            kept: tuple[Any, ...] = (ALL, ALL, *self._tiling.inside_of()[1:])
            self._give(volume, start - before, (rows[:, some] / summed[some])[kept])
        rest = rows[:, count:].clone()
        rows[:, : rest.shape[1]] = rest
        rows[:, rest.shape[1] :] = 0


@dataclass(frozen=True, eq=False)
class _Place:
    """Along one axis, the common cells that a window reaches: the first and how many, and where they lie among its cells and voxels.

    None stands for one after another from the first to the last. Places of one `kind` have the same voxels.
    """

    first: int
    count: int
    cells: Float[Tensor, " n"] | None
    voxels: Float[Tensor, " n"] | None
    kind: tuple[int, float]


@final
@dataclass(frozen=True, eq=False)
class CellGrid:
    """The common cells of all windows of a volume: cell j is centred on index `offset + stride * j` of the padded volume."""

    tiling: Tiling
    stride: tuple[float, ...]
    offset: tuple[float, ...]
    shape: tuple[int, ...]
    places: tuple[Mapping[int, _Place], ...]

    def box(self, corner: Sequence[int], *lead: Any) -> tuple[Any, ...]:
        """Return the common cells that the window which begins there reaches, as an index behind those of leading axes."""
        return (*lead, *(slice(p.first, p.first + p.count) for p in self._at(corner)))

    def read(self, values: Float[Tensor, "*l t"], corner: Sequence[int]) -> Tensor:
        """Return a window's values at the common cells that it reaches, by linear interpolation along the last axes."""
        for axis, place in enumerate(self._at(corner), start=values.ndim - len(self.shape)):
            if place.cells is not None:
                values = at_positions(values, axis, place.cells)
        return values

    def spread(self, values: Float[Tensor, "*l t"], corner: Sequence[int]) -> Tensor:
        """Return a window's values shared out to the common cells nearest to each: the sum stays what it was.

        This is how a gradient travels: against the interpolation by which the window would have read common cells.
        """
        for axis, place in enumerate(self._at(corner), start=values.ndim - len(self.shape)):
            if place.cells is not None:
                cells = torch.arange(values.shape[axis], dtype=values.dtype, device=values.device)
                values = at_positions_transposed(values, axis, cells - place.cells[0].to(values), place.count)
        return values

    def importance(self, corner: Sequence[int]) -> Tensor:
        """Return how much a window counts at the common cells that it reaches: the importance of the voxel at their centres."""
        found = self.tiling.importance
        for axis, place in enumerate(self._at(corner)):
            if place.voxels is not None:
                found = at_positions(found, axis, place.voxels)
        return found

    def summed(self) -> Float[Tensor, "*j"]:
        """Return the importance of all windows at each common cell, summed: also of windows that add nothing to a map."""
        total = self.tiling.importance.new_zeros(self.shape)
        kept: dict[object, Tensor] = {}
        for corner in self.tiling.corners:
            kind = self.kind(corner)
            if kind not in kept:
                kept[kind] = self.importance(corner)
            total[self.box(corner)] += kept[kind]
        return total

    def kind(self, corner: Sequence[int]) -> object:
        """Return the same for windows that count the same at the common cells they reach."""
        return tuple(place.kind for place in self._at(corner))

    def without_padding(self, values: Float[Tensor, "*l j"]) -> Cells:
        """Return the cells whose centres lie in the volume itself, placed in it; where no padding was needed, all of them."""
        offset = list(self.offset)
        for axis, (side, before, padded) in enumerate(
            zip(self.tiling.image, self.tiling.before, self.tiling.padded, strict=True)
        ):
            if side == padded:
                continue
            centres = [self.offset[axis] + self.stride[axis] * j - before for j in range(self.shape[axis])]
            kept = [j for j, at in enumerate(centres) if -0.5 <= at <= side - 0.5]
            middle = min(range(len(centres)), key=lambda j: abs(centres[j] - (side - 1) / 2))
            first, count = (kept[0], len(kept)) if kept else (middle, 1)
            values = values.narrow(values.ndim - len(self.shape) + axis, first, count)
            offset[axis] = centres[first]
        return Cells(values, self.stride, tuple(offset))

    def _at(self, corner: Sequence[int]) -> list[_Place]:
        return [places[at] for places, at in zip(self.places, corner, strict=True)]


def cell_grid(tiling: Tiling, cells: Cells) -> CellGrid:
    """Return the common cells of maps that lie like these in their windows (`cells.values` is `n *t`)."""
    shape, places = [], []
    sides = cells.values.shape[1:]
    for t, stride, offset, side, starts in zip(
        sides, cells.stride, cells.offset, tiling.roi, tiling.starts, strict=True
    ):
        begins = [start / stride for start in starts]
        # Half a cell beyond a window's outermost, or further where the next window's cells are further away.
        gaps = [second - first - (t - 1) for first, second in itertools.pairwise(begins)]
        reach = max([0.5, *(gap / 2 for gap in gaps)])
        total = int(begins[-1] + t - 1 + reach + _WHOLE) + 1
        shape.append(total)
        places.append({start: _place(start, stride, offset, t, side, reach, total) for start in starts})
    return CellGrid(tiling, cells.stride, cells.offset, tuple(shape), tuple(places))


def _place(start: int, stride: float, offset: float, t: int, side: int, reach: float, total: int) -> _Place:
    begin = start / stride
    if abs(begin - round(begin)) < _WHOLE and reach < 0.5 + _WHOLE:
        first, count = round(begin), t
        where = None
    else:
        first = max(0, _ceil(begin - reach - _WHOLE))
        count = min(total - 1, int(begin + t - 1 + reach + _WHOLE)) - first + 1
        where = torch.arange(count, dtype=torch.float64) + (first - begin)
    common = torch.arange(count, dtype=torch.float64) + first
    voxels = offset + stride * common - start
    kind = (count, round(float(voxels[0]), 2))
    whole = count == side and bool((voxels - torch.arange(side)).abs().max() < _WHOLE)
    return _Place(first, count, where, None if whole else voxels.clamp(0, side - 1), kind)


def _ceil(value: float) -> int:
    return -int(-value // 1)


def at_positions_transposed(values: Tensor, axis: int, positions: Tensor, count: int) -> Tensor:
    """Return `count` cells to which values at these positions were shared out, each to its two neighbours: `at_positions` the other way."""
    place = positions.clamp(0, count - 1)
    centres = torch.arange(count, dtype=values.dtype, device=values.device)
    weights = (1 - (place[:, None] - centres).abs()).clamp(min=0)
    return (values.movedim(axis, -1) @ weights).movedim(-1, axis)


@final
class CellStitch:
    """A map on common cells that windows add to.

    Parameters
    ----------
    lead
        The axes before the cells: of volumes, and of channels if there are any.
    holes
        Whether values may be NaN, which stands for not looked at: such a value then counts for nothing, and a cell at which no window
        looked is NaN.
    """

    def __init__(self, grid: CellGrid, lead: tuple[int, ...], dtype: torch.dtype, *, holes: bool = False) -> None:
        self.grid = grid
        self._total = torch.zeros((*lead, *grid.shape), dtype=dtype, device=grid.tiling.importance.device)
        self._missing = torch.zeros_like(self._total) if holes else None
        self._kept: dict[object, Tensor] = {}

    def add(self, volume: int, corner: Sequence[int], values: Float[Tensor, "*l t"]) -> None:
        """Add a window's values, weighed by its importance."""
        there, weights = self.grid.read(values.to(self._total), corner), self._importance(corner)
        box = self.grid.box(corner, volume, ...)
        if self._missing is not None:
            self._missing[box] += there.isnan() * weights
            there = there.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        self._total[box] += there * weights

    def spread(self, volume: int, corner: Sequence[int], values: Float[Tensor, "*l t"]) -> None:
        """Add a window's values as they are, each shared out to the cells next to it."""
        self._total[self.grid.box(corner, volume, ...)] += self.grid.spread(values.to(self._total), corner)

    def blended(self) -> Tensor:
        """Return the weighted mean of what was added; windows that added nothing count as zeros."""
        summed = self.grid.summed().to(self._total)
        if self._missing is None:
            return self._total / summed
        # What is left where nothing was seen is the rounding of sums.
        seen = summed - self._missing
        return torch.where(seen > 1e-4 * summed, self._total / seen, torch.nan)

    def total(self) -> Tensor:
        """Return the sum of what was added."""
        return self._total

    def _importance(self, corner: Sequence[int]) -> Tensor:
        kind = self.grid.kind(corner)
        if kind not in self._kept:
            self._kept[kind] = self.grid.importance(corner).to(self._total)
        return self._kept[kind]
