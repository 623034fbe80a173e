"""What the viewer shows, as small NIfTI files: closest to R, A, S axes, since a viewer's idea of other orders is no safe ground."""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass

import nibabel
import numpy as np
from jaxtyping import Bool, Num
from scipy.ndimage import binary_erosion

from medcam.geometry import Grid, resample
from medcam.volume import Heatmap, Volume

# A page is sent by mail and opened on a laptop: a larger image is shown in larger voxels, and the page says so.
_MOST_VOXELS = 12_000_000
# Slices are thick that step by so many times the coarser spacing within them.
_THICK = 1.5


@dataclass(frozen=True)
class Shown:
    """A grid to show an image on; where its voxels are larger than the image's, they stand for the mean of what they cover.

    Parameters
    ----------
    factors
        How many voxels of the image along i, j, k one shown voxel stands for.
    """

    grid: Grid
    factors: tuple[int, int, int]


def shown_grid(grid: Grid, most_voxels: int = _MOST_VOXELS) -> Shown:
    """Return the grid itself, or one of larger voxels where it has too many for a page: the finest axes are made coarser first."""
    factors = [1, 1, 1]
    while math.prod(math.ceil(n / f) for n, f in zip(grid.shape, factors, strict=True)) > most_voxels:
        sizes = [f * mm if n > f else math.inf for n, f, mm in zip(grid.shape, factors, grid.spacing_mm, strict=True)]
        factors[int(np.argmin(sizes))] += 1
    i, j, k = factors
    shape = (math.ceil(grid.shape[0] / i), math.ceil(grid.shape[1] / j), math.ceil(grid.shape[2] / k))
    return Shown(
        grid.coarsened(shape, (float(i), float(j), float(k)), ((i - 1) / 2, (j - 1) / 2, (k - 1) / 2)), (i, j, k)
    )


def image_layer(volume: Volume, shown: Shown) -> bytes:
    """Return the image as gzipped NIfTI of 16 bits, scaled back to its values to within one part in 65,000 of their range."""
    values = _averaged(np.nan_to_num(volume.voxels.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0), shown)
    low, high = float(values.min()), float(values.max())
    slope = (high - low) / 65535 or 1.0
    stored = np.rint((values - low) / slope - 32768).astype(np.int16)
    return _nifti(stored, shown.grid, slope, low + 32768 * slope)


def heatmap_layer(heatmap: Heatmap, shown: Shown) -> bytes:
    """Return the positive relevance as a share of its maximum, 255 steps; the rest, and what was not looked at, is 0."""
    maximum = heatmap.maximum if heatmap.maximum > 0 else 1.0
    share = np.clip(np.nan_to_num(heatmap.relevance, nan=0.0) / np.float32(maximum), 0, 1)
    return _nifti(np.rint(255 * _largest(share, shown)).astype(np.uint8), shown.grid, 1 / 255, 0.0)


def outline_layer(mask: Bool[np.ndarray, "i j k"], shown: Shown) -> bytes:
    """Return the voxels of a mask that touch its outside: 1, else 0.

    Across thick slices nothing touches: a lesion's first and last slice would be all outline.
    """
    inside = _largest(mask.astype(np.uint8), shown) > 0
    footprint = np.zeros((3, 3, 3), bool)
    footprint[1, 1, 1] = True
    thick = [mm > _THICK * sorted(shown.grid.spacing_mm)[1] for mm in shown.grid.spacing_mm]
    for axis in range(3):
        if inside.shape[axis] > 1 and not thick[axis]:
            for side in (0, 2):
                footprint[tuple(side if a == axis else 1 for a in range(3))] = True
    core = binary_erosion(inside, footprint, border_value=True)
    return _nifti((inside & ~core).astype(np.uint8), shown.grid, 1.0, 0.0)


def on_grid(lesion: Volume, grid: Grid) -> Bool[np.ndarray, "i j k"]:
    """Return a mask on another grid, by the nearest voxel."""
    if lesion.grid == grid:
        return np.asarray(lesion.voxels > 0.5)
    return np.asarray(resample(lesion.voxels, lesion.grid, grid, nearest=True, outside=0.0) > 0.5)


def _blocks(values: Num[np.ndarray, "i j k"], shown: Shown) -> Num[np.ndarray, "x a y b z c"]:
    """Return the values with each axis split into shown voxels and what they stand for; the last ones repeat the edge."""
    pads = [(0, n * f - m) for n, f, m in zip(shown.grid.shape, shown.factors, values.shape, strict=True)]
    whole = np.pad(values, pads, mode="edge") if any(b for _, b in pads) else values
    sides = [side for n, f in zip(shown.grid.shape, shown.factors, strict=True) for side in (n, f)]
    return whole.reshape(sides)


def _averaged(values: np.ndarray, shown: Shown) -> np.ndarray:
    if shown.factors == (1, 1, 1):
        return values
    return np.asarray(_blocks(values, shown).mean(axis=(1, 3, 5), dtype=np.float32))


def _largest(values: np.ndarray, shown: Shown) -> np.ndarray:
    # A small peak or lesion must not fade because the page is small.
    return values if shown.factors == (1, 1, 1) else np.asarray(_blocks(values, shown).max(axis=(1, 3, 5)))


def _nifti(stored: np.ndarray, grid: Grid, slope: float, intercept: float) -> bytes:
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(stored, grid.affine))
    image = nibabel.Nifti1Image(np.asanyarray(image.dataobj), image.affine)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, intercept)
    image.set_sform(image.affine, 1)
    image.set_qform(None, 0)
    # The same page from the same case, whenever it is made.
    return gzip.compress(image.to_bytes(), 6, mtime=0)
