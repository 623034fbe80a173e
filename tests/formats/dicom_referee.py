"""The referee: what dcm2niix makes of a folder, to be held against what medcam reads."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medcam.volume import Volume


def dcm2niix() -> str:
    """Return the path of dcm2niix: on the PATH, or in the PyPI package."""
    if found := shutil.which("dcm2niix"):
        return found
    return str(pytest.importorskip("dcm2niix", reason="dcm2niix is not installed").bin)


def canonical(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the same voxels in nibabel's nearest-to-RAS axis order."""
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(np.asarray(voxels, np.float32), affine))
    return np.asarray(image.dataobj), image.affine


def is_same_image(volume: Volume, voxels: np.ndarray, affine: np.ndarray) -> bool:
    """Tell whether both say the same of every point: equal voxels, and corners within a micrometre of each other."""
    found, found_affine = canonical(volume.voxels, volume.grid.affine)
    expected, expected_affine = canonical(voxels, affine)
    if found.shape != expected.shape:
        return False
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in found.shape])).reshape(3, -1)
    corners = np.vstack([corners, np.ones(corners.shape[1])])
    # NIfTI holds slopes and affines in 32 bits.
    close = np.allclose(found_affine @ corners, expected_affine @ corners, rtol=0, atol=1e-3)
    return close and np.allclose(found, expected, rtol=2e-6, atol=1e-6)


def converted(folder: Path, out: Path) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Return the volumes that dcm2niix finds, 3D each, by the name of its file; without resampled copies and overlays."""
    out.mkdir(parents=True)
    # -p n: rescaled by the standard elements, as they stand; -m y: one file a series whatever its slices say.
    options = ["-z", "n", "-b", "n", "-m", "y", "-p", "n", "-f", "out%s_%d"]
    subprocess.run([dcm2niix(), *options, "-o", str(out), str(folder)], check=True, capture_output=True)
    found = {}
    for path in sorted(out.glob("*.nii")):
        if not any(words in path.name for words in ("_Tilt", "_Eq", "_ROI")):
            image = nibabel.load(path)
            voxels = np.asarray(image.dataobj)
            voxels = voxels.reshape(*voxels.shape, *(1,) * (4 - voxels.ndim))
            found[path.stem] = [(voxels[..., t], image.affine) for t in range(voxels.shape[3])]
    return found
