"""What the project promises on its front page is run, and the versions it names are the versions it was tested with."""

from __future__ import annotations

import os
import re
import shlex
from importlib import metadata
from pathlib import Path

import pytest

from medcam.cli import main

ROOT = Path(__file__).parents[1]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def in_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the clone to the README's commands, so that they leave nothing in the real one."""
    (tmp_path / "data_samples").symlink_to(ROOT / "data_samples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


def test_the_readmes_shell_example_runs(in_a_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [
        line
        for block in blocks(ROOT / "README.md", "shell")
        for line in block.splitlines()
        if line.startswith("medcam ")
    ]
    assert len(commands) == 6
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, command
    out, _ = capsys.readouterr()
    assert "lies in the lesion" in out
    assert len(list((in_a_copy / "results").glob("CR_s1_*_gradcam_sc.dcm"))) == 1


def test_the_readmes_python_example_runs(in_a_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared: dict[str, object] = {}
    for example in blocks(ROOT / "README.md", "python"):
        exec(compile(example, "README.md", "exec"), shared)
    out = capsys.readouterr().out
    assert out.startswith("nodule (class 0) 0.99")
    assert "('hires-cam', 'not class 0', (2, 128, 160))" in out
    assert len(list((in_a_copy / "results").glob("CR_s1_*_gradcam.nii.gz"))) == 1


def test_installed_versions_are_those_of_the_constraints() -> None:
    everyone, _ = (ROOT / "constraints.txt").read_text().split("# Of the benchmark's peers")
    lines = everyone.splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line and "python_version <" not in line)
    pinned = {name: version.split(";")[0].strip() for name, version in pinned.items()}
    assert pinned["torch"] == "2.13.0"
    if metadata.version("torch").split("+")[0] != pinned["torch"] or not os.environ.get("CI"):
        pytest.skip("an environment of the developer's own, not one made through constraints.txt")
    for name, version in pinned.items():
        assert metadata.version(name).split("+")[0] == version, name


def test_the_distribution_is_called_medcam_xai_and_ships_its_samples() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert 'name = "medcam-xai"' in text
    weights = list((ROOT / "data_samples" / "models").rglob("model.pt"))
    assert len(weights) == 2
    assert sum(p.stat().st_size for p in weights) < 1_000_000


def test_links_between_documents_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "data_samples" / "README.md"]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if "://" not in link
    ]
    assert links
    for page, link in links:
        assert (page.parent / link).exists(), f"{page.name}: {link}"
