"""How alike two maps of one image are: for randomized weights, other seeds, other acquisitions.

A map that is constant, or nowhere defined, is degenerate: it is like nothing, and every similarity with it is NaN, not 0 or 1. Voxels where
one of the two is NaN count in neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata

from medcam.errors import GeometryError, UsageError

# Any two maps: that their shapes are the same is checked in words.
Map = Float[np.ndarray, "..."]
# Wang's window: a Gaussian of this width, cut at this radius.
_SIGMA, _RADIUS = 1.5, 5


@dataclass(frozen=True)
class Similarity:
    """How alike two maps are; NaN where that is undefined.

    Parameters
    ----------
    ssim
        Structural similarity of both maps scaled to 0..1, at most 1.
    spearman, spearman_absolute
        Rank correlation of the signed values, and of their magnitudes: a map turned into its negative is as like as can be in these.
    pearson
        Correlation.
    top_overlap
        Intersection over union of both maps' highest tenth of voxels; 0.053 by chance.
    shift_mm
        How far the centre of mass of the positive part moves.
    """

    ssim: float
    spearman: float
    spearman_absolute: float
    pearson: float
    top_overlap: float
    shift_mm: float


def similarity(first: Map, second: Map, *, spacing_mm: Sequence[float | int]) -> Similarity:
    """Return how alike two maps on one grid are.

    Raises
    ------
    GeometryError
        If their shapes differ, or there is not one spacing for each axis.
    """
    return Similarity(
        ssim(scaled(first), scaled(second), data_range=1.0),
        spearman(first, second),
        spearman(abs(first), abs(second)),
        pearson(first, second),
        top_overlap(first, second),
        shift_mm(first, second, spacing_mm=spacing_mm),
    )


def degenerate(relevance: Map) -> bool:
    """Tell whether a map says nothing: it has no number, or one number everywhere."""
    defined = relevance[np.isfinite(relevance)]
    return defined.size == 0 or bool(np.ptp(defined) == 0)


def scaled(relevance: Map) -> Map:
    """Return a map shifted and scaled to 0..1; NaN stays NaN, and a degenerate map becomes NaN."""
    if degenerate(relevance):
        return np.full(relevance.shape, np.nan)
    found = np.where(np.isfinite(relevance), relevance, np.nan).astype(np.float64)
    low, high = np.nanmin(found), np.nanmax(found)
    result: np.ndarray = (found - low) / (high - low)
    return result


def ssim(first: Map, second: Map, *, data_range: float | int) -> float:
    """Return the mean structural similarity, in windows that lie wholly inside (along axes of at least 11 voxels).

    Parameters
    ----------
    data_range
        Between the least and the greatest value that the maps may have: 1 for scaled maps. It has no default, since a wrong one moves the
        result unnoticed.

    Raises
    ------
    GeometryError
        If the shapes differ.
    UsageError
        If the range is not positive.

    References
    ----------
    Wang, Bovik, Sheikh and Simoncelli, Image quality assessment, IEEE TIP 2004, eq. 13, with K1 = 0.01 and K2 = 0.03.
    """
    if not data_range > 0:
        raise UsageError(f"a range of values is above 0, not {data_range}")
    both = _defined(first, second)
    if degenerate(first) or degenerate(second) or not both.any():
        return float("nan")
    x, y = (np.where(both, values, 0.0).astype(np.float64) for values in (first, second))
    mx, my, xx, yy, xy = (_windowed(values) for values in (x, y, x * x, y * y, x * y))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    alike = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2)
    alike /= (mx**2 + my**2 + c1) * (xx - mx**2 + yy - my**2 + c2)
    inner = tuple(slice(_RADIUS, n - _RADIUS) if n > 2 * _RADIUS else slice(None) for n in first.shape)
    kept = both[inner]
    return float(alike[inner][kept].mean()) if kept.any() else float("nan")


def pearson(first: Map, second: Map) -> float:
    """Return the correlation of two maps over the voxels where both are defined.

    Raises
    ------
    GeometryError
        If the shapes differ.
    """
    both = _defined(first, second)
    return _correlation(first[both].astype(np.float64), second[both].astype(np.float64))


def spearman(first: Map, second: Map) -> float:
    """Return the rank correlation of two maps over the voxels where both are defined; tied voxels share their mean rank.

    Raises
    ------
    GeometryError
        If the shapes differ.
    """
    both = _defined(first, second)
    return _correlation(rankdata(first[both]), rankdata(second[both]))


def top_overlap(first: Map, second: Map, *, share: float | int = 0.1) -> float:
    """Return intersection over union of both maps' highest voxels.

    Of voxels tied at the edge each counts by its chance to belong; so a map of two values is not all or nothing.

    Parameters
    ----------
    share
        Of the voxels, above 0 and at most 1.

    Raises
    ------
    GeometryError
        If the shapes differ.
    UsageError
        If the share is out of range.
    """
    if not 0 < share <= 1:
        raise UsageError(f"a share of the voxels lies above 0 and is at most 1, not {share}")
    both = _defined(first, second)
    one, other = first[both], second[both]
    if degenerate(one) or degenerate(other):
        return float("nan")
    a, b = _belongs(one, share), _belongs(other, share)
    shared = float((a * b).sum())
    return shared / (float(a.sum() + b.sum()) - shared)


def shift_mm(first: Map, second: Map, *, spacing_mm: Sequence[float | int]) -> float:
    """Return the distance between the centres of mass of both maps' positive parts; NaN where one has none.

    Raises
    ------
    GeometryError
        If the shapes differ, or there is not one spacing for each axis.
    """
    if len(spacing_mm) != first.ndim:
        raise GeometryError(f"{len(spacing_mm)} spacings were given for a map with {first.ndim} axes")
    both = _defined(first, second)
    apart = _centre(first, both) - _centre(second, both)
    return float(np.linalg.norm(apart * np.asarray(spacing_mm, np.float64)))


def _defined(first: Map, second: Map) -> np.ndarray:
    if first.shape != second.shape:
        raise GeometryError(
            f"maps of shapes {first.shape} and {second.shape} do not lie on one grid; resample one to the other"
        )
    both: np.ndarray = np.isfinite(first) & np.isfinite(second)
    return both


def _windowed(values: Map) -> Map:
    result: np.ndarray = gaussian_filter(values, _SIGMA, radius=_RADIUS, mode="nearest")
    return result


def _correlation(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    if x.size == 0 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def _belongs(values: Float[np.ndarray, " n"], share: float) -> Float[np.ndarray, " n"]:
    """Return each voxel's chance to be among the highest."""
    count = max(1, round(share * values.size))
    edge = np.partition(values, values.size - count)[values.size - count]
    above, tied = values > edge, values == edge
    chances: np.ndarray = above + tied * ((count - above.sum()) / tied.sum())
    return chances


def _centre(relevance: Map, both: np.ndarray) -> Float[np.ndarray, " d"]:
    mass = np.where(both, np.maximum(relevance, 0), 0.0).astype(np.float64)
    total = mass.sum()
    if not total > 0:
        return np.full(relevance.ndim, np.nan)
    axes = range(relevance.ndim)
    along = [mass.sum(tuple(other for other in axes if other != axis)) for axis in axes]
    centre: np.ndarray = np.array([part @ np.arange(part.size) for part in along]) / total
    return centre
