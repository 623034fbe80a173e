"""The queue on disk: what is still to be sent, and what was sent to whom. It survives a kill at any moment.

A row is written after its file is whole, and a file is removed after its row says 'sent': at worst a file is left over, which is swept
away later. File names are digests; rows hold UIDs and nothing of the patient. The files themselves do, so the folder is its owner's only.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import final

from medcam.errors import OutputError
from medcam.pacs.instances import Instance
from medcam.pacs.peers import Peer, peer_from_json
from medcam.whole_file import whole_file

_SCHEMA = """
create table if not exists peers (address text primary key, settings text not null);
create table if not exists instances (
    address text not null,
    uid text not null,
    sop_class text not null,
    syntax text not null,
    study text not null,
    series text not null,
    size integer not null,
    file text not null,
    state text not null check (state in ('waiting', 'sent', 'committed')),
    commitment integer not null default 0,
    attempts integer not null default 0,
    words text not null default '',
    changed text not null,
    primary key (address, uid)
);
"""
# Whoever sends meanwhile may have said 'sent' since we looked.
_PUT = """
insert into instances values (?, ?, ?, ?, ?, ?, ?, ?, 'waiting', ?, 0, '', ?)
on conflict (address, uid) do update set
    sop_class = excluded.sop_class, syntax = excluded.syntax, study = excluded.study, series = excluded.series,
    size = excluded.size, file = excluded.file, state = 'waiting', commitment = excluded.commitment, attempts = 0,
    words = '', changed = excluded.changed
where state = 'waiting' or ?
"""
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Entry:
    """One instance on its way to one destination, as it stands on disk.

    Parameters
    ----------
    state
        'waiting', 'sent' (the PACS said that it stored it), or 'committed' (the PACS promised to keep it).
    commitment
        Whether that promise is wanted; the file is kept until it is given.
    words
        What was last said about it.
    """

    address: str
    instance: Instance
    state: str
    commitment: bool
    attempts: int
    words: str
    changed: str
    path: Path


@final
class Spool:
    """A folder with a queue. Every method leaves it whole on disk; several processes may hold one.

    Parameters
    ----------
    folder
        Made if need be, for its owner only.

    Raises
    ------
    OutputError
        If the folder cannot be made, or holds something else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (folder / "files").mkdir(exist_ok=True, mode=0o700)
            with self._rows() as rows:
                rows.executescript(_SCHEMA)
            with self._queue_lock():
                self._sweep()
        except (OSError, sqlite3.Error) as error:
            words = getattr(error, "strerror", None) or "it holds something else, or is locked"
            raise OutputError(f"the spool {folder} cannot be used: {words}; choose another with --spool") from error

    def add(
        self, peer: Peer, instances: Sequence[Instance], *, again: bool = False, commitment: bool = False
    ) -> tuple[Entry, ...]:
        """Put instances into the queue, each with a copy of its file, and return their entries.

        One that was already sent there stays 'sent' and is not queued, unless `again`. One that waits is replaced.
        """
        wanted = {one.uid for one in instances}
        self.remember(peer)
        with self._queue_lock(), self._rows() as rows:
            known = {entry.instance.uid: entry for entry in self.entries(peer.to.address, uids=frozenset(wanted))}
            for one in instances:
                before = known.get(one.uid)
                if before is None or before.state == "waiting" or again:
                    self._queue(rows, peer.to.address, one, again=again, commitment=commitment)
        return self.entries(peer.to.address, uids=frozenset(wanted))

    def _queue(self, rows: sqlite3.Connection, address: str, one: Instance, *, again: bool, commitment: bool) -> None:
        # Other content has another name, so that whoever still sends the old one cannot mark the new one as sent.
        name = hashlib.sha256(f"{address}\n{one.uid}\n{one.sha256}".encode()).hexdigest()[:40] + ".dcm"
        path = self._folder / "files" / name
        with whole_file(path) as temporary:
            temporary.write_bytes(one.content())
        path.chmod(0o600)
        rows.execute(
            _PUT,
            (
                address,
                one.uid,
                one.sop_class,
                one.syntax,
                one.study,
                one.series,
                one.size,
                name,
                commitment,
                _now(),
                again,
            ),
        )
        rows.commit()

    def entries(self, address: str | None = None, *, uids: frozenset[str] | None = None) -> tuple[Entry, ...]:
        """Return all entries, of one destination or of all, in the order in which they were queued.

        Parameters
        ----------
        uids
            Only those of these instances: what was sent in years is not gone through for them.
        """
        conditions = {"address = ?": address, "uid in (select value from json_each(?))": _listed(uids)}
        given = {words: value for words, value in conditions.items() if value is not None}
        where = f"where {' and '.join(given)}" if given else ""
        with self._rows() as rows:
            # The words are constants of this file; the values go apart.
            found = rows.execute(f"select * from instances {where} order by rowid", tuple(given.values())).fetchall()
        return tuple(self._entry(row) for row in found)

    def peers(self) -> tuple[Peer, ...]:
        """Return every destination that was ever queued for, with the settings that were last used for it."""
        with self._rows() as rows:
            found = rows.execute("select settings from peers order by address").fetchall()
        return tuple(peer_from_json(row["settings"]) for row in found)

    def remember(self, peer: Peer) -> None:
        """Keep how to speak to a destination, for the next time."""
        with self._rows() as rows:
            rows.execute("insert or replace into peers values (?, ?)", (peer.to.address, peer.to_json()))
            rows.commit()

    def stored(self, entry: Entry, words: str) -> None:
        """Note that the PACS stored it; the file goes unless a commitment is awaited."""
        self._change(entry, "sent", words, tries=1)
        if not entry.commitment:
            self._drop_file(entry)

    def waits(self, entry: Entry, words: str) -> None:
        """Note that it could not be sent now, and why."""
        self._change(entry, "waiting", words, tries=1)

    def committed(self, entry: Entry, words: str) -> None:
        """Note that the PACS promised to keep it, and let the file go."""
        self._change(entry, "committed", words)
        self._drop_file(entry)

    def unpromised(self, entry: Entry, words: str) -> None:
        """Note that it is stored and no promise came: the file stays until one does."""
        self._change(entry, "sent", words)

    def uncommittable(self, entry: Entry, words: str) -> None:
        """Note that the PACS makes no promises: what it stored counts as done, and the file goes."""
        with self._rows() as rows:
            rows.execute("update instances set commitment = 0 where file = ?", (entry.path.name,))
            rows.commit()
        self._change(entry, "sent", words)
        self._drop_file(entry)

    @contextmanager
    def sending(self, address: str, waiting: Callable[[], object]) -> Iterator[None]:
        """Hold the right to send to one destination: one process at a time. `waiting` is called if another has it."""
        from filelock import FileLock, Timeout

        lock = FileLock(self._folder / f"sending-{hashlib.sha256(address.encode()).hexdigest()[:16]}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _change(self, entry: Entry, state: str, words: str, *, tries: int = 0) -> None:
        with self._rows() as rows:
            rows.execute(
                "update instances set state = ?, words = ?, attempts = attempts + ?, changed = ? where file = ?",
                (state, words, tries, _now(), entry.path.name),
            )
            rows.commit()

    def _drop_file(self, entry: Entry) -> None:
        entry.path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove files that nobody waits for: left by a kill between a file and its row, or before a removal."""
        with self._rows() as rows:
            kept = rows.execute(
                "select file from instances where state = 'waiting' or (state = 'sent' and commitment = 1)"
            )
            needed = {row["file"] for row in kept}
        for path in (self._folder / "files").iterdir():
            if path.name not in needed:
                path.unlink(missing_ok=True)

    @contextmanager
    def _rows(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._folder / "queue.sqlite3", timeout=_PATIENCE_S)) as rows:
            rows.row_factory = sqlite3.Row
            # A commit is on the disk, not in its cache, before the next step relies on it.
            rows.execute("pragma synchronous = full")
            yield rows

    @contextmanager
    def _queue_lock(self) -> Iterator[None]:
        from filelock import FileLock

        with FileLock(self._folder / "queue.lock"):
            yield

    def _entry(self, row: sqlite3.Row) -> Entry:
        path = self._folder / "files" / row["file"]
        instance = Instance(
            name=row["file"], sop_class=row["sop_class"], uid=row["uid"], syntax=row["syntax"], study=row["study"],
            series=row["series"], patient="", sha256="", size=row["size"], content=path.read_bytes,
        )  # fmt: skip
        return Entry(
            row["address"], instance, row["state"], bool(row["commitment"]), row["attempts"], row["words"], row["changed"],
            path,
        )  # fmt: skip


def default_folder() -> Path:
    """Return where the queue lies unless the user says otherwise: among the user's own state."""
    from platformdirs import user_state_path

    return Path(user_state_path("medcam", appauthor=False)) / "spool"


def _listed(uids: frozenset[str] | None) -> str | None:
    return None if uids is None else json.dumps(sorted(uids))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
