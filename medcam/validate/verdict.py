"""What the numbers of a case, or of a cohort, come to: in words, with the numbers that say so."""

from __future__ import annotations

from dataclasses import dataclass

# In the order in which they are asked: no map is to blame for a network that does not use the lesion, or for cells that cannot show it.
KINDS = {
    "ignores": "the model ignores the lesion",
    "coarse": "the layer is too coarse",
    "wrong": "the map is wrong",
    "agrees": "it agrees",
    "untold": "cannot be told",
}


@dataclass(frozen=True)
class Verdict:
    """What the numbers come to.

    Parameters
    ----------
    kind
        A name of `KINDS`.
    because
        Sentences with the numbers that say so, the decisive one first.
    missing
        What would have to be known for more: for 'untold' to be told at all.
    """

    kind: str
    because: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The verdict in words: 'the map is wrong'."""
        return KINDS[self.kind]
