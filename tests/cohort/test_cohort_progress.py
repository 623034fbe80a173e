"""How far a cohort is, in words and on a terminal, and how it is asked to stop."""

from __future__ import annotations

import signal
import threading

import pytest

from medcam.commands import progress
from medcam.commands.progress import Progress, stoppable


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_rate_and_remaining_time_are_of_what_this_run_made(clock: list[float]) -> None:
    told: list[str] = []
    seen = Progress(50, told.append, bar=False)
    for _ in range(10):
        seen.was_there(failed=False)
    seen.was_there(failed=True)
    assert seen.words() == "10 of 50 done, 10 of them before, 1 failed before and were passed over"
    for n in range(4):
        clock[0] += 2.0
        seen.came_out(n, "it is broken" if n == 1 else "")
    assert told[0] == "line 1 failed: it is broken"
    # Told after six seconds of eight: three were made by then.
    assert told[1].startswith("12 of 50 done")
    assert told[1].endswith("about 72 s to go")
    assert seen.words() == (
        "13 of 50 done, 10 of them before, 1 failed, 1 failed before and were passed over, 2.0 s each, about 70 s to go"
    )
    clock[0] += 10_000
    assert seen.words().endswith("about 24.3 h to go")


def test_failures_of_all_cases_are_not_all_told(clock: list[float]) -> None:
    told: list[str] = []
    seen = Progress(100, told.append, bar=False)
    for n in range(100):
        seen.came_out(n, "there is no layer")
    assert len(told) == 20
    assert told[-1] == "line 19 failed: there is no layer; further ones stand in cases.csv"


def test_a_terminal_shows_one_line_that_renews_itself(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    seen = Progress(4, lambda _line: None, bar=True)
    for n in range(4):
        clock[0] += 1
        seen.came_out(n, "")
    seen.end()
    shown = capsys.readouterr().err.split("\r\x1b[K")
    assert shown[1] == f"[{'#' * 6}{'.' * 18}] 1 of 4 done, 1.0 a second, about 3 s to go"
    assert shown[4] == f"[{'#' * 24}] 4 of 4 done, 1.0 a second"
    assert shown[-1] == ""


def test_the_first_signal_asks_and_the_second_ends() -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    told: list[str] = []
    with stoppable(told.append) as stopping:
        assert not stopping()
        signal.raise_signal(signal.SIGTERM)
        assert stopping()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert len(told) == 1
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_run_in_a_thread_leaves_signals_alone() -> None:
    found = []

    def run() -> None:
        with stoppable(lambda _line: None) as stopping:
            found.append(stopping())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False]
