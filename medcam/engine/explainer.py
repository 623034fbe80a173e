"""Explainer: a method with its options chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from medcam.engine.cells import Cells
from medcam.engine.study import Study

CamRule = Callable[[Float[Tensor, "b c *t"], Float[Tensor, "b c *t"]], Float[Tensor, "b *t"]]


@dataclass(frozen=True)
class Explainer:
    """How a method answers, and what it needs of the clean pass.

    Parameters
    ----------
    explain
        From a study to a map on the layer's cells, on the input (methods without a layer), or on cells of its own.
    needs
        Any of 'activation', 'gradient' (of a layer), 'tail' (to re-run what follows the layer), 'graph' (to ask for more gradients of the
        clean pass), 'input gradient' and 'rectifiers' (to let it pass them by a rule).
    pooled
        Whether it averages the gradient over each channel, so that weights may cancel.
    mean_only
        Whether the map is the channels weighted by that average and by nothing else, as Grad-CAM's.
    segmentation
        Whether it is defined for outputs with spatial axes only.
    """

    explain: Callable[[Study], Float[Tensor, "b *t"] | Cells]
    needs: frozenset[str] = frozenset({"activation", "gradient"})
    pooled: bool = False
    mean_only: bool = False
    segmentation: bool = False

    @property
    def looks_at_layer(self) -> bool:
        """Whether the method explains a layer, so that it needs a network whose layers can be reached."""
        return bool(self.needs & {"activation", "gradient", "tail"})


def rule(cam: CamRule, *, pooled: bool = False, mean_only: bool = False, segmentation: bool = False) -> Explainer:
    """Return the explainer of a pure rule of (activation, gradient)."""
    return Explainer(
        lambda study: cam(study.activation, study.gradient),
        pooled=pooled,
        mean_only=mean_only,
        segmentation=segmentation,
    )
