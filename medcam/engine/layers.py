"""Finding the layer to explain: every feature map of a network, and which one is the default."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medcam.engine.footprint import Footprint, even_spread, footprints
from medcam.engine.layout import Layout
from medcam.engine.skeleton import run, skeleton
from medcam.engine.targets import output_tensor
from medcam.errors import UsageError


def spatial_tensor(output: Any, batch: int, ndim: int) -> Tensor | None:
    """Return the first floating tensor in a layer's output that has `ndim` axes, the first of `batch` samples, or None."""
    for item in output if isinstance(output, (tuple, list)) else (output,):
        if isinstance(item, Tensor) and item.ndim == ndim and item.shape[0] == batch and item.is_floating_point():
            return item
    return None


@dataclass(frozen=True)
class Layer:
    """A feature map of a network on one input.

    Parameters
    ----------
    name, kind
        As in `named_modules`, and the class of the module.
    channels, shape
        Of the feature map: its channels and its cells along each axis.
    before_head
        Whether it holds features: it comes before the last layer with weights, and is not yet a map of class scores, as the output
        convolution of a segmentation network is.
    default
        Whether medcam explains this one unless told otherwise.
    """

    name: str
    kind: str
    channels: int
    shape: tuple[int, ...]
    before_head: bool
    footprint: Footprint | None
    layout: Layout | None
    behind: str | None = None
    default: bool = False


WHY_DEFAULT = "the last feature map with spatial extent before the head"


def feature_layers(network: nn.Module, inputs: Float[Tensor, "b c *s"]) -> tuple[Layer, ...]:
    """Return the layers of the network that give feature maps, in the order in which they end, by one forward pass without a graph.

    Where several modules give one and the same tensor (a block and its last member) the outermost stands for all. The default is the last
    one with spatial extent before the head: the deepest features that still have a place.

    Raises
    ------
    ModelError
        If the network does not accept the input.
    """
    trace = _Trace(inputs.shape[0], inputs.ndim, tuple(inputs.shape[2:]))
    with skeleton(network) as copied, torch.inference_mode(False), torch.no_grad():
        handles = [handle for name, module in copied.named_modules() for handle in trace.watch(name, module)]
        try:
            output = run(copied, inputs)
        finally:
            for handle in handles:
                handle.remove()
    logits, _ = output_tensor(output)
    found = trace.layers(score_channels=logits.shape[1] if logits.ndim == inputs.ndim else None)
    places = footprints(network, inputs[:1], [layer.name for layer in found])
    return tuple(replace(layer, footprint=places.get(layer.name, layer.footprint)) for layer in found)


def named_layers(network: nn.Module, inputs: Float[Tensor, "b c *s"], names: Sequence[str]) -> tuple[Layer, ...]:
    """Interim."""
    places = footprints(network, inputs[:1], names)
    return tuple(Layer(name, "", 0, (), True, places.get(name), None) for name in names)


def default_layer(layers: tuple[Layer, ...]) -> Layer:
    """Return the default of `feature_layers`.

    Raises
    ------
    UsageError
        If no layer can be the default.
    """
    for layer in layers:
        if layer.default:
            return layer
    raise UsageError(
        "no layer of this network gives a feature map with spatial extent before its head, so there is no default; "
        "name one with --layer (`medcam inspect` lists what there is)"
    )


@dataclass(frozen=True)
class _Map:
    name: str
    kind: str
    shape: tuple[int, ...]
    ended: int
    # By tensor and version: an in-place ReLU returns the same tensor with new values, which is another feature map.
    tensor: weakref.ref[Tensor]
    version: int


class _Trace:
    """Which module gave which feature map, in order."""

    def __init__(self, batch: int, ndim: int, size: tuple[int, ...]) -> None:
        self._size = size
        self._batch = batch
        self._ndim = ndim
        self._clock = 0
        self._head_starts = 0
        self._maps: list[_Map] = []

    def watch(self, name: str, module: nn.Module) -> list[Any]:
        handles = []
        if next(module.children(), None) is None and next(module.parameters(recurse=False), None) is not None:
            handles.append(module.register_forward_pre_hook(self._started))
        if name:
            handles.append(module.register_forward_hook(lambda m, _args, output: self._ended(name, m, output)))
        return handles

    def _started(self, _module: nn.Module, _args: Any) -> None:
        self._clock += 1
        self._head_starts = self._clock

    def _ended(self, name: str, module: nn.Module, output: Any) -> None:
        features = spatial_tensor(output, self._batch, self._ndim)
        if features is None:
            return
        self._clock += 1
        ended = self._clock
        if self._maps and self._maps[-1].tensor() is features and self._maps[-1].version == features._version:
            ended = self._maps.pop().ended
        kind = type(module).__name__
        self._maps.append(_Map(name, kind, tuple(features.shape[1:]), ended, weakref.ref(features), features._version))

    def layers(self, score_channels: int | None) -> tuple[Layer, ...]:
        """Return what was seen. `score_channels` is the number of classes of an output that has spatial axes, else None."""
        features = len(self._maps)
        while features and self._maps[features - 1].shape[0] == score_channels:
            features -= 1
        last_call = {seen.name: n for n, seen in enumerate(self._maps)}
        kept = [(n, seen) for n, seen in enumerate(self._maps) if last_call[seen.name] == n]
        before_head = [n < features and seen.ended < self._head_starts for n, seen in kept]
        usable = [n for n, (_, seen) in enumerate(kept) if before_head[n] and max(seen.shape[1:]) > 1]
        return tuple(
            Layer(
                seen.name,
                seen.kind,
                seen.shape[0],
                seen.shape[1:],
                before_head[n],
                even_spread(self._size, seen.shape[1:]),
                Layout("channels first", seen.shape[1:]),
                default=n in usable[-1:],
            )
            for n, (_, seen) in enumerate(kept)
        )
