"""MONAI inferers that explain: what a bundle's evaluator calls for a prediction gives a heatmap instead, or both.

    explainer: {_target_: medcam.plugins.inferers.ExplainInferer, inferer: "@inferer"}
    "evaluator::inferer": "@explainer"

Batches in, batches out, as all inferers: the first axis is the sample, the second the channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float, Num
from monai.inferers.inferer import Inferer, SimpleInferer
from torch import Tensor, nn

from medcam.engine.asked import AnyTarget
from medcam.errors import UsageError
from medcam.plugins.maps import Question, beside, findings_as_text, maps, several, windows_of


class ExplainInferer(Inferer):  # type: ignore[misc]
    """An inferer whose answer is heatmaps: for each sample a channel for each target, method and layer, at the sample's own size.

    Parameters
    ----------
    inferer
        What the network predicts with. The windows of a SlidingWindowInferer are the explanation's; a SimpleInferer, or None, shows the
        network the whole image at once.
    methods, targets, layers
        Names as `medcam explain` takes them, one or several; a list of classes is that many targets. By default Grad-CAM of the predicted
        class at the last layer before the head.
    score, activation, output, class_names, seed, exact, unseen
        See `medcam.plugins.maps.Question`.

    Raises
    ------
    UsageError
        If an option does not exist, or the inferer cuts the image in another way than these two.
    """

    def __init__(
        self,
        inferer: Inferer | None = None,
        *,
        methods: str | Sequence[str] = "grad-cam",
        targets: AnyTarget | Sequence[AnyTarget] = None,
        layers: str | Sequence[str | None] | None = None,
        score: str = "logit",
        activation: str | None = None,
        output: str | int | None = None,
        class_names: Sequence[str] = (),
        seed: int = 0,
        exact: bool = False,
        unseen: float = 0.0,
    ) -> None:
        super().__init__()
        self.question = Question(
            several(methods), several(targets), several(layers), score, activation, output, tuple(class_names), seed,
            windows_of(inferer), exact, unseen,
        )  # fmt: skip

    def __call__(
        self, inputs: Num[Tensor, "b c *s"], network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Float[Tensor, "b n *s"]:
        """Return the heatmaps of a batch, raw and signed: positive speaks for the target.

        What a MetaTensor knows comes along, and the recipes stand in its metadata under 'medcam_recipes', one text for each sample.

        Raises
        ------
        UsageError
            If the network is no module, takes more than the image, or has no such layer or class.
        ModelError
            If the network does not accept the batch.
        """
        if not isinstance(network, nn.Module):
            raise UsageError(
                f"medcam explains a torch.nn.Module, not a {type(network).__name__}; make the function one's forward"
            )
        if args or kwargs:
            raise UsageError(
                "medcam explains networks of one input; wrap what else this one takes in a module of your own"
            )
        found = maps(network, inputs, self.question)
        return beside(found.values, inputs, [findings_as_text(every) for every in found.findings])


class PredictAndExplainInferer(Inferer):  # type: ignore[misc]
    """An inferer that gives a prediction and the heatmaps of it, in a dictionary that `FlattenSubKeysd` lays open.

    Parameters
    ----------
    explain
        What makes the heatmaps.
    predict
        What makes the prediction: a bundle's own inferer; by default the network is called with the batch.
    """

    def __init__(self, explain: ExplainInferer, predict: Inferer | None = None) -> None:
        super().__init__()
        self.explain, self.predict = explain, predict or SimpleInferer()

    def __call__(
        self, inputs: Num[Tensor, "b c *s"], network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Return 'prediction', as the bundle's own inferer gives it, and 'heatmap'; errors are those of `ExplainInferer`."""
        heatmap = self.explain(inputs, network, *args, **kwargs)
        return {"prediction": self.predict(inputs, network), "heatmap": heatmap}
