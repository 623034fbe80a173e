"""Outputs of networks made up, and what is in them by plain loops."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medcam.engine.targets import Unsettled

Voxel = tuple[int, ...]
SIDES = (7, 9, 5)


def classifier(classes: int = 5, batch: int = 3) -> Tensor:
    return torch.randn(batch, classes, dtype=torch.float64).requires_grad_()


def segmentation(dims: int, classes: int = 3, batch: int = 3) -> Tensor:
    """Samples of few islands of every class: scores are noise, and 6 higher where the class stands."""
    sides = SIDES[:dims]
    logits = torch.randn(batch, classes, *sides, dtype=torch.float64)
    logits[:, 0] += 3
    for n, c in itertools.product(range(batch), range(1, classes)):
        for _ in range(3):
            corner = [int(torch.randint(0, side - 1, ())) for side in sides]
            block = tuple(slice(at, at + int(torch.randint(1, 3, ()))) for at in corner)
            logits[(n, c, *block)] += 6 + 3 * torch.rand(())
    return logits.requires_grad_()


def softmax(row: np.ndarray) -> np.ndarray:
    e = np.exp(row - row.max(0))
    return e / e.sum(0)


def sigmoid(row: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-row))


def scores_of(target: Unsettled, output: Any) -> np.ndarray:
    return target.settled(output)(output).detach().numpy()


def labels_of(z: np.ndarray, c: int) -> set[Voxel]:
    """The voxels where class c has the largest score."""
    return set(zip(*map(np.ndarray.tolist, np.nonzero(z.argmax(0) == c)), strict=True))


def neighbours(place: Voxel, radius: tuple[int, ...]) -> Iterator[Voxel]:
    for step in itertools.product(*(range(-r, r + 1) for r in radius)):
        yield tuple(a + s for a, s in zip(place, step, strict=True))


def components(voxels: set[Voxel]) -> list[set[Voxel]]:
    """Connected parts by flood fill, the largest first."""
    left, found = sorted(voxels), []
    while left:
        part, queue = set(), deque([left[0]])
        while queue:
            place = queue.popleft()
            if place in voxels and place not in part:
                part.add(place)
                queue.extend(neighbours(place, (1,) * len(place)))
        found.append(part)
        left = [place for place in left if place not in part]
    return sorted(found, key=len, reverse=True)


def band(voxels: set[Voxel], sides: tuple[int, ...], radius: tuple[int, ...]) -> set[Voxel]:
    """Voxels that have, within the image, both kinds of voxels near."""
    found = set()
    for place in np.ndindex(*sides):
        near = [q for q in neighbours(place, radius) if all(0 <= a < s for a, s in zip(q, sides, strict=True))]
        if any(q in voxels for q in near) and any(q not in voxels for q in near):
            found.add(place)
    return found


def everywhere(z: np.ndarray) -> set[Voxel]:
    return set(np.ndindex(*z.shape[1:]))


@functools.cache
def _distinct(dims: int) -> Tensor:
    while True:
        output = segmentation(dims).detach()
        sizes = [[len(part) for part in components(labels_of(z, 1))] for z in output.numpy()]
        if all(len(s) > 1 and len(set(s)) == len(s) for s in sizes):
            return output


def distinct(dims: int) -> Tensor:
    """A segmentation in which class 1 has components of different sizes in each sample, and at least two."""
    return _distinct(dims).clone().requires_grad_()
