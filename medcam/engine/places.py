"""Where the cells of a tensor lie in the input, as arithmetic: a straight line for each run of cells.

A network moves positions about in few ways, and all of them keep straight lines straight: a strided convolution takes every second point
of a line and shifts it by half a window, a view breaks a line into runs or joins runs, an average over channels takes the middle. So a
tensor's positions are written down as lines and never stored cell by cell: the answer is exact, and costs the same for any image.

No torch here: shapes go in, places come out. What cannot be said by straight lines is None: lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import NamedTuple

NOWHERE = -1
_CLOSE = 1e-9


class Run(NamedTuple):
    """`length` steps of `step` along one axis of the input (`NOWHERE` for steps that stay in place), begun `roll` steps late."""

    length: int
    axis: int
    step: float
    roll: int = 0


class Dim(NamedTuple):
    """One axis of a tensor: runs, the outermost first, between entries without a place (class tokens). Without runs it moves nowhere."""

    runs: tuple[Run, ...] = ()
    lead: int = 0
    trail: int = 0


STILL = Dim()


class Place(NamedTuple):
    """The positions of all entries of a tensor: the first one's, and how they move along each axis.

    `coarse` is how often the input was downsampled on the way, as a factor. `gate` marks what came out of a sigmoid or softmax: it weighs
    other features, and says nothing about where they are.
    """

    start: tuple[float, ...]
    dims: tuple[Dim, ...]
    coarse: float = 1.0
    gate: bool = False


def of_input(shape: Sequence[int]) -> Place:
    """Return the place of a network's input, `b c *s`."""
    size = shape[2:]
    lines = (Dim((Run(n, axis, 1.0),)) for axis, n in enumerate(size))
    return Place((0.0,) * len(size), (STILL, STILL, *lines))


def axes_of(dim: Dim) -> set[int]:
    """Return the input axes along which a tensor's axis moves."""
    return {run.axis for run in dim.runs if run.axis != NOWHERE and run.length > 1}


def within_cells(place: Place, at: int) -> bool:
    """Return whether an axis only tells apart pieces of cells that other axes tell apart by longer steps, as channels of patches do."""
    return all(
        any(run.axis == axis and abs(run.step) > max(abs(own.step) for own in place.dims[at].runs if own.axis == axis)
            for other, dim in enumerate(place.dims) if other != at for run in dim.runs)
        for axis in axes_of(place.dims[at])
    )  # fmt: skip


def line_of(dim: Dim) -> tuple[Run, float] | None:
    """Return an axis as one straight line, and by how much its first cell moves for that, or None.

    Cells that a network makes several of in one place, side by side (pixel shuffle, repetition), share the room of that place.
    """
    if dim.lead or dim.trail or not dim.runs or dim.runs[0].roll:
        return None
    first, *others = dim.runs
    if others and axes_of(dim):
        first, *others = _cells(dim.runs)
    if not others:
        return (first, 0.0) if first.axis != NOWHERE else None
    parts = others[0]
    if len(others) > 1 or first.axis == NOWHERE or parts.axis != NOWHERE:
        return None
    step = first.step / parts.length
    return Run(first.length * parts.length, first.axis, step), -step * (parts.length - 1) / 2


def resampled(place: Place, at: int, count: int, step: float, start: float) -> Place | None:
    """Return the place when axis `at` is read at `start + step * index`, beyond its ends as the line goes on."""
    dim = place.dims[at]
    if not dim.runs:
        return place
    if len(dim.runs) == 1 and not (dim.lead or dim.trail) and (count, step, start) == (dim.runs[0].length, 1.0, 0.0):
        return place
    found = line_of(dim)
    if found is None:
        return None
    run, shift = found
    moved = shift + run.step * start
    line = Dim((Run(count, run.axis, run.step * step),))
    return place._replace(start=_moved(place.start, run.axis, moved), dims=_with(place.dims, at, line))


def averaged(place: Place, at: int) -> Place:
    """Return the place when axis `at` becomes one that moves nowhere, its entries mixed."""
    dim = place.dims[at]
    if not dim.runs:
        return place if dim is STILL else place._replace(dims=_with(place.dims, at, STILL))
    start = place.start
    for run in dim.runs:
        if run.axis != NOWHERE:
            start = _moved(start, run.axis, run.step * (run.length - 1) / 2)
    return place._replace(start=start, dims=_with(place.dims, at, STILL))


def picked(place: Place, at: int, index: int) -> Place | None:
    """Return the place when one entry of axis `at` is taken and the axis goes, or None where that entry has none."""
    dim = place.dims[at]
    rest = place.dims[:at] + place.dims[at + 1 :]
    if not dim.runs:
        return place._replace(dims=rest)
    index -= dim.lead
    if not 0 <= index < prod(run.length for run in dim.runs):
        return None
    start = place.start
    for run in reversed(dim.runs):
        if run.roll:
            return None
        if run.axis != NOWHERE:
            start = _moved(start, run.axis, run.step * (index % run.length))
        index //= run.length
    return place._replace(start=start, dims=rest)


def sliced(place: Place, at: int, first: int, count: int, step: int) -> Place | None:
    """Return the place of every `step`-th of the entries of axis `at` from `first` on."""
    dim = place.dims[at]
    if not dim.runs:
        return place
    held = prod(run.length for run in dim.runs)
    if dim.lead or dim.trail:
        # Entries without a place go first or last; what is left of them stays.
        lead, end = max(dim.lead - first, 0), first + count
        inside = (max(first - dim.lead, 0), min(end - dim.lead, held))
        if step != 1 or inside != (0, held):
            return None
        return place._replace(dims=_with(place.dims, at, Dim(dim.runs, lead, max(end - dim.lead - held, 0))))
    if (first, count, step) == (0, held, 1):
        return place
    outer, inner = dim.runs[0], held // dim.runs[0].length
    if len(dim.runs) == 1:
        return resampled(place, at, count, float(step), float(first))
    if step != 1 or outer.roll or first % inner or count % inner:
        return None
    start = _moved(place.start, outer.axis, outer.step * (first // inner)) if outer.axis != NOWHERE else place.start
    runs = _joined([outer._replace(length=count // inner), *dim.runs[1:]])
    return place._replace(start=start, dims=_with(place.dims, at, Dim(runs)))


def rolled(place: Place, at: int, count: int, shift: int) -> Place | None:
    """Return the place when the entries of axis `at` move round by `shift`."""
    dim = place.dims[at]
    if not dim.runs or not shift % count:
        return place
    if len(dim.runs) != 1 or dim.lead or dim.trail:
        return None
    run = dim.runs[0]
    return place._replace(dims=_with(place.dims, at, Dim((run._replace(roll=(run.roll + shift) % count),))))


def reshaped(place: Place, old: Sequence[int], new: Sequence[int]) -> Place | None:
    """Return the place of a view: the same entries in the same order, their runs broken and joined."""
    front = 0
    while front < min(len(old), len(new)) and old[front] == new[front]:
        front += 1
    back = 0
    while back < min(len(old), len(new)) - front and old[-1 - back] == new[-1 - back] and 1 not in old[front:]:
        back += 1
    runs: list[Run | tuple[Dim, int]] = []
    for size, dim in zip(old[front : len(old) - back], place.dims[front : len(old) - back], strict=True):
        if dim.lead or dim.trail:
            runs.append((dim, size))
        elif dim.runs or size > 1:
            runs.extend(dim.runs or (Run(size, NOWHERE, 0.0),))
    runs.reverse()
    made: list[Dim] = []
    sizes = new[front : len(new) - back]
    for n, size in enumerate(sizes):
        taken = _taken(runs, size, following=sizes[n + 1] if n + 1 < len(sizes) else None)
        if taken is None:
            return None
        made.append(taken)
    if not all(map(_single, runs)):
        return None
    return place._replace(dims=(*place.dims[:front], *made, *place.dims[len(old) - back :]))


def _taken(runs: list[Run | tuple[Dim, int]], size: int, *, following: int | None) -> Dim | None:
    """Take `size` entries off the end of the list, where the outermost run is.

    A run of one cell changes no entry's place, but keeps the step of an axis for the time when it has more cells. It goes to an axis of one
    entry, or with the cells before it, as into a sequence of tokens, or else to the axis that follows, as pixels shuffled out of it do.
    """
    taken: list[Run] = []
    while size > 1 or (runs and _single(runs[-1])):
        if not runs:
            return None
        behind_cells = bool(taken) and taken[-1].axis != NOWHERE
        if size == 1 and taken and (following == 1 or (following is not None and not behind_cells)):
            break
        head = runs.pop()
        if not isinstance(head, Run):
            whole, count = head
            return whole if not taken and count == size else None
        if size % head.length == 0:
            taken.append(head)
            size //= head.length
        elif head.length % size == 0:
            inner = head.length // size
            taken.append(head._replace(length=size, step=head.step * inner))
            runs.append(head._replace(length=inner))
            size = 1
        else:
            return None
    joined = _joined(taken)
    return Dim(joined) if joined and any(run.axis != NOWHERE for run in joined) else STILL


def _single(run: Run | tuple[Dim, int]) -> bool:
    return isinstance(run, Run) and run.length == 1


def _joined(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Join runs that go on from each other: the outer one steps as far as the inner one reaches."""
    result: list[Run] = []
    for run in runs:
        outer = result[-1] if result else None
        if outer and outer.length == 1 and outer.axis == run.axis:
            result[-1] = run
        elif outer and (outer.axis, outer.roll) == (run.axis, run.roll) and _same(outer.step, run.step * run.length):
            result[-1] = run._replace(length=outer.length * run.length)
        else:
            result.append(run)
    return tuple(result)


def combined(one: Place, two: Place, share: float = 0.5) -> Place | None:
    """Return where the sum of two branches is, `share` of it the first one's; both have as many axes.

    Along each axis of the input a branch that has cells there decides over one that was pooled, and the one that was downsampled less over
    the other: a decoder's voxel lies where its skip connection says, whatever shift the way down and up has made. Equals meet in the
    middle.
    """
    if one is two or one == two:
        return one
    weights = []
    cells = [set().union(*map(axes_of, place.dims)) for place in (one, two)]
    for axis in range(len(one.start)):
        has = axis in cells[0], axis in cells[1]
        if has[0] != has[1]:
            weights.append(float(has[0]))
        elif not _same(one.coarse, two.coarse):
            weights.append(float(one.coarse < two.coarse))
        else:
            weights.append(share)
    start = tuple(w * a + (1 - w) * b for w, a, b in zip(weights, one.start, two.start, strict=True))
    dims = []
    for at in range(len(one.dims)):
        met = _met(one.dims[at], two.dims[at], weights)
        if met is None:
            return None
        dim, shifts = met
        dims.append(dim)
        for axis, shift in shifts:
            start = _moved(start, axis, shift)
    return Place(start, tuple(dims), min(one.coarse, two.coarse), one.gate and two.gate)


def _met(one: Dim, two: Dim, weights: list[float]) -> tuple[Dim, list[tuple[int, float]]] | None:
    """Return the axis that two branches' axes make, and what its lines add to the start."""
    if one == two or not axes_of(two):
        return one, []
    if not axes_of(one):
        return two, []
    if (one.lead, one.trail) != (two.lead, two.trail):
        return None
    its, others = _cells(one.runs), _cells(two.runs)
    if its == others:
        return max(one, two, key=lambda dim: len(dim.runs)), []
    if len(its) == len(others):
        runs = []
        for a, b in zip(its, others, strict=True):
            if (a.length, a.axis, a.roll) != (b.length, b.axis, b.roll):
                break
            w = weights[a.axis] if a.axis != NOWHERE else 0.5
            runs.append(a._replace(step=w * a.step + (1 - w) * b.step))
        else:
            return Dim(tuple(runs), one.lead, one.trail), []
    lines = line_of(one), line_of(two)
    if lines[0] is None or lines[1] is None:
        return None
    (a, shift_a), (b, shift_b) = lines[0], lines[1]
    if (a.length, a.axis) != (b.length, b.axis):
        return None
    w = weights[a.axis]
    return Dim((a._replace(step=w * a.step + (1 - w) * b.step),)), [(a.axis, w * shift_a + (1 - w) * shift_b)]


def fitted(place: Place, shape: Sequence[int]) -> Place:
    """Return the place with axes that have become longer than their lines, as broadcasting makes them, moving nowhere."""
    if all(not dim.runs or reach(dim) == n for dim, n in zip(place.dims, shape, strict=True)):
        return place
    return place._replace(
        dims=tuple(dim if dim.runs and reach(dim) == n else STILL for dim, n in zip(place.dims, shape, strict=True))
    )


def reach(dim: Dim) -> int:
    """Return how many entries an axis with runs has."""
    return dim.lead + prod(run.length for run in dim.runs) + dim.trail


def _cells(runs: tuple[Run, ...]) -> tuple[Run, ...]:
    """Return the runs of more than one cell."""
    return tuple(run for run in runs if run.length > 1)


def spread(place: Place, ndim: int) -> Place:
    """Return the place with axes put in front, as broadcasting does, until there are `ndim`."""
    missing = ndim - len(place.dims)
    return place._replace(dims=(STILL,) * missing + place.dims) if missing else place


def appended(one: Place, two: Place, at: int, counts: tuple[int, int]) -> Place | None:
    """Return the place of two tensors one behind the other along axis `at`; a line must go on where it stopped."""
    a, b = line_of(one.dims[at]), line_of(two.dims[at])
    if a is None or b is None or a[0].axis != b[0].axis or not _same(a[0].step, b[0].step):
        return None
    run, shift = a
    goes_on = one._replace(
        start=_moved(one.start, run.axis, shift + run.step * counts[0]), dims=_with(one.dims, at, STILL)
    )
    follows = two._replace(start=_moved(two.start, run.axis, b[1]), dims=_with(two.dims, at, STILL))
    if goes_on.dims != follows.dims or not all(map(_same, goes_on.start, follows.start)):
        return None
    line = Dim((run._replace(length=sum(counts)),))
    return one._replace(start=_moved(one.start, run.axis, shift), dims=_with(one.dims, at, line))


def _moved(start: tuple[float, ...], axis: int, by: float) -> tuple[float, ...]:
    return start if not by else (*start[:axis], start[axis] + by, *start[axis + 1 :])


def _with(dims: tuple[Dim, ...], at: int, dim: Dim) -> tuple[Dim, ...]:
    return (*dims[:at], dim, *dims[at + 1 :])


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= _CLOSE * max(1.0, abs(a), abs(b))
