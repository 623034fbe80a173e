"""Jobs done here, in this process, one after the other: for tests, for debugging, for one job."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from medcam.workers.doing import STAGES, tried, worker_name
from medcam.workers.jobs import DONE, FAILED, PAUSE_S, Engine, Job, Outcome, Place, Setup, Stages


def inline(*, device: str = "cpu") -> Engine:
    """Return an engine that does each job in the caller's own process before it takes the next. What ends the process ends the run."""

    def run(jobs: Iterable[Job | None], setup: Setup) -> Iterator[Outcome]:
        stages = None
        for job in jobs:
            stages = stages or setup(Place(0, device))
            if job is None:
                time.sleep(PAUSE_S)
            else:
                yield outcome_of(job, stages)

    return run


def outcome_of(job: Job, stages: Stages) -> Outcome:
    """Return what came of a job whose stages are done one after the other."""
    value, seconds = job.given, {}
    for name in STAGES:
        found = tried(getattr(stages, name), value)
        seconds[name] = found.seconds
        if found.error:
            return Outcome(job.key, FAILED, error=found.error, trace=found.trace, seconds=seconds, worker=worker_name())
        value = found.value
    return Outcome(job.key, DONE, value, seconds=seconds, worker=worker_name())
