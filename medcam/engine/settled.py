"""The values that targets are: a question before it has looked at the network's output, and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

from jaxtyping import Float, Int
from torch import Tensor

from medcam.engine.outputs import Reading

Target = Callable[[Any], Float[Tensor, " b"]]
Rows = Sequence[Sequence[int]]


@final
@dataclass(frozen=True, eq=False)
class Settled:
    """A target that has made its choices on the clean output: one score a sample of any output of the same shape, and what to say of it.

    Nothing here waits for the device but `notes` and `describe`, by copying `facts`; `told` and `described` take them from the host, for
    whoever copies them along with other things.

    Parameters
    ----------
    scored
        From a network's output to one score a sample.
    score
        What the scores are: 'logit', 'probability', or 'own' for a function of the user's.
    classes
        The class that is explained for each sample, or None where no single class is; on the CPU if the user named it.
    facts
        Whole numbers that the words need, a row for each sample.
    told
        From the facts on the host to what must be said of each sample, in sentences.
    described
        From the facts on the host and the names of classes to a short name of what is explained.
    chance
        From a network's output to the probability of `classes`, where the output is a classification, else None.
    each
        From a network's output to each voxel's part `b *s` of the score, where that is a sum over voxels, else None.
    """

    scored: Target
    score: str
    classes: Int[Tensor, " b"] | None
    facts: Int[Tensor, "b facts"]
    told: Callable[[Rows], tuple[tuple[str, ...], ...]]
    described: Callable[[Rows, Sequence[str]], str]
    chance: Target | None = None
    each: Callable[[Any], Float[Tensor, "b *s"]] | None = None

    def __call__(self, output: Any) -> Float[Tensor, " b"]:
        """Return the score of each sample."""
        return self.scored(output)

    def settled(self, _output: Any) -> Settled:
        """Return this target: it has settled already."""
        return self

    @property
    def notes(self) -> tuple[tuple[str, ...], ...]:
        """What must be said of each sample, in sentences."""
        return self.told(self.facts.tolist())

    def describe(self, class_names: Sequence[str] = ()) -> str:
        """Return a short name of what is explained: 'class 2 minus class 0', 'largest component of lesion (class 1)'."""
        return self.described(self.facts.tolist(), class_names)


@final
@dataclass(frozen=True, eq=False)
class Unsettled:
    """A target before it has seen an output.

    Parameters
    ----------
    settle
        From a network's clean output and how it is read to the settled target.
    described
        From the names of classes to a short name of what is asked for.
    takes
        Which of 'score' and 'output' mean something to it.
    reading
        How the output is read.
    """

    settle: Callable[[Any, Reading], Settled]
    described: Callable[[Sequence[str]], str]
    takes: frozenset[str] = frozenset({"score", "output"})
    reading: Reading = field(default_factory=Reading)

    def settled(self, output: Any) -> Settled:
        """Return the target with every choice made that must look at the network's output; call this with the clean one.

        Raises
        ------
        UsageError
            If what was asked for does not exist in this output.
        """
        return self.settle(output, self.reading)

    def read(self, reading: Reading) -> Unsettled:
        """Return the same question about an output that is read in this way."""
        return replace(self, reading=reading)

    def describe(self, class_names: Sequence[str] = ()) -> str:
        """Return a short name of what is asked for: 'class 2', 'largest component of the predicted class'."""
        return self.described(class_names)

    def __call__(self, output: Any) -> Float[Tensor, " b"]:
        """Return the score of each sample, settled on this output."""
        return self.settled(output)(output)


def class_label(index: int, class_names: Sequence[str]) -> str:
    """Return 'class 2', or 'lesion (class 2)' where classes have names."""
    return f"{class_names[index]} (class {index})" if 0 <= index < len(class_names) else f"class {index}"
