"""The long fuzz run over every reader: `python tests/formats/fuzz.py --seed 1 --minutes 5`.

Each damaged file is read in a process of its own, which may take 10 s and 2 GB. A reading ends well in what was asked for or in a
`MedcamError`; a traceback, a crash, a hang, a word of the patient in a message and a file outside the working folder are
findings: each is written with what makes it again, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from formats.dicom_phantom import MARKERS  # noqa: E402
from formats.fuzz_files import SUBJECTS, Subject, damage  # noqa: E402
from medcam.errors import MedcamError  # noqa: E402

SECONDS, BYTES = 10, 2 * 2**30
_WELL = ("read", "refused")


def main() -> int:
    """Damage and read until the time is over, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of all that is random (default 1)")
    parser.add_argument("--minutes", type=float, default=5, help="how long (default 5)")
    parser.add_argument("--only", choices=SUBJECTS, help="one kind of file")
    parser.add_argument("--keep", type=Path, help="folder in which the files of each finding are kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        counts = _run(options, Path(folder))
    for name in SUBJECTS:
        row = {outcome: n for (subject, outcome), n in counts.items() if subject == name}
        if row:
            print(f"{name:22}", ", ".join(f"{n} {outcome}" for outcome, n in sorted(row.items())))
    return 1 if any(outcome not in _WELL for _, outcome in counts) else 0


def _run(options: argparse.Namespace, folder: Path) -> Counter[tuple[str, str]]:
    end = time.monotonic() + 60 * options.minutes
    wanted = {name: subject for name, subject in SUBJECTS.items() if options.only in (None, name)}
    for name, subject in wanted.items():
        subject.make(folder / "whole" / name)
        # Whole it can be read; and what readers import on use is then there in every process.
        subject.read(folder / "whole" / name)
    # What readers unpack for themselves belongs into the working folder too.
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "work")
    outside = _listing(folder)
    counts: Counter[tuple[str, str]] = Counter()
    number = 0
    while time.monotonic() < end:
        for name, subject in wanted.items():
            outcome, words = one(folder, name, subject, options.seed, number)
            if _listing(folder) != outside:
                outcome, words = "wrote outside", "a file beside the working folder"
                outside = _listing(folder)
            counts[name, outcome] += 1
            if outcome not in _WELL:
                print(f"{outcome}: {name}, --seed {options.seed}, round {number}\n{words}", file=sys.stderr, flush=True)
                if options.keep:
                    kept = options.keep / f"{name.replace(' ', '_')}_{options.seed}_{number}"
                    shutil.copytree(folder / "work", kept, dirs_exist_ok=True)
        number += 1
    return counts


def one(folder: Path, name: str, subject: Subject, seed: int, number: int) -> tuple[str, str]:
    """Damage a fresh copy of a subject and read it in a process of its own: how that ended, and its last words."""
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(folder / "whole" / name, work)
    damage(work, subject, np.random.default_rng([seed, number, zlib.crc32(name.encode())]))
    said = folder / "said"
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(_child(work, subject, said))
    _, status = os.waitpid(child, 0)
    words = said.read_text(errors="replace") if said.exists() else ""
    said.unlink(missing_ok=True)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return (
            ("took too long", f"{SECONDS} s") if number == signal.SIGALRM else ("crashed", signal.Signals(number).name)
        )
    if time.monotonic() - started > SECONDS:
        return "took too long", f"{time.monotonic() - started:.1f} s"
    return {0: "read", 1: "refused", 2: "told of the patient"}.get(os.WEXITSTATUS(status), "raised"), words


def _child(work: Path, subject: Subject, said: Path) -> int:
    """Read under the limits; gives the exit code, and leaves its words in a file."""
    used = int(re.findall(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + BYTES, used + BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The default action ends the process, even within a library's loop.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    os.chdir(work)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        subject.read(work)
    except MedcamError as error:
        said.write_text(str(error), errors="replace")
        told = any(part in str(error) for marker in MARKERS for part in (marker, marker.partition("^")[0] + "^"))
        return 2 if told else 1
    except BaseException:  # noqa: BLE001
        said.write_text(traceback.format_exc(), errors="replace")
        return 3
    return 0


def _listing(folder: Path) -> list[str]:
    """What lies in the folder beside the working folder, and in the one above it."""
    return sorted(path.name for path in folder.iterdir() if path.name not in ("work", "said"))


if __name__ == "__main__":
    sys.exit(main())
