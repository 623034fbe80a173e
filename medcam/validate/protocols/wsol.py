"""Weakly supervised object localization: MaxBoxAcc, MaxBoxAccV2 and PxAP of films, as the evaluation code of Choe et al. counts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from scipy import ndimage

from medcam.errors import InputError
from medcam.validate.protocols.planes import EIGHT, contours, eight_bit, min_max, raster

# Thresholds as shares of the map's largest 8-bit value.
THRESHOLDS = np.arange(0, 1, 0.001)
DELTAS = (0.3, 0.5, 0.7)


@dataclass(frozen=True, eq=False)
class Case:
    """The best IoU of the largest contour's box, and of any contour's box, at each threshold; and how many pixels of the mask, and how many
    others, lie in each bin of the map."""

    largest: Float[np.ndarray, " t"]
    any_contour: Float[np.ndarray, " t"]
    inside: Int[np.ndarray, " b"]
    outside: Int[np.ndarray, " b"]


def case(relevance: Num[np.ndarray, "i j k"], lesion: Bool[np.ndarray, "i j k"]) -> Case:
    """Count one film, its boxes those around the mask's pieces. The map is stretched from 0 to 1 first, as the published code demands.

    Raises
    ------
    InputError
        If it is no film, was not looked at everywhere, or has no lesion.
    """
    truth = raster(lesion, "wsol")
    labels, _ = ndimage.label(truth, EIGHT)
    boxes = [(x.start, y.start, x.stop - 1, y.stop - 1) for y, x in ndimage.find_objects(labels)]
    return case_with_boxes(relevance, lesion, np.array(boxes, np.int64).reshape(-1, 4))


def case_with_boxes(
    relevance: Num[np.ndarray, "i j k"], lesion: Bool[np.ndarray, "i j k"], boxes: Int[np.ndarray, "n 4"]
) -> Case:
    """Count one film against given boxes x0 y0 x1 y1, their last pixels in them.

    Raises
    ------
    InputError
        If it is no film, was not looked at everywhere, or has no box.
    """
    if not len(boxes):
        raise InputError("the wsol protocol counts images that hold an object, and this one has no lesion")
    stretched = min_max(raster(relevance, "wsol"), "wsol")
    largest, any_contour = box_curves(stretched, boxes, THRESHOLDS)
    return Case(largest, any_contour, *histograms(stretched, raster(lesion, "wsol"), THRESHOLDS))


def box_curves(
    stretched: Float[np.ndarray, "y x"], boxes: Int[np.ndarray, "n 4"], thresholds: Float[np.ndarray, " t"]
) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, " t"]]:
    """Return the best IoU of the largest contour's box, and of any contour's, at each threshold."""
    grey = eight_bit(stretched)
    cuts = (thresholds * int(grey.max())).astype(np.int64)
    levels, which = np.unique(cuts, return_inverse=True)
    fits = np.array([_fits(grey > level, boxes) for level in levels])
    return fits[which, 0], fits[which, 1]


def estimated_boxes(mask: Bool[np.ndarray, "y x"]) -> tuple[Int[np.ndarray, "n 4"], int]:
    """Return the boxes around a mask's contours, and which of them is the largest; one empty box at the origin for an empty mask.

    Of contours that enclose as much the last in raster order counts as the largest: lines and single pixels all enclose nothing.
    """
    found = contours(mask)
    if not len(found.boxes):
        return np.zeros((1, 4), np.int64), 0
    return found.boxes, found.largest


def _fits(mask: np.ndarray, boxes: np.ndarray) -> tuple[float, float]:
    found, largest = estimated_boxes(mask)
    fit = multiple_iou(found, boxes).max(1)
    return float(fit[largest]), float(fit.max())


def multiple_iou(one: Int[np.ndarray, "m 4"], other: Int[np.ndarray, "n 4"]) -> Float[np.ndarray, "m n"]:
    """Return the IoU of boxes x0 y0 x1 y1 as if their ends belonged to them, although those of contours lie one pixel behind."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    both = np.clip(high - low + 1, 0, None).prod(2)
    size = [(boxes[:, 2:] - boxes[:, :2] + 1).prod(1) for boxes in (one, other)]
    iou: np.ndarray = both / (size[0][:, None] + size[1][None] - both)
    return iou


def histograms(
    stretched: Float[np.ndarray, "..."], truth: Bool[np.ndarray, "..."], thresholds: Float[np.ndarray, " t"]
) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]]:
    """Return how many voxels of the truth and how many others lie in each bin between the thresholds, and in that of the value 1."""
    edges = np.append(thresholds, [1.0, 2.0, 3.0])
    inside, outside = (np.histogram(part, bins=edges)[0] for part in (stretched[truth], stretched[~truth]))
    return inside.astype(np.int64), outside.astype(np.int64)


def pooled_precision(inside: Int[np.ndarray, " b"], outside: Int[np.ndarray, " b"]) -> float:
    """Return the average precision of pooled histograms, percent.

    Raises
    ------
    InputError
        If no voxel belongs to any truth.
    """
    if not inside.sum():
        raise InputError("no image holds an object, so there is no average precision over them")
    hits, all_ = inside[::-1].cumsum(), (inside + outside)[::-1].cumsum()
    precision, recall = hits / np.maximum(all_, 1), hits / hits[-1]
    # The first bin, of values of 2 and more, adds nothing: the published sum leaves it out.
    return float((precision[1:] * np.diff(recall)).sum() * 100)


def box_accuracies(curves: Sequence[Float[np.ndarray, " t"]]) -> list[float]:
    """Return for IoU of 0.3, 0.5 and 0.7 the percentage of cases whose box is right, at the threshold that is best for these cases."""
    return [float(np.mean([curve >= delta for curve in curves], axis=0).max() * 100) for delta in DELTAS]


def cohort(cases: Sequence[Case]) -> dict[str, float]:
    """Return MaxBoxAcc (IoU 0.5, largest contour), MaxBoxAccV2 (mean over three IoU, any contour) and PxAP, percent.

    Raises
    ------
    InputError
        If there is no case.
    """
    if not cases:
        raise InputError("the wsol protocol needs a case at least")
    second = box_accuracies([each.any_contour for each in cases])
    inside, outside = (np.sum([getattr(each, name) for each in cases], axis=0) for name in ("inside", "outside"))
    return {
        "MaxBoxAcc": box_accuracies([each.largest for each in cases])[1],
        "MaxBoxAccV2": float(np.mean(second)),
        **{f"MaxBoxAccV2@{delta:g}": value for delta, value in zip(DELTAS, second, strict=True)},
        "PxAP": pooled_precision(inside, outside),
    }
