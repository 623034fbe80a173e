"""How much of what a map points at is lesion, and how much of the lesion it points at."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from medcam.validate.scene import Scene


class Overlap(NamedTuple):
    """Overlap of the selected voxels with the lesion: shares from 0 to 1, NaN where one is undefined.

    Selecting nothing has a Dice, IoU and recall of 0 and no precision. Without a lesion all are NaN.
    """

    dice: float
    iou: float
    precision: float
    recall: float
    selected_share: float


def selected(scene: Scene, cut: float) -> Bool[np.ndarray, "i j k"]:
    """Return the voxels of the domain with positive relevance that reaches a threshold; none for NaN."""
    if not cut > 0:
        chosen: np.ndarray = scene.positive > (0 if cut <= 0 else np.inf)
        return chosen
    reached: np.ndarray = scene.positive >= np.float32(cut)
    return reached


def overlap(scene: Scene, chosen: Bool[np.ndarray, "i j k"]) -> Overlap:
    """Return the overlap of selected voxels with the lesion.

    References
    ----------
    Maier-Hein et al., Metrics reloaded, Nature Methods 2024, supplement: Dice, IoU, PPV, sensitivity.
    """
    both, of_map, of_lesion = (
        int(np.count_nonzero(chosen & scene.lesion)),
        int(np.count_nonzero(chosen)),
        scene.lesion_voxels,
    )
    share = of_map / scene.domain_voxels if scene.domain_voxels else float("nan")
    if not of_lesion:
        none = float("nan")
        return Overlap(none, none, none, none, share)
    return Overlap(
        2 * both / (of_map + of_lesion),
        both / (of_map + of_lesion - both),
        both / of_map if of_map else float("nan"),
        both / of_lesion,
        share,
    )


def mass_in_lesion(scene: Scene) -> float:
    """Return the share of the map's positive relevance that lies in the lesion: the energy-based pointing game.

    Chance, for a map that is the same everywhere, is the prevalence. NaN without a lesion or without positive relevance.

    References
    ----------
    Wang et al., Score-CAM, CVPRW 2020, section 4.2; Arras et al. 2022, eq. 4. Positive relevance only, and no shift to a minimum of zero.
    """
    if not (scene.lesion_voxels and scene.mass > 0):
        return float("nan")
    return float(scene.positive[scene.lesion].sum(dtype=np.float64)) / scene.mass


def lift(value: float, chance: float) -> float:
    """Return how many times chance a share is: 1 is what a map without knowledge scores. NaN where either is undefined or chance is 0."""
    return value / chance if chance > 0 else float("nan")
