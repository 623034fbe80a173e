"""One answer made of several: maps of several layers fused, and maps of several versions of the input averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from medcam.engine.answer import Relevance
from medcam.engine.asked import AnyTarget
from medcam.engine.augment import Flip, augmented
from medcam.engine.cells import Cells
from medcam.engine.explainer import Explainer
from medcam.engine.explaining import relevance, relevances
from medcam.engine.fusion import fuse
from medcam.engine.layers import Layer
from medcam.engine.study import Progress
from medcam.errors import UsageError


def fused_relevance(
    model: nn.Module,
    inputs: Float[Tensor, "b c *s"],
    *,
    layers: Sequence[str | Layer],
    how: str = "mean",
    target: AnyTarget = None,
    method: str | Explainer = "grad-cam",
    score: str = "logit",
    activation: str | None = None,
    output: str | int | None = None,
    class_names: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Relevance:
    """Explain several layers from one pass, and fuse their maps on the cells of the finest.

    Parameters
    ----------
    how
        'mean', 'max', 'product', 'coarse-to-fine' or 'layer-cam'; see `medcam.engine.fusion`, also for how maps come to one scale.

    The others, and the errors, are those of `medcam.relevance`.
    """
    found = relevances(
        model, inputs, methods=[method], targets=[target], layers=layers, score=score, activation=activation,
        output=output, class_names=class_names, seed=seed, progress=progress,
    )  # fmt: skip
    return fused(found, layers, how)


def fused(found: Sequence[Relevance], layers: Sequence[str | Layer], how: str) -> Relevance:
    """Fuse the answers of one method about these layers; see `fused_relevance`."""
    if len(found) < len(layers) or len(layers) < 2:
        raise UsageError("fusing needs a method that looks at layers, and at least two of them")
    cells = fuse([_cells(one) for one in found], how)
    notes = [
        tuple(dict.fromkeys((f"Fused by {how}, each layer's map divided by its largest absolute value.", *every)))
        for every in (sum(own, ()) for own in zip(*(one.notes for one in found), strict=True))
    ]
    layer = " + ".join(one.layer for one in found)
    return _with(found[0], cells, layer=layer, fusion=how, notes=tuple(notes))


def augmented_relevance(
    model: nn.Module,
    inputs: Float[Tensor, "b c *s"],
    *,
    flips: Sequence[Flip] | None = None,
    factors: Sequence[float] = (1.0,),
    layer: str | Layer | None = None,
    target: AnyTarget = None,
    method: str | Explainer = "grad-cam",
    score: str = "logit",
    activation: str | None = None,
    output: str | int | None = None,
    class_names: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Relevance:
    """Explain the input, flips and brighter or darker versions of it, and average the maps where they lie in the input.

    The class and the layer are those of the input itself. A target that names a place in the output (a voxel, a region of your own) does
    not turn with the image, so it is no question for flips.

    Parameters
    ----------
    flips, factors
        See `medcam.engine.augment.augmented`.

    The others, and the errors, are those of `medcam.relevance`.
    """
    answers: list[Relevance] = []

    def explain(version: Tensor, _flip: Flip) -> Cells:
        asked: Any = list(answers[0].classes) if answers and answers[0].classes else target
        where = answers[0].layer if answers and answers[0].layer else layer
        found = relevance(
            model, version, layer=where, target=asked, method=method, score=score, activation=activation,
            output=output, class_names=class_names, seed=seed, progress=progress,
        )  # fmt: skip
        answers.append(found)
        return _cells(found)

    averaged = augmented(explain, inputs, flips=flips, factors=factors)
    first = answers[0]
    axes = range(inputs.ndim - 2) if flips is None else flips
    note = f"Averaged over the input, {len(axes)} flips of it, and {len(factors)} intensities of each."
    return _with(first, averaged, notes=tuple((*own, note) for own in first.notes))


def _cells(found: Relevance) -> Cells:
    return Cells(found.values, found.stride, found.offset)


def _with(found: Relevance, cells: Cells, **changes: Any) -> Relevance:
    return replace(found, values=cells.values, stride=cells.stride, offset=cells.offset, **changes)
