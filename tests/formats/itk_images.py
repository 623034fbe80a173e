"""Grids in many orientations, and where SimpleITK, the referee of other formats' files, puts their voxels."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from conftest import oblique_grid
from medcam.geometry import Grid

GRIDS = {
    "oblique": oblique_grid((7, 9, 5)),
    "axial": Grid((7, 9, 5), np.diag([-1.5, -1.2, 3.0, 1.0])),
    "sagittal": Grid((9, 7, 5), np.array([[0, 0, 2.0, -20], [-1, 0, 0, 30], [0, -1.3, 0, 40], [0, 0, 0, 1]])),
    "flipped": Grid((6, 8, 7), np.diag([1.0, -2.0, 3.0, 1.0])),
    "one slice": oblique_grid((12, 15, 1)),
}


def counted(shape: tuple[int, ...], dtype: str = "i2") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def itk_image(data: np.ndarray, grid: Grid) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    axes = np.diag([-1, -1, 1]) @ grid.affine[:3, :3]
    image.SetSpacing(grid.spacing_mm)
    image.SetDirection((axes / np.array(grid.spacing_mm)).ravel())
    image.SetOrigin(np.diag([-1, -1, 1]) @ grid.affine[:3, 3])
    return image


def corners(shape: tuple[int, ...]) -> np.ndarray:
    return np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1).T


def itk_places(image: sitk.Image) -> np.ndarray:
    """Where SimpleITK puts the corners, RAS."""
    points = [image.TransformIndexToPhysicalPoint([int(n) for n in index]) for index in corners(image.GetSize())]
    return np.array(points) * [-1, -1, 1]
