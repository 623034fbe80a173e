"""The whole of the room on a network that was trained to find lesions, and on the same network with random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import medcam
from medcam.geometry import resample
from medcam.models import load_model
from medcam.prepare import prepare
from medcam.samples import sample_path
from medcam.trials.deletion import deletion_and_insertion
from medcam.trials.lesion_use import lesion_use
from medcam.trials.randomizing import randomization, randomized, stages
from medcam.trials.road import road
from medcam.trials.scoring import explaining, on_trial

HIRES = explaining(method="hires-cam", layer="features", target=0)


@pytest.fixture(scope="module")
def film() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """The network that finds nodules, a film, its nodule's mask, and where the body is."""
    model = load_model("demo-cxr")
    image, mask = medcam.read(sample_path("cxr", "film.nii.gz")), medcam.read(sample_path("cxr", "film_nodule.nii.gz"))
    ready = prepare([image], model.preprocessing, spatial_dims=2)
    inputs = ready.tensor[None]
    lesion = resample(mask.voxels.astype(np.float32), mask.grid, ready.grid, nearest=True, outside=0.0) > 0.5
    body = inputs[:, 0] > inputs.min() + 0.05 * (inputs.max() - inputs.min())
    return model.network, inputs, torch.as_tensor(lesion[None, :, :, 0]), body


def random_weights(network: nn.Module, inputs: Tensor, seed: int) -> nn.Module:
    *_, (_, last) = randomized(network, stages(network, inputs), order="top-down", seed=seed)
    return last


def test_the_trained_network_needs_the_nodule_and_random_weights_do_not(
    film: tuple[nn.Module, Tensor, Tensor, Tensor],
) -> None:
    network, inputs, lesion, body = film
    with on_trial(network, inputs, target=0) as study:
        found = lesion_use(study, lesion, domain=body, fills=["inpaint"], draws=10)[0]
    assert float(found.share) > 0.5
    assert float(found.chance) == pytest.approx(1 / 11)
    assert abs(float(found.healthy.mean())) < 0.05 * float(found.necessity)
    for seed in range(3):
        with on_trial(random_weights(network, inputs, seed), inputs, target=0) as study:
            found = lesion_use(study, lesion, domain=body, fills=["inpaint"], draws=10)[0]
        assert abs(float(found.share)) < 0.1


def test_a_map_of_the_trained_network_is_faithful_and_one_that_lies_elsewhere_is_not(
    film: tuple[nn.Module, Tensor, Tensor, Tensor],
) -> None:
    network, inputs, _, body = film
    maps = HIRES(network, inputs).clamp(min=0)
    elsewhere = maps.roll((90, 60), (1, 2))
    with on_trial(network, inputs, target=0) as study:
        right, wrong = (road(study, each, domain=body, draws=1) for each in (maps, elsewhere))
        curves = deletion_and_insertion(study, maps, fills=("blur", "mean"), domain=body, steps=10, controls=("blob",))
    assert float(right.combined) > float(right.control) + 2
    assert float(right.combined) > float(wrong.combined) + 2
    assert all(float(curve.insertion_gain("blob")) > 1 for curve in curves)


def test_maps_of_the_trained_network_change_with_its_weights(film: tuple[nn.Module, Tensor, Tensor, Tensor]) -> None:
    network, inputs, _, _ = film
    found = randomization(network, inputs, HIRES, order="bottom-up", most=4)
    assert len(found.stages) == 4
    assert not found.degenerate.any()
    assert (abs(found.similarities["pearson"]) < 0.3).all()
