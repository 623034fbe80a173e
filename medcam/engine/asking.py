"""Class-activation methods that ask more of the network than one activation and one gradient."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from medcam.engine import cams
from medcam.engine.explainer import Explainer
from medcam.engine.study import Study
from medcam.engine.targets import finer
from medcam.errors import UsageError

# How far a gradient may stray from its channel's mean, or a score from a straight line, before a head is no average and linear layer.
_STRAY = 1e-4


def cam() -> Explainer:
    """Weigh each channel by the class's weight in the last layer: the original CAM.

    Defined for networks that average the layer over its cells and pass the averages through one linear layer; any other is refused.

    References
    ----------
    Zhou et al., Learning deep features for discriminative localization, CVPR 2016, eq. 2.
    """

    def explain(study: Study) -> Float[Tensor, "b *t"]:
        activation, slope = study.activation, study.gradient
        slack = max(_STRAY, 16 * study.rounding)
        mean = slope.flatten(2).mean(2)
        stray = (slope.flatten(2) - mean[..., None]).abs().amax()

        def scaled(some: slice) -> Float[Tensor, "m b c *t"]:
            return torch.stack([activation * factor for factor in [0.0, 2.0][some]])

        none, double = study.scores_from(2, scaled).unbind()
        bend = (double - 2 * study.scores + none).abs().amax()
        straight = bend <= slack * (double.abs() + none.abs()).amax() + slack
        if not (bool(stray <= slack * mean.abs().amax()) and bool(straight)):
            raise UsageError(
                f"layer '{study.layer}' is not averaged and passed to one linear layer, so the original CAM is not defined for it; "
                "grad-cam is its generalisation"
            )
        return cams.combine(cams.cam_weights(activation, slope), activation)

    return Explainer(explain, needs=frozenset({"activation", "gradient", "tail"}))


def smooth_grad_cam_pp(
    *, samples: int = 25, sigma: float = 0.15, numerator: Literal["paper", "corrected"] = "paper"
) -> Explainer:
    """Weigh each channel as Grad-CAM++ does, from gradients averaged over noisy copies of the input.

    Parameters
    ----------
    samples
        How many noisy copies; they run one after another, so memory does not grow with them.
    sigma
        The noise's standard deviation as a share of each sample's range of intensities.
    numerator
        'paper', or 'corrected' as torchcam has it; see `cams.smooth_grad_cam_pp_weights`.

    References
    ----------
    Omeiza et al., Smooth Grad-CAM++, arXiv 1908.01224, eqs. 7 to 9.
    """
    if samples < 1 or not sigma >= 0:
        raise UsageError(
            f"smooth-grad-cam++ takes at least one sample and a sigma of at least 0, not {samples} and {sigma}"
        )

    def explain(study: Study) -> Float[Tensor, "b *t"]:
        scale = cams.gradient_scale(study.gradient)
        along = scale.reshape(-1, *[1] * (study.activation.ndim - 1))
        powers: list[Tensor] = []
        for noisy in study.noisy(samples, sigma):
            _, slope = study.at(noisy)
            once = slope / along
            made = [once, once**2, once**3]
            powers = made if not powers else [total.add_(one) for total, one in zip(powers, made, strict=True)]
        first, second, third = (total / samples for total in powers)
        weights = cams.smooth_grad_cam_pp_weights(
            study.activation, first, second, third, scale=scale, numerator=numerator
        )
        return cams.combine(weights, study.activation)

    return Explainer(explain)


def shapley_cam(*, per_cell: bool = False) -> Explainer:
    """Weigh each channel by its gradient less half the curvature; see `cams.shapley_cam_weights`.

    Parameters
    ----------
    per_cell
        Whether each cell keeps its own weight instead of the mean over its channel.

    References
    ----------
    Cai, CAMs as Shapley value-based explainers, arXiv 2501.06261.
    """

    def explain(study: Study) -> Float[Tensor, "b *t"]:
        weights = cams.shapley_cam_weights(study.gradient, study.curvature(), per_cell=per_cell)
        return cams.combine(weights, study.activation)

    return Explainer(explain, needs=frozenset({"activation", "gradient", "graph"}), pooled=not per_cell)


def finer_cam(*, references: int = 3, strength: float = 0.6) -> Explainer:
    """Weigh each channel as Grad-CAM does, for what tells the class from those most similar to it.

    Takes a target that is one class; `targets.finer` puts the same question to any other method.

    Parameters
    ----------
    references, strength
        How many similar classes, and how strongly they count; see `targets.finer`.

    References
    ----------
    Zhang et al., Finer-CAM, CVPR 2025 (arXiv 2501.11309), sec. 3.
    """

    def explain(study: Study) -> Float[Tensor, "b *t"]:
        classes = study.clean.target.classes
        if classes is None:
            raise UsageError("finer-cam compares one class with others: ask it about one class, by number or name")
        asked = study.settle(finer(classes.tolist(), count=references, strength=strength))
        for n, notes in enumerate(asked.notes):
            for note in notes:
                study.note(note.replace("{", "{{").replace("}", "}}"), [n])
        with torch.inference_mode(False), torch.enable_grad():
            slope = study.gradient_of(asked(study.clean.captured.output))
        return cams.cam(cams.grad_cam_weights, study.activation, slope)

    return Explainer(explain, needs=frozenset({"activation", "gradient", "graph"}), pooled=True)
