"""How far a long run of many cases is: a line that renews itself on a terminal, else one every few seconds; and how it is ended."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import final

from medcam.commands import Say

_EVERY_S = 5.0
_BAR = 24
# A slip of the command line fails all cases alike.
_MOST_TOLD = 20


@final
class Progress:
    """Counts cases, and tells rate, remaining time and failures.

    Parameters
    ----------
    total
        How many cases there are.
    say
        Is told of failures, and of the progress where there is no terminal.
    bar
        Whether a line that renews itself is shown.
    """

    def __init__(self, total: int, say: Say, *, bar: bool) -> None:
        self._total, self._say, self._bar = total, say, bar
        self._start = self._told = time.monotonic()
        self.there = self.done = self.failed = self.passed = 0

    def was_there(self, *, failed: bool) -> None:
        """Count a case that was done before, or that failed before and is passed over."""
        self.there += not failed
        self.passed += failed
        self._tell()

    def came_out(self, line: int, error: str) -> None:
        """Count a case that is done, or that failed with this error."""
        self.done += not error
        self.failed += bool(error)
        if error and self.failed <= _MOST_TOLD:
            self._clear()
            rest = "; further ones stand in cases.csv" if self.failed == _MOST_TOLD else ""
            self._say(f"line {line} failed: {error}{rest}")
        self._tell()

    def end(self) -> None:
        """Leave the terminal as it was, and tell the last state."""
        self._clear()
        self._say(self.words())

    def words(self) -> str:
        """Return the state in words: '40 of 300 done, 2 failed, 1.3 a second, about 200 s to go'."""
        over = self.there + self.passed + self.done + self.failed
        words = [f"{self.there + self.done} of {self._total} done"]
        words += [f"{self.there} of them before"] if self.there else []
        words += [f"{self.failed} failed"] if self.failed else []
        words += [f"{self.passed} failed before and were passed over"] if self.passed else []
        made, spent = self.done + self.failed, time.monotonic() - self._start
        if made and spent > 0:
            rate = made / spent
            words.append(f"{rate:.1f} a second" if rate >= 1 else f"{1 / rate:.1f} s each")
            if over < self._total:
                words.append(f"about {_span((self._total - over) / rate)} to go")
        return ", ".join(words)

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told < (0.2 if self._bar else _EVERY_S):
            return
        self._told = now
        if not self._bar:
            self._say(self.words())
            return
        over = self.there + self.passed + self.done + self.failed
        full = _BAR * over // max(self._total, 1)
        sys.stderr.write(f"\r\x1b[K[{'#' * full}{'.' * (_BAR - full)}] {self.words()}")
        sys.stderr.flush()

    def _clear(self) -> None:
        if self._bar:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


class Stopping:
    """Whether no more is to be begun."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        """Return whether the user asked to stop."""
        return self.asked


@contextmanager
def stoppable(say: Say) -> Iterator[Stopping]:
    """Yield what tells whether to stop: asked once, by Ctrl-C or SIGTERM, what is begun is finished; asked twice, all ends now.

    Raises
    ------
    KeyboardInterrupt
        If asked twice.
    """
    stopping = Stopping()

    def ask(_number: int, _frame: FrameType | None) -> None:
        if stopping.asked:
            raise KeyboardInterrupt
        stopping.asked = True
        say("stopping: what is begun is finished; once more ends at once")

    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = {each: signal.signal(each, ask) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
