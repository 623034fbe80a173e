"""What tests of sending send, and how they read the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from formats.dicom_phantom import GEOMETRIES, write_series


def states(answer: Any) -> list[str]:
    """The state of each instance in a JSON answer, sorted."""
    return sorted(row["state"] for row in answer["instances"])


def random_series(folder: Path, count: int, *, side: int = 16, seed: str = "many") -> list[Path]:
    """Write so many slices of random pixels."""
    voxels = np.random.default_rng(3).integers(0, 4096, (side, side - 3, count)).astype(np.uint16)
    return write_series(folder, voxels, GEOMETRIES["oblique"], uid_seed=seed)
