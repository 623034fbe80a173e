"""Workers and the driver are killed at random moments: in the end every job was answered, and each wrote what it should."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workers.test_local import alive, gone_within

PATHS = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
COUNT, POISON = 120, 33
# A driver as a cohort has one: a job is done when its line is in the ledger, which is after its file is whole, and is not done again then.
DRIVER = f"""
import sys
from pathlib import Path
from medcam.workers.jobs import Job
from medcam.workers.local import local
from workers.stand_ins import Squares
folder, ledger = Path(sys.argv[1]), Path(sys.argv[1]) / "ledger"
known = set(ledger.read_text().split()) if ledger.exists() else set()
jobs = (Job(str(n), n) for n in range({COUNT}) if str(n) not in known and f"!{{n}}" not in known)
with ledger.open("a") as lines:
    for outcome in local(workers=2, threads=1, tries=4)(jobs, Squares(sys.argv[1], {POISON})):
        lines.write(("" if outcome.kind == "done" else "!") + outcome.key + "\\n")
        lines.flush()
"""


def workers_of(driver: subprocess.Popen[bytes]) -> list[int]:
    """The processes at work that a driver started, as soon as there are any; none once it is gone."""
    while driver.poll() is None:
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        found = [pid for pid in pids if parent(pid) == driver.pid and alive(pid)]
        if found:
            return found
        time.sleep(0.02)
    return []


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_under_fire_ends_as_one_that_nobody_disturbed(tmp_path: Path, seed: int) -> None:
    luck = random.Random(seed)
    victims = ["worker", "driver", *luck.sample(["worker"] * 4 + ["driver"] * 3, 7)]
    killed: list[str] = []
    every_worker: set[int] = set()
    for _ in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(tmp_path)], env={**os.environ, "PYTHONPATH": PATHS}
        ) as driver:
            # Each driver meets a few kills once it is at work, and in the end one ends by itself.
            for _ in range(luck.randrange(1, 4)):
                workers = workers_of(driver)
                time.sleep(luck.uniform(0.0, 0.3))
                every_worker |= set(workers)
                if victims and workers and driver.poll() is None:
                    pid = driver.pid if victims[0] == "driver" else luck.choice(workers)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed.append(victims.pop(0))
            driver.wait(60)
        if driver.returncode == 0:
            break
    lines = (tmp_path / "ledger").read_text().split()
    assert sorted(lines) == sorted([str(n) for n in range(COUNT) if n != POISON] + [f"!{POISON}"])
    written = {path.name: path.read_text() for path in tmp_path.glob("*.txt") if not path.name.startswith(".")}
    assert written == {f"{n}.txt": f"{n**2}\n" * 1000 for n in range(COUNT) if n != POISON}
    assert {"driver", "worker"} <= set(killed)
    assert gone_within(list(every_worker), 10)
