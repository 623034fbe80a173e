"""What a PACS answers to an instance, and what each answer means for the next step.

References
----------
DICOM PS3.4 B.2.3 and GG.4.2 (Storage), PS3.7 C (general statuses), PS3.18 table I.2-2 (STOW-RS failure reasons).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from medcam.pacs.spool import Entry


class Verdict(Enum):
    """What an answer means: it is stored, it will never be as things are, or it may be later."""

    STORED = "stored"
    REFUSED = "refused"
    LATER = "later"


@dataclass(frozen=True)
class Answer:
    """What was answered to one instance.

    Parameters
    ----------
    status
        '0xA700', the DIMSE status or STOW failure reason, or 'HTTP 503', or None where there was no answer.
    words
        The answer in words of our own: what a server writes itself may name the patient.
    """

    entry: Entry
    verdict: Verdict
    words: str
    status: str | None = None


class NoConnectionError(Exception):
    """The peer could not be spoken to at all. Stays inside this room.

    Parameters
    ----------
    lasting
        Whether trying again cannot help: an unknown AE title, an untrusted certificate, a wrong password.
    """

    def __init__(self, words: str, *, lasting: bool) -> None:
        super().__init__(words)
        self.lasting = lasting


class Store(Protocol):
    """Sends instances in order over one connection, and yields an answer for each, until all are sent or the connection ends.

    An instance on the way when the connection ends gets the answer LATER; those behind it get none.

    Raises
    ------
    NoConnectionError
        If no connection could be made.
    """

    def __call__(self, entries: tuple[Entry, ...]) -> Generator[Answer, None, None]: ...


# Inclusive ranges of statuses; the first that fits counts.
_MEANINGS: tuple[tuple[int, int, Verdict, str], ...] = (
    (0x0000, 0x0000, Verdict.STORED, "stored"),
    (0x0110, 0x0110, Verdict.LATER, "processing failure at the PACS"),
    (0x0111, 0x0111, Verdict.STORED, "the PACS says that it has this instance already"),
    (0x0117, 0x0117, Verdict.REFUSED, "the PACS finds the instance's UID invalid"),
    (0x0122, 0x0122, Verdict.REFUSED, "the PACS does not store objects of this class"),
    (0x0124, 0x0124, Verdict.REFUSED, "the PACS does not allow us to store"),
    (0x0210, 0x0213, Verdict.LATER, "the PACS stumbled over the request"),
    (0xA700, 0xA7FF, Verdict.LATER, "the PACS is out of resources (its disk may be full)"),
    (0xA900, 0xA9FF, Verdict.REFUSED, "the PACS finds that the content does not fit the object's class"),
    (0xB000, 0xB000, Verdict.STORED, "stored, but the PACS changed some elements"),
    (0xB006, 0xB006, Verdict.STORED, "stored, but the PACS dropped some elements"),
    (0xB007, 0xB007, Verdict.STORED, "stored, though the PACS finds that the content does not fit the object's class"),
    (0xC122, 0xC122, Verdict.REFUSED, "the PACS does not take this transfer syntax"),
    (0xC000, 0xCFFF, Verdict.REFUSED, "the PACS cannot understand the object"),
)


def answer(entry: Entry, status: int) -> Answer:
    """Return what a status means for an instance. What no standard explains is refused, except that success is 0."""
    for low, high, verdict, words in _MEANINGS:
        if low <= status <= high:
            return Answer(entry, verdict, words, f"0x{status:04X}")
    return Answer(entry, Verdict.REFUSED, "the PACS gave a status that the standard does not know", f"0x{status:04X}")
