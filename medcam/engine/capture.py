"""The activation of a layer and the gradient of a score at it, leaving no trace on the network.

The prefix, everything before the layer, runs without an autograd graph, so it costs what inference costs in time and memory; the graph
begins at the layer and `autograd.grad` goes no further back. All of it happens on a skeleton: a copy of the module tree that shares the
weights' storage, so hooks, modes, flags and `.grad` of the user's network are never touched, also after an error.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medcam.errors import ModelError, UsageError


@dataclass(frozen=True)
class Captured:
    """What one forward pass left: the layer's activation (a leaf of the graph), the network's output, and how often the layer ran."""

    activation: Float[Tensor, "b c *t"]
    output: Any
    calls: int


def capture(network: nn.Module, inputs: Float[Tensor, "b c *s"], layer: str) -> Captured:
    """Run the network once and keep the activation of `layer`, with a graph from there to the output.

    A layer that runs several times in one forward pass is captured at its last call. Its output may be a tuple or list: the first tensor
    in it that has the input's number of axes counts.

    Raises
    ------
    UsageError
        If the network has no such layer, the layer does not run, or its output has no spatial axes.
    ModelError
        If the network does not accept the input.
    """
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _args: Any, output: Any) -> Any:
        features = spatial_tensor(output, inputs.shape[0], inputs.ndim)
        if features is None:
            raise UsageError(
                f"layer '{layer}' gives {_describe(output)}, not a feature map with {inputs.ndim - 2} spatial axes; "
                "choose another layer (`medcam inspect` lists them)"
            )
        # Cutting anew at each call leaves the last call as the leaf. The clone keeps the leaf's values from a later in-place ReLU.
        leaf = features.detach().requires_grad_()
        leaves.append(leaf)
        torch.set_grad_enabled(True)
        return _with_tensor(output, features, leaf.clone())

    with skeleton(network) as copied, torch.inference_mode(False), torch.no_grad():
        handle = find_layer(copied, layer).register_forward_hook(cut)
        try:
            output = run(copied, inputs)
        finally:
            handle.remove()
    if not leaves:
        raise UsageError(f"layer '{layer}' does not run in this network's forward pass; choose another layer")
    return Captured(leaves[-1], output, len(leaves))


def gradient(captured: Captured, scores: Float[Tensor, " b"], *, keep_graph: bool = False) -> Float[Tensor, "b c *t"]:
    """Return the gradient of each sample's score at the captured activation.

    The samples' scores are summed before one backward pass, so each sample is explained as if alone as long as the network does not mix
    samples (batch statistics would).

    Raises
    ------
    UsageError
        If the scores do not depend on the layer.
    """
    found = None
    if scores.requires_grad:
        with torch.inference_mode(False), torch.enable_grad():
            (found,) = torch.autograd.grad(
                scores.sum(), captured.activation, retain_graph=keep_graph, allow_unused=True
            )
    if found is None:
        raise UsageError(
            "the score does not depend on this layer (it lies behind the score, or on a branch that does not lead to it, "
            "or the network detaches its features); choose another layer"
        )
    return found


def run(network: nn.Module, inputs: Tensor) -> Any:
    """Call the network, and say in one line what it was given if it does not accept it."""
    # A tensor born in inference mode cannot enter a graph; a clone made outside that mode can.
    given = inputs.clone() if inputs.is_inference() else inputs
    try:
        return network(given)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"the network does not accept an input of shape {tuple(inputs.shape)}: {words[0]}") from error


def find_layer(network: nn.Module, layer: str) -> nn.Module:
    """Return the submodule of that name.

    Raises
    ------
    UsageError
        If there is none; the nearest names are offered.
    """
    modules: dict[str, nn.Module] = {name: module for name, module in network.named_modules() if name}
    if layer in modules:
        return modules[layer]
    near = difflib.get_close_matches(layer, modules, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "`medcam inspect` lists the layers"
    raise UsageError(f"the network has no layer '{layer}'; {hint}")


@contextmanager
def skeleton(network: nn.Module) -> Iterator[nn.Module]:
    """Yield a network to run in place of the user's: a copy that shares the weights, or, where none can be made, the network under guard.

    Buffers are copied, since a batch norm in training mode writes to them.
    """
    plain = network
    for wrapper in ("_orig_mod", "module"):  # torch.compile; (Distributed)DataParallel
        inner = getattr(plain, wrapper, None)
        wraps = type(plain).__name__ in {"OptimizedModule", "DataParallel", "DistributedDataParallel"}
        if wraps and isinstance(inner, nn.Module):
            plain = inner
    try:
        copied = _shared_copy(plain)
    except Exception:  # noqa: BLE001  whatever an exotic module raises when it is copied, the guard below serves it
        copied = None
    if copied is not None:
        yield copied
        return
    with _guard(plain):
        yield plain


def _shared_copy(network: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for buffer in network.buffers():
        memo[id(buffer)] = buffer.detach().clone()
    for module in network.modules():
        for value in vars(module).values():
            # A tensor kept as a plain attribute (weight norm does this) may carry a graph, which deepcopy refuses.
            if isinstance(value, Tensor):
                memo.setdefault(id(value), value.detach())
    copied: nn.Module = copy.deepcopy(network, memo)
    return copied


@contextmanager
def _guard(network: nn.Module) -> Iterator[None]:
    kept = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def spatial_tensor(output: Any, batch: int, ndim: int) -> Tensor | None:
    """Return the first floating tensor in a layer's output that has `ndim` axes, the first of `batch` samples, or None."""
    for item in output if isinstance(output, (tuple, list)) else (output,):
        if isinstance(item, Tensor) and item.ndim == ndim and item.shape[0] == batch and item.is_floating_point():
            return item
    return None


def _with_tensor(output: Any, old: Tensor, new: Tensor) -> Any:
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
