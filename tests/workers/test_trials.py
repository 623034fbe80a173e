"""The trials of a cohort, each in a short form: the real command under fire, on a full disk, over many cases (docs/cohort-trials.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cohort_trials import main
from cohort_trials_runs import differences, make_cohort

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def found(folder: Path, *words: str) -> dict[str, Any]:
    """What a trial found, which went well."""
    file = folder / "found.jsonl"
    code = main([*words, "--folder", str(folder), "--json", str(file)])
    trial: dict[str, Any] = json.loads(file.read_text())
    assert code == 0, trial
    return trial


@pytest.mark.parametrize("seed", ["0", "1"])
def test_a_cohort_whose_workers_and_driver_are_killed_ends_as_one_that_nobody_disturbed(
    tmp_path: Path, seed: str
) -> None:
    words = ("--cases", "24", "--seed", seed, "--workers-killed", "2", "--drivers-killed", "2")
    trial = found(tmp_path, "fire", *words)
    assert trial["killed"] == {"worker": 2, "driver": 2}
    assert (trial["starts"], trial["disturbed"]["done"], trial["poison"]) == (3, 23, ["died"])


def test_a_cohort_whose_dask_scheduler_is_killed_too_ends_alike(tmp_path: Path) -> None:
    words = ("--cases", "16", "--workers-killed", "1", "--drivers-killed", "1", "--schedulers-killed", "1")
    trial = found(tmp_path, "dask", *words)
    assert trial["killed"] == {"worker": 1, "driver": 1, "scheduler": 1}
    assert (trial["disturbed"]["done"], trial["poison"]) == (15, ["died"])


def test_a_full_disk_ends_a_cohort_which_goes_on_when_there_is_room(tmp_path: Path) -> None:
    trial = found(tmp_path, "disk", "--cases", "40")
    assert trial["exit_codes"] == [5, 0]
    assert "make room, and run the same command again" in trial["said"][0]
    assert trial["done_when_full"] < 40


def test_memory_is_flat(tmp_path: Path) -> None:
    trial = found(tmp_path, "memory", "--cases", "120")
    assert trial["states"] == {"done": 120, "begun": 120}


@pytest.mark.alone
def test_small_cases_cost_little_beside_their_parts_and_larger_ones_are_the_networks_time(tmp_path: Path) -> None:
    trial = found(tmp_path, "overhead", "--cases", "60", "--larger", "7", "--side", "128")
    assert trial["small"]["steady_by_parts"] <= 1.25
    assert trial["larger"]["network_share"] >= 0.85


def test_what_compares_two_runs_sees_a_byte_that_differs_and_a_file_too_many(tmp_path: Path) -> None:
    """Else the trials could not fail."""
    import shutil

    from medcam.cli import main as medcam

    table = make_cohort(tmp_path / "images", 2, shape=(20, 24, 17))
    options = ["--model", "demo-mri", "--formats", "nifti", "--report", "none", "--engine", "inline", "--quiet"]
    assert medcam(["cohort", str(table), "--out", str(tmp_path / "one"), *options]) == 0
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert differences(tmp_path / "one", tmp_path / "two") == []
    image = next((tmp_path / "two" / "heatmaps").glob("*_gradcam.nii.gz"))
    content = bytearray(image.read_bytes())
    content[len(content) // 2] ^= 1
    image.write_bytes(content)
    (tmp_path / "two" / "heatmaps" / "stray.nii.gz").write_bytes(b"")
    assert differences(tmp_path / "one", tmp_path / "two") == [
        "only in one: heatmaps/stray.nii.gz",
        f"differs: heatmaps/{image.name}",
    ]
