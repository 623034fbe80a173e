"""The contract table: every method, in 2D and 3D, under everything that users' networks and settings do."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from engine.test_relevance import fingerprint
from engine.toy_networks import Classifier, Reused, Segmenter, Tuples, conv, image
from medcam.engine import EXPLAINERS, Relevance, relevance

DIMS = pytest.mark.parametrize("dims", [2, 3])
# Methods that sample are asked for few samples.
FEW = {
    "rise": "rise(masks=12)", "occlusion": "occlusion(window=4, stride=3)", "smooth-grad-cam++": "smooth-grad-cam++(samples=3)",
    "smoothgrad": "smoothgrad(samples=3)", "integrated-gradients": "integrated-gradients(steps=6)",
}  # fmt: skip
METHODS = pytest.mark.parametrize("method", sorted(EXPLAINERS))
CLASSES = [2, 0, 1]


class Averaged(nn.Module):
    """What every method takes: features (a block in front of an in-place ReLU), an average, one linear layer."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.stem = conv(dims)(2, 4, 3, padding=1)
        self.block = conv(dims)(4, 6, 3, stride=2, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.block(self.stem(x).relu())).flatten(2).mean(2))


class Wrapped(Averaged):
    """The same, with the block's output in a tuple and the scores in a dictionary."""

    class Block(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> tuple[str, Tensor]:
            return "features", self.inner(x)

    def __init__(self, dims: int) -> None:
        super().__init__(dims)
        self.block = Wrapped.Block(self.block)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        _, features = self.block(self.stem(x).relu())
        return {"aux": features, "logits": self.head(self.act(features).flatten(2).mean(2))}


class Shared(Averaged):
    """The same, with one ReLU that serves twice."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.block(self.act(self.stem(x)))).flatten(2).mean(2))


class ChannelsLast(Averaged):
    """The same, with features whose channels are the last axis."""

    class Block(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).movedim(1, -1)

    def __init__(self, dims: int) -> None:
        super().__init__(dims)
        self.block = ChannelsLast.Block(self.block)

    def forward(self, x: Tensor) -> Tensor:
        features = self.block(self.stem(x).relu()).movedim(-1, 1)
        return self.head(self.act(features).flatten(2).mean(2))


def made(dims: int, method: str) -> nn.Module:
    torch.manual_seed(1)
    return (Segmenter(dims) if method.startswith("seg-") else Averaged(dims)).eval()


def layer_of(network: nn.Module, method: str) -> str:
    if isinstance(network, Segmenter):
        return "deep"
    # The original CAM is defined for the features that are averaged.
    return "act" if method == "cam" else "block"


def explained(network: nn.Module, x: Tensor, method: str, **options: object) -> Relevance:
    given = {"layer": layer_of(network, method), "target": CLASSES[: x.shape[0]], **options}
    return relevance(network, x, method=FEW.get(method, method), seed=3, **given)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    scale = float(expected.abs().nan_to_num().max())
    assert scale > 0
    torch.testing.assert_close(found.to(expected), expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def same(found: Relevance, expected: Relevance) -> None:
    close(found.values, expected.values)
    assert (found.stride, found.offset) == (expected.stride, expected.offset)


@METHODS
@DIMS
def test_a_batch_is_its_samples_one_by_one(method: str, dims: int) -> None:
    network, x = made(dims, method), image(dims)
    together = explained(network, x, method)
    for n in range(3):
        alone = explained(network, x[n : n + 1], method, target=[CLASSES[n]])
        close(together.values[n : n + 1], alone.values, 1e-3)
        assert together.notes[n] == alone.notes[0]


@METHODS
@DIMS
def test_the_network_is_untouched(method: str, dims: int) -> None:
    network, x = made(dims, method), image(dims)
    network.train()
    next(network.children()).eval()
    next(network.parameters()).grad = torch.ones_like(next(network.parameters()))
    before, kept = fingerprint(network), x.clone()
    explained(network, x, method)
    assert fingerprint(network) == before
    assert torch.equal(x, kept)
    assert not x.requires_grad
    assert torch.is_grad_enabled()


@METHODS
@DIMS
@pytest.mark.parametrize("state", ["frozen", "no_grad", "inference_mode"])
def test_it_works_where_gradients_are_off(method: str, dims: int, state: str) -> None:
    network, x = made(dims, method), image(dims, 2)
    expected = explained(network, x, method)
    if state == "frozen":
        network.requires_grad_(False)
        found = explained(network, x, method)
    else:
        with torch.no_grad() if state == "no_grad" else torch.inference_mode():
            found = explained(network, x + 0, method)
    same(found, expected)


@METHODS
@DIMS
def test_channels_last_memory_changes_nothing(method: str, dims: int) -> None:
    network, x = made(dims, method), image(dims, 2)
    expected = explained(network, x, method)
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    same(explained(copy.deepcopy(network).to(memory_format=layout), x.to(memory_format=layout), method), expected)


@METHODS
@DIMS
@pytest.mark.parametrize("make", [Wrapped, Shared, ChannelsLast])
def test_tuples_shared_modules_and_trailing_channels_change_nothing(
    method: str, dims: int, make: Callable[[int], nn.Module]
) -> None:
    if method.startswith("seg-"):
        pytest.skip("the segmentation methods are the same rules on another score")
    plain, x = made(dims, method), image(dims, 2)
    other = make(dims).eval()
    state = dict(zip(other.state_dict(), plain.state_dict().values(), strict=True))
    other.load_state_dict(state)
    layer = layer_of(plain, method)
    same(explained(other, x, method, layer=layer), explained(plain, x, method, layer=layer))


@METHODS
@DIMS
def test_an_in_place_relu_behind_the_layer_changes_nothing(method: str, dims: int) -> None:
    network, x = made(dims, method), image(dims, 2)
    plain = copy.deepcopy(network)
    for module in plain.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    same(explained(network, x, method), explained(plain, x, method))


@METHODS
@DIMS
def test_autocast_gives_nearly_the_same_map_in_single_precision(method: str, dims: int) -> None:
    network, x = made(dims, method), image(dims, 2)
    expected = explained(network, x, method)
    with torch.autocast("cpu", torch.bfloat16):
        found = explained(network, x, method)
    assert found.values.dtype == torch.float32
    assert torch.isfinite(found.values).all()
    # Which group a channel falls into, or which one wins, may turn on the last bits.
    if method not in ("cluster-cam", "cosine-cam", "score-cam", "rise", "occlusion"):
        for one, other in zip(found.values.flatten(1), expected.values.flatten(1), strict=True):
            assert float(torch.corrcoef(torch.stack([one, other]))[0, 1]) > 0.9


@METHODS
@DIMS
def test_batch_statistics_stay_what_they_are(method: str, dims: int) -> None:
    if method.startswith("seg-") or method == "cam":
        pytest.skip(
            "covered by the same rules on a classifier" if method != "cam" else "a batch norm stands before its head"
        )
    torch.manual_seed(1)
    network, x = Classifier(dims).train(), image(dims)
    expected = copy.deepcopy(network)(x).detach()
    found = explained(network, x, method)
    torch.testing.assert_close(found.scores, expected[range(3), CLASSES])
    assert any("training mode" in note for note in found.notes[0])


@METHODS
@DIMS
def test_the_same_seed_gives_the_same_bits(method: str, dims: int) -> None:
    network, x = made(dims, method), image(dims, 2)
    assert torch.equal(
        explained(network, x, method).values.nan_to_num(), explained(network, x, method).values.nan_to_num()
    )


def test_the_toy_networks_hide_what_they_should() -> None:
    """The table is worth something only if its networks differ from the plain one in the way that they claim."""
    x = image(2, 2)
    assert isinstance(Wrapped(2)(x), dict)
    assert isinstance(Tuples(2)(x), dict)
    assert ChannelsLast(2).block(torch.randn(1, 4, 5, 6)).shape == (1, 3, 3, 6)
    assert sum(isinstance(m, nn.ReLU) for m in Shared(2).modules()) == 1
    assert Reused(2)(x).shape == (2, 3)
