"""Explaining a network in memory: one answer, or many from as few passes as these need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medcam.engine.answer import Relevance
from medcam.engine.explainer import Explainer
from medcam.engine.layers import Layer, candidates, feature_layers, layer_named
from medcam.engine.methods import method_named
from medcam.engine.settled import Settled, Target, Unsettled
from medcam.engine.skeleton import skeleton
from medcam.engine.sweep import Setting, Wish, sweep
from medcam.engine.targets import as_target
from medcam.errors import UsageError

AnyTarget = SupportsIndex | Iterable[SupportsIndex] | str | Target | Unsettled | Settled | None


def relevance(
    model: nn.Module,
    inputs: Float[Tensor, "b c *s"],
    *,
    layer: str | Layer | None = None,
    target: AnyTarget = None,
    method: str | Explainer = "grad-cam",
    score: str = "logit",
    activation: str | None = None,
    output: str | int | None = None,
    class_names: Sequence[str] = (),
    seed: int = 0,
) -> Relevance:
    """Explain a network's score for each sample of a batch, as if it were alone.

    The network is left exactly as it is, in the mode it is in: hooks, weights, gradients, buffers, also after an error.

    Parameters
    ----------
    inputs
        What the network takes, 2D (`b c i j`) or 3D (`b c i j k`).
    layer
        The name of a module that gives a feature map, or one of those that `medcam.layers` lists, which saves measuring its cells again;
        by default the last one before the head whose gradient says something. Methods that look at the input alone have no use for it.
    target
        What `medcam.engine.targets.as_target` takes: a class for all samples, one for each, words such as '2-0', what a function of that
        module gave, or a function of your own from the network's output to one score a sample. By default each sample's predicted class,
        which the notes name.
    method
        One of `medcam.engine.EXPLAINERS`, with options if need be: 'grad-cam', 'rise(masks=2000)'; or an explainer of your own.
    score
        'logit' or 'probability'.
    activation
        What makes probabilities of the output: 'softmax' (classes that exclude each other) or 'sigmoid' (labels of which several may hold).
        By default softmax, or sigmoid for a single channel; an output that the network itself passed through one of them is left alone.
    output
        Which of the network's several outputs is explained, such as 'logits' or 1.
    class_names
        In the order of output channels, for targets in words and for the name of what was explained.
    seed
        Of methods that draw random numbers.

    Raises
    ------
    UsageError
        If the method, the layer, or a class does not exist, or the score does not depend on the layer.
    ModelError
        If the network does not accept the input.
    """
    (found,) = relevances(
        model, inputs, methods=[method], targets=[target], layers=[layer], score=score, activation=activation,
        output=output, class_names=class_names, seed=seed,
    )  # fmt: skip
    return found


def relevances(
    model: nn.Module,
    inputs: Float[Tensor, "b c *s"],
    *,
    methods: Sequence[str | Explainer] = ("grad-cam",),
    targets: Sequence[AnyTarget] = (None,),
    layers: Sequence[str | Layer | None] = (None,),
    score: str = "logit",
    activation: str | None = None,
    output: str | int | None = None,
    class_names: Sequence[str] = (),
    seed: int = 0,
) -> list[Relevance]:
    """Answer for every target, method and layer, in this order, from as few passes as these need.

    All rules of (activation, gradient), at all layers and for all targets, share one forward pass, and for each target one backward pass
    from the score to the first of the layers. A method that has no use for a layer answers once, not for each.

    Parameters and errors are those of `relevance`.
    """
    wishes = [Wish(*_method(method)) for method in methods]
    _check_inputs(inputs)
    asked = [
        as_target(
            target, score=score, activation=activation, output=output, input_shape=tuple(inputs.shape), network=model,
            class_names=class_names,
        )
        for target in targets
    ]  # fmt: skip
    notes = []
    if model.training:
        notes.append(
            "The network is in training mode, so dropout and batch statistics act; model.eval() turns them off."
        )
    known: tuple[Layer, ...] = ()
    if any(wish.explainer.looks_at_layer for wish in wishes):
        known = _resolved(model, inputs, layers, output)
    with skeleton(model) as copied, torch.inference_mode(False):
        setting = Setting(copied, inputs, known, 4, seed, tuple(notes), tuple(class_names))
        return sweep(setting, asked, wishes)


def _resolved(
    model: nn.Module, inputs: Tensor, layers: Sequence[str | Layer | None], output: str | int | None
) -> tuple[Layer, ...]:
    """Return the layers that were named, the default for None."""
    if all(isinstance(layer, Layer) for layer in layers):
        return tuple(layer for layer in layers if isinstance(layer, Layer))
    listed = feature_layers(model, inputs, output=output)
    return tuple(
        layer if isinstance(layer, Layer)
        else candidates(listed)[0] if layer is None
        else layer_named(model, inputs, listed, layer)
        for layer in layers
    )  # fmt: skip


def _method(method: str | Explainer) -> tuple[str, Explainer]:
    return ("a method of the caller's own", method) if isinstance(method, Explainer) else (method, method_named(method))


def _check_inputs(inputs: object) -> None:
    if not isinstance(inputs, Tensor) or inputs.ndim not in (4, 5) or inputs.shape[0] == 0:
        given = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise UsageError(f"the input should be a tensor of samples, channels and 2 or 3 spatial axes, not {given}")
