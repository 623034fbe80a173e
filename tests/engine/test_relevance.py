"""The right numbers, and no trace on the network: the contracts of the engine."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.networks.nets import DenseNet121, UNet
from torch import Tensor, nn

from engine.toy_networks import Classifier, Reused, Segmenter, Tuples, conv, image
from medcam.engine import Relevance, relevance
from medcam.engine.capture import capture, gradients
from medcam.errors import MedcamError, ModelError, UsageError
from medcam.lesion_net import LesionNet

DIMS = pytest.mark.parametrize("dims", [2, 3])


def grad_cam_by_loops(activation: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Selvaraju et al. 2017, eqs. 1 and 2 without the ReLU, one number at a time."""
    batch, channels, *cells = activation.shape
    result = np.zeros((batch, *cells))
    for n in range(batch):
        for k in range(channels):
            weight = 0.0
            for place in np.ndindex(*cells):
                weight += slope[(n, k, *place)] / np.prod(cells)
            for place in np.ndindex(*cells):
                result[(n, *place)] += weight * activation[(n, k, *place)]
    return result


@DIMS
def test_grad_cam_is_the_papers_formula_for_each_sample_of_a_batch(dims: int) -> None:
    network, x, classes = Classifier(dims).double().eval(), image(dims).double(), [2, 0, 3]
    kept: dict[str, Tensor] = {}
    twin = copy.deepcopy(network)
    twin.act = nn.ReLU()  # not in place, so that the twin may keep what the block gave
    twin.block.register_forward_hook(lambda _m, _a, out: kept.update(a=out))
    logits = twin(x)
    slopes = [torch.autograd.grad(logits[n, c], kept["a"], retain_graph=True)[0][n] for n, c in enumerate(classes)]
    expected = grad_cam_by_loops(kept["a"].detach().numpy(), torch.stack(slopes).numpy())
    found = relevance(network, x, layer="block", target=classes)
    np.testing.assert_allclose(found.values.numpy(), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.scores.numpy(), [logits[n, c].item() for n, c in enumerate(classes)], rtol=1e-6)


def test_grad_cam_of_a_case_worked_by_hand() -> None:
    """One channel is the image, the other its negative; the score is 3 times the first one's sum."""
    network = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(8, 1, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
        network[2].weight.copy_(torch.tensor([[3.0, 3, 3, 3, 1, 1, 1, 1]]))
    found = relevance(network, torch.tensor([[[[1.0, 2], [3, 4]]]]), layer="0", target=0)
    # Weights 3 and 1: 3 x - 1 x = 2 x.
    assert found.values.tolist() == [[[2, 4], [6, 8]]]


@DIMS
@pytest.mark.parametrize("make", [Classifier, Segmenter, Reused, Tuples])
def test_a_batch_is_explained_as_its_samples_one_by_one(dims: int, make: Callable[[int], nn.Module]) -> None:
    network, x = make(dims).eval(), image(dims)
    layer = {Classifier: "block", Segmenter: "deep", Reused: "act", Tuples: "block"}[make]
    classes = [2, 0, 1]
    together = relevance(network, x, layer=layer, target=classes)
    alone = [relevance(network, x[n : n + 1], layer=layer, target=classes[n]) for n in range(3)]
    torch.testing.assert_close(together.values, torch.cat([one.values for one in alone]), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(together.scores, torch.cat([one.scores for one in alone]), rtol=1e-4, atol=1e-5)


def fingerprint(network: nn.Module) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, module in network.named_modules():
        found[name] = (
            module.training, getattr(module, "inplace", None), len(module._forward_hooks), len(module._forward_pre_hooks),
            len(module._backward_hooks), sorted(vars(module)),
        )  # fmt: skip
    for name, p in network.named_parameters():
        found["p " + name] = (
            p.data_ptr(),
            p._version,
            p.requires_grad,
            None if p.grad is None else p.grad.sum().item(),
        )
    for name, b in network.named_buffers():
        found["b " + name] = (b.data_ptr(), b._version, b.sum().item())
    return found


@DIMS
@pytest.mark.parametrize("training", [False, True])
def test_the_network_is_left_as_it_was_also_after_an_error(dims: int, training: bool) -> None:
    network = Classifier(dims).train(training)
    network.stem.eval()
    network.head.bias.requires_grad_(False)
    network.stem.weight.grad = torch.ones_like(network.stem.weight)
    before, grad_mode = fingerprint(network), torch.is_grad_enabled()
    relevance(network, image(dims))
    with pytest.raises(MedcamError):
        relevance(network, image(dims), layer="block", target=99)
    with pytest.raises(ModelError):
        relevance(network, torch.randn(2, 7, *(8,) * dims), layer="block")
    assert fingerprint(network) == before
    assert torch.is_grad_enabled() == grad_mode


@DIMS
def test_a_network_that_cannot_be_copied_is_left_as_it_was_too(dims: int) -> None:
    network, x = Classifier(dims).train(), image(dims)
    expected = relevance(network, x, layer="block", target=1).values
    network.lock = threading.Lock()  # deepcopy refuses locks
    before = {name: b.clone() for name, b in network.named_buffers()}
    hooks = len(network.block._forward_hooks)
    found = relevance(network, x, layer="block", target=1).values
    torch.testing.assert_close(found, expected)
    assert len(network.block._forward_hooks) == hooks
    for name, b in network.named_buffers():
        torch.testing.assert_close(b, before[name])


@DIMS
def test_nothing_before_the_layer_has_a_graph(dims: int) -> None:
    network, recorded = Classifier(dims).eval(), {}
    for name in ("stem", "act"):
        module = getattr(network, name)
        module.register_forward_hook(lambda _m, _a, out, name=name: recorded.__setitem__(name, out.requires_grad))
    captured = capture(network, image(dims), ["block"])
    assert recorded == {"stem": False, "act": True}
    block = captured.layers["block"]
    assert block.native.is_leaf
    assert gradients(captured, captured.output[:, 0], ["block"])["block"].shape == block.features.shape
    assert all(p.grad is None for p in network.parameters())


@DIMS
@pytest.mark.parametrize("state", ["frozen", "no_grad", "inference_mode"])
def test_it_works_where_gradients_are_off(dims: int, state: str) -> None:
    network, x = Classifier(dims).eval(), image(dims)
    expected = relevance(network, x, layer="block", target=1).values
    if state == "frozen":
        network.requires_grad_(False)
        found = relevance(network, x, layer="block", target=1)
    else:
        with torch.no_grad() if state == "no_grad" else torch.inference_mode():
            found = relevance(network, x + 0, layer="block", target=1)
    torch.testing.assert_close(found.values, expected)


@DIMS
def test_a_later_in_place_relu_does_not_change_the_activation(dims: int) -> None:
    network, x = Classifier(dims).eval(), image(dims)
    captured = capture(network, x, ["block"]).layers["block"]
    with torch.no_grad():
        expected = network.block(network.stem(x))
    assert (expected < 0).any()
    torch.testing.assert_close(captured.features.detach(), expected)


@DIMS
def test_a_layer_that_runs_twice_is_explained_at_its_last_call(dims: int) -> None:
    network, x = Reused(dims).eval(), image(dims)
    found = relevance(network, x, layer="act", target=0)
    with torch.no_grad():
        last = network.second(network.first(x).relu()).relu()
    expected = torch.einsum("k,bk...->b...", network.head.weight[0].detach(), last) / last[0, 0].numel()
    torch.testing.assert_close(found.values, expected)
    assert any("runs 2 times" in note for note in found.notes[0])


@DIMS
def test_the_output_and_the_layer_may_hide_in_a_tuple_or_dictionary(dims: int) -> None:
    found = relevance(Tuples(dims).eval(), image(dims), layer="block", target=1)
    assert any("output['logits']" in note for note in found.notes[0])
    assert found.values.abs().max() > 0


@DIMS
def test_autocast_to_bfloat16_gives_nearly_the_same_map_in_float32(dims: int) -> None:
    network, x = Classifier(dims).eval(), image(dims)
    exact = relevance(network, x, layer="block", target=1).values
    with torch.autocast("cpu", torch.bfloat16):
        found = relevance(network, x, layer="block", target=1).values
    assert found.dtype == torch.float32
    assert torch.corrcoef(torch.stack([found.flatten(), exact.flatten()]))[0, 1] > 0.99


def test_several_threads_may_explain_one_network_at_once() -> None:
    network, images = Classifier(2).eval(), [image(2) for _ in range(6)]
    expected = [relevance(network, x, layer="block", target=1).values for x in images]
    found: list[Tensor | None] = [None] * 6

    def work(n: int) -> None:
        found[n] = relevance(network, images[n], layer="block", target=1).values

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other)


@DIMS
def test_a_batch_norm_in_training_mode_keeps_using_batch_statistics_and_it_is_said(dims: int) -> None:
    network, x = Classifier(dims).train(), image(dims)
    found = relevance(network, x, layer="block", target=1)
    with torch.no_grad():
        logits = copy.deepcopy(network)(x)
    torch.testing.assert_close(found.scores, logits[:, 1])
    assert any("training mode" in note for note in found.notes[0])


@DIMS
def test_the_predicted_class_is_explained_and_named_unless_told_otherwise(dims: int) -> None:
    network, x = Classifier(dims).eval(), image(dims)
    found = relevance(network, x, layer="block")
    with torch.no_grad():
        logits = network(x)
    assert found.classes == tuple(logits.argmax(1).tolist())
    assert found.notes[1][-1] == f"No target was given; the predicted class, {found.classes[1]}, is explained."
    torch.testing.assert_close(found.probabilities, logits.softmax(1).amax(1))
    assert relevance(network, x, layer="block", target=2).notes == ((),) * 3


@DIMS
def test_a_single_logit_speaks_for_class_0_with_a_sigmoid(dims: int) -> None:
    network, x = LesionNet(dims, (3, 4, 5, 6)).eval(), torch.randn(2, 1, *(24, 32, 40)[:dims])
    found = relevance(network, x)
    assert (found.layer, found.classes) == ("features", (0, 0))
    torch.testing.assert_close(found.probabilities, found.scores.sigmoid())
    unlikely = [", which the network finds unlikely here" if s < 0 else "" for s in found.scores]
    for notes, doubt in zip(found.notes, unlikely, strict=True):
        assert notes[-1] == f"No target was given; the network's only class, 0, is explained{doubt}."
    chance = relevance(network, x, score="probability")
    torch.testing.assert_close(chance.scores, found.probabilities)
    slope = found.probabilities * (1 - found.probabilities)
    torch.testing.assert_close(chance.values, found.values * slope.reshape(2, *[1] * dims), rtol=1e-4, atol=1e-6)


@DIMS
def test_a_segmentation_is_scored_over_the_region_it_predicts(dims: int) -> None:
    network, x = Segmenter(dims).eval(), image(dims)
    found = relevance(network, x, layer="deep", target=1)
    with torch.no_grad():
        logits = network(x)
    for n in range(3):
        region = logits[n].argmax(0) == 1
        expected = logits[n, 1][region].sum() if region.any() else logits[n, 1].sum()
        torch.testing.assert_close(found.scores[n], expected, rtol=1e-4, atol=1e-4)
    assert found.probabilities is None


def test_a_class_that_a_segmentation_predicts_nowhere_is_scored_over_the_whole_output_and_it_is_said() -> None:
    network, x = Segmenter(2).eval(), image(2)
    with torch.no_grad():
        network.out.bias[2] = -1e3
        total = network(x)[:, 2].flatten(1).sum(1)
    found = relevance(network, x, layer="deep", target=2)
    torch.testing.assert_close(found.scores, total)
    assert "predicts class 2 nowhere" in found.notes[0][-1]


def test_a_target_of_the_users_own_sees_the_whole_output() -> None:
    network, x = Classifier(2).eval(), image(2)
    found = relevance(network, x, layer="block", target=lambda out: out[:, 1] - out[:, 2])
    one, two = (relevance(network, x, layer="block", target=c).values for c in (1, 2))
    torch.testing.assert_close(found.values, one - two)
    with pytest.raises(UsageError, match="one score for each of 3 samples"):
        relevance(network, x, layer="block", target=lambda out: out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layer": "blok"}, "did you mean block"),
        ({"target": 4}, "class 4 does not exist: this network has classes 0 to 3"),
        ({"target": [0, 1]}, "2 classes were given for a batch of 3"),
        ({"method": "magic"}, "there is no method 'magic'"),
        ({"score": "odds"}, "not 'odds'"),
        ({"layer": "head"}, "not a feature map with 2 spatial axes"),
    ],
)
def test_a_wrong_wish_is_refused_in_words(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        relevance(Classifier(2).eval(), image(2), **arguments)


def test_a_layer_that_the_score_does_not_depend_on_is_refused() -> None:
    class Detached(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.pool(self.act(self.block(self.stem(x))).detach()).flatten(1))

    with pytest.raises(UsageError, match="does not depend on layer 'block'"):
        relevance(Detached(2).eval(), image(2), layer="block")


def doubts(network: nn.Module, x: Tensor, layer: str) -> str:
    return " ".join(relevance(network.eval(), x, layer=layer, target=0).notes[0])


@DIMS
def test_weights_that_cancel_in_front_of_an_instance_norm_are_noticed(dims: int) -> None:
    instance = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims]

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = conv(dims)(2, 6, 3, padding=1), instance(6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.conv(x)).relu().flatten(2).mean(2))

    network, x = Normed(), image(dims)
    assert "cancels to rounding noise" in doubts(network, x, "conv")
    assert "cancels" not in doubts(network, x, "norm")


def test_blank_negative_and_broken_maps_are_explained_in_words() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(36, 1))
    x = torch.rand(1, 1, 6, 6) + 0.1

    def set_to(weight: float, head: float) -> nn.Module:
        with torch.no_grad():
            for p, value in zip(network.parameters(), (weight, 0.0, head, 0.0), strict=True):
                p.fill_(value)
        return network

    assert doubts(set_to(1, 1), x, "0") == ""
    assert "no positive value" in doubts(set_to(1, -1), x, "0")
    assert "zero everywhere" in doubts(set_to(1, 0), x, "0")
    assert "not finite" in doubts(set_to(float("inf"), 1), x, "0")
    assert "only 2 x 2 cells" in doubts(nn.Sequential(nn.Conv2d(1, 1, 3, 3), nn.Flatten(), nn.Linear(4, 1)), x, "0")


def test_the_map_on_the_input_peaks_at_the_centre_of_the_hottest_cell() -> None:
    values = torch.zeros(1, 4, 5)
    values[0, 2, 1] = 1
    found = Relevance(values, (4.0, 3.0), (1.0, 0.0), (17, 14), "x", "grad-cam", (0,), torch.ones(1), None, ((),))
    on_input = found.on_input()[0]
    assert on_input.shape == (17, 14)
    assert on_input[9, 3] == 1
    assert (on_input == 1).sum() == 1
    torch.testing.assert_close(on_input[7, 3], torch.tensor(0.5))


def test_real_networks_of_monai_are_explained_at_their_default_layers() -> None:
    dense = relevance(DenseNet121(spatial_dims=2, in_channels=1, out_channels=3).eval(), torch.randn(2, 1, 64, 96))
    assert (dense.layer, dense.stride, dense.offset) == ("class_layers.relu", (32.0, 32.0), (14.0, 14.0))
    unet = UNet(3, 1, 2, (4, 8, 16), (2, 2), num_res_units=2).eval()
    found = relevance(unet, torch.randn(1, 1, 16, 24, 32))
    assert (found.layer, found.on_input().shape) == ("model.1", (1, 16, 24, 32))


class Labels(nn.Module):
    """Three labels of which several may hold; `end` is what the network itself ends in."""

    def __init__(self, end: nn.Module | None = None, dims: int = 2, segments: bool = False) -> None:
        super().__init__()
        self.conv, self.segments = conv(dims)(2, 3, 3, padding=1), segments
        self.head = conv(dims)(3, 3, 1)
        self.end = end or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        scores = self.head(self.conv(x).relu())
        return self.end(scores if self.segments else scores.flatten(2).mean(2))


@pytest.mark.parametrize("end", [nn.Sigmoid(), nn.Softmax(1)])
def test_an_output_that_is_a_probability_already_is_left_alone_and_it_is_said(end: nn.Module) -> None:
    network, x = Labels(end).eval(), image(2)
    found = relevance(network, x, layer="conv", target=1)
    with torch.no_grad():
        torch.testing.assert_close(found.probabilities, network(x)[:, 1])
    assert "ends in a sigmoid or softmax" in found.notes[0][0]
    assert found.score == "probability"
    assert relevance(Labels().eval(), x, layer="conv", target=1).score == "logit"


def test_labels_that_do_not_exclude_each_other_get_a_sigmoid_where_asked() -> None:
    network, x = Labels().eval(), image(2)
    with torch.no_grad():
        logits = network(x)
    asked = relevance(network, x, layer="conv", target=1, activation="sigmoid")
    torch.testing.assert_close(asked.probabilities, logits[:, 1].sigmoid())
    torch.testing.assert_close(relevance(network, x, layer="conv", target=1).probabilities, logits.softmax(1)[:, 1])
    segmenter = Labels(segments=True).eval()
    with torch.no_grad():
        segmenter.head.bias.copy_(torch.tensor([9.0, 8.0, -9.0]))
        channels = segmenter(x)
    both = relevance(segmenter, x, layer="conv", activation="sigmoid")
    assert both.classes == (0, 0, 0)  # with a sigmoid channel 0 is a label like any other
    second = relevance(segmenter, x, layer="conv", target=1, activation="sigmoid")
    expected = (channels[:, 1] * (channels[:, 1] > 0)).flatten(1).sum(1)
    torch.testing.assert_close(second.scores, expected, rtol=1e-4, atol=1e-3)


def test_a_segmentation_that_predicts_background_only_says_so_in_one_sentence() -> None:
    network, x = Segmenter(2).eval(), image(2)
    with torch.no_grad():
        network.out.bias[0] = 1e3
    notes = relevance(network, x, layer="deep").notes[0]
    assert [note for note in notes if "predicts" in note] == [
        "The network predicts background only; class 1 is explained, summed over the whole output."
    ]


@pytest.mark.parametrize("target", [np.int64(1), torch.tensor(1), [1, 1, 1], np.array([1, 1, 1])])
def test_a_class_may_be_any_kind_of_integer(target: object) -> None:
    network, x = Classifier(2).eval(), image(2)
    assert relevance(network, x, layer="block", target=target).classes == (1, 1, 1)


def test_yes_is_no_class() -> None:
    with pytest.raises(UsageError, match="a target is a class number"):
        relevance(Classifier(2).eval(), image(2), layer="block", target=True)


@pytest.mark.parametrize("inputs", [torch.zeros(2, 5), torch.zeros(0, 2, 8, 8)])
def test_an_input_of_another_kind_is_refused(inputs: Tensor) -> None:
    with pytest.raises(UsageError, match="samples, channels and 2 or 3 spatial axes"):
        relevance(Classifier(2).eval(), inputs, layer="block")
