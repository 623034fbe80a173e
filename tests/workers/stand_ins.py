"""Setups whose jobs do as they are told, for the tests of engines: small frozen values that travel to workers."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcam.errors import InputError, ModelError
from medcam.whole_file import whole_file
from medcam.workers.jobs import Place, Stages


@dataclass(frozen=True)
class Obedient:
    """A job is a list of (stage, deed, what with); the result is who did it and what each stage saw.

    `folder` is where workers leave a mark for each setup and each stage that began.
    """

    folder: str
    setup: str = ""

    def __call__(self, place: Place) -> Stages:
        mark(self.folder, f"setup-{place.number}-{place.device.replace(':', '_')}")
        if self.setup:
            act(self.setup, self.folder, "setup")

        def stage(name: str) -> Any:
            def do(given: dict[str, Any]) -> dict[str, Any]:
                mark(self.folder, f"{name}-{given['name']}")
                act(given.get(name, ""), self.folder, given["name"])
                return {**given, "passed": [*given.get("passed", []), (name, time.monotonic())], "pid": os.getpid()}

            return do

        def write(given: dict[str, Any]) -> Any:
            done = stage("write")(given)
            return (
                (lambda: None) if given.get("write") == "unpicklable" else (done["name"], done["pid"], done["passed"])
            )

        return Stages(stage("read"), stage("compute"), write)


@dataclass(frozen=True)
class Squares:
    """Computes the square of a number, slowly, and writes it whole or not at all; one number ends its process."""

    folder: str
    poison: int

    def __call__(self, place: Place) -> Stages:
        def compute(number: int) -> tuple[int, int]:
            if number == self.poison:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.02)
            return number, number**2

        def write(found: tuple[int, int]) -> int:
            number, square = found
            with whole_file(Path(self.folder) / f"{number}.txt") as path:
                path.write_text(f"{square}\n" * 1000)
            return number

        return Stages(lambda number: number, compute, write)


def act(deed: str, folder: str, name: str) -> None:
    """Do one deed: 'kill', 'abort', 'exit', 'sleep 3', 'refuse', 'blunder', 'print', or 'kill once', which leaves a mark."""
    match deed.split():
        case ["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["kill", "once"]:
            if not list(Path(folder).glob(f"killed-{name}-*")):
                mark(folder, f"killed-{name}")
                os.kill(os.getpid(), signal.SIGKILL)
        case ["kill", "after", seconds]:
            time.sleep(float(seconds))
            os.kill(os.getpid(), signal.SIGKILL)
        case ["abort"]:
            os.abort()
        case ["exit"]:
            sys.exit(3)
        case ["sleep", seconds]:
            time.sleep(float(seconds))
        case ["refuse"]:
            raise InputError("the image is not there; look where it went")
        case ["unfit"]:
            raise ModelError("the weights do not fit the network")
        case ["blunder"]:
            raise ValueError("PATIENT" + "^NAME is no number")
        case ["full"]:
            raise OSError(28, "No space left on device", "/data/PATIENT" + "^NAME.nii")
        case ["print"]:
            print("a library says something")
            os.write(1, b"and its native part, too\n")
        case ["memory"]:
            raise MemoryError
        case ["spoil"]:
            raise type("AcceleratorError", (RuntimeError,), {})("CUDA error: an illegal memory access was encountered")
        case ["threads"]:
            mark(folder, f"threads-{os.environ['OMP_NUM_THREADS']}-{os.environ['OMP_WAIT_POLICY']}")


def mark(folder: str, what: str) -> None:
    """Leave a file whose name tells what, who and when."""
    (Path(folder) / f"{what}-{os.getpid()}-{time.monotonic_ns()}").touch()
