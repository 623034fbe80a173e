"""Boxes around what a map points at, against boxes around the lesions: MaxBoxAcc in two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8

from medcam.errors import UsageError
from medcam.validate.lesions import TOUCHING
from medcam.validate.nested import pieces_at_levels
from medcam.validate.ranked import levels_of
from medcam.validate.scene import Scene

# IoU from which a box counts as right: MaxBoxAcc's one, and those that its second version averages over.
DELTA = 0.5
DELTAS = (0.3, 0.5, 0.7)


def boxes_iou(one: Int[np.ndarray, "m 3 2"], other: Int[np.ndarray, "n 3 2"]) -> Float[np.ndarray, "m n"]:
    """Return the IoU of boxes given by their first and last voxel along each axis, both of which belong to the box.

    References
    ----------
    Choe et al., Evaluating weakly supervised object localization methods right, CVPR 2020, section 3.3.
    """
    low = np.maximum(one[:, None, :, 0], other[None, :, :, 0])
    high = np.minimum(one[:, None, :, 1], other[None, :, :, 1])
    both = np.clip(high - low + 1, 0, None).prod(2)
    iou: np.ndarray = both / (_volume(one)[:, None] + _volume(other)[None] - both)
    return iou


def _volume(boxes: np.ndarray) -> np.ndarray:
    volume: np.ndarray = (boxes[..., 1] - boxes[..., 0] + 1).prod(-1)
    return volume


@dataclass(frozen=True, eq=False)
class BoxCurve:
    """How well boxes around a map's pieces fit, at each percent of its maximum.

    Parameters
    ----------
    any_piece
        The best IoU of any piece's box with any lesion's box, at each threshold; 0 where nothing is selected, NaN without a lesion.
    largest_piece
        The best IoU of the largest piece's box with any lesion's box; of equally large pieces the first in raster order.
    """

    any_piece: Float[np.ndarray, " t"]
    largest_piece: Float[np.ndarray, " t"]


def box_curve(scene: Scene, truth: Int[np.ndarray, "n 3 2"]) -> BoxCurve:
    """Return how well a map's boxes fit given ones, at 1, 2, ... 100 % of its maximum."""
    levels = levels_of(scene.maximum)
    result = np.full((2, len(levels)), 0.0 if len(truth) else np.nan)
    if scene.maximum > 0 and len(truth):
        for n, pieces in enumerate(pieces_at_levels(_reached(scene.positive, levels), TOUCHING)):
            fit = boxes_iou(pieces.boxes, truth).max(1)
            result[:, n] = fit.max(), fit[int(np.argmax(pieces.voxels))]
    return BoxCurve(result[0], result[1])


def _reached(values: Float[np.ndarray, "i j k"], levels: Float[np.ndarray, " t"]) -> UInt8[np.ndarray, "i j k"]:
    """Return how many levels each value reaches; none for one that is not positive, even where the levels are too small to tell from 0."""
    count = np.empty(values.shape, np.uint8)
    for part, out in zip(values, count, strict=True):
        out[...] = np.searchsorted(levels, part, "right")
        out[part <= 0] = 0
    return count


def box_accuracy(curves: Sequence[Float[np.ndarray, " t"]], delta: float) -> float:
    """Return the largest share, over thresholds, of cases with a lesion whose box reaches an IoU; NaN without any.

    One threshold serves all cases, as a share of each map's own maximum. It is chosen on these very cases, so the number is optimistic.

    Raises
    ------
    UsageError
        If the IoU is not above 0 and at most 1.
    """
    if not 0 < delta <= 1:
        raise UsageError(f"a box is right from an IoU above 0 and up to 1, not {delta:g}")
    known = [curve for curve in curves if not np.isnan(curve).any()]
    if not known:
        return float("nan")
    right: np.ndarray = np.mean([curve >= delta for curve in known], axis=0)
    return float(right.max())


def max_box_accuracy(curves: Sequence[BoxCurve]) -> float:
    """Return MaxBoxAcc: the largest piece's box, right from an IoU of 0.5. See `box_accuracy`."""
    return box_accuracy([curve.largest_piece for curve in curves], DELTA)


def max_box_accuracy_v2(curves: Sequence[BoxCurve]) -> float:
    """Return MaxBoxAccV2: any piece's box, averaged over IoU of 0.3, 0.5 and 0.7, each at its own best threshold.

    References
    ----------
    Choe et al., Evaluation for weakly supervised object localization, TPAMI 2022, section 3.4.
    """
    return float(np.mean([box_accuracy([curve.any_piece for curve in curves], delta) for delta in DELTAS]))
