"""More targets than channels: Grad-CAM's weights of every target from one forward-mode pass for each channel.

The weight of channel k is the mean of the score's gradient over the channel's cells, which is the derivative of the score in the direction
of that channel, divided by the number of cells. One pass of what follows the layer, with a tangent that is 1 in channel k and 0 elsewhere,
gives it for all targets at once; a backward pass gives all channels for one target. So the fewer of targets and channels decide.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from medcam.engine.tail import Tail
from medcam.engine.targets import Target


def cheaper(targets: int, channels: int) -> bool:
    """Tell whether directions cost less than backward passes: each runs what follows the layer twice over (value and tangent)."""
    return targets > 2 * channels + 2


def mean_gradients(
    tail: Tail, activation: Float[Tensor, "b c *t"], targets: Sequence[Target]
) -> list[Float[Tensor, "b c"]]:
    """Return for each target the mean over each channel of its score's gradient at the activation.

    Raises
    ------
    UsageError
        If a score does not depend on the layer.
    """
    batch, channels = activation.shape[:2]
    found = [activation.new_zeros(batch, channels) for _ in targets]
    cells = activation[0, 0].numel()
    with torch.inference_mode(False), torch.no_grad():
        for k in range(channels):
            tangent = torch.zeros_like(activation)
            tangent[:, k] = 1
            with forward_ad.dual_level():
                output = tail.run(forward_ad.make_dual(activation, tangent))
                for n, target in enumerate(targets):
                    slope = forward_ad.unpack_dual(target(output)).tangent
                    if slope is not None:
                        found[n][:, k] = slope.detach() / cells
    return found
