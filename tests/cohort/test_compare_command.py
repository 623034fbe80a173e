"""`medcam compare` as a shell sees it: two layers of a network on volumes whose lesions are known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medcam import cli
from medcam.lesion_net import LesionNet

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
    assert "secret" not in said.out + said.err + "".join(p.read_text() for p in (table.parent / "out").iterdir())


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
