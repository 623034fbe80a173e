"""What tests share: the folder of real images, and made-up grids and volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medcam.geometry import Grid
from medcam.volume import Source, Volume

# Tensors of tests are small: several threads would wait for each other longer than they compute.
torch.set_num_threads(1)

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images beside the project."""
    if not SHARED.is_dir():
        pytest.skip("the folder of real images, ../shared/data, is not here")
    return SHARED


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)


def oblique_grid(
    shape: tuple[int, int, int] = (31, 37, 23),
    spacing: tuple[float, float, float] = (1.2, 0.9, 2.4),
    *,
    frame: str | None = None,
) -> Grid:
    """A grid turned about all three axes, left-handed like axial DICOM, and nowhere near the origin."""
    a, b, c = np.deg2rad([11.0, -7.0, 23.0])
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = x @ y @ z @ np.diag([-1, -1, 1]) @ np.diag(spacing)
    affine[:3, 3] = (31.0, 44.0, -12.0)
    return Grid(shape, affine, frame)


def blob(grid: Grid, centre_mm: np.ndarray, width_mm: float = 4.0) -> np.ndarray:
    """A Gaussian of height 1 around a point, float32 on the grid."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    apart = np.linalg.norm(grid.world_mm(index) - centre_mm, axis=-1)
    return np.exp(-0.5 * (apart / width_mm) ** 2).astype(np.float32)


def made_volume(voxels: np.ndarray, grid: Grid) -> Volume:
    """A volume that came from nowhere."""
    return Volume(voxels, grid, "a.u.", Source("array", "0" * 64))
