"""Chance: the same lesion at random places of the same domain, under the same map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from medcam.validate.lesions import Piece, pieces
from medcam.validate.ranked import STEPS, Ranked, steps_of
from medcam.validate.scene import Scene, around

# Indices that are looked up together.
_BATCH = 2**18
# Places that are tried for each that is wanted, before the lesion is said to fit nowhere.
_TRIES = 200
# Voxels of a piece that are tried first.
_PROBE = 16


@dataclass(frozen=True)
class Null:
    """What a number is by chance.

    Parameters
    ----------
    observed
        The number with the lesion where it is.
    mean, sd
        Of the number over random places.
    p
        The share of places, the true one among them, that score as high: one-sided, and never 0.
    z
        How many standard deviations the number lies above the mean; NaN where it does not vary.
    """

    observed: float
    mean: float
    sd: float
    p: float
    z: float


@dataclass(frozen=True, eq=False)
class Moves:
    """Random places of a lesion: every piece of it moved on its own, wholly inside the domain, no two on one voxel.

    Parameters
    ----------
    start
        Flat indices of each piece's voxels.
    shifts
        For each draw what is added to them, one number a piece.
    """

    start: tuple[Int[np.ndarray, " _"], ...]
    shifts: Int[np.ndarray, "d p"]

    def batches(self) -> Iterator[Int[np.ndarray, "b v"]]:
        """Yield the flat indices of the moved lesions, some draws at a time."""
        size = max(1, _BATCH // sum(len(piece) for piece in self.start))
        for first in range(0, len(self.shifts), size):
            some = self.shifts[first : first + size]
            yield np.concatenate([piece + some[:, n, None] for n, piece in enumerate(self.start)], axis=1)


def moved(scene: Scene, *, draws: int, seed: int) -> Moves | None:
    """Move the lesion to random places of the domain; None without a lesion, or where it fits at too few places.

    A piece keeps its shape and its sides; places where it would leave the domain, or meet another piece, are drawn again.
    """
    parts, inside = pieces(scene, scene.lesion), around(scene.domain)
    if not parts or inside is None:
        return None
    generator = np.random.default_rng(seed)
    strides = np.array([scene.domain.shape[1] * scene.domain.shape[2], scene.domain.shape[2], 1])
    start = tuple(part.voxels @ strides for part in parts)
    kept, tried = np.zeros((0, len(parts)), np.int64), 0
    while len(kept) < draws:
        columns = [_places(scene, part, inside, draws, generator) for part in parts]
        if any(column is None for column in columns) or tried == 5:
            return None
        some = np.stack([column for column in columns if column is not None], 1) @ strides
        some -= np.array([_corner(part) @ strides for part in parts])
        kept, tried = np.concatenate([kept, some[_apart(Moves(start, some))]]), tried + 1
    return Moves(start, kept[:draws])


def _corner(part: Piece) -> np.ndarray:
    return np.array([low for low, _ in part.box])


def _places(
    scene: Scene, part: Piece, inside: Sequence[slice], draws: int, generator: np.random.Generator
) -> np.ndarray | None:
    """Return `draws` places for a piece's first corner, or None where too few of the tried ones lie in the domain."""
    shape = np.array([high - low + 1 for low, high in part.box])
    low, high = np.array([s.start for s in inside]), np.array([s.stop for s in inside]) - shape + 1
    if (high <= low).any():
        return None
    own = part.voxels - _corner(part)
    probe = own[generator.choice(len(own), min(_PROBE, len(own)), replace=False)]
    found: list[np.ndarray] = []
    for _ in range(_TRIES):
        corners = generator.integers(low, high, (draws, 3))
        corners = corners[_all_inside(scene.domain, corners, probe)]
        found.append(corners[_all_inside(scene.domain, corners, own)])
        if sum(map(len, found)) >= draws:
            return np.concatenate(found)[:draws]
    return None


def _all_inside(domain: Bool[np.ndarray, "i j k"], corners: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    size = max(1, _BATCH // len(voxels))
    parts = [
        domain[tuple(np.moveaxis(corners[n : n + size, None] + voxels, -1, 0))].all(1)
        for n in range(0, len(corners), size)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def _apart(moves: Moves) -> np.ndarray:
    """Tell for each draw whether no two pieces share a voxel."""
    if len(moves.start) == 1:
        return np.ones(len(moves.shifts), bool)
    sorted_ = (np.sort(batch, axis=1) for batch in moves.batches())
    return np.concatenate([(np.diff(batch, axis=1) > 0).all(1) for batch in sorted_])


def chance(
    scene: Scene, ranked: Ranked, moves: Moves | None, chosen: Mapping[str, Bool[np.ndarray, "i j k"]]
) -> Mapping[str, Null]:
    """Return what hit, mass in lesion, average precision, and Dice of each mask in `chosen` (by its name) are by chance.

    The average precision takes relevances for equal that share one of 65,536 steps up to the maximum. Empty where there are no moves.
    """
    if moves is None or not ranked.positive_voxels:
        return {}
    still = Moves(moves.start, np.zeros((1, len(moves.start)), np.int64))
    true, random = (_scores(scene, ranked, each, chosen) for each in (still, moves))
    return {name: _null(float(true[name][0]), values) for name, values in random.items()}


def _scores(
    scene: Scene, ranked: Ranked, moves: Moves, chosen: Mapping[str, Bool[np.ndarray, "i j k"]]
) -> dict[str, Float[np.ndarray, " d"]]:
    flat = scene.positive.reshape(-1)
    top = np.float32(ranked.maximum)
    tied = int(np.count_nonzero(flat == top))
    reach = ranked.steps[::-1].cumsum()[::-1]
    masks = {name: (mask.reshape(-1), int(np.count_nonzero(mask))) for name, mask in chosen.items()}
    names = ["hit", "mass_in_lesion", "average_precision", *(f"dice@{name}" for name in masks)]
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for batch in moves.batches():
        values = flat[batch]
        found["hit"].append((values == top).sum(1) / tied)
        found["mass_in_lesion"].append(values.sum(1, dtype=np.float64) / scene.mass)
        found["average_precision"].append(_precision(steps_of(values, ranked.maximum), reach))
        for name, (mask, size) in masks.items():
            found[f"dice@{name}"].append(2 * mask[batch].sum(1) / (size + batch.shape[1]))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _precision(steps: Int[np.ndarray, "b v"], reach: Int[np.ndarray, " s"]) -> np.ndarray:
    """Return each draw's average precision, given how many voxels of the domain reach each step."""
    result = np.empty(len(steps))
    for n, own in enumerate(steps):
        counts = np.bincount(own, minlength=STEPS)[::-1]
        at = np.flatnonzero(counts)
        result[n] = (counts[at] * counts[at].cumsum() / reach[::-1][at]).sum() / len(own)
    return result


def _null(observed: float, values: Float[np.ndarray, " d"]) -> Null:
    mean, sd = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0
    # The same sum in another order is the same number.
    rounding = 1e-12 * abs(observed)
    as_high = int(np.count_nonzero(values >= observed - rounding))
    z = (observed - mean) / sd if sd > rounding else float("nan")
    return Null(observed, mean, sd, (1 + as_high) / (1 + len(values)), z)
