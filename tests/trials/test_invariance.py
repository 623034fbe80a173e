"""What must not matter: the direction of axes, a map's scale, and that something was measured at all."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medcam.trials.deletion import deletion_and_insertion
from medcam.trials.infidelity import infidelity, sensitivity
from medcam.trials.inpainting import inpainted
from medcam.trials.lesion_use import lesion_use
from medcam.trials.masking import drop_and_gain
from medcam.trials.randomizing import randomization
from medcam.trials.retest import retest
from medcam.trials.road import road
from medcam.trials.scoring import explaining, on_trial
from trials.toys import SHAPE, Linear, convolutional

SPACING = (0.8, 1.1, 2.4)


@pytest.mark.parametrize(("axes", "flips"), list(product([(0, 1, 2), (2, 0, 1), (1, 0, 2)], [(), (0,), (1, 2)])))
def test_turned_and_flipped_volumes_are_measured_alike(axes: tuple[int, ...], flips: tuple[int, ...]) -> None:
    """The network, the image, the map and the spacing turn together."""
    network, image, maps = Linear(), torch.randn(2, 1, *SHAPE), torch.randn(2, *SHAPE)
    lesion = torch.zeros(2, *SHAPE, dtype=torch.bool)
    lesion[:, 2:4, 3:5, 1:3] = True

    def turned(values: Tensor) -> Tensor:
        lead = values.ndim - 3
        moved = values.permute(*range(lead), *(lead + axis for axis in axes))
        return moved.flip([lead + axis for axis in flips]) if flips else moved

    other = Linear()
    other.weight = nn.Parameter(turned(network.weight.detach()).contiguous())
    spacing = [SPACING[axis] for axis in axes]
    with on_trial(network, image, target=0) as study, on_trial(other, turned(image).contiguous(), target=0) as second:
        torch.testing.assert_close(second.scores, study.scores, atol=1e-4, rtol=1e-5)
        first = deletion_and_insertion(study, maps, steps=9, patch_mm=1e-3, spacing_mm=SPACING, controls=())
        again = deletion_and_insertion(second, turned(maps), steps=9, patch_mm=1e-3, spacing_mm=spacing, controls=())
        for a, b in zip(first, again, strict=True):
            torch.testing.assert_close(a.deletion.area, b.deletion.area, atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(a.insertion.area, b.insertion.area, atol=1e-3, rtol=1e-4)
        quiet = [
            road(asked, given, noise=0, spacing_mm=mm, draws=1).combined
            for asked, given, mm in ((study, maps, SPACING), (second, turned(maps), spacing))
        ]
        torch.testing.assert_close(*quiet, atol=1e-2, rtol=1e-3)
        used = [
            lesion_use(asked, mask, fills=["inpaint"], spacing_mm=mm, draws=1)[0]
            for asked, mask, mm in ((study, lesion, SPACING), (second, turned(lesion), spacing))
        ]
        torch.testing.assert_close(used[0].necessity, used[1].necessity, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(used[0].sufficiency, used[1].sufficiency, atol=1e-3, rtol=1e-3)
        assert torch.equal(used[0].places, used[1].places)
    removed = torch.rand(2, *SHAPE) < 0.5
    torch.testing.assert_close(
        turned(inpainted(image, removed, spacing_mm=SPACING)), inpainted(turned(image), turned(removed), spacing_mm=spacing),
        atol=2e-4, rtol=0,
    )  # fmt: skip


def test_the_scale_of_a_map_does_not_matter_and_its_sign_does() -> None:
    network, image, maps = convolutional(), torch.randn(2, 1, *SHAPE), torch.randn(2, *SHAPE)
    with on_trial(network, image, target=0, score="probability") as study:
        found = [
            (
                deletion_and_insertion(study, given, patch_mm=2, steps=5, draws=1)[0].deletion_gain("blob"),
                road(study, given, draws=1).combined,
                drop_and_gain(study, given).drop,
                infidelity(study, given, samples=30).unexplained.float(),
            )
            for given in (maps, 1000 * maps, -maps)
        ]
    for plain, scaled in zip(*found[:2], strict=True):
        torch.testing.assert_close(plain, scaled, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found[0][0], found[2][0])
    assert not torch.allclose(found[0][1], found[2][1])
    torch.testing.assert_close(found[0][3], found[2][3], atol=1e-5, rtol=1e-4)  # its best factor turns with it


def test_nothing_that_was_given_is_written_to() -> None:
    network, image, maps = convolutional(), torch.randn(2, 1, *SHAPE), torch.randn(2, *SHAPE)
    maps[0, 0] = torch.nan
    lesion = torch.zeros(2, *SHAPE, dtype=torch.bool)
    lesion[:, 2:4, 3:5, 1:3] = True
    kept = [image.clone(), maps.clone(), lesion.clone(), *(value.clone() for value in network.state_dict().values())]
    random, generator = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    explain = explaining(layer="5", target=1)
    with on_trial(network, image, target=1, score="probability") as study:
        deletion_and_insertion(study, maps, fills=("inpaint", "blur", "mean"), patch_mm=3, steps=3, draws=1)
        road(study, maps, draws=1)
        drop_and_gain(study, maps)
        infidelity(study, maps, perturbation="box", samples=4)
        sensitivity(study, network, explain, samples=2)
        lesion_use(study, lesion, draws=2)
        retest(study, network, explain, spacing_mm=SPACING)
    randomization(network, image, explain)
    now = [image, maps, lesion, *network.state_dict().values()]
    for before, after in zip(kept, now, strict=True):
        torch.testing.assert_close(after, before, atol=0, rtol=0, equal_nan=True)
    assert torch.equal(random, torch.random.get_rng_state())
    assert (generator == np.random.get_state()[1]).all()  # noqa: NPY002
    assert not network.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
