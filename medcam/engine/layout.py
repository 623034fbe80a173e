"""Where the channels and the cells of a layer's output are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How a layer lays out its features: 'channels first' `b c *t`, 'channels last' `b *t c`, or 'tokens' `b n c`.

    `grid` is the number of cells along each axis, and `extra` the number of leading tokens without a place, such as a class token.
    """

    kind: str
    grid: tuple[int, ...]
    extra: int = 0

    def fits(self, features: Tensor) -> bool:
        return True


def guess(shape: Sequence[int], inputs: Sequence[int]) -> Layout | None:
    """Return the layout that a shape suggests for an input's shape, or None where it is no feature map."""
    return Layout("channels first", tuple(shape[2:])) if len(shape) == len(inputs) else None


def to_channels_first(features: Tensor, layout: Layout) -> Float[Tensor, "b c *t"]:
    return features


def from_channels_first(features: Float[Tensor, "b c *t"], layout: Layout) -> Tensor:
    return features
