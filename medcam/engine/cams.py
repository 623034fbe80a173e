"""The class-activation rules: pure functions of a layer's activation and the score's gradient at it.

Each takes two tensors `b c *t` and returns a signed map `b *t`, in 2D and 3D alike. None of them applies the final ReLU of its paper:
relevance stays signed until it is drawn.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def grad_cam(activation: Float[Tensor, "b c *t"], gradient: Float[Tensor, "b c *t"]) -> Float[Tensor, "b *t"]:
    """Weigh each channel by the mean of its gradient, and sum.

    References
    ----------
    Selvaraju et al., Grad-CAM, ICCV 2017, eqs. 1 and 2, without the ReLU of eq. 2.
    """
    weights = gradient.flatten(2).mean(2)
    return (weights.unsqueeze(-1) * activation.flatten(2)).sum(1).reshape(gradient.shape[0], *gradient.shape[2:])
