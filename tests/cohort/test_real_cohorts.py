"""Real images, from a table through one command to a report: MS lesions, experts' boxes on films, a liver's DICOM segmentation."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from medcam.cli import main
from medcam.cohort.results import Cohort
from medcam.cohort.stored import read_cohort
from medcam.lesion_net import LesionNet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
RANDOM = "medcam.lesion_net:LesionNet(3, (4, 6, 6, 6))"
QUICK = (
    *("--chance", "50", "--replicates", "200", "--random-networks", "1", "--random-stages", "2"),
    *("--thresholds", "half-max", "--report", "all", "--json", "--quiet"),
)  # fmt: skip


def table(folder: Path, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with (folder / "cases.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([heads, *rows])
    return folder / "cases.csv"


def judged(path: Path, *words: str, code: int = 0) -> Cohort:
    """One command, from the table to the report."""
    out = path.parent / "judged"
    assert main(["validate", str(path), *words, *QUICK, "--out", str(out)]) == code
    for name in ("report.html", "paper/paper.md", "figures/froc.pdf"):
        assert (out / name).stat().st_size > 1000
    return read_cohort(out / "results.json")


def pages(path: Path) -> list[str]:
    return [page.read_text(encoding="utf-8") for page in sorted((path.parent / "judged" / "pages").glob("*.html"))]


def test_lesions_of_multiple_sclerosis_on_two_images_of_one_patient(real_data: Path, tmp_path: Path) -> None:
    lesions = real_data / "mri_ms" / "patient26_lesions.nii.gz"
    rows = [(kind, "26", real_data / "mri_ms" / f"patient26_{kind}.nii.gz", lesions) for kind in ("FLAIR", "T1")]
    path = table(tmp_path, ("case", "patient", "image", "mask"), rows)
    cohort = judged(path, "--model", "demo-mri")
    assert [case.error for case in cohort.cases] == ["", ""]
    for case in cohort.done:
        assert case.measures is not None
        # 8,227 voxels of 1 mm, as the data set says.
        assert case.measures.numbers["lesion_size"].value == pytest.approx(8.227, rel=1e-3)
        assert case.measures.numbers["lesions"].value > 10
        assert case.verdict is not None
        assert case.verdict.kind in ("agrees", "coarse", "ignores", "wrong", "untold")
        assert "lesion_share@inpaint" in case.trials
    # Of the brightest lesions on FLAIR the demonstration network makes use; T1 it has never seen.
    flair = cohort.cases[0]
    assert flair.verdict is not None
    assert flair.verdict.kind == "agrees"
    # Two cases of one patient are one patient, of which nothing is claimed.
    assert cohort.verdict is not None
    assert (cohort.verdict.kind, cohort.sanity) == ("untold", None)
    assert all("Against the lesion" in page for page in pages(path))


def test_boxes_that_experts_drew_on_films(real_data: Path, tmp_path: Path) -> None:
    boxes = real_data / "cxr_nih" / "boxes.csv"
    with boxes.open(newline="") as stream:
        drawn = list(csv.DictReader(stream))[:6]
    rows = []
    for box in drawn:
        name = Path(box["Image Index"]).stem
        (image,) = (real_data / "cxr_nih" / "boxed_1024").glob(f"{name}.*")
        rows.append((name, name.split("_")[0], image, boxes, box["Finding Label"]))
    path = table(tmp_path, ("case", "patient", "image", "mask", "label"), rows)
    cohort = judged(path, "--model", "demo-cxr", "--protocol", "wsol")
    assert [case.error for case in cohort.cases] == [""] * 6
    for case, box in zip(cohort.done, drawn, strict=True):
        assert case.measures is not None
        assert case.measures.numbers["peak_distance"].unit == "pixels"
        share = float(box["w"]) * float(box["h"]) / 1024**2
        assert case.measures.numbers["prevalence"].value == pytest.approx(share, rel=0.02)
    report = (path.parent / "judged" / "report.html").read_text(encoding="utf-8")
    assert "peak within 10 pixels of the lesion" in report
    assert "10 mm" not in report
    # The demonstration network saw made-up nodules only, so on these it must not be said to agree.
    assert cohort.verdict is not None
    assert cohort.verdict.kind != "agrees"
    assert "MaxBoxAccV2" in report


def test_a_network_of_random_weights_on_ct_gets_no_credit(real_data: Path, tmp_path: Path) -> None:
    series = tmp_path / "series"
    series.mkdir()
    for file in ("01.dcm", "02.dcm", "03.dcm"):
        shutil.copy(real_data / "ct_dicomseg" / file, series)
    path = table(
        tmp_path,
        ("case", "patient", "image", "mask"),
        [("liver", "A", "series", real_data / "ct_dicomseg" / "liver.dcm")],
    )
    torch.manual_seed(3)
    torch.save(LesionNet(3, (4, 6, 6, 6)).state_dict(), tmp_path / "random.pt")
    cohort = judged(path, "--model", str(tmp_path / "random.pt"), "--factory", RANDOM)
    (case,) = cohort.cases
    assert case.error == ""
    assert case.verdict is not None
    assert case.verdict.kind == "ignores"
    assert abs(case.trials["lesion_share@inpaint"].value) < 0.1
    assert case.measures is not None
    # Of the liver on three slices of 5 mm the segmentation's own voxels.
    assert 50 < case.measures.numbers["lesion_size"].value < 500
    assert json.loads((tmp_path / "judged" / "results.json").read_text())["verdict"]["kind"] == "untold"
    (page,) = pages(path)
    assert "the model ignores the lesion" in page
