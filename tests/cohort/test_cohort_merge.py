"""Shards of a cohort are joined to the folder that one run would have made, or it is told why they cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cohort.made_cohort import QUICK, TRIED, contents, save, scan, study, weights

from medcam.cli import main
from medcam.cohort.manifest import read_manifest
from medcam.cohort.planning import Shard
from medcam.errors import UsageError


def cohort(table: Path, out: Path, *more: str) -> int:
    model = weights(table.parent)
    return main(["cohort", str(table), *model, "--engine", "inline", "--out", str(out), "--formats", "nifti", *more])


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """The three shards of a cohort of five cases, one of which fails."""
    table = study(tmp_path, 5)
    (tmp_path / "site1/scan3.nii.gz").write_bytes(b"no image")
    folders = [tmp_path / "shards" / str(n) for n in (1, 2, 3)]
    codes = [cohort(table, folder, "--shard", f"{n}/3") for n, folder in enumerate(folders, 1)]
    assert sorted(codes) == [0, 0, 1]
    return folders


def merge(folders: list[Path], out: Path, *more: str) -> int:
    return main(["merge", *map(str, folders), "--out", str(out), *more])


def test_every_case_is_in_one_shard_whatever_else_there_is() -> None:
    ids = [f"{n:016x}" for n in range(200)]
    for of in (1, 3, 8):
        counts = [sum(Shard(n, of).holds(each) for each in ids) for n in range(1, of + 1)]
        assert sum(counts) == 200
        assert min(counts) > 0.4 * 200 / of
    with pytest.raises(UsageError, match="1/3 to 3/3"):
        Shard(0, 3)


def test_joined_shards_are_what_one_run_gives(shards: list[Path], tmp_path: Path) -> None:
    assert cohort(tmp_path / "cases.csv", tmp_path / "whole") == 1
    # As deep, or deeper, in the tree: paths are kept relative.
    assert merge(shards[::-1], tmp_path / "joined") == 1
    assert contents(tmp_path / "joined") == contents(tmp_path / "whole")
    one, other = (read_manifest(tmp_path / name)[1] for name in ("joined", "whole"))
    assert one.keys() == other.keys()
    assert all(one[id_].entry == other[id_].entry and one[id_].key == other[id_].key for id_ in one)
    assert len([name for name in contents(tmp_path / "joined") if name.startswith("heatmaps/")]) == 4 * 4
    assert len({*(p for s in shards for p in contents(s) if p.startswith("cases/"))}) == 4


def test_a_joined_folder_is_gone_on_with(shards: list[Path], tmp_path: Path) -> None:
    assert merge(shards, tmp_path / "joined") == 1
    save(tmp_path / "site1/scan3.nii.gz", scan(3)[0])
    assert cohort(tmp_path / "cases.csv", tmp_path / "joined") == 0
    assert sorted(row.attempts for row in read_manifest(tmp_path / "joined")[1].values()) == [1, 1, 1, 1, 2]
    assert merge(shards, tmp_path / "joined") == 1


def test_missing_shards_and_cases_are_told(
    shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = {row.line for row in read_manifest(shards[2])[1].values()}
    assert lines
    assert merge(shards[:2], tmp_path / "joined", "--json") == 1
    (told,) = json.loads(capsys.readouterr().out)["missing"]
    assert told == f"Of shard 3, {len(lines)} cases are missing: line {', '.join(map(str, sorted(lines)))}."


def test_shards_that_do_not_belong_together_are_refused(
    shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = tmp_path / "cases.csv", tmp_path / "joined"

    def refused(folders: list[Path], words: str, code: int = 2) -> None:
        capsys.readouterr()
        assert merge(folders, out) == code
        assert words in capsys.readouterr().err

    refused([shards[0], shards[0]], "shard 1 comes twice")
    refused([shards[0], tmp_path], "holds no cohort", 4)
    refused([*shards, tmp_path / "gone"], "holds no cohort", 4)
    assert main(["merge", *map(str, shards), "--out", str(shards[0])]) == 2
    assert cohort(table, tmp_path / "other", "--shard", "2/3", "--method", "hires-cam") in (0, 1)
    refused([shards[0], tmp_path / "other"], "differ in method")
    assert cohort(table, tmp_path / "halves", "--shard", "1/2") in (0, 1)
    refused([shards[1], tmp_path / "halves"], "one of 3")
    table.write_text(table.read_text().replace("c0,p0", "c0,p9"))
    assert cohort(table, tmp_path / "later", "--shard", "2/3") in (0, 1)
    refused([shards[0], tmp_path / "later"], "different cases")
    assert cohort(table, shards[0], "--shard", "2/3") == 2
    assert "give each shard a folder of its own" in capsys.readouterr().err
    assert not out.exists()


def test_a_shard_whose_files_changed_is_run_again_not_joined(
    shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heatmap = next(path for folder in shards for path in folder.rglob("*_gradcam.nii.gz"))
    heatmap.write_bytes(heatmap.read_bytes()[:-9])
    assert merge(shards, tmp_path / "joined") == 4
    assert "run that shard again" in capsys.readouterr().err


def test_shards_can_be_moved_before_they_are_joined(shards: list[Path], tmp_path: Path) -> None:
    moved = [tmp_path / f"moved{n}" for n in range(3)]
    for one, other in zip(shards, moved, strict=True):
        # The images lie as far away as before.
        shutil.copytree(one, tmp_path / "shards" / other.name)
    assert merge(shards, tmp_path / "joined") == 1
    assert merge([tmp_path / "shards" / each.name for each in moved], tmp_path / "again") == 1
    assert contents(tmp_path / "again") == contents(tmp_path / "joined")


@pytest.mark.slow
def test_joined_measurements_results_and_report_are_those_of_one_run(tmp_path: Path) -> None:
    table = study(tmp_path, 4, masks=True)
    measured = [*QUICK, *TRIED, "--report", "all"]
    assert cohort(table, tmp_path / "whole", *measured) == 0
    folders = [tmp_path / "shards" / str(n) for n in (1, 2)]
    for n, folder in enumerate(folders, 1):
        assert cohort(table, folder, *measured, "--shard", f"{n}/2") == 0
    assert main(["merge", *map(str, folders), "--out", str(tmp_path / "joined"), "--report", "all"]) == 0
    whole, joined = contents(tmp_path / "whole"), contents(tmp_path / "joined")
    assert whole.keys() == joined.keys()
    assert {"results.json", "lesions.csv", "summary.csv", "report.html", "pages/line-0002.html"} <= whole.keys()
    assert [name for name in whole if whole[name] != joined[name]] == []
