"""What every engine does alike: one outcome for each job, whatever becomes of it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster

from medcam.errors import ModelError
from medcam.workers.dask_cluster import dask
from medcam.workers.inline import inline
from medcam.workers.jobs import Engine, Job, Outcome
from medcam.workers.local import local
from workers.stand_ins import Obedient


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """A Dask scheduler with two workers, as a site has one."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        yield cluster.scheduler_address


@pytest.fixture(params=["inline", "local", "dask"])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "dask":
        return dask(scheduler=request.getfixturevalue("scheduler"))
    return inline() if request.param == "inline" else local(workers=2, threads=1)


def jobs(*deeds: dict[str, str]) -> Iterator[Job]:
    for number, deed in enumerate(deeds):
        yield Job(f"k{number}", {"name": f"n{number}", **deed})


def by_key(outcomes: Iterator[Outcome]) -> dict[str, Outcome]:
    found = list(outcomes)
    assert len({outcome.key for outcome in found}) == len(found)
    return {outcome.key: outcome for outcome in found}


def marks(folder: Path, what: str) -> list[str]:
    return sorted(path.name for path in folder.glob(f"{what}-*"))


def test_each_job_has_one_outcome_with_its_result_times_and_worker(engine: Engine, tmp_path: Path) -> None:
    found = by_key(engine(jobs(*[{}] * 9), Obedient(str(tmp_path))))
    assert sorted(found) == [f"k{n}" for n in range(9)]
    for key, outcome in found.items():
        name, pid, passed = outcome.result
        assert (outcome.kind, outcome.error, outcome.attempts, name) == ("done", "", 1, f"n{key[1:]}")
        assert [stage for stage, _ in passed] == ["read", "compute", "write"]
        assert sorted(outcome.seconds) == ["compute", "read", "write"]
        assert min(outcome.seconds.values()) >= 0
        assert outcome.worker.endswith(f":{pid}")


def test_a_worker_is_set_up_once(engine: Engine, tmp_path: Path) -> None:
    found = by_key(engine(jobs(*[{}] * 12), Obedient(str(tmp_path))))
    by_worker = Counter(name.split("-")[3] for name in marks(tmp_path, "setup"))
    assert set(by_worker.values()) == {1}
    assert {str(outcome.result[1]) for outcome in found.values()} <= set(by_worker)


@pytest.mark.parametrize("stage", ["read", "compute", "write"])
def test_a_failure_is_a_value_and_costs_no_other_job(engine: Engine, tmp_path: Path, stage: str) -> None:
    found = by_key(
        engine(jobs({}, {stage: "refuse"}, {stage: "blunder"}, {stage: "full"}, {}), Obedient(str(tmp_path)))
    )
    assert [found[f"k{n}"].kind for n in range(5)] == ["done", "failed", "failed", "failed", "done"]
    assert found["k1"].error == "the image is not there; look where it went"
    assert "ValueError" in found["k2"].error
    assert "No space left on device" in found["k3"].error
    assert "in act" in found["k2"].trace
    for outcome in found.values():
        assert "PATIENT^NAME" not in outcome.error + outcome.trace
    assert not marks(tmp_path, "compute-n1") or stage != "read"


def test_a_job_that_asks_its_process_to_end_fails_like_any_other(engine: Engine, tmp_path: Path) -> None:
    found = by_key(engine(jobs({"compute": "exit"}, {"read": "memory"}, {}), Obedient(str(tmp_path))))
    assert [found[f"k{n}"].kind for n in range(3)] == ["failed", "failed", "done"]
    assert "SystemExit" in found["k0"].error
    assert found["k1"].error == "it takes more memory than there is"


def test_jobs_are_taken_as_they_are_needed(engine: Engine, tmp_path: Path) -> None:
    taken = []

    def endless() -> Iterator[Job]:
        for number in itertools.count():
            taken.append(number)
            yield Job(f"k{number}", {"name": f"n{number}"})

    run = engine(endless(), Obedient(str(tmp_path)))
    seen = [next(run) for _ in range(5)]
    # Two workers hold three jobs each, and each answer may make room for one.
    assert len(seen) <= len(taken) <= len(seen) + 2 * 3 + 2
    run.close()
    assert len(taken) <= len(seen) + 2 * 3 + 2


def test_whoever_gives_jobs_can_stop_and_what_was_taken_is_answered(engine: Engine, tmp_path: Path) -> None:
    stop, taken = [], []

    def until_stopped() -> Iterator[Job]:
        for number in itertools.count():
            if stop:
                return
            taken.append(f"k{number}")
            yield Job(f"k{number}", {"name": f"n{number}"})

    found = []
    for outcome in engine(until_stopped(), Obedient(str(tmp_path))):
        found.append(outcome.key)
        if len(found) == 4:
            stop.append(True)
    assert sorted(found) == sorted(taken)


def test_whoever_has_no_job_now_is_asked_again(engine: Engine, tmp_path: Path) -> None:
    def hesitant() -> Iterator[Job | None]:
        yield None
        yield Job("k0", {"name": "n0"})
        yield None
        yield None
        yield Job("k1", {"name": "n1"})
        yield None

    assert sorted(by_key(engine(hesitant(), Obedient(str(tmp_path))))) == ["k0", "k1"]


def test_no_jobs_are_no_outcomes_and_nothing_is_set_up(engine: Engine, tmp_path: Path) -> None:
    assert list(engine(iter(()), Obedient(str(tmp_path), setup="unfit"))) == []
    assert marks(tmp_path, "setup") == []


def test_an_error_of_the_setup_ends_the_run_with_that_error(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^the weights do not fit the network$"):
        list(engine(jobs({}, {}, {}), Obedient(str(tmp_path), setup="unfit")))


def test_an_error_of_whoever_gives_jobs_is_raised(engine: Engine, tmp_path: Path) -> None:
    def broken() -> Iterator[Job]:
        yield Job("k0", {"name": "n0"})
        raise LookupError("the table ends here")

    with pytest.raises(LookupError, match="the table ends here"):
        list(engine(broken(), Obedient(str(tmp_path))))
