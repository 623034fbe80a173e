"""From the table of tasks to figures: one cell is one tool on one workload."""

from __future__ import annotations

import gc
import os
import platform
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.meters import Call, peak_bytes, peak_bytes_of_numpy, stops_on_cuda, time_beside, work
from benchmarks.peers import CannotAsk, NotInstalled
from benchmarks.tasks import TASKS, Bound, Facts, NotThereYet
from benchmarks.workloads import WORKLOADS, Case, case, passed
from medcam.errors import UsageError

# A call that takes this long is timed once, without warming up.
_LONG_SECONDS = 10.0


@dataclass(frozen=True)
class Cell:
    """The figures of one tool for one task on one workload, as ratios to the task's unit; None where they were not or cannot be measured.

    Parameters
    ----------
    launches
        Operations beyond those of the unit.
    stops
        Times that the host waits.
    said
        In a few words, what is wrong: 'not there yet', 'not installed', 'refuses', 'crashes', 'wrong shape', 'not finite'.
    details
        The whole sentence behind that.
    bound
        What the issue asks of this figure, if the tool is held to it.
    """

    task: str
    tool: str
    workload: str
    size: str
    device: str
    f: float | None = None
    m: float | None = None
    t: float | None = None
    t_low: float | None = None
    t_high: float | None = None
    seconds: float | None = None
    launches: int | None = None
    stops: int | None = None
    said: str = ""
    details: str = ""
    bound: Bound = field(default_factory=Bound)

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.task, self.tool, self.workload, self.device

    def missed(self) -> dict[str, float]:
        """Return by how much each bound is missed; a figure within rounding of its bound is not."""
        pairs = {
            name: (getattr(self, name), getattr(self.bound, name)) for name in ("f", "m", "t", "launches", "stops")
        }
        return {
            name: figure - bound
            for name, (figure, bound) in pairs.items()
            if figure is not None and bound is not None and figure > bound + 5e-4
        }


def machine(device: str) -> dict[str, str]:
    """Return what figures depend on."""
    names = ("monai", "grad-cam", "torchcam", "captum")
    chip = torch.cuda.get_device_name() if device == "cuda" else _processor()
    return {
        "processor": chip,
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **{name: _version(name) for name in names},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    return f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"


@dataclass(frozen=True)
class Unit:
    """What one unit (a plain forward) costs."""

    flops: int
    launches: int
    peak: int
    facts: Facts


@cache
def _unit(task_name: str, workload: str, size: str, device: str) -> tuple[Any, Call, Unit]:
    task = TASKS[task_name]
    ready = (task.prepare or _case)(workload, size, device)
    plain = task.plain(ready)
    base = _base(ready)
    seen = passed(base) if base else None
    facts = Facts(seen.tail_share, seen.channels, task.passes) if seen else Facts(0.0, 0, task.passes)
    done = seen.done if seen and base is ready else work(plain)
    return (
        ready,
        plain,
        Unit(done.flops, done.launches, _forward_peak(base) if base is ready else _peak(plain, base, device), facts),
    )


@cache
def _forward_peak(ready: Case) -> int:
    ready.forward()
    return peak_bytes(ready.forward, ready.device)


def _case(name: str, size: str, device: str) -> Case:
    return case(WORKLOADS[name], size, device)


def _base(ready: Any) -> Case | None:
    if isinstance(ready, Case):
        return ready
    return getattr(ready, "case", None)


def _peak(call: Call, base: Case | None, device: str) -> int:
    if base is not None:
        return peak_bytes(call, device)
    # Without a network both numpy and torch may hold the memory; a call uses one of them.
    return peak_bytes(call, device) + peak_bytes_of_numpy(call)


def measure(
    task_name: str,
    tool: str,
    workload: str,
    *,
    size: str = "full",
    device: str = "cpu",
    rounds: int = 3,
    memory: bool = True,
) -> Cell:
    """Measure one cell. `rounds` 0 leaves time out, and `memory` memory."""
    task = TASKS[task_name]
    size = size if tool in task.measured else task.peer_size or size
    named = {"task": task_name, "tool": tool, "workload": workload, "size": size, "device": device}
    ready, plain, unit = _unit(task_name, workload, size, device)
    bound = task.bound(workload, unit.facts) if tool in task.measured else Bound()
    with _quietly():
        try:
            call = task.tools[tool](ready)
            figures = _figures(call, plain, unit, _base(ready), device, rounds, memory)
        except (NotThereYet, NotInstalled, CannotAsk) as answer:
            words = {NotThereYet: "not there yet", NotInstalled: "not installed", CannotAsk: "cannot be asked"}
            return Cell(**named, said=words[type(answer)], details=str(answer), bound=bound)
        except UsageError as error:
            return Cell(**named, said="refuses", details=str(error), bound=bound)
        except Exception as error:  # noqa: BLE001  whatever a peer raises is its figure
            first = (str(error).strip().splitlines() or [""])[0]
            return Cell(**named, said="crashes", details=f"{type(error).__name__}: {first[:200]}", bound=bound)
        finally:
            gc.collect()
    return Cell(**named, **figures, bound=bound)


def _figures(
    call: Call, plain: Call, unit: Unit, base: Case | None, device: str, rounds: int, memory: bool
) -> dict[str, Any]:
    results: list[Any] = []
    start = time.perf_counter()
    done = work(lambda: results.append(call()))
    taken = time.perf_counter() - start
    said, details = _complaint(results.pop(), base)
    figures: dict[str, Any] = {
        "f": done.flops / unit.flops if unit.flops else None,
        "m": _peak(call, base, device) / unit.peak if memory else None,
        "launches": done.launches - unit.launches,
        "stops": stops_on_cuda(call) if device == "cuda" else done.stops,
        "said": said,
        "details": details,
    }
    if rounds:
        long = taken > _LONG_SECONDS
        timed = time_beside(call, plain, 1 if long else rounds, device, warm=not long)
        figures |= {"t": timed.ratio, "t_low": timed.low, "t_high": timed.high, "seconds": timed.seconds}
    return figures


def _complaint(result: Any, base: Case | None) -> tuple[str, str]:
    """Look at what came out: a map that has the wrong axes, or is not a number, is no answer however cheap it was."""
    if base is None:
        return "", ""
    batch, dims = len(base.inputs), base.workload.dims
    for values in _arrays(result):
        if values.ndim not in (dims + 1, dims + 2) or values.shape[0] != batch:
            return "wrong shape", f"a map of shape {tuple(values.shape)}"
        if not bool(np.isfinite(np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)).all()):
            return "not finite", "the map holds NaN or infinity"
    return "", ""


def _arrays(result: Any) -> Iterator[Any]:
    if isinstance(result, (Tensor, np.ndarray)):
        yield result
    elif isinstance(result, (list, tuple)):
        for item in result:
            yield from _arrays(item)
    elif hasattr(result, "relevances"):
        yield from _arrays(result.relevances)
    elif hasattr(result, "values") and isinstance(result.values, Tensor):
        yield result.values


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def as_json(cell: Cell) -> dict[str, Any]:
    return {key: value for key, value in asdict(cell).items() if value not in (None, "")}


def from_json(figures: dict[str, Any]) -> Cell:
    return Cell(**{**figures, "bound": Bound(**figures.get("bound", {}))})
