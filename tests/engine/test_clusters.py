"""Cluster-CAM, Cosine-CAM and the grouping of channels beneath them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from engine.mask_studies import Counted, clean_features, enlarged, one_of_batch, scaled, score, study_of
from engine.toy_networks import conv, image
from medcam.engine import grouping
from medcam.engine.baselines import baseline
from medcam.engine.clusters import cluster_cam, cosine_cam, grouped
from medcam.engine.grouping import elbow, group_means, kmeans
from medcam.errors import UsageError

DIMS = pytest.mark.parametrize("dims", [2, 3])
CLASSES = [2, 0, 3]


class Families(nn.Module):
    """Twelve channels of four families: each is one of four maps, in different sizes, with a little of its own."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.base, self.own = conv(dims)(2, 4, 3, stride=2, padding=1), conv(dims)(2, 12, 3, stride=2, padding=1)
        self.layer, self.head = nn.Identity(), nn.Linear(12, 4)
        sizes = torch.linspace(1, 1.2, 12).reshape(1, -1, *[1] * dims)
        self.register_buffer("sizes", sizes)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.base(x).repeat(1, 3, *[1] * (x.ndim - 2))  # channel k is of family k % 4
        maps = self.layer((shared * self.sizes + 0.01 * self.own(x)).relu())
        return 9 * self.head(maps.flatten(2).mean(2).tanh())


def families(dims: int) -> tuple[nn.Module, Tensor]:
    network, x = Families(dims).double(), image(dims).double()
    with torch.no_grad():
        network.base.bias += 0.3
    return network, x


def same_partition(first: np.ndarray, second: np.ndarray) -> bool:
    return bool(((first[:, None] == first) == (second[:, None] == second)).all())


def rows(cells: int) -> Tensor:
    """Two samples of 30 rows around five centres."""
    centres = 4 * torch.randn(2, 5, cells, dtype=torch.float64)
    return centres[:, torch.arange(30) % 5] + torch.randn(2, 30, cells, dtype=torch.float64)


@pytest.mark.parametrize("cells", [4, 80])  # fewer than rows, and more
def test_kmeans_is_scipys_from_the_same_seeds(cells: int) -> None:
    maps, counts = rows(cells), [3, 5, 8]
    labels, inertia = kmeans(maps, counts, torch.Generator().manual_seed(1))
    draws = torch.rand(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seeds = grouping._seeds(grouping._inner_products(maps), maps.square().sum(2), draws)
    for n in range(2):
        for r, count in enumerate(counts):
            data = maps[n].numpy()
            means, theirs = kmeans2(data, data[seeds[n, :count]], iter=20, minit="matrix", missing="raise")
            np.testing.assert_array_equal(labels[n, r].numpy(), theirs)
            np.testing.assert_allclose(inertia[n, r].item(), ((data - means[theirs]) ** 2).sum(), rtol=1e-9)


def test_kmeans_of_a_batch_is_that_of_its_samples_alone_and_a_seed_repeats_it() -> None:
    maps = rows(7)
    together = kmeans(maps, range(3, 7), torch.Generator().manual_seed(5))
    for n in range(2):
        alone = kmeans(maps[n : n + 1], range(3, 7), torch.Generator().manual_seed(5))
        assert torch.equal(together[0][n : n + 1], alone[0])
        torch.testing.assert_close(together[1][n : n + 1], alone[1])


def test_seeds_are_drawn_in_proportion_to_the_squared_distance() -> None:
    """Points 0, 1 and 3 on a line: from the first, the others lie 1 and 9 away, squared."""
    points = torch.tensor([[[0.0], [1], [3]]], dtype=torch.float64)
    inner, squares = grouping._inner_products(points), points.square().sum(2)
    for draw, second in ((0.05, 1), (0.0999, 1), (0.1001, 2), (0.9, 2)):
        assert grouping._seeds(inner, squares, torch.tensor([0.1, draw])).tolist() == [[0, second]]


def test_rows_that_coincide_make_fewer_groups() -> None:
    maps = torch.tensor([[[1.0, 2], [1, 2], [3, 4], [3, 4], [1, 2]]])
    labels, inertia = kmeans(maps, [4], torch.Generator().manual_seed(0))
    assert same_partition(labels[0, 0].numpy(), np.array([0, 0, 1, 1, 0]))
    assert inertia.item() == pytest.approx(0, abs=1e-9)


def test_the_elbow_is_where_the_curve_lies_farthest_below_its_chord() -> None:
    inertia = torch.tensor([[100.0, 40, 10, 8, 6], [10, 9, 8, 7, 1], [5, 5, 5, 5, 5], [9, 6, 3, 0, 0]])
    assert elbow(inertia, range(3, 8)).tolist() == [2, 1, 1, 3]


@DIMS
def test_families_of_channels_are_found_with_their_number(dims: int) -> None:
    network, x = families(dims)
    maps = torch.from_numpy(clean_features(network, x, CLASSES, "layer")[0]).flatten(2)
    labels, count = grouped(maps, None, torch.Generator().manual_seed(0))
    assert count == 4  # the square root of 12 is 3.5
    assert all(same_partition(own.numpy(), np.arange(12) % 4) for own in labels)


def test_the_number_of_groups_is_each_samples_own() -> None:
    """Thirty-six channels: three families in one sample, six in the other, each as far from the next."""
    families = torch.stack([torch.eye(9)[torch.arange(36) % 3], torch.eye(9)[torch.arange(36) % 6]])
    maps = families + 0.01 * torch.randn(2, 36, 9)
    labels, count = grouped(maps, None, torch.Generator().manual_seed(2))
    assert count == 6
    assert [len(own.unique()) for own in labels] == [3, 6]


def test_a_mean_map_is_that_of_its_members_and_zero_without_any() -> None:
    maps = torch.tensor([[[1.0, 2], [3, 6], [5, 0]]])
    found = group_means(torch.tensor([[2, 2, 0]]), maps, 4)
    assert found.tolist() == [[[5, 0], [0, 0], [2, 4], [0, 0]]]


def seen(network: nn.Module, x: Tensor, blank: np.ndarray, means: np.ndarray, c: int) -> list[float]:
    """The score of the input seen through each mean map."""
    found = []
    for mean in means:
        mask = scaled(enlarged(mean, x.shape[1:], 2, 0))
        found.append(score(network, x.numpy() * mask + blank * (1 - mask), c))
    return found


@DIMS
@pytest.mark.parametrize(("merge", "kind"), [("weighted", "zero"), ("plain", "zero"), ("weighted", "mean")])
def test_cluster_cam_is_base_less_scissors(dims: int, merge: str, kind: str) -> None:
    network, x = families(dims)
    features, _ = clean_features(network, x, CLASSES, "layer")
    blanks = baseline(x, kind).numpy()
    found = cluster_cam(groups=4, merge=merge, baseline=kind).explain(study_of(network, x, CLASSES, "layer"))
    for n, c in enumerate(CLASSES):
        means = np.stack([features[n, family::4].mean(0) for family in range(4)])
        scores = seen(network, x[n], blanks[n], means, c)
        base, scissors = means[int(np.argmax(scores))], means[int(np.argmin(scores))]
        p = np.exp(max(scores)) / np.exp(scores).sum()
        expected = p * base - (1 - p) * scissors if merge == "weighted" else base - scissors
        np.testing.assert_allclose(found[n].numpy(), expected, rtol=1e-7, atol=1e-10)


@DIMS
def test_cosine_cam_is_its_inventors_formula(dims: int) -> None:
    network, x = families(dims)
    features, slopes = clean_features(network, x, CLASSES, "layer")
    blanks = baseline(x, "blur").numpy()
    found = cosine_cam(groups=4).explain(study_of(network, x, CLASSES, "layer"))
    for n, c in enumerate(CLASSES):
        maps = np.stack([(slopes[n, k] * features[n, k]).mean() * features[n, k] for k in range(12)])
        directions = np.stack([m.ravel() / np.linalg.norm(m) for m in maps])
        labels, _ = grouped(torch.from_numpy(directions)[None], 4, torch.Generator().manual_seed(0))
        means = np.stack([maps[labels[0].numpy() == g].mean(0) for g in range(4)])
        raised = np.array(seen(network, x[n], blanks[n], means, c)) - score(network, blanks[n], c)
        weights = raised / np.sqrt((raised**2).sum())
        total = sum(w * m for w, m in zip(weights, means, strict=True))
        expected = total - np.sort(total, axis=None)[(total.size - 1) // 2]
        np.testing.assert_allclose(found[n].numpy(), expected, rtol=1e-6, atol=1e-11)


def test_cosine_cam_groups_by_direction_not_by_length() -> None:
    maps = torch.tensor([[[1.0, 0, 0], [50, 1, 0], [0, 1, 0], [0, 70, 1], [0, 0, 30], [0.01, 0, 2]]])
    straight = nn.functional.normalize(maps, dim=2)
    labels, _ = grouped(straight, 3, torch.Generator().manual_seed(0))
    assert same_partition(labels[0].numpy(), np.array([0, 0, 1, 1, 2, 2]))


@DIMS
def test_maps_of_a_batch_are_those_of_its_samples_alone(dims: int) -> None:
    network, x = families(dims)
    for method in (cluster_cam(), cluster_cam(groups=5, merge="plain"), cosine_cam(), cosine_cam(groups=2)):
        together = method.explain(study_of(network, x, CLASSES, "layer"))
        alone = [method.explain(one_of_batch(network, x, CLASSES, n, "layer")) for n in range(3)]
        torch.testing.assert_close(together, torch.cat(alone))


def test_a_forward_for_each_group_and_for_cosine_cam_one_more() -> None:
    network, x = families(2)
    for method, forwards in ((cluster_cam(groups=4), 4), (cosine_cam(groups=4), 5)):
        counted = Counted(network)
        study = study_of(counted, x, CLASSES, "network.layer", copies=2)
        counted.sizes.clear()
        method.explain(study)
        assert sum(counted.sizes) == forwards * 3
        assert max(counted.sizes) == 2 * 3


@pytest.mark.parametrize("merge", ["weighted", "plain"])
def test_where_one_group_only_shows_a_place_it_is_the_map(merge: str) -> None:
    network, x = Families(2), image(2)
    with torch.no_grad():
        for layer in (network.base, network.own):
            layer.weight.zero_()
        network.base.weight[1] = 0.1
    network.sizes.fill_(1)
    study = study_of(network, x, CLASSES, "layer")
    found = cluster_cam(merge=merge).explain(study)
    torch.testing.assert_close(found, study.activation[:, 1::4].mean(1), rtol=1e-4, atol=1e-4)


def test_a_layer_without_any_place_to_show_gives_zeros() -> None:
    network, x = Families(2), torch.zeros(3, 2, 11, 14)
    with torch.no_grad():
        network.base.bias.fill_(0.5), network.own.bias.fill_(0)
        network.base.weight.zero_(), network.own.weight.zero_()
    for method in (cluster_cam(), cluster_cam(merge="plain"), cosine_cam()):
        found = method.explain(study_of(network, x, CLASSES, "layer"))
        torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (cluster_cam, {"groups": 1}, "groups is a whole number of at least 2, not 1"),
        (cluster_cam, {"merge": "sum"}, "merge is one of 'weighted', 'plain', not 'sum'"),
        (cluster_cam, {"baseline": "noise"}, "baseline is one of"),
        (cosine_cam, {"groups": 0}, "groups is a whole number"),
        (cosine_cam, {"baseline": "noise"}, "baseline is one of"),
    ],
)  # fmt: skip
def test_options_that_do_not_exist_are_refused(make: object, options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make(**options)
