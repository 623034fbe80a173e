"""Relevance: what the engine answers."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from medcam.engine.cells import on_voxels


@dataclass(frozen=True, eq=False)
class Relevance:
    """An explainer's answer, on the cells of the layer it looked at.

    Parameters
    ----------
    values
        Raw and signed: positive speaks for the target. Its scale is the method's own.
    stride, offset
        Cell c is centred on input index `offset + stride * c`.
    input_shape
        The spatial shape of the network's input.
    layer, method
        What was looked at ('' for the input itself), and how: the method's name with its options.
    classes
        The output channel explained for each sample; () for a target of your own.
    scores
        The target's score of each sample.
    probabilities
        Of the explained class, where the output is a classification, else None.
    notes
        What must be known about each sample's map, in sentences.
    score
        What the scores are: 'logit', or 'probability' if that was asked for or the network itself ends in a sigmoid or softmax.
    target
        What was explained, in a few words.
    seed
        Of the method's random numbers.
    fusion
        How the maps of several layers became this one, or ''.
    """

    values: Float[Tensor, "b *t"]
    stride: tuple[float, ...]
    offset: tuple[float, ...]
    input_shape: tuple[int, ...]
    layer: str
    method: str
    classes: tuple[int, ...]
    scores: Float[Tensor, " b"]
    probabilities: Float[Tensor, " b"] | None
    notes: tuple[tuple[str, ...], ...]
    score: str = "logit"
    target: str = ""
    seed: int = 0
    fusion: str = ""

    def on_input(self) -> Float[Tensor, "b *s"]:
        """Return the map at the input's size, linearly interpolated between cell centres and constant beyond the outermost."""
        return on_voxels(self.values, self.stride, self.offset, self.input_shape)
