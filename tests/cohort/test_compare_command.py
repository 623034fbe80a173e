"""`medcam compare` as a shell sees it: two layers of a network on volumes whose lesions are known."""

from __future__ import annotations

import csv
import json
import weakref
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from medcam import cli
from medcam.cohort import sweeping
from medcam.cohort.kept import Kept
from medcam.cohort.results import Entry
from medcam.errors import GeometryError
from medcam.geometry import Grid
from medcam.lesion_net import LesionNet
from medcam.models import wrap_module
from medcam.pipeline import Unplaced
from medcam.recipe import Recipe
from medcam.volume import Heatmap, Source, Volume

FACTORY = "medcam.lesion_net:LesionNet(3, (4, 6), dilations=[1, 1])"
AFFINE = np.diag([-1.5, -1.25, 2.0, 1.0])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Four patients, each with a bright lesion; two are of the split 'dev'."""
    rows = ["case,patient,split,image,mask"]
    for n in range(4):
        place = np.random.default_rng(n).integers(3, 14, 3)
        mask = np.zeros((20, 24, 18), np.uint8)
        mask[tuple(slice(p, p + 3) for p in place)] = 1
        image = np.random.default_rng(n).normal(1, 0.1, mask.shape).astype(np.float32) + 4 * mask
        for name, voxels in (("image", image), ("mask", mask)):
            nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), tmp_path / f"{name}{n}.nii.gz")
        rows.append(f"c{n},secret{n},{'dev' if n < 2 else 'test'},image{n}.nii.gz,mask{n}.nii.gz")
    (tmp_path / "cases.csv").write_text("\n".join(rows) + "\n")
    torch.manual_seed(0)
    torch.save(LesionNet(3, (4, 6), dilations=(1, 1)).state_dict(), tmp_path / "weights.pt")
    return tmp_path / "cases.csv"


def words(table: Path, *more: str) -> list[str]:
    return [
        "compare", str(table), "--model", str(table.parent / "weights.pt"), "--factory", FACTORY, "--methods",
        "grad-cam,hires-cam,occlusion(window=9, stride=9)", "--layers", "features.0,features.1", "--target", "0",
        "--replicates", "200", "--out", str(table.parent / "out"), *more,
    ]  # fmt: skip


def test_a_sweep_is_measured_chosen_on_one_split_and_reported_on_the_other(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(table, "--choose-on", "dev", "--json")) == 0
    said = capsys.readouterr()
    values = json.loads(said.out)
    assert values["failed"] == []
    assert "optimistic" in values["words"][0]
    assert "On the other 2 patients" in values["words"][1]
    rows = list(csv.DictReader((table.parent / "out" / "compare.csv").read_text().splitlines()))
    # Two rules at two layers and occlusion, with random weights each; centre, brightness and edges.
    assert len(rows) == 4 * (2 * 5 + 3)
    occlusion = [row for row in rows if row["method"].startswith("occlusion") and row["map"] == "heatmap"]
    assert {row["layer"] for row in occlusion} == {""}
    assert all(float(row["average_precision"]) > 0 for row in rows if row["map"] == "brightness")
    ceilings = {row["layer"]: row["ceiling_average_precision"] for row in rows if row["map"] == "heatmap"}
    assert float(ceilings["features.0"]) > float(ceilings["features.1"]), "cells of 2 voxels show more than of 4"
    ranking = list(csv.DictReader((table.parent / "out" / "ranking.csv").read_text().splitlines()))
    assert {row["part"] for row in ranking} == {"dev", "not dev"}
    assert {row["part"] for row in ranking if row["remark"] == "optimistic"} == {"dev"}
    assert "secret" not in said.out + said.err + "".join(p.read_text() for p in (table.parent / "out").rglob("*.*"))


FILES = ("compare.csv", "ranking.csv", "compare.json")


def bytes_of(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count what is measured: a heatmap's method, or '' of a baseline."""
    told: list[str] = []
    measuring = sweeping.measure_heatmap

    def counting(map_: Heatmap, *given: Any, **named: Any) -> Any:
        told.append(map_.recipe.method if named["input_grid"] is not None else "")
        return measuring(map_, *given, **named)

    monkeypatch.setattr(sweeping, "measure_heatmap", counting)
    return told


def few(said: list[str]) -> list[str]:
    said[said.index("--methods") + 1] = "grad-cam,hires-cam"
    said[said.index("--layers") + 1] = "features.1"
    return said


def test_a_comparison_that_was_killed_goes_on_and_ends_in_the_same_bytes(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = few(words(table, "--choose-on", "dev"))
    keeping, count = Kept.keep, iter(range(100))

    def killed(*given: Any) -> None:
        keeping(*given)
        if next(count) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Kept, "keep", killed)
        assert cli.main(said) != 0
    assert not (table.parent / "out" / "compare.csv").exists()
    told = measured(monkeypatch)
    assert cli.main(said) == 0
    # Five results were kept: two maps and the baselines of the first case, and both maps of the second, each with its random twin.
    assert len(told) == 4 * (2 * 2 + 3) - (2 * 2 + 3) - 2 * 2
    assert "line 2: done before; 1 of 4 done, 1 of them before" in capsys.readouterr().err
    resumed = bytes_of(table.parent / "out")
    told.clear()
    assert cli.main(said) == 0
    assert (told, bytes_of(table.parent / "out")) == ([], resumed)
    said[said.index("--out") + 1] = str(table.parent / "fresh")
    assert cli.main(said) == 0
    assert bytes_of(table.parent / "fresh") == resumed


@pytest.mark.slow
def test_only_what_is_new_or_changed_is_measured_again(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = words(table, "--no-random-weights")
    methods = said.index("--methods") + 1
    said[methods] = "grad-cam"
    assert cli.main(said) == 0
    told = measured(monkeypatch)
    said[methods] = "grad-cam,hires-cam"
    assert cli.main(said) == 0
    assert (told.count("grad-cam"), told.count("hires-cam")) == (0, 4 * 2)
    rows = list(csv.DictReader((table.parent / "out" / "compare.csv").read_text().splitlines()))
    assert len(rows) == 4 * (4 + 3)
    told.clear()
    kept = next((table.parent / "out" / "cases").glob("case_0002_*.json"))
    kept.write_text(kept.read_text()[:-20])
    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 24, 18), np.uint8), AFFINE), table.parent / "mask2.nii.gz")
    assert cli.main(said) == 0
    # The damaged result is of one map or of the baselines; the case with another mask is measured anew.
    assert len(told) - (4 + 3) in (1, 3, 4)
    told.clear()
    assert cli.main([*said, "--least-lesion", "0.001"]) == 0
    assert len(told) == 4 * (4 + 3)


def test_a_sheared_image_is_refused_with_what_helps_and_regridding_reads_it_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sheared = AFFINE.copy()
    sheared[0, 2] = 0.4
    heatmap = Heatmap(
        np.zeros((4, 5, 3), np.float32), Grid((4, 5, 3), sheared), Source("dicom", "", ""), Recipe("", "", "", "", ""), "", 0.0, None, ()
    )  # fmt: skip
    mask = Volume(np.zeros((4, 5, 3), np.uint8), heatmap.grid, "label", heatmap.source)
    with pytest.raises(GeometryError, match=r"not at right angles \(a tilted gantry\).*--regrid"):
        sweeping.measure_heatmap(heatmap, mask)
    asked: list[bool] = []
    monkeypatch.setattr(sweeping, "read_images", lambda _entry, **how: asked.append(how["regrid"]) or ())
    models = {"one": wrap_module(LesionNet(3, (4,), dilations=(1,)))}
    for regrid in (False, True):
        sweep = sweeping.Sweep(models, ("grad-cam", "hires-cam"), ((None,),), regrid=regrid)
        assert "no image" in sweeping.swept(Entry(2, "c", "p"), sweep).error
    assert asked == [False, True]


@pytest.mark.slow
def test_no_more_than_two_maps_of_a_case_are_held_at_once(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[Heatmap] = weakref.WeakSet()
    most = []
    placing = Unplaced.placed

    def placed(self: Unplaced) -> Heatmap:
        heatmap = placing(self)
        alive.add(heatmap)
        most.append(len(alive))
        return heatmap

    monkeypatch.setattr(Unplaced, "placed", placed)
    assert cli.main(few(words(table))) == 0
    # Each map, and its twin of random weights, is placed to see where it looked, and again to be measured.
    assert (max(most), len(most)) == (2, 4 * (4 + 4))


def test_what_cannot_be_compared_is_refused_before_anything_runs(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(table, "--choose-on", "train")) == 4
    assert "no case of the split 'train': its splits are dev, test" in capsys.readouterr().err
    assert cli.main(words(table, "--primary", "auroc")) == 2
    assert "primary measure" in capsys.readouterr().err
    assert cli.main(words(table, "--layers", "features.1", "--layers", "features.0")) == 2
    assert "once for each" in capsys.readouterr().err
    assert not (table.parent / "out").exists()
