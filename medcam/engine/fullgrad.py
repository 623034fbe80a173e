"""FullGrad: the score taken apart into what the input and what each bias of the network contributes, and where.

A network of ReLUs is linear around its input: score = gradient . input + sum over layers of (gradient at the layer's output) . bias. A
batch norm with fixed statistics has a bias that its running mean implies; any other module y = f(x) has the intercept of its tangent,
y - J x, which is 0 for ReLU and pooling. All terms together, which add up to the score, are the full gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from medcam.engine.capture import INPUT, capture, gradients
from medcam.engine.cells import on_voxels
from medcam.engine.explainer import Explainer
from medcam.engine.footprint import Footprint, even_spread, walk
from medcam.engine.layout import Layout, guess, to_channels_first
from medcam.engine.rectifiers import is_scripted
from medcam.engine.settled import Target
from medcam.engine.study import Study
from medcam.errors import UsageError
from medcam.options import one_of

# A gap above this share of the score is worth a note.
_GAP = 0.01
# Modules f with f(x) = J x, so without an intercept; for them no tangent is worked out.
_NO_INTERCEPT = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Flatten, nn.Unflatten, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d,
    nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)  # fmt: skip


def full_grad(*, rescale: str = "channel") -> Explainer:
    """Add up the sizes of all terms of the full gradient, each brought to the input from where its layer's cells lie.

    Terms without a place, as of fully connected layers, count for the sum that is checked and are not on the map, as in the authors' code.
    Cost: three forward passes.

    Parameters
    ----------
    rescale
        What is brought to 0..1 before terms are added: each 'channel' of each term (the paper), or each 'layer' with all its channels (the
        authors' code). 'none' adds the signed terms as they are.

    References
    ----------
    Srinivas and Fleuret, Full-Gradient Representation for Neural Network Visualization, NeurIPS 2019 (arXiv 1905.00780): the decomposition,
    and the map as the sum over layers l and channels c of psi(bias term), psi being absolute value, rescaling and upsampling.
    """
    one_of("rescale", rescale, tuple(_RESCALE))
    return Explainer(lambda study: _full_grad(study, _RESCALE[rescale]), needs=frozenset())


def _full_grad(study: Study, psi: Callable[[Tensor], Tensor]) -> Tensor:
    if is_scripted(study.network):
        raise UsageError(
            "fullgrad looks at every layer, and TorchScript keeps them closed: load the network as plain modules or as a torch.export file "
            "(.pt2), or choose a method that looks at the input alone"
        )
    places = _Places(study.network, study.inputs)
    sums: list[Tensor] = []
    maps: dict[tuple[Footprint, tuple[int, ...]], Tensor] = {}

    def visit(term: BiasTerm) -> None:
        sums.append(_each(term.values, study.inputs.shape[0]))
        found = places.of(term)
        if found is not None:
            layout, where = found
            flat = psi(to_channels_first(term.values, layout)).sum(1)
            # What lies on the same cells is interpolated once.
            key = (where, layout.grid)
            maps[key] = maps[key] + flat if key in maps else flat

    slope, scores = full_gradient(study.network, study.inputs, target=study.clean.target, visit=visit)
    of_input = slope * study.inputs
    _say_what_is_missing(study, scores, sums, of_input.flatten(1).sum(1))
    total = psi(of_input).sum(1)
    for (where, _), values in maps.items():
        total = total + on_voxels(values, where.stride, where.offset, tuple(study.inputs.shape[2:]))
    return total


def _each(values: Tensor, batch: int) -> Float[Tensor, " b"]:
    """Return the sum of a term for each sample, whose windows stand one behind another; of other shapes a sample's share is not known."""
    if values.shape[0] % batch:
        return values.new_zeros(batch)
    return values.reshape(batch, -1).sum(1)


def _say_what_is_missing(study: Study, scores: Tensor, sums: list[Tensor], of_input: Tensor) -> None:
    if not sums:
        study.note("No layer with a bias was found, so this map is the gradient times the input alone.")
    missing = (scores - sum(sums, of_input)).abs() / scores.abs().clamp(min=torch.finfo(scores.dtype).tiny)
    study.note(
        "The terms of this map leave {value:.0%} of the score unexplained: the network is not linear around its input in steps that medcam "
        "can follow (attention, products of features, or a score that is not linear in the output).",
        where=missing > _GAP,
        value=missing,
    )


@dataclass(frozen=True, eq=False)
class BiasTerm:
    """What the bias of one layer contributes to each sample's score: the gradient at the layer's output times the bias.

    `values` are laid out as the layer's output; `call` counts the layer's calls in one pass from 0.
    """

    layer: str
    call: int
    values: Float[Tensor, "b ..."]
    channels_first: bool


class _Places:
    """Where each call of each layer has its cells, by a probe of the network."""

    def __init__(self, network: nn.Module, inputs: Tensor) -> None:
        self._inputs = tuple(inputs.shape)
        self._seen: dict[tuple[str, int], tuple[Layout, Footprint]] = {}
        calls: dict[str, int] = {}
        for seen in walk(network, inputs).seen:
            number = calls[seen.name] = calls.get(seen.name, -1) + 1
            self._seen[seen.name, number] = (seen.layout, seen.footprint)

    def of(self, term: BiasTerm) -> tuple[Layout, Footprint] | None:
        """Return the layout and footprint of a term, or None if it has no place."""
        if term.values.shape[0] != self._inputs[0]:
            return None
        seen = self._seen.get((term.layer, term.call))
        if seen is not None and seen[0].fits(term.values):
            return seen
        shape = tuple(term.values.shape)
        if term.channels_first and len(shape) == len(self._inputs):
            likely: Layout | None = Layout("channels first", shape[2:])
        else:
            likely = guess(shape, self._inputs)
        return None if likely is None else (likely, even_spread(self._inputs[2:], likely.grid))


def full_gradient(
    network: nn.Module, inputs: Float[Tensor, "b c *s"], *, target: Target, visit: Callable[[BiasTerm], None]
) -> tuple[Float[Tensor, "b c *s"], Float[Tensor, " b"]]:
    """Run the network and its backward pass once, visit the bias term of each layer as the gradient comes by, and return the gradient at
    the input and the scores.

    The terms and gradient . input add up to the score if all of the network's work is done by modules that have no children, additions and
    functional ReLUs. Only one term is alive at a time.

    Parameters
    ----------
    network
        A skeleton: it is hooked.
    """
    handles = []
    try:
        for name, module in network.named_modules():
            handles.extend(_watch(name, module, visit))
        captured = capture(network, inputs, [INPUT])
        with torch.inference_mode(False), torch.enable_grad():
            scores = target(captured.output)
        return gradients(captured, scores, [INPUT])[INPUT], scores.detach()
    finally:
        for handle in handles:
            handle.remove()


def _watch(name: str, module: nn.Module, visit: Callable[[BiasTerm], None]) -> list[Any]:
    """Hang on a module what works out its bias in the forward pass and its term in the backward pass."""
    affine = isinstance(module, (_ConvNd, nn.Linear)) or _is_fixed(module)
    if isinstance(module, _NO_INTERCEPT) or (not affine and next(module.children(), None) is not None):
        return []
    given: list[Tensor] = []
    calls = [0]

    def before(_module: nn.Module, args: Any) -> None:
        # A copy, since an in-place module overwrites what it was given.
        given[:] = [a.detach().clone() for a in args if isinstance(a, Tensor)]

    def after(module: nn.Module, _args: Any, output: Any) -> Any:
        result, call = output, calls[0]
        calls[0] += 1
        if isinstance(output, Tensor) and output.requires_grad:
            bias = _bias(module, output.ndim) if affine else _intercept(module, given, output)
            if bias is not None:
                output.register_hook(lambda g: visit(BiasTerm(name, call, g * bias, isinstance(module, _ConvNd))))
                # An in-place call on a view, as an instance norm gives, would cut the hook off.
                result = output.clone() if output._is_view() else output
        given.clear()
        return result

    handles = [module.register_forward_hook(after)]
    return handles if affine else [*handles, module.register_forward_pre_hook(before)]


def _is_fixed(module: nn.Module) -> bool:
    """Whether it is a batch norm that uses the statistics of its training."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None and not module.training


def _bias(module: Any, ndim: int) -> Tensor | None:
    """Return the bias of an affine module, ready to be multiplied with its output."""
    bias: Tensor | None = module.bias
    if _is_fixed(module):
        scale = torch.rsqrt(module.running_var + module.eps) * (1 if module.weight is None else module.weight)
        implied: Tensor = -module.running_mean * scale
        bias = implied if bias is None else bias + implied
    if bias is None or isinstance(module, nn.Linear):
        return bias
    return bias.reshape(-1, *[1] * (ndim - 2))


def _intercept(module: nn.Module, given: list[Tensor], output: Tensor) -> Tensor | None:
    """Return y - J x of a module's tangent at its input, or None if it has no such thing (several inputs, no second derivative)."""
    if len(given) != 1 or not given[0].is_floating_point():
        return None
    x = given[0].requires_grad_()
    try:
        y = module.forward(x.clone())
        # J x by two backward passes: the first gives v -> J^T v, which is linear in v, so its transpose applied to x is J x.
        v = torch.zeros_like(y).requires_grad_()
        (pulled,) = torch.autograd.grad(y, x, v, create_graph=True)
        (pushed,) = torch.autograd.grad(pulled, v, x.detach())
    except (RuntimeError, TypeError, NotImplementedError, AttributeError):
        return None
    return output.detach() - pushed


def _rescaled(axes: Callable[[Tensor], tuple[int, ...]]) -> Callable[[Tensor], Tensor]:
    """Return the function that brings sizes to 0..1 along axes; where all are the same the result is 0."""

    def rescale(term: Tensor) -> Tensor:
        size = term.abs()
        size = size - size.amin(axes(term), keepdim=True)
        highest = size.amax(axes(term), keepdim=True)
        return size / torch.where(highest > 0, highest, 1)

    return rescale


_RESCALE: dict[str, Callable[[Tensor], Tensor]] = {
    "channel": _rescaled(lambda term: tuple(range(2, term.ndim))),
    "layer": _rescaled(lambda term: tuple(range(1, term.ndim))),
    "none": lambda term: term,
}
