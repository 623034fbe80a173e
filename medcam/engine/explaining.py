"""Explaining a network in memory: one answer, or many from as few passes as these need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medcam.engine.answer import Relevance
from medcam.engine.asked import AnyTarget, check_inputs
from medcam.engine.budget import copies_within
from medcam.engine.capture import IndependentError
from medcam.engine.explainer import Explainer
from medcam.engine.layers import Layer, candidates, feature_layers, layer_named
from medcam.engine.methods import method_named
from medcam.engine.ranking import speaking_layer
from medcam.engine.settled import Unsettled
from medcam.engine.skeleton import skeleton
from medcam.engine.study import Progress
from medcam.engine.sweep import Setting, Wish, sweep
from medcam.engine.targets import as_target


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
    memory_mb: float | int | None = None,
    progress: Progress | None = None,
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
    memory_mb
        About how much memory perturbed copies of the input may take at once; see `medcam.engine.budget`. It moves a result's last bits.
    progress
        Called now and then with how many perturbed copies have been scored, and of how many.

    Raises
    ------
    UsageError
        If the method, the layer, or a class does not exist, or the score does not depend on the layer.
    ModelError
        If the network does not accept the input.
    """
    (found,) = relevances(
        model, inputs, methods=[method], targets=[target], layers=[layer], score=score, activation=activation,
        output=output, class_names=class_names, seed=seed, memory_mb=memory_mb,
        progress=progress,
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
    memory_mb: float | int | None = None,
    progress: Progress | None = None,
) -> list[Relevance]:
    """Answer for every target, method and layer, in this order, from as few passes as these need.

    All rules of (activation, gradient), at all layers and for all targets, share one forward pass, and for each target one backward pass
    from the score to the first of the layers. A method that has no use for a layer answers once, not for each.

    Parameters and errors are those of `relevance`.
    """
    wishes = wishes_of(methods)
    check_inputs(inputs)
    asked = [
        as_target(
            target, score=score, activation=activation, output=output, input_shape=tuple(inputs.shape), network=model,
            class_names=class_names,
        )
        for target in targets
    ]  # fmt: skip
    listed: tuple[Layer, ...] = ()
    known: tuple[Layer, ...] = ()
    inputs = inputs.as_subclass(Tensor)  # a subclass, such as MONAI's, would come along through all that is computed
    if any(wish.explainer.looks_at_layer for wish in wishes):
        if not all(isinstance(layer, Layer) for layer in layers):
            listed = feature_layers(model, inputs, output=output)
        known = tuple(known_layer(model, inputs, listed, layer) for layer in layers)
    with skeleton(model) as copied, torch.inference_mode(False):
        # The widest feature map says what a copy takes, also for methods that look at no layer; closed networks hide theirs.
        open_layers = not isinstance(copied, torch.jit.ScriptModule)
        widths = listed or known or (feature_layers(model, inputs, output=output) if open_layers else ())
        copies = copies_within(memory_mb, inputs, widths)
        setting = Setting(copied, inputs, known, copies, seed, mode_notes(model), tuple(class_names), progress)
        try:
            found = sweep(setting, asked, wishes)
            silent = any(one.says_nothing for one in found)
        except IndependentError:
            if None not in layers or not known:
                raise
            found, silent = [], True
        if None in layers and silent:
            known = speaking_layers(copied, inputs, listed, layers, known, asked[0])
            if known != setting.layers or not found:
                found = sweep(replace(setting, layers=known), asked, wishes)
    return [one.relevance for one in found]


def known_layer(model: nn.Module, inputs: Tensor, listed: Sequence[Layer], layer: str | Layer | None) -> Layer:
    """Return a layer that was named, or (None) the default, as it is listed."""
    if isinstance(layer, Layer):
        return layer
    return candidates(listed)[0] if layer is None else layer_named(model, inputs, listed, layer)


def speaking_layers(
    copied: nn.Module, inputs: Tensor, listed: Sequence[Layer], layers: Sequence[str | Layer | None],
    known: tuple[Layer, ...], asked: Unsettled,
) -> tuple[Layer, ...]:  # fmt: skip
    """Return the layers with a better one in place of a default whose gradient is zero or cancels."""
    better = speaking_layer(copied, inputs, listed, asked)
    if better is None:
        return known
    return tuple(better if layer is None else one for layer, one in zip(layers, known, strict=True))


def wishes_of(methods: Sequence[str | Explainer]) -> list[Wish]:
    """Return the explainers that are named, under their names."""
    return [
        Wish("a method of the caller's own", method)
        if isinstance(method, Explainer)
        else Wish(method, method_named(method))
        for method in methods
    ]


def mode_notes(model: nn.Module) -> tuple[str, ...]:
    """Return what must be said of the mode that a network is in."""
    if not model.training:
        return ()
    return ("The network is in training mode, so dropout and batch statistics act; model.eval() turns them off.",)
