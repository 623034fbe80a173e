"""Cohorts of folders, and how their files are called: no two alike, none after a patient, derivatives as the BIDS validator wants them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from cohort.made_cohort import save, scan, study, weights

from formats.dicom_phantom import GEOMETRIES, MARKERS, stored_values, write_series
from medcam.cli import main
from medcam.cohort.bids import parsed
from medcam.cohort.layouts import Spot, spots
from medcam.cohort.listing import cases_in
from medcam.cohort.manifest import read_manifest
from medcam.errors import InputError, UsageError
from medcam.formats import read
from medcam.formats.stored import read_heatmap


def run(folder: Path, out: Path, *more: str) -> int:
    model = weights(folder.parent)
    return main(["cohort", str(folder), *model, "--engine", "inline", "--out", str(out), *more])


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    for n, name in enumerate(
        (
            "sub-01/anat/sub-01_T1w",
            "sub-01/anat/sub-01_FLAIR",
            "sub-02/ses-a/anat/sub-02_ses-a_run-2_T1w",
            "sub-02/ses-b/anat/sub-02_ses-b_T1w",
        )
    ):
        save(root / f"{name}.nii.gz", scan(n)[0])
    (root / "derivatives/x/sub-01/anat").mkdir(parents=True)
    shutil.copy(root / "sub-01/anat/sub-01_T1w.nii.gz", root / "derivatives/x/sub-01/anat/sub-01_T1w.nii.gz")
    (root / "dataset_description.json").write_text(
        json.dumps({"Name": "x", "BIDSVersion": "1.10.0", "DatasetType": "raw"})
    )
    return root


def test_a_bids_dataset_gives_the_images_of_a_suffix_and_its_subjects(dataset: Path) -> None:
    found = cases_in(dataset, with_model=True, suffix="T1w")
    assert [case.entry.case for case in found.cases] == ["sub-01_T1w", "sub-02_ses-a_run-2_T1w", "sub-02_ses-b_T1w"]
    assert [case.entry.patient for case in found.cases] == ["sub-01", "sub-02", "sub-02"]
    assert [case.entry.line for case in found.cases] == [2, 3, 4]
    with pytest.raises(UsageError, match="1 FLAIR, 3 T1w"):
        cases_in(dataset, with_model=True)
    with pytest.raises(InputError, match="no image"):
        cases_in(dataset, with_model=True, suffix="T1w", datatype="func")
    assert parsed("sub-01_T1w.nii.gz") is not None
    assert parsed("smith_T1w.nii.gz") is parsed("sub-01.nii.gz") is None


def test_derivatives_pass_the_bids_validator_and_come_back_as_heatmaps(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "derivatives" / "medcam"
    assert run(dataset, out, "--suffix", "T1w", "--layout", "bids", "--formats", "nifti,png,nrrd") == 0
    label = "sub-02_ses-a_run-2_space-T1w_desc-gradcam"
    assert (out / f"sub-02/ses-a/anat/{label}_probseg.nii.gz").is_file()
    assert (out / f"sub-02/figures/{label}.png").is_file()
    sidecar = json.loads((out / f"sub-02/ses-a/anat/{label}_mask.json").read_text())
    assert sidecar["Sources"] == ["bids:raw:sub-02/ses-a/anat/sub-02_ses-a_run-2_T1w.nii.gz"]
    links = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]
    assert (out / links["raw"]).resolve() == dataset.resolve()
    image = read(dataset / "sub-02/ses-a/anat/sub-02_ses-a_run-2_T1w.nii.gz")
    heatmap, _ = read_heatmap(out / f"sub-02/ses-a/anat/{label}_probseg.nii.gz", image)
    assert heatmap.grid.is_close(image.grid)
    mask = read(out / f"sub-02/ses-a/anat/{label}_mask.nii.gz")
    np.testing.assert_array_equal(mask.voxels > 0, heatmap.mask(0.5))
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed")
    done = subprocess.run([validator, out, "--json"], capture_output=True, text=True, check=False)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [each for each in issues if each["severity"] == "error"] == []
    assert done.returncode == 0
    (out / f"sub-02/ses-a/anat/{label}_mask.nii.gz").rename(out / f"sub-02/ses-a/anat/{label}_heatmap.nii.gz")
    assert subprocess.run([validator, out], capture_output=True, check=False).returncode != 0


def test_images_that_are_not_named_by_bids_get_no_such_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study(tmp_path / "data", 1)
    assert run(tmp_path / "data" / "cases.csv", tmp_path / "out", "--layout", "bids") == 2
    assert "named by BIDS" in capsys.readouterr().err


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two series of one patient, in folders that are called after them; one is spread over two folders."""
    root = tmp_path / "archive"
    shape = (14, 12, 10)
    write_series(root / "DOE_JANE" / "a", stored_values(shape), GEOMETRIES["oblique"])
    write_series(root / "DOE_JANE" / "b", stored_values(shape) + 1, GEOMETRIES["oblique"])
    (root / "DOE_JANE" / "b2").mkdir()
    for n, path in enumerate(sorted((root / "DOE_JANE" / "b").iterdir())):
        header = pydicom.dcmread(path)
        header.SeriesInstanceUID = "1.2.3.4"
        header.SeriesNumber = 77
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{n + 1}"
        header.save_as(path)
        if n % 2:
            path.rename(root / "DOE_JANE" / "b2" / path.name)
    return root


def test_series_of_an_archive_are_cases_that_name_no_patient(archive: Path, tmp_path: Path) -> None:
    found = cases_in(archive, with_model=True)
    assert [len(case.series) for case in found.cases] == [10, 10]
    assert len({case.entry.patient for case in found.cases}) == 1
    assert len({case.entry.case.partition("/")[0] for case in found.cases}) == 1
    assert any("_s77_" in case.entry.case for case in found.cases)
    out = tmp_path / "out"
    assert run(archive, out, "--formats", "nifti") == 0
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len([path for path in files if path.name.endswith("gradcam.nii.gz")]) == 2
    header = pydicom.dcmread(next((archive / "DOE_JANE" / "a").iterdir()))
    secrets = {*MARKERS, str(header.PatientID), str(header.PatientName)}
    for path in files:
        assert not any(word in path.as_posix().removeprefix(str(tmp_path)) for word in (*secrets, "DOE"))
        if path.name != "cases.parquet":
            content = path.read_bytes()
            assert not any(word.encode() in content for word in secrets), path.name
    assert [case.entry.case for case in cases_in(out / "found.csv", with_model=True).cases] == [
        case.entry.case for case in found.cases
    ]
    assert {case.entry.patient for case in cases_in(out / "found.csv", with_model=True).cases} == {"patient 1"}
    sidecar = next(path for path in files if path.name.endswith("gradcam.json"))
    assert json.loads(sidecar.read_text())["recipe"]["inputs"][0] in {
        read(archive, series=case.entry.series).source.sha256 for case in found.cases
    }


def test_a_damaged_file_of_an_archive_fails_its_folder_and_no_other(archive: Path, tmp_path: Path) -> None:
    broken = sorted((archive / "DOE_JANE" / "a").iterdir())[4]
    broken.write_bytes(broken.read_bytes()[:300])
    assert run(archive, tmp_path / "out", "--formats", "nifti") == 1
    rows = read_manifest(tmp_path / "out")[1].values()
    assert sorted(row.state for row in rows) == ["done", "failed"]


def test_uneven_slices_are_put_on_an_even_grid_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = write_series(tmp_path / "x" / "a", stored_values((14, 12, 10)), GEOMETRIES["axial"])
    last = pydicom.dcmread(paths[-1])
    last.ImagePositionPatient = [*last.ImagePositionPatient[:2], last.ImagePositionPatient[2] + 1]
    last.save_as(paths[-1])
    assert run(tmp_path / "x", tmp_path / "out", "--formats", "nifti") == 1
    assert "uneven distances" in capsys.readouterr().err
    assert run(tmp_path / "x", tmp_path / "out", "--formats", "nifti", "--regrid") == 0
    assert run(tmp_path / "x", tmp_path / "out", "--series", "4") == 2
    assert "a column 'series'" in capsys.readouterr().err


def test_what_is_not_explained_of_an_archive_is_counted(tmp_path: Path) -> None:
    write_series(tmp_path / "x" / "a", stored_values((14, 12, 10)), GEOMETRIES["oblique"])
    for path in (tmp_path / "x" / "a").iterdir():
        header = pydicom.dcmread(path)
        header.PhotometricInterpretation = "RGB"
        header.SamplesPerPixel = 3
        header.save_as(path)
    with pytest.raises(InputError, match="of a kind that is not read were left out: 1"):
        cases_in(tmp_path / "x", with_model=True)


def test_a_folder_of_images_gives_each_by_its_path_and_leaves_out_what_medcam_wrote(tmp_path: Path) -> None:
    root = tmp_path / "data"
    study(root, 2)
    assert run(root, root / "out", "--formats", "nifti") == 0
    joined = [str(tmp_path / f"shard{n}") for n in (1, 2)]
    for n, folder in enumerate(joined, 1):
        assert run(root, Path(folder), "--formats", "nifti", "--shard", f"{n}/2") == 0
    assert main(["merge", *joined, "--out", str(tmp_path / "joined")]) == 0
    assert (tmp_path / "joined/found.csv").read_text().replace("data/", "") == (root / "out/found.csv").read_text()
    again = cases_in(root, with_model=True)
    assert [case.entry.case for case in again.cases] == ["site0/scan0", "site1/scan1"]
    assert (root / "out/heatmaps/site0/scan0_gradcam.nii.gz").is_file()
    with pytest.raises(UsageError, match="needs --model"):
        cases_in(root, with_model=False)
    with pytest.raises(InputError, match="nothing at"):
        cases_in(root / "gone", with_model=True)


def test_no_two_cases_go_to_one_spot(tmp_path: Path) -> None:
    named = {
        "a" * 16: tmp_path / "x" / "Scan.nii.gz",
        "b" * 16: tmp_path / "x" / "scan.nii.gz",
        "c" * 16: tmp_path / "x" / "scan.nrrd",
        "d" * 16: tmp_path.parent / "y" / "scan.nii.gz",
        "e" * 16: tmp_path / "x" / f"{'long' * 60}1.nii.gz",
        "f" * 16: tmp_path / "x" / f"{'long' * 60}2.nii.gz",
    }
    for layout in ("mirror", "flat"):
        found = spots(named, layout=layout, root=tmp_path, method="rise(masks=3)")
        taken = [f"{spot.folder}/{spot.label}".casefold() for spot in found.values()]
        assert len(set(taken)) == len(named)
        assert all(len(f"{spot.label}_label.nii.gz".encode()) < 255 for spot in found.values())
        assert not any(".." in spot.folder for spot in found.values())
    mirrored = spots(named, layout="mirror", root=tmp_path, method="rise(masks=3)")
    assert mirrored["d" * 16].folder.startswith("heatmaps/elsewhere/")
    assert mirrored["a" * 16] == Spot("heatmaps/x", "Scan_rise_aaaaaaaa")
    alone = spots({"a" * 16: named["a" * 16]}, layout="flat", root=tmp_path, method="grad-cam++")
    assert alone["a" * 16] == Spot("heatmaps", "x-Scan_gradcam++")
    with pytest.raises(UsageError, match="a layout is one of"):
        spots(named, layout="round", root=tmp_path, method="")


def test_a_zip_in_a_folder_is_told_and_not_passed_over_in_silence(tmp_path: Path) -> None:
    (tmp_path / "b.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"Zip archives were left out: 1\. Unpack them, or name them in a table"):
        cases_in(tmp_path, with_model=True)
    (tmp_path / "a.nii.gz").write_bytes(b"x")
    assert cases_in(tmp_path, with_model=True).notes == (
        "Zip archives were left out: 1. Unpack them, or name them in a table.",
    )
