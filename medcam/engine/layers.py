"""Finding the layer to explain: every feature map of a network, and which one is the default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medcam.engine.capture import capture, feature_map
from medcam.engine.footprint import Footprint, Probe, Reach, Seen, even_spread, walk
from medcam.engine.layout import Layout
from medcam.engine.outputs import Reading, find_place
from medcam.engine.skeleton import find_layer, run, skeleton
from medcam.errors import UsageError


@dataclass(frozen=True)
class Layer:
    """A feature map of a network on one input.

    Parameters
    ----------
    name, kind
        As in `named_modules`, and the class of the module.
    channels, shape
        Of the feature map: its channels and its cells along each axis.
    layout, footprint
        How the layer's tensor holds its cells, and where they lie in the input.
    before_head
        Whether it holds features that the score is made of: it comes before the last layer with weights, and is not yet a map of class
        scores, as the output convolution of a segmentation network is.
    behind
        The nearest normalisation behind it, where there is one: what to look at if its gradients cancel.
    default
        Whether medcam explains this one unless told otherwise, or the score's gradient there says nothing.
    """

    name: str
    kind: str
    channels: int
    shape: tuple[int, ...]
    layout: Layout
    footprint: Footprint
    before_head: bool
    behind: str | None = None
    default: bool = False


WHY_DEFAULT = "the last feature map with spatial extent before the head"


def feature_layers(
    network: nn.Module, inputs: Float[Tensor, "b c *s"], *, output: str | int | None = None
) -> tuple[Layer, ...]:
    """Return the layers of the network that give feature maps, in the order in which they end.

    Where several modules give one and the same tensor (a block and its last member) the outermost stands for all; of one that runs several
    times the last call counts. The default is the last one with spatial extent before the head: the deepest features that still have a
    place. This costs no forward pass, unless the network holds an operation that positions cannot be followed through.

    Parameters
    ----------
    inputs
        Only their shape counts.
    output
        Which of several outputs is to be explained; see `medcam.relevance`.

    Raises
    ------
    ModelError
        If the network does not accept the input.
    """
    with skeleton(network) as copied:
        found = walk(copied, inputs)
        if found.output is None:
            return _by_running(copied, inputs, found, output)
    return _listed(found.seen, inputs, *_head(found, inputs, output))


def candidates(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Return the layers that may be the default, the best first.

    Raises
    ------
    UsageError
        If no layer can be.
    """
    usable = _usable(layers)
    if not usable:
        raise UsageError(
            "no layer of this network gives a feature map with spatial extent before its head, so there is no default; "
            "name one with --layer (`medcam inspect` lists what there is)"
        )
    return tuple(reversed(usable))


def _usable(layers: Sequence[Layer]) -> list[Layer]:
    """Return the features with spatial extent; of a transformer rather what flows from block to block than queries, keys and values."""
    features = [layer for layer in layers if layer.before_head and max(layer.shape) > 1]
    return [layer for layer in features if layer.kind != "Linear"] or features


def default_layer(layers: Sequence[Layer]) -> Layer:
    """Return the default of `feature_layers`.

    Raises
    ------
    UsageError
        If no layer can be the default.
    """
    return candidates(layers)[0]


def layer_named(network: nn.Module, inputs: Float[Tensor, "b c *s"], layers: Sequence[Layer], name: str) -> Layer:
    """Return the layer of that name, also one that `feature_layers` does not list since another stands for it.

    Raises
    ------
    UsageError
        If the network has no such layer, it does not run, or it gives no feature map.
    """
    listed = {layer.name: layer for layer in layers}
    if name in listed:
        return listed[name]
    with skeleton(network) as copied:
        module = find_layer(copied, name)
        # A module may stand in several places, under one name in the listing.
        names = {own for own, each in copied.named_modules() if each is module}
        seen = [each for each in walk(copied, inputs).seen if each.name in names]
        if seen:
            return replace(_layer(seen[-1], before_head=True), name=name)
        kept = capture(copied, inputs, [name], graph=False).layers[name]
    spread = even_spread(tuple(inputs.shape[2:]), kept.cells)
    return Layer(name, type(module).__name__, kept.features.shape[1], kept.cells, kept.layout, spread, before_head=True)


def _layer(seen: Seen, *, before_head: bool, behind: str | None = None) -> Layer:
    return Layer(
        seen.name, seen.kind, _channels(seen), seen.layout.grid, seen.layout, seen.footprint, before_head, behind
    )


def _channels(seen: Seen) -> int:
    return seen.shape[1] if seen.layout.kind == "channels first" else seen.shape[-1]


def _head(found: Probe, inputs: Tensor, output: str | int | None) -> tuple[Reach, int | None]:
    """Return what the scores depend on, and their number of classes if they have spatial axes."""
    try:
        place, _ = find_place(found.output, Reading(output=output, input_shape=tuple(inputs.shape)))
        scores = place.of(found.output)
    except UsageError:  # boxes, or an output that only a target of the user's own understands
        return found.reach(found.output), None
    return found.reach(scores), scores.shape[1] if scores.ndim == inputs.ndim else None


def _listed(seen: Sequence[Seen], inputs: Tensor, reach: Reach, classes: int | None) -> tuple[Layer, ...]:
    """Return the layers among the calls that gave feature maps."""
    of_tensor = {call.tensor: n for n, call in enumerate(seen)}  # the outermost ends last
    last_call = {call.name: n for n, call in enumerate(seen)}
    began = {call.tensor: call.ended for call in reversed(seen)}
    kept = [c for n, c in enumerate(seen) if of_tensor[c.tensor] == n and last_call[c.name] == n]
    scores = len(kept)
    while scores and classes is not None and _channels(kept[scores - 1]) == classes:
        scores -= 1
    layers = []
    for n, call in enumerate(kept):
        ended = began[call.tensor]
        features = n < scores and ended < reach.head and reach.includes(call)
        behind = next((c.name for c in kept[n + 1 :] if "Norm" in c.kind), None)
        layers.append(_layer(call, before_head=features, behind=behind))
    usable = _usable(layers)
    return tuple(replace(layer, default=layer is usable[-1]) if usable else layer for layer in layers)


def _by_running(copied: nn.Module, inputs: Tensor, found: Probe, output: str | int | None) -> tuple[Layer, ...]:
    """Return the layers of a network that the probe could not follow to its end, by one forward pass without a graph.

    Layers that the probe has reached are where it found them; of others the cells are assumed to be spread evenly.
    """
    known = {call.name: call for call in found.seen}
    seen: list[Seen] = []
    tensors: list[tuple[Tensor, int]] = []
    clock = [0, 0]  # now, and when the last module with weights began

    def end(name: str, module: nn.Module, result: Any) -> None:
        clock[0] += 1
        try:
            features, layout = feature_map(name, result, inputs, None)
        except UsageError:
            return
        at = next((n for n, (t, v) in enumerate(tensors) if t is features and v == features._version), len(tensors))
        tensors.append((features, features._version))
        spread = even_spread(tuple(inputs.shape[2:]), layout.grid)
        if name in known and known[name].shape == tuple(features.shape):
            layout, spread = known[name].layout, known[name].footprint
        seen.append(Seen(name, type(module).__name__, tuple(features.shape), layout, spread, clock[0], at))

    def begin(_module: nn.Module, _args: Any) -> None:
        clock[0] += 1
        clock[1] = clock[0]

    handles = []
    for name, module in copied.named_modules():
        if next(module.children(), None) is None and next(module.parameters(recurse=False), None) is not None:
            handles.append(module.register_forward_pre_hook(begin))
        if name:
            handles.append(module.register_forward_hook(lambda m, _a, result, name=name: end(name, m, result)))
    try:
        with torch.inference_mode(False), torch.no_grad():
            result = run(copied, inputs)
    finally:
        for handle in handles:
            handle.remove()
    _, classes = _head(Probe((), result), inputs, output)
    return _listed(seen, inputs, Reach(clock[1], -1), classes)
