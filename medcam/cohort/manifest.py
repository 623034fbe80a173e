"""The manifest of a cohort: what became of each case, in one SQLite file that a kill at any moment leaves whole.

A row says 'done' only after the case's files are on disk under their final names, so what was under way when the process was killed is
done again, and nothing else. One process writes. Rows name cases and files as the input does, patients by number only.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, final

from medcam.errors import InputError, OutputError

NAME = "manifest.sqlite3"
WAITING, DONE = "waiting", "done"
_VERSION = 1
_LOCK = ".lock.sqlite3"
_SCHEMA = """
create table if not exists about (name text primary key, value text not null);
create table if not exists cases (
    id text primary key,
    line integer not null,
    name text not null,
    patient integer not null,
    target text not null,
    entry text not null,
    state text not null check (state in ('waiting', 'done', 'failed', 'died', 'late')),
    question text not null,
    key text not null,
    seen text not null,
    attempts integer not null,
    error text not null,
    trace text not null,
    worker text not null,
    seconds text not null,
    files text not null,
    answer text not null,
    ended text not null
);
"""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Row:
    """What became of one case. Its repr names no case.

    Parameters
    ----------
    id
        Tells it from all others of the cohort: see `id_of`.
    line, name, patient, target
        Of the table of cases: its line, the case, the number of its patient in the order of the table, the class.
    entry
        That line of the table, files named relative to the cohort's folder, its patient by number.
    state
        'waiting'; 'done', then its files are there; 'failed', 'died' or 'late' (see `medcam.workers.Outcome`), then `error` says why.
    question
        Digest of all that was asked of the case: the recipe of the run and its row of the table.
    key
        Digest of the question and of what the case's files held; '' if it is not done.
    seen
        Size and time of change of each file that it was made of, by which files that did not change are told without reading them.
    attempts
        How often it was begun, in all runs together.
    seconds
        How long reading, computing and writing took.
    files
        What was written, by its path below the cohort's folder: size, time of change and SHA-256.
    answer
        What the tables show of it while the run goes on.
    ended
        When, in UTC.
    """

    id: str
    line: int
    name: str = field(repr=False)
    patient: int
    target: str = ""
    entry: Mapping[str, Any] = field(default_factory=dict, repr=False)
    state: str = WAITING
    question: str = ""
    key: str = ""
    seen: Mapping[str, Any] = field(default_factory=dict, repr=False)
    attempts: int = 0
    error: str = ""
    trace: str = ""
    worker: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, Any] = field(default_factory=dict, repr=False)
    answer: Mapping[str, Any] = field(default_factory=dict, repr=False)
    ended: str = ""

    @property
    def failed(self) -> bool:
        """Whether it was tried in vain."""
        return self.state not in (WAITING, DONE)


_PLAIN = ("entry", "seen", "seconds", "files", "answer")
_COLUMNS = tuple(each.name for each in fields(Row))
_PUT = f"insert or replace into cases ({', '.join(_COLUMNS)}) values ({', '.join(f':{name}' for name in _COLUMNS)})"


@final
class Manifest:
    """The manifest of a folder, for the one process that writes it. Each change is on disk when its method returns.

    Parameters
    ----------
    folder
        Of the cohort; made if need be.

    Raises
    ------
    OutputError
        If the folder cannot be written to, another process writes there, or the manifest is damaged or of another version.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error
        self._lock = self._claimed()
        try:
            self._rows = self._done(lambda: sqlite3.connect(folder / NAME, isolation_level=None))
            for words in ("pragma journal_mode=wal", "pragma synchronous=full"):
                self._done(lambda words=words: self._rows.execute(words))  # type: ignore[misc]
            self._done(lambda: self._rows.executescript(_SCHEMA))
            self._file = _identity_of(folder / NAME)
            _refuse_version(self.about(), folder, OutputError)
        except OutputError:
            self._lock.close()
            raise

    def about(self) -> dict[str, Any]:
        """Return what is known of the run as a whole, by name."""
        found = self._done(lambda: self._rows.execute("select name, value from about").fetchall())
        return {name: json.loads(value) for name, value in found}

    def describe(self, about: Mapping[str, Any]) -> None:
        """Write down what is known of the run as a whole."""
        values = [(name, json.dumps(value)) for name, value in {"version": _VERSION, **about}.items()]
        self._together(lambda: self._rows.executemany("insert or replace into about values (?, ?)", values))

    def rows(self) -> dict[str, Row]:
        """Return all rows by their ids."""
        return self._done(lambda: _rows_of(self._rows))

    def put(self, rows: Iterable[Row]) -> None:
        """Write rows, in place of those of the same ids: all or none."""
        values = [
            {
                name: json.dumps(value, sort_keys=True) if name in _PLAIN else value
                for name, value in asdict(row).items()
            }
            for row in rows
        ]
        self._together(lambda: self._rows.executemany(_PUT, values))

    def drop(self, ids: Iterable[str]) -> None:
        """Forget cases that are no longer asked for."""
        gone = [(each,) for each in ids]
        self._together(lambda: self._rows.executemany("delete from cases where id = ?", gone))

    def close(self) -> None:
        """Leave the manifest as one file, for others to write."""
        self._rows.close()
        self._lock.close()

    def _claimed(self) -> sqlite3.Connection:
        """Return a connection whose lock keeps other writers out for as long as this process lives, however it ends."""
        path = self._folder / _LOCK
        try:
            lock = sqlite3.connect(path, isolation_level=None, timeout=0.5)
            lock.execute("begin exclusive")
        except sqlite3.OperationalError as error:
            words = "another run writes there" if "locked" in str(error) else str(error)
            raise OutputError(f"cannot write to {self._folder}: {words}; wait for it, or give another --out") from error
        except sqlite3.Error as error:
            raise OutputError(f"{path} is damaged ({error}); remove it") from error
        return lock

    def _together(self, change: Callable[[], object]) -> None:
        # SQLite would go on writing to a file whose folder was moved, and nobody would find it where it is looked for.
        if self._file != _identity_of(self._folder / NAME):
            raise OutputError(f"{self._folder} was moved or removed while it was written to; bring it back to go on")
        self._done(lambda: self._rows.execute("begin immediate"))
        try:
            self._done(change)
            self._done(lambda: self._rows.execute("commit"))
        except OutputError:
            # What cannot be written cannot always be rolled back either; closing does.
            with closing(self._rows.cursor()) as cursor:
                _rolled_back(cursor)
            raise

    def _done(self, step: Callable[[], _T]) -> _T:
        try:
            return step()
        except sqlite3.Error as error:
            raise OutputError(f"the manifest {self._folder / NAME} cannot be written or read: {error}") from error


def read_manifest(folder: Path) -> tuple[dict[str, Any], dict[str, Row]]:
    """Return what a manifest says of its run and of each case, without changing anything; empty where there is none.

    Raises
    ------
    InputError
        If it is damaged, or of another version.
    """
    path = folder / NAME
    if not path.is_file():
        return {}, {}
    try:
        with closing(_opened(path)) as rows:
            about = {name: json.loads(value) for name, value in rows.execute("select name, value from about")}
            _refuse_version(about, folder, InputError)
            return about, _rows_of(rows)
    except (sqlite3.Error, ValueError, TypeError) as error:
        raise InputError(f"the manifest {path} is damaged or no manifest: {error}") from error


def _opened(path: Path) -> sqlite3.Connection:
    """Return a connection that only reads. Where no writer left a journal behind, not even an empty one is made."""
    left = path.with_name(f"{NAME}-wal").exists()
    words = "mode=ro" if left else "mode=ro&immutable=1"
    return sqlite3.connect(f"{path.resolve().as_uri()}?{words}", uri=True)


def _rows_of(rows: sqlite3.Connection) -> dict[str, Row]:
    found = {}
    for values in rows.execute(f"select {', '.join(_COLUMNS)} from cases order by line, id"):
        plain = {
            name: json.loads(value) if name in _PLAIN else value for name, value in zip(_COLUMNS, values, strict=True)
        }
        found[str(plain["id"])] = Row(**plain)
    return found


def _identity_of(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from one that came in its place; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _rolled_back(cursor: sqlite3.Cursor) -> None:
    try:
        cursor.execute("rollback")
    except sqlite3.Error:
        return


def _refuse_version(about: Mapping[str, Any], folder: Path, kind: type[InputError] | type[OutputError]) -> None:
    version = about.get("version", _VERSION)
    if version != _VERSION:
        raise kind(
            f"{folder} holds a cohort of version {version}; this medcam writes version {_VERSION}: give another folder"
        )
