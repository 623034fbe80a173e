"""Weights drawn anew: which, when and how, and that the user's network is not harmed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medcam.errors import ModelError, UsageError
from medcam.trials.randomizing import randomization, randomized, stages, with_random_weights
from medcam.trials.scoring import explaining
from medcam.validate.sanity import partner_similarity, sanity
from medcam.validate.similarity import spearman
from trials.toys import SHAPE, convolutional


class Backwards(nn.Module):
    """Its layers are registered from the last to the first, and one of them is used without being called."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.BatchNorm3d(8)
        self.place = nn.Parameter(torch.randn(1, 1, 8))
        self.stem = nn.Conv3d(1, 8, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.norm(self.stem(image)).flatten(2).mT + self.place
        mixed, _ = self.attention(tokens, tokens, tokens)
        return self.head(mixed.mean(1))


def trained() -> tuple[nn.Module, Tensor]:
    return convolutional(), torch.randn(2, 1, *SHAPE)


def changed(before: nn.Module, after: nn.Module) -> list[str]:
    state = after.state_dict()
    return [name for name, value in before.state_dict().items() if not torch.equal(value, state[name])]


def test_stages_follow_the_run_and_hold_every_weight() -> None:
    network, image = Backwards().eval(), torch.randn(1, 1, *SHAPE)
    found = stages(network, image, most=20)
    assert [stage.name for stage in found] == ["", "stem", "attention", "attention.out_proj", "head"]
    assert found[1].modules == ("stem", "norm")
    assert [stage.modules for stage in stages(network, image, most=2)] == [
        ("", "stem", "norm", "attention"), ("attention.out_proj", "head"),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="at least one stage"):
        stages(network, image, most=0)


@pytest.mark.parametrize("order", ["bottom-up", "top-down", "independent"])
def test_each_order_draws_what_it_says(order: str) -> None:
    network, image = trained()
    given = stages(network, image)
    assert [stage.modules for stage in given] == [("0", "1"), ("3", "4"), ("8",)]
    layers = [
        {name.split(".")[0] for name in changed(network, drawn)} for _, drawn in randomized(network, given, order=order)
    ]
    expected = {
        "bottom-up": [{"0", "1"}, {"0", "1", "3", "4"}, {"0", "1", "3", "4", "8"}],
        "top-down": [{"8"}, {"3", "4", "8"}, {"0", "1", "3", "4", "8"}],
        "independent": [{"0", "1"}, {"3", "4"}, {"8"}],
    }[order]
    assert layers == expected


def test_norms_forget_their_running_statistics_too() -> None:
    network, image = trained()
    assert not torch.equal(network[1].running_mean, torch.zeros(4))
    *_, (_, last) = randomized(network, stages(network, image), order="top-down")
    assert torch.equal(last[1].running_mean, torch.zeros(4))
    assert torch.equal(last[1].running_var, torch.ones(4))
    assert torch.equal(last[1].weight, torch.ones(4))
    assert int(last[4].num_batches_tracked) == 0


def test_the_users_network_and_generators_are_left_as_they_are() -> None:
    network, image = trained()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.random.get_rng_state()
    for order in ("bottom-up", "independent"):
        randomization(network, image, explaining(layer="5", target=1), order=order)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())
    assert not network[0]._forward_pre_hooks


def test_the_same_seed_draws_the_same_weights_in_every_order_and_another_others() -> None:
    network, image = trained()
    given = stages(network, image)
    weights = {}
    for order, seed in (("bottom-up", 0), ("top-down", 0), ("bottom-up", 1)):
        *_, (_, last) = randomized(network, given, order=order, seed=seed)
        weights[order, seed] = last[3].weight.clone()
    assert torch.equal(weights["bottom-up", 0], weights["top-down", 0])
    assert not torch.equal(weights["bottom-up", 0], weights["bottom-up", 1])
    with pytest.raises(UsageError, match="bottom-up, top-down, independent"):
        list(randomized(network, given, order="sideways"))


def test_layers_that_keep_their_numbers_elsewhere_are_drawn_as_well() -> None:
    """Weight norm keeps a length and a direction, and a parameter of one's own has no way to be initialised."""
    network = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv3d(1, 3, 3)),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(3, 2),
    )
    network.register_parameter("own", nn.Parameter(torch.randn(5) * 3 + 7))
    *_, (_, last) = randomized(network, stages(network, torch.randn(1, 1, *SHAPE)), order="bottom-up")
    assert set(changed(network, last)) == set(network.state_dict())
    torch.testing.assert_close(float(last.own.mean()), 7.0, atol=6, rtol=0)


def test_the_learned_networks_own_similarity_is_not_among_them() -> None:
    network, image = trained()
    found = randomization(network, image, explaining(method="saliency", target=1), spacing_mm=(1, 2, 3))
    assert found.stages == ("0", "3", "8")
    assert found.similarities["ssim"].shape == (3, 2)
    assert (found.similarities["ssim"] < 0.99).all()
    np.testing.assert_allclose(found.mean("pearson"), found.similarities["pearson"].mean(0))
    again = randomization(network, image, explaining(method="saliency", target=1), spacing_mm=(1, 2, 3))
    np.testing.assert_array_equal(found.similarities["shift_mm"], again.similarities["shift_mm"])


def test_a_map_of_the_image_alone_fails_and_one_of_the_network_passes() -> None:
    """Edges of the image do not change with the weights; a map of the weights alone changes with nothing else."""
    network, image = convolutional(), torch.randn(12, 1, *SHAPE)

    def edges(_: nn.Module, x: Tensor) -> Tensor:
        return x[:, 0].diff(dim=1, append=x[:, 0, -1:]).abs()

    def weights(given: nn.Module, x: Tensor) -> Tensor:
        drawn = torch.randn(SHAPE, generator=torch.Generator().manual_seed(int(given[0].weight.sum() * 1e6)))
        return drawn + 0.5 * x[:, 0]

    patients = [f"p{n // 2}" for n in range(12)]
    for explain, verdict in ((edges, "fails"), (weights, "passes")):
        found = randomization(network, image, explain)
        maps = [one.double().numpy() for one in explain(network, image)]
        chance = partner_similarity(maps, patients, spearman, per_map=8)
        assert sanity(found.similarities["spearman"][-1], chance, patients).verdict == verdict


def test_blank_maps_are_counted_and_not_taken_for_change() -> None:
    network, image = trained()
    calls = []

    def explain(_: nn.Module, x: Tensor) -> Tensor:
        calls.append(1)
        return x[:, 0] if len(calls) == 1 else torch.zeros_like(x[:, 0]) if len(calls) == 2 else x[:, 0] * torch.nan

    found = randomization(network, image, explain)
    assert found.degenerate.all()
    assert not found.learned_degenerate.any()
    assert np.isnan(found.similarities["spearman"]).all()
    assert np.isnan(found.mean("ssim")).all()


def test_a_network_whose_weights_are_hidden_is_refused_in_words() -> None:
    with pytest.warns(DeprecationWarning, match="deprecated"):
        traced = torch.jit.trace(convolutional(), torch.randn(1, 1, *SHAPE))
    with pytest.raises(ModelError, match="TorchScript"):
        stages(traced, torch.randn(1, 1, *SHAPE))
    with pytest.raises(ModelError, match="no weights"):
        stages(nn.Sequential(nn.Flatten()), torch.randn(1, 1, *SHAPE))


def test_random_weights_are_those_of_the_last_step_of_each_cascade() -> None:
    network, image = trained()
    alone = with_random_weights(network, seed=3)
    for order in ("bottom-up", "top-down"):
        *_, (_, last) = randomized(network, stages(network, image), order=order, seed=3)
        assert changed(last, alone) == []
    assert len(changed(network, alone)) > 8


class Frozen(nn.Module):
    """A norm of one's own, as detectors have it: all of it lies in buffers, and it has no way to be initialised."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("weight", 2.0), ("bias", 0.5), ("running_mean", 0.3), ("running_var", 4.0)):
            self.register_buffer(name, torch.full((3,), value))

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1, 1)
        scale = self.weight.reshape(shape) / self.running_var.reshape(shape).sqrt()
        return (x - self.running_mean.reshape(shape)) * scale + self.bias.reshape(shape)


def test_a_norm_that_lies_in_buffers_forgets_as_well() -> None:
    network = nn.Sequential(nn.Conv3d(1, 3, 3), Frozen(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(3, 2))
    given = stages(network, torch.randn(1, 1, *SHAPE))
    assert [stage.modules for stage in given] == [("0", "1"), ("4",)]
    (_, drawn), *_ = randomized(network, given[:1], order="bottom-up")
    for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        assert getattr(drawn[1], name).tolist() == [value] * 3
    assert network[1].running_var.tolist() == [4.0] * 3
