"""Cluster-CAM and Cosine-CAM: channels whose maps are alike share one mask on the input, so that a handful of forward passes do."""

from __future__ import annotations

from math import ceil, sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from medcam.engine.baselines import baseline, baseline_kind
from medcam.engine.explainer import Explainer
from medcam.engine.grouping import elbow, group_means, kmeans
from medcam.engine.masks import blank_score, scores_through, softmax_of, varies, weighted_sum
from medcam.engine.study import Study
from medcam.options import at_least, one_of

_FEWEST = 3


def cluster_cam(
    *, groups: int | None = None, merge: str = "weighted", baseline: str | float | int = "zero"
) -> Explainer:
    """Subtract the least telling group of channels from the most telling one; no gradient is used.

    Channels are grouped by k-means on their maps. Each group's mean map, brought to the input's size and scaled to 0…1, masks the input,
    and the masked input is scored. The map is made of two mean maps: that of the highest score (the paper's cognition-base) less that of
    the lowest (cognition-scissors). It is signed, on the layer's cells. P forwards for P groups.

    Only the paper's abstract could be consulted. Verified by it: unsupervised clusters of feature maps instead of single ones, no
    gradient, a base and scissors that are merged. **Not verified**: k-means, the number of clusters, the mask's baseline, the merges. The
    merges are those of an independent implementation (github.com/tetutaro/class_activation_mapping), which otherwise differs: it clusters
    gradient-weighted maps, spectrally, and subtracts the median.

    Parameters
    ----------
    groups
        How many; by default the elbow of the k-means inertia between 3 and the square root of the number of channels, for each sample.
    merge
        'weighted': p base - (1 - p) scissors, p being the base's share in the softmax over the groups' scores. 'plain': base - scissors.
    baseline
        What is put where a mask is 0: 'zero', 'min', 'mean', 'blur' or a number.

    Raises
    ------
    UsageError
        If an option is none of these.

    References
    ----------
    Feng et al., Cluster-CAM, Neural Networks 178:106473, 2024 (arXiv 2302.01642), the abstract.
    """
    if groups is not None:
        at_least("groups", groups, 2)
    one_of("merge", merge, ("weighted", "plain"))
    kind = baseline_kind(baseline)
    return Explainer(lambda study: _cluster_cam(study, groups, merge, kind), needs=frozenset({"activation"}))


def _cluster_cam(study: Study, groups: int | None, merge: str, kind: str | float) -> Float[Tensor, "b *t"]:
    maps = study.activation
    labels, count = grouped(maps.flatten(2), groups, study.generator())
    means = group_means(labels, maps, count)
    usable = varies(means)
    scores, _, _ = scores_through(study, baseline(study.inputs, kind), count, lambda part: means[:, part])
    share = softmax_of(scores, usable)
    base = torch.where(usable, scores, -torch.inf).argmax(1, keepdim=True)
    scissors = torch.where(usable, scores, torch.inf).argmin(1, keepdim=True)
    part = share.gather(1, base) if merge == "weighted" else torch.ones_like(share[:, :1])
    against = part - 1 if merge == "weighted" else -part
    # The base is set last: where only one group has a mask, it is both.
    weights = torch.zeros_like(share).scatter(1, scissors, against).scatter(1, base, part)
    return weighted_sum(torch.where(usable, weights, 0).to(maps.dtype), means)


def cosine_cam(*, groups: int | None = None, baseline: str | float | int = "blur") -> Explainer:
    """Weigh groups of channels of like direction by how much the input seen through them raises the score.

    There is no paper. The method comes from github.com/tetutaro/class_activation_mapping; this is its last variant (30 May 2023). Each
    channel is multiplied by the mean of gradient times activation over it. The channels' maps, scaled to length 1 so that distance means
    angle, are grouped by k-means. A group's mean map (unscaled), brought to the input's size and scaled to 0…1, masks the input against a
    blurred copy. The groups' weights are the increases of the score over the blurred copy's, scaled to a vector of length 1. From the
    weighted sum of the mean maps the median is subtracted: half of the map is negative by construction. P + 1 forwards for P groups, and
    one backward pass.

    It differs from the original in that channels are grouped, and the median taken, on the layer's cells instead of the input's pixels, and
    in how k-means is seeded and its elbow found. The increase is that of the study's score; the original's is the logit's.

    Parameters
    ----------
    groups
        How many; by default the elbow of the k-means inertia between 3 and the square root of the number of channels, for each sample.
    baseline
        What the mask hides the input with: 'blur' (the original, though of 51 pixels; here a tenth of each side), 'zero', 'min', 'mean' or
        a number.

    Raises
    ------
    UsageError
        If an option is none of these.
    """
    if groups is not None:
        at_least("groups", groups, 2)
    kind = baseline_kind(baseline)
    # In front of a normalisation gradient times activation cancels as the gradient does, so the same doubt holds.
    return Explainer(lambda study: _cosine_cam(study, groups, kind), pooled=True)


def _cosine_cam(study: Study, groups: int | None, kind: str | float) -> Float[Tensor, "b *t"]:
    axes = tuple(range(2, study.activation.ndim))
    maps = (study.gradient * study.activation).mean(axes, keepdim=True) * study.activation
    labels, count = grouped(F.normalize(maps.flatten(2), dim=2), groups, study.generator())
    means = group_means(labels, maps, count)
    blank = baseline(study.inputs, kind)
    scores, _, _ = scores_through(study, blank, count, lambda part: means[:, part])
    increase = torch.where(varies(means), scores - blank_score(study, blank)[:, None], 0)
    values = weighted_sum(F.normalize(increase, dim=1).to(maps.dtype), means)
    return values - values.flatten(1).median(1).values.reshape(-1, *[1] * len(axes))


def grouped(
    maps: Float[Tensor, "b k t"], groups: int | None, generator: torch.Generator
) -> tuple[Int[Tensor, "b k"], int]:
    """Return the group of each channel, by k-means, and how many groups a sample has at most.

    Where `groups` is None, each sample has as many as the elbow of its inertia says, from 3 to the square root of the number of channels.
    """
    channels = maps.shape[1]
    if groups is not None or channels <= _FEWEST:
        count = min(groups or _FEWEST, channels)
        return kmeans(maps, [count], generator)[0][:, 0], count
    # One fewer and one more than any answer: an elbow has a curve on either side.
    counts = range(_FEWEST - 1, max(_FEWEST, ceil(sqrt(channels))) + 2)
    labels, inertia = kmeans(maps, counts, generator)
    chosen = elbow(inertia, counts)
    rows = torch.arange(maps.shape[0], device=maps.device)
    return labels[rows, chosen], counts[int(chosen.max())]
