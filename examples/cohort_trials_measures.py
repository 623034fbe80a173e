"""What `medcam cohort` takes: memory over many cases, and time beside the cases' own."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cohort_trials_runs import Command, done, make_cohort, rows_of, tally, working

import medcam
from medcam.lesion_net import LesionNet
from medcam.prepare import prepare

# A network that writes down how long each of its passes took.
TIMED = """
import time
from medcam.lesion_net import LesionNet

class Timed(LesionNet):
    def forward(self, image):
        start = time.monotonic()
        answer = super().forward(image)
        # What only asks for shapes computes nothing.
        if image.device.type != "meta":
            with open({log!r}, "a") as stream:
                stream.write(f"{{start}} {{time.monotonic() - start}}\\n")
        return answer

def make():
    return Timed(3, {widths})
"""
WIDTHS = (32, 64, 128, 128)
_SAMPLES = (
    ("film, DICOM", "demo-cxr", ("cxr", "film.dcm")),
    ("head, DICOM series", "demo-mri", ("mri", "head_flair_dicom")),
    ("head, NIfTI", "demo-mri", ("mri", "head_flair.nii.gz")),
)


@dataclass(frozen=True)
class Sample:
    """How far a run is, and what its processes hold.

    Parameters
    ----------
    seconds
        Since its start.
    driver, workers
        Resident memory, in MB.
    driver_s, processor_s
        Processor time of the driver; of driver and workers.
    """

    seconds: float
    done: int
    driver: float
    workers: tuple[float, ...]
    driver_s: float = 0.0
    processor_s: float = 0.0


def watched(command: Command, *, every_s: float) -> tuple[int, list[Sample]]:
    """Run a command to its end; return its exit code, and samples by the way."""
    start = time.monotonic()
    process = command.start()
    samples = []
    while process.poll() is None:
        pids = sorted(working(process.pid))
        sizes = _resident(process.pid), tuple(map(_resident, pids))
        used = _processor_s(process.pid)
        now = time.monotonic() - start, done(command.out)
        samples.append(Sample(*now, *sizes, used, used + sum(map(_processor_s, pids))))
        time.sleep(every_s)
    samples.append(Sample(time.monotonic() - start, done(command.out), 0.0, ()))
    return process.returncode, samples


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Return what driver and workers hold while many tiny cases are done."""
    folder = options.folder / "memory"
    shutil.rmtree(folder, ignore_errors=True)
    table = make_cohort(folder / "images", options.cases, shape=(20, 24, 17))
    command = Command(
        table, folder / "out", ("--model", "demo-mri", "--threads", "1", "--workers", str(options.workers))
    )
    code, samples = watched(command, every_s=1.0)
    going = [
        each
        for each in samples
        if 0 < each.done < options.cases and len(each.workers) == options.workers and each.driver
    ]
    quarters = {
        f"{share}%": min(going, key=lambda each: abs(each.done - options.cases * share / 100))
        for share in (10, 25, 50, 75, 99)
    }
    told = {
        name: {"done": each.done, "driver_mb": each.driver, "workers_mb": list(each.workers)}
        for name, each in quarters.items()
    }
    early, late = quarters["25%"], quarters["99%"]
    growth = {
        "driver_mb": round(late.driver - early.driver, 1),
        "workers_mb": [round(b - a, 1) for a, b in zip(early.workers, late.workers, strict=True)],
    }
    each_ms = 1000 * (late.driver_s - early.driver_s) / max(1, late.done - early.done)
    states = tally(rows_of(folder / "out"))
    flat = all(
        b <= 1.05 * a + 8 for a, b in zip((early.driver, *early.workers), (late.driver, *late.workers), strict=True)
    )
    return {
        "trial": "memory", "cases": options.cases, "exit_code": code, "states": states, "seconds": round(samples[-1].seconds, 1),
        "driver_ms_a_case": round(each_ms, 2), "at": told, "growth_from_25_to_99_percent": growth,
        "manifest_mb": round(_size(folder / "out" / "manifest.sqlite3"), 2),
        "out_mb": round(sum(_size(path) for path in (folder / "out").rglob("*") if path.is_file()), 2),
        "ok": code == 0 and flat and states.get("done") == options.cases,
    }  # fmt: skip


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """Return how a run's time compares with that of its parts alone, and which share the network has of it."""
    folder = options.folder / "overhead"
    shutil.rmtree(folder, ignore_errors=True)
    many, few = _small(options, folder / "small"), _larger(options, folder / "larger")
    return {
        "trial": "overhead", "small": many, "larger": few,
        "ok": many["steady_by_parts"] <= 1.25 and few["network_share"] >= 0.85,
    }  # fmt: skip


def _small(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Many small cases with one worker, against medcam's reading, explaining and writing in a plain loop."""
    table = make_cohort(folder / "images", options.cases)
    images = sorted((folder / "images").glob("*.nii.gz"))
    before = _alone(images[: max(20, options.cases // 10)], folder / "alone")
    command = Command(table, folder / "out", ("--model", "demo-mri", "--threads", "1", "--workers", "1"))
    code, samples = watched(command, every_s=0.25)
    after = _alone(images[: max(20, options.cases // 10)], folder / "alone")
    clock = {part: (before[part][0] + after[part][0]) / 2 for part in before}
    processor = {part: (before[part][1] + after[part][1]) / 2 for part in before}
    whole, used = (sum(each[part] for part in ("read", "explain", "write")) for each in (clock, processor))
    steady, steady_used = _steady(samples)
    return {
        "cases": options.cases, "exit_code": code, "seconds": round(samples[-1].seconds, 2),
        "alone_ms": {part: round(1000 * each, 1) for part, each in clock.items()},
        "alone_processor_ms": {part: round(1000 * each, 1) for part, each in processor.items()},
        "steady_ms": round(1000 * steady, 1), "steady_processor_ms": round(1000 * steady_used, 1),
        "steady_by_parts": round(steady / whole, 3), "steady_processor_by_parts": round(steady_used / used, 3),
        "whole_run_by_parts": round(samples[-1].seconds / options.cases / whole, 3),
        "stages_ms": _stages(folder / "out"),
    }  # fmt: skip


def _larger(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Larger cases with one worker: which share of the time, once it runs, is spent in the network's passes."""
    side = options.side
    table = make_cohort(folder / "images", options.larger, shape=(side, side + 8, side - 8))
    log = folder / "passes.txt"
    (folder / "trial_network.py").write_text(TIMED.format(log=str(log), widths=WIDTHS))
    torch.manual_seed(0)
    torch.save(LesionNet(3, WIDTHS).state_dict(), folder / "weights.pt")
    model = ("--model", str(folder / "weights.pt"), "--factory", f"{folder / 'trial_network.py'}:make")
    code, samples = watched(Command(table, folder / "out", (*model, "--threads", "1", "--workers", "1")), every_s=0.25)
    passes = sorted(tuple(map(float, line.split())) for line in log.read_text().splitlines())
    # From the begin of the second case's first pass to that of the last case's are so many whole cases; the first warms up.
    each = len(passes) // options.larger
    between = passes[-each][0] - passes[each][0]
    network, steady = sum(took for _, took in passes[each:-each]) / (options.larger - 2), between / (options.larger - 2)
    return {
        "cases": options.larger, "voxels": [side, side + 8, side - 8], "exit_code": code, "seconds": round(samples[-1].seconds, 2),
        "passes_a_case": len(passes) / options.larger, "network_s": round(network, 2), "steady_s": round(steady, 2),
        "network_share": round(network / steady, 3), "stages_ms": _stages(folder / "out"),
    }  # fmt: skip


def _alone(
    images: Sequence[Path], out: Path, name: str = "demo-mri", formats: str = "nifti"
) -> dict[str, tuple[float, float]]:
    """Return the mean seconds of each part of a case, by the clock and of the processor, alone in this process with one thread.

    A first case counts for nothing. On a busy machine the clock counts what others compute, too.
    """
    torch.set_num_threads(1)
    model = medcam.load_model(name)
    spatial_dims = 2 if name == "demo-cxr" else 3
    seconds: dict[str, list[tuple[float, float]]] = {}
    for image in (images[0], *images):
        marks = [(time.perf_counter(), time.process_time())]

        def mark(part: str, marks: list[tuple[float, float]] = marks) -> None:
            marks.append((time.perf_counter(), time.process_time()))
            (clock, processor), (later, more) = marks[-2:]
            seconds.setdefault(part, []).append((later - clock, more - processor))

        volume = medcam.read(image)
        mark("read")
        heatmap = medcam.explain(volume, model)
        mark("explain")
        medcam.write(heatmap, volume, out, formats=formats, label=image.name)
        mark("write")
        tensor = prepare([volume], model.preprocessing, spatial_dims=spatial_dims).tensor[None]
        mark("prepare")
        with torch.inference_mode():
            model.network(tensor)
        mark("forward")
    return {
        part: (statistics.mean(wall for wall, _ in each[1:]), statistics.mean(used for _, used in each[1:]))
        for part, each in seconds.items()
    }


def _steady(samples: Sequence[Sample]) -> tuple[float, float]:
    """Return the seconds a case, by the clock and of all processors, from the first that was done to the last."""
    going = [each for each in samples if each.done and each.processor_s]
    first = going[0]
    last = next(each for each in going if each.done == going[-1].done)
    between = max(1, last.done - first.done)
    return (last.seconds - first.seconds) / between, (last.processor_s - first.processor_s) / between


def _stages(out: Path) -> dict[str, float]:
    """Return the mean milliseconds of each stage as the workers measured them, beside each other."""
    import json

    each = [json.loads(row["seconds"]) for row in rows_of(out)]
    return {name: round(1000 * statistics.mean(one[name] for one in each), 1) for name in ("read", "compute", "write")}


def parts(options: argparse.Namespace) -> dict[str, Any]:
    """Return what processor time reading, explaining and writing a film and a head take, and the bytes that are kept of each."""
    folder = options.folder / "parts"
    shutil.rmtree(folder, ignore_errors=True)
    found = {}
    for name, model, image in _SAMPLES:
        for formats in ("nifti", "nifti,png", "nifti,dicom-sc")[: 3 if "DICOM" in name else 2]:
            out = folder / name / formats.replace(",", "-")
            seconds = _alone([medcam.sample_path(*image)] * options.repeats, out, model, formats)
            kept = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
            found[f"{name}, {formats}"] = {
                **{f"{part}_ms": round(1000 * used) for part, (_, used) in seconds.items()}, "kept_kb": round(kept / 1000),
            }  # fmt: skip
    return {"trial": "parts", "repeats": options.repeats, "parts": found, "ok": True}


def plan(options: argparse.Namespace) -> dict[str, Any]:
    """Return what it takes to read a table of many cases and find out what is to be done, and what one driver does for each case."""
    folder = options.folder / "plan"
    shutil.rmtree(folder, ignore_errors=True)
    found = {}
    for count in (options.cases // 10, options.cases):
        table = make_cohort(folder / f"{count}" / "images", 1, shape=(20, 24, 17))
        lines = "".join(f"case-{n:07},patient-{n:07},image-00000.nii.gz\n" for n in range(count))
        table.write_text("case,patient,image\n" + lines)
        command = Command(table, folder / f"{count}" / "out", ("--model", "demo-mri", "--dry-run"))
        start = time.monotonic()
        process = command.start()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        found[count] = {
            "exit_code": process.returncode, "seconds": round(time.monotonic() - start, 1), "peak_mb": round(used.ru_maxrss / 1000),
        }  # fmt: skip
    few, many = found.values()
    more = options.cases - options.cases // 10
    return {
        "trial": "plan", "tables": found, "us_a_case": round(1e6 * (many["seconds"] - few["seconds"]) / more),
        "kb_a_case": round(1e3 * (many["peak_mb"] - few["peak_mb"]) / more, 2),
        "ok": few["exit_code"] == many["exit_code"] == 0,
    }  # fmt: skip


def _resident(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def _processor_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _size(path: Path) -> float:
    return path.stat().st_size / 1e6 if path.exists() else 0.0


if __name__ == "__main__":
    sys.exit("run examples/cohort_trials.py")
