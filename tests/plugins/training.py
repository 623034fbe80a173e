"""A small training with everything that draws random numbers or keeps statistics, and what it leaves behind."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Batch norm, dropout, a block that its user keeps frozen, and an `eval` that does more than set a flag."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.stem = nn.Sequential(conv(1, 5, 3, padding=1), norm(5), nn.ReLU())
        self.block = nn.Sequential(conv(5, 6, 3, stride=2, padding=1), norm(6), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(6, 2)
        self.evaluated = 0
        self.stem[1].eval()

    def train(self, mode: bool = True) -> Net:
        if not mode:
            self.evaluated += 1
        super().train(mode)
        self.stem[1].training = False
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).flatten(2).amax(2))


SHAPES = {2: (20, 28), 3: (14, 18, 10)}


def cases(dims: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and masks: every other image has a bright box, whose place differs from image to image."""
    shape = SHAPES[dims]
    images, labels, masks = torch.randn(count, 1, *shape) * 0.3, torch.zeros(count, dtype=torch.long), []
    for n in range(count):
        mask = torch.zeros(shape)
        start = [int(torch.randint(1, side - 6, (1,))) for side in shape]
        mask[tuple(slice(at, at + 5) for at in start)] = 1
        labels[n] = 1 - n % 2
        images[n, 0] += 1.5 * mask * labels[n]
        masks.append(mask)
    return images, labels, torch.stack(masks)


def trained(network: nn.Module, dims: int, steps: int, look: Callable[[int], object]) -> dict[str, Tensor]:
    """Train with augmentation from three sources of random numbers, and return weights, statistics and gradients."""
    images, labels, _ = cases(dims, 12)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    for step in range(steps):
        look(step)
        chosen = torch.randperm(len(images))[:6]
        batch = images[chosen] * (1 + 0.1 * random.random()) + 0.1 * float(np.random.rand())  # noqa: NPY002
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(batch), labels[chosen]).backward()
        optimizer.step()
    look(steps)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    return state | {f"grad {name}": p.grad.clone() for name, p in network.named_parameters()}


def seeded(dims: int) -> Net:
    """The same network, and the same random numbers from here on."""
    torch.manual_seed(5)
    np.random.seed(6)  # noqa: NPY002
    random.seed(7)
    return Net(dims)
