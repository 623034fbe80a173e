"""What callers may ask with: the kinds of target, and the input that the engine takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import SupportsIndex

from torch import Tensor

from medcam.engine.settled import Settled, Target, Unsettled
from medcam.errors import UsageError

AnyTarget = SupportsIndex | Iterable[SupportsIndex] | str | Target | Unsettled | Settled | None


def check_inputs(inputs: object) -> None:
    """Raise a UsageError unless the input is a batch of images or volumes."""
    if not isinstance(inputs, Tensor) or inputs.ndim not in (4, 5) or inputs.shape[0] == 0:
        given = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise UsageError(f"the input should be a tensor of samples, channels and 2 or 3 spatial axes, not {given}")
