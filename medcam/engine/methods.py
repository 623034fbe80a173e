"""The table of methods, and how a text with options names one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace

from jaxtyping import Bool, Float
from torch import Tensor

from medcam.engine import asking, cams, clusters, components, gradients, masks, perturbations
from medcam.engine.ablation import ablation_cam
from medcam.engine.cells import Cells
from medcam.engine.explainer import Explainer, rule
from medcam.engine.fullgrad import full_grad
from medcam.engine.study import Study
from medcam.errors import UsageError
from medcam.options import chosen

Make = Callable[..., Explainer]
Suspect = Callable[[Float[Tensor, "b c *t"]], Bool[Tensor, "b c"]]

_NEGATIVE = (
    "Grad-CAM++ is made for activations behind a ReLU; {value:.0%} of this layer's channels sum to less than zero, where its weights can "
    "be huge. Choose a layer behind a ReLU, or another method."
)
_EIGEN_SMOOTH = """\
Parameters
----------
eigen_smooth
    Whether the map is the first principal component of the weighted channels instead of their sum: less noise, and less of what few
    channels say.
"""
_CROSSING = (
    "In {value:.0%} of this layer's channels positive and negative activations cancel, where XGrad-CAM's weight does not exist; they take "
    "Grad-CAM's."
)


def weighing(
    weights: cams.WeightRule,
    *,
    pooled: bool = False,
    mean_only: bool = False,
    segmentation: bool = False,
    suspect: tuple[Suspect, str] | None = None,
) -> Make:
    """Return the row of a rule that gives weights for the activation's channels.

    Parameters
    ----------
    suspect
        Which channels the rule is not made for, and what to say of maps with any; `{value:.0%}` is their share.
    """

    def make(*, eigen_smooth: bool = False) -> Explainer:
        def cam(activation: Float[Tensor, "b c *t"], gradient: Float[Tensor, "b c *t"]) -> Float[Tensor, "b *t"]:
            if eigen_smooth:
                return components.eigen_smooth(cams.channel_weights(weights, activation, gradient), activation)
            return cams.cam(weights, activation, gradient)

        plain = rule(cam, pooled=pooled, mean_only=mean_only and not eigen_smooth, segmentation=segmentation)
        if suspect is None:
            return plain
        find, sentence = suspect

        def explain(study: Study) -> Float[Tensor, "b *t"] | Cells:
            share = find(study.activation).float().mean(1)
            study.note(sentence, where=share > 0, value=share)
            return plain.explain(study)

        return replace(plain, explain=explain)

    make.__doc__ = f"{inspect.getdoc(weights)}\n\n{_EIGEN_SMOOTH}"
    return make


def eigen_cam(*, centred: bool = False) -> Explainer:
    """Return the first principal component of the activation; it knows no target.

    Parameters
    ----------
    centred
        Whether each channel's mean is taken off first, as pytorch-grad-cam does; the map's mean is then zero.

    References
    ----------
    Muhammad and Yeasin, Eigen-CAM, IJCNN 2020 (arXiv 2008.00299).
    """
    return Explainer(
        lambda study: components.eigen_cam(study.activation, centred=centred), needs=frozenset({"activation"})
    )


def eigengrad_cam(*, centred: bool = False) -> Explainer:
    """Return the first principal component of activation times gradient.

    Parameters
    ----------
    centred
        Whether each channel's mean is taken off first, as pytorch-grad-cam's EigenGradCAM does.
    """
    return rule(lambda activation, gradient: components.eigengrad_cam(activation, gradient, centred=centred))


def seg_xres_cam(*, window: int | tuple[int, ...] = 2, pooling: str = "mean") -> Explainer:
    """Weigh each cell by the gradient pooled over its window; see `cams.seg_xres_cam_weights`.

    Parameters
    ----------
    window
        Sides of the windows in cells of the layer: one number, or one for each axis.
    pooling
        'mean' or 'max', of the gradient in a window.
    """

    def weights(activation: Float[Tensor, "b c *t"], gradient: Float[Tensor, "b c *t"]) -> Float[Tensor, "b c *t"]:
        return cams.seg_xres_cam_weights(activation, gradient, window=window, pooling=pooling)

    return rule(lambda activation, gradient: cams.cam(weights, activation, gradient), segmentation=True)


# A method is a name and what makes its explainer; keyword-only arguments of that are the method's options.
EXPLAINERS: dict[str, Make] = {
    "cam": asking.cam,
    "grad-cam": weighing(cams.grad_cam_weights, pooled=True, mean_only=True),
    "grad-cam++": weighing(cams.grad_cam_pp_weights, suspect=(cams.negative_channels, _NEGATIVE)),
    "smooth-grad-cam++": asking.smooth_grad_cam_pp,
    "xgrad-cam": weighing(cams.xgrad_cam_weights, suspect=(cams.crossing_channels, _CROSSING)),
    "hires-cam": weighing(cams.hires_cam_weights),
    "layer-cam": weighing(cams.layer_cam_weights),
    "eigen-cam": eigen_cam,
    "eigengrad-cam": eigengrad_cam,
    "finer-cam": asking.finer_cam,
    "shapley-cam": asking.shapley_cam,
    "ablation-cam": ablation_cam,
    "score-cam": masks.score_cam,
    "group-cam": masks.group_cam,
    "cluster-cam": clusters.cluster_cam,
    "cosine-cam": clusters.cosine_cam,
    "seg-grad-cam": weighing(cams.grad_cam_weights, pooled=True, mean_only=True, segmentation=True),
    "seg-hires-cam": weighing(cams.hires_cam_weights, segmentation=True),
    "seg-xres-cam": seg_xres_cam,
    "fullgrad": full_grad,
    "saliency": gradients.saliency,
    "input-x-gradient": gradients.input_times_gradient,
    "smoothgrad": gradients.smoothgrad,
    "guided-backpropagation": gradients.guided_backpropagation,
    "deconvnet": gradients.deconvnet,
    "guided-grad-cam": gradients.guided_grad_cam,
    "integrated-gradients": gradients.integrated_gradients,
    "occlusion": perturbations.occlusion,
    "rise": perturbations.rise,
}


def method_named(text: str) -> Explainer:
    """Return the explainer that a text names: `grad-cam`, or with options, `rise(masks=2000)`.

    Other packages add methods by the entry point group `medcam.explainers`.

    Raises
    ------
    UsageError
        If there is no such method or option, or an option's value is not a literal or not one that the method takes.
    """
    choice = chosen(text, EXPLAINERS, kind="method")
    try:
        explainer: Explainer = choice.function(**choice.options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{choice.name} does not take these options: {error}") from error
    return explainer
