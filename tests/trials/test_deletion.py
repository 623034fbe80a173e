"""Deletion, insertion and ROAD: closed forms of linear networks, loops from the definitions, and the traps of other tools."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medcam.errors import UsageError
from medcam.trials.deletion import deletion_and_insertion, deletion_curve
from medcam.trials.fills import fill_named
from medcam.trials.inpainting import inpainted
from medcam.trials.order import NEVER, Patches, order_of, patches_of, surrogates
from medcam.trials.road import road
from medcam.trials.scoring import on_trial
from trials.toys import SHAPE, Linear, Spot, convolutional


def every(maps: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(maps, dtype=torch.bool)


def ordered(maps: torch.Tensor, sides: tuple[int, ...], seed: int = 0, domain: torch.Tensor | None = None):
    return order_of(
        maps, Patches(tuple(maps.shape[1:]), sides), domain=every(maps) if domain is None else domain,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def test_deletion_of_a_linear_network_is_a_sum_of_what_is_left() -> None:
    network, image = Linear(), torch.randn(2, 1, *SHAPE)
    terms = (image * network.weight).detach()[:, 0]
    with on_trial(network, image, target=0) as study:
        zero, mean = deletion_and_insertion(
            study, terms, fills=("zero", "mean"), steps=10_000, patch_mm=1, controls=("random",), draws=1
        )
    n = terms[0].numel()
    for b in range(2):
        parts = np.sort(terms[b].numpy().ravel())[::-1].astype(float)
        left = 0.5 + parts.sum() - np.r_[0, np.cumsum(parts)]
        np.testing.assert_allclose(zero.deletion.scores[b], left, atol=1e-4)
        np.testing.assert_allclose(zero.deletion.shares[b], np.arange(n + 1) / n, atol=1e-6)
        assert float(zero.deletion.area[b]) == pytest.approx((left.sum() - (left[0] + left[-1]) / 2) / n, abs=1e-4)
        np.testing.assert_allclose(zero.insertion.scores[b], 0.5 + np.r_[0, np.cumsum(parts)], atol=1e-4)
    assert (zero.deletion_gain("random") > 0).all()
    assert (zero.insertion_gain("random") > 0).all()
    assert float(mean.deletion.scores[0, 0]) == float(zero.deletion.scores[0, 0])
    assert not torch.allclose(mean.deletion.area, zero.deletion.area)
    # Half of a linear score is left on average when voxels go at random.
    assert zero.deletion_controls["random"].shape == (1, 2)


def test_no_map_beats_the_exact_one_and_its_negative_is_worst() -> None:
    network, image = Linear(), torch.randn(3, 1, *SHAPE)
    exact = (image * network.weight).detach()[:, 0]
    areas = []
    with on_trial(network, image, target=0) as study:
        for maps in (exact, torch.randn_like(exact), -exact):
            found = deletion_and_insertion(study, maps, fills=("zero", "mean"), patch_mm=1, controls=())
            areas.append((found[0].deletion.area, -found[0].insertion.area))
    for best, between, worst in zip(*areas, strict=True):
        assert (best < between).all()
        assert (between < worst).all()


def test_patches_go_whole_and_curves_run_over_realised_shares() -> None:
    """The twin removes boxes one after the other."""
    network, image = convolutional(), torch.randn(1, 1, *SHAPE)
    maps = torch.rand(1, *SHAPE)
    patches = patches_of(SHAPE, spacing_mm=(1.0, 1.0, 2.5), patch_mm=4)
    assert patches.sides == (4, 4, 2)
    assert patches.counts == (3, 2, 3)
    boxes = [
        tuple(slice(s * n, s * (n + 1)) for s, n in zip(patches.sides, place, strict=True))
        for place in np.ndindex(3, 2, 3)
    ]
    boxes.sort(key=lambda box: -float(maps[0][box].mean()))
    with on_trial(network, image, target=1) as study:
        found = deletion_and_insertion(
            study, maps, fills=("zero", "blur"), steps=18, patch_mm=4, spacing_mm=(1.0, 1.0, 2.5), controls=()
        )[0].deletion
        # Steps lie at equal shares, patches of the border are smaller: the nearest number of patches is taken.
        sizes = np.cumsum([0] + [maps[0][box].numel() for box in boxes]) / maps[0].numel()
        for k in range(19):
            chosen = int(np.argmin(abs(sizes - k / 18)))
            copy = image.clone()
            for box in boxes[:chosen]:
                copy[(..., *box)] = 0
            assert float(found.shares[0, k]) == pytest.approx(sizes[chosen])
            with torch.no_grad():
                assert float(found.scores[0, k]) == pytest.approx(float(network(copy)[0, 1]), abs=1e-5)


def test_a_volume_goes_in_patches_of_eight_millimetres_and_an_image_by_pixels() -> None:
    assert patches_of((64, 64, 20), spacing_mm=(1.0, 0.8, 4.0)).sides == (8, 10, 2)
    assert patches_of((64, 64, 20), spacing_mm=(1.0, 1.0, 30.0)).sides == (8, 8, 1)
    assert patches_of((31, 17), spacing_mm=(0.2, 0.2)).sides == (1, 1)
    with pytest.raises(UsageError, match="3 axes"):
        patches_of((5, 6, 7), spacing_mm=(1.0, 1.0))
    with pytest.raises(UsageError, match="positive number of millimetres"):
        patches_of((5, 6, 7), patch_mm=0)


def test_of_tied_voxels_as_many_go_as_were_asked_for() -> None:
    """With 59 % zeros, percentile cuts would remove everything at the median."""
    maps = torch.rand(1, *SHAPE)
    maps[maps < 0.59] = 0
    order = ordered(maps, (1, 1, 1))
    cuts, shares = order.cuts([0.1, 0.5, 0.8, 0.9])
    np.testing.assert_allclose(shares, [[0.1, 0.5, 0.8, 0.9]], atol=0.5 / maps.numel())
    masks = order.first(cuts.T)
    assert [int(mask.sum()) for mask in masks] == [round(s * maps.numel()) for s in shares[0].tolist()]
    assert float(order.tied) == pytest.approx(float((maps == 0).float().mean()))
    # The chance is the seed's.
    assert torch.equal(order.place, ordered(maps, (1, 1, 1)).place)
    other = ordered(maps, (1, 1, 1), seed=1)
    assert not torch.equal(order.place, other.place)
    assert torch.equal(order.place[maps > 0], other.place[maps > 0])


def test_the_order_is_that_of_sorting_values_of_either_sign() -> None:
    maps = torch.randn(2, *SHAPE)
    maps[0, 0, 0] = torch.tensor([0.0, -0.0, 1e-40, -1e-40, 3e38])
    order = ordered(maps, (1, 1, 1))
    for b in range(2):
        taken = torch.empty(maps[0].numel()).scatter_(0, order.place[b].flatten().long(), maps[b].flatten())
        assert torch.equal(taken, maps[b].flatten().sort(descending=True).values)
    assert float(order.tied[0]) == pytest.approx(2 / maps[0].numel())
    assert float(order.tied[1]) == 0
    # Of many ties each is as likely to come first.
    firsts = [int(ordered(torch.zeros(1, 3, 2, 2), (1, 1, 1), seed=n).place.flatten().argmin()) for n in range(480)]
    assert np.bincount(firsts, minlength=12).min() > 18


def test_an_order_read_backwards_takes_the_last_first() -> None:
    maps = torch.rand(2, 8, 5, 3)
    domain = torch.rand(2, 8, 5, 3) < 0.7
    domain[1, 4:] = False
    order = ordered(maps, (2, 2, 2), domain=domain)
    back = order.reversed()
    for b in range(2):
        inside = domain[b]
        size = int(order.place[b][inside].max())
        assert torch.equal(back.place[b][inside], size - order.place[b][inside])
        assert (back.place[b][~inside] == NEVER).all()
        counts = [int((back.place[b][inside] < k).sum()) for k in range(back.reached.shape[1])]
        assert back.reached[b].tolist() == counts
        assert order.reached[b].tolist() == [
            int((order.place[b][inside] < k).sum()) for k in range(order.reached.shape[1])
        ]


def test_voxels_outside_the_domain_are_never_removed_and_those_not_looked_at_go_last() -> None:
    maps = torch.rand(1, *SHAPE)
    maps[0, :2] = torch.nan
    domain = every(maps)
    domain[0, :, 0] = False
    order = ordered(maps, (1, 1, 1), domain=domain)
    cuts, shares = order.cuts([1.0])
    assert torch.equal(order.first(cuts.T)[0], domain)
    assert float(shares) == 1
    looked = domain & ~maps.isnan()
    assert int(order.place[looked].max()) < int(order.place[domain & maps.isnan()].min())
    assert torch.equal(order.rest(torch.zeros_like(cuts).T)[0], domain)
    network = Spot((slice(2, 4), slice(0, 1), slice(1, 3)))  # looks at what lies outside
    with on_trial(network, torch.randn(1, 1, *SHAPE), target=0) as study:
        found = deletion_and_insertion(study, maps, domain=domain, patch_mm=1, steps=5, controls=())
        assert all((one.deletion.scores == study.scores).all() for one in found)


def test_each_sample_is_tried_as_if_alone() -> None:
    network, image, maps = convolutional(), torch.randn(3, 1, *SHAPE), torch.rand(3, *SHAPE)
    with on_trial(network, image, target=2) as study:
        together = deletion_and_insertion(study, maps, patch_mm=2, steps=6, draws=1)
    for n in range(3):
        with on_trial(network, image[n : n + 1], target=2) as study:
            alone = deletion_and_insertion(study, maps[n : n + 1], patch_mm=2, steps=6, draws=1)
        for ours, theirs in zip(alone, together, strict=True):
            torch.testing.assert_close(ours.deletion.scores[0], theirs.deletion.scores[n], atol=1e-5, rtol=1e-4)
            for kind in ("random", "shifted", "blob"):
                torch.testing.assert_close(
                    ours.insertion_controls[kind][:, 0], theirs.insertion_controls[kind][:, n], atol=1e-5, rtol=1e-4
                )


def test_images_work_like_volumes_and_one_fill_is_not_enough() -> None:
    network, image = convolutional(2, 2), torch.randn(2, 2, 14, 11)
    with on_trial(network, image, target=0, score="probability") as study:
        found = deletion_and_insertion(study, torch.rand(2, 14, 11), fills=("inpaint", "min", "zero"), steps=7, draws=1)
        assert [one.fill for one in found] == ["inpaint", "min", "zero"]
        assert all(((one.deletion.scores >= 0) & (one.deletion.scores <= 1)).all() for one in found)
        with pytest.raises(UsageError, match="at least two fills"):
            deletion_and_insertion(study, torch.rand(2, 14, 11), fills=("blur",))
        with pytest.raises(UsageError, match="do not fit"):
            deletion_and_insertion(study, torch.rand(2, 11, 14))
        with pytest.raises(UsageError, match="none of the controls"):
            deletion_and_insertion(study, torch.rand(2, 14, 11), controls=(), steps=1)[0].deletion_gain("blob")


def test_a_mean_is_that_of_the_body_and_not_of_the_air_round_it() -> None:
    image = torch.zeros(1, 1, *SHAPE)
    image[..., 3:6, 2:5, 1:4] = 8.0
    body = image[:, 0] > 0
    removed = every(body)[None]
    assert float(fill_named(image, "mean", domain=body)(image[None], removed).mean()) == 8
    assert float(fill_named(image, "mean")(image[None], removed).mean()) < 1
    assert float(fill_named(image, 2)(image[None], removed).mean()) == 2
    given = torch.full((1, 1, 1, 1, 1), 3.0)
    assert float(fill_named(image, given)(image[None], removed).mean()) == 3
    with pytest.raises(UsageError, match="a fill is one of"):
        fill_named(image, "noise")


def test_a_blob_control_has_the_maps_values_and_its_smoothness_but_not_its_place() -> None:
    maps = torch.zeros(1, 24, 20, 16)
    maps[0, 4:10, 5:11, 3:9] = torch.rand(6, 6, 6) + 1
    blob = surrogates(maps, "blob", domain=every(maps), generator=torch.Generator().manual_seed(3))
    assert torch.equal(blob.flatten().sort().values, maps.flatten().sort().values)
    shifted = surrogates(maps, "shifted", domain=every(maps), generator=torch.Generator().manual_seed(3))
    random = surrogates(maps, "random", domain=every(maps), generator=torch.Generator().manual_seed(3))

    def lag(values: torch.Tensor) -> float:
        x, y = values[:, 1:].flatten(), values[:, :-1].flatten()
        return float(torch.corrcoef(torch.stack([x, y]))[0, 1])

    assert lag(maps) > 0.7
    assert lag(shifted) == pytest.approx(lag(maps), abs=0.1)
    assert lag(blob) > 0.5
    assert abs(lag(random)) < 0.1
    for control in (blob, shifted):
        assert abs(float(torch.corrcoef(torch.stack([control.flatten(), maps.flatten()]))[0, 1])) < 0.3
    with pytest.raises(UsageError, match="a control is"):
        surrogates(maps, "salt", domain=every(maps), generator=torch.Generator())


def test_scattered_voxels_are_no_control_for_a_map_of_blobs() -> None:
    """A network that reacts to any hole: taking scattered voxels destroys it early, whatever the map shows."""
    network = convolutional()
    torch.manual_seed(4)
    image = torch.nn.functional.interpolate(torch.randn(4, 1, 4, 4, 4), size=SHAPE, mode="trilinear")
    blobs = torch.nn.functional.interpolate(torch.rand(4, 1, 3, 3, 3), size=SHAPE, mode="trilinear")[:, 0]
    with on_trial(network, image, target=None) as study:
        found = deletion_and_insertion(study, blobs, fills=("zero", "min"), patch_mm=1, steps=12, draws=4)
    scattered, like = (
        torch.stack([one.deletion_gain(kind) for one in found]).abs().mean() for kind in ("random", "blob")
    )
    assert float(like) < float(scattered)


def test_road_is_a_loop_over_shares_of_filled_noisy_copies() -> None:
    network, image, maps = convolutional(), torch.randn(2, 1, *SHAPE) * 30 + 2, torch.rand(2, *SHAPE)
    with on_trial(network, image, target=1, seed=5) as study:
        found = road(study, maps, spacing_mm=(1.0, 1.0, 2.0), draws=1)
        noise = torch.randn((1, *SHAPE), generator=study.generator())
    n = maps[0].numel()
    for b in range(2):
        ranked = maps[b].flatten().argsort(descending=True)
        for k, share in enumerate((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)):
            for curve, first in ((found.most_first, ranked), (found.least_first, ranked.flip(0))):
                removed = torch.zeros(n, dtype=torch.bool)
                removed[first[: round(float(curve.shares[b, k]) * n)]] = True
                removed = removed.reshape(1, *SHAPE)
                copy = inpainted(image[b : b + 1], removed, spacing_mm=(1.0, 1.0, 2.0))
                copy = copy + removed * 0.01 * image[b].std(unbiased=False) * noise
                with torch.no_grad():
                    assert float(curve.scores[b, k]) == pytest.approx(float(network(copy)[0, 1]), abs=1e-3)
                assert float(curve.shares[b, k]) == pytest.approx(share, abs=1 / n)
    expected = (found.least_first.scores - found.most_first.scores).mean(1) / 2
    torch.testing.assert_close(found.combined, expected)


def test_road_in_three_dimensions_gives_numbers_for_every_class() -> None:
    """Where the neighbours of images are used for volumes the system is singular and scores are those of NaN."""
    network, image = convolutional(), torch.randn(1, 1, *SHAPE)
    maps, found = torch.rand(1, *SHAPE), []
    for target in range(3):
        with on_trial(network, image, target=target, score="probability") as study:
            found.append(road(study, maps, draws=1))
    scores = torch.cat([one.most_first.scores for one in found])
    assert torch.isfinite(scores).all()
    torch.testing.assert_close(scores.sum(0), torch.ones(9), atol=1e-4, rtol=0)


def test_road_tells_the_right_map_from_a_blob_of_its_kind_and_repeats_itself() -> None:
    box = (slice(2, 5), slice(1, 4), slice(1, 3))
    network, image = Spot(box), torch.randn(1, 1, *SHAPE)
    image[(..., *box)] += 6
    maps = torch.zeros(1, *SHAPE)
    maps[(0, *box)] = torch.rand(3, 3, 2) + 1
    before = torch.random.get_rng_state()
    with on_trial(network, image, target=0) as study:
        found, again = road(study, maps), road(study, maps)
    assert float(found.combined) > float(found.control) + 0.5
    assert torch.equal(found.most_first.scores, again.most_first.scores)
    assert torch.equal(before, torch.random.get_rng_state())
    with on_trial(network, image, target=0) as study:
        for wrong in ({"shares": [0.5, 0.2]}, {"shares": [1.0]}, {"noise": -1.0}, {"draws": 0}):
            with pytest.raises(UsageError):
                road(study, maps, **wrong)


def test_an_accuracy_is_a_target_of_ones_own() -> None:
    network, image, maps = convolutional(), torch.randn(2, 1, *SHAPE), torch.rand(2, *SHAPE)
    truth = network(image).argmax(1)
    with on_trial(network, image, target=lambda out: (out.argmax(1) == truth).float()) as study:
        curve = deletion_curve(study, ordered(maps, (1, 1, 1)), fill_named(image, "zero"), shares=[0.0, 1.0])
    assert curve.scores[:, 0].tolist() == [1.0, 1.0]
    assert set(curve.scores[:, 1].tolist()) <= {0.0, 1.0}
