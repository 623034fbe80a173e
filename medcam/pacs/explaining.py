"""Between the inbox and the engine: complete series become jobs, and outcomes become results to be sent, or reasons."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medcam.errors import InputError, MedcamError
from medcam.formats.dicom_files import read_header, stored_file
from medcam.pacs.choosing import KEYWORDS, Choice
from medcam.pacs.forwarding import queue_results
from medcam.pacs.inbox import Inbox
from medcam.pacs.inbox_rows import SeriesRow
from medcam.pacs.peers import Peer
from medcam.pacs.readiness import Pace, why_again
from medcam.pacs.series_job import IMAGES, RESULTS, UNFIT, UNREADABLE, Made
from medcam.pacs.spool import Spool
from medcam.workers.jobs import DONE, Engine, Job, Outcome, Setup


class _StoppingError(Exception):
    """The node stops: whatever the worker does is done at the next start."""


@dataclass(frozen=True)
class Explainer:
    """Has complete series explained, one after the other.

    Parameters
    ----------
    work
        A folder for what is under way: for each series its images (links, so that nobody removes them meanwhile) and its results.
    """

    inbox: Inbox
    spool: Spool
    peers: tuple[Peer, ...]
    setup: Setup
    choice: Choice
    pace: Pace
    work: Path
    say: Callable[[str], object]
    _under_way: dict[str, str] = field(default_factory=dict)

    def run(self, engine: Engine, stop: threading.Event) -> None:
        """Explain what is complete, until told to stop."""
        self._under_way.clear()
        for series in self.inbox.series("explaining"):
            self.inbox.move(series.uid, before="explaining", to="complete", at=time.time())
        try:
            for outcome in engine(self._jobs(stop), self.setup):
                self._settle(outcome)
        except _StoppingError:
            return

    def _jobs(self, stop: threading.Event) -> Iterator[Job | None]:
        """Yield a job for each series that is complete, and None while there is none."""
        while True:
            if stop.is_set():
                raise _StoppingError
            # What is passed over takes no turn.
            yield next(filter(None, map(self._job, self.inbox.series("complete"))), None)

    def _job(self, series: SeriesRow) -> Job | None:
        """Return what the worker is to do with a series, if anything."""
        content, files = self.inbox.content(series.uid)
        try:
            words, to = self._why_not(series, files)
        except InputError as error:
            words, to = str(error), "failed"
        if words:
            self.inbox.move(series.uid, before="complete", to=to, words=words, at=time.time())
            self._tell(series.uid, to, words)
        elif content == series.content:
            self.inbox.unchanged(series.uid, at=time.time())
        elif self._laid_out(series.uid, files) and self.inbox.move(
            series.uid, before="complete", to="explaining", at=time.time()
        ):
            self._under_way[series.uid] = content
            return Job(series.uid, str(self._place(series.uid)))
        return None

    def _why_not(self, series: SeriesRow, files: tuple[Path, ...]) -> tuple[str, str]:
        if len(files) < max(series.removed, 1):
            return (
                f"{len(files)} of its images are here, and {series.removed} had been before they were removed, their results being sent; "
                "send the whole series again",
                "failed",
            )
        header = read_header(stored_file(files[0]), KEYWORDS)
        return ("", "") if header is None else (self.choice.passes_over(header), "passed")

    def _laid_out(self, uid: str, files: tuple[Path, ...]) -> bool:
        """Lay the images of a series out for the worker, and tell whether all were still there."""
        place = self._place(uid)
        shutil.rmtree(place, ignore_errors=True)
        (place / IMAGES).mkdir(parents=True)
        (place / RESULTS).mkdir()
        try:
            for path in files:
                _link(path, place / IMAGES / path.name)
        except FileNotFoundError:
            return False  # another content has come, and with it another moment
        return True

    def _settle(self, outcome: Outcome) -> None:
        """Note what came of a series."""
        uid, place = outcome.key, self._place(outcome.key)
        content = self._under_way.pop(uid)
        try:
            made = outcome.result if outcome.kind == DONE else None
            if isinstance(made, Made) and made.kind not in (UNREADABLE, UNFIT):
                self._made(uid, content, made)
            elif isinstance(made, Made) and made.kind == UNFIT:
                self._end(uid, content, "passed", made.words)
            elif made is not None:
                self._unreadable(uid, content, made.words)
            else:
                self._end(uid, content, "failed", outcome.error)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _made(self, uid: str, content: str, made: Made) -> None:
        if self.inbox.content(uid)[0] != content:
            self._end(uid, content, "received", "")
            return
        try:
            results = queue_results(self._place(uid) / RESULTS, self.peers, spool=self.spool)
        except MedcamError as error:
            self._end(uid, content, "failed", str(error))
            return
        if self.inbox.explained(uid, content=content, results=results, words=made.words, at=time.time()):
            self._tell(uid, "explained", made.words or f"{len(results)} results to send")

    def _unreadable(self, uid: str, content: str, words: str) -> None:
        now = time.time()
        series = next((one for one in self.inbox.series("explaining") if one.uid == uid), None)
        again = None if series is None else why_again(words, series, pace=self.pace, now=now)
        if again is None:
            self._end(uid, content, "failed", words)
        else:
            due, said = again
            self.inbox.settle(uid, content=content, to="received", words=said, at=now, due=due)

    def _end(self, uid: str, content: str, to: str, words: str) -> None:
        if self.inbox.settle(uid, content=content, to=to, words=words, at=time.time()):
            self._tell(uid, to, words)

    def _tell(self, uid: str, state: str, words: str) -> None:
        self.say(f"series ...{uid[-12:]}: {state}{f' ({words})' if words else ''}")

    def _place(self, uid: str) -> Path:
        return self.work / hashlib.sha256(uid.encode()).hexdigest()[:40]


def _link(path: Path, to: Path) -> None:
    try:
        os.link(path, to)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(path, to)  # a disk that knows no links
