"""The worker's side of local worker processes: it does what it is told over a pipe, reading, computing and writing three jobs at once.

What a worker says (the driver's side is `process`):

    ("ready", name)                 it is set up
    ("unfit", error, sentence, trace)   it cannot be: the MedcamError, if it was one
    ("want",)                       it could begin to read another job
    ("begun", number, stage)        it works on this stage of a job
    ("over", number, stage, seconds)
    ("done", number, result)        pickled, so that what cannot travel is the job's own failure
    ("failed", number, sentence, trace, whether it ends now since its device is lost to it)

What it is told: (number, given), or None when there is nothing more. A closed pipe means that the driver is gone, and ends it at once.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Lock, Semaphore, Thread
from typing import IO, Any

from medcam.workers.doing import sentence, trace, travels, tried, worker_name
from medcam.workers.jobs import Place, Stages

Message = tuple[Any, ...]


def serve(orders: IO[bytes], answers: IO[bytes]) -> None:
    """Do jobs until told to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who stops the run is for the driver to decide
    line = _Line(answers)
    try:
        packed, place, threads = pickle.load(orders)
    except EOFError:
        return
    # From here on somebody notices when the driver goes.
    Thread(target=_listen, args=(orders, line.orders), daemon=True).start()
    stages = _set_up(packed, place, threads, line)
    line.tell(("ready", worker_name()))
    reading = Thread(target=_read, args=(stages, line), daemon=True)
    writing = Thread(target=_write, args=(stages, line), daemon=True)
    reading.start()
    writing.start()
    _compute(stages, line)
    writing.join()


@dataclass
class _Handing:
    """Hands one thing at a time from a stage to the next, which says when it has room; never is more than one waiting."""

    room: Semaphore = field(default_factory=lambda: Semaphore(1))
    things: SimpleQueue[Any] = field(default_factory=SimpleQueue)


@dataclass
class _Line:
    """What the threads of a worker share."""

    answers: IO[bytes]
    orders: SimpleQueue[Any] = field(default_factory=SimpleQueue)
    lock: Lock = field(default_factory=Lock)
    to_compute: _Handing = field(default_factory=_Handing)
    to_write: _Handing = field(default_factory=_Handing)

    def tell(self, message: Message) -> None:
        with self.lock:
            try:
                pickle.dump(message, self.answers, pickle.HIGHEST_PROTOCOL)
                self.answers.flush()
            except OSError:
                os._exit(1)  # nobody listens any more

    def do(self, number: int, name: str, stage: Callable[[Any], Any], given: Any) -> tuple[Any] | None:
        """Return what a stage returned, in a tuple; None if it failed, which is told."""
        self.tell(("begun", number, name))
        found = tried(stage, given)
        self.tell(("over", number, name, found.seconds))
        if not found.error:
            return (found.value,)
        self.tell(("failed", number, found.error, found.trace, found.spoilt))
        if found.spoilt:
            os._exit(1)  # another process can use the device again
        return None


def _listen(orders: IO[bytes], jobs: SimpleQueue[Any]) -> None:
    while True:
        try:
            job = pickle.load(orders)
        except (EOFError, OSError):
            os._exit(1)
        jobs.put(job)
        if job is None:
            return


def _set_up(packed: bytes, place: Place, threads: int, line: _Line) -> Stages:
    try:
        stages: Stages = pickle.loads(packed)(place)
    except BaseException as error:  # noqa: BLE001  whatever it is, the driver tells it
        line.tell(("unfit", travels(error), sentence(error), trace(error)))
        os._exit(1)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
    return stages


def _read(stages: Stages, line: _Line) -> None:
    """Read a job as soon as the one read before is being computed."""
    while True:
        line.to_compute.room.acquire()
        line.tell(("want",))
        job = line.orders.get()
        if job is None:
            line.to_compute.things.put(None)
            return
        number, given = job
        found = line.do(number, "read", stages.read, given)
        if found is None:
            line.to_compute.room.release()
        else:
            line.to_compute.things.put((number, *found))
        # A thread that waits for its next job keeps nothing of the last: here, and below.
        del job, given, found


def _compute(stages: Stages, line: _Line) -> None:
    """Compute what was read, and wait until the writer has room for it."""
    while True:
        job = line.to_compute.things.get()
        line.to_compute.room.release()
        if job is None:
            line.to_write.things.put(None)
            return
        number, given = job
        del job
        found = line.do(number, "compute", stages.compute, given)
        del given
        if found is not None:
            line.to_write.room.acquire()
            line.to_write.things.put((number, *found))
        del found


def _write(stages: Stages, line: _Line) -> None:
    """Write what was computed, and answer with what that returns."""
    while True:
        job = line.to_write.things.get()
        if job is None:
            return
        number, given = job
        del job
        found = line.do(number, "write", stages.write, given)
        del given
        line.to_write.room.release()
        if found is not None:
            _answer(line, number, found[0])


def _answer(line: _Line, number: int, result: Any) -> None:
    try:
        packed = pickle.dumps(result, pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # noqa: BLE001  objects that cannot be pickled raise nearly anything
        line.tell(("failed", number, "its result cannot travel between processes", trace(error), False))
        return
    line.tell(("done", number, packed))


def main(descriptor: int) -> None:
    """Serve with orders from standard input and answers to a descriptor. What libraries print goes to standard error."""
    orders = os.fdopen(os.dup(0), "rb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    with orders, os.fdopen(descriptor, "wb") as answers:
        serve(orders, answers)
