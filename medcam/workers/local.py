"""Jobs done by worker processes on this machine, which are watched and replaced."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from medcam.errors import UsageError
from medcam.workers.jobs import Engine, Job, Outcome, Place, Setup
from medcam.workers.process import packed
from medcam.workers.watching import Rules, Watch


def local(
    *,
    workers: int | None = None,
    devices: Sequence[str] = (),
    threads: int | None = None,
    limit_s: float | int | None = None,
    tries: int = 3,
) -> Engine:
    """Return an engine of worker processes on this machine.

    Each reads a job's input while it computes the job before and writes the one before that, so it holds three jobs at most. A worker
    that dies is replaced. If one job alone was under way in it, that job is to blame; if several were, each is done again alone, so that
    the next death tells which. A job that only waited is not to blame and is done by another worker.

    Parameters
    ----------
    workers
        How many processes; None for one for each device, or, without devices, for every second processor.
    devices
        The devices that workers have to themselves, in turn: 'cuda:0', 'cuda:1'.
    threads
        How many threads compute in each worker; None for what OMP_NUM_THREADS says, or to divide the processors among the workers.
    limit_s
        How long a job may be worked on; None for ever. The worker of one that takes longer is ended, and the job's outcome is 'late'.
    tries
        With how many dead workers a job's outcome is 'died'.

    Raises
    ------
    UsageError
        If a number is out of range; while it runs, if the setup cannot travel to a worker.
    MedcamError
        While it runs: what the setup raised in a worker.
    WorkersLostError
        While it runs: if workers cannot be set up, or die again and again without a job to blame.
    """
    processors = _processors()
    count = (len(devices) or max(1, processors // 2)) if workers is None else workers
    each = (_threads_asked() or max(1, processors // max(1, count))) if threads is None else threads
    for name, value in (("workers", count), ("threads", each), ("tries", tries)):
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"{name} is a whole number of at least 1, not {value!r}")
    if limit_s is not None and not limit_s > 0:
        raise UsageError(f"the time limit of a job is a number of seconds above 0, not {limit_s!r}")
    places = tuple(Place(number, devices[number % len(devices)] if devices else "cpu") for number in range(count))
    rules = Rules(places, each, None if limit_s is None else float(limit_s), tries)

    def run(jobs: Iterable[Job | None], setup: Setup) -> Iterator[Outcome]:
        watch = Watch(rules, packed(setup), iter(jobs))
        try:
            yield from watch.outcomes()
        finally:
            watch.close()

    return run


def _threads_asked() -> int:
    """Return how many threads the environment asks for, 0 if it does not."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() else 0


def _processors() -> int:
    """Return how many processors this process may use, which on a cluster is less than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
