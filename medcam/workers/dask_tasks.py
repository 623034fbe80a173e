"""What runs in a Dask worker: the stages of one job after the other, on what was set up there once. Loaded only where Dask is."""

from __future__ import annotations

import pickle
from dataclasses import replace
from threading import Lock
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker

from medcam.errors import MedcamError
from medcam.workers.doing import sentence, trace, travels, worker_name
from medcam.workers.inline import outcome_of
from medcam.workers.jobs import DONE, FAILED, Job, Outcome, Place, Stages


class Crew(WorkerPlugin):
    """What a worker keeps for all jobs of a run.

    Parameters
    ----------
    topic
        Tells the run from others on the same workers.
    setup
        Pickled.
    device
        What the worker computes on.
    """

    def __init__(self, topic: str, setup: bytes, device: str) -> None:
        self.name = topic
        self._setup, self._device = setup, device

    def setup(self, worker: Worker) -> None:
        """Make ready to be set up with the first job: what takes long must not keep a worker from answering its scheduler."""
        self._worker, self._lock = worker, Lock()
        self._stages: Stages | None = None

    def done(self, number: int, job: Job) -> Outcome:
        """Return what came of a job. A worker with several threads does one job at a time, too."""
        with self._lock:
            if self._stages is None:
                name = self._worker.name
                place = Place(name if isinstance(name, int) else 0, self._device)
                self._stages = pickle.loads(self._setup)(place)
            self._worker.log_event(self.name, {"number": number, "address": self._worker.address})
            return outcome_of(job, self._stages)


def do(topic: str, number: int, job: Job) -> Outcome | tuple[MedcamError | None, str]:
    """Return what came of a job, its result pickled; or why the worker cannot be set up."""
    crew: Any = get_worker().plugins[topic]
    try:
        outcome: Outcome = crew.done(number, job)
    except Exception as error:  # noqa: BLE001  whatever the setup raised, the driver tells it
        return travels(error), sentence(error)
    return _sealed(outcome)


def _sealed(outcome: Outcome) -> Outcome:
    """Return an outcome whose result cannot fail to travel."""
    if outcome.kind != DONE:
        return outcome
    try:
        return replace(outcome, result=pickle.dumps(outcome.result, pickle.HIGHEST_PROTOCOL))
    except Exception as error:  # noqa: BLE001  objects that cannot be pickled raise nearly anything
        told = "its result cannot travel between processes"
        return Outcome(outcome.key, FAILED, None, told, trace(error), outcome.seconds, worker_name())
