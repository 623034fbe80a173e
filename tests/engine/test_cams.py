"""The rules of (activation, gradient): each against a twin written from its paper with loops in float64, toy cases and closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.toy_networks import conv
from medcam.engine import cams, components
from medcam.engine.cams import RULES, cam, channel_weights, combine
from medcam.errors import UsageError

DIMS = pytest.mark.parametrize("dims", [2, 3])
EVERY_RULE = pytest.mark.parametrize("name", sorted(RULES))
Twin = Callable[[np.ndarray, np.ndarray], np.ndarray]


def layer(dims: int, *, channels: int = 5, rectified: bool = False, batch: int = 3) -> tuple[Tensor, Tensor]:
    """An activation and a gradient of samples that differ, float64, with unequal sides."""
    shape = (batch, channels, *(4, 3, 5)[:dims])
    activation, gradient = torch.randn(2, *shape, dtype=torch.float64).unbind()
    gradient[gradient.abs() < 0.2] = 0
    return (activation.relu() if rectified else activation), gradient


def by_channels(weigh: Callable[[np.ndarray, np.ndarray], np.ndarray | float]) -> Twin:
    """A twin that loops over samples and channels and adds up what `weigh` says for each one."""

    def twin(activation: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        batch, channels, *cells = activation.shape
        result = np.zeros((batch, *cells))
        for n, k in itertools.product(range(batch), range(channels)):
            weight = np.broadcast_to(weigh(activation[n, k], gradient[n, k]), cells)
            for p in np.ndindex(*cells):
                result[(n, *p)] += weight[p] * activation[(n, k, *p)]
        return result

    return twin


def plus_plus(a: np.ndarray, g: np.ndarray) -> float:
    """Eqs. 5 and 19 of Grad-CAM++, as printed."""
    total = sum(a[q] for q in np.ndindex(*a.shape))
    weight = 0.0
    for p in np.ndindex(*g.shape):
        below = 2 * g[p] ** 2 + total * g[p] ** 3
        alpha = g[p] ** 2 / below if g[p] != 0 and below != 0 else 0.0
        weight += alpha * max(g[p], 0)
    return weight


def xgrad(a: np.ndarray, g: np.ndarray) -> float:
    total = sum(a[q] for q in np.ndindex(*a.shape))
    return sum(g[p] * a[p] / total for p in np.ndindex(*a.shape))


def in_windows(a: np.ndarray, g: np.ndarray, *, sides: tuple[int, ...], pool: Callable[[list[float]], float]) -> Any:
    pooled = np.zeros_like(g)
    for p in np.ndindex(*g.shape):
        pooled[p] = pool(
            [g[q] for q in np.ndindex(*g.shape) if all(i // s == j // s for i, j, s in zip(p, q, sides, strict=True))]
        )
    return pooled


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


TWINS: dict[str, Twin] = {
    "cam": by_channels(lambda a, g: sum(g[p] for p in np.ndindex(*g.shape))),
    "grad-cam": by_channels(lambda a, g: sum(g[p] for p in np.ndindex(*g.shape)) / g.size),
    "grad-cam++": by_channels(plus_plus),
    "xgrad-cam": by_channels(xgrad),
    "hires-cam": by_channels(lambda a, g: g),
    "layer-cam": by_channels(lambda a, g: np.array([max(x, 0) for x in g.flat]).reshape(g.shape)),
    "seg-xres-cam": by_channels(lambda a, g: in_windows(a, g, sides=(2,) * g.ndim, pool=mean)),
}


@DIMS
@EVERY_RULE
@pytest.mark.parametrize("rectified", [False, True])
def test_a_rule_is_its_papers_formula(name: str, dims: int, rectified: bool) -> None:
    activation, gradient = layer(dims, rectified=rectified)
    expected = TWINS[name](activation.numpy(), gradient.numpy())
    np.testing.assert_allclose(cam(RULES[name], activation, gradient).numpy(), expected, rtol=1e-10, atol=1e-12)
    if rectified or name != "grad-cam++":  # whose denominator can be near zero where activations are negative
        found = cam(RULES[name], activation.float(), gradient.float())
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("grad-cam", [2, 0]),  # weights 1/2 and 3/4
        ("cam", [4, 0]),
        ("grad-cam++", [1.7, -0.9]),  # 2 / (2 + 2 x 4) and 1/4 + 1/2, since the second channel sums to 0
        ("xgrad-cam", [1.25, -2.25]),  # (2 x 1 - 1 x 3) / 4, and the plain mean 3/4 where the channel sums to 0
        ("hires-cam", [3, -5]),
        ("layer-cam", [3, -2]),
        ("seg-xres-cam", [2, 0]),
        (partial(cams.seg_xres_cam_weights, pooling="max"), [4, 4]),
    ],
)
def test_a_rule_on_a_case_worked_by_hand(rule: Any, expected: list[float]) -> None:
    activation = torch.tensor([[[[1.0, 3]], [[2, -2]]]])
    gradient = torch.tensor([[[[2.0, -1]], [[0.5, 1]]]])
    found = cam(RULES[rule] if isinstance(rule, str) else rule, activation, gradient)
    torch.testing.assert_close(found, torch.tensor([[expected]], dtype=torch.float32))


def slope(network: nn.Module, activation: Tensor, classes: list[int]) -> tuple[Tensor, Tensor]:
    leaf = activation.clone().requires_grad_()
    scores = network(leaf)[torch.arange(len(classes)), classes]
    return scores.detach(), torch.autograd.grad(scores.sum(), leaf)[0]


class Averaged(nn.Module):
    """What follows the layer in the network of the original CAM."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.head = nn.Linear(channels, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(2).mean(2))


@DIMS
def test_behind_a_global_average_cam_grad_cam_and_xgrad_cam_are_one(dims: int) -> None:
    activation, _ = layer(dims)
    network, classes = Averaged(5), [2, 0, 3]
    scores, gradient = slope(network, activation, classes)
    cells = math.prod(activation.shape[2:])
    first = torch.einsum("bc,bc...->b...", network.head.weight[classes], activation)
    torch.testing.assert_close(cam(RULES["cam"], activation, gradient), first)
    for name in ("grad-cam", "xgrad-cam", "hires-cam", "seg-xres-cam"):
        torch.testing.assert_close(cam(RULES[name], activation, gradient) * cells, first)
    torch.testing.assert_close(first.flatten(1).mean(1) + network.head.bias[classes], scores)


@DIMS
def test_in_front_of_a_linear_layer_hires_cam_and_xgrad_cam_sum_to_the_score_without_its_bias(dims: int) -> None:
    activation, _ = layer(dims, rectified=True)
    network, classes = nn.Sequential(nn.Flatten(), nn.Linear(activation[0].numel(), 4).double()), [2, 0, 3]
    scores, gradient = slope(network, activation, classes)
    for name in ("hires-cam", "xgrad-cam"):
        summed = cam(RULES[name], activation, gradient).flatten(1).sum(1)
        torch.testing.assert_close(summed + network[1].bias[classes], scores)


@EVERY_RULE
def test_a_map_does_not_ask_for_the_order_of_the_channels(name: str) -> None:
    activation, gradient = layer(3)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(
        cam(RULES[name], activation[:, order], gradient[:, order]), cam(RULES[name], activation, gradient)
    )


@DIMS
@EVERY_RULE
def test_a_batch_is_its_samples_one_by_one(name: str, dims: int) -> None:
    activation, gradient = layer(dims)
    alone = [cam(RULES[name], activation[n : n + 1], gradient[n : n + 1]) for n in range(3)]
    torch.testing.assert_close(cam(RULES[name], activation, gradient), torch.cat(alone))


@EVERY_RULE
@pytest.mark.parametrize("size", [1e-20, 1e5, 1e12])
def test_no_size_of_gradient_overflows_or_vanishes(name: str, size: float) -> None:
    """Scores of a whole segmentation have gradients of 1e5; behind a saturated softmax they can be 1e-20."""
    activation, gradient = layer(2, rectified=True)
    expected = TWINS[name](activation.numpy(), gradient.numpy() * size)
    found = cam(RULES[name], activation.float(), (gradient * size).float())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", sorted(set(RULES) - {"grad-cam++"}))
def test_twice_the_gradient_is_twice_the_map(name: str) -> None:
    activation, gradient = layer(2)
    torch.testing.assert_close(cam(RULES[name], activation, 2 * gradient), 2 * cam(RULES[name], activation, gradient))


def test_grad_cam_pp_keeps_its_map_when_activations_take_another_unit_and_not_when_scores_do() -> None:
    activation, gradient = layer(2, rectified=True)
    found = cam(RULES["grad-cam++"], activation, gradient)
    torch.testing.assert_close(cam(RULES["grad-cam++"], activation * 7, gradient / 7), found)
    doubled = cam(RULES["grad-cam++"], activation, 2 * gradient)
    assert not torch.allclose(doubled / doubled.abs().max(), found / found.abs().max(), rtol=1e-2)


def test_grad_cam_pp_cubes_the_cells_own_gradient_and_sums_the_activation_alone() -> None:
    """Several tools sum A g^3 instead, which is the same only where the gradient is constant."""

    def summed_cubes(activation: Tensor, gradient: Tensor) -> Tensor:
        a, g = activation.flatten(2), gradient.flatten(2)
        alpha = g**2 / (2 * g**2 + (a * g**3).sum(2, keepdim=True))
        return (alpha.nan_to_num() * g.relu()).sum(2)

    activation, gradient = layer(3, rectified=True)
    right, wrong = (cam(rule, activation, gradient) for rule in (cams.grad_cam_pp_weights, summed_cubes))
    assert not torch.allclose(right / right.abs().max(), wrong / wrong.abs().max(), rtol=1e-2)
    constant = gradient.mean((2, 3, 4), keepdim=True).expand_as(gradient)
    torch.testing.assert_close(cams.grad_cam_pp_weights(activation, constant), summed_cubes(activation, constant))


def test_grad_cam_pp_leaves_out_a_cell_whose_denominator_is_zero() -> None:
    activation = torch.tensor([[[[-1.0, 0]]]])
    assert cams.grad_cam_pp_weights(activation, torch.tensor([[[[2.0, 1]]]])).item() == 1  # 2 - 2 = 0, and 1 / (2 - 1)
    assert cams.negative_channels(activation).tolist() == [[True]]


def test_xgrad_cam_takes_the_plain_mean_where_a_channel_sums_to_zero() -> None:
    activation, gradient = layer(3)
    activation[:, 1] -= activation[:, 1].mean((1, 2, 3), keepdim=True)
    activation[:, 3] = 0
    assert cams.crossing_channels(activation)[:, [1, 3]].all()
    weights = cams.xgrad_cam_weights(activation.float(), gradient.float())
    torch.testing.assert_close(weights[:, [1, 3]].double(), gradient[:, [1, 3]].mean((2, 3, 4)))
    assert weights.isfinite().all()


@DIMS
@pytest.mark.parametrize(("pooling", "pool"), [("mean", mean), ("max", max)])
def test_seg_xres_cam_pools_in_windows_of_which_the_last_may_be_smaller(dims: int, pooling: Any, pool: Any) -> None:
    activation, gradient = layer(dims)
    sides = (3, 2, 4)[:dims]
    twin = by_channels(partial(in_windows, sides=sides, pool=pool))
    rule = partial(cams.seg_xres_cam_weights, window=sides, pooling=pooling)
    np.testing.assert_allclose(
        cam(rule, activation, gradient).numpy(), twin(activation.numpy(), gradient.numpy()), rtol=1e-10, atol=1e-12
    )


@DIMS
def test_seg_xres_cam_lies_between_hires_cam_and_grad_cam(dims: int) -> None:
    activation, gradient = layer(dims)
    smallest = cam(partial(cams.seg_xres_cam_weights, window=1), activation, gradient)
    torch.testing.assert_close(smallest, cam(RULES["hires-cam"], activation, gradient))
    largest = cam(partial(cams.seg_xres_cam_weights, window=99), activation, gradient)
    torch.testing.assert_close(largest, cam(RULES["grad-cam"], activation, gradient))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"window": 0}, "at least one cell"), ({"window": (2, 2, 2)}, "2 axes"), ({"pooling": "median"}, "by 'median'")],
)
def test_seg_xres_cam_refuses_windows_that_are_none(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        cams.seg_xres_cam_weights(*layer(2), **options)


def smooth_twin(activation: np.ndarray, copies: np.ndarray, corrected: bool) -> np.ndarray:
    """Smooth Grad-CAM++ from the gradients of each noisy copy, `m b c *t`."""
    batch, channels, *cells = activation.shape
    result = np.zeros((batch, *cells))
    for n, k in itertools.product(range(batch), range(channels)):
        total, weight = activation[n, k].sum(), 0.0
        for p in np.ndindex(*cells):
            g = copies[(slice(None), n, k, *p)]
            first, second, third = g.mean(), (g**2).mean(), (g**3).mean()
            below = 2 * second + third * total
            weight += (second if corrected else first) / below * max(first, 0) if below != 0 else 0.0
        result[n] += weight * activation[n, k]
    return result


@DIMS
@pytest.mark.parametrize("numerator", ["paper", "corrected"])
@pytest.mark.parametrize("size", [1.0, 1e-20, 1e15])
def test_smooth_grad_cam_pp_averages_powers_of_the_gradient(dims: int, numerator: Any, size: float) -> None:
    activation, gradient = layer(dims, rectified=True)
    copies = torch.stack([gradient + 0.3 * torch.randn_like(gradient) for _ in range(4)])
    expected = smooth_twin(activation.numpy(), copies.numpy() * size, numerator == "corrected")
    scale = cams.gradient_scale((gradient * size).float())
    scaled = (copies * size).float() / scale[:, None].reshape(3, *(1,) * (dims + 1))
    moments = [(scaled**power).mean(0) for power in (1, 2, 3)]
    weights = cams.smooth_grad_cam_pp_weights(activation.float(), *moments, scale=scale, numerator=numerator)
    found = combine(weights, activation.float()).numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max())
    if size == 1:
        moments = [(copies**power).mean(0) for power in (1, 2, 3)]
        weights = cams.smooth_grad_cam_pp_weights(activation, *moments, numerator=numerator)
        np.testing.assert_allclose(combine(weights, activation).numpy(), expected, rtol=1e-9)


def test_one_copy_without_noise_gives_grad_cam_pp_when_corrected() -> None:
    activation, gradient = layer(2)
    moments = (gradient, gradient**2, gradient**3)
    weights = cams.smooth_grad_cam_pp_weights(activation, *moments, numerator="corrected")
    torch.testing.assert_close(weights, cams.grad_cam_pp_weights(activation, gradient))
    with pytest.raises(UsageError, match="'paper' or 'corrected'"):
        cams.smooth_grad_cam_pp_weights(activation, *moments, numerator="D2")


def test_the_scale_of_a_gradient_of_zeros_is_one() -> None:
    assert cams.gradient_scale(torch.tensor([[[[0.0, 0]]], [[[-3, 2]]]])).tolist() == [1, 3]


def shapley_by_enumeration(score: Callable[[np.ndarray], float], activation: np.ndarray) -> np.ndarray:
    """The Shapley value of each entry, from all orders' marginal gains; absent entries are 0."""
    n = activation.size
    values = np.zeros(n)
    for player, size in itertools.product(range(n), range(n)):
        others = [q for q in range(n) if q != player]
        share = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
        for team in itertools.combinations(others, size):
            without = np.zeros(n)
            without[list(team)] = activation.flat[list(team)]
            together = without.copy()
            together[player] = activation.flat[player]
            values[player] += share * (score(together) - score(without))
    return values.reshape(activation.shape)


def test_shapley_cams_terms_are_the_shapley_values_of_a_quadratic_score() -> None:
    activation = torch.randn(1, 2, 2, 2, dtype=torch.float64)
    linear, square = torch.randn(8, dtype=torch.float64), torch.randn(8, 8, dtype=torch.float64)

    def score(x: Tensor) -> Tensor:
        return 5 + x.flatten() @ linear + x.flatten() @ square @ x.flatten()

    leaf = activation.clone().requires_grad_()
    gradient = torch.autograd.grad(score(leaf), leaf, create_graph=True)[0]
    product = torch.autograd.grad((gradient * activation).sum(), leaf)[0]
    weights = cams.shapley_cam_weights(gradient.detach(), product, per_cell=True)
    expected = shapley_by_enumeration(lambda x: score(torch.from_numpy(x)).item(), activation.numpy())
    np.testing.assert_allclose((weights * activation).numpy(), expected, rtol=1e-9)
    torch.testing.assert_close(combine(weights, activation).sum(), score(activation) - 5)


@DIMS
def test_shapley_cam_averages_the_corrected_gradient(dims: int) -> None:
    _, gradient = layer(dims)
    product = torch.randn_like(gradient)
    expected = np.zeros((3, 5))
    for n, k in np.ndindex(3, 5):
        for p in np.ndindex(*gradient.shape[2:]):
            expected[n, k] += (gradient[(n, k, *p)] - 0.5 * product[(n, k, *p)]) / gradient[n, k].numel()
    np.testing.assert_allclose(cams.shapley_cam_weights(gradient, product).numpy(), expected, rtol=1e-10)
    without = cams.shapley_cam_weights(gradient, torch.zeros_like(gradient))
    torch.testing.assert_close(without, cams.grad_cam_weights(gradient, gradient))


def component_twin(terms: np.ndarray, *, centred: bool = False) -> np.ndarray:
    """The first component of each sample's cells x channels by a full decomposition; the sign is that of the plain sum."""
    result = np.zeros((terms.shape[0], *terms.shape[2:]))
    for n, sample in enumerate(terms):
        table = np.stack([sample[(slice(None), *p)] for p in np.ndindex(*sample.shape[1:])])
        if centred:
            table = table - table.mean(0)
        _, _, right = np.linalg.svd(table)
        component = table @ right[0]
        result[n] = (component * np.sign(component @ table.sum(1))).reshape(sample.shape[1:])
    return result


@DIMS
@pytest.mark.parametrize("channels", [5, 80])  # fewer than cells, and more
@pytest.mark.parametrize("centred", [False, True])
def test_eigen_maps_are_first_components(dims: int, channels: int, centred: bool) -> None:
    activation, gradient = layer(dims, channels=channels)
    terms = (activation * gradient).numpy()
    for dtype, rtol in ((torch.float64, 1e-8), (torch.float32, 1e-3)):
        a, g = activation.to(dtype), gradient.to(dtype)
        weights = channel_weights(cams.grad_cam_weights, a, g)
        for found, of in (
            (components.eigen_cam(a, centred=centred), activation.numpy()),
            (components.eigengrad_cam(a, g, centred=centred), terms),
            (components.eigen_smooth(weights, a, centred=centred), np.einsum("bc,bc...->bc...", weights, a)),
        ):
            expected = component_twin(of.astype(np.float64), centred=centred)
            np.testing.assert_allclose(found.numpy(), expected, rtol=rtol, atol=rtol * np.abs(expected).max())


@EVERY_RULE
def test_every_rule_can_be_smoothed_and_keeps_its_sign(name: str) -> None:
    activation, gradient = layer(3)
    weights = channel_weights(RULES[name], activation, gradient)
    smoothed = components.eigen_smooth(weights, activation)
    plain = combine(weights, activation)
    assert smoothed.shape == plain.shape
    assert ((smoothed * plain).flatten(1).sum(1) > 0).all()
    every = weights if weights.ndim > 2 else weights[..., None, None, None].expand_as(activation)
    torch.testing.assert_close(components.eigen_smooth(every, activation), smoothed)


def test_terms_of_one_pattern_keep_it() -> None:
    pattern, strength = torch.randn(1, 1, 4, 3, dtype=torch.float64), torch.tensor([3.0, -1, 2]).double()
    found = components.eigen_cam(pattern * strength[:, None, None])
    torch.testing.assert_close(
        found, pattern[:, 0] * strength.norm()
    )  # the channels' sum is 4 patterns, so not its negative


def test_eigen_cam_behind_a_relu_is_nowhere_negative() -> None:
    for channels in (5, 40):
        activation, _ = layer(2, channels=channels, rectified=True)
        assert components.eigen_cam(activation.float()).min() > -1e-5


def test_a_component_that_agrees_with_nothing_has_a_positive_peak() -> None:
    pattern = torch.tensor([[[[1.0, -3, 2]], [[-1, 3, -2]]]])  # two channels whose sum is zero
    for signed in (pattern, -pattern):
        assert components.eigen_cam(signed)[0, 0].argmax() == 1


def test_the_smaller_gram_matrix_is_taken() -> None:
    for channels, cells in ((30, (3, 4)), (4, (6, 7))):
        activation = torch.randn(1, channels, *cells)
        with Largest() as largest:
            components.eigen_cam(activation)
        assert largest.elements <= activation.numel()


@pytest.mark.parametrize("size", [1e-25, 1e20])
def test_no_size_of_gradient_spoils_a_component(size: float) -> None:
    activation, gradient = layer(2)
    expected = component_twin((activation * gradient).numpy()) * size
    found = components.eigengrad_cam(activation.float(), (gradient * size).float()).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_a_sample_that_is_not_finite_or_zero_leaves_the_others_alone() -> None:
    activation, gradient = layer(2)
    expected = components.eigengrad_cam(activation, gradient)
    gradient[0, 2, 1, 1], gradient[2] = torch.nan, 0
    found = components.eigengrad_cam(activation, gradient)
    assert found[0].isnan().all()
    torch.testing.assert_close(found[1], expected[1])
    assert (found[2] == 0).all()


@EVERY_RULE
def test_work_in_blocks_gives_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    activation, gradient = layer(3, channels=7)
    expected = cam(RULES[name], activation, gradient), channel_weights(RULES[name], activation, gradient)
    smoothed = components.eigen_smooth(expected[1], activation), components.eigen_smooth(expected[1], activation[:, :])
    monkeypatch.setattr(cams, "_BLOCK_CPU", 2 * activation[:, 0].numel())
    monkeypatch.setattr(components, "_BLOCK", 100)
    assert len(list(cams._blocks(activation))) == 4
    torch.testing.assert_close(cam(RULES[name], activation, gradient), expected[0])
    torch.testing.assert_close(channel_weights(RULES[name], activation, gradient), expected[1])
    torch.testing.assert_close(combine(expected[1], activation), expected[0])
    torch.testing.assert_close(components.eigen_smooth(expected[1], activation), smoothed[0])


class Largest(TorchDispatchMode):
    """Keeps the size of the largest tensor made within."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_leaves(args) if isinstance(x, Tensor)}
        for made in (x for x in tree_leaves(out) if isinstance(x, Tensor)):
            if made.untyped_storage().data_ptr() not in given:
                self.elements = max(self.elements, made.numel())
        return out


@EVERY_RULE
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_no_rule_holds_the_products_of_all_channels(
    name: str, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cams, "_BLOCK_CPU", 12 * 12 * 12)  # a layer this small would be one block
    monkeypatch.setattr(components, "_BLOCK", 12 * 12 * 12)
    activation, gradient = (torch.randn(1, 16, 12, 11, 10).to(memory_format=memory_format) for _ in range(2))
    with Largest() as largest:
        cam(RULES[name], activation, gradient)
        combine(gradient, activation)
        combine(gradient.mean((2, 3, 4)), activation)
        cams.gradient_scale(gradient)
        components.eigengrad_cam(activation, gradient)
    assert largest.elements <= activation.numel() / 6


def test_a_callers_autocast_does_not_halve_a_maps_precision() -> None:
    activation, gradient = (x.float() for x in layer(2))
    expected = cam(RULES["grad-cam"], activation, gradient), components.eigen_cam(activation)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cam(RULES["grad-cam"], activation, gradient), components.eigen_cam(activation)
    torch.testing.assert_close(found, expected)


def test_an_expanded_gradient_is_as_good_as_a_full_one() -> None:
    """Behind a global average autograd gives one number a channel, expanded."""
    network = nn.Sequential(conv(3)(2, 5, 1), nn.AdaptiveAvgPool3d(1))
    leaf = network[0](torch.randn(3, 2, 4, 3, 5)).detach().requires_grad_()
    gradient = torch.autograd.grad(network[1](leaf).sum(), leaf)[0]
    for rule in RULES.values():
        torch.testing.assert_close(cam(rule, leaf.detach(), gradient), cam(rule, leaf.detach(), gradient.contiguous()))
