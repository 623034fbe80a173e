"""Deletion and insertion: does the score fall when what the map shows goes, and rise when it comes back?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medcam.engine.study import Study
from medcam.errors import UsageError
from medcam.trials.fills import Fill, fill_named
from medcam.trials.order import Order, order_of, patches_of, surrogates
from medcam.trials.scoring import check_domain, check_maps

CONTROLS = ("random", "shifted", "blob")


@dataclass(frozen=True, eq=False)
class Curve:
    """Scores while more and more is taken.

    Parameters
    ----------
    shares
        Of the domain's voxels that have been taken, from 0 to 1.
    scores
        At these shares.
    """

    shares: Float[Tensor, "b k"]
    scores: Float[Tensor, "b k"]

    @property
    def area(self) -> Float[Tensor, " b"]:
        """The area under the curve over shares from 0 to 1, by the trapezoid rule, both ends included."""
        return torch.trapezoid(self.scores, self.shares, dim=1)


@dataclass(frozen=True, eq=False)
class Removal:
    """Deletion and insertion of one map with one fill.

    Parameters
    ----------
    fill
        What stood in place of removed voxels.
    deletion
        The score while voxels are removed from the image, the map's highest first. A small area speaks for the map.
    insertion
        The score while they are put into an image of which all is removed. A large area speaks for the map.
    tied
        The share of voxels whose order was chance.
    deletion_controls, insertion_controls
        The areas `draw b` of maps that know nothing of the image, by kind.
    control_curves
        Their deletion and insertion curves, by kind, one pair for each draw.
    """

    fill: str
    deletion: Curve
    insertion: Curve
    tied: Float[Tensor, " b"]
    deletion_controls: Mapping[str, Float[Tensor, "d b"]]
    insertion_controls: Mapping[str, Float[Tensor, "d b"]]
    control_curves: Mapping[str, tuple[tuple[Curve, Curve], ...]]

    def deletion_gain(self, control: str) -> Float[Tensor, " b"]:
        """Return how far the map's area lies below that of a control's mean: above 0 speaks for the map."""
        return _controls(self.deletion_controls, control).mean(0) - self.deletion.area

    def insertion_gain(self, control: str) -> Float[Tensor, " b"]:
        """Return how far the map's area lies above that of a control's mean: above 0 speaks for the map."""
        return self.insertion.area - _controls(self.insertion_controls, control).mean(0)


def deletion_and_insertion(
    study: Study,
    maps: Float[Tensor, "b *s"],
    *,
    fills: Sequence[str] = ("blur", "mean"),
    steps: int = 25,
    patch_mm: float | int | None = None,
    spacing_mm: Sequence[float | int] | None = None,
    domain: Bool[Tensor, "b *s"] | None = None,
    controls: Sequence[str] = CONTROLS,
    draws: int = 1,
) -> tuple[Removal, ...]:
    """Return deletion and insertion of maps, one result for each fill, with those of controls beside them.

    Takes `2 * steps` passes for each fill and each map: the given ones, and each draw of each control. By default that is 400.

    Parameters
    ----------
    maps
        At the input's size; NaN, not looked at, goes last.
    fills
        At least two, since the result depends on it; see `medcam.trials.fills`.
    steps
        Points of the curves besides the first; fewer where there are fewer patches.
    patch_mm, spacing_mm
        The side of the patches that go at once; see `medcam.trials.order.patches_of`.
    domain
        The voxels that are ranked and removed, such as the body; by default all.
    controls, draws
        Kinds of maps to compare with, see `medcam.trials.order.surrogates`, and how many of each.

    Raises
    ------
    UsageError
        If fewer than two fills are named, or an option is out of range.

    References
    ----------
    Petsiuk, Das and Saenko, RISE, BMVC 2018, section 4.1. Their numbers are those of probabilities, with single pixels (28 steps of 1792),
    zero after normalisation for deletion and a blur for insertion, and controls of none.
    """
    if len(set(fills)) < 2:
        raise UsageError(
            "deletion depends on what stands in place of removed voxels: name at least two fills, such as blur and mean"
        )
    if steps < 1 or draws < 1:
        raise UsageError(f"deletion takes at least one step and one draw of each control, not {steps} and {draws}")
    ranked, inside = check_maps(study, maps), check_domain(study, domain)
    patches = patches_of(ranked.shape[1:], spacing_mm=spacing_mm, patch_mm=patch_mm)

    def order(of: Float[Tensor, "b *s"]) -> Order:
        return order_of(of, patches, domain=inside, generator=study.generator())

    own, generator = order(ranked), study.generator()
    others = {
        kind: [order(surrogates(ranked, kind, domain=inside, generator=generator)) for _ in range(draws)]
        for kind in controls
    }
    return tuple(
        _removal(study, own, others, name, fill_named(study.inputs, name, domain=inside, spacing_mm=spacing_mm), steps)
        for name in fills
    )


def _removal(
    study: Study, own: Order, others: Mapping[str, Sequence[Order]], name: str, fill: Fill, steps: int
) -> Removal:
    """Return deletion and insertion in one order with one fill, and in the orders of controls."""
    curves = {kind: tuple(_curves(study, one, fill, steps) for one in orders) for kind, orders in others.items()}
    deletion, insertion = _curves(study, own, fill, steps)
    return Removal(
        name, deletion, insertion, own.tied,
        {kind: torch.stack([pair[0].area for pair in pairs]) for kind, pairs in curves.items()},
        {kind: torch.stack([pair[1].area for pair in pairs]) for kind, pairs in curves.items()},
        curves,
    )  # fmt: skip


def deletion_curve(study: Study, order: Order, fill: Fill, *, shares: Sequence[float]) -> Curve:
    """Return the score with the first voxels of the order removed, at each share of them."""
    cuts, reached = order.cuts(shares)
    scores = study.scores_of(cuts.shape[1], lambda part: fill(_copies(study, part), order.first(cuts[:, part].T)))
    return Curve(reached, scores.T)


def insertion_curve(study: Study, order: Order, fill: Fill, *, shares: Sequence[float]) -> Curve:
    """Return the score with all but the first voxels of the order removed, at each share of them."""
    cuts, reached = order.cuts(shares)
    scores = study.scores_of(cuts.shape[1], lambda part: fill(_copies(study, part), order.rest(cuts[:, part].T)))
    return Curve(reached, scores.T)


def _curves(study: Study, order: Order, fill: Fill, steps: int) -> tuple[Curve, Curve]:
    """Return both curves; their common ends, the clean image and the empty one, are not computed twice."""
    count = min(steps, order.reached.shape[1] - 1)
    inner = [n / count for n in range(1, count)]
    deleted = deletion_curve(study, order, fill, shares=[*inner, 1.0])
    inserted = (
        insertion_curve(study, order, fill, shares=inner)
        if inner
        else Curve(deleted.shares[:, :0], deleted.scores[:, :0])
    )
    clean, empty = study.scores[:, None], deleted.scores[:, -1:]
    none, every = torch.zeros_like(deleted.shares[:, :1]), torch.ones_like(deleted.shares[:, :1])
    return (
        Curve(torch.cat([none, deleted.shares], 1), torch.cat([clean, deleted.scores], 1)),
        Curve(torch.cat([none, inserted.shares, every], 1), torch.cat([empty, inserted.scores, clean], 1)),
    )


def _copies(study: Study, part: slice) -> Float[Tensor, "m b c *s"]:
    return study.inputs.expand(part.stop - part.start, *study.inputs.shape)


def _controls(areas: Mapping[str, Float[Tensor, "d b"]], control: str) -> Float[Tensor, "d b"]:
    if control not in areas:
        raise UsageError(f"'{control}' is none of the controls that were computed: {', '.join(areas)}")
    return areas[control]
