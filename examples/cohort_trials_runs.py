"""What the trials of `medcam cohort` are made of: cohorts of small volumes, runs of the real command, and how two runs are compared."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

# Voxels of a made image are far below; the poison's are above, and its preprocessing ends the process.
POISON = 1e6
# A chain as the demonstration network has it, which kills its process when it meets the poison, as a decoder that crashes would.
CHAIN = f"""
import os, signal
from monai import transforms as mt

class Fatal(mt.Transform):
    def __call__(self, sample):
        if float(sample["image"].max()) > {POISON}:
            os.kill(os.getpid(), signal.SIGKILL)
        return sample

def make():
    return mt.Compose([
        Fatal(), mt.Orientationd("image", "RAS", labels=None), mt.Spacingd("image", (2.0, 2.0, 2.0), mode="bilinear"),
        mt.ScaleIntensityRangePercentilesd("image", 1, 90, 0.0, 1.0),
    ])
"""


@dataclass(frozen=True)
class Command:
    """`medcam cohort` on a table, into a folder.

    Parameters
    ----------
    options
        Further options of the command line.
    """

    table: Path
    out: Path
    options: Sequence[str] = ()

    def words(self) -> list[str]:
        """Return the command line."""
        fixed = ["--formats", "nifti", "--report", "none", "--quiet"]
        return [
            sys.executable, "-m", "medcam", "cohort", str(self.table), "--out", str(self.out), *fixed, *self.options,
        ]  # fmt: skip

    def start(self, **settings: Any) -> subprocess.Popen[bytes]:
        """Start it; what it and its workers say on standard error goes to a file beside its folder."""
        with self._log().open("wb") as log:
            return subprocess.Popen(self.words(), stdout=subprocess.DEVNULL, stderr=log, env=environment(), **settings)

    def run(self, **settings: Any) -> tuple[int, str]:
        """Run it to its end; return its exit code and what it said on standard error."""
        return self.start(**settings).wait(), self.said()

    def said(self) -> str:
        """Return what was said on standard error since it was started last."""
        return self._log().read_text(errors="replace").strip()

    def _log(self) -> Path:
        return self.out.with_name(f"{self.out.name}.said.txt")


def environment() -> dict[str, str]:
    """Return the environment of a process that finds the same modules as this one."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}


def make_cohort(
    folder: Path, count: int, *, shape: tuple[int, int, int] = (40, 48, 34), poison: int | None = None
) -> Path:
    """Write so many volumes, oblique and anisotropic, each with a bright spot of its own, and their table; return the table.

    Parameters
    ----------
    poison
        The number of the case that kills whoever computes it; None for none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    turn = np.deg2rad(12.0)
    affine = np.array(
        [
            [-1.7 * np.cos(turn), 1.6 * np.sin(turn), 0, 40.0],
            [-1.7 * np.sin(turn), -1.6 * np.cos(turn), 0, 60.0],
            [0, 0, 2.6, -30.0],
            [0, 0, 0, 1],
        ]
    )
    rows = []
    for number in range(count):
        random = np.random.default_rng(number)
        voxels = random.normal(100, 8, shape).astype(np.float32)
        corner = [int(random.integers(2, side - 8)) for side in shape]
        voxels[tuple(slice(at, at + 6) for at in corner)] += 120
        if number == poison:
            voxels[0, 0, 0] = 2 * POISON
        name = f"image-{number:05}.nii.gz"
        image = nibabel.Nifti1Image(voxels, affine)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, folder / name)
        rows.append((f"case-{number:05}", f"patient-{number:05}", name))
    table = folder / "cases.csv"
    with table.open("w", newline="") as stream:
        csv.writer(stream).writerows([("case", "patient", "image"), *rows])
    return table


def written_chain(folder: Path) -> Path:
    """Write the preprocessing that meets the poison, and return its file."""
    path = folder / "trial_chain.py"
    path.write_text(CHAIN)
    return path


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Return the rows of a manifest, as they stand."""
    with sqlite3.connect(f"file:{out / 'manifest.sqlite3'}?mode=ro", uri=True) as manifest:
        manifest.row_factory = sqlite3.Row
        rows = [dict(row) for row in manifest.execute("select * from cases order by line, id")]
    manifest.close()
    return rows


def done(out: Path) -> int:
    """Return how many cases have their result on disk."""
    return sum(1 for path in (out / "cases").glob("*.json") if not path.name.startswith("."))


def differences(out: Path, reference: Path) -> list[str]:
    """Return in which files two runs differ, by byte, but for times: all of them, and the manifests' rows."""
    mine, theirs = _contents(out), _contents(reference)
    found = [f"only in one: {name}" for name in sorted(mine.keys() ^ theirs.keys())]
    found += [f"differs: {name}" for name in sorted(mine.keys() & theirs.keys()) if mine[name] != theirs[name]]
    return found


def _contents(out: Path) -> dict[str, bytes]:
    """Return what each file of a run holds, without times."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_dir() or name.startswith(("manifest.sqlite3", ".lock")):
            continue
        if name == "cases.parquet":
            continue  # holds what cases.csv does
        found[name] = _untimed(path) if name == "cases.csv" else path.read_bytes()
    for row in rows_of(out):
        kept = {key: value for key, value in row.items() if key not in ("seen", *_TIMES)}
        # Of each file: size, time of change, digest.
        kept["files"] = {name: [each[0], each[2]] for name, each in json.loads(row["files"]).items()}
        found[f"manifest: {row['id']}"] = json.dumps(kept, sort_keys=True).encode()
    return found


_TIMES = ("seconds", "ended", "worker", "attempts", "trace", "error")


def _untimed(table: Path) -> bytes:
    """Return a table of results without the column of seconds, and without what counts workers in an error."""
    with table.open(newline="") as stream:
        rows = [{k: v for k, v in row.items() if k not in ("seconds", "error")} for row in csv.DictReader(stream)]
    return json.dumps(rows).encode()


def tally(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many cases are in each state, and how often cases were begun."""
    states: dict[str, int] = {}
    for row in rows:
        states[row["state"]] = states.get(row["state"], 0) + 1
    return {**states, "begun": sum(row["attempts"] for row in rows)}


def below(pid: int) -> Iterator[int]:
    """Yield the processes that a process started, and those they started."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        parents.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found = [pid]
    while found:
        for child in parents.get(found.pop(), []):
            found.append(child)
            yield child


def working(pid: int) -> list[int]:
    """Return the worker processes below a process: medcam's own, and those that a Dask nanny watches."""
    found = []
    for child in below(pid):
        try:
            words = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        if b"medcam.workers.serving" in words or b"spawn_main" in words:
            found.append(child)
    return found
