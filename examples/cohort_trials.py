"""Trials of `medcam cohort`: python examples/cohort_trials.py fire --folder trials

    fire      workers and the driver are killed at random moments of a run, one case kills every worker that meets it; the run is resumed
              until it ends, and compared with one that nobody disturbed
    dask      the same on a Dask cluster, whose scheduler is killed, too
    disk      the disk is full in the middle of a run; then there is room again
    memory    what driver and workers take, over many cases
    overhead  what a run takes beside its reads, forwards and writes measured alone; and which share of it is spent in the network
    parts     what reading, explaining and writing the samples takes, and the bytes that are kept
    plan      what it takes to find out what is to be done of a long table

Each trial prints what it found as JSON, and ends with 1 if anything was lost, doubled or different. What is written goes to --folder. Linux
only: processes are found in /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cohort_trials_measures import memory, overhead, parts, plan
from cohort_trials_runs import (
    Command,
    below,
    differences,
    done,
    environment,
    make_cohort,
    rows_of,
    tally,
    working,
    written_chain,
)

# One thread computes in each worker: what is tried has small images.
NETWORK = ("--model", "demo-mri", "--threads", "1")


def say(text: str) -> None:
    """Tell on standard error how far a trial is."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@dataclass
class Cluster:
    """A Dask scheduler and its workers, which can be killed and started again at the same address."""

    workers: int
    port: int = 0
    scheduler: subprocess.Popen[bytes] | None = None
    nannies: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def start(self) -> None:
        if not self.port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
        self.end()
        self.scheduler = _dask("scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard")
        self.nannies = [
            _dask("worker", self.address, "--nthreads", "1", "--no-dashboard", "--memory-limit", "0")
            for _ in range(self.workers)
        ]

    def end(self) -> None:
        for process in (*self.nannies, *([self.scheduler] if self.scheduler else [])):
            for pid in [*below(process.pid), process.pid]:
                _kill(pid)
            process.wait()
        self.nannies, self.scheduler = [], None

    def pids(self) -> list[int]:
        return [pid for nanny in self.nannies for pid in working(nanny.pid)]


def _dask(*words: str) -> subprocess.Popen[bytes]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-m", "dask", *words], env=environment(), **quiet)


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@dataclass
class Fire:
    """Kills at random moments: when so many cases are done, and a moment later.

    Parameters
    ----------
    plan
        Of each kill, at how many finished cases it is due, how many seconds later, and who is killed: 'worker', 'driver' or 'scheduler'.
    """

    plan: list[tuple[int, float, str]]
    command: Command
    cluster: Cluster | None
    killed: dict[str, int] = field(default_factory=dict)
    starts: int = 0

    def run(self) -> int:
        """Run the command again and again until it ends by itself with nothing left to do; return its last exit code."""
        while True:
            self.starts += 1
            driver = self.command.start()
            code = self._watched(driver)
            driver.wait()
            said = self.command.said()
            begun = (self.command.out / "manifest.sqlite3").exists()
            if code is not None and not begun:
                raise SystemExit(f"the run did not begin: {said}")
            left = [row for row in rows_of(self.command.out) if row["state"] == "waiting"] if begun else [{}]
            if code is not None and not left:
                return code
            if code is not None:
                say(f"the run ended with {code}: {said.splitlines()[-1] if said else 'nothing said'}")
            if self.cluster and (self.cluster.scheduler is None or self.cluster.scheduler.poll() is not None):
                self.cluster.start()
            if self.starts > len(self.plan) + 10:
                raise SystemExit(f"the run does not come to an end: {said}")

    def _watched(self, driver: subprocess.Popen[bytes]) -> int | None:
        """Return the driver's exit code; None once it was killed."""
        due = 0.0
        while driver.poll() is None:
            time.sleep(0.05)
            if not self.plan:
                continue
            at, later, whom = self.plan[0]
            finished = done(self.command.out)
            if finished < at:
                continue
            due = due or time.monotonic() + later
            if time.monotonic() < due or not self._struck(whom, driver):
                continue
            self.plan.pop(0)
            due = 0.0
            self.killed[whom] = self.killed.get(whom, 0) + 1
            say(f"{finished} done, a {whom} killed")
            if whom == "driver":
                driver.wait()
                return None
        return driver.returncode

    def _struck(self, whom: str, driver: subprocess.Popen[bytes]) -> bool:
        if whom == "driver":
            return _kill(driver.pid)
        if whom == "scheduler":
            return self.cluster is not None and self.cluster.scheduler is not None and _kill(self.cluster.scheduler.pid)
        workers = self.cluster.pids() if self.cluster else working(driver.pid)
        return bool(workers) and _kill(workers[self.starts % len(workers)])


def fire(options: argparse.Namespace) -> dict[str, Any]:
    """Return what came of a run under fire, on local workers or on Dask."""
    on_dask = options.trial == "dask"
    folder = fresh(options.folder / options.trial)
    luck = random.Random(options.seed)
    poison = luck.randrange(options.cases)
    table = make_cohort(folder / "images", options.cases, poison=poison)
    chain = ["--preprocessing", f"{written_chain(folder)}:make", "--trust-code"]
    local = (*NETWORK, *chain, "--workers", str(options.workers))
    cluster = Cluster(options.workers) if on_dask else None
    try:
        say(f"{options.cases} cases without disturbance")
        reference = Command(table, folder / "reference", local)
        start = time.monotonic()
        code, said = reference.run()
        calm = time.monotonic() - start
        say(f"took {calm:.0f} s, ended with {code}: {said.splitlines()[-1] if said else ''}")
        disturbed: tuple[str, ...] = local
        if cluster:
            cluster.start()
            disturbed = (*NETWORK, *chain, "--engine", "dask", "--scheduler", cluster.address)
        victims = ["worker"] * options.workers_killed + ["driver"] * options.drivers_killed
        victims += ["scheduler"] * options.schedulers_killed if on_dask else []
        luck.shuffle(victims)
        moments = sorted(luck.randrange(options.cases - 1) for _ in victims)
        plan = [(at, luck.uniform(0, 0.5), whom) for at, whom in zip(moments, victims, strict=True)]
        under = Fire(plan, Command(table, folder / "disturbed", disturbed), cluster)
        start = time.monotonic()
        last = under.run()
        took = time.monotonic() - start
        again, _ = Command(table, folder / "disturbed", disturbed).run()
    finally:
        if cluster:
            cluster.end()
    rows = rows_of(folder / "disturbed")
    found = {
        "trial": options.trial, "cases": options.cases, "seed": options.seed, "killed": under.killed, "starts": under.starts,
        "calm_s": round(calm, 1), "under_fire_s": round(took, 1), "exit_codes": [code, last, again],
        "calm": tally(rows_of(folder / "reference")), "disturbed": tally(rows),
        "poison": [row["state"] for row in rows if row["name"] == f"case-{poison:05}"],
        "left_behind": [path.name for path in (folder / "disturbed").rglob(".medcam-*")],
        "differences": differences(folder / "disturbed", folder / "reference"),
    }  # fmt: skip
    states = found["disturbed"]
    found["ok"] = (
        not found["differences"] and not found["left_behind"] and found["poison"] == ["died"]
        and states.get("done") == options.cases - 1 and len(rows) == options.cases and not under.plan
    )  # fmt: skip
    return found


def disk(options: argparse.Namespace) -> dict[str, Any]:
    """Return what came of a run whose disk was full before it ended, and had room again."""
    folder = fresh(options.folder / "disk")
    table = make_cohort(folder / "images", options.cases, shape=(20, 24, 17))
    words = (*NETWORK, "--workers", str(options.workers))
    say(f"{options.cases} cases on a disk with room")
    Command(table, folder / "reference", words).run()
    needed = sum(path.stat().st_size for path in (folder / "reference").rglob("*") if path.is_file())
    # As deep as the other, for results name images relative to themselves.
    small = out = folder / "small"
    small.mkdir()
    room, way = _small_disk(small, needed // 2)
    try:
        say(f"the same with half the room: {way}")
        code, said = Command(table, out, words).run(preexec_fn=room)
        there = done(out)
        whole = [name for name in differences(out, folder / "reference") if name.startswith("differs: heatmaps")]
        unfinished = tally(rows_of(out))
        _make_room(small, 4 * needed)
        again, _ = Command(table, out, words).run()
        rows = rows_of(out)
        found = {
            "trial": "disk", "cases": options.cases, "way": way, "exit_codes": [code, again], "said": said.splitlines()[-1:],
            "done_when_full": there, "when_full": unfinished, "damaged_files_when_full": whole,
            "in_the_end": tally(rows), "differences": differences(out, folder / "reference"),
        }  # fmt: skip
    finally:
        _give_back(small)
    found["ok"] = (
        code == 5 and again == 0 and 0 < there < options.cases and not whole and not found["differences"]
        and found["in_the_end"].get("done") == options.cases
    )  # fmt: skip
    return found


def _small_disk(small: Path, size: int) -> tuple[Callable[[], None] | None, str]:
    """Return how a run's room is limited: by a small disk in memory for root, for others by the size that a file may have."""
    if os.geteuid() == 0 and shutil.which("mount"):
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "trial", str(small)]
        if subprocess.run(words, capture_output=True, check=False).returncode == 0:
            return None, f"a tmpfs of {size} bytes"
    # The manifest is the file that grows.
    limit = 150_000
    return lambda: resource.setrlimit(
        resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)
    ), f"files of at most {limit} bytes"


def _make_room(small: Path, size: int) -> None:
    if small.is_mount():
        subprocess.run(["mount", "-o", f"remount,size={size}", str(small)], check=True)


def _give_back(small: Path) -> None:
    if small.is_mount():
        subprocess.run(["umount", "-l", str(small)], check=True)


def fresh(folder: Path) -> Path:
    """Return an empty folder."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def main(words: list[str] | None = None) -> int:
    """Run one trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trial", choices=["fire", "dask", "disk", "memory", "overhead", "parts", "plan"])
    parser.add_argument("--folder", type=Path, default=Path("cohort-trials"), help="where all is written")
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers-killed", type=int, default=6)
    parser.add_argument("--drivers-killed", type=int, default=3)
    parser.add_argument("--schedulers-killed", type=int, default=2)
    parser.add_argument("--larger", type=int, default=8, help="overhead: how many larger cases")
    parser.add_argument("--side", type=int, default=128, help="overhead: voxels along a side of a larger case")
    parser.add_argument("--repeats", type=int, default=10, help="parts: how often each sample is measured")
    parser.add_argument("--json", type=Path, help="append what was found to this file, a line each")
    options = parser.parse_args(words)
    options.folder = options.folder.absolute()
    trials = {
        "fire": fire,
        "dask": fire,
        "disk": disk,
        "memory": memory,
        "overhead": overhead,
        "parts": parts,
        "plan": plan,
    }
    found = {**trials[options.trial](options), "load": [round(each, 1) for each in os.getloadavg()]}
    print(json.dumps(found, indent=1))
    if options.json:
        with options.json.open("a") as stream:
            stream.write(json.dumps(found) + "\n")
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
