"""What is explained: each target against plain loops over an output, alone and in a batch, before and after the output changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engine.toy_outputs import (
    classifier,
    distinct,
    labels_of,
    scores_of,
    segmentation,
    sigmoid,
    softmax,
)
from medcam.engine.targets import (
    Unsettled,
    as_target,
    boundary,
    component,
    difference,
    finer,
    given,
    negation,
    one_class,
    predicted,
    several_classes,
    voxel,
)
from medcam.errors import UsageError

DIMS = pytest.mark.parametrize("dims", [2, 3])
Score = Callable[[np.ndarray], float]


# Classification: each target and the same from one row of logits.
CLASSIFICATIONS: dict[str, tuple[Unsettled, Score]] = {
    "a class": (one_class(2), lambda z: z[2]),
    "several": (several_classes([1, 3]), lambda z: z[1] + z[3]),
    "several minus others": (several_classes([1, 3], [0, 4]), lambda z: z[1] + z[3] - z[0] - z[4]),
    "a difference": (difference(2, 0), lambda z: z[2] - z[0]),
    "not": (negation(4), lambda z: -z[4]),
    "predicted": (predicted(), lambda z: z.max()),
    "predicted minus": (difference(None, 1), lambda z: z.max() - z[1]),
    "finer, told": (finer(2, [0, 3]), lambda z: z[2] - 0.6 * (z[0] + z[3]) / 2),
    "finer, nearest scores": (finer(2, count=2, strength=0.8), lambda z: z[2] - 0.8 * np.mean(z[nearest(z, 2, 2)])),
    "none": (as_target(None), lambda z: z.max()),
}


def nearest(z: np.ndarray, c: int, count: int) -> list[int]:
    others = sorted((abs(z[d] - z[c]), d) for d in range(len(z)) if d != c)
    return [d for _, d in others[:count]]


@pytest.mark.parametrize("name", CLASSIFICATIONS)
def test_a_classifiers_score_is_what_its_words_say(name: str) -> None:
    target, expected = CLASSIFICATIONS[name]
    output = classifier()
    rows = output.detach().numpy()
    np.testing.assert_allclose(scores_of(target, output), [expected(z) for z in rows], rtol=1e-12)


def test_each_sample_may_have_a_class_of_its_own() -> None:
    output = classifier()
    z = output.detach().numpy()
    np.testing.assert_array_equal(scores_of(one_class([2, 0, 4]), output), [z[0, 2], z[1, 0], z[2, 4]])
    np.testing.assert_allclose(
        scores_of(difference([2, 0, 4], 1), output), [z[n, c] - z[n, 1] for n, c in enumerate([2, 0, 4])]
    )
    assert one_class([2, 0, 4]).settled(output).classes.tolist() == [2, 0, 4]
    assert one_class([2, 0, 4]).describe() == "class 2, class 0, class 4 (one a sample)"


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_probability_is_that_of_the_activation(kind: str) -> None:
    output = classifier()
    p = np.stack([{"softmax": softmax, "sigmoid": sigmoid}[kind](z) for z in output.detach().numpy()])
    for target, expected in [
        (one_class(2), p[:, 2]),
        (difference(2, 0), p[:, 2] - p[:, 0]),
        (negation(2), 1 - p[:, 2]),
    ]:
        settled = as_target(target, score="probability", activation=kind).settled(output)
        np.testing.assert_allclose(settled(output).detach().numpy(), expected, rtol=1e-12)
        assert settled.score == "probability"
    chance = as_target(2, activation=kind).settled(output).chance
    assert chance is not None
    np.testing.assert_allclose(chance(output).detach().numpy(), p[:, 2], rtol=1e-12)
    assert as_target(difference(2, 0), activation=kind).settled(output).chance is None


def test_a_single_logit_speaks_for_class_0_and_its_negation_against_it() -> None:
    output = torch.tensor([[-1.0], [2.0]], requires_grad=True)
    assert scores_of(as_target(0), output).tolist() == [-1, 2]
    assert scores_of(negation(0), output).tolist() == [1, -2]
    chances = scores_of(as_target(negation(0), score="probability"), output)
    np.testing.assert_allclose(chances, sigmoid(np.array([1.0, -2.0])), rtol=1e-6)
    notes = as_target(None).settled(output).notes
    assert notes == (
        ("No target was given; the network's only class, 0, is explained, which the network finds unlikely here.",),
        ("No target was given; the network's only class, 0, is explained.",),
    )


def test_the_predicted_class_is_said() -> None:
    output = classifier()
    tops = output.argmax(1).tolist()
    assert as_target(None).settled(output).notes[1] == (
        f"No target was given; the predicted class, {tops[1]}, is explained.",
    )
    settled = predicted().settled(output)
    assert settled.notes[2] == (f"The predicted class, {tops[2]}, is explained.",)
    assert settled.classes.tolist() == tops
    assert one_class(1).settled(output).notes == ((), (), ())


EVERY = {
    "class": one_class([2, 0, 1]),
    "predicted": predicted(),
    "finer": finer(None),
    "difference": difference(None, 0),
    "none": as_target(None),
}
EVERY_REGION = {
    "largest": one_class(1, region=component()),
    "border": one_class([1, 2, 1], region=boundary(1)),
    "predicted": predicted(region=component(-1)),
    "finer": finer(1),
    "several": several_classes([1, 2]),
}


@pytest.mark.parametrize("dims", [0, 2, 3])
def test_a_batch_is_scored_and_described_as_its_samples_one_by_one(dims: int) -> None:
    output = segmentation(dims) if dims else classifier()
    for target in (EVERY | EVERY_REGION if dims else EVERY).values():
        settled = target.settled(output)
        together, notes = settled(output).detach(), settled.notes
        for n in range(3):
            own = one_class([2, 0, 1][n]) if target is EVERY["class"] else target
            own = one_class([1, 2, 1][n], region=boundary(1)) if target is EVERY_REGION["border"] else own
            alone = own.settled(output[n : n + 1])
            torch.testing.assert_close(alone(output[n : n + 1])[0], together[n])
            assert alone.notes[0] == notes[n]


@pytest.mark.parametrize("dims", [0, 2, 3])
def test_what_was_settled_does_not_move_with_later_outputs(dims: int) -> None:
    clean = segmentation(dims) if dims else classifier()
    later = -3 * clean.detach().flip(0) + torch.randn_like(clean)  # other classes and other regions everywhere
    for target in (EVERY | EVERY_REGION if dims else EVERY).values():
        settled = target.settled(clean)
        again = target.settled(clean)
        weights = torch.autograd.grad(settled(clean).sum(), clean)[0]
        # All are linear in the scores, so the clean gradient tells every later score.
        expected = (weights * later).flatten(1).sum(1)
        torch.testing.assert_close(settled(later), expected)
        assert (settled.notes, settled.describe()) == (again.notes, again.describe())
        if dims or target is not EVERY["class"]:
            assert not torch.allclose(target(later), expected)
        assert settled.settled(later) is settled


# Finer-CAM.


class Headed(nn.Module):
    """Class weights of which 0 and 3 point nearly alike, then 1, whatever the scores are."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Linear(2, 4), nn.Linear(2, 4)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[1.0, 0.0], [30.0, 30.0], [-1.0, 0.2], [5.0, 0.5]]))


def test_finer_cam_compares_with_the_classes_whose_weights_are_nearest() -> None:
    output = torch.tensor([[0.0, 9.0, 0.1, -7.0], [1.0, 2.0, 3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    settled = as_target(finer(0, count=2), network=Headed()).settled(output)
    z = output.detach().numpy()
    np.testing.assert_allclose(settled(output).detach().numpy(), z[:, 0] - 0.6 * (z[:, 3] + z[:, 1]) / 2, rtol=1e-12)
    words = "Class 0 is compared with the most similar, class 3 and class 1, by the weights of layer 'head'."
    assert settled.notes == ((words,), (words,))
    assert settled.describe() == "class 0 minus 0.6 times the mean of class 3 and class 1"
    by_scores = finer(0, count=2).settled(output)
    assert by_scores.notes[0] == (
        "Class 0 is compared with the most similar, class 2 and class 3, by the nearness of their scores.",
    )
    assert settled.classes.tolist() == [0, 0]


def test_finer_cam_is_the_average_of_its_differences_and_the_class_alone_at_strength_0() -> None:
    output = classifier()
    told = scores_of(finer(2, [0, 1, 4], strength=1.0), output)
    pairs = [scores_of(difference(2, d), output) for d in (0, 1, 4)]
    np.testing.assert_allclose(told, np.mean(pairs, 0), rtol=1e-12)
    np.testing.assert_allclose(scores_of(finer(2, strength=0.0), output), scores_of(one_class(2), output), rtol=1e-12)
    assert len(finer(2, count=9).settled(output).notes[0][0].split("class ")) == 5  # no more than there are


@DIMS
def test_finer_cam_on_a_segmentation_compares_scores_within_the_region(dims: int) -> None:
    output = distinct(dims)
    found = scores_of(finer(1, count=1), output)
    for n, z in enumerate(output.detach().numpy()):
        places = labels_of(z, 1)
        sums = [sum(channel[p] for p in places) for channel in z]
        other = min((0, 2), key=lambda d: abs(sums[d] - sums[1]))
        assert np.isclose(found[n], sums[1] - 0.6 * sums[other], rtol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dims", [0, 2, 3])
def test_settling_and_scoring_do_not_wait_for_the_device(dims: int) -> None:
    output = (segmentation(dims) if dims else classifier()).cuda()
    shape = (3, 1, *output.shape[2:]) if dims else (3, 1, 8, 8)
    asked = [*EVERY.values(), one_class(1), several_classes([0, 1])]
    if dims:
        asked += [one_class([1, 2, 1], region=make) for make in (boundary(1), whole_output(), voxel(*(1,) * dims))]
    for target in asked:
        expected = target.settled(output.cpu())(output.cpu())
        ready = as_target(target, input_shape=shape)
        torch.cuda.set_sync_debug_mode("error")
        try:
            settled = ready.settled(output)
            scores = settled(output)
            slope = torch.autograd.grad(scores.sum(), output, retain_graph=True)[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.testing.assert_close(scores.cpu(), expected)
        assert torch.isfinite(slope).all()
        assert settled.notes == target.settled(output.cpu()).notes


# Functions of one's own, and what as_target takes.


def test_a_function_of_ones_own_sees_the_whole_output_and_must_give_one_score_a_sample() -> None:
    output = {"a": classifier(), "b": [classifier()]}
    settled = as_target(lambda out: out["a"][:, 0] * out["b"][0][:, 1], input_shape=(3, 1, 8, 8)).settled(output)
    torch.testing.assert_close(settled(output), output["a"][:, 0] * output["b"][0][:, 1])
    assert (settled.classes, settled.chance, settled.notes, settled.score) == (None, None, ((), (), ()), "own")
    assert settled.describe() == "a target of the caller's own"
    assert as_target(lambda out: out["a"][:, 0]).settled(output).notes == ((), (), ())
    wrong: list[tuple[Any, str]] = [
        (lambda out: out["a"], r"shape \(3, 5\)"), (lambda out: out["a"].sum(), r"shape \(\)"), (lambda out: 3.0, "a float"),
    ]  # fmt: skip
    for function, found in wrong:
        with pytest.raises(UsageError, match=f"one score for each of 3 samples, not {found}"):
            as_target(function, input_shape=(3, 1, 8, 8)).settled(output)(output)


@pytest.mark.parametrize("target", [1, np.int64(1), torch.tensor(1), [1, 1, 1], np.array([1, 1, 1]), "1", one_class(1)])
def test_as_target_takes_whatever_names_a_class(target: Any) -> None:
    output = classifier()
    settled = as_target(target).settled(output)
    torch.testing.assert_close(settled(output), output[:, 1])
    assert settled.classes.tolist() == [1, 1, 1]
    assert as_target(settled).settled(output) is settled


@pytest.mark.parametrize(
    "target", [True, [True, False, True], torch.tensor([1.5]), np.array([0.5, 1]), np.array(["a"])]
)
def test_what_names_no_class_is_refused(target: Any) -> None:
    with pytest.raises(UsageError, match="a target is a class number, one for each sample, or a function, not"):
        as_target(target)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"score": "odds"}, "a score is 'logit' or 'probability', not 'odds'"),
        ({"activation": "relu"}, "an activation is 'softmax', 'sigmoid' or 'none', not 'relu'"),
        ({"target": len, "score": "probability"}, "score 'probability' means nothing to a target of the caller's own"),
        ({"target": len, "output": "logits"}, "output 'logits' means nothing to a target of the caller's own"),
        ({"target": "1@nowhere"}, "there is no region 'nowhere'; medcam has whole, predicted, largest"),
    ],
)
def test_a_wrong_wish_is_refused_in_words(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        as_target(**arguments)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: boundary(), "the radius of a boundary"),
        (lambda: boundary(0, 0), "the radius of a boundary"),
        (lambda: boundary(-1), "the radius of a boundary"),
        (lambda: component(True), "whole numbers, not True"),
        (lambda: voxel(3), r"an index along each axis"),
        (lambda: given(np.full((7, 9), 0.5)), "holds true and false"),
        (lambda: several_classes([]), "at least one class"),
        (lambda: finer(1, []), "at least one class to compare with"),
        (lambda: finer(1, count=0), "at least one other, not 0"),
    ],
)
def test_an_impossible_target_is_refused_when_it_is_made(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()


def test_a_settled_target_refuses_an_output_of_another_shape() -> None:
    settled = one_class(1).settled(torch.zeros(2, 5))
    with pytest.raises(
        UsageError, match=r"settled on an output of shape \(2, 5\) and cannot score one of shape \(6, 5\)"
    ):
        settled(torch.zeros(6, 5))
