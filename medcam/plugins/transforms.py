"""MONAI transforms: a heatmap for each sample of a user's own chain, on the sample's own voxels, ready for `Invertd` and `SaveImaged`.

    Compose([..., Explaind("image", network, methods="grad-cam"), Invertd("image_heatmap", chain, "image", nearest_interp=False)])

As MONAI's own transforms these take one sample, its first axis the channel; a batch is taken apart by `decollate_batch` first.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Num
from monai.config.type_definitions import KeysCollection
from monai.inferers.inferer import Inferer
from monai.transforms.transform import MapTransform, Transform
from torch import Tensor, nn

from medcam.engine.asked import AnyTarget
from medcam.engine.windows import Windows
from medcam.errors import UsageError
from medcam.models import Model
from medcam.options import between
from medcam.plugins.maps import RECIPES, Question, beside, findings_as_text, maps, several, windows_of

__all__ = ["RECIPES", "Explain", "Explaind", "HeatmapToMask", "HeatmapToMaskd"]


class Explain(Transform):  # type: ignore[misc]
    """Turn an image into heatmaps: what moved a network's score of it.

    Parameters
    ----------
    model
        A network in memory, or what `medcam.load_model` gave. It runs where its weights are, and is left as it is.
    methods, targets, layers
        Names as `medcam explain` takes them, one or several. The heatmap has a channel for each target, method and layer, in this order.
        By default Grad-CAM of the predicted class at the last layer before the head.
    inferer
        What the network predicts with. The windows of a SlidingWindowInferer are the explanation's; a SimpleInferer shows the network the
        whole image at once. By default the windows that a model of `medcam.load_model` names, else the whole image.
    score, activation, output, class_names, seed, exact, unseen
        See `medcam.plugins.maps.Question`.

    Raises
    ------
    UsageError
        If an option does not exist.
    """

    def __init__(
        self,
        model: Model | nn.Module,
        *,
        methods: str | Sequence[str] = "grad-cam",
        targets: AnyTarget | Sequence[AnyTarget] = None,
        layers: str | Sequence[str | None] | None = None,
        inferer: Inferer | Windows | None = None,
        score: str = "logit",
        activation: str | None = None,
        output: str | int | None = None,
        class_names: Sequence[str] = (),
        seed: int = 0,
        exact: bool = False,
        unseen: float = 0.0,
    ) -> None:
        windows = windows_of(inferer)
        if inferer is None and isinstance(model, Model) and model.windows is not None:
            windows = Windows(**model.windows)
        self.model = model
        self.question = Question(
            several(methods), several(targets), several(layers), score, activation, output, tuple(class_names), seed,
            windows, exact, unseen,
        )  # fmt: skip

    def __call__(self, img: Num[Tensor, "c *s"]) -> Float[Tensor, "n *s"]:
        """Return the heatmaps of one image, raw and signed, on its voxels: positive speaks for the target.

        A MetaTensor's affine, metadata and applied operations come along, and the recipes stand in its metadata under 'medcam_recipes'.

        Raises
        ------
        UsageError
            If the image is a batch, or the network has no such layer or class.
        ModelError
            If the network does not accept the image.
        """
        if getattr(img, "is_batch", False):
            raise UsageError(
                "this is a batch; transforms take one sample each, so use decollate_batch first, or an inferer"
            )
        found = maps(self.model, img.unsqueeze(0), self.question)
        return beside(found.values[0], img, findings_as_text(found.findings[0]))


class Explaind(MapTransform):  # type: ignore[misc]
    """`Explain` for dictionaries: the heatmap of the image under `key` goes under `key_heatmap`, its recipes under `key_heatmap_recipes`.

    `Invertd` replaces a heatmap's metadata by those of the image; the recipes under their own key stay.

    Parameters
    ----------
    keys
        Of the images, each of which the network sees alone.
    postfix
        What is put behind the key.

    The others are those of `Explain`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        model: Model | nn.Module,
        *,
        methods: str | Sequence[str] = "grad-cam",
        targets: AnyTarget | Sequence[AnyTarget] = None,
        layers: str | Sequence[str | None] | None = None,
        inferer: Inferer | Windows | None = None,
        score: str = "logit",
        activation: str | None = None,
        output: str | int | None = None,
        class_names: Sequence[str] = (),
        seed: int = 0,
        exact: bool = False,
        unseen: float = 0.0,
        postfix: str = "heatmap",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.postfix = postfix
        self.explain = Explain(
            model, methods=methods, targets=targets, layers=layers, inferer=inferer, score=score, activation=activation,
            output=output, class_names=class_names, seed=seed, exact=exact, unseen=unseen,
        )  # fmt: skip

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with a heatmap and its recipes for each key."""
        found = dict(data)
        for key in self.key_iterator(found):
            name = f"{key}_{self.postfix}"
            heatmap = self.explain(found[key])
            found[name] = heatmap
            if hasattr(heatmap, "meta"):
                found[f"{name}_recipes"] = heatmap.meta[RECIPES]
        return found


class HeatmapToMask(Transform):  # type: ignore[misc]
    """Turn a heatmap into a mask of its hottest part, channel by channel, by `medcam.Heatmap.mask`'s rule.

    Parameters
    ----------
    fraction
        A voxel belongs to the mask if it reaches this fraction of the channel's largest value; nothing does if no value is positive.
        MONAI's AsDiscrete knows absolute thresholds only, and a heatmap's scale is its method's own.

    Raises
    ------
    UsageError
        If the fraction does not lie between 0 and 1.
    """

    def __init__(self, fraction: float = 0.5) -> None:
        between("fraction", fraction, 0, 1)
        self.fraction = fraction

    def __call__(self, img: Float[Tensor, "n *s"]) -> Float[Tensor, "n *s"]:
        """Return 1 where the heatmap is hottest, else 0, with the metadata of the heatmap."""
        largest = img.nan_to_num(nan=-torch.inf).flatten(1).amax(1).reshape(-1, *(1,) * (img.ndim - 1))
        reached = (img >= self.fraction * largest) & (largest > 0)
        return reached.to(img.dtype)


class HeatmapToMaskd(MapTransform):  # type: ignore[misc]
    """`HeatmapToMask` for dictionaries, in place of the heatmaps under `keys`."""

    def __init__(self, keys: KeysCollection, fraction: float = 0.5, *, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.to_mask = HeatmapToMask(fraction)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with masks in place of heatmaps."""
        found = dict(data)
        for key in self.key_iterator(found):
            found[key] = self.to_mask(found[key])
        return found
