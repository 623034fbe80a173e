"""Sending what waits: in rounds with growing pauses, each answer written to the queue before the next instance goes."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

from medcam.pacs.answers import Answer, NoConnectionError, Verdict
from medcam.pacs.peers import Node, Peer
from medcam.pacs.spool import Entry, Spool

_TELL_EVERY_S = 5.0
# So many refusals for want of resources in a row, and the PACS is left alone for a while.
_IN_A_ROW = 3


@dataclass(frozen=True)
class Patience:
    """How often and how long to wait for a PACS.

    Parameters
    ----------
    attempts
        How often an instance is tried, and how often nothing at all may succeed, before the rest is left in the spool.
    first_wait_s, longest_wait_s
        The pause after the first failure, doubled after each further one up to the longest.
    commitment_s
        How long to listen for the promise to keep what was stored.
    """

    attempts: int = 4
    first_wait_s: float = 2.0
    longest_wait_s: float = 60.0
    commitment_s: float = 60.0

    def wait_s(self, failures: int) -> float:
        """Return the pause after so many failures, a little different each time so that many senders do not march in step."""
        return float(min(self.first_wait_s * 2.0 ** (failures - 1), self.longest_wait_s)) * random.uniform(0.75, 1.25)


def deliver(
    spool: Spool,
    peer: Peer,
    uids: frozenset[str] | None,
    *,
    patience: Patience,
    say: Callable[[str], object],
    hear: Callable[[Answer], object] = str,
) -> tuple[Entry, ...]:
    """Send what waits for a destination, and return how its entries stand then. Nothing is lost however this ends.

    Parameters
    ----------
    uids
        Only these instances, or None for all that wait.
    hear
        Called with each answer, once it is written down.
    """
    address = peer.to.address

    def entries() -> tuple[Entry, ...]:
        return spool.entries(address, uids=uids)

    with spool.sending(address, lambda: say(f"another medcam is sending to {address}; waiting for it to end")):
        waiting = [one for one in entries() if one.state == "waiting"]
        if waiting:
            _send_in_rounds(spool, peer, waiting, patience, say, hear)
        stored = tuple(one for one in entries() if one.state == "sent" and one.commitment)
        if stored:
            _commit(spool, peer, stored, patience, say)
        return entries()


def _send_in_rounds(
    spool: Spool,
    peer: Peer,
    waiting: list[Entry],
    patience: Patience,
    say: Callable[[str], object],
    hear: Callable[[Answer], object],
) -> None:
    tries: Counter[str] = Counter()
    fruitless, told = 0, time.monotonic()
    count, done = len(waiting), 0
    while waiting:
        answered: dict[str, Answer] = {}
        lost: NoConnectionError | None = None
        try:
            for one in _round(peer, tuple(waiting)):
                answered[one.entry.instance.uid] = one
                _note(spool, one)
                hear(one)
                done += one.verdict is not Verdict.LATER
                if time.monotonic() - told >= _TELL_EVERY_S:
                    told = time.monotonic()
                    say(f"{done} of {count} done")
        except NoConnectionError as error:
            lost = error
        tries.update(uid for uid, one in answered.items() if one.verdict is Verdict.LATER)
        waiting = _rest(waiting, answered, tries, patience)
        fruitless = 0 if any(one.verdict is Verdict.STORED for one in answered.values()) else fruitless + 1
        if waiting and (fruitless >= patience.attempts or (lost is not None and lost.lasting)):
            words = str(lost) if lost else "not tried: the PACS took nothing else either"
            for entry in waiting:
                if entry.instance.uid not in answered or lost is not None:
                    spool.waits(entry, words)
            return
        if waiting:
            pause_s = patience.wait_s(max(fruitless, 1))
            say(f"{lost or 'some could not be sent'}; trying again in {pause_s:.0f} s")
            time.sleep(pause_s)


def _round(peer: Peer, entries: tuple[Entry, ...]) -> Iterator[Answer]:
    """Yield answers over one connection, until it ends or the PACS seems to be full."""
    in_a_row = 0
    with closing(_store(peer, entries)) as answers:
        for one in answers:
            yield one
            in_a_row = in_a_row + 1 if one.verdict is Verdict.LATER else 0
            if in_a_row >= _IN_A_ROW:
                return


def _store(peer: Peer, entries: tuple[Entry, ...]) -> Generator[Answer, None, None]:
    if isinstance(peer.to, Node):
        from medcam.pacs.storing import store

        return store(entries, peer, peer.to)
    from medcam.pacs.stow import store as store_on_web

    return store_on_web(entries, peer, peer.to)


def _note(spool: Spool, said: Answer) -> None:
    words = said.words if said.status in (None, "0x0000") else f"{said.words} ({said.status})"
    if said.verdict is Verdict.STORED:
        spool.stored(said.entry, words)
    else:
        spool.waits(said.entry, words)


def _rest(waiting: list[Entry], answered: dict[str, Answer], tries: Counter[str], patience: Patience) -> list[Entry]:
    """Return what is to be tried again: first what had no turn, so that one bad instance does not block the others."""
    untried = [one for one in waiting if one.instance.uid not in answered]
    later = [
        one
        for one in waiting
        if one.instance.uid in answered
        and answered[one.instance.uid].verdict is Verdict.LATER
        and tries[one.instance.uid] < patience.attempts
    ]
    return untried + later


def _commit(
    spool: Spool, peer: Peer, stored: tuple[Entry, ...], patience: Patience, say: Callable[[str], object]
) -> None:
    from medcam.pacs.commitment import ask_commitment

    if not isinstance(peer.to, Node) or peer.commitment_port is None:
        return
    say(f"asking for the promise to keep {len(stored)} instances")
    try:
        promises = ask_commitment(stored, peer, peer.to, port=peer.commitment_port, wait_s=patience.commitment_s)
    except NoConnectionError as error:
        say(f"no promise: {error}")
        return
    if promises is None:
        for entry in stored:
            spool.uncommittable(entry, f"{entry.words}; this PACS does not offer storage commitment")
        return
    for promise in promises:
        if promise.kept:
            spool.committed(promise.entry, promise.words)
        elif promise.kept is False:
            spool.waits(promise.entry, promise.words)
        else:
            spool.unpromised(promise.entry, promise.words)
