"""Methods that look at the gradient of the score at the input itself.

Each function here takes a method's options and returns its explainer, whose map has the input's size. A gradient alone says how the score
would move if a voxel grew brighter; only a gradient that is multiplied with the image (`input_times_gradient`, `integrated_gradients`) says
what the voxel's present value contributes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from medcam.engine.baselines import baseline as baseline_image
from medcam.engine.baselines import baseline_kind
from medcam.engine.cams import cam, grad_cam_weights
from medcam.engine.capture import INPUT, capture
from medcam.engine.capture import gradients as gradients_of
from medcam.engine.cells import Cells
from medcam.engine.explainer import Explainer
from medcam.engine.rectifiers import Rule, propagating
from medcam.engine.study import Study
from medcam.options import at_least, not_negative, one_of

# How one number a voxel is made of the gradients at its channels.
_CHANNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda gradient: gradient.abs().amax(1),
    "sum": lambda gradient: gradient.sum(1),
}
# A completeness gap above this share of the change in score is worth a note.
_GAP = 0.05
# A graph from the input on, which several methods may share.
_FROM_INPUT = frozenset({"input gradient", "graph"})


def saliency(*, channels: str = "max") -> Explainer:
    """Give the score's gradient at the input: how much each voxel could move the score.

    Parameters
    ----------
    channels
        'max', the paper's: the largest absolute value among the channels; a magnitude, never negative. 'sum': the signed sum, positive
        where a brighter voxel raises the score.

    References
    ----------
    Simonyan et al., Deep Inside Convolutional Networks, 2014 (arXiv 1312.6034), section 3.1.
    """
    combine = _channels(channels)
    return Explainer(lambda study: combine(_clean(study)), needs=_FROM_INPUT)


def input_times_gradient() -> Explainer:
    """Multiply the gradient with the image and sum over channels: the score's change if a voxel went to 0, to first order.

    References
    ----------
    Shrikumar et al., Not Just a Black Box, 2016 (arXiv 1605.01713), section 3.
    """
    return Explainer(lambda study: (_clean(study) * study.inputs).sum(1), needs=_FROM_INPUT)


def smoothgrad(*, samples: int = 50, sigma: float | int = 0.15, channels: str = "max") -> Explainer:
    """Average the signed gradient over noisy copies of the image.

    They run one after another, so memory does not grow with them. Cost: two forward passes a copy.

    Parameters
    ----------
    samples
        How many noisy copies. The paper finds little gain beyond 50.
    sigma
        The noise's standard deviation as a share of each sample's range of intensities; the paper uses 0.1 to 0.2.
    channels
        As in `saliency`, applied to the mean.

    References
    ----------
    Smilkov et al., SmoothGrad, 2017 (arXiv 1706.03825), section 2.
    """
    at_least("samples", samples)
    not_negative("sigma", sigma)
    combine = _channels(channels)

    def explain(study: Study) -> Float[Tensor, "b *s"]:
        total = _zeros(study)
        for noisy in study.noisy(samples, float(sigma)):
            total += _at(study, noisy)
        return combine(_blank_is_said(study, total / samples))

    return Explainer(explain, needs=frozenset())


def guided_backpropagation(*, channels: str = "sum") -> Explainer:
    """Give the gradient at the input where every rectifier passes only what is positive and active (see `rectifiers`).

    Parameters
    ----------
    channels
        As in `saliency`.

    References
    ----------
    Springenberg et al., Striving for Simplicity, 2015 (arXiv 1412.6806), section 3.4.
    """
    combine = _channels(channels)
    return Explainer(lambda study: combine(_by_rule(study, "guided")), needs=_FROM_INPUT | {"rectifiers"})


def deconvnet(*, channels: str = "sum") -> Explainer:
    """Give the gradient at the input where every rectifier passes only what is positive, active or not (see `rectifiers`).

    It starts from the score rather than from one unit of a layer; max pooling passes to where the maximum was, as the paper's switches do.

    Parameters
    ----------
    channels
        As in `saliency`.

    References
    ----------
    Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, 2014 (arXiv 1311.2901), section 2.1.
    """
    combine = _channels(channels)
    return Explainer(lambda study: combine(_by_rule(study, "deconvnet")), needs=_FROM_INPUT | {"rectifiers"})


def guided_grad_cam(*, channels: str = "sum") -> Explainer:
    """Multiply Guided Backpropagation with a layer's Grad-CAM, whose negative values count as 0, interpolated to the input.

    Both come from one forward pass: two forward passes' cost, and the backward pass from the score to the layer.

    Parameters
    ----------
    channels
        As in `saliency`, for Guided Backpropagation.

    References
    ----------
    Selvaraju et al., Grad-CAM, ICCV 2017: eqs. 1 and 2, with the ReLU, and the section on Guided Grad-CAM.
    """
    combine = _channels(channels)

    def explain(study: Study) -> Cells:
        where = study.on_input(cam(grad_cam_weights, study.activation, study.gradient).relu())
        values = combine(_by_rule(study, "guided")) * where
        return Cells(values, (1.0,) * (values.ndim - 1), (0.0,) * (values.ndim - 1))

    return Explainer(explain, needs=_FROM_INPUT | {"rectifiers", "activation", "gradient"}, pooled=True)


def integrated_gradients(
    *, baseline: str | float | int | Tensor = "min", steps: int = 32, rule: str = "gauss-legendre"
) -> Explainer:
    """Average the gradient along the straight path from a baseline to the image, and multiply with their difference, summed over channels.

    Its sum over voxels is the score's change from baseline to image, up to the error of the steps, which a note tells if it is above 5 %.
    The steps run one after another, so memory does not grow with them. Cost: two forward passes a step.

    Parameters
    ----------
    baseline
        Where the path starts: 'zero', 'min', 'mean', 'blur', a number, or a tensor that broadcasts to the input. 'min', the default, is the
        image's own black: in a CT or MRI air, which then gets no relevance. The paper's black image is 'zero' where the network sees
        intensities from 0 on.
    steps
        How many gradients along the path.
    rule
        Where they lie: 'gauss-legendre' (exact for smooth paths with few steps), 'midpoint', 'trapezoid' (both ends count half), or
        'right', the paper's eq. 3.

    References
    ----------
    Sundararajan et al., Axiomatic Attribution for Deep Networks, ICML 2017 (arXiv 1703.01365), eqs. 1 and 3, proposition 1.
    """
    kind = baseline if isinstance(baseline, Tensor) else baseline_kind(baseline)
    path = _quadrature(rule, steps)

    def explain(study: Study) -> Float[Tensor, "b *s"]:
        start = baseline_image(study.inputs, kind)
        way, total = study.inputs - start, _zeros(study)
        for place, weight in path:
            total.add_(_at(study, start + place * way), alpha=weight)
        values = (_blank_is_said(study, total) * way).sum(1)
        _say_gap(study, values, study.scores - study.scores_of(1, lambda _: start[None])[0])
        return values

    return Explainer(explain, needs=frozenset())


def _say_gap(study: Study, values: Tensor, change: Tensor) -> None:
    found = values.flatten(1).sum(1)
    gap = (found - change).abs() / torch.maximum(found.abs(), change.abs()).clamp(min=torch.finfo(found.dtype).tiny)
    study.note(
        "The relevance does not add up to the score's change from the baseline: it is off by {value:.0%} of it. Use more steps; a network "
        "with instance norms jumps at a constant image, so that it needs another baseline, such as 'blur'.",
        where=gap > _GAP,
        value=gap,
    )


def _clean(study: Study) -> Float[Tensor, "b c *s"]:
    """Return the gradient of the clean pass at the input."""
    slope = gradients_of(study.clean.captured, study.clean.live_scores, [INPUT], keep_graph=True)[INPUT]
    return _blank_is_said(study, slope)


def _by_rule(study: Study, rule: Rule) -> Float[Tensor, "b c *s"]:
    """Return the same by a rule for rectifiers."""
    with propagating(study.network, study.clean.live_scores, rule) as met:
        slope = gradients_of(study.clean.captured, study.clean.live_scores, [INPUT], keep_graph=True)[INPUT]
    if not met.count:
        study.note("This network has no rectifier that the rule could act on, so this is the plain gradient.")
    if met.unknown:
        names = ", ".join(met.unknown)
        study.note(f"The network has operations of its own ({names}); the gradient passes them without the rule.")
    return _blank_is_said(study, slope)


def _at(study: Study, inputs: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
    """Return the gradient at another input, by a pass of its own."""
    captured = capture(study.network, inputs, [INPUT])
    with torch.inference_mode(False), torch.enable_grad():
        scores = study.clean.target(captured.output)
    return gradients_of(captured, scores, [INPUT])[INPUT]


def _blank_is_said(study: Study, slope: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
    study.note(
        "No gradient of the score reaches the input (a saturated or dead output, or the rule leaves nothing); the map is blank.",
        where=slope.flatten(1).abs().amax(1) == 0,
    )
    return slope


def _zeros(study: Study) -> Float[Tensor, "b c *s"]:
    return torch.zeros_like(study.inputs, dtype=torch.promote_types(study.inputs.dtype, torch.float32))


def _quadrature(rule: str, steps: int) -> tuple[tuple[float, float], ...]:
    """Return places between 0 and 1 and their weights, which sum to 1."""
    one_of("rule", rule, ("gauss-legendre", "midpoint", "trapezoid", "right"))
    at_least("steps", steps, 2 if rule == "trapezoid" else 1)
    if rule == "gauss-legendre":
        return _gauss_legendre(steps)
    if rule == "trapezoid":
        return tuple((n / (steps - 1), (0.5 if n in (0, steps - 1) else 1.0) / (steps - 1)) for n in range(steps))
    shift = 0.5 if rule == "midpoint" else 1.0
    return tuple(((n + shift) / steps, 1 / steps) for n in range(steps))


def _gauss_legendre(steps: int) -> tuple[tuple[float, float], ...]:
    """Return Gauss-Legendre places and weights on 0..1: eigenvalues of the Legendre recurrence (Golub & Welsch 1969)."""
    order = torch.arange(1, steps, dtype=torch.float64)
    beside = order / (4 * order**2 - 1).sqrt()
    places, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return tuple(zip(((places + 1) / 2).tolist(), vectors[0].square().tolist(), strict=True))


def _channels(name: str) -> Callable[[Tensor], Tensor]:
    one_of("channels", name, tuple(_CHANNELS))
    return _CHANNELS[name]
