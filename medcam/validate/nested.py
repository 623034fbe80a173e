"""The pieces that a map falls into at each of its thresholds, from one pass: what is selected at one is selected at all below it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Bool, Int, UInt8
from scipy import ndimage

from medcam.validate.scene import around

# Voxels that are looked at together: they stay in the processor's cache.
_CHUNK = 2**18
# Where a piece has fewer voxels to itself than this, pieces are boxed faster all at once than one by one.
_CROWDED = 200


@dataclass(frozen=True, eq=False)
class Pieces:
    """The connected parts of what is selected, in raster order of their first voxels.

    Parameters
    ----------
    boxes
        First and last voxel along each axis, both in the box.
    voxels
        How many each has.
    """

    boxes: Int[np.ndarray, "n 3 2"]
    voxels: Int[np.ndarray, " n"]


def pieces_at_levels(level: UInt8[np.ndarray, "i j k"], touching: Bool[np.ndarray, "3 3 3"]) -> Iterator[Pieces]:
    """Yield the pieces of the voxels that reach level 1, 2, ... up to the highest, as labelling each of these masks gives them.

    Every voxel climbs to the top of its hill once. At any level what is left of a hill is one piece, and two hills are one piece where the
    saddle between them reaches it: so all levels follow from the hills' sizes, boxes and saddles. A map of noise has too many hills; its
    levels are labelled one by one.

    Parameters
    ----------
    level
        How many thresholds each voxel reaches.
    touching
        Which neighbours belong together; those that share a face must.

    References
    ----------
    Najman & Couprie, Building the component tree in quasi-linear time, IEEE Trans. Image Processing 2006, section II (the tree of pieces
    whose levels these are).
    """
    box = around(level > 0)
    if box is None:
        return
    start = np.array([side.start for side in box])[None, :, None]
    # With a border of level 0, a neighbour lies at the same distance in memory from every voxel.
    padded = np.pad(level[box], 1)
    del level
    hills = _Hills.of(padded, touching)
    found = _labelled(padded, touching) if hills is None else hills.levels()
    for pieces in found:
        yield Pieces(pieces.boxes + start - 1, pieces.voxels)


def _hills(
    level: UInt8[np.ndarray, "i j k"], touching: Bool[np.ndarray, "3 3 3"]
) -> tuple[Int[np.ndarray, "i j k"], int]:
    """Return which hill each voxel belongs to, from 1 on, 0 for those of level 0, and how many there are.

    From each voxel the way leads to the highest neighbour, the last of equal ones, until there is none higher.
    """
    size = level.size
    kind = np.int32 if (int(level.max()) + 1) * size < 2**31 else np.int64
    # Level and number in one: no two are the same, so no way leads in a circle.
    way = level.astype(kind)
    way *= kind(size)
    way += np.arange(size, dtype=kind).reshape(level.shape)
    way = _highest(way, touching).reshape(-1)
    np.remainder(way, kind(size), out=way)
    todo = list(range(0, size, _CHUNK))
    while todo:
        left = []
        for begin in todo:
            part = way[begin : begin + _CHUNK]
            further = way.take(part)
            if not np.array_equal(further, part):
                part[...] = further
                left.append(begin)
        todo = left
    seen = level.reshape(-1) > 0
    tops = np.flatnonzero((way == np.arange(size, dtype=kind)) & seen)
    number = np.zeros(size, np.int32)
    number[tops] = np.arange(1, len(tops) + 1)
    for begin in range(0, size, _CHUNK):
        way[begin : begin + _CHUNK] = number.take(way[begin : begin + _CHUNK])
    way *= seen
    return way.reshape(level.shape), len(tops)


def _highest(key: Int[np.ndarray, "i j k"], touching: Bool[np.ndarray, "3 3 3"]) -> Int[np.ndarray, "i j k"]:
    """Return the largest key of each voxel and its neighbours: of 26 if all touch, of 18 if edges do, else of those that share a face."""
    if touching.all():
        return _along(_along(_along(key, 0), 1), 2)
    edges = bool(touching[0, 0, 1])
    result: np.ndarray = key.copy()
    for axis in range(3):
        line = _along(key, axis)
        np.maximum(result, _along(line, (axis + 1) % 3) if edges else line, out=result)
    return result


def _along(key: Int[np.ndarray, "i j k"], axis: int) -> Int[np.ndarray, "i j k"]:
    """Return the largest key of each voxel and its two neighbours along an axis."""
    result: np.ndarray = key.copy()
    values, out = (np.moveaxis(each, axis, 0) for each in (key, result))
    np.maximum(out[1:], values[:-1], out=out[1:])
    np.maximum(out[:-1], values[1:], out=out[:-1])
    return result


@dataclass(frozen=True, eq=False)
class _Hills:
    """What of each hill reaches each level from 1 on, and the saddles between them.

    Parameters
    ----------
    voxels
        How many, 0 above its top.
    first
        The number of the first of them.
    low, high
        Their box.
    one, other, saddle
        Pairs of hills that touch, and up to which level.
    """

    voxels: Int[np.ndarray, "h n"]
    first: Int[np.ndarray, "h n"]
    low: Int[np.ndarray, "h n 3"]
    high: Int[np.ndarray, "h n 3"]
    one: Int[np.ndarray, " e"]
    other: Int[np.ndarray, " e"]
    saddle: UInt8[np.ndarray, " e"]

    @staticmethod
    def of(level: UInt8[np.ndarray, "i j k"], touching: Bool[np.ndarray, "3 3 3"]) -> _Hills | None:
        """Measure the hills of a map with a border of level 0; None if they are too many."""
        label, count = _hills(level, touching)
        # The table of saddles may take as much memory as the map itself.
        if (count + 1) ** 2 > 4 * level.size:
            return None
        most, saddles = int(level.max()), _saddles(label, level, touching, count)
        # Each level of each hill is a part of its own, from 1 on; the labels are not needed any more.
        part = label
        part -= 1
        part *= most
        part += level
        part *= level > 0
        flat = part.reshape(-1)
        voxels, first = np.zeros(count * most + 1, np.int64), np.full(count * most + 1, level.size, np.int64)
        for begin in reversed(range(0, level.size, _CHUNK)):
            chunk = flat[begin : begin + _CHUNK]
            np.add.at(voxels, chunk, 1)
            # Of values assigned to one place the last one stays.
            first[chunk[::-1]] = np.arange(begin + len(chunk) - 1, begin - 1, -1)
        low, high = _ends(part, count * most)
        return _Hills(
            voxels[1:].reshape(count, most)[:, ::-1].cumsum(1)[:, ::-1],
            _from_above(np.minimum, first[1:].reshape(count, most)),
            _from_above(np.minimum, low.reshape(count, most, 3)),
            _from_above(np.maximum, high.reshape(count, most, 3)),
            *saddles,
        )

    def levels(self) -> list[Pieces]:
        """Return the pieces of each level."""
        count, most = self.voxels.shape
        label, found = np.arange(count), []
        joins = self._joins()
        for n in reversed(range(most)):
            while joins and joins[-1][0] > n:
                _, kept, gone = joins.pop()
                label[label == gone] = kept
            there = np.flatnonzero(self.voxels[:, n])
            first = np.full(count, np.iinfo(np.int64).max)
            np.minimum.at(first, label[there], self.first[there, n])
            # Numbered as they are met.
            order = np.argsort(first, kind="stable")[: np.count_nonzero(first < np.iinfo(np.int64).max)]
            rank = np.empty(count, np.intp)
            rank[order] = np.arange(len(order))
            mine = rank[label[there]]
            boxes = np.empty((len(order), 3, 2), np.int64)
            boxes[..., 0], boxes[..., 1] = np.iinfo(np.int64).max, -1
            np.minimum.at(boxes[..., 0], mine, self.low[there, n])
            np.maximum.at(boxes[..., 1], mine, self.high[there, n])
            voxels = np.zeros(len(order), np.int64)
            np.add.at(voxels, mine, self.voxels[there, n])
            found.append(Pieces(boxes, voxels))
        return found[::-1]

    def _joins(self) -> list[tuple[int, int, int]]:
        """Return by which saddles hills become one, the lowest first: the level, and the hills that keep and lose their name."""
        parent, joins = list(range(len(self.voxels))), []
        order = np.argsort(self.saddle, kind="stable")[::-1]
        pairs = zip(*(each[order].tolist() for each in (self.saddle, self.one, self.other)), strict=True)
        for level, *ends in pairs:
            roots = []
            for hill in ends:
                while parent[hill] != hill:
                    parent[hill] = parent[parent[hill]]
                    hill = parent[hill]
                roots.append(hill)
            if roots[0] != roots[1]:
                parent[roots[1]] = roots[0]
                joins.append((level, roots[0], roots[1]))
        return joins[::-1]


def _from_above(of: np.ufunc, values: Int[np.ndarray, "h n ..."]) -> Int[np.ndarray, "h n ..."]:
    """Return what all levels from each on come to."""
    result: np.ndarray = of.accumulate(values[:, ::-1], axis=1)[:, ::-1]
    return result


def _saddles(
    label: Int[np.ndarray, "i j k"], level: UInt8[np.ndarray, "i j k"], touching: Bool[np.ndarray, "3 3 3"], count: int
) -> tuple[Int[np.ndarray, " e"], Int[np.ndarray, " e"], UInt8[np.ndarray, " e"]]:
    """Return which hills, from 0, touch, and the highest level at which they do."""
    table = np.zeros((count + 1, count + 1), np.uint8)
    flat, which, heights = table.reshape(-1), label.reshape(-1), level.reshape(-1)
    _, rows, columns = level.shape
    for i, j, k in product((0, 1), (-1, 0, 1), (-1, 0, 1)):
        step = (i * rows + j) * columns + k
        if (i, j, k) <= (0, 0, 0) or not touching[1 + i, 1 + j, 1 + k]:
            continue
        for begin in range(0, label.size - step, _CHUNK):
            end = min(begin + _CHUNK, label.size - step)
            near = begin + np.flatnonzero(which[begin:end] != which[begin + step : end + step])
            pair = which[near].astype(np.intp) * (count + 1) + which[near + step]
            np.maximum.at(flat, pair, np.minimum(heights[near], heights[near + step]))
    one, other = np.nonzero(table[1:, 1:])
    return one, other, table[1:, 1:][one, other]


def _ends(part: Int[np.ndarray, "i j k"], count: int) -> tuple[Int[np.ndarray, "n 3"], Int[np.ndarray, "n 3"]]:
    """Return the first and the last voxel of parts 1 to `count` along each axis; beyond all for one without voxels."""
    low, high = np.full((3, count + 1), np.iinfo(np.int64).max), np.full((3, count + 1), -1, np.int64)
    if count * _CROWDED <= part.size:
        found = [(n, sides) for n, sides in enumerate(ndimage.find_objects(part, count), 1) if sides is not None]
        there = [n for n, _ in found]
        low[:, there] = np.array([[side.start for side in sides] for _, sides in found], np.int64).reshape(-1, 3).T
        high[:, there] = np.array([[side.stop - 1 for side in sides] for _, sides in found], np.int64).reshape(-1, 3).T
        return low[:, 1:].T, high[:, 1:].T
    for axis in range(3):
        slabs = np.ascontiguousarray(np.moveaxis(part, axis, 0))
        # What is written to one place last stays there.
        for n in range(len(slabs)):
            high[axis, slabs[n]] = n
        for n in reversed(range(len(slabs))):
            low[axis, slabs[n]] = n
    return low[:, 1:].T, high[:, 1:].T


def _labelled(level: UInt8[np.ndarray, "i j k"], touching: Bool[np.ndarray, "3 3 3"]) -> Iterator[Pieces]:
    """Yield the pieces of each level by labelling it, each where the one below it selected something."""
    whole, start = level, np.zeros(3, np.int64)
    for n in range(1, int(level.max()) + 1):
        box = around(whole >= n)
        if box is None:
            return
        whole = whole[box]
        start = start + [side.start for side in box]
        chosen = whole >= n
        labels, count = ndimage.label(chosen, touching)
        boxes = np.stack(_ends(labels, count), -1)
        yield Pieces(boxes + start[None, :, None], np.bincount(labels[chosen], minlength=count + 1)[1:])
