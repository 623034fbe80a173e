"""The performance benchmark: medcam, and other tools beside it in the same run, as ratios to a plain forward pass."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

# The clone that this file lies in is what is measured, whatever else is installed.
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

EXAMPLES = """\
examples:
  python tests/benchmarks/bench.py                                    every task, medcam alone, full size
  python tests/benchmarks/bench.py --peers                            with the tools that are installed
  python tests/benchmarks/bench.py --size small --rounds 0            exact figures only, in a minute or two
  python tests/benchmarks/bench.py --only grad-cam,family --workloads dn2d,unet --peers
  python tests/benchmarks/bench.py --peers --json figures.json --docs docs/benchmark.md
  python tests/benchmarks/bench.py --device cuda --json cuda.json

F is floating point operations, M peak memory, T time, each as a ratio to one plain inference_mode forward of the same network on the same
input. F and M are exact on the CPU; T needs a quiet machine. A JSON file collects: what a later run measures again is replaced, the rest is
kept, so a long benchmark can be run in parts. What must be installed for --peers: see docs/benchmark.md.
"""


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    # A peer's forgotten hooks release memory that the profiler did not see being taken; torch would say so each time.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch

    torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here, or a torch without CUDA: nothing was measured", file=sys.stderr)
        return 2
    from benchmarks import table
    from benchmarks.measure import as_json, from_json, machine, measure
    from benchmarks.tasks import TASKS
    from benchmarks.workloads import WORKLOADS

    if options.list:
        print(_listing(TASKS, WORKLOADS))
        return 0
    wanted = _wanted(options, TASKS)
    if not wanted:
        print("nothing matches --only and --workloads; --list shows what there is", file=sys.stderr)
        return 2
    where = machine(options.device)
    cells, trouble = _kept(options.json, where, from_json)
    if trouble:
        print(trouble, file=sys.stderr)
        return 2
    where["load"] = f"{os.getloadavg()[0]:.1f}"
    import medcam

    print(f"medcam from {Path(medcam.__file__).parent}; {where}", file=sys.stderr)
    for n, (task, tool, workload) in enumerate(wanted, 1):
        cell = measure(task, tool, workload, size=options.size, device=options.device, rounds=options.rounds)
        cells[cell.key] = cell
        print(f"[{n}/{len(wanted)}] {task} | {workload} | {tool}: {table.line(cell)}", file=sys.stderr, flush=True)
        if options.json:
            text = json.dumps({"machine": where, "cells": [as_json(c) for c in cells.values()]}, indent=1)
            options.json.write_text(text + "\n", encoding="utf-8")
    figures = table.markdown(cells.values(), where)
    if options.docs:
        table.write_between_markers(options.docs, figures)
    else:
        print(figures)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = {"type": lambda text: text.split(","), "metavar": "NAME[,NAME...]"}
    parser.add_argument("--peers", action="store_true", help="measure the other tools too")
    parser.add_argument("--only", **names, help="these tasks (all)")
    parser.add_argument("--workloads", **names, help="these workloads (all that a task has)")
    parser.add_argument("--size", choices=["full", "small"], default="full", help="of the workloads (full)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="how often each call is timed; 0 leaves time out (3)")
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch (1, so that process time is what a call costs)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="collect the figures in this file")
    parser.add_argument(
        "--docs", type=Path, metavar="FILE", help="write the tables into this page, between its markers"
    )
    parser.add_argument("--list", action="store_true", help="show the tasks and workloads, and stop")
    return parser


def _wanted(options: argparse.Namespace, tasks: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (name, tool, workload)
        for name, task in tasks.items()
        if (options.only is None or name in options.only) and not (task.host_only and options.device == "cuda")
        for workload in task.workloads
        if options.workloads is None or workload in options.workloads
        for tool in task.tools
        if options.peers or tool.startswith("medcam")
    ]


def _kept(path: Path | None, where: dict[str, str], from_json: Any) -> tuple[dict[Any, Any], str]:
    """Return the figures that the file already holds, and what is wrong with it."""
    if path is None or not path.exists():
        return {}, ""
    found = json.loads(path.read_text(encoding="utf-8"))
    before = {name: value for name, value in found["machine"].items() if name != "load"}
    if before != where:
        return {}, f"{path} holds figures of another machine or other versions ({before}); name a new file"
    cells = [from_json(figures) for figures in found["cells"]]
    return {cell.key: cell for cell in cells}, ""


def _listing(tasks: dict[str, Any], workloads: dict[str, Any]) -> str:
    lines = [
        f"{name:24}{task.title}\n{'':24}on {', '.join(task.workloads)}: {'; '.join(task.tools)}"
        for name, task in tasks.items()
    ]
    return "\n".join(["tasks:", *lines, "", "workloads:", *(f"{w.name:24}{w.what}" for w in workloads.values())])


if __name__ == "__main__":
    sys.exit(main())
