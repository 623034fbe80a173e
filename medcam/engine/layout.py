"""How a layer's tensor holds its cells: channels first, channels last, or as a sequence of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Kind = Literal["channels first", "channels last", "tokens"]

# A guess of tokens beside the grid's (class tokens, registers) goes no further.
_FEW = 8


@dataclass(frozen=True)
class Layout:
    """Where the channels and the cells of a layer's output are.

    Parameters
    ----------
    kind
        'channels first' (`b c *t`), 'channels last' (`b *t c`) or 'tokens' (`b n c`).
    grid
        The cells along each axis of the input.
    extra
        How many tokens stand before the grid's and belong to no place, as a class token does.
    """

    kind: Kind
    grid: tuple[int, ...]
    extra: int = 0

    def fits(self, features: Tensor) -> bool:
        """Tell whether a tensor can be laid out like this."""
        shape = tuple(features.shape)
        if self.kind == "tokens":
            return len(shape) == 3 and shape[1] >= self.extra + prod(self.grid)
        return len(shape) == len(self.grid) + 2 and self.grid == (
            shape[2:] if self.kind == "channels first" else shape[1:-1]
        )


def to_channels_first(features: Tensor, layout: Layout) -> Float[Tensor, "b c *t"]:
    """Return a layer's output as `b c *t`, a view; tokens without a place are left out."""
    if layout.kind == "channels first":
        return features
    if layout.kind == "channels last":
        return features.movedim(-1, 1)
    cells = features[:, layout.extra : layout.extra + prod(layout.grid)]
    return cells.reshape(cells.shape[0], *layout.grid, -1).movedim(-1, 1)


def from_channels_first(features: Float[Tensor, "b c *t"], layout: Layout, like: Tensor | None = None) -> Tensor:
    """Return `b c *t` features as the layer would give them: a view, or a copy where tokens without a place must stand beside the cells.

    Parameters
    ----------
    like
        What the layer gave, from which tokens without a place are taken, once more for each of its batches that `features` holds; without
        it they are zero.
    """
    if layout.kind == "channels first":
        return features
    last = features.movedim(1, -1)
    if layout.kind == "channels last":
        return last
    tokens, end = last.flatten(1, -2), layout.extra + prod(layout.grid)
    if like is None:
        return torch.nn.functional.pad(tokens, (0, 0, layout.extra, 0))
    if like.shape[1] == tokens.shape[1]:
        return tokens
    again = len(tokens) // len(like)
    before, after = (part.repeat(again, 1, 1) for part in (like[:, : layout.extra], like[:, end:]))
    return torch.cat([before, tokens, after], 1)


def guess(shape: Sequence[int], inputs: Sequence[int]) -> Layout | None:
    """Return the layout that a tensor's shape suggests, for an input of shape `b c *s`, or None where it is no feature map.

    The measured one is exact (`footprint.probe`); this is for networks whose positions it could not follow. Among channels first and last
    the sides must keep the proportions of the input's, first by default. Tokens must fill a grid of patches, equal along all axes, beside
    at most a few more.
    """
    size = tuple(inputs[2:])
    if len(shape) == len(inputs):
        first, last = tuple(shape[2:]), tuple(shape[1:-1])
        if _uneven(size, last) < _uneven(size, first):
            return Layout("channels last", last)
        return Layout("channels first", first)
    if len(shape) == 3:
        for patch in range(1, min(size) + 1):
            grid = tuple(n // patch for n in size)
            extra = shape[1] - prod(grid)
            if all(n % patch == 0 for n in size) and 0 <= extra <= _FEW and prod(grid) > 1:
                return Layout("tokens", grid, extra)
    return None


def _uneven(size: Sequence[int], cells: Sequence[int]) -> float:
    """How far the strides along the axes differ, as a factor; infinite where cells outnumber voxels."""
    strides = [n / max(t, 1) for n, t in zip(size, cells, strict=True)]
    return max(strides) / min(strides) if min(strides) >= 1 else float("inf")
