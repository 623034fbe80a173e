"""What an engine is: a map from jobs to outcomes. It knows nothing of images; a failed job is a value, not an exception."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from medcam.errors import MedcamError

DONE, FAILED, DIED, LATE = "done", "failed", "died", "late"


@dataclass(frozen=True)
class Job:
    """One thing to do.

    Parameters
    ----------
    key
        Tells it from all other jobs of a run.
    given
        What its first stage gets: small, and fit to be pickled.
    """

    key: str
    given: Any


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Parameters
    ----------
    kind
        'done'; 'failed', it raised; 'died', its worker ended under it, as often as it was tried; 'late', it took longer than allowed.
    result
        What its last stage returned, if it is done.
    error
        What the user is told otherwise: one sentence, without anything of a patient.
    trace
        Where it failed, for developers.
    seconds
        How long each stage took, by its name: 'read', 'compute', 'write'.
    worker
        Who did it: host and process.
    attempts
        How often it was begun.
    """

    key: str
    kind: str
    result: Any = None
    error: str = ""
    trace: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    worker: str = ""
    attempts: int = 1


@dataclass(frozen=True)
class Stages:
    """How a worker does a job: what `read` returns goes to `compute`, what that returns to `write`, whose answer is the result.

    Stages of different jobs may overlap, each in a thread of its own: while one job is computed, the next is read and the last written.
    The result travels between processes, so it is small and fit to be pickled; all else stays in the worker.
    """

    read: Callable[[Any], Any]
    compute: Callable[[Any], Any]
    write: Callable[[Any], Any]


@dataclass(frozen=True)
class Place:
    """Where a worker stands: its number among the workers of its machine, from 0, and the device it has to itself ('cpu', 'cuda:1')."""

    number: int = 0
    device: str = "cpu"


class WorkersLostError(MedcamError):
    """The workers, or what hands them their jobs, are gone. What was done stands; the jobs without an outcome can be given again."""


# Called once in each worker, to load what all its jobs share (the network). It travels to the worker, so it is a frozen value with a
# `__call__`, of a module that the worker can import (not of `__main__`). A MedcamError that it raises ends the run: no worker could do
# better. What it leaves behind in its process is gone with it.
Setup = Callable[[Place], Stages]

# Jobs are taken from the iterable one by one as workers come free, so whoever gives them can stop giving; what was taken is still
# answered. One who has none now, but may have one later, gives None, and is asked again after PAUSE_S. Outcomes come as they are there, in
# any order, one for each job. Closing the iterator ends the workers at once.
Engine = Callable[[Iterable[Job | None], Setup], Iterator[Outcome]]

PAUSE_S = 0.2

# Where the engines are. Each is a function whose keyword-only parameters are its options, and which returns an Engine.
ENGINES = {
    "inline": "medcam.workers.inline:inline",
    "local": "medcam.workers.local:local",
    "dask": "medcam.workers.dask_cluster:dask",
}
