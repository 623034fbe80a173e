"""Score-CAM and Group-CAM: their formulas by plain loops over explicit masks, what they cost, and what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.mask_studies import Counted, clean_features, enlarged, notes_of, one_of_batch, scaled, score, study_of
from engine.toy_networks import Classifier, Segmenter, conv, image
from medcam.engine.baselines import baseline
from medcam.engine.masks import group_cam, score_cam, without_low
from medcam.errors import UsageError

DIMS = pytest.mark.parametrize("dims", [2, 3])
CLASSES = [2, 0, 3]
# The layer 'block' of Classifier: a convolution of stride 2 and padding 1 behind one of stride 1.
STRIDE, OFFSET = 2, 0


def classifier(dims: int) -> tuple[nn.Module, Tensor]:
    network, x = Classifier(dims).double().eval(), image(dims).double()
    with torch.no_grad():
        network.head.weight.mul_(20)
        network.block[0].weight[4] = 0  # a channel that is constant
        network.block[1].bias[4] = 0.3
    return network, x


def increases(network: nn.Module, x: np.ndarray, blank: np.ndarray, c: int, mask: np.ndarray | None) -> float:
    return 0.0 if mask is None else score(network, x * mask + blank * (1 - mask), c) - score(network, blank, c)


@DIMS
@pytest.mark.parametrize(
    ("normalise", "kind"), [("softmax", "zero"), ("softmax", "mean"), ("difference", "min"), ("authors", "zero")]
)
def test_score_cam_is_the_papers_formula_or_the_authors(dims: int, normalise: str, kind: str) -> None:
    network, x = classifier(dims)
    features, _ = clean_features(network, x, CLASSES, "block")
    blanks = baseline(x, kind).numpy()
    expected = []
    for n, c in enumerate(CLASSES):
        masks = [scaled(enlarged(a, x.shape[2:], STRIDE, OFFSET)) for a in features[n]]
        assert [k for k, mask in enumerate(masks) if mask is None] == [4]
        raised = [increases(network, x[n].numpy(), blanks[n], c, mask) for mask in masks]
        if normalise == "softmax":
            total = sum(np.exp(r) for r, mask in zip(raised, masks, strict=True) if mask is not None)
            weights = [0 if mask is None else np.exp(r) / total for r, mask in zip(raised, masks, strict=True)]
        elif normalise == "difference":
            weights = raised
        else:
            weights = [0 if mask is None else score(network, x[n].numpy() * mask, c) for mask in masks]
        expected.append(sum(w * a for w, a in zip(weights, features[n], strict=True)))
    study = study_of(network, x, CLASSES, "block")
    found = score_cam(normalise=normalise, baseline=kind).explain(study)
    np.testing.assert_allclose(found.numpy(), np.stack(expected), rtol=1e-9, atol=1e-12)
    # Summed at the input's size, as the authors do, it is the same.
    wide = sum(w * enlarged(a, x.shape[2:], STRIDE, OFFSET) for w, a in zip(weights, features[2], strict=True))
    np.testing.assert_allclose(study.on_input(found)[2].numpy(), wide, rtol=1e-9, atol=1e-12)


def test_score_cam_of_a_case_worked_by_hand() -> None:
    """Channels x and -x, the score the input's sum: masks x/3 and 1 - x/3 leave 14/3 and 4/3 of it."""
    network = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(8, 1, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
        network[2].weight.copy_(torch.tensor([[1.0, 1, 1, 1, 0, 0, 0, 0]]))
    x = torch.tensor([[[[0.0, 1], [2, 3]]]])
    found = score_cam(normalise="difference").explain(study_of(network, x, [0], "0"))
    torch.testing.assert_close(found, (14 / 3 - 4 / 3) * x[:, 0])


def nearly_dead(dims: int) -> tuple[Counted, Tensor]:
    network, x = classifier(dims)
    with torch.no_grad():
        network.block[0].weight[1] = 0
    return Counted(network), x


@DIMS
@pytest.mark.parametrize(
    ("options", "forwards"),
    [({}, 4), ({"normalise": "difference"}, 5), ({"normalise": "authors"}, 4), ({"top": 2}, 2), ({"top": 9}, 4)],
)
def test_score_cam_costs_a_forward_for_each_channel_that_varies(
    dims: int, options: dict[str, object], forwards: int
) -> None:
    counted, x = nearly_dead(dims)
    study = study_of(counted, x, CLASSES, "network.block", copies=2)
    counted.sizes.clear()
    score_cam(**options).explain(study)
    assert sum(counted.sizes) == forwards * 3
    assert max(counted.sizes) <= 2 * 3


@DIMS
def test_score_cam_of_the_top_channels_uses_those_that_vary_most_in_each_sample(dims: int) -> None:
    network, x = classifier(dims)
    with torch.no_grad():
        network.stem.weight.mul_(torch.tensor([3.0, 1, 2, 1, 0.2]).reshape(-1, *[1] * (dims + 1)).double())
    features, _ = clean_features(network, x, CLASSES, "block")
    every = score_cam(normalise="difference")
    found = score_cam(normalise="difference", top=2).explain(study_of(network, x, CLASSES, "block"))
    best = [set(np.argsort(features[n].reshape(6, -1).std(1))[-2:]) for n in range(3)]
    for n in range(3):
        # The others made constant, score-cam of all channels gives the same.
        study = one_of_batch(network, x, CLASSES, n, "block")
        kept = torch.tensor([k in best[n] for k in range(6)])
        study.activation[:, ~kept] = 0
        torch.testing.assert_close(found[n : n + 1], every.explain(study))


@DIMS
def test_maps_of_a_batch_are_those_of_its_samples_alone(dims: int) -> None:
    network, x = classifier(dims)
    for method in (score_cam(), score_cam(top=2), group_cam(groups=3), group_cam(groups=3, by="kmeans")):
        together = method.explain(study_of(network, x, CLASSES, "block"))
        alone = [method.explain(one_of_batch(network, x, CLASSES, n, "block")) for n in range(3)]
        torch.testing.assert_close(together, torch.cat(alone))


@DIMS
def test_a_channel_dead_in_one_sample_only_counts_in_the_others(dims: int) -> None:
    network, x = classifier(dims)
    x[1] = 0
    together = score_cam().explain(study_of(network, x, CLASSES, "block"))
    alone = score_cam().explain(one_of_batch(network, x, CLASSES, 0, "block"))
    torch.testing.assert_close(together[:1], alone)
    assert torch.isfinite(together).all()


def test_a_layer_without_any_place_to_show_gives_zeros() -> None:
    network, x = Classifier(2).eval(), torch.zeros(2, 2, 11, 14)
    nn.init.zeros_(network.block[0].weight)
    assert not score_cam().explain(study_of(network, x, [0, 1], "block")).any()
    assert not group_cam(groups=2).explain(study_of(network, x, [0, 1], "block")).any()


def test_a_softmax_that_leaves_one_channel_is_said() -> None:
    network, x = classifier(2)
    with torch.no_grad():
        network.head.weight.mul_(1000)
    loud = study_of(network, x, CLASSES, "block")
    score_cam().explain(loud)
    assert all("score-cam(normalise='difference')" in notes[0] for notes in notes_of(loud))
    with torch.no_grad():
        network.head.weight.mul_(1e-6)
    calm = study_of(network, x, CLASSES, "block")
    score_cam().explain(calm)
    assert notes_of(calm) == [[], [], []]


@DIMS
def test_score_cam_of_a_segmentation_scores_its_region(dims: int) -> None:
    network, x = Segmenter(dims).eval(), image(dims)
    assert score_cam(normalise="difference").explain(study_of(network, x, [1, 0, 2], "deep")).isfinite().all()


@DIMS
@pytest.mark.parametrize(
    ("groups", "denoise", "weighted", "kind"),
    [
        (3, 70, "initial", "blur"),
        (4, 41.5, "scaled", "blur"),
        (32, None, "initial", "zero"),
        (4, None, "scaled", "min"),
    ],
)
def test_group_cam_is_the_papers_formula(
    dims: int, groups: int, denoise: float | None, weighted: str, kind: str
) -> None:
    network, x = classifier(dims)
    features, slopes = clean_features(network, x, CLASSES, "block")
    blanks = baseline(x, kind).numpy()
    expected = []
    for n, c in enumerate(CLASSES):
        total = 0.0
        for run in RUNS[groups]:
            initial = np.maximum(sum(slopes[n, k].mean() * features[n, k] for k in run), 0)
            if denoise is not None:
                initial = np.where(initial > np.percentile(initial, denoise), initial, 0)
            wide = enlarged(initial, x.shape[2:], STRIDE, OFFSET)
            mask = scaled(wide)
            raised = increases(network, x[n].numpy(), blanks[n], c, mask)
            total = total + raised * (wide if weighted == "initial" else mask if mask is not None else 0)
        expected.append(total)
    study = study_of(network, x, CLASSES, "block")
    found = group_cam(groups=groups, denoise=denoise, weighted=weighted, baseline=kind).explain(study)
    np.testing.assert_allclose(study.on_input(found).numpy(), np.stack(expected), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(("weighted", "size", "shift"), [("initial", 1, 1), ("scaled", 3, 0)])
def test_group_cam_of_a_case_worked_by_hand(weighted: str, size: int, shift: int) -> None:
    """One channel x + 1, the score its sum: the mask x/3 raises the score from 4 by 14/3."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        for values in (network[0].weight, network[0].bias, network[2].weight):
            values.fill_(1)
    x = torch.tensor([[[[0.0, 1], [2, 3]]]])
    method = group_cam(denoise=None, weighted=weighted, baseline="zero")
    found = method.explain(study_of(network, x, [0], "0"))
    torch.testing.assert_close(found, 14 / 3 * (x[:, 0] / size + shift))


# Six channels in at most so many runs of equal length.
RUNS = {3: [[0, 1], [2, 3], [4, 5]], 4: [[0, 1], [2, 3], [4, 5]], 32: [[0], [1], [2], [3], [4], [5]]}


class Twins(nn.Module):
    """Six channels that are three maps, each twice, far apart in order."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.base = conv(dims)(2, 3, 3, padding=1)
        self.layer = nn.Identity()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.base(x)
        return 9 * self.head(self.layer(torch.cat([maps, maps], 1)).relu().flatten(2).mean(2))


@DIMS
def test_group_cam_by_kmeans_puts_like_maps_together(dims: int) -> None:
    network, x = Twins(dims).double(), image(dims).double()
    with torch.no_grad():
        network.head.weight[:, 3:] = network.head.weight[:, :3]  # so that twins have the same gradient too
    study = study_of(network, x, CLASSES, "layer")
    found = group_cam(groups=3, by="kmeans").explain(study)

    # In order, twins stand side by side.
    class Sorted(Twins):
        def forward(self, x: Tensor) -> Tensor:
            maps = self.base(x).repeat_interleave(2, 1)
            return 9 * self.head(self.layer(maps).relu().flatten(2).mean(2))

    paired = Sorted(dims).double()
    paired.load_state_dict(network.state_dict())
    with torch.no_grad():
        paired.head.weight.copy_(network.head.weight[:, [0, 3, 1, 4, 2, 5]])
    torch.testing.assert_close(found, group_cam(groups=3).explain(study_of(paired, x, CLASSES, "layer")))


def test_group_cam_costs_a_forward_for_each_group_and_one_for_the_blurred_input() -> None:
    network, x = classifier(2)
    counted = Counted(network)
    study = study_of(counted, x, CLASSES, "network.block", copies=2)
    counted.sizes.clear()
    group_cam(groups=3).explain(study)
    assert sum(counted.sizes) == (3 + 1) * 3


@pytest.mark.parametrize("cells", [1, 2, 7, 60])
@pytest.mark.parametrize("percentile", [1e-9, 33.3, 50, 70, 99.999])
def test_low_values_are_those_below_numpys_percentile(cells: int, percentile: float) -> None:
    maps = torch.randn(2, 3, cells, dtype=torch.float64)
    expected = maps.numpy() * (maps.numpy() > np.percentile(maps.numpy(), percentile, 2, keepdims=True))
    np.testing.assert_array_equal(without_low(maps, percentile).numpy(), expected)


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (score_cam, {"normalise": "max"}, "normalise is one of 'softmax', 'difference', 'authors', not 'max'"),
        (score_cam, {"baseline": "grey"}, "baseline is one of"),
        (score_cam, {"top": 0}, "top is a whole number of at least 1, not 0"),
        (group_cam, {"groups": 0}, "groups is a whole number"),
        (group_cam, {"by": "luck"}, "by is one of"),
        (group_cam, {"denoise": 100.0}, "denoise is a number between 0 and 100, not 100"),
        (group_cam, {"weighted": "no"}, "weighted is one of"),
    ],
)  # fmt: skip
def test_options_that_do_not_exist_are_refused(make: object, options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make(**options)
