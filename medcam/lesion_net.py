"""The network of the two demonstration models: a few convolutions and a log-mean-exp pool.

It exists to give `medcam demo`, the tests and the tutorial a real trained network that fits in a few hundred kilobytes. It is a
demonstration, never a detector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LesionNet(nn.Module):
    """Score an image for the presence of a small bright lesion.

    Parameters
    ----------
    spatial_dims
        2 or 3.
    widths
        Channels after each convolution. The first two halve the image, so a feature cell is four voxels wide.
    sharpness
        `r` of the log-mean-exp pool: 0 tends to the mean over the image, infinity to its maximum.
    dilations
        One for each convolution: how far apart the taps of its kernel lie. Larger ones see larger lesions whole.

    The input is `b 1 *s`, the output one logit a sample, `b 1`: positive means that a lesion is present.

    References
    ----------
    Log-mean-exp pooling: Pinheiro and Collobert, From image-level to pixel-level labeling with convolutional networks, CVPR 2015, eq. 5.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        widths: Sequence[int] = (12, 24, 32, 32),
        sharpness: float = 4.0,
        dilations: Sequence[int] = (1, 1, 1, 2),
    ) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
        norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[spatial_dims]
        strides = [2 if index < 2 else 1 for index in range(len(widths))]
        blocks: list[nn.Module] = []
        channels = 1
        for width, stride, dilation in zip(widths, strides, dilations, strict=True):
            layer = conv(channels, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
            blocks.append(nn.Sequential(layer, norm(width), nn.ReLU(inplace=True)))
            channels = width
        self.features = nn.Sequential(*blocks)
        self.score = conv(channels, 1, 1)
        self.sharpness = float(sharpness)

    def location_logits(self, image: Tensor) -> Tensor:
        """Return one logit for each feature cell, `b 1 *t`: what the per-location training loss looks at."""
        logits: Tensor = self.score(self.features(image))
        return logits

    def forward(self, image: Tensor) -> Tensor:
        """Return the log-mean-exp of the location logits, `b 1`."""
        logits = self.location_logits(image).flatten(2) * self.sharpness
        pooled = torch.logsumexp(logits, dim=2) - math.log(logits.shape[2])
        return pooled / self.sharpness
