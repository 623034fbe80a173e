"""The benchmark's own promises: it starts, collects, judges, and what cannot be measured is said in two words."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench, measure, table
from benchmarks.measure import Cell, as_json, from_json
from benchmarks.tasks import TASKS, Bound, NotThereYet, Task
from benchmarks.workloads import WORKLOADS

PAGE = Path(__file__).parents[2] / "docs" / "benchmark.md"


@pytest.fixture(autouse=True)
def _own_threads() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def with_tools(monkeypatch: pytest.MonkeyPatch, **tools: Any) -> None:
    task = Task("One map", ("dn2d_b8",), tools, lambda _name, _facts: Bound(f=1.5, m=9.0), measured=("fits", "breaks"))
    monkeypatch.setitem(TASKS, "made-up", task)


def plain(ready: Any) -> Any:
    return lambda: [ready.forward()[:, :1, None], ready.forward()[:, 1:2, None]]


def raising(error: Exception) -> Any:
    def tool(_ready: Any) -> Any:
        raise error

    return tool


def cell(tool: str) -> Cell:
    return measure.measure("made-up", tool, "dn2d_b8", size="small", rounds=0)


def test_a_cell_is_a_ratio_to_a_plain_forward_and_is_held_to_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    with_tools(monkeypatch, fits=plain)
    found = cell("fits")
    assert found.f == 2
    assert found.said == ""
    assert found.missed() == {"f": 0.5}
    assert table.verdict(found) == "F missed by 0.500"


def test_what_cannot_be_measured_is_said_in_two_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with_tools(
        monkeypatch,
        breaks=raising(NotThereYet("no method magic")),
        crashes=raising(RuntimeError("view and in-place\nand more")),
        flat=lambda ready: lambda: ready.forward().sum(),
        blank=lambda ready: lambda: ready.forward()[:, :, None] / 0,
    )
    assert (cell("breaks").said, table.verdict(cell("breaks"))) == ("not there yet", "not there yet")
    assert (cell("crashes").said, cell("crashes").details) == ("crashes", "RuntimeError: view and in-place")
    assert cell("flat").said == "wrong shape"
    assert cell("blank").said == "not finite"
    assert "crashes" in table.markdown([cell("crashes")], {})


def test_a_peer_that_is_not_installed_is_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    assert measure.measure("grad-cam", "captum", "dn2d_b8", size="small", rounds=0).said == "not installed"


def test_figures_come_back_from_json() -> None:
    kept = Cell("a", "b", "c", "small", "cpu", f=1.0, m=2.0, stops=0, said="wrong shape", bound=Bound(f=1.5))
    assert from_json(json.loads(json.dumps(as_json(kept)))) == kept


def test_a_run_in_parts_collects_and_fills_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, figures = tmp_path / "page.md", tmp_path / "figures.json"
    page.write_text(f"before\n{table.START}\nold\n{table.END}\nafter\n")
    common = ["--size", "small", "--rounds", "0", "--json", str(figures)]
    assert bench.main([*common, "--only", "placing"]) == 0
    assert "Placing a 16 x 16 x 10 map" in capsys.readouterr().out
    assert bench.main([*common, "--only", "grad-cam", "--workloads", "vit", "--docs", str(page)]) == 0
    assert "[1/3] grad-cam | vit | medcam:" in capsys.readouterr().err
    assert {c["task"] for c in json.loads(figures.read_text())["cells"]} == {"placing", "grad-cam"}
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "### Placing" in text
    assert "### One Grad-CAM" in text


def test_figures_of_another_machine_are_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.json"
    figures.write_text(json.dumps({"machine": {"processor": "another"}, "cells": []}))
    assert bench.main(["--only", "placing", "--json", str(figures)]) == 2
    assert "another machine" in capsys.readouterr().err


def test_what_does_not_exist_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--only", "magic"]) == 2
    assert "--list" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert bench.main(["--device", "cuda"]) == 2
        assert "no CUDA device" in capsys.readouterr().err
    assert bench.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*TASKS, *WORKLOADS))


def test_the_page_has_room_for_the_figures_and_names_every_workload() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert table.START in text
    assert table.END in text
    assert table.workload_table() in text


def test_tasks_name_workloads_that_exist_and_tools_that_are_theirs() -> None:
    for name, task in TASKS.items():
        assert set(task.measured) <= set(task.tools), name
        assert task.prepare is not None or set(task.workloads) <= set(WORKLOADS), name
