"""Where in a segmentation a class is scored: each region against plain loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from engine.toy_outputs import (
    SIDES,
    band,
    components,
    distinct,
    everywhere,
    labels_of,
    scores_of,
    segmentation,
    sigmoid,
    softmax,
)
from medcam.engine.targets import (
    as_target,
    boundary,
    component,
    component_at,
    difference,
    given,
    negation,
    one_class,
    predicted,
    predicted_region,
    several_classes,
    voxel,
    whole_output,
)

DIMS = pytest.mark.parametrize("dims", [2, 3])

SOME = (np.indices(SIDES).sum(0) % 3 == 0, np.indices(SIDES[:2]).sum(0) % 3 == 0)
REGIONS: dict[str, tuple[Callable[[int], Any], Callable[[np.ndarray], set[tuple[int, ...]]]]] = {
    "default": (lambda d: None, lambda z: labels_of(z, 1) or everywhere(z)),
    "predicted": (lambda d: predicted_region(), lambda z: labels_of(z, 1) or everywhere(z)),
    "whole": (lambda d: whole_output(), everywhere),
    "largest": (lambda d: component(), lambda z: components(labels_of(z, 1))[0]),
    "smallest": (lambda d: component(-1), lambda z: components(labels_of(z, 1))[-1]),
    "second": (lambda d: component(1), lambda z: components(labels_of(z, 1))[1]),
    "boundary": (lambda d: boundary(1), lambda z: band(labels_of(z, 1), z.shape[1:], (1,) * (z.ndim - 1))),
    "uneven boundary": (
        lambda d: boundary(*(2, 0, 1)[:d]), lambda z: band(labels_of(z, 1), z.shape[1:], (2, 0, 1)[: z.ndim - 1])
    ),
    "given": (lambda d: given(SOME[d == 2]), lambda z: set(zip(*np.nonzero(SOME[z.ndim == 3]), strict=True))),
    "voxel": (lambda d: voxel(*(3, 8, 2)[:d]), lambda z: {(3, 8, 2)[: z.ndim - 1]}),
}  # fmt: skip


@DIMS
@pytest.mark.parametrize("name", REGIONS)
def test_a_segmentation_is_scored_over_its_region_and_nowhere_else(dims: int, name: str) -> None:
    make, places_of = REGIONS[name]
    output = distinct(dims)
    settled = one_class(1, region=make(dims)).settled(output)
    scores = settled(output)
    slope = torch.autograd.grad(scores.sum(), output)[0].numpy()
    for n, z in enumerate(output.detach().numpy()):
        places = places_of(z)
        assert len(places) > 0
        assert np.isclose(scores[n].item(), sum(z[(1, *place)] for place in places), rtol=1e-12)
        assert {tuple(map(int, at)) for at in np.argwhere(slope[n])} == {(1, *map(int, place)) for place in places}
        assert set(slope[n][slope[n] != 0]) == {1.0}


@DIMS
def test_the_component_at_a_voxel_is_the_one_that_holds_it(dims: int) -> None:
    output = distinct(dims)
    first = output.detach().numpy()[0]
    part = components(labels_of(first, 1))[1]
    alone = output[:1].detach()
    found = scores_of(one_class(1, region=component_at(*min(part))), alone)
    np.testing.assert_allclose(found, [sum(first[(1, *place)] for place in part)], rtol=1e-12)


@DIMS
def test_several_classes_join_their_regions_and_a_difference_takes_the_first_ones(dims: int) -> None:
    output = distinct(dims)
    joined, apart = scores_of(several_classes([1, 2]), output), scores_of(difference(1, 2), output)
    against = scores_of(negation(1), output)
    for n, z in enumerate(output.detach().numpy()):
        both, first = labels_of(z, 1) | labels_of(z, 2), labels_of(z, 1)
        assert np.isclose(joined[n], sum(z[(1, *p)] + z[(2, *p)] for p in both), rtol=1e-12)
        assert np.isclose(apart[n], sum(z[(1, *p)] - z[(2, *p)] for p in first), rtol=1e-12)
        assert np.isclose(against[n], -sum(z[(1, *p)] for p in first), rtol=1e-12)


@DIMS
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_segmentations_probability_is_summed_over_the_region(dims: int, kind: str) -> None:
    output = distinct(dims)
    scores = as_target(1, score="probability", activation=kind).settled(output)(output).detach().numpy()
    chance = {"softmax": softmax, "sigmoid": sigmoid}[kind]
    for n, z in enumerate(output.detach().numpy()):
        places = labels_of(z, 1) if kind == "softmax" else {p for p in everywhere(z) if z[(1, *p)] > 0}
        assert np.isclose(scores[n], sum(chance(z)[(1, *p)] for p in places), rtol=1e-12)


@DIMS
def test_the_class_predicted_for_a_segmentation_has_the_most_voxels_but_background(dims: int) -> None:
    output = segmentation(dims, classes=4)
    found = predicted().settled(output).classes.tolist()
    labels = as_target(predicted(), activation="sigmoid").settled(output).classes.tolist()
    for n, z in enumerate(output.detach().numpy()):
        counts = [len(labels_of(z, c)) for c in range(4)]
        assert found[n] == 1 + int(np.argmax(counts[1:]))
        assert labels[n] == int(np.argmax([(channel > 0).sum() for channel in z]))


@DIMS
def test_a_class_predicted_nowhere_is_scored_over_the_whole_output_and_it_is_said(dims: int) -> None:
    output = segmentation(dims).detach()
    output[1, 0] += 100  # the second sample is background only
    output.requires_grad_()
    for region in (None, component(), component(-1), boundary(1)):
        settled = one_class(1, region=region).settled(output)
        torch.testing.assert_close(settled(output)[1], output[1, 1].sum())
        assert settled.notes[1] == ("The network predicts class 1 nowhere; its score is summed over the whole output.",)
        assert settled.notes[0] == ()
    assert as_target(None).settled(output).notes[1] == (
        "The network predicts background only; class 1 is explained, summed over the whole output.",
    )
    words = "The network predicts class 1 and class 2 nowhere; their scores are summed over the whole output."
    assert several_classes([1, 2]).settled(output).notes[1] == (words,)


@DIMS
def test_a_class_predicted_everywhere_has_no_border(dims: int) -> None:
    output = segmentation(dims).detach()
    output[2, 1] += 100
    settled = one_class(1, region=boundary(2)).settled(output.requires_grad_())
    torch.testing.assert_close(settled(output)[2], output[2, 1].sum())
    assert settled.notes[2] == (
        "The network predicts class 1 everywhere, so there is no border; its score is summed over the whole output.",
    )


def test_a_region_may_be_given_for_each_sample_or_for_all() -> None:
    output = segmentation(2)
    masks = torch.rand(3, *SIDES[:2]) > 0.5
    expected = (output[:, 2] * masks).flatten(1).sum(1)
    for given_masks in (masks, masks.numpy(), masks.numpy().astype(np.uint8), masks.double()):
        torch.testing.assert_close(one_class(2, region=given(given_masks)).settled(output)(output), expected)
    shared = (output[:, 2] * masks[0]).flatten(1).sum(1)
    torch.testing.assert_close(one_class(2, region=given(masks[0])).settled(output)(output), shared)
    torch.testing.assert_close(one_class(2, region=given(masks[:1])).settled(output)(output), shared)


def test_a_region_that_was_given_does_not_change_with_the_array() -> None:
    output, mask = segmentation(2), np.zeros(SIDES[:2], bool)
    mask[1, 2] = True
    target = one_class(2, region=given(mask))
    mask[:] = True
    torch.testing.assert_close(target(output), output[:, 2, 1, 2])


def test_half_precision_does_not_overflow_in_a_sum() -> None:
    output = torch.full((1, 2, 40, 50), 100.0, dtype=torch.float16)
    scores = one_class(1, region=whole_output()).settled(output)(output)
    assert (scores.dtype, scores.item()) == (torch.float32, 200_000)


def test_infinite_scores_elsewhere_do_no_harm() -> None:
    output = segmentation(2).detach()
    output[:, 2] = -torch.inf  # a class that the network rules out
    output[:, 1, 0, 0] = -torch.inf
    settled = one_class(1).settled(output.requires_grad_())
    slope = torch.autograd.grad(settled(output).sum(), output)[0]
    assert torch.isfinite(settled(output)).all()
    assert torch.isfinite(slope).all()
