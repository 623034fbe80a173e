"""Guided backpropagation and Deconvnet hold for every rectifier in every form, and the forward pass never notices."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.networks.blocks.activation import GEGLU, MemoryEfficientSwish, Mish, Swish
from monai.networks.nets import DynUNet, UNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine.toy_networks import conv
from medcam.engine.capture import INPUT, capture, gradients
from medcam.engine.rectifiers import RULES, Rectifiers, Rule, propagating, recording
from medcam.engine.skeleton import skeleton
from medcam.errors import ModelError

DIMS = pytest.mark.parametrize("dims", [2, 3])
NONE = nn.Identity()  # where no module ran
BOTH = pytest.mark.parametrize("rule", RULES)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _normal(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def _gelu_tanh(x: float) -> tuple[float, float]:
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    return 0.5 * x * (1 + math.tanh(inner)), 0.5 * (1 + math.tanh(inner)) + 0.5 * x * slope / math.cosh(inner) ** 2


def _swish(x: float, alpha: float = 1.0) -> tuple[float, float]:
    gate = _sigmoid(alpha * x)
    return x * gate, gate + alpha * x * gate * (1 - gate)


def _mish(x: float) -> tuple[float, float]:
    soft = math.tanh(math.log1p(math.exp(x)))
    return x * soft, soft + x * (1 - soft**2) * _sigmoid(x)


def _hardswish(x: float) -> tuple[float, float]:
    if -3 < x < 3:
        return x * (x + 3) / 6, (2 * x + 3) / 6
    return max(x, 0.0), float(x > 0)


def _elu(x: float, alpha: float = 1.0, scale: float = 1.0) -> tuple[float, float]:
    return (scale * x, scale) if x > 0 else (scale * alpha * math.expm1(x), scale * alpha * math.exp(x))


def _celu(x: float) -> tuple[float, float]:
    return (x, 1.0) if x > 0 else (0.7 * math.expm1(x / 0.7), math.exp(x / 0.7))


def _leaky(slope: float) -> Callable[[float], tuple[float, float]]:
    return lambda x: (x, 1.0) if x > 0 else (slope * x, slope)


# From x to (s(x), s'(x)), written from each function's definition.
SCALAR: dict[str, Callable[[float], tuple[float, float]]] = {
    "relu": lambda x: (max(x, 0.0), float(x > 0)),
    "relu6": lambda x: (min(max(x, 0.0), 6.0), float(0 < x < 6)),
    "cut at 1": lambda x: (min(max(x, 0.0), 1.0), float(0 < x < 1)),
    "leaky": _leaky(0.01), "leaky .2": _leaky(0.2), "rrelu": _leaky((1 / 8 + 1 / 3) / 2),
    "elu": _elu, "elu 2": lambda x: _elu(x, 2.0), "selu": lambda x: _elu(x, 1.6732632423543772, 1.0507009873554805), "celu": _celu,
    "gelu": lambda x: (x * _normal(x), _normal(x) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)),
    "gelu tanh": _gelu_tanh, "swish": _swish, "swish 1.5": lambda x: _swish(x, 1.5), "mish": _mish, "hardswish": _hardswish,
    "softplus": lambda x: (math.log1p(math.exp(x)), _sigmoid(x)),
    "softplus 2": lambda x: (math.log1p(math.exp(2 * x)) / 2, _sigmoid(2 * x)),
    "threshold 0": lambda x: (x, 1.0) if x > 0 else (0.0, 0.0),
    "threshold .5": lambda x: (x, 1.0) if x > 0.5 else (20.0, 0.0),
    "threshold -1": lambda x: (x, 1.0) if x > -1 else (20.0, 0.0),
}  # fmt: skip


class SwishImplementation(torch.autograd.Function):
    """Swish as networks write it to save memory in training."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * (x.sigmoid() * (1 + x * (1 - x.sigmoid())))


SLOPES = torch.tensor([0.2], dtype=torch.float64)
aten = torch.ops.aten
FORMS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "nn.ReLU": ("relu", nn.ReLU()), "nn.ReLU in place": ("relu", nn.ReLU(True)), "F.relu": ("relu", F.relu),
    "F.relu in place": ("relu", lambda x: F.relu(x, True)), "torch.relu": ("relu", torch.relu), "torch.relu_": ("relu", torch.relu_),
    "Tensor.relu": ("relu", lambda x: x.relu()), "Tensor.relu_": ("relu", lambda x: x.relu_()),
    "aten.relu": ("relu", aten.relu.default), "clamp": ("relu", lambda x: x.clamp(min=0)), "clamp_": ("relu", lambda x: x.clamp_(min=0)),
    "clip": ("relu", lambda x: torch.clip(x, 0)), "clamp_min": ("relu", lambda x: torch.clamp_min(x, 0)),
    "clamp_min_": ("relu", lambda x: x.clamp_min_(0)), "clamp by tensor": ("relu", lambda x: x.clamp(min=torch.zeros(()).double())),
    "clamp 0 to 1": ("cut at 1", lambda x: x.clamp(0, 1)), "maximum": ("relu", lambda x: torch.maximum(x, torch.zeros_like(x))),
    "maximum, turned": ("relu", lambda x: torch.maximum(torch.zeros_like(x), x)),
    "nn.ReLU6": ("relu6", nn.ReLU6()), "nn.ReLU6 in place": ("relu6", nn.ReLU6(True)),
    "F.relu6 in place": ("relu6", lambda x: F.relu6(x, True)),
    "nn.LeakyReLU": ("leaky", nn.LeakyReLU()), "nn.LeakyReLU in place": ("leaky .2", nn.LeakyReLU(0.2, True)),
    "F.leaky_relu": ("leaky .2", lambda x: F.leaky_relu(x, 0.2)),
    "F.leaky_relu_": ("leaky .2", lambda x: F.leaky_relu_(x, 0.2)), "aten.leaky_relu": ("leaky .2", lambda x: aten.leaky_relu(x, 0.2)),
    "F.prelu": ("leaky .2", lambda x: F.prelu(x, SLOPES)), "Tensor.prelu": ("leaky .2", lambda x: x.prelu(SLOPES)),
    "nn.RReLU": ("rrelu", nn.RReLU().eval()), "F.rrelu_": ("rrelu", lambda x: F.rrelu_(x)),
    "nn.ELU": ("elu", nn.ELU()), "F.elu": ("elu 2", lambda x: F.elu(x, 2.0)), "F.elu_": ("elu 2", lambda x: F.elu_(x, 2.0)),
    "F.selu": ("selu", F.selu), "torch.selu_": ("selu", torch.selu_), "F.celu": ("celu", lambda x: F.celu(x, 0.7)),
    "torch.celu_": ("celu", lambda x: torch.celu_(x, 0.7)),
    "nn.GELU": ("gelu", nn.GELU()), "F.gelu tanh": ("gelu tanh", lambda x: F.gelu(x, approximate="tanh")),
    "nn.SiLU": ("swish", nn.SiLU()), "nn.SiLU in place": ("swish", nn.SiLU(True)), "aten.silu": ("swish", aten.silu.default),
    "nn.Mish": ("mish", nn.Mish()), "F.mish in place": ("mish", lambda x: F.mish(x, True)),
    "nn.Hardswish": ("hardswish", nn.Hardswish()), "F.hardswish in place": ("hardswish", lambda x: F.hardswish(x, True)),
    "nn.Softplus": ("softplus", nn.Softplus()), "F.softplus": ("softplus 2", lambda x: F.softplus(x, 2.0)),
    "nn.Threshold": ("threshold 0", nn.Threshold(0, 0)), "F.threshold_": ("threshold .5", lambda x: F.threshold_(x, 0.5, 20)),
    "F.threshold below 0": ("threshold -1", lambda x: F.threshold(x, -1.0, 20.0)),
    "MONAI Swish": ("swish", Swish()), "MONAI Swish 1.5": ("swish 1.5", Swish(1.5)),
    "MONAI MemoryEfficientSwish": ("swish", MemoryEfficientSwish()),
    "MONAI Mish": ("mish", Mish()),
    "x sigmoid(x)": ("swish", lambda x: x * torch.sigmoid(x)), "sigmoid(x) x": ("swish", lambda x: torch.sigmoid(x) * x),
    "x.mul_(sigmoid(x))": ("swish", lambda x: x.mul_(torch.sigmoid(x))),
    "x tanh(softplus(x))": ("mish", lambda x: x * torch.tanh(F.softplus(x))),
    "x (1 + erf) / 2": ("gelu", lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))),
    "x (1 + tanh) / 2": ("gelu tanh", lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))),
    "x relu6(x + 3) / 6": ("hardswish", lambda x: x * F.relu6(x + 3) / 6),
    "x (relu6(x + 3) / 6)": ("hardswish", lambda x: x * (F.relu6(x + 3) / 6)),
    "x hardsigmoid(x)": ("hardswish", lambda x: x * F.hardsigmoid(x)),
    "an autograd function": ("swish", SwishImplementation.apply),
}  # fmt: skip
VALUES = [-4.0, -2.2, -1.3, -0.6, -0.1, 0.0, 0.2, 0.7, 1.4, 2.9, 4.5, 7.0]


def writes(form: str) -> bool:
    return "in place" in form or form.split("(")[0].endswith("_")


@BOTH
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("view", [False, True])
def test_every_form_of_a_rectifier_obeys_the_rule(form: str, rule: Rule, view: bool) -> None:
    name, rectify = FORMS[form]
    # Each value meets a gradient above and one below zero.
    x = torch.tensor([VALUES, VALUES], dtype=torch.float64, requires_grad=True)
    arriving = torch.tensor([[1.7], [-0.9]], dtype=torch.float64).expand_as(x)
    with recording(NONE):
        base = x * 1.0
        z = base.view(2, -1) if view else base
        y = rectify(z)
    with propagating(NONE, y, rule) as met:
        (found,) = torch.autograd.grad(y, x, arriving)
    assert met.count == 1
    assert met.unknown == ()
    assert torch.equal(base, y) == writes(form), "in-place forms must stay in place"
    for n in range(2):
        for k, value in enumerate(VALUES):
            s, slope = SCALAR[name](value)
            g = arriving[n, k].item()
            expected = max(g, 0.0) if rule == "deconvnet" else slope * (value > 0) * max(g, 0.0)
            assert y[n, k].item() == pytest.approx(s, abs=1e-12)
            close = 1e-7 if "hardsigmoid" in form else 1e-12  # torch's hard sigmoid keeps 1/6 in float32
            assert found[n, k].item() == pytest.approx(expected, abs=close), (value, g)


SQUEEZE = nn.Conv1d(1, 1, 3, padding=1).double()


@BOTH
@pytest.mark.parametrize(
    "gate",
    [
        torch.sigmoid, torch.tanh, F.hardsigmoid, lambda x: x.softmax(1), lambda x: F.hardtanh(x, -1, 1), lambda x: x.clamp(-1, 1),
        lambda x: F.glu(x, 1), lambda x: x * torch.sigmoid(SQUEEZE(x[:, None])[:, 0]), lambda x: x * torch.sigmoid(x.mean(1, keepdim=True)),
        lambda x: torch.maximum(x, x.flip(1)), lambda x: x * x, lambda x: x[:, :6] * torch.sigmoid(x[:, 6:]),
    ],
)  # fmt: skip
def test_gates_keep_their_own_gradient(gate: Callable[[Tensor], Tensor], rule: Rule) -> None:
    x = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    y = gate(x)
    arriving = torch.randn_like(y)
    (plain,) = torch.autograd.grad(y, x, arriving, retain_graph=True)
    with propagating(NONE, y, rule) as met:
        (found,) = torch.autograd.grad(y, x, arriving)
    assert met.count == 0
    assert torch.equal(found, plain)


@BOTH
def test_in_geglu_the_gelu_obeys_and_the_product_does_not(rule: Rule) -> None:
    x = torch.tensor([[1.5, -2.0, 0.7, -0.4]], dtype=torch.float64, requires_grad=True)
    y = GEGLU()(x)
    with propagating(NONE, y, rule):
        (found,) = torch.autograd.grad(y.sum(), x)
    expected = []
    for value, gate in ((1.5, 0.7), (-2.0, -0.4)):
        s, slope = SCALAR["gelu"](gate)
        expected.append((s, max(value, 0) * (1 if rule == "deconvnet" else slope * (gate > 0))))
    np.testing.assert_allclose(found[0].numpy(), [expected[0][0], expected[1][0], expected[0][1], expected[1][1]])


# ---- a whole network by loops --------------------------------------------------------------------------------------------------------


class Tiny(nn.Module):
    """Two convolutions, each with a rectifier, and a linear head on all voxels."""

    def __init__(self, dims: int, rectify: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = conv(dims)(1, 2, 3, padding=1), conv(dims)(2, 2, 3, padding=1)
        self.head = nn.Linear(2 * math.prod(small(dims)), 3)
        self.rectify = rectify

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rectify(self.second(self.rectify(self.first(x)))).flatten(1))


def small(dims: int) -> tuple[int, ...]:
    return (4, 5, 2)[:dims] if dims == 3 else (4, 5)


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """3-wide convolution with padding 1, one product at a time; x is (c, *s)."""
    result = np.zeros((weight.shape[0], *x.shape[1:])) + bias.reshape(-1, *[1] * (x.ndim - 1))
    for o, i, *tap in np.ndindex(*weight.shape):
        for place in np.ndindex(*x.shape[1:]):
            source = tuple(p + t - 1 for p, t in zip(place, tap, strict=True))
            if all(0 <= q < n for q, n in zip(source, x.shape[1:], strict=True)):
                result[(o, *place)] += weight[(o, i, *tap)] * x[(i, *source)]
    return result


def back_convolved(g: np.ndarray, weight: np.ndarray) -> np.ndarray:
    result = np.zeros((weight.shape[1], *g.shape[1:]))
    for o, i, *tap in np.ndindex(*weight.shape):
        for place in np.ndindex(*g.shape[1:]):
            source = tuple(p + t - 1 for p, t in zip(place, tap, strict=True))
            if all(0 <= q < n for q, n in zip(source, g.shape[1:], strict=True)):
                result[(i, *source)] += weight[(o, i, *tap)] * g[(o, *place)]
    return result


def passed(
    x: np.ndarray, g: np.ndarray, scalar: Callable[[float], tuple[float, float]], rule: Rule | None
) -> np.ndarray:
    result = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        slope, arriving = scalar(x[place])[1], g[place]
        if rule == "guided":
            result[place] = slope * (x[place] > 0) * max(arriving, 0)
        else:
            result[place] = max(arriving, 0) if rule == "deconvnet" else slope * arriving
    return result


def by_loops(
    network: Tiny, x: Tensor, classes: list[int], scalar: Callable[[float], tuple[float, float]], rule: Rule | None
) -> np.ndarray:
    w = {name: p.detach().numpy() for name, p in network.named_parameters()}
    result = []
    for sample, c in zip(x.numpy(), classes, strict=True):
        first = convolved(sample, w["first.weight"], w["first.bias"])
        middle = np.vectorize(lambda v: scalar(v)[0])(first)
        second = convolved(middle, w["second.weight"], w["second.bias"])
        g = w["head.weight"][c].reshape(second.shape)
        g = back_convolved(passed(second, g, scalar, rule), w["second.weight"])
        result.append(back_convolved(passed(first, g, scalar, rule), w["first.weight"]))
    return np.stack(result)


def asked(
    network: nn.Module, x: Tensor, target: Callable[[Tensor], Tensor], rule: Rule | None
) -> tuple[Tensor, Tensor, Rectifiers | None]:
    """Return the gradient at the input, the scores, and what the rule met."""
    with skeleton(network) as copied:
        captured = capture(copied, x, [INPUT], recorded=rule is not None)
        with torch.enable_grad():
            scores = target(captured.output)
        if rule is None:
            return gradients(captured, scores, [INPUT])[INPUT], scores.detach(), None
        with propagating(copied, scores, rule) as met:
            return gradients(captured, scores, [INPUT])[INPUT], scores.detach(), met


def gradient_of(network: nn.Module, x: Tensor, classes: list[int], rule: Rule | None) -> Tensor:
    return asked(network, x, lambda out: out[torch.arange(len(classes)), classes], rule)[0]


@DIMS
@pytest.mark.parametrize("rule", [None, *RULES])
@pytest.mark.parametrize(
    "form", ["nn.ReLU in place", "F.leaky_relu", "F.prelu", "nn.GELU", "nn.SiLU in place", "MONAI Swish", "F.elu_"]
)
def test_a_network_is_the_papers_backward_pass_by_loops(dims: int, rule: Rule | None, form: str) -> None:
    name, rectify = FORMS[form]
    network, x = Tiny(dims, rectify).double().eval(), torch.randn(3, 1, *small(dims), dtype=torch.float64)
    found = gradient_of(network, x, [2, 0, 1], rule)
    assert (found.abs().flatten(1).amax(1) > 1e-9).all()
    np.testing.assert_allclose(found.numpy(), by_loops(network, x, [2, 0, 1], SCALAR[name], rule), atol=1e-12)


def test_a_case_worked_by_hand() -> None:
    """x = (1, -2): hidden (x1 + x2, x1 - x2, -x1) = (-1, 3, -1), score = -h1 + 2 h2 + 3 h3 of the rectified."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1.0, 1], [1, -1], [-1, 0]]))
        network[3].weight.copy_(torch.tensor([[-1.0, 2, 3]]))
    x = torch.tensor([[[[1.0, -2.0]]]])
    assert gradient_of(network, x, [0], None).flatten().tolist() == [2, -2]
    assert gradient_of(network, x, [0], "guided").flatten().tolist() == [2, -2]  # only h2 is active
    assert gradient_of(network, x, [0], "deconvnet").flatten().tolist() == [2 - 3, -2]  # h3 passes 3 too, h1 nothing


# ---- one forward pass, no trace ------------------------------------------------------------------------------------------------------


@DIMS
def test_one_forward_pass_serves_every_rule(dims: int) -> None:
    network, x = Tiny(dims, nn.LeakyReLU(0.2)).double(), torch.randn(2, 1, *small(dims), dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    scores = network(leaf)[:, 0]
    alone = {rule: gradient_of(network, x, [0, 0], rule) for rule in (None, *RULES)}
    for rule in ("guided", None, "deconvnet", "guided", None):
        with nullcontext() if rule is None else propagating(network, scores, rule):
            (found,) = torch.autograd.grad(scores.sum(), leaf, retain_graph=True)
        torch.testing.assert_close(found, alone[rule], rtol=0, atol=1e-14)
    with pytest.raises(ZeroDivisionError), propagating(network, scores, "guided"):
        _ = 1 / 0
    (found,) = torch.autograd.grad(scores.sum(), leaf)
    torch.testing.assert_close(found, alone[None], rtol=0, atol=1e-14)


def test_threads_keep_their_own_rules() -> None:
    network, x = Tiny(2, F.gelu).double().eval(), torch.randn(2, 1, *small(2), dtype=torch.float64)
    alone = {rule: gradient_of(network, x, [1, 2], rule) for rule in (None, *RULES)}
    found: dict[int, tuple[Rule | None, Tensor]] = {}

    def work(n: int) -> None:
        rule = (None, *RULES)[n % 3]
        found[n] = (rule, gradient_of(network, x, [1, 2], rule))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12
    for rule, gradient in found.values():
        torch.testing.assert_close(gradient, alone[rule], rtol=0, atol=1e-14)


# ---- networks in other shapes --------------------------------------------------------------------------------------------------------


class Everything(nn.Module):
    """Rectifiers of several forms in one network."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.PReLU()
        self.norm, self.leaky = norm, nn.LeakyReLU(0.1, inplace=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.leaky(self.norm(self.act(self.first(x)).relu_()))
        return self.head(F.silu(F.gelu(self.second(x))).mean((2, 3)))


@BOTH
@pytest.mark.filterwarnings("ignore")
def test_exported_and_scripted_networks_obey_too(rule: Rule) -> None:
    x = torch.randn(2, 1, 5, 6)
    for norm in (nn.BatchNorm2d(3), nn.InstanceNorm2d(3)):
        network = Everything(norm).eval()
        expected = gradient_of(network, x, [2, 0], rule)
        exported = torch.export.unflatten(torch.export.export(network, (x,)))
        torch.testing.assert_close(gradient_of(exported, x, [2, 0], rule), expected, rtol=1e-5, atol=1e-7)
        for scripted in (torch.jit.trace(network, x), torch.jit.script(network)):
            if isinstance(norm, nn.InstanceNorm2d):
                with pytest.raises(ModelError, match="TorchScript network changes views"):
                    gradient_of(scripted, x, [2, 0], rule)
                continue
            for _ in range(3):  # TorchScript fuses from the second call on, unless told not to
                torch.testing.assert_close(gradient_of(scripted, x, [2, 0], rule), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore:.*jit.*deprecated:DeprecationWarning")
def test_a_graph_that_torchscript_has_fused_is_refused() -> None:
    scripted, x = torch.jit.script(Everything(nn.Identity()).eval()), torch.randn(2, 1, 5, 6, requires_grad=True)
    for _ in range(3):
        scores = scripted(x)[:, 0]
    with pytest.raises(ModelError, match="compiled by TorchScript"), propagating(scripted, scores, "guided"):
        pass


class Checkpointed(nn.Module):
    def __init__(self, network: Tiny, reentrant: bool) -> None:
        super().__init__()
        self.network, self.reentrant = network, reentrant

    def forward(self, x: Tensor) -> Tensor:
        def body(x: Tensor) -> Tensor:
            return self.network.rectify(self.network.second(self.network.rectify(self.network.first(x))))

        return self.network.head(checkpoint(body, x, use_reentrant=self.reentrant).flatten(1))


@BOTH
@pytest.mark.parametrize("form", ["F.relu", "F.gelu tanh", "nn.SiLU in place", "MONAI Swish", "an autograd function"])
def test_checkpointed_blocks_obey_too(rule: Rule, form: str) -> None:
    network, x = Tiny(2, FORMS[form][1]).double(), torch.randn(2, 1, *small(2), dtype=torch.float64)
    found = gradient_of(Checkpointed(network, False), x, [2, 0], rule)
    torch.testing.assert_close(found, gradient_of(network, x, [2, 0], rule), rtol=0, atol=1e-14)
    with pytest.raises(ModelError, match="reentrant"):
        gradient_of(Checkpointed(network, True), x, [2, 0], rule)
    with pytest.raises(ModelError, match="backward pass fails"):
        gradient_of(Checkpointed(network, True), x, [2, 0], None)


@pytest.mark.parametrize(
    ("network", "kinds"),
    [
        (UNet(3, 1, 2, (2, 3, 4), (2, 2), num_res_units=1, norm="batch"), {"PreluKernel"}),
        (DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[2, 3, 4]), {"LeakyRelu"}),
        (nn.TransformerEncoderLayer(4, 2, 8, activation="gelu", batch_first=True), {"Gelu"}),
    ],
)  # fmt: skip
@BOTH
def test_medical_networks_never_give_the_plain_gradient(network: nn.Module, kinds: set[str], rule: Rule) -> None:
    x = torch.randn(1, 6, 4) if kinds == {"Gelu"} else torch.randn(1, 1, 12, 16, 8)

    def target(output: Tensor) -> Tensor:
        return output.flatten(1)[:, ::3].sum(1)

    plain, scores, _ = asked(network.eval(), x, target, None)
    found, same, met = asked(network, x, target, rule)
    assert met is not None
    assert set(met.kinds) == kinds
    assert torch.equal(same, scores)
    assert not torch.allclose(found, plain, rtol=0.01)


def test_operations_of_the_networks_own_are_named() -> None:
    class Mystery(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
            return x.abs()

        @staticmethod
        def backward(_ctx: torch.autograd.function.FunctionCtx, g: Tensor) -> Tensor:
            return g

    x = torch.randn(3, requires_grad=True)
    with propagating(NONE, Mystery.apply(x).relu(), "guided") as met:
        assert met.unknown == ("Mystery",)
        assert met.kinds == ("Relu",)
