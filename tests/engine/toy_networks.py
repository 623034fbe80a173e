"""Small networks whose right answers are known, in 2D and 3D."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def conv(dims: int) -> Any:
    return {2: nn.Conv2d, 3: nn.Conv3d}[dims]


def norm(dims: int) -> Any:
    return {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]


def image(dims: int, batch: int = 3) -> Tensor:
    """Unequal sides, and samples that differ."""
    return torch.randn(batch, 2, *(11, 14, 9)[:dims])


class Classifier(nn.Module):
    """Two convolutions, an in-place ReLU behind the layer of interest, and a head that is not a global average."""

    def __init__(self, dims: int, classes: int = 4) -> None:
        super().__init__()
        self.stem = conv(dims)(2, 5, 3, padding=1)
        self.block = nn.Sequential(conv(dims)(5, 6, 3, stride=2, padding=1), norm(dims)(6))
        self.act = nn.ReLU(inplace=True)
        self.pool = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[dims](2)
        self.head = nn.Linear(6 * 2**dims, classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.act(self.block(self.stem(x)))
        return self.head(self.pool(features).flatten(1).tanh())


class Segmenter(nn.Module):
    """An encoder, a decoder with a skip, and an output convolution."""

    def __init__(self, dims: int, classes: int = 3) -> None:
        super().__init__()
        self.down = conv(dims)(2, 4, 3, padding=1)
        self.deep = conv(dims)(4, 8, 3, padding=1)
        self.up = conv(dims)(12, 6, 3, padding=1)
        self.out = conv(dims)(6, classes, 1)
        self.mode = {2: "bilinear", 3: "trilinear"}[dims]

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.down(x).relu()
        pooled = nn.functional.interpolate(shallow, scale_factor=0.5, mode=self.mode)
        deep = self.deep(pooled).relu()
        wide = nn.functional.interpolate(deep, size=shallow.shape[2:], mode=self.mode)
        return self.out(self.up(torch.cat([shallow, wide], 1)).relu())


class Reused(nn.Module):
    """One ReLU that serves twice."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.first, self.second = conv(dims)(2, 4, 3, padding=1), conv(dims)(4, 4, 3, padding=1)
        self.act = nn.ReLU()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.second(self.act(self.first(x)))).flatten(2).mean(2))


class Tuples(nn.Module):
    """A block that gives a tuple, and an output in a dictionary."""

    class Block(nn.Module):
        def __init__(self, dims: int) -> None:
            super().__init__()
            self.conv = conv(dims)(2, 4, 3, padding=1)

        def forward(self, x: Tensor) -> tuple[int, Tensor]:
            return 7, self.conv(x)

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.block, self.head = Tuples.Block(dims), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        _, features = self.block(x)
        return {"aux": features, "logits": self.head(features.relu().flatten(2).mean(2))}
