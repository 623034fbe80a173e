"""Local workers die, hang and are left alone: no job is lost, doubled or blamed for another, and no process stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medcam.errors import UsageError
from medcam.workers.jobs import Job, WorkersLostError
from medcam.workers.local import local
from workers.stand_ins import Obedient
from workers.test_contract import by_key, jobs, marks


def alive(pid: int) -> bool:
    """Whether a process is there and not only its entry for whoever waits for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone_within(pids: list[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("stage", ["read", "compute", "write"])
def test_a_job_that_kills_its_workers_is_passed_over_and_alone_to_blame(tmp_path: Path, stage: str) -> None:
    deeds = [{"compute": "sleep 0.02"} for _ in range(12)]
    deeds[4] = {stage: "kill"}
    found = by_key(local(workers=2, threads=1, tries=3)(jobs(*deeds), Obedient(str(tmp_path))))
    assert [key for key, outcome in found.items() if outcome.kind != "done"] == ["k4"]
    assert (found["k4"].kind, found["k4"].attempts) == ("died", 3)
    assert "signal 9 (SIGKILL, as when memory runs out)" in found["k4"].error
    assert "3 workers ended like that" in found["k4"].error
    # Whoever was under way beside it was done again, and no job was done twice for a death it had nothing to do with.
    assert len(marks(tmp_path, f"{stage}-n4")) == 3
    assert all(outcome.attempts <= 2 for key, outcome in found.items() if key != "k4")


def test_an_aborted_worker_is_told_by_its_signal(tmp_path: Path) -> None:
    found = by_key(local(workers=1, tries=1)(jobs({}, {"compute": "abort"}, {}), Obedient(str(tmp_path))))
    assert [found[f"k{n}"].kind for n in range(3)] == ["done", "died", "done"]
    assert "signal 6 (SIGABRT) while it was computed" in found["k1"].error


def test_a_job_whose_worker_is_killed_once_is_done(tmp_path: Path) -> None:
    found = by_key(local(workers=2)(jobs({}, {"compute": "kill once"}, {}, {}), Obedient(str(tmp_path))))
    assert {outcome.kind for outcome in found.values()} == {"done"}
    assert found["k1"].attempts == 2


def test_a_job_that_only_waited_is_not_to_blame(tmp_path: Path) -> None:
    # The second is read, and waits, when the first dies: so the first alone is to blame, at once.
    found = by_key(local(workers=1, tries=1)(jobs({"compute": "kill after 0.4"}, {}, {}), Obedient(str(tmp_path))))
    assert [found[f"k{n}"].kind for n in range(3)] == ["died", "done", "done"]
    assert [found[f"k{n}"].attempts for n in range(3)] == [1, 2, 1]


def test_of_jobs_that_were_under_way_together_only_the_guilty_one_is_condemned(tmp_path: Path) -> None:
    # When the second dies, the first is being written and the third read. With one try, any blame for them would be their end.
    deeds = [{"write": "sleep 1"}, {"compute": "kill after 0.4"}, {"read": "sleep 1"}, {}]
    found = by_key(local(workers=1, tries=1)(jobs(*deeds), Obedient(str(tmp_path))))
    assert [found[f"k{n}"].kind for n in range(4)] == ["done", "died", "done", "done"]
    assert [found[f"k{n}"].attempts for n in range(4)] == [2, 2, 2, 1]


def test_a_job_over_its_time_is_late_and_costs_no_other(tmp_path: Path) -> None:
    deeds = [{}, {"compute": "sleep 60"}, {}, {}, {"read": "sleep 60"}, {}]
    start = time.monotonic()
    found = by_key(local(workers=1, limit_s=0.5, tries=1)(jobs(*deeds), Obedient(str(tmp_path))))
    assert [found[f"k{n}"].kind for n in range(6)] == ["done", "late", "done", "done", "late", "done"]
    assert found["k1"].error == "it took longer than the 0.5 s allowed while it was computed"
    assert found["k4"].error == "it took longer than the 0.5 s allowed while it was read"
    assert time.monotonic() - start < 20


def test_time_spent_waiting_for_another_job_counts_for_none(tmp_path: Path) -> None:
    # Each is worked on for 0.35 s, but the last has waited for those before it.
    deeds = [{"compute": "sleep 0.3", "read": "sleep 0.05"} for _ in range(4)]
    found = by_key(local(workers=1, limit_s=0.8)(jobs(*deeds), Obedient(str(tmp_path))))
    assert {outcome.kind for outcome in found.values()} == {"done"}


def test_stages_of_different_jobs_overlap_and_no_more_than_three_are_held(tmp_path: Path) -> None:
    slow = {"read": "sleep 0.1", "compute": "sleep 0.1", "write": "sleep 0.1"}
    found = by_key(local(workers=1)(jobs(*[slow] * 10), Obedient(str(tmp_path))))
    passed = [dict(outcome.result[2]) for outcome in found.values()]
    begins = sorted(each["read"] for each in passed)
    ends = sorted(each["write"] for each in passed)
    # One after the other they take 3 s; overlapped, 1.2 s.
    assert ends[-1] - begins[0] < 2.0
    for number, begin in enumerate(begins):
        written = sum(end < begin for end in ends)
        assert number - written <= 3


def test_nothing_is_read_far_ahead_of_what_is_computed_nor_computed_far_ahead_of_what_is_written(
    tmp_path: Path,
) -> None:
    for slow, before in (("compute", "read"), ("write", "compute")):
        found = by_key(local(workers=1)(jobs(*[{slow: "sleep 0.06"}] * 9), Obedient(str(tmp_path))))
        passed = [dict(outcome.result[2]) for outcome in found.values()]
        ends = sorted(each[slow] for each in passed)
        for number, ready in enumerate(sorted(each[before] for each in passed)):
            # One is worked on, one waits for it.
            assert number - sum(end < ready for end in ends) <= 1 + (slow == "write")


def test_a_job_whose_device_is_lost_ends_its_worker_after_its_answer(tmp_path: Path) -> None:
    found = by_key(local(workers=1, tries=1)(jobs({"compute": "spoil"}, {}, {}), Obedient(str(tmp_path))))
    assert [found[f"k{n}"].kind for n in range(3)] == ["failed", "done", "done"]
    assert len(marks(tmp_path, "setup")) == 2


def test_a_result_that_cannot_travel_is_its_jobs_failure(tmp_path: Path) -> None:
    found = by_key(local(workers=1)(jobs({"write": "unpicklable"}, {}), Obedient(str(tmp_path))))
    assert (found["k0"].kind, found["k0"].error) == ("failed", "its result cannot travel between processes")
    assert found["k1"].kind == "done"


def test_what_a_library_prints_comes_between_no_answers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = by_key(
        local(workers=1)(jobs({"compute": "print"}, {"read": "print"}), Obedient(str(tmp_path), setup="print"))
    )
    assert {outcome.kind for outcome in found.values()} == {"done"}
    out, err = capfd.readouterr()
    assert (out, err.count("a library says something"), err.count("its native part")) == ("", 3, 3)


def test_workers_have_their_devices_in_turn_and_the_processors_divided(tmp_path: Path) -> None:
    engine = local(devices=["cuda:0", "cuda:1"], workers=4, threads=3)
    list(engine(jobs(*[{"compute": "sleep 0.2"}] * 8), Obedient(str(tmp_path), setup="threads")))
    assert {tuple(mark.split("-")[1:3]) for mark in marks(tmp_path, "setup")} == {
        ("0", "cuda_0"), ("1", "cuda_1"), ("2", "cuda_0"), ("3", "cuda_1"),
    }  # fmt: skip
    assert {tuple(mark.split("-")[1:3]) for mark in marks(tmp_path, "threads")} == {("3", "PASSIVE")}


def test_threads_are_as_many_as_the_environment_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    list(local(workers=1)(jobs({}), Obedient(str(tmp_path), setup="threads")))
    monkeypatch.delenv("OMP_NUM_THREADS")
    list(local(workers=4096)(jobs({}), Obedient(str(tmp_path), setup="threads")))
    assert {mark.split("-")[1] for mark in marks(tmp_path, "threads")} == {"5", "1"}


def test_no_more_workers_are_started_than_there_are_jobs(tmp_path: Path) -> None:
    list(local(workers=5)(jobs({}, {}), Obedient(str(tmp_path))))
    assert len(marks(tmp_path, "setup")) <= 2


def test_workers_that_die_in_their_setup_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        WorkersLostError, match=r"3 workers in a row ended before they were set up; the last was ended by signal 9"
    ):
        list(local(workers=1)(jobs({}), Obedient(str(tmp_path), setup="kill")))
    assert len(marks(tmp_path, "setup")) == 3


def test_a_defect_in_the_setup_is_told_without_its_text(tmp_path: Path) -> None:
    with pytest.raises(
        WorkersLostError, match=r"^a worker could not be set up: unexpected ValueError; the trace tells where$"
    ):
        list(local(workers=1)(jobs({}), Obedient(str(tmp_path), setup="blunder")))


def test_closing_ends_the_workers_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    run = local(workers=2)(jobs({}, *[{"compute": "sleep 60"}] * 5), Obedient(str(tmp_path)))
    next(run)
    pids = [int(mark.split("-")[3]) for mark in marks(tmp_path, "setup")]
    threads = threading.active_count()
    start = time.monotonic()
    run.close()
    assert time.monotonic() - start < 5
    assert gone_within(pids, 5)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()], "a zombie"
    assert threading.active_count() < threads


def test_a_finished_run_leaves_nothing(tmp_path: Path) -> None:
    before = threading.active_count()
    list(local(workers=2)(jobs(*[{}] * 4), Obedient(str(tmp_path))))
    pids = [int(mark.split("-")[3]) for mark in marks(tmp_path, "setup")]
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert threading.active_count() == before


DRIVER = """
import sys
from medcam.workers.jobs import Job
from medcam.workers.local import local
from workers.stand_ins import Obedient
jobs = (Job(f"k{n}", {"name": f"n{n}", "compute": "sleep 60" if n else ""}) for n in range(9))
for outcome in local(workers=2)(jobs, Obedient(sys.argv[1])):
    sys.stdout.write(outcome.key); sys.stdout.flush()
"""


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A driver in its own process, whose workers are busy, and their numbers."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,
    ) as process:
        end = time.monotonic() + 60
        while len(marks(tmp_path, "compute")) < 3 and time.monotonic() < end:
            time.sleep(0.02)
        yield process, [int(mark.split("-")[3]) for mark in marks(tmp_path, "setup")]
        process.kill()


def test_workers_end_by_themselves_when_the_driver_is_killed(driver: tuple[subprocess.Popen[bytes], list[int]]) -> None:
    process, workers = driver
    assert len(workers) == 2
    assert all(alive(pid) for pid in workers)
    process.kill()
    assert gone_within(workers, 10)


def test_ctrl_c_reaches_the_driver_alone_and_says_nothing_of_the_workers(
    driver: tuple[subprocess.Popen[bytes], list[int]],
) -> None:
    process, workers = driver
    assert all(os.getsid(pid) != os.getsid(process.pid) for pid in workers)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=20)
    assert err.count(b"Traceback") == 1
    assert err.strip().endswith(b"KeyboardInterrupt")
    assert gone_within(workers, 10)


def test_a_signal_to_a_worker_does_not_end_it(tmp_path: Path) -> None:
    run = local(workers=1)(jobs({}, {"compute": "sleep 0.5"}), Obedient(str(tmp_path)))
    first = next(run)
    os.kill(int(first.worker.split(":")[1]), signal.SIGINT)
    assert [outcome.kind for outcome in run] == ["done"]
    assert len(marks(tmp_path, "setup")) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"workers": 0}, "workers is a whole number of at least 1, not 0"),
        ({"tries": 0}, "tries is a whole number of at least 1, not 0"),
        ({"threads": -2}, "threads is a whole number"),
        ({"limit_s": 0}, "a number of seconds above 0, not 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, float], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        local(**options)


def test_a_setup_that_cannot_travel_is_refused_before_a_worker_is_started() -> None:
    with pytest.raises(UsageError, match="cannot be sent to it"):
        list(local(workers=1)(iter([Job("k0", None)]), lambda place: None))
