"""What MONAI's own pipelines ask of the engine: a batch in, maps at the batch's own size out, one channel for each question."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Num
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import Inferer, SimpleInferer, SlidingWindowInferer
from monai.utils.misc import ensure_tuple
from torch import Tensor, nn

from medcam.engine import Relevance, relevances
from medcam.engine.asked import AnyTarget
from medcam.engine.methods import method_named
from medcam.engine.windows import Windows, windowed_relevances
from medcam.errors import InputError, UsageError
from medcam.models import Model, wrap_module
from medcam.options import one_of
from medcam.pipeline import versions
from medcam.recipe import Recipe

# The entry of a MetaTensor's metadata that holds the recipes of its channels: JSON text, which MONAI collates and writers pass over.
RECIPES = "medcam_recipes"


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked of every image that passes; names and meanings are those of `medcam.relevances`.

    Parameters
    ----------
    methods, targets, layers
        There is one map for each target, method and layer, in this order, and one for a method that looks at the input alone.
    windows
        See the image through sliding windows, or None for all of it at once.
    exact
        With windows: explain the score of the stitched output, instead of each window's own.
    unseen
        What stands where nothing was looked at. NaN keeps that apart from "looked at, nothing found", but a later transform that
        interpolates spreads it.
    """

    methods: tuple[str, ...] = ("grad-cam",)
    targets: tuple[AnyTarget, ...] = (None,)
    layers: tuple[str | None, ...] = (None,)
    score: str = "logit"
    activation: str | None = None
    output: str | int | None = None
    class_names: tuple[str, ...] = ()
    seed: int = 0
    windows: Windows | None = None
    exact: bool = False
    unseen: float = 0.0

    def __post_init__(self) -> None:
        one_of("score", self.score, ("logit", "probability"))
        if not self.methods or not self.targets or not self.layers:
            raise UsageError(
                "nothing was asked: name at least one method; leave targets and layers out for their defaults"
            )
        if self.exact and self.windows is None:
            raise UsageError("exact means something for sliding windows only; say how large these are")


@dataclass(frozen=True)
class Finding:
    """What goes with one map of one sample: how it was made, the target's score, its probability if it has one, and notes in sentences."""

    recipe: Recipe
    score: float
    probability: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Maps:
    """Maps of a batch at its own size, and for each sample what goes with each of its maps."""

    values: Float[Tensor, "b n *s"]
    findings: tuple[tuple[Finding, ...], ...]


def several(given: Any) -> tuple[Any, ...]:
    """Return what was given as a tuple: in a configuration file one thing may stand without a list around it; None is the default one."""
    return (None,) if given is None else tuple(ensure_tuple(given))


def windows_of(inferer: Inferer | Windows | None) -> Windows | None:
    """Return the windows that an inferer cuts, or None if it shows the network the whole image at once.

    Raises
    ------
    UsageError
        If it does neither as MONAI's SlidingWindowInferer or SimpleInferer do.
    """
    if isinstance(inferer, SlidingWindowInferer):
        return Windows.of(inferer)
    if inferer is None or isinstance(inferer, Windows) or type(inferer) is SimpleInferer:
        return inferer if isinstance(inferer, Windows) else None
    raise UsageError(
        f"medcam follows a SlidingWindowInferer or a SimpleInferer, not a {type(inferer).__name__}; name one of these for the explanation"
    )


def maps(model: Model | nn.Module, inputs: Num[Tensor, "b c *s"], question: Question) -> Maps:
    """Explain each sample of a batch, and put each map on the sample's own voxels.

    A layer's cells are placed by stride and offset and interpolated between, not stretched over the image. Gradients are taken whatever
    mode the caller is in, and leave no trace.

    Raises
    ------
    UsageError
        If a method, layer or target does not exist, or the batch has other axes than the network takes.
    ModelError
        If the network does not accept the batch.
    """
    known = model if isinstance(model, Model) else wrap_module(model)
    if known.members and None in question.layers and any(method_named(m).looks_at_layer for m in question.methods):
        raise UsageError(
            f"the model is the mean of {len(known.members)} networks: medcam.explain adds up their maps; here name a layer of one, such as "
            f"one in {known.members[0]}"
        )
    dims = known.spatial_dims
    if dims is not None and inputs.ndim != dims + 2:
        raise UsageError(
            f"the network takes a batch of samples, channels and {dims} spatial axes, not a tensor of shape {tuple(inputs.shape)}"
        )
    found = _answers(known, inputs, question)
    values = torch.stack([one.on_input() for one in found], dim=1)
    values = torch.where(values.isnan(), question.unseen, values).to(inputs.device)
    steps = _steps(inputs)
    findings = tuple(
        tuple(_finding(one, sample, _recipe(one, known, question, sample, steps[sample])) for one in found)
        for sample in range(len(inputs))
    )
    return Maps(values, findings)


def findings_as_text(findings: Sequence[Finding]) -> str:
    """Return what goes with one sample's maps as JSON text, from which `findings_of` makes it again."""
    return json.dumps([asdict(one) | {"recipe": one.recipe.to_json()} for one in findings])


def findings_of(text: str) -> tuple[Finding, ...]:
    """Return what stands in a heatmap's metadata under 'medcam_recipes', one for each channel.

    Raises
    ------
    InputError
        If the text is not what a transform or an inferer of medcam wrote.
    """
    try:
        return tuple(
            Finding(Recipe.from_json(one["recipe"]), one["score"], one["probability"], tuple(one["notes"]))
            for one in json.loads(text)
        )
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"these are not a heatmap's recipes: {type(error).__name__} at {text[:40]!r}") from error


def recipes_of(text: str) -> tuple[Recipe, ...]:
    """Return the recipes among `findings_of`, one for each channel."""
    return tuple(one.recipe for one in findings_of(text))


def beside(values: Float[Tensor, "..."], image: Tensor, recipes: object) -> Tensor:
    """Return maps as a tensor that knows all that the image they belong to knows: affine, metadata and the operations applied to it.

    Parameters
    ----------
    recipes
        What goes into the metadata under 'medcam_recipes': text for one sample, a list of it for a batch.
    """
    if not isinstance(image, MetaTensor):
        return values
    # Made by the constructor a batch's metadata, which are lists, would be taken for a sample's.
    placed = MetaTensor(values)
    placed.copy_meta_from(image)
    placed.meta, placed.applied_operations = deepcopy(image.meta), deepcopy(image.applied_operations)
    placed.meta[RECIPES] = recipes
    result: Tensor = placed
    return result


def _answers(model: Model, inputs: Tensor, question: Question) -> Sequence[Relevance]:
    weights = next((p for p in model.network.parameters() if p.is_floating_point()), None)
    plain = inputs.detach().as_subclass(Tensor)
    with torch.inference_mode(False):
        # A tensor made in inference mode could not be followed by a gradient.
        plain = plain.clone() if plain.is_inference() else plain
        asked: dict[str, Any] = {
            "methods": question.methods, "targets": question.targets, "layers": question.layers, "score": question.score,
            "activation": question.activation or model.activation, "output": question.output, "seed": question.seed,
            "class_names": question.class_names or model.class_names,
        }  # fmt: skip
        dtype = torch.float32 if weights is None else weights.dtype
        if question.windows is not None:
            # Windows are moved to the network one by one.
            return windowed_relevances(
                model.network, plain.to(dtype), question.windows, exact=question.exact, **asked
            ).relevances
        return relevances(model.network, plain.to(plain.device if weights is None else weights.device, dtype), **asked)


def _finding(found: Relevance, sample: int, recipe: Recipe) -> Finding:
    probability = None if found.probabilities is None else float(found.probabilities[sample])
    return Finding(recipe, float(found.scores[sample]), probability, tuple(found.notes[sample]))


def _recipe(found: Relevance, model: Model, question: Question, sample: int, steps: tuple[str, ...]) -> Recipe:
    windows = {} if question.windows is None else {**question.windows.settings(), "exact": question.exact}
    return Recipe(
        model=model.name,
        model_sha256=model.sha256,
        method=found.method,
        layer=found.layer,
        target=_target(found, model, question, sample),
        score=found.score,
        activation=question.activation or model.activation,
        fusion=found.fusion,
        seed=found.seed,
        windows=windows,
        preprocessing=steps,
        input_shape=found.input_shape,
        feature_shape=tuple(found.values.shape[1:]),
        stride=found.stride,
        offset=found.offset,
        device=found.values.device.type,
        dtype=str(found.values.dtype).removeprefix("torch."),
        versions=versions(),
    )


def _target(found: Relevance, model: Model, question: Question, sample: int) -> str:
    """Return what was explained of one sample: predicted classes differ within a batch."""
    if len(found.classes) < 2 or question.targets != (None,):
        return found.target
    number, names = found.classes[sample], question.class_names or model.class_names
    return f"{names[number]} (class {number})" if number < len(names) else f"class {number}"


def _steps(inputs: Tensor) -> list[tuple[str, ...]]:
    """Return for each sample the names of the transforms that stand in its record: those that moved voxels."""
    if not isinstance(inputs, MetaTensor):
        return [()] * len(inputs)
    held = inputs.applied_operations if inputs.is_batch else [inputs.applied_operations] * len(inputs)
    lists = [every if isinstance(every, list) else [] for every in held]
    lists += [[]] * (len(inputs) - len(lists))
    return [tuple(str(one.get("class", "")) for one in every if isinstance(one, dict)) for every in lists]
