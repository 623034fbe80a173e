"""Networks whose scores can be computed by hand, and images for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SHAPE = (9, 7, 5)


class Linear(nn.Module):
    """The scores `w x + 0.5` and `-w x`, of one weight for each voxel and channel."""

    def __init__(self, shape: tuple[int, ...] = SHAPE, channels: int = 1, seed: int = 0) -> None:
        super().__init__()
        drawn = torch.randn(channels, *shape, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(drawn)

    def forward(self, image: Tensor) -> Tensor:
        total = (image * self.weight).flatten(1).sum(1)
        return torch.stack([total + 0.5, -total], 1)


class Spot(nn.Module):
    """The mean over one box of voxels as a logit, and nothing else: what it looks at is known."""

    def __init__(self, box: tuple[slice, ...]) -> None:
        super().__init__()
        self.box = box
        self.gain = nn.Parameter(torch.tensor(1.0))

    def forward(self, image: Tensor) -> Tensor:
        return self.gain * image[(..., *self.box)].flatten(1).mean(1, keepdim=True)


def convolutional(dims: int = 3, channels: int = 1) -> nn.Module:
    """A small network with norms, for 2 or 3 dimensions and 3 classes."""
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
    pool = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[dims]
    network = nn.Sequential(
        conv(channels, 4, 3, padding=1), norm(4), nn.ReLU(), conv(4, 6, 3, padding=1, stride=2), norm(6), nn.ReLU(), pool(1),
        nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip
    with torch.no_grad():
        network.train()(torch.randn(8, channels, *SHAPE[:dims]))  # so that the norms have statistics of their own
    return network.eval()
