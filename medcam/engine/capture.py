"""The activations of layers and the gradient of a score at them, leaving no trace on the network.

The prefix, everything before the first of the layers, runs without an autograd graph, so it costs what inference costs in time and memory;
the graph begins at the layer and `autograd.grad` goes no further back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medcam.engine.layout import Layout, guess, to_channels_first
from medcam.engine.rectifiers import recording
from medcam.engine.skeleton import find_layer, run
from medcam.errors import ModelError, UsageError

# The name under which the input itself is captured, like a layer.
INPUT = ""


@dataclass(frozen=True, eq=False)
class Activation:
    """What one layer gave.

    Parameters
    ----------
    native
        The tensor that stands in the graph, in the layer's own layout.
    layout
        Where its channels and cells are.
    calls
        How often the layer ran; the last call counts.
    """

    native: Tensor
    layout: Layout
    calls: int

    @property
    def cells(self) -> tuple[int, ...]:
        """How many cells there are along each axis."""
        return tuple(to_channels_first(self.native.detach(), self.layout).shape[2:])

    @property
    def features(self) -> Float[Tensor, "b c *t"]:
        """The activation, channels first, outside the graph, in at least single precision."""
        return _single(to_channels_first(self.native.detach(), self.layout))


@dataclass(frozen=True, eq=False)
class Captured:
    """What one forward pass left: the network's output, and each layer's activation in the graph that leads there."""

    output: Any
    layers: Mapping[str, Activation]


def capture(
    network: nn.Module,
    inputs: Float[Tensor, "b c *s"],
    layers: Sequence[str],
    *,
    layouts: Mapping[str, Layout] | None = None,
    graph: bool = True,
    recorded: bool = False,
) -> Captured:
    """Run the network once and keep the activations of `layers`, with a graph from the first of them to the output.

    The network should be a `skeleton`. A layer that runs several times in one forward pass is captured at its last call. Its output may be
    a tuple or list: the first tensor in it that can be a feature map counts.

    Parameters
    ----------
    layers
        Names of modules, or `INPUT` for the input itself.
    layouts
        Where channels and cells are, for the layers of which that is known; for others it is told from the shape.
    graph
        Whether gradients will be asked for.
    recorded
        Whether they will be asked to pass rectifiers by a rule (`rectifiers`).

    Raises
    ------
    UsageError
        If the network has no such layer, a layer does not run, or its output has no spatial axes.
    ModelError
        If the network does not accept the input.
    """
    found: dict[str, Activation] = {}
    keep = partial(_keeper, found, inputs, layouts or {}, graph=graph, alone=len(layers) == 1)
    given, modules = inputs, [name for name in layers if name != INPUT]
    with torch.inference_mode(False), torch.no_grad(), ExitStack() as stack:
        if INPUT in layers:
            if not inputs.is_floating_point():
                raise UsageError(f"a gradient at the input needs floating-point values, not {inputs.dtype}; convert it")
            leaf = inputs.detach().clone().requires_grad_()
            found[INPUT] = Activation(leaf, Layout("channels first", tuple(inputs.shape[2:])), 1)
            torch.set_grad_enabled(True)
            given = leaf.clone()  # the network may write into what it is given
        if recorded:
            stack.enter_context(recording(network))
        handles = [find_layer(network, name).register_forward_hook(keep(name)) for name in modules]
        try:
            output = run(network, given)
        finally:
            for handle in handles:
                handle.remove()
    for name in layers:
        if name not in found:
            raise UsageError(f"layer '{name}' does not run in this network's forward pass; choose another layer")
    return Captured(output, found)


def _keeper(
    found: dict[str, Activation], inputs: Tensor, layouts: Mapping[str, Layout], name: str, *, graph: bool, alone: bool
) -> Any:
    """Return the hook that keeps what a layer gives, in `found`; `alone` if no other layer is captured."""
    thread = threading.get_ident()

    def cut(_module: nn.Module, _args: Any, output: Any) -> Any:
        # A network under guard is the user's own, which other threads may be running.
        if threading.get_ident() != thread:
            return None
        features, layout = feature_map(name, output, inputs, layouts.get(name))
        calls = found[name].calls + 1 if name in found else 1
        if not graph:
            found[name] = Activation(features.detach().clone(), layout, calls)
            return None
        # Cutting anew at each call leaves the last call as the leaf; of several layers the first is the leaf and the others follow it.
        root = features.detach().requires_grad_() if alone or not features.requires_grad else features
        found[name] = Activation(root, layout, calls)
        torch.set_grad_enabled(True)
        # The clone keeps the captured values from a later in-place ReLU.
        return with_tensor(output, features, root.clone())

    return cut


def gradients(
    captured: Captured, scores: Float[Tensor, " b"], layers: Sequence[str], *, keep_graph: bool = False
) -> dict[str, Float[Tensor, "b c *t"]]:
    """Return the gradient of each sample's score at each captured activation, channels first.

    The samples' scores are summed before one backward pass, so each sample is explained as if alone as long as the network does not mix
    samples (batch statistics would).

    Raises
    ------
    UsageError
        If the scores do not depend on a layer.
    """
    roots = [captured.layers[name].native for name in layers]
    found: Sequence[Tensor | None] = [None] * len(roots)
    if scores.requires_grad:
        # A half-precision gradient of a mean over many cells would underflow: scale the score up, and the gradient down again.
        scale = 1024.0 if any(root.dtype == torch.float16 for root in roots) else 1.0
        with torch.inference_mode(False), torch.enable_grad():
            try:
                found = torch.autograd.grad(scores.sum() * scale, roots, retain_graph=keep_graph, allow_unused=True)
            except RuntimeError as error:
                words = (str(error).strip().splitlines() or ["an error without words"])[0]
                raise ModelError(f"the network's backward pass fails: {words}") from error
        if scale != 1:
            found = [None if slope is None else slope.float() / scale for slope in found]
    slopes = {}
    for name, slope in zip(layers, found, strict=True):
        layout = captured.layers[name].layout
        slopes[name] = _single(to_channels_first(_depends(slope, name), layout))
    return slopes


def slope_at(scores: Float[Tensor, " b"], leaf: Float[Tensor, "b c *t"], layer: str) -> Float[Tensor, "b c *t"]:
    """Return the gradient of each sample's score at an activation that was given to a layer.

    Raises
    ------
    UsageError
        If the scores do not depend on it.
    """
    found: Sequence[Tensor | None] = [None]
    if scores.requires_grad:
        with torch.inference_mode(False), torch.enable_grad():
            found = torch.autograd.grad(scores.sum(), [leaf], allow_unused=True)
    return _depends(found[0], layer)


class IndependentError(UsageError):
    """The score does not depend on the layer."""


def _depends(slope: Tensor | None, layer: str) -> Tensor:
    if slope is None and layer == INPUT:
        raise IndependentError("the score does not depend on the input: the network detaches its features on the way")
    if slope is None:
        raise IndependentError(
            f"the score does not depend on layer '{layer}' (it lies behind the score, or on a branch that does not lead to it, "
            "or the network detaches its features); choose another layer"
        )
    return slope


def _single(values: Tensor) -> Tensor:
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def feature_map(name: str, output: Any, inputs: Tensor, layout: Layout | None) -> tuple[Tensor, Layout]:
    """Return the tensor of a layer's output that is its feature map, and its layout.

    Raises
    ------
    UsageError
        If there is none.
    """
    for item in output if isinstance(output, (tuple, list)) else (output,):
        if isinstance(item, Tensor) and item.is_floating_point() and item.shape[:1] == inputs.shape[:1]:
            known = layout if layout is not None and layout.fits(item) else guess(item.shape, inputs.shape)
            if known is not None:
                return item, known
    raise UsageError(
        f"layer '{name}' gives {_describe(output)}, not a feature map with {inputs.ndim - 2} spatial axes; "
        "choose another layer (`medcam inspect` lists them)"
    )


def with_tensor(output: Any, old: Tensor, new: Tensor) -> Any:
    """Return a layer's output with one tensor in it exchanged."""
    if output is old:
        return new
    replaced = [new if item is old else item for item in output]
    if isinstance(output, tuple):
        make: Callable[..., Any] = getattr(type(output), "_make", type(output))
        return make(replaced)
    return replaced


def _describe(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    return f"a {type(output).__name__}"
