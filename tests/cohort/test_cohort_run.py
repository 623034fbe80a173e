"""A cohort is done once: what is there stays, what is gone, changed or failed is made again, and whatever ends a run, the next goes on."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import signal
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from cohort.made_cohort import FACTORY, GRID, QUICK, TRIED, contents, save, scan, study, weights

from medcam.cli import main
from medcam.cohort import working
from medcam.cohort.manifest import DONE, NAME, Manifest, Row, read_manifest
from medcam.errors import InputError, OutputError

Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the cohort of a table into `tmp_path/out`, in this process, with further options."""
    model = weights(tmp_path)

    def cohort(table: Path, *more: str) -> int:
        return main(
            [
                "cohort",
                str(table),
                *model,
                "--engine",
                "inline",
                "--out",
                str(tmp_path / "out"),
                "--formats",
                "nifti",
                *more,
            ]
        )

    return cohort


def attempts(out: Path) -> dict[str, int]:
    return {row.name: row.attempts for row in read_manifest(out)[1].values()}


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "cases.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_cases_are_explained_exported_and_tabled_as_a_mirror_of_their_tree(run: Run, tmp_path: Path) -> None:
    assert run(study(tmp_path)) == 0
    out = tmp_path / "out"
    rows = rows_of(out)
    assert [row["case"] for row in rows] == ["c0", "c1", "c2", "c3"]
    assert [row["heatmap"] for row in rows] == [f"heatmaps/site{n % 2}/scan{n}_gradcam.nii.gz" for n in range(4)]
    for row in rows:
        sidecar = json.loads((out / row["heatmap"].replace(".nii.gz", ".json")).read_text())
        assert float(row["score"]) == pytest.approx(sidecar["score"], rel=1e-5)
        np.testing.assert_allclose(nibabel.load(out / row["heatmap"]).affine, GRID.affine, atol=1e-5)
    linked = re.findall(r'href="(.*?)"', (out / "overview.html").read_text())
    assert len(linked) == 4
    assert all((out / link).is_file() for link in linked)
    about, known = read_manifest(out)
    assert {row.state for row in known.values()} == {DONE}
    assert about["ended"] is True
    assert all(set(row.seconds) == {"read", "compute", "write"} and row.worker for row in known.values())


def test_what_is_done_and_whole_is_not_done_again_and_what_is_not_is(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = study(tmp_path), tmp_path / "out"
    assert run(table) == 0
    first = contents(out)
    assert run(table) == 0
    assert "4 of 4 done, 4 of them before" in capsys.readouterr().err
    assert set(attempts(out).values()) == {1}
    (out / "heatmaps/site0/scan0_gradcam.nii.gz").unlink()
    (out / "heatmaps/site1/scan1_gradcam.json").write_text("{}")
    # Touched, and the same within.
    os.utime(tmp_path / "site0/scan2.nii.gz", (1, 1))
    os.utime(out / "heatmaps/site1/scan3_gradcam.nii.gz", (1, 1))
    assert run(table) == 0
    assert attempts(out) == {"c0": 2, "c1": 2, "c2": 1, "c3": 1}
    assert contents(out) == first
    save(tmp_path / "site1/scan3.nii.gz", scan(7)[0])
    assert run(table) == 0
    assert attempts(out) == {"c0": 2, "c1": 2, "c2": 1, "c3": 2}
    changed = contents(out)
    assert {name for name in first if changed[name] != first[name]} >= {
        "cases.csv",
        "heatmaps/site1/scan3_gradcam.nii.gz",
    }


def test_a_table_that_grows_and_shrinks_keeps_what_is_done(run: Run, tmp_path: Path) -> None:
    table, out = study(tmp_path), tmp_path / "out"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    assert run(table) == 0
    table.write_text("\n".join([lines[0], lines[1], *lines[3:]]) + "\n")
    assert run(table) == 0
    assert attempts(out) == {"c0": 1, "c2": 1, "c3": 1}
    assert [(row["line"], row["case"]) for row in rows_of(out)] == [("2", "c0"), ("3", "c2"), ("4", "c3")]


def test_a_broken_case_is_told_passed_over_and_kept_with_its_error_until_it_is_retried(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = study(tmp_path), tmp_path / "out"
    whole = (tmp_path / "site1/scan1.nii.gz").read_bytes()
    (tmp_path / "site1/scan1.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "site0/scan2.nii.gz").unlink()
    assert run(table, "--json") == 1
    said = json.loads(capsys.readouterr().out)
    assert said["cases"] == {"done": 2, "failed": 2}
    assert [each["line"] for each in said["failed"]] == [3, 4]
    assert "there is nothing at" in said["failed"][1]["error"]
    failed = [row for row in read_manifest(out)[1].values() if row.failed]
    assert all("judging.py" in row.trace and row.files == {} for row in failed)
    assert [row["verdict"] for row in rows_of(out)] == ["", "failed", "failed", ""]
    assert run(table) == 1
    assert attempts(out) == {"c0": 1, "c1": 1, "c2": 1, "c3": 1}
    assert run(table, "--retry-failed") == 1
    assert attempts(out) == {"c0": 1, "c1": 2, "c2": 2, "c3": 1}
    # A file that is mended is tried without being asked for.
    (tmp_path / "site1/scan1.nii.gz").write_bytes(whole)
    save(tmp_path / "site0/scan2.nii.gz", scan(2)[0])
    assert run(table) == 0


def test_an_input_that_is_gone_does_not_undo_what_was_made_of_it(run: Run, tmp_path: Path) -> None:
    table, out = study(tmp_path), tmp_path / "out"
    assert run(table) == 0
    (tmp_path / "site0/scan2.nii.gz").unlink()
    assert run(table) == 0
    assert attempts(out)["c2"] == 1
    (out / "heatmaps/site0/scan2_gradcam.nii.gz").unlink()
    assert run(table) == 1


def test_a_network_that_gives_no_number_fails_the_case_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = study(tmp_path, 2)
    model = weights(tmp_path)
    state = torch.load(tmp_path / "net.pt", weights_only=True)
    torch.save(
        {name: value * (float("nan") if value.is_floating_point() else 1) for name, value in state.items()},
        tmp_path / "net.pt",
    )
    assert main(["cohort", str(table), *model, "--engine", "inline", "--out", str(tmp_path / "out")]) == 1
    assert "not a number" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_other_settings_are_refused_by_name_unless_results_are_to_be_replaced(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = study(tmp_path, 2), tmp_path / "out"
    assert run(table) == 0
    assert run(table, "--method", "hires-cam") == 2
    assert 'method "grad-cam" then, "hires-cam" now' in capsys.readouterr().err
    weights(tmp_path, seed=1)
    assert run(table) == 2
    assert "other settings (model" in capsys.readouterr().err
    assert run(table, "--method", "hires-cam", "--replace") == 0
    assert attempts(out) == {"c0": 2, "c1": 2}
    assert not list(out.rglob("*gradcam*"))
    assert len(list(out.rglob("*_hirescam.nii.gz"))) == 2


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = study(tmp_path), tmp_path / "out"
    assert run(table, "--dry-run") == 0
    assert "4 cases: 4 new" in capsys.readouterr().out
    assert not out.exists()
    assert run(table) == 0
    (out / "heatmaps/site0/scan0_gradcam.nii.gz").unlink()
    save(tmp_path / "site1/scan1.nii.gz", scan(8)[0])
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(table, "--dry-run", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["counts"] == {"damaged": 1, "changed": 1, "there": 2}
    assert [(each["line"], each["why"]) for each in said["todo"]] == [(2, "damaged"), (3, "changed")]
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()} == before


def _each_read(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Have something happen whenever a case is about to be read, with how many were before."""
    count, original = 0, working.read_inputs

    def read(*given: Any, **named: Any) -> Any:
        nonlocal count
        act(count)
        count += 1
        return original(*given, **named)

    monkeypatch.setattr(working, "read_inputs", read)


def test_ctrl_c_finishes_what_is_begun_writes_the_table_and_the_next_run_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = study(tmp_path), tmp_path / "out"
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        _each_read(patched, lambda n: signal.raise_signal(signal.SIGINT) if n == 1 else None)
        assert run(table, "--json") == 130
    told = capsys.readouterr()
    assert "what is begun is finished" in told.err
    assert json.loads(told.out)["cases"] == {"done": 2, "waiting": 2}
    assert [row["error"] for row in rows_of(out)] == ["", "", *["it was not reached; run the same command again"] * 2]
    assert signal.getsignal(signal.SIGINT) is handler
    assert run(table) == 0
    assert set(attempts(out).values()) == {1}


def test_ctrl_c_twice_ends_at_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, out = study(tmp_path), tmp_path / "out"

    def twice(n: int) -> None:
        for _ in range(2 if n == 1 else 0):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        _each_read(patched, twice)
        assert run(table) == 130
    assert sorted(row.state for row in read_manifest(out)[1].values()) == ["done", "waiting", "waiting", "waiting"]
    assert run(table) == 0


def test_a_full_disk_ends_the_run_and_what_is_done_stands(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = study(tmp_path), tmp_path / "out"
    original, count = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal count
        count += 1
        # The files of the first case are five, so this is within the second.
        if count > 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert run(table) == 5
    assert "No space left on device; what was done before stands" in capsys.readouterr().err
    assert [row.state for row in read_manifest(out)[1].values()] == ["done", "waiting", "waiting", "waiting"]
    assert run(table) == 0
    assert attempts(out)["c0"] == 1
    assert not list(out.rglob(".medcam-*"))


def test_a_folder_that_is_taken_away_ends_the_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, out = study(tmp_path), tmp_path / "out"
    with monkeypatch.context() as patched:
        _each_read(patched, lambda n: out.rename(tmp_path / "away") if n == 2 else None)
        assert run(table) == 5
    # What was done stands where the folder is now.
    for path in out.rglob("*"):
        assert path.is_dir() or path.name.startswith(("scan2", ".")) or path.parent.name == "cases"
    rows = read_manifest(tmp_path / "away")[1]
    assert sorted(row.state for row in rows.values()) == ["done", "done", "waiting", "waiting"]


def test_what_a_killed_writer_left_is_swept_away_and_its_case_done(run: Run, tmp_path: Path) -> None:
    table, out = study(tmp_path, 2), tmp_path / "out"
    assert run(table) == 0
    first = contents(out)
    with sqlite3.connect(out / NAME) as rows:
        rows.execute("update about set value = 'false' where name = 'ended'")
        rows.execute("update cases set state = 'waiting', files = '{}' where name = 'c1'")
    rows.close()
    (out / "heatmaps/site1/.medcam-x-scan1_gradcam.nii.gz").write_bytes(b"half")
    assert run(table) == 0
    assert contents(out) == first
    assert attempts(out) == {"c0": 1, "c1": 1}


@pytest.mark.parametrize("masks", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_order_and_company_do_not_change_what_is_made_of_a_case(run: Run, tmp_path: Path, masks: bool) -> None:
    table, out = study(tmp_path, masks=masks), tmp_path / "out"
    measured = ["--method", "rise(masks=4)", *QUICK, *TRIED]
    assert run(table, *measured) == 0
    forward = contents(out)
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *lines[:1:-1]]) + "\n")
    (tmp_path / "out").rename(tmp_path / "forward")
    assert run(table, *measured) == 0
    backward = contents(out)
    cases = [name for name in forward if name.startswith(("heatmaps/", "cases/")) and backward.get(name)]
    assert len(cases) == 3 * 5
    assert all(forward[name] == backward[name] for name in cases)


def test_cases_with_a_lesion_are_measured_as_validate_measures_them_and_the_others_stand_beside(
    run: Run, tmp_path: Path
) -> None:
    table, out = study(tmp_path, 3, masks=True), tmp_path / "out"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:3], lines[3].rpartition(",")[0] + ","]) + "\n")
    assert run(table, *QUICK) == 0
    own = rows_of(out)
    assert own[2]["verdict"] == own[2]["average_precision"] == own[2]["error"] == ""
    assert float(own[2]["score"])
    with_masks = tmp_path / "with_masks.csv"
    with_masks.write_text("\n".join(lines[:3]) + "\n")
    assert main(["validate", str(with_masks), *weights(tmp_path), *QUICK, "--out", str(tmp_path / "judged")]) == 0
    theirs = rows_of(tmp_path / "judged")
    for one, other in zip(own, theirs, strict=False):
        assert {**one, "heatmap": "", "seconds": ""} == {**other, "heatmap": "", "seconds": ""}
    for name in ("lesions.csv", "summary.csv"):
        assert (out / name).read_text() == (tmp_path / "judged" / name).read_text()


def test_given_heatmaps_are_measured_without_a_network_and_stay_where_they_lie(run: Run, tmp_path: Path) -> None:
    table = study(tmp_path, 2, masks=True)
    assert run(table, *QUICK) == 0
    maps = [tmp_path / "out/heatmaps" / f"site{n}/scan{n}_gradcam.nii.gz" for n in (0, 1)]
    lines = table.read_text().splitlines()
    rows = [f"{line},out/heatmaps/site{n}/scan{n}_gradcam.nii.gz" for n, line in enumerate(lines[1:])]
    given = tmp_path / "given.csv"
    given.write_text("\n".join([f"{lines[0]},heatmap", *rows]) + "\n")
    out = tmp_path / "given"
    again = ["cohort", str(given), "--engine", "inline", "--out", str(out), *QUICK]
    assert main(again) == 0
    assert not (out / "heatmaps").exists()
    for own, theirs in zip(rows_of(out), rows_of(tmp_path / "out"), strict=True):
        assert own["average_precision"] == theirs["average_precision"] != ""
        assert (out / own["heatmap"]).resolve() in maps
    # A heatmap's sidecar is part of it.
    sidecar = maps[0].with_name("scan0_gradcam.json")
    sidecar.write_text(sidecar.read_text().replace('"target"', '"aim"', 1))
    assert main(again) == 1
    assert main(["cohort", str(table), "--out", str(tmp_path / "none")]) == 4


def test_parquet_holds_the_table(run: Run, tmp_path: Path) -> None:
    from pyarrow import parquet

    assert run(study(tmp_path, 2), "--parquet") == 0
    found = parquet.read_table(tmp_path / "out" / "cases.parquet").to_pylist()
    for row, words in zip(found, rows_of(tmp_path / "out"), strict=True):
        assert (row["case"], row["heatmap"]) == (words["case"], words["heatmap"])
        assert row["score"] == pytest.approx(float(words["score"]))


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Manifest]:
    made = Manifest(tmp_path)
    yield made
    made.close()


def test_one_process_writes_a_manifest_and_others_read_it(manifest: Manifest, tmp_path: Path) -> None:
    row = Row("a" * 16, 2, "case", 1, seen={"image 1": [3, 4]}, files={"x": [1, 2, "d"]}, seconds={"read": 0.5})
    manifest.put([row])
    manifest.describe({"settings": {"method": "grad-cam"}})
    assert read_manifest(tmp_path) == ({"version": 1, "settings": {"method": "grad-cam"}}, {row.id: row})
    with pytest.raises(OutputError, match="another run writes there"):
        Manifest(tmp_path)
    manifest.put([replace(row, state="failed", error="why")])
    assert manifest.rows()[row.id].error == "why"
    assert "case" not in repr(row)
    manifest.close()
    Manifest(tmp_path).close()


def test_a_manifest_that_is_none_or_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"no database at all, but something else of some length")
    with pytest.raises(InputError, match="damaged or no manifest"):
        read_manifest(tmp_path)
    with pytest.raises(OutputError):
        Manifest(tmp_path)
    (tmp_path / NAME).unlink()
    made = Manifest(tmp_path)
    made.describe({})
    made.close()
    with sqlite3.connect(tmp_path / NAME) as rows:
        rows.execute("update about set value = '2' where name = 'version'")
    rows.close()
    with pytest.raises(InputError, match="version 2"):
        read_manifest(tmp_path)


def test_a_networks_digest_is_of_its_files_and_of_how_it_is_made_of_them(tmp_path: Path) -> None:
    weights(tmp_path)
    own = working.Network(str(tmp_path / "net.pt"), FACTORY)
    assert own.digest() == replace(own).digest()
    assert own.digest() != replace(own, factory=FACTORY.replace("3", "2", 1)).digest()
    (tmp_path / "net.py").write_text("a = 1")
    by_file = replace(own, factory=f"{tmp_path / 'net.py'}:make")
    first = by_file.digest()
    (tmp_path / "net.py").write_text("a = 2")
    assert by_file.digest() != first
