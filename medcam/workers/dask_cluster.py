"""Jobs done on a Dask cluster, of this machine or of many."""

from __future__ import annotations

import contextlib
import importlib
import logging
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Any

from medcam.errors import MedcamError, UsageError
from medcam.workers.jobs import DIED, DONE, LATE, PAUSE_S, Engine, Job, Outcome, Setup, WorkersLostError
from medcam.workers.process import WAITING, packed, unpacked

# How often the scheduler is asked who its workers are.
_COUNT_S = 2.0
_CONNECT_S = 30.0
_LOST = "; what was done stands: start the scheduler and its workers again, and give the same command to go on"


def dask(
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    gpu: bool = False,
    limit_s: float | int | None = None,
    tries: int = 3,
    wait_s: float | int = 300,
) -> Engine:
    """Return an engine on a Dask cluster, whose workers need medcam installed in the same version.

    A worker does one job at a time, reads, computes and writes it; as many jobs are with the scheduler as it has workers. Dask gives a
    job of a worker that died to another, and one whose worker had finished it, but not handed it on, too: stages may run twice, and must
    not mind. When the iterator is closed, jobs under way on workers of others run to their end.

    Parameters
    ----------
    scheduler
        Its address ('tcp://10.0.0.1:8786'); None for a cluster of this machine's own, for as long as the run.
    workers
        How many processes a cluster of this machine's own has; None for one a processor.
    gpu
        Whether a job needs one unit of the resource GPU of its worker (`dask worker --resources GPU=1`, one worker for each device). The
        device is then called 'cuda:0': each worker sees its own alone, as with dask-cuda.
    limit_s
        How long a job may be worked on; None for ever. Its worker is restarted, if a nanny watches it, and the outcome is 'late'.
    tries
        With how many dead workers a job's outcome is 'died', on a cluster of this machine's own; another's scheduler has its own
        number (`distributed.scheduler.allowed-failures`, 3, and one more).
    wait_s
        How long the run waits while there is no worker that could do a job.

    Raises
    ------
    UsageError
        If Dask is not installed, a number is out of range, or a cluster of this machine's own is asked for GPUs.
    MedcamError
        While it runs: what the setup raised in a worker.
    WorkersLostError
        While it runs: if the scheduler is gone or never there, or all workers are.
    """
    try:
        importlib.import_module("distributed")
    except ImportError as error:
        raise UsageError("the engine dask needs the package distributed: pip install 'medcam-xai[dask]'") from error
    for name, value in (("workers", 1 if workers is None else workers), ("tries", tries)):
        if value < 1:
            raise UsageError(f"{name} is a whole number of at least 1, not {value!r}")
    for name, seconds in (("limit_s", limit_s), ("wait_s", wait_s)):
        if seconds is not None and not seconds > 0:
            raise UsageError(f"{name} is a number of seconds above 0, not {seconds!r}")
    if gpu and scheduler is None:
        raise UsageError(
            "a cluster of this machine's own has no GPUs: give the scheduler of one that has, or use the engine local"
        )
    rules = _Rules(scheduler, workers, gpu, None if limit_s is None else float(limit_s), tries, float(wait_s))

    def run(jobs: Iterable[Job | None], setup: Setup) -> Iterator[Outcome]:
        source, sent = iter(jobs), packed(setup)
        first = next(source, ...)
        if first is ...:
            return
        with _client(rules) as client:
            yield from _Flight(rules, client, _put_back(first, source), sent).outcomes()

    return run


@dataclass(frozen=True)
class _Rules:
    scheduler: str | None
    workers: int | None
    gpu: bool
    limit_s: float | None
    tries: int
    wait_s: float


@dataclass(eq=False)
class _Sent:
    """A job that is with the scheduler."""

    job: Job
    future: Any = None
    begun: int = 0
    given_up: int = 0  # how often Dask said that its workers died
    since: float = 0.0
    address: str = ""


@dataclass(eq=False)
class _Flight:
    """A run on a cluster."""

    rules: _Rules
    client: Any
    source: Iterator[Job | None]
    setup: bytes
    _topic: str = field(default_factory=lambda: f"medcam-{uuid.uuid4().hex}")
    _heard: SimpleQueue[tuple[str, int, str]] = field(default_factory=SimpleQueue)
    _sent: dict[int, _Sent] = field(default_factory=dict)
    _taken: int = 0
    _exhausted: bool = False
    _ask_at: float = 0.0
    _room: int = 0
    _counted_at: float = -1e9
    _seen_at: float = field(default_factory=time.monotonic)

    def outcomes(self) -> Iterator[Outcome]:
        """Yield what comes of each job."""
        from medcam.workers.dask_tasks import Crew

        try:
            self.client.subscribe_topic(self._topic, self._begun)
            self.client.register_plugin(Crew(self._topic, self.setup, "cuda:0" if self.rules.gpu else "cpu"))
            while not (self._exhausted and not self._sent):
                self._send()
                for what, number, address in self._news():
                    if what == "begun" and number in self._sent:
                        sent = self._sent[number]
                        sent.begun, sent.since, sent.address = sent.begun + 1, time.monotonic(), address
                    elif what == "ended" and number in self._sent:
                        yield from self._answered(number)
                yield from self._late()
                if self.client.status != "running":
                    raise WorkersLostError(f"the Dask scheduler is gone{_LOST}")
        finally:
            self._clear_up()

    def _begun(self, event: tuple[float, dict[str, Any]]) -> None:
        self._heard.put(("begun", event[1]["number"], event[1]["address"]))

    def _send(self) -> None:
        """Give the scheduler as many jobs as there are workers for."""
        self._count()
        while len(self._sent) < self._room and not self._exhausted and time.monotonic() >= self._ask_at:
            job = next(self.source, ...)
            if job is ...:
                self._exhausted = True
            elif job is None:
                self._ask_at = time.monotonic() + PAUSE_S
            else:
                self._taken += 1
                self._sent[self._taken] = _Sent(job)
                self._submit(self._taken)

    def _submit(self, number: int) -> None:
        from medcam.workers.dask_tasks import do

        sent = self._sent[number]
        sent.future = self.client.submit(
            do, self._topic, number, sent.job, key=f"{self._topic}-{number}-{sent.given_up}", pure=False,
            resources={"GPU": 1} if self.rules.gpu else None,
        )  # fmt: skip
        sent.future.add_done_callback(lambda _: self._heard.put(("ended", number, "")))

    def _count(self) -> None:
        """Ask now and then how many workers there are that could do a job, and give up when there have been none for long."""
        now = time.monotonic()
        if now - self._counted_at < _COUNT_S:
            return
        try:
            workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        except Exception as error:  # whatever the connection raises
            raise WorkersLostError(f"the Dask scheduler does not answer ({type(error).__name__}){_LOST}") from error
        self._room = sum(not self.rules.gpu or each.get("resources", {}).get("GPU", 0) >= 1 for each in workers)
        self._counted_at = now
        if self._room:
            self._seen_at = now
        elif now - self._seen_at > self.rules.wait_s:
            kind = "worker with the resource GPU" if self.rules.gpu else "worker"
            raise WorkersLostError(f"the Dask scheduler has had no {kind} for {self.rules.wait_s:g} s{_LOST}")

    def _news(self) -> Iterator[tuple[str, int, str]]:
        with contextlib.suppress(Empty):
            yield self._heard.get(timeout=PAUSE_S)
            while True:
                yield self._heard.get_nowait()

    def _answered(self, number: int) -> Iterator[Outcome]:
        from distributed import KilledWorker

        sent = self._sent[number]
        try:
            found = sent.future.result()
        except KilledWorker as error:
            deaths = error.allowed_failures + 1
            sent.given_up += 1
            # Dask blames all that a dead worker had before it, also what only waited there: that is tried again, once.
            if sent.begun < deaths and sent.given_up == 1:
                self._submit(number)
                return
            told = f"its worker ended, as when memory runs out ({deaths} workers ended like that)"
            yield Outcome(sent.job.key, DIED, error=told, attempts=max(sent.begun, deaths))
        except Exception as error:
            if sent.future.status == "error":
                raise WorkersLostError(
                    f"a Dask worker could not do what medcam asked of it ({type(error).__name__}): is medcam installed there, in this "
                    "version?"
                ) from error
            raise WorkersLostError(f"the Dask scheduler is gone{_LOST}") from error
        else:
            yield _opened(found, sent)
        del self._sent[number]

    def _late(self) -> Iterator[Outcome]:
        """Restart the workers of jobs that take too long."""
        limit = self.rules.limit_s
        if limit is None:
            return
        for number, sent in list(self._sent.items()):
            if not sent.begun or sent.future.done() or time.monotonic() - sent.since <= limit:
                continue
            del self._sent[number]
            # First it is given up, so that no other worker gets it.
            sent.future.cancel(force=True)
            with contextlib.suppress(Exception):  # a worker without a nanny goes on
                self.client.restart_workers([sent.address], timeout=30, raise_for_error=False)
            yield Outcome(
                sent.job.key,
                LATE,
                error=f"it took longer than the {limit:g} s allowed",
                worker=sent.address,
                attempts=sent.begun,
            )

    def _clear_up(self) -> None:
        """Leave nothing on workers that are not ours."""
        if self.client.status != "running":
            return
        with contextlib.suppress(Exception):  # what cannot be cleared up goes with the scheduler
            self.client.cancel([sent.future for sent in self._sent.values()], force=True)
            self.client.unregister_worker_plugin(self._topic)
            self.client.unsubscribe_topic(self._topic)


def _opened(found: Any, sent: _Sent) -> Outcome:
    if isinstance(found, Outcome):
        return replace(
            found, result=unpacked(found.result) if found.kind == DONE else None, attempts=max(1, sent.begun)
        )
    known: MedcamError | None = found[0]
    raise known or WorkersLostError(f"a worker could not be set up: {found[1]}")


@contextlib.contextmanager
def _client(rules: _Rules) -> Iterator[Any]:
    import dask as configured
    from distributed import Client, LocalCluster

    with contextlib.ExitStack() as stack:
        if rules.scheduler is None:
            environment = {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in WAITING.items()}
            stack.enter_context(
                configured.config.set({"distributed.scheduler.allowed-failures": rules.tries - 1, **environment})
            )
            address = stack.enter_context(
                # Without an address, its web page would take port 8787, and be open to the network.
                LocalCluster(
                    n_workers=rules.workers,
                    threads_per_worker=1,
                    dashboard_address="127.0.0.1:0",
                    silence_logs=logging.CRITICAL,
                )
            )
        else:
            address = rules.scheduler
        try:
            client = stack.enter_context(Client(address, set_as_default=False, timeout=min(_CONNECT_S, rules.wait_s)))
        except (OSError, ValueError) as error:
            raise WorkersLostError(f"there is no Dask scheduler at {rules.scheduler}: {error}") from error
        yield client


def _put_back(first: Job | None, rest: Iterator[Job | None]) -> Iterator[Job | None]:
    yield first
    yield from rest
