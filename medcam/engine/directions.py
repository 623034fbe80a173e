"""More targets than channels: Grad-CAM's weights of every target from one forward-mode pass for each channel.

The weight of channel k is the mean of the score's gradient over the channel's cells, which is the derivative of the score in the direction
of that channel, divided by the number of cells. One pass of what follows the layer, with a tangent that is 1 in channel k and 0 elsewhere,
gives it for all targets at once; a backward pass gives all channels for one target. So the fewer of targets and channels decide.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import forward_ad

from medcam.engine.capture import slope_at
from medcam.engine.classes import scored_together
from medcam.engine.doubts import gradient_sizes
from medcam.engine.settled import Settled
from medcam.engine.tail import Tail

# Directions that run side by side: each takes the memory of what follows the layer.
_AT_ONCE = 4


@dataclass(frozen=True, eq=False)
class Mean:
    """A gradient's mean over each channel, `b c`, and its `doubts.gradient_sizes`."""

    gradient: Float[Tensor, "b c"]
    sizes: tuple[Float[Tensor, " b"], Float[Tensor, " b"]]


def cheaper(targets: int, channels: int) -> bool:
    """Tell whether directions cost less than backward passes: each runs what follows the layer once for its tangent, a few
    share its values, and one backward pass tells whether the means are more than rounding noise."""
    return targets > 2 * channels + 2


def _derivatives(
    scored: Callable[[Tensor], Tensor], activation: Float[Tensor, "b c *t"], some: Int[Tensor, " k"]
) -> Float[Tensor, "k b targets"]:
    """Return the derivative of all scores in the direction of some channels."""
    one_hot = torch.zeros(len(some), activation.shape[1], device=activation.device, dtype=activation.dtype)
    one_hot.scatter_(1, some[:, None], 1)

    def along(direction: Float[Tensor, " c"]) -> Tensor:
        tangent = direction.reshape(1, -1, *[1] * (activation.ndim - 2)).expand_as(activation)
        slopes: Tensor = torch.func.jvp(scored, (activation,), (tangent,))[1]
        return slopes

    try:
        # Side by side they share the values, and only tangents run for each.
        found: Tensor = torch.func.vmap(along)(one_hot)
    except RuntimeError:  # an operation that cannot be vectorised, or a branch that looks at values
        found = torch.stack([along(direction) for direction in one_hot])
    return found


def _prepare() -> None:
    """Let torch load what forward mode needs: at first use it compiles some derivatives, and warns of the compiler that it takes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        with forward_ad.dual_level():
            forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


def mean_gradients(tail: Tail, activation: Float[Tensor, "b c *t"], targets: Sequence[Settled]) -> list[Mean]:
    """Return for each target the mean over each channel of its score's gradient at the activation.

    The mean absolute gradient is measured for the first target only. Whether means cancel is a matter of the network, so the others take
    the first one's share.

    Raises
    ------
    UsageError
        If the first score does not depend on the layer.
    """
    channels, cells = activation.shape[1], activation[0, 0].numel()

    together = scored_together(targets)

    def scored(features: Tensor) -> Tensor:
        return together(tail.run(features))

    _prepare()
    with torch.inference_mode(False), torch.no_grad():
        parts = []
        for start in range(0, channels, _AT_ONCE):
            some = torch.arange(start, min(start + _AT_ONCE, channels), device=activation.device)
            parts.append(_derivatives(scored, activation, some))
        slopes = torch.cat(parts) / cells  # c b targets
        leaf = activation.detach().requires_grad_()
        with torch.enable_grad():
            scores = targets[0](tail.run(leaf))
        first_size, first_mean = gradient_sizes(slope_at(scores, leaf, tail.layer))
    results = []
    for gradient in slopes.permute(2, 1, 0).contiguous():
        mean = gradient.abs().amax(1)
        size = torch.where((first_mean > 0) & (mean > 0), first_size * mean / first_mean, first_size)
        results.append(Mean(gradient, (size, mean)))
    return results
