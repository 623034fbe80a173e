"""`medcam report`: from stored heatmaps, and from what `medcam validate` wrote, to pages, figures, tables and words."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from report.cohorts import AFFINE, RECIPE, scene

from medcam import read, write
from medcam.cli import main

COUNT = 4


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, stored heatmaps and masks of five cases of three patients, and their table; one case has no lesion."""
    folder = tmp_path_factory.mktemp("study")
    rows = []
    for n in (0, 1, 3, 6):
        volume, lesion, heatmap = scene(n)
        names = {"image": f"image{n}.nii.gz", "mask": f"mask{n}.nii.gz", "heatmap": f"map{n}.nii.gz"}
        nibabel.save(nibabel.Nifti1Image(volume.voxels, AFFINE), folder / names["image"])
        nibabel.save(nibabel.Nifti1Image(lesion.voxels, AFFINE), folder / names["mask"])
        image = read(folder / names["image"])
        recipe = replace(RECIPE, inputs=(image.source.sha256,))
        write(
            replace(heatmap, source=image.source, grid=image.grid, recipe=recipe), image, folder, formats=("nifti",),
            label=f"map{n}",
        )  # fmt: skip
        ill = bool(lesion.voxels.any())
        rows.append(
            {"case": f"K{n}", "patient": f"p{n // 2}", **names, "truth": int(ill)} | ({} if ill else {"mask": ""})
        )
    with (folder / "cases.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def judged(study: Path) -> Path:
    out = study / "judged"
    assert (
        main(
            ["validate", str(study / "cases.csv"), "--out", str(out), "--chance", "20", "--replicates", "60", "--quiet"]
        )
        == 0
    )
    return out


@pytest.mark.slow
def test_a_validated_table_becomes_a_report(judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["report", str(judged), "--pages", "gallery", "--out", str(tmp_path / "r"), "--json"]) == 0
    said = capsys.readouterr()
    values = json.loads(said.out)
    assert values["ok"]
    assert values["notes"] == []
    assert all(Path(file).is_file() for file in values["files"])
    assert "page 1 of 3" in said.err
    out = tmp_path / "r"
    assert {p.name for p in out.iterdir()} == {"report.html", "figures", "paper", "pages"}
    page = (out / "report.html").read_text(encoding="utf-8")
    links = re.findall(r'href="\./([^"]+)"', page)
    assert len(links) == 3
    assert all((out / link).is_file() for link in links)
    assert page.count("data:image/png;base64") == 3
    with Image.open(out / "figures" / "forest_localization.png") as figure:
        assert figure.size[0] == 1080
    # The page tells its own numbers, and those of the table of results.
    with (judged / "summary.csv").open() as stream:
        rows = [r for r in csv.DictReader(stream) if r["measure"] == "average_precision" and r["stratum"] == "all"]
    own = next(r for r in rows if r["map"] == "heatmap")
    assert f"Average precision: {float(own['value']):.2f} [{float(own['low']):.2f}, {float(own['high']):.2f}]" in page


@pytest.mark.slow
def test_every_case_has_a_page_unless_told_otherwise(judged: Path, tmp_path: Path) -> None:
    assert main(["report", str(judged / "results.json"), "--out", str(tmp_path / "all"), "--quiet"]) == 0
    assert len(list((tmp_path / "all" / "pages").iterdir())) == COUNT
    # Names of files hold lines of the table, and no patient.
    assert sorted(p.name for p in (tmp_path / "all" / "pages").iterdir())[0] == "line-0002.html"
    assert main(["report", str(judged), "--pages", "none", "--out", str(tmp_path / "none"), "--quiet"]) == 0
    assert not (tmp_path / "none" / "pages").exists()
    assert (tmp_path / "none" / "report.html").read_text().count("data:image/png;base64") == 3


@pytest.mark.slow
def test_a_case_whose_files_went_is_told_and_the_others_shown(
    judged: Path, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = study / "image1.nii.gz"
    moved.rename(study / "away")
    try:
        capsys.readouterr()
        assert main(["report", str(judged), "--out", str(tmp_path / "r"), "--quiet"]) == 0
    finally:
        (study / "away").rename(moved)
    said = capsys.readouterr().out
    assert "note    The case of line 3 cannot be shown" in said
    assert len(list((tmp_path / "r" / "pages").iterdir())) == COUNT - 1
    page = (tmp_path / "r" / "report.html").read_text()
    assert "The case of line 3 cannot be shown" in page
    assert "line-0003.html" not in page


def test_stored_heatmaps_become_one_page_and_a_figure(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "one.html"
    heatmap = str(study / "map1.nii.gz")
    options = ["--source", str(study / "image1.nii.gz"), "--lesion", str(study / "mask1.nii.gz"), "--quiet"]
    capsys.readouterr()
    assert (
        main(
            [
                "report",
                heatmap,
                heatmap,
                *options,
                "--out",
                str(out),
                "--figure",
                str(tmp_path / "fig.png"),
                "--scale",
                "shared",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out.count("wrote") == 3
    page = out.read_text(encoding="utf-8")
    assert 'id="layer-heatmap-1"' in page
    assert 'id="layer-outline"' in page
    assert {p.name for p in tmp_path.iterdir()} == {"one.html", "fig.png", "fig.pdf"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["map1.nii.gz"], 2, "--source is missing"),
        (["map1.nii.gz", "--source", "image1.nii.gz", "--out", "a_folder"], 2, "ends in .html"),
        (["map1.nii.gz", "--source", "image1.nii.gz", "--threshold", "1.5"], 2, "above 0 and below 1"),
        (["map1.nii.gz", "--source", "image3.nii.gz"], 4, "another image"),
        (["map9.nii.gz", "--source", "image1.nii.gz"], 4, "no file map9.nii.gz"),
        (["."], 4, "holds no results.json"),
        (["other", "map1.nii.gz"], 2, "the folder of one cohort"),
        (["other", "--threshold", "0.3"], 2, "are for single heatmaps"),
        (["other", "--out", "page.html"], 2, "is a folder"),
        (["other"], 4, "has version None"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(
    arguments: list[str], code: int, words: str, study: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(study)
    (study / "other").mkdir(exist_ok=True)
    (study / "other" / "results.json").write_text("{}")
    before = sorted(p.name for p in study.rglob("*"))
    assert main(["report", *arguments, "--quiet"]) == code
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert sorted(p.name for p in study.rglob("*")) == before


@pytest.mark.slow
def test_the_report_needs_no_torch(judged: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys\nfrom medcam.cli import main\n"
        f"main(['report', {str(judged)!r}, '--pages', 'gallery', '--out', {str(tmp_path / 'r')!r}, '--quiet'])\n"
        "sys.exit('torch' in sys.modules or 'monai' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
    assert np.array(list((tmp_path / "r").iterdir())).size
