"""Drop and gain, infidelity, sensitivity, and what the lesion is to the network: closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medcam.errors import UsageError
from medcam.trials.infidelity import infidelity, sensitivity
from medcam.trials.lesion_use import healthy_regions, lesion_use
from medcam.trials.masking import drop_and_gain
from medcam.trials.scoring import explaining, on_trial
from trials.toys import SHAPE, Linear, Spot, convolutional


class Probability(nn.Module):
    """The mean of the image, as a probability that the network itself gives."""

    def forward(self, image: Tensor) -> Tensor:
        chance = image.flatten(1).mean(1)
        return torch.stack([chance, 1 - chance], 1)


def test_drop_is_relative_and_gain_is_of_what_was_missing() -> None:
    """Probabilities of 0.8 and 0.5, and a map that lets a quarter of the image through."""
    image = torch.stack([torch.full((1, 8, 6, 4), 0.8), torch.full((1, 8, 6, 4), 0.5)])
    maps = torch.zeros(2, 8, 6, 4)
    maps[:, :2] = 7.0
    maps[:, 2:] = -3.0
    maps[:, 7, 0, 0] = torch.nan
    own = lambda out: out[:, 0]  # noqa: E731
    with on_trial(Probability(), image, target=own) as study:
        found = drop_and_gain(study, maps)
        np.testing.assert_allclose(found.masked, [0.2, 0.125], atol=1e-6)
        np.testing.assert_allclose(found.drop, [0.75, 0.75], atol=1e-6)
        assert found.gain.tolist() == [0, 0]
        assert found.rises.tolist() == [0, 0]
        np.testing.assert_allclose(found.shown, [0.25, 0.25], atol=1e-6)
        # Faded into 1 instead of 0 the probability rises to 0.2 + 0.75 and 0.125 + 0.75.
        bright = drop_and_gain(study, maps, fill=1)
        np.testing.assert_allclose(bright.gain, [(0.95 - 0.8) / 0.2, (0.875 - 0.5) / 0.5], atol=1e-5)
        assert bright.drop.tolist() == [0, 0]
        assert bright.rises.tolist() == [1, 1]


def test_a_map_that_shows_everything_drops_nothing_and_one_that_shows_nothing_is_undefined() -> None:
    image = torch.rand(2, 1, *SHAPE)
    with on_trial(convolutional(), image, target=1, score="probability") as study:
        whole = drop_and_gain(study, torch.full((2, *SHAPE), 0.3))
        assert whole.drop.tolist() == [0, 0]
        assert whole.shown.tolist() == [1, 1]
        none = drop_and_gain(study, torch.zeros(2, *SHAPE))
        assert torch.isnan(torch.stack([none.drop, none.gain, none.rises, none.masked, none.shown])).all()
    with on_trial(convolutional(), image, target=1) as study, pytest.raises(UsageError, match="score='probability'"):
        drop_and_gain(study, torch.rand(2, *SHAPE))


def test_drop_of_a_class_is_of_the_class_that_was_asked_for() -> None:
    network, image, maps = convolutional(), torch.rand(1, 1, *SHAPE), torch.rand(1, *SHAPE)
    least = int(network(image).argmin())
    with on_trial(network, image, target=least, score="probability") as study:
        found = drop_and_gain(study, maps)
    with torch.no_grad():
        before, after = (float(network(x).softmax(1)[0, least]) for x in (image, image * maps / maps.max()))
    assert float(found.drop) == pytest.approx(max(0, before - after) / before, abs=1e-5)
    assert float(found.gain) == pytest.approx(max(0, after - before) / (1 - before), abs=1e-5)


@pytest.mark.parametrize("perturbation", ["noise", "box"])
def test_the_gradient_of_a_linear_network_has_infidelity_zero(perturbation: str) -> None:
    network, image = Linear(channels=2), torch.randn(2, 2, *SHAPE)
    slopes = network.weight.detach().expand_as(image)
    with on_trial(network, image, target=0) as study:
        exact = infidelity(study, slopes, perturbation=perturbation)
        twice = infidelity(study, 2 * slopes, perturbation=perturbation)
        against = infidelity(study, -slopes, perturbation=perturbation)
    assert (exact.raw < 1e-8).all()
    np.testing.assert_allclose(exact.scale, 1, atol=1e-4)
    assert (twice.raw > 1e-3).all()
    np.testing.assert_allclose(twice.scale, 0.5, atol=1e-4)
    assert (twice.scaled < 1e-8).all()
    assert (twice.unexplained < 1e-6).all()
    np.testing.assert_allclose(against.scale, -1, atol=1e-4)


def test_twice_the_gradient_has_the_infidelity_of_theory() -> None:
    """The variance of the noise times the squared length of the weights."""
    network, image = Linear(), torch.randn(1, 1, *SHAPE) * 4 + 10
    with on_trial(network, image, target=0) as study:
        found = infidelity(study, 2 * network.weight.detach()[None], size=0.2, samples=3000)
    theory = (0.2 * float(image.std(unbiased=False))) ** 2 * float((network.weight.detach() ** 2).sum())
    assert float(found.raw) == pytest.approx(theory, rel=0.06)


def test_perturbations_do_not_add_up() -> None:
    """Each is of the clean image: a network that is not linear far from it would betray a sum."""

    class Edge(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return (image.flatten(1).abs().amax(1, keepdim=True) - 20).clamp(min=0)

    with on_trial(Edge(), torch.randn(1, 1, *SHAPE), target=0) as study:
        found = infidelity(study, torch.ones(1, *SHAPE), size=1.0, samples=500)
    assert torch.isnan(found.unexplained).all()  # the score has never moved
    assert float(found.scaled) == 0


def test_a_map_without_channels_speaks_for_each_and_a_random_one_explains_little() -> None:
    network, image = Linear(channels=2), torch.randn(1, 2, *SHAPE)
    with torch.no_grad():
        network.weight[1] = network.weight[0]
    with on_trial(network, image, target=0) as study:
        assert float(infidelity(study, network.weight.detach()[:1]).raw) < 1e-8
        assert float(infidelity(study, torch.randn(1, *SHAPE), samples=300).unexplained) > 0.8
        partly = network.weight.detach()[:1].clone()
        partly[0, :4] = torch.nan
        assert float(infidelity(study, partly).raw) < 1e-8
        for wrong in ({"perturbation": "salt"}, {"size": 0}, {"samples": 0}, {"perturbation": "box", "size": 2}):
            with pytest.raises(UsageError):
                infidelity(study, partly, **wrong)


def test_the_gradient_of_a_linear_network_has_sensitivity_zero() -> None:
    network, image = Linear(), torch.randn(2, 1, *SHAPE)
    with on_trial(network, image, target=0) as study:
        still = sensitivity(study, network, explaining(method="saliency", target=0), samples=3)
        assert still.largest.tolist() == [0, 0]
        assert (still.score_change > 0).all()
        assert torch.isnan(
            sensitivity(study, network, lambda _, x: torch.zeros(len(x), *SHAPE), samples=2).largest
        ).all()


def test_sensitivity_is_the_largest_relative_change_of_the_map() -> None:
    """A map that is its image moves by the noise itself."""
    network, image = Linear(), torch.randn(1, 1, *SHAPE) * 5
    seen = []

    def explain(_: nn.Module, x: Tensor) -> Tensor:
        seen.append(x[:, 0])
        return x[:, 0]

    with on_trial(network, image, target=0) as study:
        found = sensitivity(study, network, explain, radius=0.1, samples=6)
    moved = [float((x - image[:, 0]).norm() / image.norm()) for x in seen[1:]]
    assert float(found.largest) == pytest.approx(max(moved), rel=1e-5)
    bound = 0.1 * float(image.std(unbiased=False))
    assert 0.9 * bound < max(float((x - image[:, 0]).abs().max()) for x in seen) <= bound * (1 + 1e-5)


LESION = (slice(2, 5), slice(1, 3), slice(1, 3))


def lesioned() -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    image = 0.1 * torch.randn(1, 1, *SHAPE) + 1
    mask = torch.zeros(1, *SHAPE, dtype=torch.bool)
    mask[(0, *LESION)] = True
    image[:, 0][mask] += 5
    return image, mask


def test_a_network_that_looks_at_the_lesion_needs_it_and_needs_nothing_else() -> None:
    image, mask = lesioned()
    with on_trial(Spot(LESION), image, target=0) as study:
        for found in lesion_use(study, mask, draws=12):
            assert float(found.necessity) == pytest.approx(5, abs=0.3)
            np.testing.assert_allclose(found.healthy, 0, atol=1e-6)
            assert float(found.excess) == pytest.approx(float(found.necessity))
            assert float(found.chance) == pytest.approx(1 / 13)
            assert float(found.sufficiency) == pytest.approx(1)
            assert float(found.sufficiency_excess) == pytest.approx(1)
            assert float(found.share) == pytest.approx(float(found.necessity / (found.clean - found.nothing)))
            assert (found.only_healthy < float(found.nothing) + 1e-5).all()


def test_a_network_that_looks_elsewhere_is_seen_to_ignore_the_lesion() -> None:
    image, mask = lesioned()
    with on_trial(Spot((slice(6, 9), slice(4, 7), slice(2, 5))), image, target=0) as study:
        found = lesion_use(study, mask, fills=["inpaint"], draws=20)[0]
    assert float(found.necessity) == pytest.approx(0, abs=1e-6)
    assert float(found.chance) > 0.5
    assert abs(float(found.excess)) < 1


def test_a_network_of_all_voxels_is_told_from_one_of_the_lesion_by_healthy_regions() -> None:
    """Zeroing the lesion moves a sum over the image, and so does zeroing anything else."""

    class Count(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return (image > 0.5).float().flatten(1).sum(1, keepdim=True)

    image, mask = lesioned()
    with on_trial(Count(), image, target=0) as study:
        found = lesion_use(study, mask, fills=["zero"], rest="zero", draws=15)[0]
    assert float(found.necessity) == 12
    assert float(found.excess) == 0
    assert float(found.chance) == 1
    assert float(found.share) == 0
    assert float(found.sufficiency) == pytest.approx(12 / math.prod(SHAPE))
    assert float(found.sufficiency_excess) == pytest.approx(0, abs=1e-6)


def test_healthy_regions_have_the_lesions_shape_lie_in_the_body_and_touch_no_lesion() -> None:
    _, mask = lesioned()
    domain = torch.ones_like(mask)
    domain[:, :, :, 4] = False
    found = healthy_regions(mask, domain, draws=200, seed=0)
    apart = nn.functional.max_pool3d(mask[:, None].float(), 3, 1, 1)[:, 0] > 0
    count = 0
    for i in range(SHAPE[0] - 2):
        for j in range(SHAPE[1] - 1):
            for k in range(SHAPE[2] - 1):
                moved = torch.zeros_like(mask)
                moved[0, i : i + 3, j : j + 2, k : k + 2] = True
                count += not bool((moved & (apart | ~domain)).any())
    assert int(found.places) == count < 200
    drawn = found.masks[:count]
    assert (drawn.flatten(1).sum(1) == 12).all()
    assert not bool((drawn & (apart | ~domain)).any())
    assert len({tuple(one.nonzero()[0].tolist()) for one in drawn}) == count
    assert not bool(found.masks[count:].any())


def test_without_a_lesion_or_a_place_for_another_nothing_is_claimed() -> None:
    image, mask = lesioned()
    both = torch.cat([image, image, image])
    masks = torch.cat([mask, torch.zeros_like(mask), torch.ones_like(mask)])
    with on_trial(Spot(LESION), both, target=0) as study:
        found = lesion_use(study, masks, fills=["mean"], draws=3)[0]
    assert float(found.necessity[0]) > 4
    for value in (found.clean, found.necessity, found.excess, found.chance, found.only, found.sufficiency):
        assert torch.isnan(value[1])
    assert float(found.necessity[2]) > 0
    assert torch.isnan(found.excess[2])
    assert torch.isnan(found.chance[2])
    assert found.places.tolist()[1:] == [0, 0]
    with on_trial(Spot(LESION), image, target=0) as study:
        alone = lesion_use(study, mask, fills=["mean"], draws=3)[0]
        torch.testing.assert_close(alone.healthy[:, 0], found.healthy[:, 0])
        with pytest.raises(UsageError, match="does not fit"):
            lesion_use(study, mask[:, 1:])
        with pytest.raises(UsageError, match="at least one fill"):
            lesion_use(study, mask, fills=[])


def test_images_work_like_volumes() -> None:
    image = torch.randn(2, 1, 15, 11)
    mask = torch.zeros(2, 15, 11, dtype=torch.bool)
    mask[:, 3:6, 4:6] = True
    with on_trial(convolutional(2), image, target=1) as study:
        found = lesion_use(study, mask, draws=4)
        assert all(torch.isfinite(one.excess).all() for one in found)
        assert torch.isfinite(infidelity(study, torch.randn(2, 15, 11), perturbation="box", samples=9).raw).all()
