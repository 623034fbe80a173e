"""From a table to numbers, verdicts and files: cases that fail, that are done already, and that do not belong together."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import Compose, NormalizeIntensity, ScaleIntensityRange
from scipy import ndimage

from conftest import blob, made_volume, oblique_grid
from medcam.cli import main
from medcam.cohort.asked import Asked, threshold_named
from medcam.cohort.cases import read_table
from medcam.cohort.judging import judged
from medcam.cohort.results import CURVE_SHARES, Cascade, CaseResult, Cohort
from medcam.cohort.running import identity_of, run_cases
from medcam.cohort.sketches import randomization_sanity
from medcam.cohort.stored import read_cohort
from medcam.cohort.summary import size_labels, summarized
from medcam.cohort.writing import write_results
from medcam.errors import InputError, UsageError
from medcam.geometry import Grid
from medcam.lesion_net import LesionNet
from medcam.models import Model, wrap_module
from medcam.validate.bootstrap import Resampling
from medcam.validate.measures import Settings

GRID = oblique_grid((26, 30, 18), (2.0, 1.5, 3.0))
QUICK = Asked(Settings(draws=30), random_networks=1, lesion_draws=6)
FEW = Resampling(replicates=200)


def save(path: Path, voxels: np.ndarray, grid: Grid = GRID) -> None:
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.float32), grid.affine), path)


def patient(folder: Path, n: int, *, right: bool = True, ill: bool = True, seen: float = 2, aside: float = 0) -> str:
    """Write a scan, its mask and a foreign map, and return the row of the table."""
    rng = np.random.default_rng(n)
    middle = GRID.world_mm(np.array([12.0, 15.0, 9.0]))
    index = np.stack(np.meshgrid(*map(np.arange, GRID.shape), indexing="ij"), -1)
    body = np.linalg.norm((GRID.world_mm(index) - middle) / np.array([17.0, 16.0, 18.0]), axis=-1) < 1
    spots = [GRID.world_mm(np.array([12.0 - aside, 15.0, 9.0]) + rng.uniform(-3, 3, 3) / (1 + aside)) for _ in range(2)]
    mask = np.max([blob(GRID, spot) for spot in spots], 0) > 0.6 if ill else np.zeros(GRID.shape, bool)
    image = 100 * body + seen * ndimage.gaussian_filter(mask.astype(float), 0.7) + rng.normal(0, 3, GRID.shape)
    shown = mask if right else np.flip(mask, 0)
    save(folder / f"scan{n}.nii.gz", image)
    save(folder / f"mask{n}.nii.gz", mask)
    save(
        folder / f"map{n}.nii.gz", ndimage.gaussian_filter(shown.astype(float), 1.2) + rng.uniform(0, 0.01, GRID.shape)
    )
    return f"c{n},p{n // 2},scan{n}.nii.gz,map{n}.nii.gz,{f'mask{n}.nii.gz' if ill else ''},{int(ill)}"


def written(folder: Path) -> Path:
    rows = [patient(folder, n, right=n != 3, ill=n != 7) for n in range(8)]
    (folder / "t.csv").write_text("case,patient,image,heatmap,mask,truth\n" + "\n".join(rows) + "\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path)


def silent(_: str) -> None:
    return None


def whole(folder: Path, *, say: Callable[[str], Any] = silent, asked: Asked = QUICK) -> Cohort:
    cases = run_cases(read_table(folder / "t.csv", with_model=False), asked, model=None, out=folder / "out", say=say)
    return summarized(cases, asked, primary="average_precision", how=FEW)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return whole(written(tmp_path_factory.mktemp("cohort")))


def test_a_table_of_heatmaps_becomes_numbers_beside_baselines(done: Cohort) -> None:
    cohort = done
    assert [case.error for case in cohort.cases] == [""] * 8
    kinds = [case.verdict.kind for case in cohort.cases if case.verdict]
    assert kinds[3] == kinds[7] == "untold"
    assert kinds.count("agrees") == 6
    found = {(row.map, row.measure, row.stratum): row for row in cohort.summary}
    row = found["heatmap", "average_precision", "all"]
    values = [c.measures.numbers["average_precision"].value for c in cohort.cases if c.measures]
    assert row.interval.value == pytest.approx(np.nanmean(values))
    assert (row.interval.cases, row.interval.patients, row.interval.undefined) == (7, 4, 1)
    assert set(cohort.froc) == {"heatmap", "centre", "brightness", "edges", "bright-spots"}
    first = next(c for c in cohort.comparisons if c.measure == "average_precision" and c.baseline == "centre")
    assert first.difference.first == pytest.approx(np.nanmean(values))
    assert first.holm >= first.p
    assert all(np.isnan(c.holm) for c in cohort.comparisons if c.measure != "average_precision")
    assert ("heatmap", "selected_size@half-max", "size: no lesion") in found
    assert cohort.notes[0].startswith("1 cases have no lesion")
    assert "What counts is the body" in " ".join(cohort.cases[0].notes)
    assert sum(cohort.counts.values()) == 8


def test_a_failed_case_is_told_and_passed_over(folder: Path) -> None:
    (folder / "map2.nii.gz").write_bytes(b"no NIfTI")
    shifted = nibabel.load(folder / "mask4.nii.gz")
    affine = shifted.affine.copy()
    affine[:3, 3] += (0, 0, 200)
    nibabel.save(nibabel.Nifti1Image(shifted.get_fdata().astype(np.float32), affine), folder / "mask4.nii.gz")
    cohort = whole(folder)
    assert [case.entry.line for case in cohort.cases if not case.ok] == [4, 6]
    assert "wholly outside the image" in cohort.cases[4].error
    assert "2 of 8 cases failed and count nowhere: line 4, 6." in cohort.notes
    assert cohort.cases[2].verdict is None


def test_what_is_done_is_not_done_again_unless_its_inputs_or_settings_change(folder: Path) -> None:
    told: list[str] = []
    first = whole(folder)
    again = whole(folder, say=told.append)
    assert sum("done before" in each for each in told) == 8
    one, other = (
        [row.interval.value for row in cohort.summary if row.map == "heatmap" and row.stratum == "all"]
        for cohort in (first, again)
    )
    np.testing.assert_array_equal(one, other)
    told.clear()
    patient(folder, 5, right=False)
    whole(folder, say=told.append)
    assert sum("done before" in each for each in told) == 7
    told.clear()
    whole(folder, say=told.append, asked=replace(QUICK, settings=Settings(draws=31)))
    assert not any("done before" in each for each in told)


def test_results_come_back_from_their_file_and_the_tables_hold_them(folder: Path) -> None:
    asked = replace(QUICK, protocols=("chexlocalize", "se3d", "arun"))
    cohort = whole(folder, asked=asked)
    files = write_results(cohort, folder / "out")
    assert [path.name for path in files] == ["results.json", "cases.csv", "lesions.csv", "summary.csv"]
    back = read_cohort(files[0])
    assert back.summary == cohort.summary or [r.interval.value for r in back.summary] == pytest.approx(
        [r.interval.value for r in cohort.summary], nan_ok=True
    )
    assert (back.verdict, back.counts, back.primary) == (cohort.verdict, cohort.counts, cohort.primary)
    one, other = cohort.cases[1].measures, back.cases[1].measures
    assert one is not None
    assert other is not None
    assert other.flat() == pytest.approx(one.flat(), nan_ok=True)
    assert repr(other.lesions) == repr(one.lesions)
    np.testing.assert_array_equal(other.histogram.lesion, one.histogram.lesion)
    np.testing.assert_array_equal(back.froc["heatmap"].sensitivity, cohort.froc["heatmap"].sensitivity)
    assert back.cases[1].entry.images == cohort.cases[1].entry.images
    assert back.cases[1].entry.patient == "patient 1"
    again = summarized(back.cases, asked, primary="average_precision", how=FEW)
    assert again.protocols == {k: pytest.approx(v, nan_ok=True) for k, v in cohort.protocols.items()}
    assert [t.name for t in back.settings.thresholds] == [t.name for t in asked.settings.thresholds]
    with files[1].open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[3]["verdict"] == "cannot be told"
    assert float(rows[1]["average_precision"]) == pytest.approx(one.numbers["average_precision"].value, rel=1e-5)
    assert rows[1]["patient"] == "1"
    assert rows[7]["average_precision"] == ""
    with files[2].open(newline="") as stream:
        lesions = list(csv.DictReader(stream))
    assert len(lesions) == sum(len(c.measures.lesions) for c in cohort.cases if c.measures)
    broken = json.loads(files[0].read_text())
    for change in ({"results_version": 0}, {"summary": [{"map": 1}]}, {"settings": {}}):
        files[0].write_text(json.dumps({**broken, **change}))
        with pytest.raises(InputError):
            read_cohort(files[0])


def test_the_command_writes_a_table_of_results_and_fails_if_a_case_does(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "validate",
        str(folder / "t.csv"),
        "--out",
        str(folder / "o"),
        "--chance",
        "20",
        "--replicates",
        "100",
        "--json",
    ]
    assert main([*words, "--primary", "hit"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["primary"] == "hit"
    assert all(Path(file).is_file() for file in said["files"])
    (folder / "map2.nii.gz").write_bytes(b"no NIfTI")
    assert main([*words, "--primary", "hit"]) == 1
    assert [each["line"] for each in json.loads(capsys.readouterr().out)["failed"]] == [4]
    assert main([*words, "--primary", "auroc"]) == 2
    assert main(["validate", "--heatmap", "x"]) == 2


def test_one_heatmap_is_shown_beside_chance_and_baselines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "validate",
        "--heatmap",
        str(folder / "map0.nii.gz"),
        "--mask",
        str(folder / "mask0.nii.gz"),
        "--chance",
        "50",
    ]
    assert main([*words, "--image", str(folder / "scan0.nii.gz"), "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "verdict  the map agrees with the lesion" in shown
    assert "missing  the network (--model)" in shown
    assert "bright-spots" in shown
    assert main([*words, "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"]["kind"] == "untold"
    assert said["baselines"] == {}
    assert 0 < said["numbers"]["hit"]["value"] <= 1


def judge_one(folder: Path, mask: np.ndarray, grid: Grid = GRID) -> CaseResult:
    patient(folder, 0, seen=30, aside=5)
    save(folder / "mask0.nii.gz", mask, grid)
    (folder / "one.csv").write_text("case,patient,image,heatmap,mask\nc,p,scan0.nii.gz,map0.nii.gz,mask0.nii.gz\n")
    return judged(read_table(folder / "one.csv", with_model=False)[0], QUICK, model=None, out=None)


def test_a_mask_that_does_not_belong_is_refused_or_told(tmp_path: Path) -> None:
    patient(tmp_path, 0, seen=30, aside=5)
    mask = nibabel.load(tmp_path / "mask0.nii.gz").get_fdata() > 0
    corner = np.zeros_like(mask)
    corner[:4, :4, :3] = True
    assert "lies outside the body" in judge_one(tmp_path, corner).error
    affine = GRID.affine.copy()
    affine[:3, 3] += 4
    notes = " ".join(judge_one(tmp_path, mask, Grid(GRID.shape, affine, None)).notes)
    assert "has the image's shape but lies up to 6.9 mm from it" in notes
    right = judge_one(tmp_path, mask)
    assert right.ok
    assert not any("mirrored" in note or "lies up to" in note for note in right.notes)


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return wrap_module(LesionNet(3, (4, 6, 6, 6)).eval())


def test_with_a_network_heatmaps_are_made_and_it_is_tried_itself(tmp_path: Path, model: Model) -> None:
    patient(tmp_path, 0)
    (tmp_path / "t.csv").write_text("case,patient,image,mask\nSMITH,p,scan0.nii.gz,mask0.nii.gz\n")
    (entry,) = read_table(tmp_path / "t.csv", with_model=True)
    asked = replace(QUICK, faithfulness=True, robustness=True, explaining={"target": 0, "activation": "sigmoid"})
    found = judged(entry, asked, model=model, out=tmp_path / "maps")
    assert found.error == ""
    assert found.measures is not None
    assert found.heatmap == tmp_path / "maps" / "case_0002.nii.gz"
    assert found.heatmap.is_file()
    assert "random-weights-1" in found.baselines
    assert found.decision in ("TP", "FN")
    assert found.cell_mm == pytest.approx(4 * 3.0)
    assert not np.isnan(found.measures.numbers["ceiling_average_precision"].value)
    tried = {
        "lesion_share@inpaint",
        "lesion_p@inpaint",
        "deletion@blur",
        "insertion_gain@inpaint",
        "road",
        "infidelity",
        "average_drop",
    }
    assert tried | {"sensitivity", "retest_ssim@rigid", "retest_shift@noise"} <= set(found.trials)
    assert not [name for name, number in found.trials.items() if number.value != number.value and not number.why]
    assert found.trials["retest_shift@noise"].unit == "mm"
    # The area under the curve that is kept is that of the finer one, but for its steps; all ends are the clean and the empty image.
    deletion, insertion = (np.array(found.curves[f"{kind}@blur"]) for kind in ("deletion", "insertion"))
    assert np.trapezoid(deletion, CURVE_SHARES) == pytest.approx(
        found.trials["deletion@blur"].value, abs=0.02 * np.ptp(deletion)
    )
    assert [deletion[0], deletion[-1]] == pytest.approx([insertion[-1], insertion[0]])
    assert deletion[0] == pytest.approx(found.score, abs=1e-4)
    blobs = np.array(found.curves["deletion of blobs@blur"])
    gain = np.trapezoid(blobs - deletion, CURVE_SHARES)
    assert gain == pytest.approx(found.trials["deletion_gain@blur"].value, abs=0.02 * np.ptp(deletion))
    assert found.cascade is not None
    assert found.cascade.stages[0].startswith("features.0")
    assert len(found.cascade.similarity) == len(found.cascade.stages) == 5
    assert max(found.cascade.similarity) < 0.999
    # The score without the lesion, by hand: the least that necessity must be.
    necessity, span = (found.trials[f"lesion_{name}@inpaint"].value for name in ("necessity", "span"))
    excess, share = (found.trials[f"lesion_{name}@inpaint"].value for name in ("excess", "share"))
    assert share == pytest.approx(excess / span)
    assert span >= abs(found.score) - 1e-4
    assert abs(necessity) > 0
    given = replace(entry, heatmap=found.heatmap)
    again = judged(given, asked, model=model, out=None)
    assert again.measures is not None
    assert again.measures.flat() == pytest.approx(found.measures.flat(), nan_ok=True)


def test_thresholds_are_named_as_their_numbers_are() -> None:
    for name in ("half-max", "otsu", "top-0.1", "max-0.3", "raw-2", "oracle-best", "oracle-volume"):
        assert threshold_named(name).name == name
    for name in ("half", "top-", "top-2", "max-x"):
        with pytest.raises(UsageError):
            threshold_named(name)


def test_sizes_of_films_are_areas(tmp_path: Path) -> None:
    film = made_volume(np.zeros((20, 30, 1), np.float32), oblique_grid((20, 30, 1), (2.0, 2.0, 1.0)))
    from medcam.validate.measuring import measure

    lesion = np.zeros(film.grid.shape, bool)
    lesion[2:12, 3:9] = True
    one = measure(
        np.ones(lesion.shape, np.float32), lesion, spacing_mm=film.grid.spacing_mm, settings=Settings(draws=0)
    )
    none = measure(
        np.ones(lesion.shape, np.float32), lesion & False, spacing_mm=film.grid.spacing_mm, settings=Settings(draws=0)
    )
    assert size_labels([one, none]) == ["up to 10 cm²", "no lesion"]


def test_lengths_in_pixels_are_not_averaged_with_millimetres(done: Cohort) -> None:
    cohort = done
    case = cohort.cases[0]
    assert case.measures is not None
    in_pixels = {
        name.replace("mm", "px"): replace(number, unit="pixels", value=1e6) if number.unit == "mm" else number
        for name, number in case.measures.numbers.items()
    }
    other = replace(case, measures=replace(case.measures, numbers=in_pixels))
    mixed = summarized((other, *cohort.cases[1:]), QUICK, primary="average_precision", how=FEW)
    rows = {row.measure: row for row in mixed.summary if (row.map, row.stratum) == ("heatmap", "all")}
    assert rows["peak_distance"].interval.value < 1e3
    assert (rows["peak_distance"].unit, rows["peak_distance"].interval.undefined) == ("mm", 2)
    assert rows["hit_within_5px"].interval.cases == 1
    assert "only those in mm count" in " ".join(mixed.notes)
    assert not any("units" in note for note in cohort.notes)


def test_what_pages_need_and_the_cascade_come_back_from_the_file(done: Cohort, tmp_path: Path) -> None:
    asked = replace(QUICK, drawn_on=(512, 640), allow_gaps=True)
    cases = list(done.cases)[:4]
    random = np.random.default_rng(0)
    for n, case in enumerate(cases):
        sketch = random.normal(size=(12, 14, 13)).astype(np.float32)
        cases[n] = replace(case, curves={"deletion@blur": (1.0, 0.5)}, cascade=Cascade(("a", "b"), (0.9, -0.5), sketch))
    cohort = summarized(cases, asked, primary="average_precision", how=FEW)
    # Noise is like no other noise, and -0.5 is less than that.
    assert cohort.sanity is not None
    assert cohort.sanity.verdict == "passes"
    assert cohort.sanity.similarity.value == pytest.approx(-0.5)
    assert abs(cohort.sanity.baseline.value) < 0.1
    write_results(cohort, tmp_path)
    back = read_cohort(tmp_path / "results.json")
    assert (back.drawn_on, back.allow_gaps) == ((512, 640), True)
    assert back.sanity == cohort.sanity
    assert back.cases[2].curves == {"deletion@blur": (1.0, 0.5)}
    first, second = cases[2].cascade, back.cases[2].cascade
    assert first is not None
    assert second is not None
    assert (second.stages, second.similarity) == (first.stages, first.similarity)
    np.testing.assert_array_equal(second.sketch, first.sketch)
    alike = [replace(case, cascade=replace(case.cascade, similarity=(1.0, 0.9))) for case in cases if case.cascade]
    again = randomization_sanity(alike, FEW)
    assert again is not None
    assert again.verdict == "fails"
    assert randomization_sanity(alike[:2], FEW) is None


def test_a_network_is_another_with_other_weights_or_other_preprocessing() -> None:
    def made(low: float, seed: int = 0, sha256: str = "") -> Model:
        torch.manual_seed(seed)
        chain = Compose([Compose([ScaleIntensityRange(low, 100, 0, 1)]), NormalizeIntensity(nonzero=True)])
        return replace(wrap_module(torch.nn.Conv2d(1, 2, 3)), preprocessing=chain, sha256=sha256)

    same, others = made(7), [made(8), made(7, seed=1), made(7, sha256="ab"), made(8, sha256="ab")]
    assert identity_of(same) == identity_of(made(7))
    assert len({identity_of(each) for each in (same, *others)}) == 5
