"""A Dask cluster whose workers and scheduler die: no job is lost or doubled, and what is lost is told."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from medcam.errors import UsageError
from medcam.workers.dask_cluster import dask
from medcam.workers.jobs import WorkersLostError
from workers.stand_ins import Obedient
from workers.test_contract import by_key, jobs, marks
from workers.test_local import gone_within

PATHS = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])


@dataclass
class Cluster:
    """A scheduler and its workers, each a process of its own."""

    address: str
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]]


def started(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "dask", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": PATHS},
        start_new_session=True,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with what it started, and wait for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    scheduler = started("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
    common = ("--nthreads", "1", "--no-dashboard", "--resources")
    workers = [started("worker", address, *common, "GPU=1"), started("worker", address, *common, "disk=1")]
    try:
        yield Cluster(address, scheduler, workers)
    finally:
        for process in (*workers, scheduler):
            end(process)


@pytest.mark.slow
def test_a_job_that_kills_its_workers_is_passed_over(tmp_path: Path) -> None:
    deeds = [{"read": "sleep 0.05", **deed} for deed in ({}, {"compute": "kill"}, {"compute": "kill once"}, {}, {}, {})]
    found = by_key(dask(workers=2, tries=2)(jobs(*deeds), Obedient(str(tmp_path), setup="threads")))
    assert {mark.split("-")[2] for mark in marks(tmp_path, "threads")} == {"PASSIVE"}
    assert [key for key, outcome in found.items() if outcome.kind != "done"] == ["k1"]
    assert found["k1"].kind == "died"
    # Dask may blame it once for a death while it waited; then it is tried anew.
    assert 2 <= found["k1"].attempts <= 4
    assert found["k1"].error == "its worker ended, as when memory runs out (2 workers ended like that)"
    assert found["k2"].attempts == 2
    assert gone_within([int(mark.split("-")[3]) for mark in marks(tmp_path, "setup")], 5)


@pytest.mark.slow
def test_jobs_go_to_workers_that_have_what_they_need(cluster: Cluster, tmp_path: Path) -> None:
    found = by_key(dask(scheduler=cluster.address, gpu=True)(jobs(*[{}] * 4), Obedient(str(tmp_path))))
    assert len({outcome.worker for outcome in found.values()}) == 1
    assert {mark.split("-")[2] for mark in marks(tmp_path, "setup")} == {"cuda_0"}


def test_a_lost_scheduler_is_told_and_the_rest_can_be_done_later(cluster: Cluster, tmp_path: Path) -> None:
    run = dask(scheduler=cluster.address)(jobs({}, *[{"compute": "sleep 1"}] * 9), Obedient(str(tmp_path)))
    found = [next(run), next(run)]
    cluster.scheduler.kill()
    with pytest.raises(WorkersLostError, match=r"scheduler is gone; what was done stands: start the scheduler"):
        found.extend(run)
    assert {outcome.kind for outcome in found} == {"done"}


@pytest.mark.slow
def test_a_job_over_its_time_is_late_and_its_worker_restarted(cluster: Cluster, tmp_path: Path) -> None:
    deeds = [{"compute": "sleep 60"}, {}, {}, {}]
    start = time.monotonic()
    found = by_key(dask(scheduler=cluster.address, limit_s=1)(jobs(*deeds), Obedient(str(tmp_path))))
    assert [found[f"k{n}"].kind for n in range(4)] == ["late", "done", "done", "done"]
    assert found["k0"].error == "it took longer than the 1 s allowed"
    assert time.monotonic() - start < 40


@pytest.mark.slow
def test_closing_gives_up_what_waits_and_leaves_the_cluster_as_it_was(cluster: Cluster, tmp_path: Path) -> None:
    run = dask(scheduler=cluster.address)(jobs(*[{"compute": "sleep 0.2"}] * 50), Obedient(str(tmp_path)))
    next(run)
    run.close()
    begun = len(marks(tmp_path, "compute"))
    again = by_key(dask(scheduler=cluster.address)(jobs({}, {}), Obedient(str(tmp_path))))
    assert {outcome.kind for outcome in again.values()} == {"done"}
    assert begun < 10
    assert cluster.scheduler.poll() is None


def test_a_scheduler_that_is_not_there_is_told() -> None:
    with pytest.raises(WorkersLostError, match=r"^there is no Dask scheduler at tcp://127.0.0.1:"):
        list(dask(scheduler=f"tcp://127.0.0.1:{free_port()}", wait_s=1)(jobs({}), Obedient("")))


@pytest.mark.slow
def test_no_worker_that_could_do_a_job_is_told(cluster: Cluster, tmp_path: Path) -> None:
    end(cluster.workers[0])
    with pytest.raises(WorkersLostError, match="has had no worker with the resource GPU for 2 s"):
        list(dask(scheduler=cluster.address, gpu=True, wait_s=2)(jobs({}), Obedient(str(tmp_path))))


def test_dask_that_is_not_installed_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install 'medcam-xai\[dask\]'"):
        dask()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"workers": 0}, "workers is a whole number"),
        ({"tries": 0}, "tries is a whole number"),
        ({"limit_s": 0}, "limit_s is a number of seconds above 0"),
        ({"wait_s": -1}, "wait_s is a number of seconds above 0"),
        ({"gpu": True}, "has no GPUs"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, int], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        dask(**options)
