"""Images taken again: the warp against scipy, the way back, and maps that should and should not hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform, gaussian_filter
from torch import Tensor, nn

from medcam.errors import UsageError
from medcam.trials.acquisitions import ACQUISITIONS, _map_warped, _turn, _warped, acquisition_named
from medcam.trials.retest import retest
from medcam.trials.scoring import explaining, on_trial
from medcam.validate.similarity import shift_mm
from trials.toys import Linear, convolutional

SHAPE = (25, 21, 13)
SPACING = (0.8, 1.1, 2.4)


def smooth(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    values = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.0)
    return torch.tensor(values / values.std(), dtype=torch.float32)


def test_a_warp_takes_each_voxel_from_where_the_matrix_says() -> None:
    matrix = np.eye(4)
    matrix[:3, :3] += np.random.default_rng(0).normal(scale=0.05, size=(3, 3))
    matrix[:3, 3] = 1.3, -0.6, 0.4
    image, centre = smooth(), (np.array(SHAPE) - 1) / 2
    expected = affine_transform(
        image.numpy(), matrix[:3, :3], centre + matrix[:3, 3] - matrix[:3, :3] @ centre, order=1, mode="constant"
    )
    found = _warped(image[None], matrix, "zeros")[0].numpy()
    inner = (slice(4, -4),) * 3
    np.testing.assert_allclose(found[inner], expected[inner], atol=1e-3)


def test_a_motion_is_rigid_in_millimetres_though_voxels_are_not_cubes() -> None:
    """Two points of the patient keep their distance in millimetres."""
    image = smooth()[None]
    taken = acquisition_named("rigid(degrees=20, mm=3)")(image, SPACING, 4)
    # Coordinates are images too: where has each voxel come from?
    index = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")).astype(np.float32)
    came = torch.stack([taken.there(torch.tensor(one)) for one in index]).numpy()
    whole = np.isfinite(came).all(0)
    first, second = (index * np.reshape(SPACING, (3, 1, 1, 1)), came * np.reshape(SPACING, (3, 1, 1, 1)))
    inner = np.argwhere(whole & (abs(index - (np.reshape(SHAPE, (3, 1, 1, 1)) - 1) / 2) < 3).all(0))
    assert len(inner) > 50
    a, b = inner[0], inner[-1]
    before = np.linalg.norm(first[(slice(None), *a)] - first[(slice(None), *b)])
    after = np.linalg.norm(second[(slice(None), *a)] - second[(slice(None), *b)])
    assert after == pytest.approx(before, rel=1e-3)
    assert np.abs(came - index)[:, whole].max() > 1
    np.testing.assert_allclose(_turn([0.3, -0.2, 0.5]) @ _turn([0.3, -0.2, 0.5]).T, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("shape", [SHAPE, (29, 23)])
def test_a_map_comes_back_to_where_it_was_and_is_not_claimed_beyond_the_image(shape: tuple[int, ...]) -> None:
    image = smooth(1, shape)
    taken = acquisition_named("rigid(degrees=5, mm=3)")(image[None], SPACING[: len(shape)], 7)
    back = taken.back(taken.there(image))
    seen = torch.isfinite(back)
    assert 0.3 < float(seen.float().mean()) < 1
    apart = (back - image)[seen]
    assert float(apart.std()) < 0.25
    # The image itself moved as its maps do.
    moved, there = taken.image[0], taken.there(image)
    both = torch.isfinite(there)
    assert float((moved - there)[both].abs().mean()) < 0.05
    assert float((moved - image).std()) > 0.25


def test_what_was_not_looked_at_spreads_to_nothing_else() -> None:
    image = smooth()
    image[:, :4] = torch.nan
    back = acquisition_named("rigid(degrees=2, mm=1)")(smooth()[None], SPACING, 0).back(image)
    assert torch.isnan(back[:, :2]).all()
    assert float(torch.isfinite(back).float().mean()) > 0.6


@pytest.mark.parametrize("name", sorted(ACQUISITIONS))
def test_an_image_changes_a_little_by_its_seed_and_not_by_global_numbers(name: str) -> None:
    image = torch.stack([smooth(0), 40 * smooth(1) + 300])
    before, generator = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, same = (acquisition_named(name)(image, SPACING, 3).image for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert (generator == np.random.get_state()[1]).all()  # noqa: NPY002
    assert torch.equal(first, same)
    assert type(first) is Tensor
    assert first.dtype == image.dtype
    for c in range(2):
        apart = (first[c] - image[c]).std() / image[c].std()
        assert 0.02 < float(apart) < 0.6
    if name in ("noise", "bias", "rigid"):
        assert not torch.equal(first, acquisition_named(name)(image, SPACING, 4).image)


def test_strengths_are_what_they_say() -> None:
    image = 50 * smooth()[None] + 7
    noisy = acquisition_named("noise(share=0.1)")(image, SPACING, 0).image
    assert float((noisy - image).std() / image.std()) == pytest.approx(0.1, rel=0.03)
    bent = acquisition_named("gamma(exponent=2)")(image, SPACING, 0).image
    low, wide = image.min(), image.max() - image.min()
    torch.testing.assert_close(bent, ((image - low) / wide) ** 2 * wide + low, atol=0.02, rtol=0)
    with pytest.raises(UsageError, match="no option 'angle'"):
        acquisition_named("rigid(angle=2)")
    for wrong in (
        "noise(share=0)",
        "resampled(factor=1)",
        "rigid(degrees=0, mm=0)",
        "gamma(exponent=-1)",
        "bias(strength=0)",
    ):
        with pytest.raises(UsageError):
            acquisition_named(wrong)


def test_maps_that_follow_the_image_hold_and_maps_that_stay_do_not_hold_a_motion() -> None:
    image = torch.stack([smooth(0), smooth(1)])[:, None]

    def follows(_: nn.Module, x: Tensor) -> Tensor:
        return x[:, 0]

    with on_trial(Linear(SHAPE), image, target=0) as study:
        found = retest(
            study, nn.Identity(), follows, acquisitions=["rigid(degrees=8, mm=6)"], spacing_mm=SPACING, repeats=2
        )
        assert len(found) == 2
        for one in found:
            for alike, best in zip(one.similarities, one.ceiling, strict=True):
                assert alike.pearson == pytest.approx(best.pearson, abs=0.05)
                assert best.pearson > 0.9
        still = retest(
            study, nn.Identity(), lambda _, x: image[:, 0], acquisitions=["rigid(degrees=8, mm=6)"], spacing_mm=SPACING
        )
        assert still[0].similarities[0].pearson < found[0].similarities[0].pearson - 0.1
        with pytest.raises(UsageError, match="one positive spacing"):
            retest(study, nn.Identity(), follows, spacing_mm=(1, 1))


def test_scores_change_by_what_the_second_image_scores() -> None:
    network, image = convolutional(), torch.stack([smooth(0), smooth(1)])[:, None]
    explain = explaining(method="grad-cam", layer="5", target=1)
    with on_trial(network, image, target=1) as study:
        every = retest(study, network, explain, spacing_mm=SPACING)
    assert [one.acquisition for one in every] == list(ACQUISITIONS)
    taken = torch.stack([acquisition_named("gamma")(one, SPACING, 0).image for one in image])
    gamma = every[list(ACQUISITIONS).index("gamma")]
    with torch.no_grad():
        torch.testing.assert_close(gamma.score_change, (network(taken) - network(image))[:, 1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gamma.maps, explain(network, taken), atol=1e-6, rtol=1e-4)
    assert gamma.ceiling[0].pearson == pytest.approx(1)


def test_a_motion_of_whole_cells_is_followed_exactly_and_one_of_half_a_cell_is_not() -> None:
    """A map lies on its layer's cells: what moves by less is seen at the nearest, which is the network's doing and not the warp's."""
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv3d(1, 1, 3, stride=4, padding=1), nn.ReLU(), nn.AdaptiveMaxPool3d(1), nn.Flatten()
    ).eval()
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[0].bias.zero_()
    image = torch.zeros(1, 1, 32, 24, 20)
    image[..., 12:15, 8:11, 7:10] = 1.0
    explain = explaining(method="hires-cam", layer="0", target=0)
    first, apart = explain(network, image)[0].double().numpy(), {}
    for step in (4.0, 2.0):
        matrix = np.eye(4)
        matrix[0, 3] = step
        second = explain(network, _warped(image[0], matrix, "zeros")[None])[0]
        apart[step] = shift_mm(first, _map_warped(second, np.linalg.inv(matrix)).double().numpy(), spacing_mm=(1, 1, 1))
    assert apart[4.0] < 1e-3
    assert 1 < apart[2.0] <= 2.01
