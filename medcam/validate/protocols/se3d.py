"""SE3D: Max3DBoxAcc, its second version, VxAP, MaxF1 and mass concentration of volumes, as its code counts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from scipy import ndimage

from medcam.errors import InputError
from medcam.validate.boxes import boxes_iou
from medcam.validate.nested import pieces_at_levels
from medcam.validate.protocols.planes import eight_bit, min_max
from medcam.validate.protocols.wsol import box_accuracies, histograms, pooled_precision

THRESHOLDS = np.arange(0, 1, 0.01)
F1_THRESHOLDS = np.linspace(0, 1, 100)
# Voxels that share an edge are one piece, those that share only a corner are not.
_EIGHTEEN = ndimage.generate_binary_structure(3, 2)
_ORIGIN = np.zeros((1, 3, 2), np.int64)


@dataclass(frozen=True, eq=False)
class Case:
    """What the framework adds up of one volume.

    Parameters
    ----------
    largest, any_piece
        The best IoU of boxes at each threshold: of the largest piece's with the largest lesion's, and of any with any.
    inside, outside
        Voxels of the mask and others in each bin of the map.
    f1_hits, f1_selected, lesion_voxels
        Of each threshold of MaxF1, and of the mask.
    mass_first, mass_last, lesion_first
        The map's sum in each half along its longest axis, and whether the lesion lies in the first; NaN and None where it lies in both.
    """

    largest: Float[np.ndarray, " t"]
    any_piece: Float[np.ndarray, " t"]
    inside: Int[np.ndarray, " b"]
    outside: Int[np.ndarray, " b"]
    f1_hits: Int[np.ndarray, " f"]
    f1_selected: Int[np.ndarray, " f"]
    lesion_voxels: int
    mass_first: float
    mass_last: float
    lesion_first: bool | None


def case(relevance: Num[np.ndarray, "i j k"], lesion: Bool[np.ndarray, "i j k"]) -> Case:
    """Count one volume, its map stretched from 0 to 1 first. An empty mask counts as a box at the origin.

    Raises
    ------
    InputError
        If the map was not looked at everywhere.
    """
    return stretched_case(min_max(np.asarray(relevance, np.float32), "se3d"), lesion)


def stretched_case(stretched: Float[np.ndarray, "i j k"], lesion: Bool[np.ndarray, "i j k"]) -> Case:
    """Count one volume whose map lies between 0 and 1 and is taken as it is."""
    grey = eight_bit(stretched)
    top = int(grey.max())
    truth, biggest = _boxes(lesion)
    curves = np.zeros((2, len(THRESHOLDS)))
    # A map of one value is stretched to 0 and selects nothing: its box is the one at the origin.
    level = np.searchsorted(THRESHOLDS * top, np.arange(256), "left").astype(np.uint8)[grey]
    found = (pieces.boxes for pieces in pieces_at_levels(level, _EIGHTEEN)) if top else [_ORIGIN] * len(THRESHOLDS)
    for n, boxes in enumerate(found):
        fit = boxes_iou(boxes, truth)
        curves[:, n] = fit[_largest(boxes), biggest], fit.max()
    first, last, side = _halves(stretched, lesion)
    return Case(
        curves[0],
        curves[1],
        *histograms(stretched, lesion, THRESHOLDS),
        _reaching(stretched[lesion]),
        _reaching(stretched.ravel()),
        int(np.count_nonzero(lesion)),
        first,
        last,
        side,
    )


def _boxes(mask: Bool[np.ndarray, "i j k"]) -> tuple[Int[np.ndarray, "n 3 2"], int]:
    """Return the boxes around a mask's pieces, and which of them is the largest."""
    found = next(pieces_at_levels(mask.astype(np.uint8), _EIGHTEEN), None)
    boxes = _ORIGIN if found is None else found.boxes
    return boxes, _largest(boxes)


def _largest(boxes: Int[np.ndarray, "n 3 2"]) -> int:
    """Return which box is the largest by the product of last minus first voxels, the first of equal ones.

    A piece one voxel thick has a size of 0, whatever its other sides.
    """
    return int(np.argmax((boxes[..., 1] - boxes[..., 0]).prod(1)))


def _reaching(values: Float[np.ndarray, " v"]) -> Int[np.ndarray, " f"]:
    """Return how many values reach each threshold of MaxF1, in single precision."""
    passed = np.searchsorted(F1_THRESHOLDS.astype(np.float32), values.astype(np.float32), "right")
    counts: np.ndarray = np.bincount(passed, minlength=len(F1_THRESHOLDS) + 1)[::-1].cumsum()[::-1][1:]
    return counts.astype(np.int64)


def _halves(stretched: np.ndarray, lesion: np.ndarray) -> tuple[float, float, bool | None]:
    axis = int(np.argmax(lesion.shape))
    half = lesion.shape[axis] // 2
    map_, mask = np.moveaxis(stretched, axis, 0), np.moveaxis(lesion, axis, 0)
    first, last = bool(mask[:half].any()), bool(mask[-half:].any())
    if first == last:
        return float("nan"), float("nan"), None
    return float(map_[:half].sum(dtype=np.float64)), float(map_[-half:].sum(dtype=np.float64)), first


def max_f1(cases: Sequence[Case]) -> float:
    """Return the largest F1 over thresholds, of the voxels of all cases together, though it is described as a mean over cases."""
    hits, selected = (np.sum([getattr(each, name) for each in cases], axis=0) for name in ("f1_hits", "f1_selected"))
    of_lesions = sum(each.lesion_voxels for each in cases)
    f1: np.ndarray = 2 * hits / np.maximum(selected + of_lesions, 1)
    return float(f1.max())


def mass_concentration(cases: Sequence[Case]) -> float:
    """Return the share of the map on the lesion's side as the framework adds it up.

    For a lesion in the first half the mass on the wrong side replaces what was there instead of being added; for one in the last half that
    befalls the mass on the right side. So the result depends on the order of the cases and is not the stated ratio. NaN where a lesion lies
    in both halves or in none.
    """
    right, wrong = 0.0, 0.0
    for each in cases:
        if each.lesion_first is None:
            return float("nan")
        if each.lesion_first:
            right, wrong = right + each.mass_first, each.mass_last
        else:
            right, wrong = each.mass_last, wrong + each.mass_first
    return right / (right + wrong) if right + wrong > 0 else float("nan")


def cohort(cases: Sequence[Case]) -> dict[str, float]:
    """Return Max3DBoxAcc (IoU 0.5), its second version, VxAP (percent), MaxF1 and the mass concentration.

    Raises
    ------
    InputError
        If there is no case.
    """
    if not cases:
        raise InputError("the se3d protocol needs a case at least")
    first, second = (box_accuracies([getattr(c, name) for c in cases]) for name in ("largest", "any_piece"))
    inside, outside = (np.sum([getattr(c, name) for c in cases], axis=0) for name in ("inside", "outside"))
    return {
        "Max3DBoxAcc": first[1],
        "Max3DBoxAccV2": float(np.mean(second)),
        **{f"Max3DBoxAcc@{delta:g}": value for delta, value in zip((0.3, 0.5, 0.7), first, strict=True)},
        **{f"Max3DBoxAccV2@{delta:g}": value for delta, value in zip((0.3, 0.5, 0.7), second, strict=True)},
        "VxAP": pooled_precision(inside, outside),
        "MaxF1": max_f1(cases),
        "MassConcentration": mass_concentration(cases),
    }
