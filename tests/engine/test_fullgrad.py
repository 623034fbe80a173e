"""FullGrad's terms add up to the score, lie where their layers look, and make the paper's map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import DenseNet121, UNet
from torch import Tensor, nn

from engine.toy_networks import conv, norm
from medcam.engine import Relevance, relevance
from medcam.engine.fullgrad import BiasTerm, full_gradient
from medcam.engine.skeleton import skeleton

DIMS = pytest.mark.parametrize("dims", [2, 3])
CLASSES = [2, 0, 1]


def image(dims: int) -> Tensor:
    return torch.randn(3, 2, *(7, 6, 5)[:dims], dtype=torch.float64)


class Piecewise(nn.Module):
    """Convolution, batch norm, ReLU, a strided convolution, a rectifier, and two linear layers: linear around its input."""

    def __init__(self, dims: int, act: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.norm = conv(dims)(2, 3, 3, padding=1), norm(dims)(3)
        self.second = conv(dims)(3, 4, 3, stride=2, padding=1)
        self.act = nn.ReLU(inplace=True) if act is None else act
        self.hidden, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.double().eval()
        for values in (self.norm.running_mean, self.norm.bias.data):
            values.normal_()
        for values in (self.norm.running_var, self.norm.weight.data):
            values.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.norm(self.first(x)), 0.2)
        return self.head(F.relu(self.hidden(self.act(self.second(x)).flatten(2).mean(2))))


def full_grad(network: nn.Module, x: Tensor, rescale: str = "channel") -> Relevance:
    return relevance(network, x, method=f"fullgrad(rescale='{rescale}')", target=CLASSES)


def class_sums(logits: Tensor) -> Tensor:
    return logits[torch.arange(3), CLASSES].flatten(1).sum(1) if logits.ndim > 2 else logits[torch.arange(3), CLASSES]


def terms_of(network: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return the terms by layer, the input's term, and the scores."""
    found: dict[str, Tensor] = {}

    def visit(term: BiasTerm) -> None:
        found[term.layer] = found.get(term.layer, 0) + term.values

    with skeleton(network) as copied:
        slope, scores = full_gradient(copied, x, target=class_sums, visit=visit)
    return found, slope * x, scores


def total(terms: dict[str, Tensor], of_input: Tensor) -> Tensor:
    return sum((term.flatten(1).sum(1) for term in terms.values()), of_input.flatten(1).sum(1))


def terms_by_shifts(network: Piecewise, x: Tensor, classes: list[int]) -> dict[str, np.ndarray]:
    """The terms by definition: the score's derivative when one entry of a layer's output is shifted, times the bias of its channel."""
    shifts = dict.fromkeys(("first", "norm", "second", "hidden", "head"))
    handles = []
    for name in shifts:

        def shift(_m: nn.Module, _a: object, out: Tensor, name: str = name) -> Tensor:
            if shifts[name] is None:
                shifts[name] = torch.zeros_like(out)
            return out + shifts[name]

        handles.append(getattr(network, name).register_forward_hook(shift))
    with torch.no_grad():
        network(x)
        biases = {name: getattr(network, name).bias for name in shifts}
        bn = network.norm
        biases["norm"] = bn.bias - bn.running_mean / (bn.running_var + bn.eps).sqrt() * bn.weight
        result = {}
        for name, moved in shifts.items():
            term = np.zeros(tuple(moved.shape))
            for place in np.ndindex(*moved.shape):
                for sign in (1, -1):
                    moved[place] = sign * 1e-6
                    term[place] += sign * network(x)[place[0], classes[place[0]]].item() / 2e-6
                moved[place] = 0
                term[place] *= biases[name][place[1]].item()
            result[name] = term
    for handle in handles:
        handle.remove()
    return result


@DIMS
def test_terms_are_gradients_at_the_outputs_times_biases(dims: int) -> None:
    network, x = Piecewise(dims), image(dims)[..., :4]
    expected = terms_by_shifts(network, x, CLASSES)
    found, _, _ = terms_of(network, x)
    assert set(found) == set(expected)
    for name, term in expected.items():
        np.testing.assert_allclose(found[name].numpy(), term, atol=1e-7, err_msg=name)


@DIMS
def test_terms_of_a_network_of_relus_add_up_to_the_score(dims: int) -> None:
    network, x = Piecewise(dims), image(dims)
    found, of_input, scores = terms_of(network, x)
    torch.testing.assert_close(total(found, of_input), scores, rtol=1e-12, atol=1e-12)
    assert full_grad(network, x).notes == ((),) * 3


@DIMS
@pytest.mark.parametrize(
    "act",
    [
        nn.GELU(), nn.SiLU(inplace=True), nn.Softplus(), nn.ELU(inplace=True), nn.Sigmoid(), nn.Tanh(), nn.Hardswish(), nn.PReLU(),
        nn.ReLU6(), nn.GroupNorm(2, 4), "instance", nn.Sequential(nn.GroupNorm(1, 4), nn.LeakyReLU(0.2, inplace=True)),
    ],
)  # fmt: skip
def test_so_do_those_of_other_activations_and_norms(dims: int, act: nn.Module | str) -> None:
    if act == "instance":
        instance = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims]
        act = nn.Sequential(instance(4, affine=True), nn.LeakyReLU(0.2, inplace=True))
    found, of_input, scores = terms_of(Piecewise(dims, act), image(dims))
    torch.testing.assert_close(total(found, of_input), scores, rtol=1e-10, atol=1e-10)


@DIMS
def test_where_batch_statistics_mix_the_samples_the_sum_over_the_batch_holds(dims: int) -> None:
    found, of_input, scores = terms_of(Piecewise(dims, norm(dims)(4, track_running_stats=False)), image(dims))
    torch.testing.assert_close(total(found, of_input).sum(), scores.sum(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "network",
    [
        UNet(3, 2, 3, (2, 3, 4), (2, 2), num_res_units=1),
        UNet(2, 2, 3, (2, 3, 4), (2, 2), num_res_units=1, norm="batch", act="gelu"),
        DenseNet121(3, 2, 3, block_config=(2, 2), init_features=4, growth_rate=2),
    ],
)  # fmt: skip
def test_terms_of_medical_networks_add_up(network: nn.Module) -> None:
    dims = 2 if "Conv2d" in str(network) else 3
    x = torch.randn(3, 2, *(24, 16, 32)[:dims], dtype=torch.float64)
    found, of_input, scores = terms_of(network.double().eval(), x)
    torch.testing.assert_close(total(found, of_input), scores, rtol=1e-8, atol=1e-8)
    answer = full_grad(network, x)
    assert answer.values.shape == (3, *x.shape[2:])
    assert not any("unexplained" in note for note in answer.notes[0])


@pytest.mark.filterwarnings("ignore")
def test_terms_of_an_exported_network_add_up() -> None:
    x = image(2)
    exported = torch.export.unflatten(torch.export.export(Piecewise(2, nn.GELU()), (x,)))
    found, of_input, scores = terms_of(exported, x)
    torch.testing.assert_close(total(found, of_input), scores)


def test_what_does_not_add_up_is_said() -> None:
    class Product(Piecewise):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) ** 2

    # The terms of a square add up to the gradient times what it multiplies, twice the score.
    assert all("leave 100% of the score unexplained" in notes[0] for notes in full_grad(Product(2), image(2)).notes)
    bare = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(60, 3, bias=False)).double()
    words = "No layer with a bias was found, so this map is the gradient times the input alone."
    assert all(words in notes for notes in full_grad(bare.eval(), image(2)).notes)


# ---- the map -------------------------------------------------------------------------------------------------------------------------


def psi(term: np.ndarray, rescale: str) -> np.ndarray:
    """Absolute value, and 0..1 by channel (the paper) or by layer (the authors' code); one sample, `c *t`."""
    if rescale == "none":
        return term
    groups = term[:, None] if rescale == "channel" else term[None]
    result = []
    for group in np.abs(groups):
        low, high = group.min(), group.max()
        result.append((group - low) / (high - low) if high > low else 0 * group)
    return np.concatenate(result)


def stretched(values: np.ndarray, size: tuple[int, ...], stride: int) -> np.ndarray:
    """Cells centred on voxels 0, stride, 2 stride, ...: linear in between, constant beyond the last."""
    result = np.zeros(size)
    for place in np.ndindex(*size):
        for cell in np.ndindex(*values.shape):
            weight = 1.0
            for p, q, many in zip(place, cell, values.shape, strict=True):
                weight *= max(0.0, 1 - abs(min(p / stride, many - 1) - q))
            result[place] += weight * values[cell]
    return result


@DIMS
@pytest.mark.parametrize("rescale", ["channel", "layer", "none"])
def test_the_map_is_the_sum_of_all_terms_with_a_place(dims: int, rescale: str) -> None:
    network, x = Piecewise(dims), image(dims)
    found = full_grad(network, x, rescale).values
    terms, of_input, _ = terms_of(network, x)
    size = tuple(x.shape[2:])
    for n in range(3):
        expected = psi(of_input[n].numpy(), rescale).sum(0)
        for name, stride in (("first", 1), ("norm", 1), ("second", 2)):
            expected += stretched(psi(terms[name][n].numpy(), rescale).sum(0), size, stride)
        np.testing.assert_allclose(found[n].numpy(), expected, atol=1e-9)


def test_terms_of_features_whose_channels_come_last_are_placed_too() -> None:
    class Tokens(nn.Module):
        """A patch embedding, and features whose channels come last or are tokens, as in a Swin block and a ViT."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.act = nn.Conv2d(2, 4, 2, stride=2), nn.Linear(4, 4), nn.GELU()
            self.last, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.last(self.act(self.inner(self.first(x).movedim(1, -1))).flatten(1, 2)).mean(1))

    network, x = Tokens().double().eval(), torch.randn(3, 2, 8, 6, dtype=torch.float64)
    found = full_grad(network, x, "none")
    terms, of_input, scores = terms_of(network, x)
    torch.testing.assert_close(total(terms, of_input), scores)
    assert not any("unexplained" in note for notes in found.notes for note in notes)
    coarse = terms["first"].sum(1) + terms["inner"].sum(-1) + terms["act"].sum(-1) + terms["last"].sum(-1).unflatten(1, (4, 3))  # fmt: skip
    torch.testing.assert_close(found.values, of_input.sum(1) + spread(coarse))


def spread(values: Tensor) -> Tensor:
    return F.interpolate(values[:, None], size=(8, 6), mode="bilinear")[:, 0]


def test_terms_of_windows_count_for_their_sample() -> None:
    class Windows(nn.Module):
        """The left and right halves of each image one after the other, as a Swin block has its windows."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.head = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(48, 3)

        def forward(self, x: Tensor) -> Tensor:
            halves = self.first(x).unflatten(3, (2, 3)).movedim(3, 1).flatten(0, 1)
            return self.head(self.inner(halves).unflatten(0, (-1, 2)).mean(3).flatten(1)[:, :24].repeat(1, 2))

    network, x = Windows().double().eval(), torch.randn(3, 2, 8, 6, dtype=torch.float64)
    found = full_grad(network, x, "none")
    assert not any("unexplained" in note for notes in found.notes for note in notes)
    terms, of_input, _ = terms_of(network, x)
    assert terms["inner"].shape == (6, 4, 8, 3)
    torch.testing.assert_close(found.values, of_input.sum(1) + terms["first"].sum(1))


def test_a_layer_that_runs_at_two_sizes_is_placed_at_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.first(F.relu(self.first(x))[:, :, ::2, ::2]).flatten(1))

    network, x = Twice().double().eval(), torch.randn(3, 2, 8, 6, dtype=torch.float64)
    seen: list[BiasTerm] = []
    with skeleton(network) as copied:
        slope, _ = full_gradient(copied, x, target=class_sums, visit=seen.append)
    fine, coarse = (next(t.values for t in seen if (t.layer, t.call) == ("first", call)).sum(1) for call in (0, 1))
    assert coarse.shape == (3, 4, 3)
    expected = [stretched(one, (8, 6), 2) for one in coarse.numpy()]
    found = full_grad(network, x, "none").values
    torch.testing.assert_close(found, (slope * x).sum(1) + fine + torch.as_tensor(np.stack(expected)))
