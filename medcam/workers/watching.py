"""Who works on what, and what becomes of the jobs of a worker that dies."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from medcam.workers.jobs import DIED, DONE, FAILED, LATE, PAUSE_S, Job, Outcome, Place, WorkersLostError
from medcam.workers.process import GONE, Process, unpacked

# After so many deaths in a row that no job is to blame for, the fault is not the jobs'.
_FRUITLESS = 3
_DOING = {"read": "it was read", "compute": "it was computed", "write": "its results were written"}


@dataclass(frozen=True)
class Rules:
    """What `local` was asked for."""

    places: tuple[Place, ...]
    threads: int
    limit_s: float | None
    tries: int


@dataclass(eq=False)
class _Task:
    """A job that was taken and has no outcome yet."""

    number: int
    job: Job
    attempts: int = 0
    deaths: int = 0
    stage: str = ""  # what is being done; '' while it waits
    since: float = 0.0
    used_s: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    def begin(self) -> None:
        self.attempts += 1
        self.stage, self.used_s, self.seconds = "", 0.0, {}


@dataclass(eq=False)
class _Worker:
    """A process and what it has been given."""

    process: Process
    name: str = ""
    ready: bool = False
    wants: bool = False
    tasks: dict[int, _Task] = field(default_factory=dict)
    late: _Task | None = None
    excused: bool = False  # it is about to end for a reason that is known


@dataclass(eq=False)
class Watch:
    """A run of local workers."""

    rules: Rules
    setup: bytes
    source: Iterator[Job | None]
    _exhausted: bool = False
    _taken: int = 0
    _ask_at: float = 0.0  # when whoever had no job will be asked again
    _waiting: deque[_Task] = field(default_factory=deque)
    # Of those which died with a worker that did several jobs at once: each is done alone in the place of that worker.
    _suspects: dict[Place, deque[_Task]] = field(default_factory=dict)
    _workers: dict[Place, _Worker] = field(default_factory=dict)
    _heard: SimpleQueue[tuple[Process, tuple[Any, ...]]] = field(default_factory=SimpleQueue)
    _fruitless: int = 0

    def outcomes(self) -> Iterator[Outcome]:
        """Yield what comes of each job."""
        first = self._take()
        if first is None and self._exhausted:
            return
        if first is not None:
            self._waiting.append(first)
        # One worker is made ready even if there is no job yet: whether it can be is known at once.
        self._start(self.rules.places[0])
        while True:
            self._hand_out()
            if self._exhausted and not self._open():
                break
            for process, message in self._messages():
                yield from self._answered(process, message)
            self._end_late()
        for worker in self._workers.values():
            worker.process.tell(None)
        for worker in self._workers.values():
            worker.process.leave()
        self._workers.clear()

    def close(self) -> None:
        """End all workers at once."""
        for worker in self._workers.values():
            worker.process.kill()
        for worker in self._workers.values():
            worker.process.ended()
        self._workers.clear()

    def _open(self) -> bool:
        """Whether a job has no outcome yet."""
        held = any(worker.tasks for worker in self._workers.values())
        return held or bool(self._waiting) or any(self._suspects.values())

    def _take(self) -> _Task | None:
        if self._exhausted or time.monotonic() < self._ask_at:
            return None
        try:
            job = next(self.source)
        except StopIteration:
            self._exhausted = True
            return None
        if job is None:
            self._ask_at = time.monotonic() + PAUSE_S
            return None
        self._taken += 1
        return _Task(self._taken, job)

    def _start(self, place: Place) -> None:
        process = Process(place, self.setup, self.rules.threads, lambda *heard: self._heard.put(heard))
        self._workers[place] = _Worker(process)

    def _hand_out(self) -> None:
        """Give each worker that wants a job one, and fill empty places while there are jobs that nobody is about to take."""
        for place, worker in self._workers.items():
            if worker.wants and not worker.excused:
                self._give(worker, self._suspects.get(place))
        for place in self.rules.places:
            if place not in self._workers and (self._suspects.get(place) or self._spare()):
                self._start(place)

    def _give(self, worker: _Worker, suspects: deque[_Task] | None) -> None:
        alone = any(task.deaths for task in worker.tasks.values())
        if alone or (suspects and worker.tasks):
            return
        task = suspects.popleft() if suspects else self._waiting.popleft() if self._waiting else self._take()
        if task is None:
            return
        worker.wants = False
        worker.tasks[task.number] = task
        task.begin()
        worker.process.tell((task.number, task.job.given))

    def _spare(self) -> bool:
        """Whether there is a job beyond those for the workers that are about to take their first."""
        empty = sum(not worker.tasks for worker in self._workers.values())
        while len(self._waiting) <= empty:
            task = self._take()
            if task is None:
                return False
            self._waiting.append(task)
        return True

    def _messages(self) -> Iterator[tuple[Process, tuple[Any, ...]]]:
        """Wait for a message, or until there may be something else to do, and yield all that there are."""
        try:
            yield self._heard.get(timeout=self._wait_s())
            while True:
                yield self._heard.get_nowait()
        except Empty:
            return

    def _wait_s(self) -> float | None:
        idle = len(self._workers) < len(self.rules.places) or any(worker.wants for worker in self._workers.values())
        left = [PAUSE_S] if idle and not self._exhausted else []
        if self.rules.limit_s is not None:
            now = time.monotonic()
            tasks = [task for worker in self._workers.values() for task in worker.tasks.values() if task.stage]
            left += [max(0.0, self.rules.limit_s - task.used_s - (now - task.since)) + 0.01 for task in tasks]
        return min(left, default=None)

    def _end_late(self) -> None:
        """Kill the worker of a job that takes too long. All that was said so far has been heard."""
        limit = self.rules.limit_s
        for worker in self._workers.values() if limit is not None else ():
            for task in worker.tasks.values():
                if task.stage and not worker.excused and task.used_s + time.monotonic() - task.since > (limit or 0):
                    worker.late, worker.excused = task, True
                    worker.process.kill()

    def _answered(self, process: Process, message: tuple[Any, ...]) -> Iterator[Outcome]:
        place = process.place
        worker = self._workers[place]
        match message:
            case ("ready", name):
                worker.ready, worker.name = True, name
            case ("unfit", error, told, _):
                raise error or WorkersLostError(f"a worker could not be set up: {told}")
            case ("want",):
                worker.wants = True
            case ("begun", number, stage):
                task = worker.tasks[number]
                task.stage, task.since = stage, time.monotonic()
            case ("over", number, stage, seconds):
                task = worker.tasks[number]
                task.stage, task.seconds[stage] = "", seconds
                task.used_s += seconds
            case ("done", number, result):
                self._fruitless = 0
                yield _outcome(worker, worker.tasks.pop(number), DONE, result=unpacked(result))
            case ("failed", number, told, trace, spoilt):
                self._fruitless, worker.excused = 0, spoilt
                yield _outcome(worker, worker.tasks.pop(number), FAILED, error=told, trace=trace)
            case (last,) if last == GONE:
                yield from self._buried(place)

    def _buried(self, place: Place) -> Iterator[Outcome]:
        """Sort the jobs of a worker that is gone."""
        worker = self._workers.pop(place)
        how = worker.process.ended()
        working = [task for task in worker.tasks.values() if task.stage]
        if worker.late and worker.late.number in worker.tasks:
            doing = f" while {_DOING[worker.late.stage]}" if worker.late.stage else ""
            told = f"it took longer than the {self.rules.limit_s:g} s allowed{doing}"
            yield _outcome(worker, worker.tasks.pop(worker.late.number), LATE, error=told)
        elif working and not worker.excused:
            yield from self._blamed(place, worker, working, how)
        elif not worker.excused:
            self._mourn(worker, how)
        # Whoever waited is not to blame, and comes first.
        self._waiting.extendleft(reversed(worker.tasks.values()))

    def _blamed(self, place: Place, worker: _Worker, working: list[_Task], how: str) -> Iterator[Outcome]:
        for task in working:
            del worker.tasks[task.number]
            task.deaths += 1
            if len(working) == 1 and task.deaths >= self.rules.tries:
                times = f" ({task.deaths} workers ended like that)" if task.deaths > 1 else ""
                yield _outcome(worker, task, DIED, error=f"its worker {how} while {_DOING[task.stage]}{times}")
            else:
                self._suspects.setdefault(place, deque()).append(task)

    def _mourn(self, worker: _Worker, how: str) -> None:
        """Count a death that no job is to blame for, and give up after some in a row."""
        self._fruitless += 1
        if self._fruitless >= _FRUITLESS:
            when = "without a job under way" if worker.ready else "before they were set up"
            raise WorkersLostError(
                f"{self._fruitless} workers in a row ended {when}; the last {how}. Use fewer workers if memory is short; else what "
                "stands above on standard error may tell why"
            )


def _outcome(
    worker: _Worker, task: _Task, kind: str, *, result: Any = None, error: str = "", trace: str = ""
) -> Outcome:
    return Outcome(task.job.key, kind, result, error, trace, task.seconds, worker.name, task.attempts)
