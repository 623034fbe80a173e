"""Which of a network's outputs is explained, how it is read, and what does not exist in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import DynUNet

from engine.toy_outputs import (
    classifier,
    segmentation,
)
from medcam.engine.targets import (
    Unsettled,
    as_target,
    boundary,
    component,
    component_at,
    finer,
    given,
    negation,
    one_class,
    predicted,
    voxel,
)
from medcam.errors import UsageError

DIMS = pytest.mark.parametrize("dims", [2, 3])


def test_of_several_outputs_one_is_chosen_and_said_or_named_by_the_user() -> None:
    a, b = classifier(), classifier(4)
    c = segmentation(2)
    nested = {"boundary": c, "heads": [a, {"deep": b}]}
    wanted = {"heads[1]['deep']": b, "heads[0]": a, "boundary": c, "output['heads'][1]": b, "heads[-2]": a}
    for output, name, tensor in [
        *((nested, name, tensor) for name, tensor in wanted.items()),
        ((a, [c, b]), 0, a), ((a, [c, b]), "[1][1]", b), ((a, [c, b]), "1", c), ({3: a, 4: b}, "[4]", b), ({"out 1": a}, "out 1", a),
    ]:  # fmt: skip
        settled = as_target(1, output=name, input_shape=(3, 1, 7, 9)).settled(output)
        torch.testing.assert_close(settled(output), one_class(1)(tensor))
        assert settled.notes[0] == ()
    settled = as_target(1, input_shape=(3, 1, 7, 9)).settled((a, [c, b]))
    assert settled.notes[0] == ("The network has several outputs; the one explained is output[0].",)
    torch.testing.assert_close(settled((a, [c, b])), a[:, 1])
    preferred = as_target(1).settled({"aux": c, "logits": a})
    assert preferred.notes[0] == ("The network has several outputs; the one explained is output['logits'].",)
    assert as_target(1).settled([a]).notes[0] == ()  # nothing else could have been meant


def test_of_several_voxel_maps_as_of_hovernet_the_first_is_explained_and_said() -> None:
    maps = {name: segmentation(2) for name in ("nucleus_prediction", "horizontal_vertical", "type_prediction")}
    settled = as_target(1, input_shape=(3, 3, 7, 9)).settled(maps)
    assert settled.notes[0][0] == "The network has several outputs; the one explained is output['nucleus_prediction']."
    types = as_target(1, input_shape=(3, 3, 7, 9), output="type_prediction").settled(maps)
    torch.testing.assert_close(types(maps), one_class(1)(maps["type_prediction"]))


def test_what_cannot_be_scores_is_passed_over() -> None:
    tokens, whole_numbers, scores = torch.randn(3, 9, 16), torch.zeros(3, 4, dtype=torch.long), classifier()
    settled = as_target(1, input_shape=(3, 1, 7, 9)).settled((tokens, whole_numbers, scores))
    torch.testing.assert_close(settled((tokens, whole_numbers, scores)), scores[:, 1])


@DIMS
def test_of_a_stack_of_deep_supervision_heads_the_first_is_explained_and_said(dims: int) -> None:
    sides = (16, 24, 32)[:dims]
    network = DynUNet(
        dims, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(2, 4, 4), deep_supervision=True, deep_supr_num=1, res_block=False
    ).train()  # fmt: skip
    stack = network(torch.randn(2, 1, *sides))
    assert stack.shape == (2, 2, 2, *sides)
    settled = as_target(1, input_shape=(2, 1, *sides)).settled(stack)
    torch.testing.assert_close(settled(stack), one_class(1)(stack[:, 0]))
    assert settled.notes[0][0] == (
        "The output is a stack of 2 heads, as in deep supervision; the first, output[:, 0], is explained."
    )
    with pytest.raises(UsageError, match="no such tensor"):  # else voxels would pass for classes
        as_target(1, input_shape=(2, 1, *sides), output="[:, 1]").settled(stack[:, 0])
    second = as_target(1, input_shape=(2, 1, *sides), output="[:, 1]").settled(stack)
    torch.testing.assert_close(second(stack), one_class(1)(stack[:, 1]))


ENDS = {"softmax": lambda z: z.softmax(1), "sigmoid": lambda z: z.sigmoid()}


@pytest.mark.parametrize("kind", ENDS)
def test_a_network_that_ends_in_a_probability_is_seen_in_its_graph_also_behind_a_view(kind: str) -> None:
    output = ENDS[kind](classifier())
    for seen in (output, output.reshape(3, 5, 1).squeeze(2), output.clone()):
        settled = as_target(1).settled(seen)
        assert settled.score == "probability"
        assert "ends in a sigmoid or softmax" in settled.notes[0][0]
        torch.testing.assert_close(settled(seen), seen[:, 1])
        assert settled.chance is not None
        torch.testing.assert_close(settled.chance(seen), seen[:, 1])
        torch.testing.assert_close(as_target(negation(1), score="probability").settled(seen)(seen), 1 - seen[:, 1])


def test_without_a_graph_a_softmax_is_seen_by_its_sums_and_a_sigmoid_is_asked_about() -> None:
    wide = classifier(9).detach()
    assert as_target(1).settled(wide.softmax(1)).score == "probability"
    settled = as_target(1, activation="sigmoid").settled(wide.sigmoid())
    assert settled.score == "logit"
    assert settled.notes[0] == (
        "All scores of this sample lie between 0 and 1; if the network itself ends in a sigmoid, say that with activation 'none'.",
    )
    told = as_target(1, activation="none").settled(wide.sigmoid())
    assert told.score == "probability"
    assert "ends in a sigmoid or softmax" in told.notes[0][0]
    assert as_target(1).settled(wide).notes == ((), (), ())


def test_a_segmentation_that_ends_in_a_sigmoid_is_predicted_above_a_half() -> None:
    logits = segmentation(2)
    output = logits.sigmoid()
    torch.testing.assert_close(one_class(0)(output), (output[:, 0] * (logits[:, 0] > 0)).flatten(1).sum(1))
    assert predicted().settled(output).classes.tolist() == (logits > 0).flatten(2).sum(2).argmax(1).tolist()


SEGMENTATION = torch.zeros(2, 3, 7, 9)
SEGMENTATION[:, 1, 0, 0] = SEGMENTATION[1, 1, 4, 4] = 5


@pytest.mark.parametrize(
    ("target", "output", "words"),
    [
        (one_class(5), torch.zeros(2, 5), "class 5 does not exist: this network has classes 0 to 4"),
        (one_class(1), torch.zeros(2, 1), "class 1 does not exist: this network has only class 0"),
        (one_class([0, 1, 1]), torch.zeros(2, 5), "3 classes were given for a batch of 2 samples"),
        (finer(0), torch.zeros(2, 1), "Finer-CAM compares a class with others, and this network has only class 0"),
        (one_class(1, region=component()), torch.zeros(2, 5), r"a region needs a segmentation.*shape is \(2, 5\)"),
        (
            one_class(1, region=component(1)),
            SEGMENTATION,
            "no component 1 of the class in sample 0: it has 1 component, number 0",
        ),
        (one_class(1, region=component(2)), SEGMENTATION[1:], "2 components, numbered 0 to 1 from the largest"),
        (one_class(2, region=component(1)), SEGMENTATION, "it has 0 components, nowhere predicted"),
        (one_class(1, region=component_at(4, 4)), SEGMENTATION, r"not predict the class at voxel \(4, 4\) of sample 0"),
        (
            one_class(1, region=component_at(4, 9)),
            SEGMENTATION,
            r"no voxel \(4, 9\): the network's output has 7 x 9 voxels",
        ),
        (one_class(1, region=voxel(7, 0)), SEGMENTATION, r"no voxel \(7, 0\)"),
        (one_class(1, region=voxel(1, 1, 1)), SEGMENTATION, r"no voxel \(1, 1, 1\)"),
        (one_class(1, region=boundary(1, 1, 1)), SEGMENTATION, "boundary has 3 radii and the output has 2 axes"),
        (one_class(1, region=given(np.ones((7, 8)))), SEGMENTATION, r"the region has shape \(7, 8\).* voxels \(7, 9\)"),
        (one_class(1, region=given(np.zeros((7, 9)))), SEGMENTATION, "the region given for sample 0 is empty"),
        (
            as_target(1, output="seg"),
            {"a": torch.zeros(2, 3)},
            r"no output 'seg'; .* gives output\['a'\], a tensor of shape \(2, 3\)",
        ),
        (as_target(1, output="a[0]"), {"a": torch.zeros(2, 3)}, r"no output 'a\[0\]'"),
        (as_target(1, output=2), (torch.zeros(2, 3), "x"), r"no output '2'; .* output\[0\], .*; output\[1\], a str"),
        (as_target(1, output="a[b"), {}, "an output is named by a key or an index"),
        (as_target(1, output="[1]"), (torch.zeros(2, 3), 7), r"at output\[1\] there is no such tensor"),
        (as_target(1, output="[:, 4]"), torch.zeros(2, 3, 2, 7, 9), r"at output\[:, 4\] there is no such tensor"),
        (one_class(1), "text", "this network gives a str"),
        (one_class(1), (), "this network gives nothing"),
        (
            one_class(1),
            {"classification": [SEGMENTATION], "box_regression": [SEGMENTATION]},
            "gives boxes, not classes",
        ),
        (one_class(1), [{"boxes": torch.zeros(2, 4)}], "boxes are selected already"),
    ],
)
def test_what_does_not_exist_in_the_output_is_refused_in_words(target: Unsettled, output: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        target.settled(output)
