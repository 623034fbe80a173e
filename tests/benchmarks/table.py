"""Figures as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmarks.measure import Cell
from benchmarks.tasks import TASKS, Bound, Task
from benchmarks.workloads import WORKLOADS

START, END = "<!-- figures: made by tests/benchmarks/bench.py -->", "<!-- end of figures -->"
_LETTERS = {"f": "F", "m": "M", "t": "T", "launches": "launches", "stops": "host stops"}


def write_between_markers(page: Path, figures: str) -> None:
    """Replace what stands between the markers of a page.

    Raises
    ------
    ValueError
        If the page does not hold both markers.
    """
    text = page.read_text(encoding="utf-8")
    if START not in text or END not in text:
        raise ValueError(f"{page} does not hold the lines '{START}' and '{END}'")
    before, after = text.split(START)[0], text.split(END)[1]
    page.write_text(f"{before}{START}\n\n{figures.strip()}\n\n{END}{after}", encoding="utf-8")


def markdown(cells: Iterable[Cell], machine: dict[str, str]) -> str:
    """Return all tables: one for each task, then what a GPU would see, then what was said about cells without figures."""
    cells = list(cells)
    words = ", ".join(f"{name} {value}" for name, value in machine.items() if name != "load")
    parts = [f"Measured on: {words}. Load of the machine at the start: {machine.get('load', 'unknown')}."]
    for name, task in TASKS.items():
        own = [cell for cell in cells if cell.task == name]
        if own:
            parts.append(f"### {task.title}\n\n`{name}`\n\n{_task_table(task, own)}")
    seen = [cell for cell in cells if cell.bound.stops is not None and cell.launches is not None]
    if seen:
        parts.append(f"### What a GPU sees\n\n{_launch_table(seen)}")
    said = _remarks(cells)
    return "\n\n".join([*parts, said] if said else parts)


def _task_table(task: Task, cells: list[Cell]) -> str:
    tools = [tool for tool in task.tools if any(cell.tool == tool for cell in cells)]
    rows = []
    for workload in task.workloads:
        own = {cell.tool: cell for cell in cells if cell.workload == workload}
        if own:
            held = [own[tool] for tool in task.measured if tool in own]
            size = held[0].size if held else "full"
            rows.append([workload if size == "full" else f"{workload} ({size})", _bound(held[0].bound) if held else "",
                         *(_figures(own.get(tool), size) for tool in tools), "; ".join(filter(None, map(verdict, held)))])  # fmt: skip
    heads = [f"**{tool}**" if tool in task.measured else tool for tool in tools]
    return _table(["F / M / T", "bound", *heads, "medcam's bound"], rows)


def _launch_table(cells: list[Cell]) -> str:
    rows = [
        [cell.task, cell.workload, f"{cell.launches} / {cell.stops}",
         f"{'-' if cell.bound.launches is None else cell.bound.launches} / {cell.bound.stops}"]
        for cell in cells
    ]  # fmt: skip
    return _table(["task", "workload", "medcam: launches beyond the forward / host stops", "bound"], rows)


def verdict(cell: Cell) -> str:
    """Return 'met', or by how much each bound is missed."""
    if cell.said:
        return cell.said
    if cell.bound == Bound():
        return ""
    missed = cell.missed()
    if not missed:
        return "met"
    return ", ".join(f"{_LETTERS[name]} missed by {_number(name, amount)}" for name, amount in missed.items())


def line(cell: Cell) -> str:
    """Return a cell in one line, for progress."""
    figures = _figures(cell)
    more = f" ({cell.details})" if cell.details else ""
    counted = f", {cell.launches} launches, {cell.stops} stops" if cell.launches is not None else ""
    judged = f" [{verdict(cell)}]" if cell.bound != Bound() and not cell.said else ""
    return f"{figures}{more}{counted}{judged}"


def _figures(cell: Cell | None, size: str | None = None) -> str:
    """Return a cell in figures or words; its size too where that is not its row's."""
    if cell is None:
        return ""
    if cell.launches is None:
        return cell.said
    numbers = " / ".join(_number(name, getattr(cell, name)) for name in ("f", "m", "t"))
    own = f"({cell.size})" if size not in (None, cell.size) else ""
    return " ".join(filter(None, (numbers, own, cell.said)))


def _bound(bound: Bound) -> str:
    return "" if bound == Bound() else " / ".join(_number(name, getattr(bound, name)) for name in ("f", "m", "t"))


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name in ("launches", "stops"):
        return str(round(value))
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.3f}" if name == "f" else f"{value:.2f}"


def _remarks(cells: list[Cell]) -> str:
    """Return what stands behind the words in cells, each sentence once."""
    where: dict[tuple[str, str, str], list[str]] = {}
    for cell in cells:
        if cell.details and cell.said not in ("not there yet", "not installed"):
            where.setdefault((cell.tool, cell.said, cell.details), []).append(f"{cell.task}: {cell.workload}")
    lines = [f"- {tool} {said} ({', '.join(places)}): {details}" for (tool, said, details), places in where.items()]
    return "### Behind the words\n\n" + "\n".join(lines) if lines else ""


def workload_table() -> str:
    """Return the workloads in words."""
    rows = [[f"`{w.name}`", w.what, f"`{w.layer}`"] for w in WORKLOADS.values()]
    return _table(["name", "network", "layer"], rows)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
