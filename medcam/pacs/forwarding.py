"""Sending a node's results on in the background, through the spool, until each destination has them or refuses them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from medcam.errors import MedcamError
from medcam.pacs.answers import Answer, Verdict
from medcam.pacs.inbox import Inbox
from medcam.pacs.instances import collect
from medcam.pacs.peers import Peer
from medcam.pacs.sending import Patience, deliver
from medcam.pacs.spool import Entry, Spool

# Few, so that a node that is to stop does not wait long; and one association for many.
_BATCH = 16
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Forwarding:
    """How often and how long to try.

    Parameters
    ----------
    attempts
        With so many answers that ask for another time, a result counts as refused. A destination that does not answer at all is tried
        for ever.
    first_wait_s, longest_wait_s
        The pause after a failure, doubled after each further one up to the longest.
    """

    attempts: int = 20
    first_wait_s: float = 5.0
    longest_wait_s: float = 600.0


@dataclass(frozen=True)
class Forwarder:
    """Sends results to one destination, as long as it runs.

    Parameters
    ----------
    turn
        Held while something is sent; shared by destinations that listen at one port for promises to keep.
    """

    inbox: Inbox
    spool: Spool
    peer: Peer
    rules: Forwarding
    say: Callable[[str], object]
    turn: threading.Lock = field(default_factory=threading.Lock)

    def run(self, stop: threading.Event) -> None:
        """Send what waits, until told to stop."""
        failures = 0
        pauses = Patience(first_wait_s=self.rules.first_wait_s, longest_wait_s=self.rules.longest_wait_s)
        while not stop.is_set():
            given = self.inbox.unsent(self.peer.to.address, most=_BATCH)
            if not given:
                stop.wait(_LOOK_EVERY_S)
                continue
            failures = 0 if self._send(given) else failures + 1
            if failures:
                pause_s = pauses.wait_s(failures)
                self.say(f"{self.peer.to.address}: some results wait; trying again in {pause_s:.0f} s")
                stop.wait(pause_s)

    def _send(self, given: tuple[tuple[str, int], ...]) -> bool:
        """Send some results, note what came of each, and tell whether anything has changed for good."""
        heard: dict[str, Answer] = {}
        # The pauses are ours: a sleeping round could not be told to stop.
        once = Patience(attempts=1, first_wait_s=0.0, commitment_s=Patience.commitment_s)
        try:
            with self.turn:
                entries = deliver(
                    self.spool, self.peer, frozenset(uid for uid, _ in given), patience=once, say=_silent,
                    hear=lambda one: heard.update({one.entry.instance.uid: one}),
                )  # fmt: skip
        except MedcamError as error:
            self.say(f"{self.peer.to.address}: {error}")
            return False
        found = {entry.instance.uid: entry for entry in entries}
        settled = [self._note(uid, attempts, found.get(uid), heard.get(uid)) for uid, attempts in given]
        return any(settled)

    def _note(self, uid: str, attempts: int, entry: Entry | None, answer: Answer | None) -> bool:
        address, at = self.peer.to.address, time.time()
        if entry is None:
            self.inbox.redo(address, uid, at=at)
            return True
        state, words = "waiting", entry.words
        tried = answer is not None or entry.state != "waiting"
        if entry.state == "committed" or (entry.state == "sent" and not entry.commitment):
            state = "sent"
        elif answer is not None and answer.verdict is Verdict.REFUSED:
            state = "refused"
        elif tried and attempts + 1 >= self.rules.attempts:
            state, words = "refused", f"tried {attempts + 1} times; at last: {words}"
        self.inbox.told(address, uid, state=state, words=words, at=at, tried=tried)
        return state != "waiting"


def queue_results(folder: Path, peers: tuple[Peer, ...], *, spool: Spool) -> list[tuple[str, str]]:
    """Put the DICOM objects of a folder into the spool, for each destination, and return each with its address.

    What was sent to a destination before is not sent there again: the same result is the same object.
    """
    if not any(folder.rglob("*")):
        return []
    instances = collect([folder]).instances
    for peer in peers:
        spool.add(peer, instances, commitment=peer.commitment_port is not None)
    return [(one.uid, peer.to.address) for peer in peers for one in instances]


def _silent(_: str) -> None:
    """Say nothing: what is said of one round is in the inbox."""
