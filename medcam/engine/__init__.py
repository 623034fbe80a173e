"""The engine: what in its input moved a network's score. Tensors and modules only; it knows no file and no millimetre.

`EXPLAINERS` is the table of methods. Each takes a network, its input, the name of a layer and a target, and gives a `Relevance` that still
lies on the layer's own cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medcam.engine.answer import Relevance
from medcam.engine.explainer import Explainer, rule
from medcam.engine.layers import Layer, default_layer, feature_layers, named_layers
from medcam.engine.methods import EXPLAINERS, explainer
from medcam.engine.skeleton import skeleton
from medcam.engine.sweep import Setting, Wish, sweep
from medcam.engine.targets import Target
from medcam.errors import UsageError

__all__ = ["EXPLAINERS", "Explainer", "Relevance", "explainer", "relevance", "relevances", "rule"]


def relevance(
    model: nn.Module,
    inputs: Float[Tensor, "b c *s"],
    *,
    layer: str | Layer | None = None,
    target: SupportsIndex | Iterable[SupportsIndex] | Target | None = None,
    method: str = "grad-cam",
    score: str = "logit",
    activation: str | None = None,
    seed: int = 0,
) -> Relevance:
    """Explain a network's score for each sample of a batch, as if it were alone."""
    (found,) = relevances(
        model, inputs, methods=[method], targets=[target], layers=[layer], score=score, activation=activation, seed=seed
    )
    return found


def relevances(
    model: nn.Module,
    inputs: Float[Tensor, "b c *s"],
    *,
    methods: Sequence[str] = ("grad-cam",),
    targets: Sequence[Any] = (None,),
    layers: Sequence[str | Layer | None] = (None,),
    score: str = "logit",
    activation: str | None = None,
    seed: int = 0,
) -> list[Relevance]:
    """Answer for every target, method and layer, in this order, from as few passes as these need."""
    wishes = [Wish(method, explainer(method)) for method in methods]
    if score not in ("logit", "probability"):
        raise UsageError(f"a score is 'logit' or 'probability', not '{score}'")
    if activation not in (None, "softmax", "sigmoid"):
        raise UsageError(f"an activation is 'softmax' or 'sigmoid', not '{activation}'")
    if not isinstance(inputs, Tensor) or inputs.ndim not in (4, 5) or inputs.shape[0] == 0:
        given = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise UsageError(f"the input should be a tensor of samples, channels and 2 or 3 spatial axes, not {given}")
    notes = []
    if model.training:
        notes.append(
            "The network is in training mode, so dropout and batch statistics act; model.eval() turns them off."
        )
    known = []
    for layer in layers:
        if isinstance(layer, Layer):
            known.append(layer)
        elif layer is None:
            known.append(default_layer(feature_layers(model, inputs)))
        else:
            known += named_layers(model, inputs, [layer])
    with skeleton(model) as copied, torch.inference_mode(False):
        setting = Setting(copied, inputs, tuple(known), 4, seed, tuple(notes), score, activation)
        return sweep(setting, list(targets), wishes)
