"""How a node stands: read from its folder, whether it is at work or not, and changing nothing there."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from medcam.errors import InputError
from medcam.pacs.inbox_rows import SELECT_SERIES, SeriesRow, series_row

LOCK = "node.lock"
_WAITING = ("received", "complete", "explaining", "explained")


@dataclass(frozen=True)
class Destination:
    """How results stand with one destination: counts by state ('waiting', 'sent', 'refused'), and what was last said of one that waits."""

    address: str
    counts: dict[str, int]
    words: str


@dataclass(frozen=True)
class Status:
    """How a node stands.

    Parameters
    ----------
    running
        Whether a node is at work on the folder now.
    aet, port, pid, started, beat
        Of the node that is, or last was: its title, port and process, when it was started, and when it last showed that it is alive
        (seconds since 1970); '' and 0 if there never was one.
    last_change
        When a series was last changed; 0 if there is none.
    counts
        Series by state.
    oldest
        Of those that are under way, when the first instance of the oldest came; 0 without any.
    failed
        Series that failed, each with all reasons.
    instances, instance_bytes, disk_bytes, free_bytes
        How many images lie in the queue, their size, that of the whole folder, and what is free on its disk.
    """

    folder: Path
    running: bool
    aet: str
    port: int
    pid: int
    started: float
    beat: float
    last_change: float
    counts: dict[str, int]
    oldest: float
    failed: tuple[tuple[SeriesRow, tuple[str, ...]], ...]
    destinations: tuple[Destination, ...]
    instances: int
    instance_bytes: int
    disk_bytes: int
    free_bytes: int

    @property
    def under_way(self) -> int:
        """How many series are neither done nor given up."""
        return sum(self.counts.get(state, 0) for state in _WAITING)


def status_of(folder: Path) -> Status:
    """Return how the node of a folder stands.

    Raises
    ------
    InputError
        If there is no queue in it.
    """
    path = folder / "inbox.sqlite3"
    if not path.is_file():
        raise InputError(f"there is no queue in {folder}: no node has worked on it; name its folder by --folder")
    try:
        with closing(sqlite3.connect(path, timeout=10.0, isolation_level=None)) as rows:
            rows.row_factory = sqlite3.Row
            # All that is told is of one moment.
            rows.execute("begin")
            return _status(folder, rows)
    except sqlite3.Error as error:
        raise InputError(f"the queue in {folder} cannot be read ({error})") from error


def _status(folder: Path, rows: sqlite3.Connection) -> Status:
    series = [series_row(row) for row in rows.execute(f"{SELECT_SERIES} order by arrived, uid")]
    node = rows.execute("select * from node").fetchone()
    held = rows.execute("select count, size from held").fetchone()
    under_way = [one.first for one in series if one.state in _WAITING]
    return Status(
        folder=folder, running=is_running(folder), aet=node["aet"] if node else "", port=node["port"] if node else 0,
        pid=node["pid"] if node else 0, started=node["started"] if node else 0.0, beat=node["beat"] if node else 0.0,
        last_change=max((one.changed for one in series), default=0.0), counts=dict(Counter(one.state for one in series)),
        oldest=min(under_way, default=0.0),
        failed=tuple((one, _refusals(rows, one.uid)) for one in series if one.state == "failed"),
        destinations=_destinations(rows), instances=held["count"], instance_bytes=held["size"], disk_bytes=_used(folder),
        free_bytes=_free(folder),
    )  # fmt: skip


def is_running(folder: Path) -> bool:
    """Tell whether a node is at work on a folder."""
    from filelock import FileLock, Timeout

    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _refusals(rows: sqlite3.Connection, series: str) -> tuple[str, ...]:
    found = rows.execute(
        "select distinct address, words from results where series = ? and state = 'refused'", (series,)
    )
    return tuple(f"{row['address']}: {row['words']}" for row in found)


def _destinations(rows: sqlite3.Connection) -> tuple[Destination, ...]:
    counts: dict[str, dict[str, int]] = {}
    for row in rows.execute(
        "select address, state, count(*) as number from results group by address, state order by address"
    ):
        counts.setdefault(row["address"], {})[row["state"]] = row["number"]
    last = "select words from results where address = ? and state = 'waiting' and words <> '' order by changed desc limit 1"
    words = {address: rows.execute(last, (address,)).fetchone() for address in counts}
    return tuple(Destination(each, counts[each], words[each]["words"] if words[each] else "") for each in counts)


def _used(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(parent, name).lstat().st_size
            except FileNotFoundError:
                continue  # it was done with meanwhile
    return total


def _free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
