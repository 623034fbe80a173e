"""A node at work: it takes images in, finds which series are complete, has them explained, and sends the results on.

    peers -> Receiver -> Inbox -> (complete?) -> engine's worker -> Spool -> Forwarder -> destinations

Each part looks at the inbox for what it has to do, so whatever is killed finds its place again.
"""

from __future__ import annotations

import os
import shutil
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from medcam.errors import OutputError, UsageError
from medcam.pacs.admission import Guests, Limits
from medcam.pacs.choosing import Choice
from medcam.pacs.explaining import Explainer
from medcam.pacs.forwarding import Forwarder, Forwarding
from medcam.pacs.inbox import Inbox
from medcam.pacs.node_status import LOCK
from medcam.pacs.peers import Peer
from medcam.pacs.readiness import Pace, complete_at
from medcam.pacs.receiving import Receiver, quiet_libraries
from medcam.pacs.spool import Spool
from medcam.workers.jobs import Engine, Setup

_TICK_S, _BEAT_S, _TIDY_S = 0.2, 10.0, 60.0
_LAST_STORE_S, _LAST_WORDS_S = 30.0, 5.0
_LOCK_PATIENCE_S = 1.0
# How long to wait for a full disk.
_FULL_S = 10.0
_DAY_S = 86_400.0


@dataclass(frozen=True)
class Settings:
    """All that a node is asked to do.

    Parameters
    ----------
    folder
        Where its queue lies.
    host, port
        Where it listens; '' for every address of the machine.
    secured
        What TLS needs, or None for plain DICOM.
    peers
        Where results go; () to keep them in the spool of nobody: then a series is done once it is explained.
    keep_days, keep_failed_days
        How long images are kept after their results were sent (or they were passed over), and after they failed.
    """

    folder: Path
    guests: Guests
    host: str
    port: int
    peers: tuple[Peer, ...]
    explaining: Setup
    choice: Choice = field(default_factory=Choice)
    limits: Limits = field(default_factory=Limits)
    pace: Pace = field(default_factory=Pace)
    forwarding: Forwarding = field(default_factory=Forwarding)
    secured: ssl.SSLContext | None = None
    keep_days: float = 1.0
    keep_failed_days: float = 30.0


def listen(
    settings: Settings,
    engine: Engine,
    *,
    stop: threading.Event,
    say: Callable[[str], object],
    at_port: Callable[[int], object] = int,
) -> None:
    """Work until told to stop; then finish what is half received, and leave.

    Parameters
    ----------
    engine
        Explains one series at a time, in a process of its own.
    stop
        Set by whoever wants the node to stop.
    at_port
        Told the port once somebody listens there.

    Raises
    ------
    UsageError
        If another node works on the folder, or the port cannot be listened at.
    MedcamError
        If the network cannot be loaded, or the queue cannot be used any more.
    """
    with only_node(settings.folder), quiet_libraries():
        _at_work(settings, engine, stop=stop, say=say, at_port=at_port)


@contextmanager
def only_node(folder: Path) -> Iterator[None]:
    """Hold the right to work on a folder.

    Raises
    ------
    UsageError
        If another node has it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=_LOCK_PATIENCE_S)
    except Timeout:
        raise UsageError(
            f"another node is at work on {folder} (`medcam listen --status` tells of it); stop it, or choose another folder by --folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _at_work(
    settings: Settings,
    engine: Engine,
    *,
    stop: threading.Event,
    say: Callable[[str], object],
    at_port: Callable[[int], object],
) -> None:
    started = time.time()
    inbox, spool = Inbox(settings.folder), Spool(settings.folder / "spool")
    work = settings.folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    inbox.recover(at=started)
    receiver = Receiver(
        inbox, host=settings.host, port=settings.port, guests=settings.guests, limits=settings.limits, secured=settings.secured,
        say=say, came=lambda: None,
    )  # fmt: skip
    explainer = Explainer(inbox, spool, settings.peers, settings.explaining, settings.choice, settings.pace, work, say)
    turn = threading.Lock()
    forwarders = [Forwarder(inbox, spool, peer, settings.forwarding, say, turn) for peer in settings.peers]
    troubles: list[BaseException] = []
    works = [partial(explainer.run, engine, stop), *(partial(each.run, stop) for each in forwarders)]
    parts = [_part(each, stop, troubles, say) for each in works]
    receiver.start()
    for part in parts:
        part.start()
    say(f"{settings.guests.called} listens at port {receiver.port}")
    at_port(receiver.port)
    try:
        _keep_house(settings, inbox, receiver, stop, started)
    finally:
        stop.set()
        receiver.stop(patience_s=_LAST_STORE_S)
        for part in parts:
            # A worker in the middle of a series ends with this process; the series is explained at the next start.
            part.join(_LAST_WORDS_S)
    if troubles:
        raise troubles[0]


def _part(
    work: Callable[[], None], stop: threading.Event, troubles: list[BaseException], say: Callable[[str], object]
) -> threading.Thread:
    """Return a thread that begins again where the disk was full, and whose other failures stop the node and are told by it."""

    def run() -> None:
        while not stop.is_set():
            try:
                work()
            except OutputError as error:
                say(f"{error}; trying again in {_FULL_S:.0f} s")
                stop.wait(_FULL_S)
            except BaseException as error:  # noqa: BLE001  it is raised where the node waits
                troubles.append(error)
                stop.set()

    return threading.Thread(target=run, daemon=True)


def _keep_house(settings: Settings, inbox: Inbox, receiver: Receiver, stop: threading.Event, started: float) -> None:
    """Say of each series when it is complete, let old images go, and show that the node is alive."""
    beaten = tidied = 0.0
    while not stop.is_set():
        now = time.time()
        try:
            _call_complete(settings, inbox, receiver, started, now)
            if now - beaten >= _BEAT_S:
                beaten = now
                inbox.beat(pid=os.getpid(), aet=settings.guests.called, port=receiver.port, started=started, at=now)
            if now - tidied >= _TIDY_S:
                tidied = now
                tidy(inbox, settings, now=now)
        except OutputError:
            stop.wait(_FULL_S)
        stop.wait(_TICK_S)


def _call_complete(settings: Settings, inbox: Inbox, receiver: Receiver, started: float, now: float) -> None:
    here = receiver.door.open_peers()
    for series in inbox.series("received"):
        if now >= complete_at(series, settings.pace, peer_is_here=series.peer in here, started=started):
            inbox.move(series.uid, before="received", to="complete", at=now)


def tidy(inbox: Inbox, settings: Settings, *, now: float) -> None:
    """Let images go that have been kept long enough."""
    for state, days in (
        ("sent", settings.keep_days),
        ("passed", settings.keep_days),
        ("failed", settings.keep_failed_days),
    ):
        for series in inbox.series(state):
            if series.here and now - series.changed >= days * _DAY_S:
                inbox.remove(series.uid, before=state, at=now)
