"""Studies of small networks for the tests of methods that mask the input, and the plain-loop twins that they share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medcam.engine.capture import capture
from medcam.engine.footprint import footprints
from medcam.engine.outputs import Reading
from medcam.engine.study import Clean, Study
from medcam.engine.targets import as_target


class Counted(nn.Module):
    """A network that keeps the size of each batch that it was given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.sizes = network, []

    def forward(self, x: Tensor) -> Any:
        self.sizes.append(x.shape[0])
        return self.network(x)


def study_of(
    network: nn.Module, x: Tensor, classes: Sequence[int], layer: str, *, copies: int = 3, seed: int = 0
) -> Study:
    captured, target = capture(network, x, [layer]), as_target(classes)
    clean = Clean(captured, target.settled(captured.output), Reading(), keep_graph=True)
    place = footprints(copy.deepcopy(network).float(), x[:1].float(), [layer])[layer]
    return Study(network, x, clean, layer, place, None, copies, seed, [])


def notes_of(study: Study) -> list[list[str]]:
    """What the method has remarked, for each sample."""
    return [
        [r.sentence.format(value=float(r.values[n])) for r in study.remarks if r.flags[n]]
        for n in range(study.inputs.shape[0])
    ]


def one_of_batch(network: nn.Module, x: Tensor, classes: Sequence[int], n: int, layer: str) -> Study:
    return study_of(network, x[n : n + 1], classes[n : n + 1], layer)


def clean_features(network: nn.Module, x: Tensor, classes: Sequence[int], layer: str) -> tuple[np.ndarray, np.ndarray]:
    """What the layer gave and each sample's gradient there, by a hook on a copy without in-place changes."""
    twin, kept = copy.deepcopy(network), {}
    for module in twin.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    twin.get_submodule(layer).register_forward_hook(lambda _m, _a, out: kept.update(a=out))
    logits = twin(x)
    slopes = [torch.autograd.grad(logits[n, c], kept["a"], retain_graph=True)[0][n] for n, c in enumerate(classes)]
    return kept["a"].detach().numpy(), torch.stack(slopes).numpy()


def score(network: nn.Module, x: np.ndarray, c: int) -> float:
    """The logit of one sample without batch axis."""
    with torch.no_grad():
        return network(torch.from_numpy(x)[None])[0, c].item()


def enlarged(cells: np.ndarray, sides: Sequence[int], stride: float, offset: float) -> np.ndarray:
    """Linear interpolation between cell centres, constant beyond the outermost, one axis after another."""
    for axis, n in enumerate(sides):
        lines = np.moveaxis(cells, axis, 0)
        rows = []
        for voxel in range(n):
            place = min(max((voxel - offset) / stride, 0), len(lines) - 1)
            low = int(place)
            high = min(low + 1, len(lines) - 1)
            rows.append(lines[low] * (1 - (place - low)) + lines[high] * (place - low))
        cells = np.moveaxis(np.stack(rows), 0, axis)
    return cells


def scaled(values: np.ndarray) -> np.ndarray | None:
    """To 0…1, or None if constant."""
    low, high = values.min(), values.max()
    return None if high - low < 1e-9 else (values - low) / (high - low)
