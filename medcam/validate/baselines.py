"""What a map must beat: maps that know nothing of the network, scored like any other, and what chance scores in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Num
from scipy import ndimage

from medcam.errors import InputError
from medcam.validate.distances import LesionDistance, centre_mm
from medcam.validate.scene import Scene


def uniform(domain: Bool[np.ndarray, "i j k"]) -> Float32[np.ndarray, "i j k"]:
    """Return a map that is the same everywhere in the domain, and not looked at elsewhere."""
    same: np.ndarray = np.where(domain, np.float32(1), np.float32(np.nan))
    return same


def centre(
    domain: Bool[np.ndarray, "i j k"], *, spacing_mm: tuple[float, float, float]
) -> Float32[np.ndarray, "i j k"]:
    """Return a Gaussian around the middle of the domain, as wide along each axis as the domain itself (its standard deviation).

    Lesions lie near the middle more often than chance: on VOC07 the centre alone scores 69.6 % in the pointing game.
    """
    middle = centre_mm(domain, spacing_mm)
    map_ = np.ones(domain.shape, np.float32)
    for axis, n in enumerate(domain.shape):
        line = domain.sum(axis=tuple(a for a in range(3) if a != axis))
        away = np.arange(n) * spacing_mm[axis] - middle[axis]
        variance = (line * away**2).sum() / max(line.sum(), 1)
        shape = [-1 if a == axis else 1 for a in range(3)]
        map_ *= np.exp(-0.5 * away**2 / variance if variance > 0 else np.zeros(n)).astype(np.float32).reshape(shape)
    return np.where(domain, map_, np.float32(np.nan))


def brightness(image: Num[np.ndarray, "i j k"], domain: Bool[np.ndarray, "i j k"]) -> Float32[np.ndarray, "i j k"]:
    """Return the image itself, from 0 at the darkest voxel of the domain.

    A detector of bright spots hits most lesions on FLAIR and finds none on a T1: it shows what a hit is worth in these images.
    """
    values = _finite(image)
    low = values[domain].min(initial=np.inf)
    return np.where(domain, values - (low if np.isfinite(low) else 0), np.float32(np.nan))


def bright_spots(
    image: Num[np.ndarray, "i j k"],
    domain: Bool[np.ndarray, "i j k"],
    *,
    spacing_mm: tuple[float, float, float],
    width_mm: float,
) -> Float32[np.ndarray, "i j k"]:
    """Return the image's brightness smoothed over the domain, as smooth as a map of coarse cells: the simplest detector of lesions.

    Single bright voxels and thin rims spoil the brightness itself; a map that is not clearly better than this one has seen bright spots.

    Parameters
    ----------
    width_mm
        The Gaussian's standard deviation, such as half a cell of the map's layer.
    """
    values = np.where(domain, brightness(image, domain), np.float32(0))
    sigma = [width_mm / mm if n > 1 else 0.0 for mm, n in zip(spacing_mm, values.shape, strict=True)]
    smooth = ndimage.gaussian_filter(values, sigma, mode="constant")
    # What lies outside the domain is not dark, but unknown.
    weight = ndimage.gaussian_filter(domain.astype(np.float32), sigma, mode="constant")
    spots: np.ndarray = np.where(domain, smooth / np.maximum(weight, np.float32(1e-6)), np.float32(np.nan))
    return spots


def edges(
    image: Num[np.ndarray, "i j k"], domain: Bool[np.ndarray, "i j k"], *, spacing_mm: tuple[float, float, float]
) -> Float32[np.ndarray, "i j k"]:
    """Return the image's gradient magnitude per mm, smoothed over the largest spacing.

    References
    ----------
    Adebayo et al., Sanity checks for saliency maps, NeurIPS 2018, section 5.1 (the edge detector); Venkatesh et al. 2024 (the weak test).
    """
    values = _finite(image)
    wide = [axis for axis, n in enumerate(values.shape) if n > 1]
    scale = max((spacing_mm[axis] for axis in wide), default=1.0)
    sigma = [scale / spacing_mm[axis] if axis in wide else 0.0 for axis in range(3)]
    squares = np.zeros(values.shape, np.float32)
    for axis in wide:
        order = [int(a == axis) for a in range(3)]
        squares += (ndimage.gaussian_filter(values, sigma, order, mode="nearest") / np.float32(spacing_mm[axis])) ** 2
    return np.where(domain, np.sqrt(squares), np.float32(np.nan))


def _finite(image: np.ndarray) -> np.ndarray:
    values = np.asarray(image, np.float32)
    if not np.isfinite(values).all():
        raise InputError("the image holds values that are no numbers, so it makes no baseline")
    return values


def expected_of_uniform(
    scene: Scene, distance: LesionDistance | None, tolerances_mm: Sequence[float]
) -> Mapping[str, float]:
    """Return what a map that is the same everywhere in the domain scores, in closed form, by the names of the measures.

    NaN where the measures are. A hit within a distance is chance's share of the domain that lies so near.
    """
    p = scene.prevalence if scene.lesion_voxels else float("nan")
    chance = {"hit": p, "mass_in_lesion": p, "rank_accuracy": p, "average_precision": p}
    chance["auroc"] = 0.5 if 0 < scene.lesion_voxels < scene.domain_voxels else float("nan")
    chance |= {
        "dice": 2 * p / (1 + p),
        "iou": p,
        "precision": p,
        "recall": 1.0 if scene.lesion_voxels else float("nan"),
    }
    for tolerance in tolerances_mm:
        chance[f"hit_within_{tolerance:g}mm"] = distance.share_within(tolerance) if distance else float("nan")
    return chance
