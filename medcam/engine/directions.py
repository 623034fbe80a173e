"""More targets than channels: Grad-CAM's weights of every target from one forward-mode pass for each channel.

The weight of channel k is the mean of the score's gradient over the channel's cells, which is the derivative of the score in the direction
of that channel, divided by the number of cells. One pass of what follows the layer, with a tangent that is 1 in channel k and 0 elsewhere,
gives it for all targets at once; a backward pass gives all channels for one target. So the fewer of targets and channels decide.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from medcam.engine.capture import slope_at
from medcam.engine.doubts import gradient_sizes
from medcam.engine.settled import Target
from medcam.engine.tail import Tail


@dataclass(frozen=True, eq=False)
class Mean:
    """A gradient's mean over each channel, `b c`, and its `doubts.gradient_sizes`."""

    gradient: Float[Tensor, "b c"]
    sizes: tuple[Float[Tensor, " b"], Float[Tensor, " b"]]


def cheaper(targets: int, channels: int) -> bool:
    """Tell whether directions cost less than backward passes: each runs what follows the layer twice over (value and tangent),
    and one backward pass tells whether the means are more than rounding noise."""
    return targets > 2 * channels + 2


def _dual(value: Tensor, tangent: Tensor) -> Tensor:
    # At its first use torch compiles some derivatives, and warns of the compiler that it uses for that.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        found: Tensor = forward_ad.make_dual(value, tangent)
    return found


def mean_gradients(tail: Tail, activation: Float[Tensor, "b c *t"], targets: Sequence[Target]) -> list[Mean]:
    """Return for each target the mean over each channel of its score's gradient at the activation.

    The mean absolute gradient is measured for the first target only. Whether means cancel is a matter of the network, so the others take
    the first one's share.

    Raises
    ------
    UsageError
        If the first score does not depend on the layer.
    """
    batch, channels = activation.shape[:2]
    found = [activation.new_zeros(batch, channels) for _ in targets]
    cells = activation[0, 0].numel()
    with torch.inference_mode(False), torch.no_grad():
        for k in range(channels):
            tangent = torch.zeros_like(activation)
            tangent[:, k] = 1
            with forward_ad.dual_level():
                output = tail.run(_dual(activation, tangent))
                for n, target in enumerate(targets):
                    slope = forward_ad.unpack_dual(target(output)).tangent
                    if slope is not None:
                        found[n][:, k] = slope.detach() / cells
        leaf = activation.detach().requires_grad_()
        with torch.enable_grad():
            scores = targets[0](tail.run(leaf))
        first_size, first_mean = gradient_sizes(slope_at(scores, leaf, tail.layer))
    results = []
    for gradient in found:
        mean = gradient.abs().amax(1)
        size = torch.where((first_mean > 0) & (mean > 0), first_size * mean / first_mean, first_size)
        results.append(Mean(gradient, (size, mean)))
    return results
