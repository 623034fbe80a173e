"""The score of one kept box: the anchor that made it, found again from what the network says of every anchor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.apps.detection.networks.retinanet_network import RetinaNet
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from torch import Tensor, nn

from engine.toy_networks import conv
from medcam.engine import relevance
from medcam.engine.detection import Box
from medcam.engine.targets import as_target, kept_box, kept_boxes
from medcam.errors import ModelError, UsageError

DIMS = pytest.mark.parametrize("dims", [2, 3])
SIDES = (24, 32, 16)
SHAPES = {
    2: [(6, 9), (8, 5)],
    3: [(6, 9, 4), (8, 5, 6)],
}  # of the anchors of a cell, at the first level; twice that at the second
CLASSES = 3


class Pyramid(nn.Module):
    """Two levels, of cells of 4 and 8 voxels."""

    out_channels = 8

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.fine, self.coarse = conv(dims)(1, 8, 4, stride=4), conv(dims)(8, 8, 2, stride=2)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.fine(x)
        return [fine, self.coarse(fine.relu())]


def made_detector(dims: int, *, plain_head: bool = True, as_list: bool = False) -> RetinaNetDetector:
    """A detector with random weights, whose scores spread around one half.

    A plain head is one 3 x 3 convolution, so that a logit sees only the cells around its own.
    """
    torch.manual_seed(dims)
    network = RetinaNet(dims, CLASSES, 2, Pyramid(dims), (8,) * dims, use_list_output=as_list)
    for head, last in ((network.classification_head, "cls_logits"), (network.regression_head, "bbox_reg")):
        if plain_head:
            head.conv = nn.Sequential()
        nn.init.normal_(getattr(head, last).weight, std=0.3 if last == "cls_logits" else 0.05)
        nn.init.constant_(getattr(head, last).bias, -1.0 if last == "cls_logits" else 0.0)
    generator = AnchorGeneratorWithAnchorShape((1, 2), SHAPES[dims])
    detector = RetinaNetDetector(network, generator).eval()
    detector.set_box_selector_parameters(
        score_thresh=0.6, nms_thresh=0.2, detections_per_img=60, topk_candidates_per_level=40
    )
    return detector


def images(dims: int) -> Tensor:
    """Three images of different contrast, so that the numbers of boxes differ; the last is empty."""
    x = torch.randn(3, 1, *SIDES[:dims], generator=torch.Generator().manual_seed(5))
    return x * torch.tensor([3.0, 0.6, 0.0]).reshape(3, *[1] * (dims + 1))


def decoded(box: Box, dims: int, codes: list[Tensor], sample: int) -> list[float]:
    """The anchor of a cell and its box code, by hand: Ren et al., Faster R-CNN 2015, eq. 2, clipped to the image."""
    anchor = box.channel // CLASSES
    stride = 4 * 2**box.level
    code = codes[box.level][(sample, slice(anchor * 2 * dims, (anchor + 1) * 2 * dims), *box.cell)].numpy()
    lower, upper = [], []
    for axis in range(dims):
        side = SHAPES[dims][anchor][axis] * 2**box.level
        # The generator rounds half a side to a whole voxel.
        low, high = np.round(-side / 2), np.round(side / 2)
        centre = box.cell[axis] * stride + stride // 2 + (low + high) / 2
        centre += code[axis] * (high - low)
        size = (high - low) * np.exp(code[dims + axis])
        lower.append(max(centre - size / 2, 0))
        upper.append(min(centre + size / 2, SIDES[axis]))
    return lower + upper


@DIMS
@pytest.mark.parametrize("as_list", [False, True])
def test_the_kept_boxes_are_those_of_the_detector_and_their_anchors_make_them(dims: int, as_list: bool) -> None:
    detector, x = made_detector(dims, as_list=as_list), images(dims)
    with torch.no_grad():
        output, detections = detector.network(x), detector(x)
    logits, codes = (output[:2], output[2:]) if as_list else (output["classification"], output["box_regression"])
    found = kept_boxes(detector, output, x.shape)
    counts = [len(boxes) for boxes in found]
    assert counts[0] != counts[1] > 1
    assert counts[2] == 0
    assert len({box.level for boxes in found for box in boxes}) == 2
    for n, (boxes, detection) in enumerate(zip(found, detections, strict=True)):
        assert [box.corners for box in boxes] == [tuple(row) for row in detection["boxes"].tolist()]
        assert [box.score for box in boxes] == detection["labels_scores"].tolist()
        assert [box.label for box in boxes] == detection["labels"].tolist()
        for box in boxes:
            logit = logits[box.level][(n, box.channel, *box.cell)]
            assert logit.sigmoid().item() == pytest.approx(box.score, rel=1e-6)  # to the last bit but one
            assert box.channel % CLASSES == box.label
            np.testing.assert_allclose(box.corners, decoded(box, dims, codes, n), rtol=1e-5, atol=1e-5)


@DIMS
def test_the_score_is_the_logit_of_the_boxs_anchor_also_in_later_outputs(dims: int) -> None:
    detector, x = made_detector(dims), images(dims)
    output = detector.network(x)
    with torch.no_grad():
        detections, later = detector(x), detector.network(torch.randn_like(x))
    found = kept_boxes(detector, output, x.shape)
    for number in (0, 1):
        settled = as_target(kept_box(detector, number), input_shape=x[:2].shape).settled(first(output, 2))
        expected = torch.stack([detections[n]["labels_scores"][number] for n in range(2)])
        torch.testing.assert_close(settled(first(output, 2)).sigmoid(), expected)
        chances = as_target(kept_box(detector, number), score="probability", input_shape=x[:2].shape).settled(
            first(output, 2)
        )
        torch.testing.assert_close(chances(first(output, 2)), expected)
        assert (settled.score, chances.score) == ("logit", "probability")
        assert settled.classes.tolist() == [detections[n]["labels"][number].item() for n in range(2)]
        boxes = [found[n][number] for n in range(2)]
        again = [later["classification"][b.level][(n, b.channel, *b.cell)] for n, b in enumerate(boxes)]
        torch.testing.assert_close(settled(first(later, 2)), torch.stack(again))
        corners = ", ".join(f"{at:.1f}" for at in boxes[1].corners[:dims])
        assert settled.notes[1][0].startswith(f"Box {number} is explained; it spans voxels ({corners}) to (")
        assert settled.notes[1][0].endswith(f"class {boxes[1].label}, with score {boxes[1].score:.3f}.")


def first(output: dict[str, list[Tensor]], count: int) -> dict[str, list[Tensor]]:
    return {key: [m[:count] for m in maps] for key, maps in output.items()}


@DIMS
def test_the_gradient_lies_at_the_cell_of_the_anchor_on_its_level_alone(dims: int) -> None:
    detector, x = made_detector(dims), images(dims)[:2]
    levels = [level.detach().requires_grad_() for level in detector.network.feature_extractor(x)]
    output = {
        "classification": detector.network.classification_head(levels),
        "box_regression": detector.network.regression_head(levels),
    }
    settled = as_target(kept_box(detector, 1), input_shape=x.shape).settled(output)
    slopes = torch.autograd.grad(settled(output).sum(), levels, allow_unused=True)
    for n, boxes in enumerate(kept_boxes(detector, output, x.shape)):
        box = boxes[1]
        for level, slope in enumerate(slopes):
            found = set() if slope is None else {tuple(at) for at in slope[n].abs().sum(0).nonzero().tolist()}
            near = [
                range(max(at - 1, 0), min(at + 2, side))
                for at, side in zip(box.cell, levels[level].shape[2:], strict=False)
            ]
            expected = {tuple(at) for at in np.array(np.meshgrid(*near, indexing="ij")).reshape(dims, -1).T.tolist()}
            assert found == (expected if level == box.level else set())
            # The cell lies in the box that it made.
            stride = 4 * 2**box.level
            centre = [at * stride + stride / 2 for at in box.cell]
            if level == box.level:
                assert all(
                    low - stride < c < high + stride
                    for low, c, high in zip(box.corners, centre, box.corners[dims:], strict=False)
                )


@DIMS
def test_with_monais_own_head_the_gradient_is_strongest_at_the_anchors_cell(dims: int) -> None:
    detector, x = made_detector(dims, plain_head=False), images(dims)[:2]
    detector.set_box_selector_parameters(score_thresh=0.01, nms_thresh=0.2)
    levels = [level.detach().requires_grad_() for level in detector.network.feature_extractor(x)]
    output = [*detector.network.classification_head(levels), *detector.network.regression_head(levels)]
    settled = as_target(kept_box(detector), input_shape=x.shape).settled(output)
    slopes = torch.autograd.grad(settled(output).sum(), levels, allow_unused=True)
    for n, boxes in enumerate(kept_boxes(detector, output, x.shape)):
        slope = slopes[boxes[0].level]
        assert slope is not None
        strong = np.array(np.unravel_index(int(slope[n].norm(dim=0).argmax()), slope.shape[2:]))
        assert (np.abs(strong - boxes[0].cell) <= 3).all()


@DIMS
def test_a_sample_without_boxes_is_explained_at_its_best_anchor_and_it_is_said(dims: int) -> None:
    detector, x = made_detector(dims), images(dims)
    with torch.no_grad():
        output = detector.network(x)
    settled = as_target(kept_box(detector), input_shape=x.shape).settled(output)
    best = max(m[2].max().item() for m in output["classification"])
    assert settled(output)[2].item() == best
    assert "keeps no box (none scores above 0.6); its best anchor is explained instead; it spans" in settled.notes[2][0]
    assert "Box 0 is explained" in settled.notes[0][0]


@DIMS
def test_a_batch_is_explained_as_its_samples_one_by_one(dims: int) -> None:
    detector, x = made_detector(dims), images(dims)
    with torch.no_grad():
        output = detector.network(x)
        settled = as_target(kept_box(detector), input_shape=x.shape).settled(output)
        for n in range(3):
            part = {key: [m[n : n + 1] for m in maps] for key, maps in output.items()}
            alone = as_target(kept_box(detector), input_shape=x[:1].shape).settled(part)
            torch.testing.assert_close(alone(part)[0], settled(output)[n])
            assert alone.notes[0] == settled.notes[n]


@DIMS
def test_boxes_are_clipped_to_the_image_before_it_was_padded(dims: int) -> None:
    detector = made_detector(dims)
    small = images(dims)[:2, :, :21, :27]
    padded = nn.functional.pad(small, (*(0, 0) * (dims - 2), 0, 5, 0, 3))
    with torch.no_grad():
        detections, output = detector(small), detector.network(padded)
    found = kept_boxes(detector, output, padded.shape, image_shape=small.shape[2:])
    for boxes, detection in zip(found, detections, strict=True):
        assert [box.corners for box in boxes] == [tuple(row) for row in detection["boxes"].tolist()]
    counts = [len(boxes) for boxes in found]
    edges = [any(at == side for at, side in zip(box.corners[dims:], small.shape[2:], strict=True)) for box in found[0]]
    assert any(edges[: min(counts)])
    for number in range(min(counts)):
        settled = as_target(kept_box(detector, number, image_shape=small.shape[2:]), input_shape=padded.shape).settled(
            output
        )
        expected = torch.stack([d["labels_scores"][number] for d in detections])
        torch.testing.assert_close(settled(output).sigmoid(), expected)
        upper = ", ".join(f"{at:.1f}" for at in found[0][number].corners[dims:])
        assert f"to ({upper}) of the network's input" in settled.notes[0][0]


def test_the_detector_is_left_as_it_was() -> None:
    detector, x = made_detector(2), images(2).double()
    before = [(anchor.dtype, anchor.clone()) for anchor in detector.anchor_generator.cell_anchors]
    with torch.no_grad():
        kept_boxes(detector, detector.network.double()(x), x.shape)
    for (dtype, values), anchor in zip(before, detector.anchor_generator.cell_anchors, strict=True):
        assert anchor.dtype == dtype
        assert torch.equal(anchor, values)
    assert detector.anchors is None


def test_a_box_has_a_name() -> None:
    detector, x = made_detector(2), images(2)[:1]
    with torch.no_grad():
        output = detector.network(x)
    box = kept_boxes(detector, output, x.shape)[0][1]
    target = as_target(kept_box(detector, 1), input_shape=x.shape)
    names = ("nodule", "vessel", "node")
    assert target.describe(names) == "box 1"
    assert target.settled(output).describe(names) == f"box 1, {names[box.label]} (class {box.label})"


def settle(detector: Any, given: Any, /, **options: Any) -> None:
    number = options.pop("number", 0)
    as_target(kept_box(detector, number), **{"input_shape": (3, 1, *SIDES[:2])} | options).settled(given)


def test_what_does_not_exist_is_refused_in_words() -> None:
    detector, x = made_detector(2), images(2)
    with torch.no_grad():
        output = detector.network(x)
    count = len(kept_boxes(detector, output, x.shape)[0])
    with pytest.raises(
        UsageError, match=rf"no box {count} in sample 0: the detector keeps {count} boxes, numbered 0 to {count - 1}"
    ):
        settle(detector, output, number=count)
    with pytest.raises(UsageError, match="no box 1 in sample 0: the detector keeps none"):
        settle(
            detector, {key: [m[2:] for m in maps] for key, maps in output.items()}, number=1, input_shape=x[2:].shape
        )
    with pytest.raises(UsageError, match="need the shape of its network's input"):
        settle(detector, output, input_shape=None)
    for wrong in (torch.zeros(3, 4), {"logits": torch.zeros(3, 4)}, {"classification": output["classification"]}):
        with pytest.raises(UsageError, match="explains the network of the detector"):
            settle(detector, wrong)
    with pytest.raises(UsageError, match="not that of this detector's network in 2D"):
        settle(detector, output, input_shape=(3, 1, 24, 32, 16))
    with pytest.raises(UsageError, match="output 'classification' means nothing to box 0"):
        settle(detector, output, output="classification")
    with pytest.raises(UsageError, match=r"takes a RetinaNetDetector of monai\.apps\.detection, not a RetinaNet"):
        kept_box(detector.network)
    for number in (-1, True):
        with pytest.raises(UsageError, match="a box is named by its number"):
            kept_box(detector, number)


def test_a_detector_that_selects_in_its_own_way_or_breaks_is_refused() -> None:
    detector, x = made_detector(2), images(2)
    with torch.no_grad():
        output = detector.network(x)
    output["box_regression"][0][0, 3] = torch.nan
    with pytest.raises(ModelError, match="cannot decode its boxes"):
        settle(detector, output)
    with torch.no_grad():
        output = detector.network(x)
    selector = detector.box_selector
    usual = selector.select_boxes_per_image
    selector.select_boxes_per_image = lambda *given: tuple(part[1:] for part in usual(*given))
    with pytest.raises(UsageError, match="in a way of its own"):
        settle(detector, output)


@DIMS
def test_the_engine_explains_a_box(dims: int) -> None:
    detector, x = made_detector(dims), images(dims)[:2]
    found = relevance(detector.network, x, layer="feature_extractor.fine", target=kept_box(detector))
    with torch.no_grad():
        detections = detector(x)
    torch.testing.assert_close(found.scores.sigmoid(), torch.stack([d["labels_scores"][0] for d in detections]))
    assert found.classes == tuple(d["labels"][0].item() for d in detections)
    assert found.values.shape == (2, *(side // 4 for side in SIDES[:dims]))
    with pytest.raises(UsageError, match="gives boxes, not classes"):
        relevance(detector.network, x, layer="feature_extractor.fine")
