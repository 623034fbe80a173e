"""Boxes against boxes, at thresholds that serve all cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from validate.scenes import SHAPE, SPACING, lesion_of, scene_of

from medcam.errors import UsageError
from medcam.validate.boxes import BoxCurve, box_accuracy, box_curve, boxes_iou, max_box_accuracy, max_box_accuracy_v2
from medcam.validate.lesions import pieces
from medcam.validate.ranked import levels_of
from medcam.validate.scene import Scene


def truth_of(s: Scene) -> np.ndarray:
    return np.array([p.box for p in pieces(s, s.lesion)], np.int64).reshape(-1, 3, 2)


def iou_by_voxels(one: np.ndarray, other: np.ndarray) -> float:
    canvas = np.zeros((2, *SHAPE), bool)
    for n, box in enumerate((one, other)):
        canvas[n][tuple(slice(a, b + 1) for a, b in box)] = True
    return float((canvas[0] & canvas[1]).sum() / (canvas[0] | canvas[1]).sum())


def test_the_first_and_last_voxel_belong_to_a_box() -> None:
    one, other = np.array([[[1, 5], [2, 6], [0, 0]]]), np.array([[[3, 4], [1, 5], [0, 0]]])
    assert boxes_iou(one, other)[0, 0] == pytest.approx(8 / 27)
    point = np.zeros((1, 3, 2), np.int64)
    assert boxes_iou(point, point)[0, 0] == 1


def test_iou_of_boxes_is_that_of_their_voxels() -> None:
    generator = np.random.default_rng(0)
    boxes = np.sort(generator.integers(0, np.array(SHAPE)[:, None], (2, 20, 3, 2)), axis=-1)
    found = boxes_iou(boxes[0], boxes[1])
    for m in range(20):
        for n in range(20):
            assert found[m, n] == pytest.approx(iou_by_voxels(boxes[0][m], boxes[1][n]))


@pytest.mark.parametrize("seed", range(3))
def test_the_curve_is_that_of_labelling_at_every_threshold(seed: int) -> None:
    # Warm in the lesions, so that boxes meet at all thresholds.
    warm = ndimage.gaussian_filter(lesion_of().astype(float), 1.0) * 8
    s = Scene((scene_of(seed).relevance + warm).astype(np.float32), lesion_of(), SPACING)
    truth, curve = truth_of(s), box_curve(s, truth_of(s))
    assert (curve.any_piece[:80] > 0).all()
    for n, level in enumerate(levels_of(s.maximum)):
        labels, count = ndimage.label(s.positive >= level, np.ones((3, 3, 3)))
        fits = []
        for part in range(1, count + 1):
            where = np.argwhere(labels == part)
            box = np.stack([where.min(0), where.max(0)], 1)
            fits.append(max(iou_by_voxels(box, t) for t in truth))
        sizes = [(labels == part).sum() for part in range(1, count + 1)]
        assert curve.any_piece[n] == pytest.approx(max(fits))
        assert curve.largest_piece[n] == pytest.approx(fits[int(np.argmax(sizes))])


def test_the_lesions_themselves_are_right_boxes_and_a_blank_map_or_mask_has_none() -> None:
    s = Scene(lesion_of().astype(np.float32), lesion_of(), SPACING)
    curve = box_curve(s, truth_of(s))
    assert (curve.any_piece == 1).all()
    assert max_box_accuracy([curve]) == max_box_accuracy_v2([curve]) == 1
    blank = Scene(-s.relevance, lesion_of(), SPACING)
    assert not box_curve(blank, truth_of(s)).any_piece.any()
    empty = Scene(s.relevance, np.zeros(SHAPE, bool), SPACING)
    none = box_curve(empty, truth_of(empty))
    assert np.isnan(none.any_piece).all()
    # A case without a lesion is no case that a box could be right in.
    assert max_box_accuracy_v2([curve, none]) == 1
    assert np.isnan(max_box_accuracy([none]))


def test_one_threshold_serves_all_cases_and_each_iou_has_its_own() -> None:
    early, late = np.zeros(100), np.zeros(100)
    early[:40], late[30:] = 0.6, 0.6
    assert box_accuracy([early, late], 0.5) == 1
    late[30:40] = 0.2
    assert box_accuracy([early, late], 0.5) == 0.5
    curves = [BoxCurve(early, late), BoxCurve(late, early)]
    # At an IoU of 0.3 and 0.5 one of two cases is right at any threshold, at 0.7 none.
    assert max_box_accuracy_v2(curves) == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert max_box_accuracy(curves) == 0.5
    assert np.isnan(max_box_accuracy([]))
    with pytest.raises(UsageError, match="IoU"):
        box_accuracy([early], 0.0)


def test_a_film_has_boxes_too() -> None:
    lesion = lesion_of()[:, :, 2:3].copy()
    s = Scene(lesion.astype(np.float32), lesion, SPACING)
    assert max_box_accuracy_v2([box_curve(s, truth_of(s))]) == 1
