"""How many perturbed copies of a batch run at once."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from medcam.engine.layers import Layer
from medcam.errors import UsageError

# On a CPU, what stays near the caches: larger batches of large volumes are slower a copy, and small images want several at once.
_CPU_MB = 16.0
# On other devices a share of what is free.
_SHARE = 0.25
_MOST = 64
# Inputs, outputs and workspace of the widest layer are alive together.
_ALIVE = 3


def copies_within(memory_mb: float | int | None, inputs: Tensor, layers: Sequence[Layer]) -> int:
    """Return how many copies of the batch fit a budget of memory: at least 1, at most 64.

    On a CPU this depends on shapes alone, so that a recipe gives the same bits again.

    Parameters
    ----------
    memory_mb
        By default 16 on a CPU, and a quarter of what is free on other devices.
    layers
        The widest of them says what one copy takes.

    Raises
    ------
    UsageError
        If the budget is not positive.
    """
    if memory_mb is not None and not memory_mb > 0:
        raise UsageError(f"a budget of memory is a positive number of megabytes, not {memory_mb}")
    sample = prod(inputs.shape[1:])
    widest = max([sample, *(layer.channels * prod(layer.shape) for layer in layers)])
    one = _ALIVE * widest * inputs.shape[0] * inputs.element_size()
    budget = (_default_mb(inputs.device) if memory_mb is None else float(memory_mb)) * 2**20
    return max(1, min(_MOST, int(budget // one)))


def _default_mb(device: torch.device) -> float:
    if device.type != "cuda":
        return _CPU_MB
    free, _ = torch.cuda.mem_get_info(device)
    return _SHARE * free / 2**20
