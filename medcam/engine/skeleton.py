"""A network to run in place of the user's: a copy of the module tree that shares the weights.

Hooks, modes, flags and `.grad` of the user's network are never touched, also after an error, and what medcam changes for the time of a run
(what a convolution keeps, what a module answers) it changes on the copy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from medcam.engine.copying import copied
from medcam.errors import ModelError, UsageError


@contextmanager
def skeleton(network: nn.Module) -> Iterator[nn.Module]:
    """Yield a network to run in place of the user's: a copy that shares the weights, or, where none can be made, the network under guard.

    Where a module is in training mode buffers are copied, since a batch norm then writes to them.
    """
    plain = network
    for wrapper in ("_orig_mod", "module"):  # torch.compile; (Distributed)DataParallel
        inner = getattr(plain, wrapper, None)
        wraps = type(plain).__name__ in {"OptimizedModule", "DataParallel", "DistributedDataParallel"}
        if wraps and isinstance(inner, nn.Module):
            plain = inner
    try:
        with torch.inference_mode(False):  # a buffer that is copied in inference mode could not enter a graph
            shared = _shared_copy(plain)
    except Exception:  # noqa: BLE001  whatever an exotic module raises when it is copied, the guard below serves it
        shared = None
    if shared is not None:
        yield shared
        return
    with _guard(plain):
        yield plain


def run(network: nn.Module, inputs: Tensor) -> Any:
    """Call the network, in the autocast that its user has asked for, and say in one line what it was given if it does not accept it."""
    # A tensor born in inference mode cannot enter a graph; a clone made outside that mode can.
    given = inputs.clone() if inputs.is_inference() else inputs
    try:
        with vars(network).get(_PRECISION, nullcontext)():
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
    # A module that stands in two places has both names.
    every = network.named_modules(remove_duplicate=False)
    modules: dict[str, nn.Module] = {name: module for name, module in every if name}
    if layer in modules:
        return modules[layer]
    near = difflib.get_close_matches(layer, modules, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "`medcam inspect` lists the layers"
    raise UsageError(f"the network has no layer '{layer}'; {hint}")


def mixes_samples(network: nn.Module) -> bool:
    """Tell whether some batch norm of the network uses the statistics of the batch, so that samples do not stand alone."""
    return any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None)
        for module in network.modules()
    )


def _shared_copy(network: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for module in network.modules():
        for buffer in module.buffers(recurse=False):
            memo.setdefault(id(buffer), buffer.detach().clone() if module.training else buffer.detach())
        for value in vars(module).values():
            # A tensor kept as a plain attribute (weight norm does this) may carry a graph, which deepcopy refuses.
            if isinstance(value, Tensor):
                memo.setdefault(id(value), value.detach())
    shared = copied(network, memo)
    for module in shared.modules():
        _forget_input(module)
    vars(shared)[_COPY] = True
    device = next((p.device.type for p in network.parameters()), "cpu")
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    vars(shared)[_PRECISION] = partial(torch.autocast, device, dtype=dtype, enabled=enabled)
    return shared


_COPY = "_medcam_copy"
# What medcam itself computes, it computes in single precision; the network runs in the autocast that held where its copy was made.
_PRECISION = "_medcam_precision"


def is_copy(network: nn.Module) -> bool:
    """Tell whether a network is medcam's own copy, which may be changed, and not the user's under guard."""
    return _COPY in vars(network)


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


_PLAIN = {nn.Conv1d, nn.Conv2d, nn.Conv3d}
_TRANSPOSED = {nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d}


def _forget_input(module: nn.Module) -> None:
    """Let a convolution of the copy keep only its input's shape for the backward pass: frozen weights need no more, and torch keeps it all.

    What torch itself would do differently (autocast, other paddings, forward-mode derivatives) is left to it.
    """
    if type(module) not in _PLAIN | _TRANSPOSED or "forward" in vars(module):
        return
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        return
    module.forward = partial(_lean_forward, module, module.forward)


def _lean_forward(module: Any, plain: Any, inputs: Tensor, *rest: Any, **named: Any) -> Tensor:
    lean = torch.is_grad_enabled() and inputs.requires_grad and inputs.ndim == module.weight.ndim
    if not lean or rest or named or torch.is_autocast_enabled(inputs.device.type):
        result: Tensor = plain(inputs, *rest, **named)
        return result
    geometry = (
        module.stride, module.padding, module.dilation, module.transposed, module.output_padding, module.groups,
    )  # fmt: skip
    found: Tensor = _FrozenConvolution.apply(  # type: ignore[no-untyped-call]
        inputs, module.weight, module.bias, geometry
    )
    return found


class _FrozenConvolution(torch.autograd.Function):
    """A convolution whose weights need no gradient, so that its input need not be kept."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, geometry: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.geometry, ctx.shape = geometry, inputs.shape
        found: Tensor = torch.ops.aten.convolution(inputs, weight, bias, *geometry)
        return found

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        if slope.device.type == "cpu" and (found := _backward_as_forward(slope, weight, ctx.geometry)) is not None:
            return found, None, None, None
        stand_in = slope.new_empty(1).expand(ctx.shape)
        found = torch.ops.aten.convolution_backward(slope, stand_in, weight, None, *ctx.geometry, [True, False, False])
        return found[0], None, None, None


def _backward_as_forward(slope: Tensor, weight: Tensor, geometry: Any) -> Tensor | None:
    """Return the gradient at a convolution's input by a convolution of the gradient at its output, or None where that is not one.

    It is the same number. On a CPU torch's own backward takes several times as long and as much memory for few channels at full size.
    """
    stride, padding, dilation, transposed, _, groups = geometry
    none = [0] * (slope.ndim - 2)
    found: Tensor
    if transposed:
        found = torch.ops.aten.convolution(slope, weight, None, stride, padding, dilation, False, none, groups)
        return found
    reach = [d * (n - 1) - p for d, n, p in zip(dilation, weight.shape[2:], padding, strict=True)]
    if groups != 1 or any(step != 1 for step in stride) or min(reach) < 0:
        return None
    turned = weight.flip(*range(2, weight.ndim)).transpose(0, 1).contiguous()
    found = torch.ops.aten.convolution(slope, turned, None, stride, reach, dilation, False, none, groups)
    return found
