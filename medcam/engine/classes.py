"""Targets made of class scores: one class, several, a difference, a negation, the predicted class, and Finer-CAM's comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import index
from typing import Any, SupportsIndex

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from medcam.engine.class_words import Choice, Known, Pick, Which, asked_words, settled_words, told
from medcam.engine.outputs import (
    Ending,
    Place,
    Reading,
    channel,
    ending_of,
    find_place,
    in_unit_interval,
    predicted_class,
    probabilities,
    shapes_agree,
    won_by,
)
from medcam.engine.outputs import predicted_region as region_of
from medcam.engine.segmentation import Found, Region, Voxels, predicted_region
from medcam.engine.settled import Settled, Target, Unsettled
from medcam.errors import UsageError

_ENDS_APPLIED = (
    "The network ends in a sigmoid or softmax, so its output is the probability; where that saturates gradients vanish."
)
# Fewer scores may all lie between 0 and 1 by chance.
_FEW_SCORES = 8


Classes = SupportsIndex | Iterable[SupportsIndex]


def one_class(which: Classes, *, region: Region | None = None) -> Unsettled:
    """Return the target that scores a class.

    For a segmentation the score is the sum over a region, by default where the network predicts the class.

    Parameters
    ----------
    which
        An output channel for all samples, or one for each.
    region
        Where on a segmentation; see `medcam.engine.segmentation`.
    """
    return chosen(Choice((_pick(which),), region=region))


def several_classes(
    which: Iterable[Classes | None], minus: Iterable[Classes | None] = (), *, region: Region | None = None
) -> Unsettled:
    """Return the target that adds the scores of several classes, and subtracts those of others.

    For a segmentation all are summed where any of `which` is predicted. None stands for the predicted class.
    """
    picks = tuple(map(_pick, which))
    if not picks:
        raise UsageError("name at least one class to explain")
    return chosen(Choice(picks, tuple(map(_pick, minus)), region=region))


def difference(of: Classes | None, minus: Classes | None, *, region: Region | None = None) -> Unsettled:
    """Return the target that asks why one class and not another: the score of `of` minus the score of `minus`.

    For a segmentation both are summed where `of` is predicted. None stands for the predicted class.
    """
    return several_classes([of], [minus], region=region)


def negation(of: Classes | None, *, region: Region | None = None) -> Unsettled:
    """Return the target that asks why not a class: minus its logit, or 1 minus its probability. It serves single-logit heads too.

    References
    ----------
    Selvaraju et al., Grad-CAM (arXiv 1610.02391), on counterfactual explanations: the gradient is negated.
    """
    return chosen(Choice((), (_pick(of),), region=region))


def predicted(*, region: Region | None = None) -> Unsettled:
    """Return the target that scores the class which the network predicts for each sample (`outputs.predicted_class`)."""
    return chosen(Choice((None,), region=region))


def unasked() -> Unsettled:
    """Return the target of a user who named none: the predicted class, said in the notes."""
    return chosen(Choice((None,), asked=False))


def finer(
    of: Classes | None = None,
    similar: Iterable[Classes | None] | None = None,
    *,
    count: int = 3,
    strength: float = 0.6,
    region: Region | None = None,
) -> Unsettled:
    """Return Finer-CAM's target: what tells a class from those most similar to it, y_c - strength * mean of y_d.

    The paper averages the maps of y_c - strength * y_d over the similar classes d; for rules linear in the gradient (Grad-CAM, HiRes-CAM
    and others) that is the map of this one score. Similar classes are those whose weights in the last linear layer lie nearest to the
    class's own by cosine, as in the paper. Where no layer has a row of weights for each class, they are the ones with the nearest scores
    on the clean output, as in the authors' code (which also weighs them by their probability; here the mean is plain). The notes say
    which was used.

    Parameters
    ----------
    of
        The class, for all samples or one for each; the predicted one by default.
    similar
        The classes to compare with, instead of choosing them.
    count
        How many similar classes to choose; fewer if there are no more.
    strength
        How strongly the similar classes count: 0 is the class alone, 1 their full difference. The paper's default is 0.6.

    References
    ----------
    Zhang et al., Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation, CVPR 2025 (arXiv 2501.11309), sec. 3.
    """
    if similar is not None:
        against = tuple(map(_pick, similar))
        if not against:
            raise UsageError("name at least one class to compare with, or leave `similar` out")
        return chosen(Choice((_pick(of),), against, region=region, strength=strength))
    if count < 1:
        raise UsageError(f"a class is compared with at least one other, not {count}")
    return chosen(Choice((_pick(of),), region=region, strength=strength, similar=count))


def chosen(choice: Choice) -> Unsettled:
    """Return the target of a choice of classes."""
    return Unsettled(partial(_settle, choice), partial(asked_words, choice))


def _pick(which: Any) -> Pick:
    try:
        if which is None:
            return None
        if isinstance(which, (bool, str)):
            raise TypeError
        # `index` takes what numpy and torch call an integer, and no float.
        if hasattr(which, "__index__") and not getattr(which, "shape", ()):
            return index(which)
        every = which.tolist() if isinstance(which, Tensor) else list(which)
        if any(isinstance(each, (bool, str)) for each in every):
            raise TypeError
        return tuple(index(each) for each in every)
    except TypeError:
        raise UsageError(f"a target is a class number, one for each sample, or a function, not {which!r}") from None


def _settle(choice: Choice, output: Any, reading: Reading) -> Settled:
    place, common = find_place(output, reading)
    live = place.of(output)
    ending, logits = reading.ending or ending_of(live, reading.activation), live.detach()
    plus, minus = (tuple(_known(pick, logits, ending) for pick in picks) for picks in (choice.plus, choice.minus))
    found = _where(choice.region, plus or minus, logits, ending, reading.winners)
    similar_by = ""
    if choice.similar:
        nearest, similar_by = _similar(choice.similar, plus[0], logits, found.mask, reading.network)
        minus = nearest.unbind(1)
    if ending.applied:
        common += (_ENDS_APPLIED,)
    known = Known(choice, plus, minus, common, similar_by, logits.shape[0], logits.shape[1])
    columns = [which for which in (*plus, *minus) if isinstance(which, Tensor)]
    suspect = not live.requires_grad and not ending.applied and reading.ending is None
    share = 1.0 if choice.strength is None else choice.strength / len(minus)
    is_probability = ending.applied or reading.score == "probability"
    each = partial(
        class_values,
        place=place,
        shape=tuple(live.shape),
        ending=ending if reading.score == "probability" else None,
        terms=(*((which, 1.0) for which in plus), *((which, -share) for which in minus)),
        constant=1.0 if is_probability and not plus else 0.0,
        outside=None if found.mask is None else ~found.mask,
    )
    return Settled(
        lambda later: _summed(each(later)),
        "probability" if is_probability else "logit",
        _each(plus[0], logits.shape[0]) if len(plus) == 1 else None,
        torch.stack([*_flags(found, logits, ending, suspect), *columns], 1),
        partial(told, known),
        partial(settled_words, known),
        _chance_of(known, place, ending) if logits.ndim == 2 else None,
        None if logits.ndim == 2 else each,
    )


def apart(target: Unsettled) -> Choice | None:
    """Return the classes that a target compares, if a part of an image can be asked about them alone; build it again with `chosen`.

    That is so where the region is the predicted one, which each part predicts for itself, and no similar classes must be found first.
    """
    settle = target.settle
    choice = settle.args[0] if isinstance(settle, partial) and settle.func is _settle else None
    if not isinstance(choice, Choice) or choice.similar:
        return None
    return choice if choice.region is None or choice.region.find is predicted_region().find else None


def somewhere(facts: Sequence[int]) -> bool:
    """Tell from a sample's facts whether a target of classes found the region that it was to score, and does not score everything."""
    return facts[0] == 0


def class_values(
    output: Any,
    *,
    place: Place,
    shape: tuple[int, ...],
    ending: Ending | None,
    terms: tuple[tuple[Which, float], ...],
    constant: float,
    outside: Bool[Tensor, "b *s"] | None,
) -> Float[Tensor, "b *s"]:
    """Return the weighted sum of class scores of each sample, for a segmentation at each voxel, and 0 at those outside.

    It is in float32 at least, since the sum over voxels would overflow half precision.

    Parameters
    ----------
    ending
        Turns logits into probabilities first, if not None.
    terms
        Classes and their weights.
    constant
        Added to the weighted sum (at each voxel), if not 0.
    """
    values = place.of(output)
    shapes_agree(shape, values.shape)
    if ending is not None:
        values = probabilities(_wide(values), ending)
    parts = [
        _wide(channel(values, which)) * weight if weight != 1 else _wide(channel(values, which))
        for which, weight in terms
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    if constant:
        total = total + constant
    return total if outside is None else total.masked_fill(outside, 0.0)


def scored_together(targets: Sequence[Settled]) -> Callable[[Any], Float[Tensor, "b targets"]]:
    """Return the function that gives the scores of all targets at once.

    Plain classes of one segmentation are summed in one pass over its scores, however many they are; others are asked one by one.
    """
    each = [target.each for target in targets]
    plain = [own.keywords for own in each if isinstance(own, partial) and own.func is class_values]
    simple = len(plain) == len(targets) and all(
        own["ending"] is None and not own["constant"] and len(own["terms"]) == 1 and own["terms"][0][1] == 1
        and isinstance(own["terms"][0][0], int) and own["outside"] is not None
        and (own["place"], own["shape"]) == (plain[0]["place"], plain[0]["shape"])
        for own in plain
    )  # fmt: skip
    if not simple:
        return lambda output: torch.stack([target(output) for target in targets], 1)
    place, shape, classes = plain[0]["place"], plain[0]["shape"], [own["terms"][0][0] for own in plain]
    outside = torch.stack([own["outside"] for own in plain], 1)
    ordered = classes == list(range(shape[1]))

    def scored(output: Any) -> Tensor:
        values = place.of(output)
        shapes_agree(shape, values.shape)
        chosen = values if ordered else values[:, classes]
        return _wide(chosen).masked_fill(outside, 0.0).flatten(2).sum(2)

    return scored


def _summed(values: Float[Tensor, "b *s"]) -> Float[Tensor, " b"]:
    return values if values.ndim == 1 else values.flatten(1).sum(1)


def classifier(network: nn.Module | None, classes: int) -> tuple[str, Float[Tensor, "classes features"]] | None:
    """Return the name and the weights of the last linear layer or 1 x 1 convolution that has a row for each class, or None."""
    if network is None:
        return None
    for name, module in reversed(list(network.named_modules())):
        if not isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            continue
        weight = module.weight.detach()
        if weight.shape[0] == classes and all(side == 1 for side in weight.shape[2:]):
            return name, weight.flatten(1)
    return None


def _known(pick: Pick, logits: Tensor, ending: Ending) -> Which:
    """Return a pick once it is checked against an output: one class for all, or a tensor."""
    if pick is None:
        return predicted_class(logits, ending)
    batch, count = logits.shape[:2]
    every = (pick,) if isinstance(pick, int) else pick
    if not isinstance(pick, int) and len(pick) != batch:
        raise UsageError(f"{len(pick)} classes were given for a batch of {batch} samples")
    for c in every:
        if not 0 <= c < count:
            there = "only class 0" if count == 1 else f"classes 0 to {count - 1}"
            raise UsageError(f"class {c} does not exist: this network has {there}")
    if len(set(every)) == 1:
        return every[0]
    return torch.tensor(every).to(logits.device, non_blocking=True)


def _each(which: Which, batch: int) -> Int[Tensor, " b"]:
    return which if isinstance(which, Tensor) else torch.full((batch,), which)


def _where(
    region: Region | None, picks: tuple[Which, ...], logits: Tensor, ending: Ending, won: Tensor | None
) -> Found:
    if logits.ndim == 2:
        if region is not None:
            raise UsageError(
                f"a region needs a segmentation, and this network's output has no voxels: its shape is {tuple(logits.shape)}"
            )
        return Found(None)

    def joined() -> Tensor:
        masks = [won_by(won, which) if won is not None else region_of(logits, which, ending) for which in picks]
        return torch.stack(masks).any(0) if len(masks) > 1 else masks[0]

    voxels = Voxels((logits.shape[0], *logits.shape[2:]), logits.device, joined)
    return (region or predicted_region()).find(voxels)


def _similar(
    count: int, own: Which, logits: Tensor, mask: Tensor | None, network: nn.Module | None
) -> tuple[Int[Tensor, "b similar"], str]:
    """Return the classes most similar to each sample's own, and how they were found."""
    batch, classes = logits.shape[:2]
    if classes < 2:
        raise UsageError("Finer-CAM compares a class with others, and this network has only class 0")
    column = (own if isinstance(own, Tensor) else torch.full((batch,), own, device=logits.device)).reshape(-1, 1)
    if last := classifier(network, classes):
        name, weights = last
        unit = nn.functional.normalize(weights.float(), dim=1)
        likeness, by = unit[column[:, 0]] @ unit.T, f"by the weights of layer '{name}'"
    else:
        totals = _wide(logits).reshape(batch, classes, -1)
        inside = torch.ones_like(totals[:, 0]) if mask is None else mask.flatten(1).to(totals.dtype)
        totals = torch.einsum("bcp,bp->bc", totals, inside)
        likeness, by = -(totals - totals.gather(1, column)).abs(), "by the nearness of their scores"
    likeness = likeness.scatter(1, column, -torch.inf)
    return likeness.topk(min(count, classes - 1), 1).indices, by


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _chance_of(known: Known, place: Place, ending: Ending) -> Target | None:
    """Return what gives the probability of the class that is explained, where it is one and not a plain difference."""
    if len(known.plus) != 1 or (known.minus and known.choice.strength is None):
        return None
    return partial(_chance, place=place, ending=ending, which=known.plus[0])


def _chance(output: Any, *, place: Place, ending: Ending, which: Which) -> Float[Tensor, " b"]:
    return channel(probabilities(_wide(place.of(output)), ending), which)


def _flags(found: Found, logits: Tensor, ending: Ending, suspect: bool) -> list[Int[Tensor, " b"]]:
    none = torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)
    unlikely = (logits[:, 0] < ending.threshold).long() if logits.shape[1:] == (1,) else none
    boxed = in_unit_interval(logits).long() if suspect and logits[0].numel() >= _FEW_SCORES else none
    return [none if found.lacking is None else found.lacking, unlikely, boxed]
