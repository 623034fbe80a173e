"""The node's queue on disk: what came, what was made of it, and what of that is still to be sent. It survives a kill at any moment.

A file is whole on disk before its row is, and a file goes after its row has gone: at worst one is left over, which is swept away later.
File names are digests; rows hold UIDs, a modality and our own words, and nothing of the patient. The files do, so the folder is its owner's
only.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import final

from medcam.errors import OutputError
from medcam.pacs.arrivals import Arrival
from medcam.pacs.inbox_rows import PUT_INSTANCE, PUT_SERIES, SCHEMA, SELECT_SERIES, Held, SeriesRow, series_row
from medcam.whole_file import whole_file

_PATIENCE_S = 60.0


@final
class Inbox:
    """A folder with the queue of one node. Every method leaves it whole on disk; threads and a second process may look at it meanwhile.

    A series goes from 'received' (more may come) over 'complete' and 'explaining' to 'explained' (results wait to be sent) and 'sent'; or
    it is 'passed' over, or 'failed'. Whatever changes its content brings it back to 'received'.

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
        self.folder = folder
        self._files = folder / "files"
        self._writing = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
            self._files.mkdir(exist_ok=True, mode=0o700)
            with closing(self._connection()) as rows:
                # Whoever looks (`--status`) does not keep the node from writing.
                rows.execute("pragma journal_mode = wal")
                rows.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            words = getattr(error, "strerror", None) or "it holds something else, or is locked"
            raise OutputError(f"the queue {folder} cannot be used: {words}; choose another with --folder") from error

    def take(self, one: Arrival, *, at: float, association: str = "") -> str:
        """Keep an instance, and return 'new', 'again' (the same content was here) or 'changed' (it replaces another content).

        When this returns, the file and its row are on disk, and only then.

        Parameters
        ----------
        association
            By which it came: a name that no other has.

        Raises
        ------
        OutputError
            If the disk is full, or the like; then nothing has changed.
        """
        if self.has(one):
            return self._again(one, at, association)
        # No file is ever written twice under one name: whoever reads or removes an old one never meets a new one.
        name = hashlib.sha256(f"{one.uid}\n{one.sha256}\n".encode() + os.urandom(16)).hexdigest()[:40] + ".dcm"
        self._write(name, one.content)
        try:
            before = self._put(one, name, at, association)
        except OutputError:
            (self._files / name).unlink(missing_ok=True)
            raise
        if before is not None:
            (self._files / before["file"]).unlink(missing_ok=True)
        return "new" if before is None else "changed"

    def has(self, one: Arrival) -> bool:
        """Tell whether an instance lies here with this content."""
        with self._looking() as rows:
            return self._is_here(rows, one)

    def held(self, series: str = "") -> Held:
        """Return how much lies here, and how many instances of one series."""
        with self._looking() as rows:
            count, size = rows.execute("select count, size from held").fetchone()
            own = rows.execute("select count(*) from instances where series = ?", (series,)).fetchone()[0]
        return Held(count, size, own)

    def series(self, *states: str) -> tuple[SeriesRow, ...]:
        """Return the series in these states, or all, the one that has waited longest first."""
        where = f"where state in ({','.join('?' * len(states))})" if states else ""
        with self._looking() as rows:
            # Nothing but question marks is put into the words.
            found = rows.execute(f"{SELECT_SERIES} {where} order by arrived, uid", states).fetchall()
        return tuple(series_row(row) for row in found)

    def released(self, association: str) -> None:
        """Note that an association was ended in order: what its peer had to send by it, it has sent."""
        with self._changing() as rows:
            rows.execute(
                "update series set released = 1 where association = ? and state = 'received' and released = 0",
                (association,),
            )

    def content(self, series: str) -> tuple[str, tuple[Path, ...]]:
        """Return the digest of what lies here of a series, and its files."""
        with self._looking() as rows:
            return self._content(rows, series)

    def move(self, series: str, *, before: str, to: str, words: str = "", at: float, due: float = 0.0) -> bool:
        """Bring a series from one state to another, and tell whether it was still in the first.

        Parameters
        ----------
        due
            When it is to be looked at again at the earliest; for a series that goes back to 'received'.
        """
        with self._changing() as rows:
            done = rows.execute(
                "update series set state = ?, words = ?, changed = ?, due = ?, tries = tries + ? where uid = ? and state = ?",
                (to, words, at, due, to == "explaining", series, before),
            )
            return bool(done.rowcount)

    def settle(self, series: str, *, content: str, to: str, words: str, at: float, due: float = 0.0) -> bool:
        """Say what came of explaining a series. If its content has changed meanwhile, it is 'received' again, and False returned."""
        with self._changing() as rows:
            return self._settle(rows, series, content=content, to=to, words=words, at=at, due=due)

    def explained(
        self, series: str, *, content: str, results: Sequence[tuple[str, str]], words: str, at: float
    ) -> bool:
        """Note the results of a series as waiting to be sent, each a UID and an address; see `settle`.

        What was noted before of the same result is kept: it is the same object.
        """
        with self._changing() as rows:
            if not self._settle(rows, series, content=content, to="explained", words=words, at=at, due=0.0):
                return False
            rows.execute("update series set content = ?, version = version + 1 where uid = ?", (content, series))
            rows.executemany(
                "insert into results values (?, ?, ?, 'waiting', 0, '', ?) on conflict (address, uid) do nothing",
                [(series, uid, address, at) for uid, address in results],
            )
            self._close(rows, series, at)
            return True

    def unsent(self, address: str, *, most: int) -> tuple[tuple[str, int], ...]:
        """Return the UIDs of results that wait to be sent to an address, each with its tries: those first that were tried least."""
        with self._looking() as rows:
            found = rows.execute(
                "select uid, attempts from results where address = ? and state = 'waiting' order by attempts, rowid limit ?",
                (address, most),
            ).fetchall()
        return tuple((row["uid"], row["attempts"]) for row in found)

    def told(self, address: str, uid: str, *, state: str, words: str, at: float, tried: bool = True) -> None:
        """Note what a destination said to a result: 'sent', 'waiting' or 'refused'."""
        with self._changing() as rows:
            rows.execute(
                "update results set state = ?, words = ?, changed = ?, attempts = attempts + ? where address = ? and uid = ?",
                (state, words, at, tried, address, uid),
            )
            for row in rows.execute(
                "select series from results where address = ? and uid = ?", (address, uid)
            ).fetchall():
                self._close(rows, row["series"], at)

    def redo(self, address: str, uid: str, *, at: float) -> None:
        """Have the series of a result explained again, since the result is lost."""
        with self._changing() as rows:
            for row in rows.execute(
                "select series from results where address = ? and uid = ?", (address, uid)
            ).fetchall():
                rows.execute("delete from results where series = ?", (row["series"],))
                rows.execute(
                    "update series set state = 'complete', content = '', changed = ? where uid = ? and state in ('explained', 'sent')",
                    (at, row["series"]),
                )

    def unchanged(self, series: str, *, at: float) -> None:
        """Note that a series is 'complete' with the content that was explained before: there is nothing to do but what still waits."""
        with self._changing() as rows:
            rows.execute(
                "update series set state = 'explained', words = '', changed = ? where uid = ? and state = 'complete'",
                (at, series),
            )
            self._close(rows, series, at)

    def beat(self, *, pid: int, aet: str, port: int, started: float, at: float) -> None:
        """Note that a node is at work here."""
        with self._changing() as rows:
            rows.execute("insert or replace into node values (1, ?, ?, ?, ?, ?)", (pid, aet, port, started, at))

    def recover(self, *, at: float) -> None:
        """Put right what a kill has left: what was being explained is to be explained, and files without a row go."""
        with self._changing() as rows:
            rows.execute("update series set state = 'complete', changed = ? where state = 'explaining'", (at,))
            kept = {row["file"] for row in rows.execute("select file from instances")}
            for path in self._files.iterdir():
                if path.name not in kept:
                    path.unlink(missing_ok=True)

    def retry_failed(self, *, at: float) -> int:
        """Bring every failed series back: to sending, if only that failed, else to explaining. Return how many."""
        with self._changing() as rows:
            rows.execute(
                "update series set state = 'explained', words = '', changed = ? where state = 'failed' and uid in "
                "(select series from results where state = 'refused')",
                (at,),
            )
            sending = int(rows.execute("select changes()").fetchone()[0])
            rows.execute("update results set state = 'waiting', attempts = 0 where state = 'refused'")
            explaining = rows.execute(
                "update series set state = 'complete', words = '', tries = 0, due = 0, changed = ? where state = 'failed' "
                "and uid in (select series from instances)",
                (at,),
            )
            return sending + explaining.rowcount

    def remove(self, series: str, *, before: str, at: float) -> int:
        """Let the images of a series go, and return how many; the series stays known, so that late instances are told from new ones."""
        with self._changing() as rows:
            if not rows.execute("select 1 from series where uid = ? and state = ?", (series, before)).fetchone():
                return 0
            files = [row["file"] for row in rows.execute("select file from instances where series = ?", (series,))]
            rows.execute("delete from instances where series = ?", (series,))
            rows.execute(
                "update series set removed = max(removed, ?), changed = ? where uid = ?", (len(files), at, series)
            )
        for name in files:
            (self._files / name).unlink(missing_ok=True)
        return len(files)

    def refused_words(self, series: str) -> tuple[str, ...]:
        """Return what destinations said to the results of a series that they refused."""
        with self._looking() as rows:
            found = rows.execute("select distinct words from results where series = ? and state = 'refused'", (series,))
            return tuple(row["words"] for row in found)

    def _put(self, one: Arrival, name: str, at: float, association: str) -> sqlite3.Row | None:
        """Note a file, and return the row of the one whose place it takes."""
        note = "an instance came again with other content; the last one counts"
        with self._changing() as rows:
            before: sqlite3.Row | None = rows.execute("select file from instances where uid = ?", (one.uid,)).fetchone()
            rows.execute(
                PUT_INSTANCE,
                (one.uid, one.series, one.sop_class, one.syntax, len(one.content), name, one.sha256, one.group, one.expected, at),
            )  # fmt: skip
            note = note if before else ""
            rows.execute(PUT_SERIES, {"uid": one.series, "study": one.study, "modality": one.modality, "peer": one.peer,
                                      "association": association, "at": at, "note": note})  # fmt: skip
        return before

    def _is_here(self, rows: sqlite3.Connection, one: Arrival) -> bool:
        found = rows.execute("select series, sha256 from instances where uid = ?", (one.uid,)).fetchone()
        return found is not None and (found["series"], found["sha256"]) == (one.series, one.sha256)

    def _again(self, one: Arrival, at: float, association: str) -> str:
        with self._changing() as rows:
            if self._is_here(rows, one):
                rows.execute(
                    "update series set arrived = ?, peer = ?, association = ?, released = 0 where uid = ? and state = 'received'",
                    (at, one.peer, association, one.series),
                )
                return "again"
        # Removed since we looked.
        return self.take(one, at=at, association=association)

    def _settle(
        self, rows: sqlite3.Connection, series: str, *, content: str, to: str, words: str, at: float, due: float
    ) -> bool:
        same = self._content(rows, series)[0] == content
        if not same:
            to, words, due = "received", "more came while it was explained", 0.0
        done = rows.execute(
            "update series set state = ?, words = ?, changed = ?, due = ? where uid = ? and state = 'explaining'",
            (to, words, at, due, series),
        )
        return same and bool(done.rowcount)

    def _close(self, rows: sqlite3.Connection, series: str, at: float) -> None:
        """Bring a series that is 'explained' on, once no result of it waits."""
        found = rows.execute(
            "select state, count(*) from results where series = ? group by state", (series,)
        ).fetchall()
        counts = {row[0]: row[1] for row in found}
        if counts.get("waiting"):
            return
        refused = counts.get("refused", 0)
        words = f"{refused} results were refused by their destination" if refused else ""
        rows.execute(
            "update series set state = ?, words = case when ? then ? else words end, changed = ? where uid = ? and state = 'explained'",
            ("failed" if refused else "sent", refused, words, at, series),
        )

    def _content(self, rows: sqlite3.Connection, series: str) -> tuple[str, tuple[Path, ...]]:
        found = rows.execute(
            "select uid, sha256, file from instances where series = ? order by uid", (series,)
        ).fetchall()
        digest = hashlib.sha256("\n".join(f"{row['uid']} {row['sha256']}" for row in found).encode()).hexdigest()
        return digest, tuple(self._files / row["file"] for row in found)

    def _write(self, name: str, content: bytes) -> None:
        path = self._files / name
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
        # The name is on disk, too, before anybody is told so.
        folder = os.open(self._files, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """Yield the rows within one transaction, which is on disk at the end of the block."""
        with self._writing, self._looking() as rows:
            rows.execute("begin immediate")
            try:
                yield rows
            except BaseException:
                rows.execute("rollback")
                raise
            rows.execute("commit")

    @contextmanager
    def _looking(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(self._connection()) as rows:
                yield rows
        except (OSError, sqlite3.Error) as error:
            words = getattr(error, "strerror", None) or str(error)
            raise OutputError(f"the queue {self.folder} cannot be used: {words}") from error

    def _connection(self) -> sqlite3.Connection:
        rows = sqlite3.connect(self.folder / "inbox.sqlite3", timeout=_PATIENCE_S, isolation_level=None)
        rows.row_factory = sqlite3.Row
        # A commit is on the disk, not in its cache, before anything is acknowledged.
        rows.execute("pragma synchronous = full")
        return rows
