"""The how-to's commands are what it says they are, run in its order; and so are those of the examples for clusters."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cohort.made_cohort import contents

from formats.dicom_phantom import GEOMETRIES, stored_values, write_series
from medcam.cli import _parsers, main
from medcam.cohort.manifest import read_manifest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "how-to-cohort.md"
HEAD = ROOT / "data_samples" / "mri" / "head_flair.nii.gz"


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of two heads, a BIDS dataset and an archive, in the folder where commands are given."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        shutil.copy(HEAD, tmp_path / f"{name}.nii.gz")
    (tmp_path / "cases.csv").write_text("case,patient,image\nfirst,p1,a.nii.gz\nsecond,p2,b.nii.gz\n")
    (tmp_path / "dataset/sub-01/anat").mkdir(parents=True)
    shutil.copy(HEAD, tmp_path / "dataset/sub-01/anat/sub-01_FLAIR.nii.gz")
    write_series(tmp_path / "archive", stored_values((32, 32, 16)), GEOMETRIES["oblique"])
    return tmp_path


@pytest.mark.slow
def test_the_commands_of_the_how_to_do_what_it_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for line in commands():
        words = shlex.split(line)
        assert words[0] == "medcam"
        # Processes of their own would take longest to begin: where the page is not about them, this one works.
        engine = ["--engine", "inline"] if words[1] == "cohort" and "--workers" not in words else []
        assert main([*words[1:], *engine]) == 0, f"{line}: {capsys.readouterr().err}"
        said.append(capsys.readouterr())
    planned, first, again, *_ = said
    assert "2 new" in planned.out
    assert "2 of 2 done" in first.err
    assert "2 of 2 done, 2 of them before" in again.err
    assert list(folder.glob("derivatives/medcam/sub-01/anat/*_desc-gradcam_probseg.nii.gz"))
    assert len(list((folder / "explained").rglob("*_sc.dcm"))) == 1
    # Two processes, this one, and two shards have made the same.
    for name in ("results", "on_two", "joined"):
        assert contents(folder / name) == contents(folder / "results")
    workers = {row.worker for row in read_manifest(folder / "on_two")[1].values()}
    assert not any(worker.endswith(f":{os.getpid()}") for worker in workers)
    named = set(re.findall(r"^\| `([^`|]+)`", PAGE.read_text(), re.M))
    assert {"heatmaps/", "cases.csv", "manifest.sqlite3", "cases/"} <= named
    assert all((folder / "results" / name).exists() for name in ("heatmaps", "cases.csv", "manifest.sqlite3", "cases"))


def test_every_option_that_the_how_to_names_exists() -> None:
    _, parsers = _parsers()
    names = ("cohort", "merge")
    options = {option for name in names for action in parsers[name]._actions for option in action.option_strings}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE.read_text())) <= options


@pytest.fixture
def noted(tmp_path: Path) -> tuple[dict[str, str], Path]:
    """An environment whose `medcam` notes what it is asked and fails as a cohort with a failed case does; and the file of notes."""
    notes, shim = tmp_path / "asked.jsonl", tmp_path / "bin" / "medcam"
    shim.parent.mkdir()
    shim.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"open({str(notes)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\nsys.exit(1)\n"
    )
    shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
    return {**os.environ, "PATH": f"{shim.parent}{os.pathsep}{os.environ['PATH']}"}, notes


def asked(notes: Path) -> list[list[str]]:
    """What medcam was asked, as its own parser takes it."""
    found = [json.loads(line) for line in notes.read_text().splitlines()]
    for words in found:
        _parsers()[0].parse_args(words)
    return found


def shards_of(found: list[list[str]]) -> set[tuple[str, str]]:
    return {
        (words[words.index("--shard") + 1], words[words.index("--out") + 1].split("/")[-1])
        for words in found
        if words[0] == "cohort"
    }


def test_the_slurm_array_asks_for_its_shard(tmp_path: Path, noted: tuple[dict[str, str], Path]) -> None:
    environment, notes = noted
    script = ROOT / "examples" / "slurm_array.sh"
    for n in (1, 2):
        slurm = {"SLURM_ARRAY_TASK_ID": str(n), "SLURM_ARRAY_TASK_COUNT": "2"}
        done = subprocess.run(
            ["bash", script, "cases.csv", "net.zip"], env=environment | slurm, cwd=tmp_path, check=False
        )
        assert done.returncode == 1
    found = asked(notes)
    assert shards_of(found) == {("1/2", "1"), ("2/2", "2")}
    assert found[0][1:4] == ["cases.csv", "--model", "net.zip"]
    # What its comment says to do next can be asked, too.
    merge = re.search(r"--wrap '(medcam merge .*?)'", script.read_text())
    assert merge is not None
    _parsers()[0].parse_args(shlex.split(merge[1])[1:])
    assert len(script.read_text().splitlines()) <= 12


def test_the_nextflow_processes_ask_for_each_shard_and_join_them(
    tmp_path: Path, noted: tuple[dict[str, str], Path]
) -> None:
    environment, notes = noted
    text = (ROOT / "examples" / "cohort.nf").read_text()
    scripts = dict(re.findall(r'process (\w+) \{.*?script: "(.*?)"\n', text, re.S))
    for n in (1, 2):
        (tmp_path / "shards" / str(n)).mkdir(parents=True)
        # Groovy puts values in, and leaves an escaped dollar to the shell.
        known = {
            "params.table": "cases.csv",
            "params.model": "net.zip",
            "params.shards": "2",
            "params.out": str(tmp_path),
            "i": str(n),
        }
        filled = re.sub(r"(?<!\\)\$\{([\w.]+)\}", lambda found, known=known: known[found[1]], scripts["shard"])
        subprocess.run(["bash", "-ue", "-c", filled.replace("\\$", "$")], env=environment, check=True)
    filled = scripts["merged"].replace("${params.out}", str(tmp_path)).replace("\\$", "$")
    subprocess.run(["bash", "-ue", "-c", filled], env=environment, check=True)
    found = asked(notes)
    assert shards_of(found) == {("1/2", "1"), ("2/2", "2")}
    assert found[-1] == ["merge", f"{tmp_path}/shards/1", f"{tmp_path}/shards/2", "--out", f"{tmp_path}/results"]
    assert "Channel.of(1..params.shards) | shard | collect | merged" in text


def test_the_rules_of_snakemake_ask_for_each_shard_and_join_them(
    tmp_path: Path, noted: tuple[dict[str, str], Path]
) -> None:
    environment, notes = noted
    snakemake = os.environ.get("MEDCAM_SNAKEMAKE") or shutil.which("snakemake")
    if snakemake is None:
        pytest.skip("snakemake is not installed")
    for n in (1, 2):
        (tmp_path / "shards" / str(n)).mkdir(parents=True)
    given = ["--config", "shards=2", "table=cases.csv", "model=net.zip"]
    rules = [snakemake, "--snakefile", ROOT / "examples" / "Snakefile", "--cores", "1", "--quiet", *given]
    subprocess.run(rules, env=environment, cwd=tmp_path, check=True, capture_output=True)
    found = asked(notes)
    assert shards_of(found) == {("1/2", "1"), ("2/2", "2")}
    assert found[-1] == ["merge", "shards/1/", "shards/2/", "--out", "results"]
