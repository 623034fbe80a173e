"""Methods that ask more than one activation and one gradient: CAM, Smooth Grad-CAM++, Shapley-CAM, Finer-CAM, Ablation-CAM."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from monai.networks.nets import DenseNet121, resnet18
from torch import Tensor, nn

from engine.toy_networks import Classifier, Segmenter, conv, image
from medcam.engine import relevance
from medcam.errors import UsageError

DIMS = pytest.mark.parametrize("dims", [2, 3])
CLASSES = [2, 0, 1]


class Averaged(nn.Module):
    """Features, a global average and one linear layer: what the original CAM is defined for."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(dims)(2, 5, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(2).mean(2))


class Quadratic(nn.Module):
    """A score that is a quadratic form of the features: Shapley-CAM's expansion is exact here."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.features = conv(dims)(2, 3, 3, stride=3)
        cells = {2: 3 * 4, 3: 3 * 4 * 3}[dims]
        self.linear = nn.Parameter(torch.randn(3, 3 * cells) * 0.1)
        self.form = nn.Parameter(torch.randn(3, 3 * cells, 3 * cells) * 0.01)

    def forward(self, x: Tensor) -> Tensor:
        a = self.features(x).flatten(1)
        return a @ self.linear.T + torch.einsum("bi,kij,bj->bk", a, self.form, a)


def features_and_slopes(network: nn.Module, layer: str, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What a layer gives and each sample's own gradient there, by a hook on a copy without in-place changes."""
    twin, kept = copy.deepcopy(network), {}
    for module in twin.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    twin.get_submodule(layer).register_forward_hook(lambda _m, _a, out: kept.update(a=out))
    logits = twin(x)
    slopes = [torch.autograd.grad(logits[n, c], kept["a"], retain_graph=True)[0][n] for n, c in enumerate(CLASSES)]
    return kept["a"].detach().numpy(), torch.stack(slopes).numpy()


@DIMS
def test_cam_weighs_channels_by_the_last_layers_weights(dims: int) -> None:
    network, x = Averaged(dims).double().eval(), image(dims).double()
    found = relevance(network, x, layer="features", target=CLASSES, method="cam")
    with torch.no_grad():
        features, weights = network.features(x), network.head.weight[CLASSES]
    expected = torch.einsum("bk,bk...->b...", weights, features)
    torch.testing.assert_close(found.values, expected)
    # Its mean and the bias are the score.
    torch.testing.assert_close(found.values.flatten(1).mean(1) + network.head.bias[CLASSES].detach(), found.scores)


@DIMS
def test_on_an_averaged_head_cam_grad_cam_and_xgrad_cam_agree_up_to_scale(dims: int) -> None:
    network, x = Averaged(dims).double().eval(), image(dims).double()
    cam, grad, xgrad, hires = (
        relevance(network, x, layer="features", target=CLASSES, method=m).values
        for m in ("cam", "grad-cam", "xgrad-cam", "hires-cam")
    )
    cells = cam[0].numel()
    torch.testing.assert_close(cam, grad * cells)
    torch.testing.assert_close(xgrad, grad)
    torch.testing.assert_close(hires, grad)


@DIMS
@pytest.mark.parametrize("layer", ["block", "stem"])
def test_cam_is_refused_where_it_is_not_defined(dims: int, layer: str) -> None:
    with pytest.raises(UsageError, match="not averaged and passed to one linear layer"):
        relevance(Classifier(dims).eval(), image(dims), layer=layer, method="cam", target=1)


def test_cam_explains_the_networks_of_the_field_at_their_default_layers() -> None:
    x = torch.randn(2, 1, 64, 96)
    network = DenseNet121(spatial_dims=2, in_channels=1, out_channels=3).eval()
    found = relevance(network, x, method="cam", target=2)
    score = found.values.flatten(1).mean(1) + network.class_layers.out.bias[2].detach()
    torch.testing.assert_close(score, found.scores, rtol=1e-3, atol=1e-4)


@DIMS
@pytest.mark.parametrize("numerator", ["paper", "corrected"])
def test_smooth_grad_cam_pp_averages_powers_of_gradients_over_noisy_copies(dims: int, numerator: str) -> None:
    network, x = Classifier(dims).double().eval(), image(dims).double()
    method = f"smooth-grad-cam++(samples=4, sigma=0.2, numerator='{numerator}')"
    found = relevance(network, x, layer="block", target=CLASSES, method=method, seed=5)
    clean, _ = features_and_slopes(network, "block", x)
    generator = torch.Generator().manual_seed(5)
    first, second, third = np.zeros_like(clean), np.zeros_like(clean), np.zeros_like(clean)
    for _ in range(4):
        noise = torch.randn(x.shape[1:], generator=generator).double()
        noisy = torch.stack([one + 0.2 * (one.max() - one.min()) * noise for one in x])
        _, slope = features_and_slopes(network, "block", noisy)
        first, second, third = first + slope / 4, second + slope**2 / 4, third + slope**3 / 4
    expected = np.zeros((3, *clean.shape[2:]))
    for n in range(3):
        for k in range(clean.shape[1]):
            weight = 0.0
            for p in np.ndindex(*clean.shape[2:]):
                at = (n, k, *p)
                above = first[at] if numerator == "paper" else second[at]
                below = 2 * second[at] + third[at] * clean[n, k].sum()
                weight += (above / below if below != 0 else 0.0) * max(first[at], 0.0)
            expected[n] += weight * clean[n, k]
    np.testing.assert_allclose(found.values.numpy(), expected, rtol=1e-6, atol=1e-9)
    assert found.seed == 5


@DIMS
def test_smooth_grad_cam_pp_without_noise_is_grad_cam_pp(dims: int) -> None:
    network, x = Classifier(dims).double().eval(), image(dims).double()
    method = "smooth-grad-cam++(samples=1, sigma=0.0, numerator='corrected')"
    smooth, plain = (
        relevance(network, x, layer="block", target=CLASSES, method=m).values for m in (method, "grad-cam++")
    )
    torch.testing.assert_close(smooth, plain)


@DIMS
def test_shapley_values_of_a_quadratic_score_sum_to_what_the_features_add_to_it(dims: int) -> None:
    network, x = Quadratic(dims).double().eval(), image(dims).double()
    found = relevance(network, x, layer="features", target=CLASSES, method="shapley-cam(per_cell=True)")
    with torch.no_grad():
        features = network.features(x)
        score = network(x)[range(3), CLASSES]
    # An activation of zeros scores 0.
    torch.testing.assert_close(found.values.flatten(1).sum(1), score)
    # Term by term: A (g - H A / 2) with g = l + (Q + Q') a and H = Q + Q'.
    for n, c in enumerate(CLASSES):
        a = features[n].flatten()
        symmetric = network.form[c].detach() + network.form[c].detach().T
        terms = a * (network.linear[c].detach() + symmetric @ a - symmetric @ a / 2)
        torch.testing.assert_close(found.values[n], terms.reshape(features[n].shape).sum(0))


@DIMS
def test_shapley_cam_behind_which_all_is_linear_is_grad_cam(dims: int) -> None:
    network, x = Averaged(dims).double().eval(), image(dims).double()
    shapley, grad = (
        relevance(network, x, layer="features", target=CLASSES, method=m).values for m in ("shapley-cam", "grad-cam")
    )
    torch.testing.assert_close(shapley, grad)


@DIMS
def test_finer_cam_is_grad_cam_of_the_class_less_its_likes(dims: int) -> None:
    network, x = Classifier(dims).double().eval(), image(dims).double()
    found = relevance(network, x, layer="block", target=CLASSES, method="finer-cam(references=2, strength=0.7)")
    maps = [relevance(network, x, layer="block", target=[c] * 3).values for c in range(4)]
    unit = nn.functional.normalize(network.head.weight.detach(), dim=1)
    for n, c in enumerate(CLASSES):
        likeness = {d: float(unit[c] @ unit[d]) for d in range(4) if d != c}
        nearest = sorted(likeness, key=lambda d: -likeness[d])[:2]
        expected = maps[c][n] - 0.7 * (maps[nearest[0]][n] + maps[nearest[1]][n]) / 2
        torch.testing.assert_close(found.values[n], expected)
        assert (
            f"Class {c} is compared with the most similar, class {nearest[0]} and class {nearest[1]}"
            in found.notes[n][0]
        )
    with pytest.raises(UsageError, match="ask it about one class"):
        relevance(network, x, layer="block", target=lambda out: out[:, 0], method="finer-cam")


def ablation_by_loops(network: nn.Module, layer: str, x: Tensor) -> np.ndarray:
    """Desai & Ramaswamy, eqs. 3 and 4 without the ReLU, dividing by the score's size: silence one channel after another."""
    clean, _ = features_and_slopes(network, layer, x)
    twin = copy.deepcopy(network)
    state: dict[str, int] = {}

    def silence(_m: nn.Module, _a: object, out: Tensor) -> Tensor:
        changed = out.clone()
        changed[:, state["k"]] = 0
        return changed

    with torch.no_grad():
        scores = [twin(x)[n, c].item() for n, c in enumerate(CLASSES)]
        twin.get_submodule(layer).register_forward_hook(silence)
        expected = np.zeros((len(x), *clean.shape[2:]))
        for k in range(clean.shape[1]):
            state["k"] = k
            without = twin(x)
            for n, c in enumerate(CLASSES):
                expected[n] += (scores[n] - without[n, c].item()) / abs(scores[n]) * clean[n, k]
    return expected


@DIMS
@pytest.mark.parametrize("layer", ["block", "stem"])
def test_ablation_cam_silences_one_channel_after_another(dims: int, layer: str) -> None:
    network, x = Classifier(dims).double().eval(), image(dims).double()
    found = relevance(network, x, layer=layer, target=CLASSES, method="ablation-cam")
    np.testing.assert_allclose(found.values.numpy(), ablation_by_loops(network, layer, x), rtol=1e-6, atol=1e-9)


@DIMS
def test_the_closed_form_of_ablation_is_what_brute_force_gives(dims: int) -> None:
    network, x = Averaged(dims).double().eval(), image(dims).double()
    found = relevance(network, x, layer="features.0", target=CLASSES, method="ablation-cam")
    np.testing.assert_allclose(found.values.numpy(), ablation_by_loops(network, "features.0", x), rtol=1e-6, atol=1e-9)
    real = (
        resnet18(spatial_dims=dims, n_input_channels=1, num_classes=3, widen_factor=0.125, conv1_t_size=3)
        .double()
        .eval()
    )
    y = torch.randn(3, 1, *(24, 16, 8)[:dims]).double()
    found = relevance(real, y, layer="layer4", target=CLASSES, method="ablation-cam")
    np.testing.assert_allclose(found.values.numpy(), ablation_by_loops(real, "layer4", y), rtol=1e-6, atol=1e-9)


def test_ablation_where_channels_work_together_is_not_taken_for_a_sum() -> None:
    class Normalised(Averaged):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(nn.functional.normalize(self.features(x).flatten(2).mean(2), dim=1))

    network, x = Normalised(2).double().eval(), image(2).double()
    found = relevance(network, x, layer="features", target=CLASSES, method="ablation-cam")
    np.testing.assert_allclose(found.values.numpy(), ablation_by_loops(network, "features", x), rtol=1e-6, atol=1e-9)


def test_ablation_of_a_segmentation_keeps_the_region_of_the_clean_run() -> None:
    network, x = Segmenter(2).double().eval(), image(2, 1).double()
    found = relevance(network, x, layer="deep", target=1, method="ablation-cam")
    with torch.no_grad():
        logits = network(x)
        region = logits.argmax(1) == 1
        region = region if region.any() else torch.ones_like(region)
        deep = []
        network.deep.register_forward_hook(lambda _m, _a, out: deep.append(out.clone()))
        network(x)
        network.deep._forward_hooks.clear()
        expected = torch.zeros_like(deep[0][:, 0])
        score = (logits[:, 1] * region).sum()
        for k in range(deep[0].shape[1]):
            changed = deep[0].clone()
            changed[:, k] = 0
            handle = network.deep.register_forward_hook(lambda _m, _a, _out, changed=changed: changed)
            expected += (score - (network(x)[:, 1] * region).sum()) / score.abs() * deep[0][:, k]
            handle.remove()
    torch.testing.assert_close(found.values, expected)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("grad-kam", "did you mean grad-cam?"),
        ("grad-cam(smooth=True)", "grad-cam has no option 'smooth'; it has eigen_smooth"),
        ("rise(masks=os.system('x'))", "is not a method with options"),
        ("rise(masks=0)", "masks is a whole number of at least 1"),
        ("smooth-grad-cam++(samples=0)", "at least one sample"),
        ("seg-grad-cam", "explains segmentations, and this network's output has no voxels; grad-cam serves it"),
    ],
)
def test_a_method_that_does_not_exist_or_does_not_fit_is_refused_in_words(method: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        relevance(Classifier(2).eval(), image(2), layer="block", target=1, method=method)
    assert words in str(caught.value)


def test_grad_cam_pp_and_xgrad_cam_say_where_they_are_not_made_for_a_layer() -> None:
    class Signed(Averaged):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.features[0](x).flatten(2).mean(2))

    x = image(2)
    network = Signed(2).eval()
    with torch.no_grad():
        network.features[0].weight.zero_()
        network.features[0].bias.copy_(torch.tensor([-1.0, 1.0, 1.0, 1.0, 1.0]))
    notes = " ".join(relevance(network, x, layer="features.0", target=CLASSES, method="grad-cam++").notes[0])
    assert "20% of this layer's channels sum to less than zero" in notes
    with torch.no_grad():
        network.features[0].bias.zero_()
        network.features[0].weight[0, 0, 1, 1] = 1.0
        x = x - x[:, :, ::2, ::2].mean((2, 3), keepdim=True)
    notes = " ".join(relevance(network, x, layer="features.0", target=CLASSES, method="xgrad-cam").notes[0])
    assert "positive and negative activations cancel" in notes
    assert relevance(Averaged(2).eval(), x, layer="features", target=CLASSES, method="xgrad-cam").notes[0] == ()
