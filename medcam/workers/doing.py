"""One stage of one job: how long it took, and what is told where it failed."""

from __future__ import annotations

import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from medcam.errors import MedcamError

STAGES = ("read", "compute", "write")


@dataclass(frozen=True)
class Tried:
    """What came of a stage.

    Parameters
    ----------
    value
        What it returned; None if it failed.
    error
        One sentence without anything of a patient; '' if it did not fail.
    trace
        The lines of code that led there.
    spoilt
        Whether the device is lost to this process, so that all that follows on it would fail, too.
    """

    seconds: float
    value: Any = None
    error: str = ""
    trace: str = ""
    spoilt: bool = False


def tried(stage: Callable[[Any], Any], given: Any) -> Tried:
    """Return what came of a stage; whatever it raises is a value."""
    start = time.perf_counter()
    try:
        value = stage(given)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  even one that asks the process to end is no reason to lose the other jobs
        return Tried(time.perf_counter() - start, None, sentence(error), trace(error), _spoilt(error))
    return Tried(time.perf_counter() - start, value)


def sentence(error: BaseException) -> str:
    """Return what a user is told about an error. Only medcam's own texts are known to hold nothing of a patient, and the system's."""
    if isinstance(error, MedcamError):
        return str(error) or type(error).__name__
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "it takes more memory than there is"
    known = error.strerror if isinstance(error, OSError) else None
    return f"unexpected {type(error).__name__}{': ' if known else ''}{known or ''}; the trace tells where"


def trace(error: BaseException) -> str:
    """Return the lines of code that led to an error and to those behind it, without the messages of errors that are not medcam's."""
    parts = []
    for each in _chain(error):
        told = f": {each}" if isinstance(each, MedcamError) else ""
        parts.append("".join(traceback.format_tb(each.__traceback__)) + type(each).__name__ + told)
    return "\n\n".join(parts)


def travels(error: BaseException) -> MedcamError | None:
    """Return an error of medcam's that can be sent to another process; None for any other."""
    if not isinstance(error, MedcamError):
        return None
    try:
        same: MedcamError = pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  an error of another package's own, made of what cannot travel
        return None
    return same


def worker_name() -> str:
    """Return host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _spoilt(error: BaseException) -> bool:
    """Whether a GPU reported a fault, after which it answers this process with nothing else. Told by name: torch may not be loaded."""
    return any(type(each).__name__ == "AcceleratorError" for each in _chain(error))
