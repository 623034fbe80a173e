"""Test and retest: do maps hold when the same patient is imaged again?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medcam.engine.study import Study
from medcam.errors import UsageError
from medcam.trials.acquisitions import ACQUISITIONS, Acquired, acquisition_named
from medcam.trials.scoring import Explain
from medcam.validate.similarity import Similarity, similarity


@dataclass(frozen=True, eq=False)
class Retest:
    """Maps of images that were taken again, brought back to where they lie on the first.

    For a cohort, put what a map says (its mass in the lesion, its centre) of the first and of the retest into `intraclass` and
    `limits_of_agreement`, and `score_change` and one less the similarity into `association`: do maps change where predictions do?

    Parameters
    ----------
    acquisition
        How the image was taken again, with options.
    maps
        On the first image; NaN where the second one did not reach.
    similarities
        Of each sample's map to its first one. A map follows a motion only to about half a cell of its layer: compare shifts with that.
    ceiling
        Of the first map, warped there and back, to itself: what interpolation alone leaves. Not 1 only for motions.
    score_change
        The score of the second image less that of the first.
    """

    acquisition: str
    maps: Float[Tensor, "b *s"]
    similarities: tuple[Similarity, ...]
    ceiling: tuple[Similarity, ...]
    score_change: Float[Tensor, " b"]


def retest(
    study: Study,
    model: nn.Module,
    explain: Explain,
    *,
    acquisitions: Sequence[str] = tuple(ACQUISITIONS),
    spacing_mm: Sequence[float | int] | None = None,
    repeats: int = 1,
) -> tuple[Retest, ...]:
    """Return how maps hold under changes of acquisition; one explanation and one pass for each, and one explanation without.

    Parameters
    ----------
    explain
        Such as `explaining(method='grad-cam', layer=..., target=...)`; name the target, or a second image may be explained for another
        class.
    acquisitions
        Any of `medcam.trials.acquisitions.ACQUISITIONS`, with options if need be.
    spacing_mm
        Of the input's voxels; by default 1.
    repeats
        How often each is drawn, one result for each.

    Raises
    ------
    UsageError
        If there is no such acquisition, or an option is out of range.
    """
    inputs = study.inputs
    spacing = [1.0] * (inputs.ndim - 2) if spacing_mm is None else [float(mm) for mm in spacing_mm]
    if len(spacing) != inputs.ndim - 2 or min(spacing) <= 0 or repeats < 1:
        raise UsageError(
            f"a retest takes one positive spacing for each axis and at least one repeat, not {spacing} and {repeats}"
        )
    first = explain(model, inputs)
    results = []
    for name in acquisitions:
        take = acquisition_named(name)
        for repeat in range(repeats):
            taken = [take(image, spacing, study.seed + repeat) for image in inputs]
            results.append(_compared(study, model, explain, name, first, taken, spacing))
    return tuple(results)


def _compared(
    study: Study, model: nn.Module, explain: Explain, name: str, first: Float[Tensor, "b *s"], taken: Sequence[Acquired],
    spacing: Sequence[float],
) -> Retest:  # fmt: skip
    images = torch.stack([one.image for one in taken])
    second = explain(model, images)
    back = torch.stack([one.back(relevance) for one, relevance in zip(taken, second, strict=True)])
    round_ = torch.stack([one.back(one.there(relevance)) for one, relevance in zip(taken, first, strict=True)])
    scores = study.scores_of(1, lambda _: images[None])[0]
    return Retest(name, back, _alike(first, back, spacing), _alike(first, round_, spacing), scores - study.scores)


def _alike(
    first: Float[Tensor, "b *s"], second: Float[Tensor, "b *s"], spacing: Sequence[float]
) -> tuple[Similarity, ...]:
    pairs = zip(*(maps.detach().cpu().double().numpy() for maps in (first, second)), strict=True)
    return tuple(similarity(one, other, spacing_mm=spacing) for one, other in pairs)
