"""Slices that do not make a regular grid -> an even, orthogonal one, on request only: the values are interpolated.

Planes of a tilted but even series stay where they are and are shifted within themselves; between uneven planes the two
nearest are blended. Nothing is blended across more than two planes, and nothing is extrapolated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from medcam.formats.dicom_plane import Plane, ras_affine
from medcam.geometry import Grid, resample

# Positions nearer than this share of a step are one.
_SAME_SHARE = 1e-3
# In-plane offsets below this part of a pixel need no more columns or rows.
_SAME_PIXEL = 1e-3


def even_grid(pile: Sequence[Plane], steps: int | None) -> tuple[Grid, tuple[str, ...]]:
    """Return an orthogonal grid from the first to the last slice that holds every pixel, and what to tell about it.

    Parameters
    ----------
    pile
        Parallel slices, sorted along their normal.
    steps
        How many even steps lead from the first to the last. None where the slices are uneven: then steps are as short as
        the shortest between neighbours, but no shorter than a pixel.
    """
    first, normal = pile[0], pile[0].normal
    offsets = np.array([each.position - first.position for each in pile])
    span = float(offsets[-1] @ normal)
    uneven = steps is None
    if steps is None:
        shortest = max(float(np.diff(offsets @ normal).min()), float(first.spacing.min()))
        steps = max(1, int(np.ceil(span / shortest - _SAME_SHARE)))
    # How far each slice is shifted within its plane, in columns and rows.
    shifts = offsets @ first.directions.T / first.spacing[::-1]
    low = np.floor(shifts.min(axis=0) + _SAME_PIXEL)
    extra = np.ceil(shifts.max(axis=0) - _SAME_PIXEL) - low
    origin = first.position + (low * first.spacing[::-1]) @ first.directions
    affine = ras_affine(first.directions, first.spacing, normal * span / steps, origin)
    shape = (first.size[0] + int(extra[0]), first.size[1] + int(extra[1]), steps + 1)
    far = float(np.abs(shifts * first.spacing[::-1]).max())
    kind = "uneven" if uneven else "tilted"
    missing = 0 if uneven else steps + 1 - len(pile)
    gaps = f" ({missing} missing in the series)" if missing > 0 else ""
    note = (
        f"regrid: {len(pile)} {kind} slices{gaps} were resampled onto {steps + 1} even ones, {span / steps:.3f} mm apart, and "
        f"shifted within their planes by up to {far:.1f} mm; voxels that no slice reaches have the lowest value"
    )
    return Grid(shape, affine, first.frame_of_reference), (note,)


def resampled(voxels: Float32[np.ndarray, "n j i"], stored: Sequence[Grid], grid: Grid) -> Float32[np.ndarray, "k y x"]:
    """Return the values of each slice of the grid, blended from the two nearest slices that were read.

    Parameters
    ----------
    voxels, stored
        The slices that were read, rows first, and where each lies.
    """
    columns, rows, count = grid.shape
    result = np.empty((count, rows, columns), np.float32)
    step = grid.affine[:3, 2]
    places = np.array([(one.affine[:3, 3] - grid.affine[:3, 3]) @ step / (step @ step) for one in stored])
    for k in range(count):
        onto = _slice_of(grid, k)
        after = int(np.clip(np.searchsorted(places, k), 1, len(places) - 1))
        share = float(np.clip((k - places[after - 1]) / (places[after] - places[after - 1]), 0, 1))
        low, high = (_moved(voxels[n], stored[n], onto) for n in (after - 1, after))
        if share < _SAME_SHARE or share > 1 - _SAME_SHARE:
            result[k] = low if share < 0.5 else high
        else:
            blended = low * np.float32(1 - share) + high * np.float32(share)
            result[k] = np.where(np.isnan(blended), np.where(np.isnan(low), high, low), blended)
    result[np.isnan(result)] = voxels.min()
    return result


def _slice_of(grid: Grid, k: int) -> Grid:
    affine = grid.affine.copy()
    affine[:3, 3] = grid.world_mm(np.array([0, 0, k]))
    return Grid((*grid.shape[:2], 1), affine, grid.frame_of_reference)


def _moved(pixels: Float32[np.ndarray, "j i"], stored: Grid, onto: Grid) -> Float32[np.ndarray, "y x"]:
    """Return a slice as if it lay in the plane of another, shifted within it; NaN where it does not reach."""
    affine = onto.affine.copy()
    normal = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
    offset = stored.affine[:3, 3] - affine[:3, 3]
    affine[:3, 3] += offset - (offset @ normal) * normal
    in_plane = Grid(stored.shape, affine, onto.frame_of_reference)
    return np.asarray(resample(pixels.T[:, :, None], in_plane, onto)[:, :, 0].T)
