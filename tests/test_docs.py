"""What the documentation says is what the program does: its Python runs, and its tables are complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from compare_methods import METHODS, compare

import medcam
from engine.toy_networks import Classifier, image
from medcam.engine import EXPLAINERS
from medcam.engine.fusion import FUSIONS

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def examples(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)], ids=lambda page: page.name)
def test_python_in_the_documentation_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data_samples").symlink_to(ROOT / "data_samples")
    monkeypatch.chdir(tmp_path)
    # An example may add a method; the table is then as it was.
    monkeypatch.setitem(EXPLAINERS, "positive-cam", EXPLAINERS["grad-cam"])
    shared: dict[str, object] = {"medcam": medcam, "network": Classifier(2).eval(), "images": image(2)}
    for code in examples(page):
        exec(compile(code, page.name, "exec"), shared)


def test_the_comparison_of_methods_draws_its_picture(tmp_path: Path) -> None:
    shares = compare(tmp_path / "methods.png")
    assert list(shares) == METHODS
    assert all(0 <= share <= 1 for share in shares.values())
    assert shares["grad-cam"] > 0.5
    assert (tmp_path / "methods.png").stat().st_size > 50_000


def test_every_method_and_fusion_stands_in_the_documentation() -> None:
    page = (ROOT / "docs" / "methods.md").read_text()
    named = set(re.findall(r"^\| (`[^|]*`) \|", page, re.M))
    assert {name for cell in named for name in re.findall(r"`([^`]+)`", cell)} == set(EXPLAINERS)
    assert all(name in page for name in FUSIONS)
