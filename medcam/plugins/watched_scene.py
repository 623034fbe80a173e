"""The images that are watched, one by one: their voxels, where these lie if that is known, and the lesion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32
from torch import Tensor

from medcam.errors import UsageError
from medcam.geometry import Grid


@dataclass(frozen=True, eq=False)
class Scene:
    """One image that is watched.

    Parameters
    ----------
    voxels
        The channel that is drawn.
    grid
        Where the voxels lie; of an image whose affine is not known, the grid of its indices. A 2D image has k = 1.
    placed
        Whether the affine is known, so that letters and millimetres may be shown.
    lesion
        Where the finding lies, or None.
    """

    name: str
    voxels: Float32[np.ndarray, "*s"]
    grid: Grid
    placed: bool
    lesion: Bool[np.ndarray, "*s"] | None

    def world_mm(self, voxel: tuple[int, ...]) -> tuple[float, float, float]:
        """Return where a voxel lies, RAS+ mm."""
        x, y, z = (float(mm) for mm in self.grid.world_mm(np.array((*voxel, 0)[:3])))
        return x, y, z

    def distance(self, first: tuple[int, ...] | None, second: tuple[int, ...] | None) -> float:
        """Return how far two voxels are apart: mm, or voxels where the affine is not known; NaN if one is None."""
        if first is None or second is None:
            return float("nan")
        return float(np.linalg.norm(np.subtract(self.world_mm(first), self.world_mm(second))))


def scenes_of(
    images: Tensor,
    *,
    lesions: Tensor | np.ndarray | None = None,
    affines: Sequence[np.ndarray] | None = None,
    names: Sequence[str] = (),
    channel: int = 0,
) -> tuple[Scene, ...]:
    """Return the images of a batch, `b c i j` or `b c i j k`; a MetaTensor's own affines are used where none are given.

    Raises
    ------
    UsageError
        If the images are not such a batch, or lesions, affines, names or the channel do not fit them.
    """
    if not isinstance(images, Tensor) or images.ndim not in (4, 5) or not len(images):
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise UsageError(f"images to watch are a tensor b c i j or b c i j k with at least one image, not {shape}")
    if not 0 <= channel < images.shape[1]:
        raise UsageError(f"the images have channels 0 to {images.shape[1] - 1}, so channel {channel} cannot be drawn")
    count, shape = len(images), tuple(images.shape[2:])
    if names and len(names) != count:
        raise UsageError(f"{len(names)} names were given for {count} images")
    i, j, k = (*shape, 1)[:3]
    found = [None] * count if affines is None and not hasattr(images, "affine") else _affines(images, affines)
    masks = [None] * count if lesions is None else list(_masks(lesions, count, shape))
    voxels = images.detach().as_subclass(Tensor)[:, channel].float().cpu().numpy()
    return tuple(
        Scene(
            names[n] if names else f"image {n}", voxels[n], Grid((i, j, k), np.eye(4) if affine is None else affine),
            affine is not None, mask,
        )
        for n, (affine, mask) in enumerate(zip(found, masks, strict=True))
    )  # fmt: skip


def _affines(images: Tensor, given: Sequence[np.ndarray] | None) -> list[np.ndarray | None]:
    """Return an affine for each image, or None where it is the identity, which MONAI has where nothing is known."""
    count = len(images)
    if given is None:
        own = np.asarray(images.affine, np.float64)  # type: ignore[attr-defined]
        given = list(own) if own.ndim == 3 else [own] * count
    if len(given) != count:
        raise UsageError(f"{len(given)} affines were given for {count} images")
    every = [_in_space(np.asarray(affine, np.float64)) for affine in given]
    return [None if np.array_equal(affine, np.eye(4)) else affine for affine in every]


def _in_space(affine: np.ndarray) -> np.ndarray:
    """Return a 4 x 4 affine; that of a 2D image may be 3 x 3."""
    if affine.shape != (3, 3):
        return affine
    wide = np.eye(4)
    wide[:2, :2], wide[:2, 3] = affine[:2, :2], affine[:2, 2]
    return wide


def _masks(lesions: Tensor | np.ndarray, count: int, shape: tuple[int, ...]) -> np.ndarray:
    plain = lesions.detach().as_subclass(Tensor).cpu().numpy() if isinstance(lesions, Tensor) else np.asarray(lesions)
    if plain.shape == (count, 1, *shape):
        plain = plain[:, 0]
    if plain.shape != (count, *shape):
        raise UsageError(
            f"lesions of shape {plain.shape} do not fit {count} images of shape {shape}; one mask for each is expected"
        )
    masks: np.ndarray = plain > 0.5
    return masks
