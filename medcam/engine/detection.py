"""Targets for detectors: the score of one kept box of MONAI's RetinaNet, through the anchor that made it.

The network gives, for each level of its feature pyramid, class logits and box codes of every anchor. The detector decodes them, drops low
scores, keeps the best of each level, and suppresses boxes that overlap better ones. That selection has no gradient, but it only selects: a
kept box's score is the sigmoid of one class logit of one anchor. So the selection is redone on the clean output to find that anchor, and
its logit is the target, in every later output too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medcam.engine.outputs import Reading
from medcam.engine.settled import Rows, Settled, Unsettled, class_label
from medcam.errors import ModelError, UsageError

_PARTS = (
    "anchor_generator",
    "box_coder",
    "box_selector",
    "box_reg_key",
    "cls_key",
    "num_anchors_per_loc",
    "spatial_dims",
)


@dataclass(frozen=True)
class Box:
    """A box that the detector made of one anchor.

    Parameters
    ----------
    corners
        The lower corner and then the upper one, in voxels of the network's input.
    score, label
        As the detector gives them.
    level, channel, cell
        The logit behind the score: the level of the feature pyramid, and the channel and cell of its map of class logits.
    """

    corners: tuple[float, ...]
    score: float
    label: int
    level: int
    channel: int
    cell: tuple[int, ...]


def kept_box(detector: Any, number: int = 0, *, image_shape: Sequence[int] | None = None) -> Unsettled:
    """Return the target that scores one box which a detector keeps, by the class logit of the anchor that made it.

    The network to explain is `detector.network`. In a sample where the detector keeps no box at all, the anchor with the highest score is
    explained instead and the notes say so.

    Parameters
    ----------
    detector
        MONAI's `RetinaNetDetector`, 2D or 3D; its network may give a dictionary or a list.
    number
        Which box of each sample, 0 being the one with the highest score.
    image_shape
        The sides of the image before it was padded to what the network takes; boxes are clipped to it. By default those of the input.

    Raises
    ------
    UsageError
        If it is no such detector, or (when settled) a sample has boxes but not this one.
    """
    lacking = [name for name in _PARTS if not hasattr(detector, name)]
    if lacking:
        raise UsageError(
            f"kept_box takes a RetinaNetDetector of monai.apps.detection, not a {type(detector).__name__} (it has no {', '.join(lacking)})"
        )
    if isinstance(number, bool) or not hasattr(number, "__index__") or number < 0:
        raise UsageError(f"a box is named by its number, 0 being the one with the highest score, not {number!r}")
    sides = None if image_shape is None else tuple(image_shape)
    settle = partial(_settle, detector=detector, number=int(number), image_shape=sides)
    return Unsettled(settle, partial(_words, f"box {number}"), takes=frozenset({"score"}))


def kept_boxes(
    detector: Any, output: Any, input_shape: Sequence[int], *, image_shape: Sequence[int] | None = None
) -> tuple[tuple[Box, ...], ...]:
    """Return the boxes that the detector keeps of each sample, from its network's output, the highest score first.

    Parameters
    ----------
    input_shape
        Of the network's input, `b c *s`.
    image_shape
        See `kept_box`.

    Raises
    ------
    UsageError
        If the output is not that of the detector's network, or the detector selects boxes in a way of its own.
    ModelError
        If boxes cannot be decoded.
    """
    pyramid = _pyramid(detector, output, input_shape)
    size = tuple(image_shape or input_shape[2:])
    return tuple(_selected(detector, pyramid, n, size) for n in range(input_shape[0]))


@dataclass(frozen=True, eq=False)
class _Level:
    """One level of the pyramid: logits `b anchors classes`, boxes `b anchors 2d`, and the sides of its map."""

    logits: Tensor
    boxes: Tensor
    cells: tuple[int, ...]


def _pyramid(detector: Any, output: Any, input_shape: Sequence[int]) -> tuple[_Level, ...]:
    """Return what the network said of every anchor, boxes decoded."""
    maps, codes = (_maps(detector, output, regression) for regression in (False, True))
    shapes = [m.shape[:1] + m.shape[2:] for m in maps]
    dims = detector.spatial_dims
    if not maps or shapes != [m.shape[:1] + m.shape[2:] for m in codes] or len(input_shape) != dims + 2:
        raise UsageError(
            f"the output is not that of this detector's network in {dims}D: it should hold one map of class logits and one of box codes "
            f"for each level, on an input of shape {tuple(input_shape)}"
        )
    with torch.no_grad():
        maps, codes = [m.detach() for m in maps], [m.detach() for m in codes]
        # The generator remembers precision and device, so a copy works.
        generator = copy.deepcopy(detector.anchor_generator)
        image = maps[0].new_zeros(1).expand(1, 1, *input_shape[2:])
        per_cell = detector.num_anchors_per_loc
        sizes = [m[0, 0].numel() * per_cell for m in maps]
        anchors = generator(image, maps)[0].split(sizes)
        try:
            return tuple(
                _Level(
                    _by_anchor(m, per_cell),
                    torch.stack(
                        [
                            detector.box_coder.decode_single(row.float(), a).to(m.dtype)
                            for row in _by_anchor(c, per_cell)
                        ]
                    ),
                    tuple(m.shape[2:]),
                )
                for m, c, a in zip(maps, codes, anchors, strict=True)
            )
        except ValueError as error:
            raise ModelError(f"the detector cannot decode its boxes: {error}") from error


def _maps(detector: Any, output: Any, regression: bool) -> list[Tensor]:
    """Return the maps of class logits, or of box codes, of each level."""
    if isinstance(output, Mapping):
        found = output.get(detector.box_reg_key if regression else detector.cls_key)
    elif isinstance(output, (tuple, list)):
        half = len(output) // 2
        found = output[half:] if regression else output[:half]
    else:
        found = None
    every = [found] if isinstance(found, Tensor) else list(found or ())
    if not every or not all(isinstance(m, Tensor) and m.ndim == detector.spatial_dims + 2 for m in every):
        raise UsageError(
            f"kept_box explains the network of the detector (detector.network), which gives '{detector.cls_key}' and "
            f"'{detector.box_reg_key}' for each level; this network gives a {type(output).__name__}"
        )
    return every


def _by_anchor(maps: Tensor, per_cell: int) -> Float[Tensor, "b anchors values"]:
    """Return the channels of a map as values of each anchor, anchors of one cell side by side as the generator numbers them."""
    batch, channels = maps.shape[:2]
    return maps.reshape(batch, per_cell, channels // per_cell, -1).permute(0, 3, 1, 2).flatten(1, 2)


def _selected(detector: Any, pyramid: tuple[_Level, ...], sample: int, size: tuple[int, ...]) -> tuple[Box, ...]:
    """Return the boxes that the detector's selector keeps of one sample, with the anchors that they came from."""
    from monai.data.box_utils import batched_nms, clip_boxes_to_image  # which whoever has no detector need not load

    selector = detector.box_selector
    found: list[tuple[Tensor, ...]] = []
    for number, level in enumerate(pyramid):
        anchors, scores, labels = selector.select_top_score_idx_per_level(level.logits[sample])
        boxes, inside = clip_boxes_to_image(level.boxes[sample][anchors], size, remove_empty=True)
        found.append((boxes, scores[inside], labels[inside], anchors[inside], torch.full_like(anchors[inside], number)))
    boxes, scores, labels, anchors, levels = (torch.cat(part) for part in zip(*found, strict=True))
    limit, overlap = selector.detections_per_img, selector.box_overlap_metric
    kept = batched_nms(boxes, scores, labels, selector.nms_thresh, max_proposals=limit, box_overlap_metric=overlap)
    logits = [level.logits[sample] for level in pyramid]
    own = selector.select_boxes_per_image([level.boxes[sample] for level in pyramid], logits, size)
    if own[2].tolist() != labels[kept].tolist() or not torch.equal(
        own[0].float(), boxes[kept].to(own[0].dtype).float()
    ):
        raise UsageError(
            "this detector selects its boxes in a way of its own, so the anchors behind them are not known"
        )
    listed = zip(*(part.tolist() for part in (own[0], own[1], own[2], anchors[kept], levels[kept])), strict=True)
    return tuple(
        _box(detector, pyramid, corners, score, label, anchor, level) for corners, score, label, anchor, level in listed
    )


def _best(detector: Any, pyramid: tuple[_Level, ...], sample: int) -> Box:
    """Return the box of the anchor with the highest score, kept or not."""
    tops = torch.stack([level.logits[sample].amax() for level in pyramid])
    number = int(tops.argmax())
    level = pyramid[number]
    anchor, label = divmod(int(level.logits[sample].argmax()), level.logits.shape[2])
    score = float(tops[number].float().sigmoid() if detector.box_selector.apply_sigmoid else tops[number])
    return _box(detector, pyramid, level.boxes[sample, anchor].tolist(), score, label, anchor, number)


def _box(
    detector: Any, pyramid: tuple[_Level, ...], corners: list[float], score: float, label: int, anchor: int, level: int
) -> Box:
    per_cell, classes = detector.num_anchors_per_loc, pyramid[level].logits.shape[2]
    cell = tuple(int(at) for at in np.unravel_index(anchor // per_cell, pyramid[level].cells))
    return Box(tuple(corners), score, label, level, anchor % per_cell * classes + label, cell)


def _settle(
    output: Any, reading: Reading, *, detector: Any, number: int, image_shape: tuple[int, ...] | None
) -> Settled:
    if reading.input_shape is None:
        raise UsageError(
            "the boxes of a detector need the shape of its network's input: as_target(..., input_shape=inputs.shape)"
        )
    pyramid = _pyramid(detector, output, reading.input_shape)
    size = image_shape or reading.input_shape[2:]
    boxes, notes = [], []
    for n in range(reading.input_shape[0]):
        kept = _selected(detector, pyramid, n, size)
        if kept and number >= len(kept):
            there = "1 box, number 0" if len(kept) == 1 else f"{len(kept)} boxes, numbered 0 to {len(kept) - 1}"
            raise UsageError(f"there is no box {number} in sample {n}: the detector keeps {there}")
        if not kept and number:
            raise UsageError(f"there is no box {number} in sample {n}: the detector keeps none")
        boxes.append(kept[number] if kept else _best(detector, pyramid, n))
        notes.append((_note(boxes[-1], number, bool(kept), detector.box_selector.score_thresh),))
    convert = detector.box_selector.apply_sigmoid
    labels = torch.tensor([box.label for box in boxes])
    score = partial(box_scores, detector=detector, boxes=tuple(boxes))
    return Settled(
        partial(score, sigmoid=convert) if reading.score == "probability" else score,
        "probability" if reading.score == "probability" or not convert else "logit",
        labels,
        labels.new_zeros(len(boxes), 0),
        partial(_told, tuple(notes)),
        partial(_settled_words, number, tuple(box.label for box in boxes)),
        partial(score, sigmoid=convert),
    )


def box_scores(output: Any, *, detector: Any, boxes: Sequence[Box], sigmoid: bool = False) -> Float[Tensor, " b"]:
    """Return for each sample the class logit (or its sigmoid) of the anchor behind its box."""
    maps = _maps(detector, output, False)
    places: list[tuple[int, ...]] = [(n, box.channel, *box.cell) for n, box in enumerate(boxes)]
    picked = [maps[box.level][place] for box, place in zip(boxes, places, strict=True)]
    scores = torch.stack(picked).float() if picked[0].dtype != torch.float64 else torch.stack(picked)
    return scores.sigmoid() if sigmoid else scores


def _note(box: Box, number: int, kept: bool, threshold: float) -> str:
    half = len(box.corners) // 2
    lower, upper = (", ".join(f"{at:.1f}" for at in corner) for corner in (box.corners[:half], box.corners[half:]))
    where = (
        f"it spans voxels ({lower}) to ({upper}) of the network's input, class {box.label}, with score {box.score:.3f}"
    )
    if kept:
        return f"Box {number} is explained; {where}."
    return (
        f"The detector keeps no box (none scores above {threshold:g}); its best anchor is explained instead; {where}."
    )


def _told(notes: tuple[tuple[str, ...], ...], _rows: Rows) -> tuple[tuple[str, ...], ...]:
    return notes


def _words(text: str, _class_names: Sequence[str]) -> str:
    return text


def _settled_words(number: int, labels: tuple[int, ...], _rows: Rows, class_names: Sequence[str]) -> str:
    named = ", ".join(class_label(c, class_names) for c in dict.fromkeys(labels))
    return f"box {number}, {named}"
