"""Score-CAM and Group-CAM: a layer's maps as masks on the input, weighted by the score of what they leave visible.

Each mask costs one forward pass of the whole network, without a graph. A map is brought to the input's size and scaled to 0…1 only for the
few copies that are about to run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medcam.engine.baselines import baseline, baseline_kind
from medcam.engine.explainer import Explainer
from medcam.engine.grouping import kmeans, members
from medcam.engine.study import Study
from medcam.options import at_least, between, one_of

# A map whose values differ by less than this share of their size is constant up to rounding: it has no place to show.
_CONSTANT = 1e-6
# One channel with more than this share of all weights is said to stand alone.
_ALONE = 0.99


def score_cam(*, normalise: str = "softmax", baseline: str | float | int = "zero", top: int | None = None) -> Explainer:
    """Weigh each channel by the score of the input seen through it.

    Channel A, brought to the input's size and scaled to 0…1, is the mask M; its score is that of `x M + baseline (1 - M)`. A constant
    channel has no such mask and gets no weight (so in the authors' code; the paper does not say). The weighted channels are summed on the
    layer's cells, which gives the same as summing them at the input's size. The map is signed, without the final ReLU.

    The score is the study's: a logit, unless a probability is asked for (`score='probability'`; so in the authors' code). A softmax over
    logits may leave a single channel, above all where scores are sums over a region; the result then says so.

    Parameters
    ----------
    normalise
        'softmax' over the channels of the increase over the baseline's score (the paper); P forwards for P channels. 'difference': that
        increase itself, signed; P + 1 forwards. 'authors': the masked score itself (their code); P forwards.
    baseline
        What is put where the mask is 0: 'zero' (the paper), 'min', 'mean', 'blur' or a number. In CT and MR, zero may be tissue.
    top
        Use only the channels that vary most over the layer's cells (standard deviation), each sample its own. Not in the paper.

    Raises
    ------
    UsageError
        If an option is none of these.

    References
    ----------
    Wang et al., Score-CAM, CVPR Workshops 2020 (arXiv 1910.01279), definitions 1 to 3; authors' code: github.com/haofanwang/Score-CAM.
    """
    one_of("normalise", normalise, ("softmax", "difference", "authors"))
    kind = baseline_kind(baseline)
    if top is not None:
        at_least("top", top)
    return Explainer(lambda study: _score_cam(study, normalise, kind, top), needs=frozenset({"activation"}))


def _score_cam(study: Study, normalise: str, kind: str | float, top: int | None) -> Float[Tensor, "b *t"]:
    maps = study.activation
    usable = varies(maps)
    spread = torch.where(usable, maps.flatten(2).std(2, correction=0), -1)
    order = spread.argsort(stable=True, dim=1, descending=True)
    # A channel that varies in no sample is not worth a forward.
    count = int(usable.sum(1).max())
    order = order[:, : count if top is None else min(top, count)]
    if order.shape[1] == 0:
        return torch.zeros_like(maps[:, 0])
    usable = usable.gather(1, order)
    rows = torch.arange(maps.shape[0], device=maps.device)[:, None]
    blank = baseline(study.inputs, kind)
    scores, _, _ = scores_through(study, blank, order.shape[1], lambda part: maps[rows, order[:, part]])
    if normalise == "softmax":
        weights = softmax_of(scores, usable)
        _say_alone(study, weights, usable)
    else:
        start = blank_score(study, blank)[:, None] if normalise == "difference" else 0
        weights = torch.where(usable, scores - start, 0)
    every = torch.zeros_like(maps.flatten(2)[:, :, 0]).scatter_(1, order, weights.to(maps.dtype))
    return weighted_sum(every, maps)


def _say_alone(study: Study, weights: Float[Tensor, "b k"], usable: Bool[Tensor, "b k"]) -> None:
    alone = ((weights.amax(1) > _ALONE) & (usable.sum(1) > 1)).nonzero()[:, 0].tolist()
    study.note(
        "The softmax over the channels' scores gave nearly all weight to one channel, so the map is that channel's alone; "
        "score-cam(normalise='difference') weighs every channel.",
        alone,
    )


def group_cam(
    *,
    groups: int = 32,
    by: str = "order",
    denoise: float | int | None = 70,
    weighted: str = "initial",
    baseline: str | float | int = "blur",
) -> Explainer:
    """Weigh groups of channels by the score of the input seen through each group's map.

    Each channel is multiplied by the mean of its gradient; a group's channels are summed, and negative and low values (`denoise`) set to
    zero. This initial map, brought to the input's size and scaled to 0…1, masks the input against a blurred copy. The group's weight is the
    score of that less the blurred copy's own. The map is the weighted sum over the groups: signed, without the final ReLU, on the layer's
    cells. P + 1 forwards for P groups, and one backward pass.

    Parameters
    ----------
    groups
        How many, at most.
    by
        'order': runs of neighbouring channels (the paper). 'kmeans': channels of like maps (also in the authors' code).
    denoise
        Values that do not exceed this percentile of a group's map, over the layer's cells, are set to zero; None keeps all.
    weighted
        What is summed: 'initial', the initial maps (the paper's abstract), or 'scaled', the masks (the authors' code).
    baseline
        What the mask hides the input with: 'blur' (the paper; here a tenth of each side wide, the authors' takes 51 pixels), 'zero', 'min',
        'mean' or a number.

    Raises
    ------
    UsageError
        If an option is none of these.

    References
    ----------
    Zhang, Rao and Yang, Group-CAM, arXiv 2103.13859: its abstract, since the full text could not be consulted; 32 groups, the 70th
    percentile and the signed weight are read from the authors' code, github.com/wofmanaf/Group-CAM.
    """
    at_least("groups", groups)
    one_of("by", by, ("order", "kmeans"))
    one_of("weighted", weighted, ("initial", "scaled"))
    kind = baseline_kind(baseline)
    if denoise is not None:
        between("denoise", denoise, 0, 100)
    return Explainer(lambda study: _group_cam(study, groups, by, denoise, weighted, kind), pooled=True)


def _group_cam(
    study: Study, groups: int, by: str, denoise: float | int | None, weighted: str, kind: str | float
) -> Float[Tensor, "b *t"]:
    slope = study.gradient.flatten(2).mean(2)
    maps = study.activation.flatten(2)
    channels = maps.shape[1]
    if by == "order":
        size = -(-channels // groups)
        labels = (torch.arange(channels, device=maps.device) // size).expand(maps.shape[0], channels)
        count = -(-channels // size)
    else:
        count = min(groups, channels)
        labels = kmeans(maps * slope[..., None], [count], study.generator())[0][:, 0]
    summed = (members(labels, count, maps.dtype) * slope[:, None]) @ maps
    initial = without_low(summed.clamp(min=0), denoise).unflatten(2, study.activation.shape[2:])
    blank = baseline(study.inputs, kind)
    scores, low, high = scores_through(study, blank, count, lambda part: initial[:, part])
    weights = torch.where(varies(initial), scores - blank_score(study, blank)[:, None], 0).to(maps.dtype)
    if weighted == "initial":
        return weighted_sum(weights, initial)
    # A mask is (map - low) / (high - low), with the range at the input's size; interpolation keeps constants, so it may come later.
    weights = weights / torch.where(high > low, high - low, 1)
    return weighted_sum(weights, initial) - (weights * low).sum(1).reshape(-1, *[1] * (initial.ndim - 2))


def scores_through(
    study: Study,
    blank: Float[Tensor, "b c *s"],
    count: int,
    maps: Callable[[slice], Float[Tensor, "b m *t"]],
) -> tuple[Float[Tensor, "b {count}"], Float[Tensor, "b {count}"], Float[Tensor, "b {count}"]]:
    """Return the scores of the input seen through `count` maps, and each map's lowest and highest value at the input's size.

    The input shows where a map is highest, `blank` where it is lowest and throughout where it is constant.
    """
    low = torch.zeros(study.inputs.shape[0], count, dtype=study.activation.dtype, device=study.inputs.device)
    high = torch.zeros_like(low)

    def make(part: slice) -> Float[Tensor, "m b c *s"]:
        shown = study.on_input(maps(part))
        low[:, part], high[:, part] = torch.aminmax(shown.flatten(2), dim=2)
        bottom, top = (end[:, part].reshape(*shown.shape[:2], *[1] * (shown.ndim - 2)) for end in (low, high))
        mask = (shown - bottom) / torch.where(top > bottom, top - bottom, 1)
        return torch.lerp(blank, study.inputs, mask.movedim(1, 0).unsqueeze(2).to(blank.dtype))

    return study.scores_of(count, make).mT, low, high


def blank_score(study: Study, blank: Float[Tensor, "b c *s"]) -> Float[Tensor, " b"]:
    """Return the score of the baseline alone."""
    return study.scores_of(1, lambda part: blank[None])[0]


def varies(maps: Float[Tensor, "b k *t"]) -> Bool[Tensor, "b k"]:
    """Tell which maps are not constant, up to rounding."""
    low, high = torch.aminmax(maps.flatten(2), dim=2)
    return high - low > _CONSTANT * torch.maximum(low.abs(), high.abs())


def softmax_of(scores: Float[Tensor, "b k"], usable: Bool[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Return the softmax over the usable scores, 0 for the others, and 0 throughout where none is."""
    best = torch.where(usable, scores, -torch.inf).amax(1, keepdim=True)
    parts = torch.where(usable, scores - best, -torch.inf).exp()
    return parts / parts.sum(1, keepdim=True).clamp(min=1)  # the best part is 1


def weighted_sum(weights: Float[Tensor, "b k"], maps: Float[Tensor, "b k *t"]) -> Float[Tensor, "b *t"]:
    """Return the sum of the maps, each times its weight."""
    return (weights[:, None] @ maps.flatten(2)).reshape(maps.shape[0], *maps.shape[2:])


def without_low(maps: Float[Tensor, "b k t"], percentile: float | int | None) -> Float[Tensor, "b k t"]:
    """Return the maps with zero where a value does not exceed its map's percentile."""
    if percentile is None:
        return maps
    # A percentile between two ranks is exceeded by the same values as the lower one. kthvalue takes large tensors; quantile refuses them.
    rank = int(percentile / 100 * (maps.shape[2] - 1))
    return torch.where(maps > maps.kthvalue(rank + 1, 2, keepdim=True).values, maps, 0)
