"""What is compared: one map, its lesion, and the voxels where both count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np
from jaxtyping import Bool, Float, Num

from medcam.errors import InputError


@dataclass(frozen=True, eq=False)
class Scene:
    """A map and a lesion on one grid, over the domain: the voxels that were looked at, inside the organ or body if one is given.

    Nothing outside the domain is counted, for the map or against it; how much of the lesion that leaves out is told. Negative relevance
    speaks against the target and counts as none.

    Parameters
    ----------
    relevance
        Raw and signed, float32; NaN was not looked at.
    mask
        The lesion as it was drawn.
    spacing_mm
        Distance between voxel centres along each axis.
    organ
        The voxels that may count, or None for all.

    Raises
    ------
    InputError
        If the shapes differ, a value is infinite, or a spacing is not positive.
    """

    relevance: Num[np.ndarray, "i j k"]
    # Another shape is refused in words.
    mask: Bool[np.ndarray, "_ _ _"]
    spacing_mm: tuple[float, float, float]
    organ: Bool[np.ndarray, "_ _ _"] | None = None
    domain: Bool[np.ndarray, "i j k"] = field(init=False, repr=False)
    positive: Float[np.ndarray, "i j k"] = field(init=False, repr=False)
    lesion: Bool[np.ndarray, "i j k"] = field(init=False, repr=False)
    domain_voxels: int = field(init=False)
    lesion_voxels: int = field(init=False)

    def __post_init__(self) -> None:
        relevance = np.ascontiguousarray(self.relevance, np.float32)
        mask = np.ascontiguousarray(self.mask, bool)
        _check(relevance, mask, self.spacing_mm, self.organ)
        low, high = (relevance.min(), relevance.max()) if relevance.size else (np.nan, np.nan)
        all_seen = not np.isnan(low)
        domain = np.ones(relevance.shape, bool) if all_seen else ~np.isnan(relevance)
        if self.organ is not None:
            domain &= self.organ
        if not (all_seen and self.organ is None):
            relevance_seen = np.where(domain, relevance, np.float32(0))
            low, high = relevance_seen.min(), relevance_seen.max()
        else:
            relevance_seen = relevance
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError("the map holds infinite relevance, which no measure can rank; make the map again")
        positive = np.maximum(relevance_seen, np.float32(0)) if low < 0 else relevance_seen
        for name, value in (
            ("relevance", relevance),
            ("mask", mask),
            ("domain", domain),
            ("positive", positive),
            ("lesion", mask & domain),
        ):
            value = value.view()
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        object.__setattr__(self, "domain_voxels", int(np.count_nonzero(domain)))
        object.__setattr__(self, "lesion_voxels", int(np.count_nonzero(self.lesion)))

    @cached_property
    def maximum(self) -> float:
        """The largest relevance in the domain, 0 where none is positive."""
        return float(self.positive.max())

    @property
    def prevalence(self) -> float:
        """The lesion's share of the domain: what chance scores in most measures. NaN where nothing was looked at."""
        return self.lesion_voxels / self.domain_voxels if self.domain_voxels else float("nan")

    @cached_property
    def lesion_left_out(self) -> float:
        """The share of the drawn lesion that lies outside the domain; NaN for an empty mask."""
        drawn = int(np.count_nonzero(self.mask))
        return 1 - self.lesion_voxels / drawn if drawn else float("nan")

    @cached_property
    def negative_share(self) -> float:
        """The share of all absolute relevance in the domain that is negative and so counts as none; NaN where all is zero."""
        total = float(
            np.abs(self.relevance, where=self.domain, out=np.zeros_like(self.relevance)).sum(dtype=np.float64)
        )
        return 1 - self.mass / total if total else float("nan")

    @cached_property
    def mass(self) -> float:
        """The sum of all positive relevance in the domain."""
        return float(self.positive.sum(dtype=np.float64))

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes along which there is more than one voxel: a film has two."""
        return tuple(axis for axis, n in enumerate(self.relevance.shape) if n > 1)

    @property
    def voxel_size(self) -> float:
        """The size of a voxel in mL, or in cm² where the image is one slice thick."""
        flat = self.relevance.shape[2] == 1
        spacing = self.spacing_mm[:2] if flat else self.spacing_mm
        return prod(spacing) / (100 if flat else 1000)

    @property
    def size_unit(self) -> str:
        """'mL', or 'cm2' where the image is one slice thick."""
        return "cm2" if self.relevance.shape[2] == 1 else "mL"

    def why_nothing(self) -> str:
        """Say why no measure of this lesion is defined; empty where they are."""
        if not self.domain_voxels:
            return "nothing was looked at"
        if not self.mask.any():
            return "the lesion mask is empty"
        return "" if self.lesion_voxels else "the lesion lies outside what was looked at"


def _check(relevance: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float], organ: np.ndarray | None) -> None:
    if relevance.ndim != 3 or mask.shape != relevance.shape or (organ is not None and organ.shape != relevance.shape):
        shapes = [relevance.shape, mask.shape, *([] if organ is None else [organ.shape])]
        raise InputError(
            f"the map, the lesion mask and the organ mask must have one shape of three axes, not {', '.join(map(str, shapes))}; "
            "a film has k = 1"
        )
    if len(spacing_mm) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing_mm):
        raise InputError(
            f"the spacing is three distances above 0 in mm, one along each axis, not {tuple(map(float, spacing_mm))}"
        )


def around(mask: Bool[np.ndarray, "i j k"], margin: Sequence[int] = (0, 0, 0)) -> tuple[slice, slice, slice] | None:
    """Return the smallest box of slices around what is True, widened by a margin of voxels within the array; None if nothing is."""
    found = []
    for axis, n in enumerate(mask.shape):
        line = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if not line.size:
            return None
        found.append(slice(max(0, int(line[0]) - margin[axis]), min(n, int(line[-1]) + 1 + margin[axis])))
    return found[0], found[1], found[2]
