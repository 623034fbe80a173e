"""Methods on the gradient at the input: the papers' formulas, each sample as if alone, at the cost of two forward passes a gradient."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import DenseNet121
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from engine.test_relevance import fingerprint
from engine.toy_networks import Classifier, Reused, Segmenter, Tuples, conv, norm
from medcam.engine import EXPLAINERS, Relevance, gradients, relevance, relevances
from medcam.engine.baselines import baseline as baseline_image
from medcam.engine.footprint import footprints
from medcam.engine.gradients import integrated_gradients
from medcam.errors import ModelError, UsageError

DIMS = pytest.mark.parametrize("dims", [2, 3])
METHODS = [
    "saliency", "saliency(channels='sum')", "input-x-gradient", "smoothgrad(samples=3)", "guided-backpropagation", "deconvnet",
    "guided-grad-cam", "integrated-gradients(steps=3)", "fullgrad",
]  # fmt: skip
CLASSES = [2, 0, 1]


def ask(network: nn.Module, x: Tensor, method: Any, layer: str | None = None) -> Relevance:
    return relevance(network, x, method=method, target=CLASSES[: len(x)], layer=layer, seed=7)


def image(dims: int) -> Tensor:
    return torch.randn(3, 2, *(5, 6, 4)[:dims], dtype=torch.float64)


class Plain(nn.Module):
    """Convolutions, rectifiers and a head that is not a global average; smooth, so that differences can stand for gradients."""

    def __init__(self, dims: int, act: Callable[[], nn.Module] = nn.Softplus) -> None:
        super().__init__()
        self.first, self.second = conv(dims)(2, 3, 3, padding=1), conv(dims)(3, 4, 3, stride=2, padding=1)
        self.act, self.norm = act(), norm(dims)(4)
        self.head = nn.LazyLinear(3)
        self.double().eval()(image(dims))
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.norm(self.second(self.act(self.first(x))))).flatten(1))


def differences(network: nn.Module, x: Tensor, classes: list[int], step: float = 1e-5) -> np.ndarray:
    """The gradient of each sample's score by central differences, one voxel at a time."""
    result = np.zeros(tuple(x.shape))
    with torch.no_grad():
        for place in np.ndindex(*x.shape):
            for sign in (1, -1):
                moved = x[place[0] : place[0] + 1].clone()
                moved[(0, *place[1:])] += sign * step
                result[place] += sign * network(moved)[0, classes[place[0]]].item() / (2 * step)
    return result


# ---- the formulas --------------------------------------------------------------------------------------------------------------------


@DIMS
def test_saliency_is_the_gradient_and_its_largest_size_among_channels(dims: int) -> None:
    network, x = Plain(dims), image(dims)
    slope = differences(network, x, CLASSES)
    expected = {
        "saliency": np.abs(slope).max(1),
        "saliency(channels='sum')": slope.sum(1),
        "input-x-gradient": (slope * x.numpy()).sum(1),
    }
    for found in relevances(network, x, methods=[*expected], targets=[CLASSES]):
        np.testing.assert_allclose(found.values.numpy(), expected[found.method], atol=1e-8, err_msg=found.method)
        assert (found.stride, found.offset, found.layer) == ((1.0,) * dims, (0.0,) * dims, "")
        assert found.notes == ((),) * 3


@DIMS
def test_smoothgrad_is_the_mean_of_gradients_at_noisy_copies(dims: int) -> None:
    network, x = Plain(dims), image(dims)
    generator = torch.Generator().manual_seed(7)
    total = np.zeros(tuple(x.shape))
    for _ in range(3):
        draw = torch.randn(x.shape[1:], generator=generator).double().numpy()
        noisy = x.numpy().copy()
        for n in range(3):
            noisy[n] += 0.2 * (x[n].max() - x[n].min()).item() * draw
        total += differences(network, torch.as_tensor(noisy), CLASSES)
    found = ask(network, x, "smoothgrad(samples=3, sigma=0.2)")
    np.testing.assert_allclose(found.values.numpy(), np.abs(total / 3).max(1), atol=1e-8)
    once = ask(network, x, "smoothgrad(samples=1, sigma=0)")
    torch.testing.assert_close(once.values, ask(network, x, "saliency").values)


def legendre(steps: int) -> list[tuple[float, float]]:
    places, weights = np.polynomial.legendre.leggauss(steps)
    return [((p + 1) / 2, w / 2) for p, w in zip(places, weights, strict=True)]


PATHS: dict[str, list[tuple[float, float]]] = {
    "gauss-legendre": legendre(5), "midpoint": [(0.1, 0.2), (0.3, 0.2), (0.5, 0.2), (0.7, 0.2), (0.9, 0.2)],
    "trapezoid": [(0, 0.125), (0.25, 0.25), (0.5, 0.25), (0.75, 0.25), (1, 0.125)], "right": [(n / 5, 0.2) for n in range(1, 6)],
}  # fmt: skip


@DIMS
@pytest.mark.parametrize("rule", PATHS)
def test_integrated_gradients_are_the_papers_sum_over_the_path(dims: int, rule: str) -> None:
    network, x = Plain(dims), image(dims)[:, :, ::2, ::2]
    network.head = nn.Linear(4 * 2**dims, 3).double()
    start = x.numpy().min(tuple(range(2, x.ndim)), keepdims=True) + 0 * x.numpy()
    total = np.zeros(tuple(x.shape))
    for place, weight in PATHS[rule]:
        total += weight * differences(network, torch.as_tensor(start + place * (x.numpy() - start)), CLASSES)
    found = ask(network, x, f"integrated-gradients(steps=5, rule='{rule}')")
    np.testing.assert_allclose(found.values.numpy(), ((x.numpy() - start) * total).sum(1), atol=1e-8)


def test_gauss_legendre_places_are_those_of_the_tables() -> None:
    for steps in (1, 2, 7, 32):
        np.testing.assert_allclose(gradients._gauss_legendre(steps), legendre(steps), atol=1e-14)


class Quadratic(nn.Module):
    """Score c is the sum over voxels of a_c x^2 + b_c x of both channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(3, 2, dtype=torch.float64)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2).movedim(1, -1)
        return ((flat**2) @ self.a.T + flat @ self.b.T).sum(1)


@DIMS
@pytest.mark.parametrize("rule", ["gauss-legendre", "midpoint", "trapezoid"])
@pytest.mark.parametrize("baseline", ["zero", "min", "mean", "blur", -0.3, torch.ones(2, 1, 1)])
def test_integrated_gradients_of_a_quadratic_are_its_integral(dims: int, rule: str, baseline: Any) -> None:
    """The integral of a (x' + t (x - x')) over t is in closed form: (x - x') (a (x + x') + b)."""
    network, x = Quadratic().eval(), image(dims)
    if isinstance(baseline, Tensor):
        baseline = baseline.reshape(2, *[1] * dims)
    found = ask(network, x, integrated_gradients(baseline=baseline, steps=2, rule=rule))
    assert found.notes == ((),) * 3
    start = baseline_image(x, baseline)
    a, b = (p.detach()[CLASSES].reshape(3, 2, *[1] * dims) for p in (network.a, network.b))
    torch.testing.assert_close(found.values, ((x - start) * (a * (x + start) + b)).sum(1))


@DIMS
def test_integrated_gradients_add_up_to_the_change_in_score(dims: int) -> None:
    network, x = Plain(dims), 3 * image(dims)
    found = ask(network, x, "integrated-gradients(baseline='mean', steps=24)")
    with torch.no_grad():
        change = found.scores - network(baseline_image(x, "mean"))[torch.arange(3), CLASSES]
    torch.testing.assert_close(found.values.flatten(1).sum(1), change, rtol=1e-6, atol=1e-6)
    assert found.notes == ((),) * 3


def test_a_path_with_too_few_steps_is_said_for_the_samples_it_fails() -> None:
    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(20 * (x.flatten(1).mean(1, keepdim=True) - 0.8)).clone()

    x = torch.stack([torch.ones(1, 4, 5), torch.full((1, 4, 5), 0.001)]).double()
    found = relevance(Steep(), x, target=[0, 0], method="integrated-gradients(baseline='zero', steps=1)")
    change = torch.sigmoid(torch.tensor(20 * 0.2)).double()
    off = ((found.values[0].sum() - change) / change).abs().item()
    assert any(f"off by {off:.0%} of it" in note for note in found.notes[0])
    assert not any("off by" in note for note in found.notes[1])


@DIMS
def test_guided_grad_cam_is_the_product_of_its_two_parts(dims: int) -> None:
    torch.manual_seed(2)  # with some weights nothing positive reaches the input
    network, x = Plain(dims, nn.ReLU), image(dims)
    found = ask(network, x, "guided-grad-cam", "second")
    assert (found.stride, found.offset, found.layer) == ((1.0,) * dims, (0.0,) * dims, "second")
    assert found.values.abs().max() > 1e-6
    guided = ask(network, x, "guided-backpropagation").values
    assert footprints(network, x, ["second"])["second"].stride == (2.0,) * dims
    kept: list[Tensor] = []
    network.second.register_forward_hook(lambda _m, _a, out: kept.append(out))
    logits = network(x)
    for n, c in enumerate(CLASSES):
        slope = torch.autograd.grad(logits[n, c], kept[0], retain_graph=True)[0][n].numpy()
        features = kept[0][n].detach().numpy()
        cam = sum(slope[k].mean() * features[k] for k in range(4)).clip(min=0)
        for place in np.ndindex(*x.shape[2:]):
            value = 0.0
            for cell in np.ndindex(*cam.shape):
                weight = 1.0
                for p, q, many in zip(place, cell, cam.shape, strict=True):
                    # Cells are centred on even voxels; beyond the last one its value goes on.
                    weight *= max(0.0, 1 - abs(min(p / 2, many - 1) - q))
                value += weight * cam[cell]
            assert found.values[(n, *place)].item() == pytest.approx(guided[(n, *place)].item() * value, abs=1e-9)


def test_a_layer_whose_view_is_changed_in_place_afterwards_keeps_its_gradient() -> None:
    """What an instance norm gives is a view; an in-place call on it would cut it out of the graph."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(36, 3))
    network, x = network.double(), image(2)
    plain = ask(network, x, "guided-grad-cam", "1").values
    assert plain.abs().max() > 1e-6
    network[2].inplace = True
    torch.testing.assert_close(ask(network, x, "guided-grad-cam", "1").values, plain)


@pytest.mark.parametrize("method", ["guided-backpropagation", "deconvnet"])
def test_an_in_place_rectifier_behind_an_instance_norm_obeys(method: str) -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(36, 3))
    network, x = network.double(), image(2)
    expected = ask(network, x, method)
    network[2].inplace = True
    torch.testing.assert_close(ask(network, x, method).values, expected.values)
    assert ask(network, x, method).notes == expected.notes


# ---- the contracts -------------------------------------------------------------------------------------------------------------------


def inputs_and_layer(make: Callable[[int], nn.Module], dims: int) -> tuple[Tensor, str]:
    layer = {Classifier: "block", Segmenter: "deep", Reused: "act", Tuples: "block"}[make]
    return torch.randn(3, 2, *(11, 14, 9)[:dims], dtype=torch.float64), layer


@DIMS
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [Classifier, Segmenter, Reused, Tuples])
def test_a_batch_is_explained_as_its_samples_one_by_one(
    dims: int, make: Callable[[int], nn.Module], method: str
) -> None:
    network = make(dims).double().eval()
    x, layer = inputs_and_layer(make, dims)
    together = ask(network, x, method, layer).values
    assert together.shape == (3, *x.shape[2:])
    assert torch.isfinite(together).all()
    alone = [
        relevance(network, x[n : n + 1], method=method, target=CLASSES[n], layer=layer, seed=7).values for n in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("training", [False, True])
def test_the_network_is_left_as_it_was_also_after_an_error(method: str, training: bool) -> None:
    network = Classifier(2).double().train(training)
    network.stem.eval()
    network.head.bias.requires_grad_(False)
    network.stem.weight.grad = torch.ones_like(network.stem.weight)
    x, layer = inputs_and_layer(Classifier, 2)
    before, given = fingerprint(network), x.clone()
    ask(network, x, method, layer)
    with pytest.raises((ModelError, UsageError)):
        ask(network, x[:, :1], method, layer)
    assert fingerprint(network) == before
    assert torch.equal(x, given)
    assert not x.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("state", ["frozen", "no_grad", "inference_mode", "tensor subclass"])
def test_methods_work_where_no_gradient_is_expected(method: str, state: str) -> None:
    from monai.data import MetaTensor

    network = Classifier(3).double().eval()
    x, layer = inputs_and_layer(Classifier, 3)
    expected = ask(network, x, method, layer).values
    network.requires_grad_(state != "frozen")
    guard = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(state, torch.enable_grad)
    with guard():
        given = MetaTensor(x.clone()) if state == "tensor subclass" else x.clone()
        found = ask(network, given, method, layer).values
    assert type(found) is Tensor
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", ["autocast", "half"])
def test_half_precision_gives_float32_maps_near_those_of_float32(method: str, way: str) -> None:
    torch.manual_seed(2)
    network, x = Plain(2, nn.ReLU).float(), image(2).float()
    expected = ask(network, x, method, "second").values
    if way == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            found = ask(network, x, method, "second").values
    else:
        found = ask(network.bfloat16(), x.bfloat16(), method, "second").values
    assert found.dtype == torch.float32
    if method != "fullgrad":  # its rescaling to 0..1 makes much of little
        assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 0.95


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@DIMS
@pytest.mark.parametrize("method", METHODS)
def test_cuda_agrees_with_the_cpu(method: str, dims: int) -> None:
    network, x = Plain(dims, nn.GELU), image(dims)
    expected = ask(network, x, method, "second").values
    found = ask(network.cuda(), x.cuda(), method, "second").values
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-8)


def test_a_network_that_writes_into_its_input_is_explained() -> None:
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(60, 3)).double()
    x = image(2)
    given = x.clone()
    found = ask(network, x, "saliency(channels='sum')").values
    assert torch.equal(x, given)
    expected = (network[2].weight[CLASSES].reshape(3, 2, 5, 6) * (x > 0)).sum(1)
    torch.testing.assert_close(found, expected.detach())


def test_a_network_without_rectifiers_gives_the_plain_gradient_and_says_so() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)).double()
    words = "This network has no rectifier that the rule could act on, so this is the plain gradient."
    for method in ("guided-backpropagation", "deconvnet", "guided-grad-cam"):
        assert all(words in notes for notes in ask(network, image(2), method, "0").notes)
        assert all(words not in notes for notes in ask(Plain(2), image(2), method, "second").notes)


def test_a_blank_map_is_said_for_the_samples_that_have_one() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(60, 3), nn.ReLU()).double()
    with torch.no_grad():
        network[1].bias.copy_(torch.tensor([9.0, -9.0, 9.0]))
    for method in ("saliency", "smoothgrad(samples=2, sigma=0.01)", "deconvnet", "integrated-gradients(steps=2)"):
        notes = ask(network, 0.1 * image(2), method).notes
        blank = [any("the map is blank" in note for note in own) for own in notes]
        assert blank == [False, False, method != "deconvnet"], (
            method
        )  # Deconvnet asks no rectifier whether it is active


def test_a_map_that_is_not_finite_is_said() -> None:
    class Overflowing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).sum(1, keepdim=True).sqrt().expand(-1, 3) * torch.ones(3)

    x = image(2).abs()
    x[1] = 0
    for method in ("saliency", "smoothgrad(samples=2)", "integrated-gradients(steps=2, rule='right')", "fullgrad"):
        notes = ask(Overflowing(), x, method).notes
        assert any("not finite" in note for note in notes[1]), method
        assert method.startswith("smooth") or not any("not finite" in note for note in notes[0]), method


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("saliency(channels='mean')", "'max', 'sum', not 'mean'"), ("smoothgrad(samples=0)", "at least 1, not 0"),
        ("smoothgrad(sigma=-1)", "at least 0, not -1"), ("integrated-gradients(rule='simpson')", "not 'simpson'"),
        ("integrated-gradients(steps=0)", "at least 1"), ("integrated-gradients(steps=1, rule='trapezoid')", "at least 2"),
        ("integrated-gradients(baseline='black')", "'blur', or a number, not 'black'"), ("fullgrad(rescale='both')", "not 'both'"),
        ("guided-grad-cam", "no layer 'third'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(method: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ask(Plain(2), image(2), method, "third")


def test_a_network_without_a_gradient_is_refused() -> None:
    class Detaching(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.detach())

    for method in ("saliency", "guided-backpropagation", "integrated-gradients"):
        with pytest.raises(UsageError, match="does not depend on the input"):
            ask(Detaching(2), image(2), method)


# ---- the cost ------------------------------------------------------------------------------------------------------------------------


class Flops(TorchDispatchMode):
    """Counts multiply-adds of convolutions and matrix products, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry:
            with self:
                whole = func.decompose(*args, **kwargs)
            if whole is not NotImplemented:
                return whole
        result = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
        return result


def flops(work: Callable[[], object]) -> int:
    with Flops() as counter:
        work()
    return counter.total


@DIMS
def test_a_gradient_costs_two_forward_passes(dims: int) -> None:
    network = DenseNet121(dims, 1, 3, block_config=(2, 2, 2), init_features=8, growth_rate=4).eval()
    x = torch.randn(2, 1, *(40, 32, 48)[:dims])
    with torch.no_grad():
        one = flops(lambda: network(x))

    def forwards(method: str, layer: str | None = None) -> float:
        return flops(lambda: relevance(network, x, method=method, target=[1, 2], layer=layer)) / one

    # The pass on which the target is settled is the one whose gradient is asked for.
    for method in ("saliency", "input-x-gradient", "guided-backpropagation", "deconvnet"):
        assert forwards(method) <= 2.0, method
    # Here it comes before the others.
    assert forwards("smoothgrad(samples=4)") <= 1 + 4 * 2.0
    assert forwards("integrated-gradients(steps=4)") <= 1 + 4 * 2.0 + 1  # and the baseline's score
    assert forwards("fullgrad") <= 1 + 2.0
    with torch.no_grad():
        tail = flops(lambda: after(network, x)) / one
    assert forwards("guided-grad-cam", "features.denseblock2") <= 2.0 + tail + 0.002  # the map itself


def after(network: nn.Module, x: Tensor) -> object:
    """Run what follows denseblock2."""
    features = torch.zeros(2, 16, *(n // 8 for n in x.shape[2:]))
    at = list(network.features).index(network.features.denseblock2)
    for module in list(network.features)[at + 1 :]:
        features = module(features)
    return network.class_layers(features)


def test_methods_on_the_clean_gradient_share_one_forward_pass() -> None:
    network = DenseNet121(2, 1, 3, block_config=(2, 2, 2), init_features=8, growth_rate=4).eval()
    x = torch.randn(2, 1, 40, 32)
    methods = ["saliency", "guided-backpropagation", "guided-grad-cam", "deconvnet", "input-x-gradient"]
    with torch.no_grad():
        one = flops(lambda: network(x))
    found: list[Relevance] = []
    spent = flops(lambda: found.extend(relevances(network, x, methods=methods, targets=[[1, 2]], layers=["features"])))
    assert spent <= (1.001 + len(methods)) * one
    for together in found:
        alone = relevance(network, x, method=together.method, target=[1, 2], layer="features")
        torch.testing.assert_close(together.values, alone.values)


@pytest.mark.parametrize("method", ["smoothgrad(samples=6)", "integrated-gradients(steps=6)"])
def test_only_one_graph_is_alive_at_a_time(method: str) -> None:
    alive: list[weakref.ref[Any]] = []
    most = [0]

    def target(output: Tensor) -> Tensor:
        most[0] = max(most[0], sum(ref() is not None for ref in alive))
        if output.requires_grad:
            alive.append(weakref.ref(output))
        return output[:, 0]

    relevance(Plain(2), image(2), target=target, method=method)
    assert len(alive) == 6
    assert most[0] == 0


def test_every_method_here_is_in_the_table() -> None:
    assert {method.split("(")[0] for method in METHODS} <= set(EXPLAINERS)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_and_exported_networks_answer_too() -> None:
    torch.manual_seed(2)
    network, x = Plain(2, nn.ReLU), image(2)
    with torch.no_grad():
        others = [torch.jit.trace(network, x), torch.export.unflatten(torch.export.export(network, (x,)))]
    for method in METHODS:
        if method not in ("guided-grad-cam", "fullgrad"):  # TorchScript keeps its layers closed
            expected = ask(network, x, method).values
            for other in others:
                torch.testing.assert_close(ask(other, x, method).values, expected)
    with pytest.raises(UsageError, match="keeps them closed"):
        ask(others[0], x, "fullgrad")
