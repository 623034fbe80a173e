"""The command line, as a shell sees it: files, words, exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from formats.dicom_phantom import GEOMETRIES, stored_values, write_series
from medcam.cli import main
from medcam.recipe import Recipe
from medcam.samples import sample_path
from models.bundle_phantom import FACTORY, small_net, with_item, write_bundle


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A NIfTI image that the phantom bundle accepts."""
    affine = np.diag([-1.5, -1.25, 2.0, 1.0])
    image = nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(22, 26, 30)).astype(np.float32), affine)
    nibabel.save(image, tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_bundle_explains_an_image_and_leaves_files_that_record_how(
    capsys: pytest.CaptureFixture[str], scan: Path, bundle: Path, tmp_path: Path
) -> None:
    code, out, err = run(
        capsys, "explain", scan, "--model", bundle, "--out", tmp_path / "out", "--formats", "nifti,png"
    )
    assert code == 0, err
    assert "target  lesion (class 0): logit" in out
    assert "medcam: explaining with grad-cam" in err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "scan_gradcam.json", "scan_gradcam.nii.gz", "scan_gradcam.png", "scan_gradcam_label.json", "scan_gradcam_label.nii.gz",
    ]  # fmt: skip
    heat, image = nibabel.load(tmp_path / "out" / "scan_gradcam.nii.gz"), nibabel.load(scan)
    assert heat.shape == image.shape
    np.testing.assert_allclose(heat.affine, image.affine, atol=1e-5)
    recipe = Recipe.from_json(json.loads((tmp_path / "out" / "scan_gradcam.json").read_text())["recipe"])
    assert (recipe.layer, recipe.method, recipe.model) == ("features", "grad-cam", "bundle")
    assert str(tmp_path) not in (tmp_path / "out" / "scan_gradcam.json").read_text()


def test_json_is_one_document_on_stdout_also_for_an_error(
    capsys: pytest.CaptureFixture[str], scan: Path, bundle: Path, tmp_path: Path
) -> None:
    code, out, err = run(
        capsys, "explain", scan, "--model", bundle, "--out", tmp_path / "o", "--json", "--quiet", "--formats", "nifti"
    )
    values = json.loads(out)
    assert (code, values["ok"], err) == (0, True, "")
    assert len(values["files"]) == 4
    code, out, err = run(capsys, "explain", scan, "--model", bundle, "--target", "9", "--json", "--out", tmp_path / "o")
    assert json.loads(out)["exit_code"] == code == 2
    assert "only class 0" in err


def test_options_may_come_from_a_file_and_the_command_line_wins(
    capsys: pytest.CaptureFixture[str], scan: Path, bundle: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {bundle}\nformats: [nifti]\nthreshold: 0.25\nout: {tmp_path / 'a'}\ntarget: 0\n")
    code, out, err = run(capsys, "explain", scan, "--config", config, "--out", tmp_path / "b", "--json")
    assert code == 0, err
    assert json.loads(out)["threshold"]["fraction_of_maximum"] == 0.25
    assert not (tmp_path / "a").exists()
    config.write_text("modle: x\n")
    code, _, err = run(capsys, "explain", scan, "--config", config)
    assert (code, "did you mean 'model'" in err) == (2, True)
    for line in ("trust-code: 'false'", "allow-gaps: 0", "model: null", "model: {a: b}", "out: true", "formats: []"):
        config.write_text(line + "\n")
        code, _, err = run(capsys, "explain", scan, "--config", config, "--out", tmp_path / "c")
        assert (code, "should be" in err) == (2, True), line
    config.write_text("{not yaml")
    assert run(capsys, "explain", scan, "--config", config)[0] == 2


def test_code_in_a_bundle_needs_trust_and_is_listed_even_when_quiet(
    capsys: pytest.CaptureFixture[str], scan: Path, tmp_path: Path
) -> None:
    bundle = write_bundle(
        tmp_path / "code", inference=with_item("network_def/sharpness", "$__import__('math').sqrt(16.0)")
    )
    words = ["explain", scan, "--model", bundle, "--out", tmp_path / "out", "--formats", "nifti", "--quiet"]
    code, _, err = run(capsys, *words)
    assert code == 3
    assert "sqrt(16.0)" in err
    assert "--trust-code" in err
    code, _, err = run(capsys, *words, "--trust-code")
    assert code == 0
    assert "sqrt(16.0)" in err
    assert "explaining" not in err


def test_a_2d_network_explains_the_slice_that_was_chosen(
    capsys: pytest.CaptureFixture[str], scan: Path, tmp_path: Path
) -> None:
    code, out, err = run(
        capsys, "explain", scan, "--model", "demo-cxr", "--slice", "7", "--out", tmp_path / "o", "--json"
    )
    assert code == 0, err
    assert "Slice 7 of 30 (from 0) stands alone." in json.loads(out)["notes"]
    heat, image = nibabel.load(tmp_path / "o" / "scan_k7_gradcam.nii.gz"), nibabel.load(scan)
    assert heat.shape == (22, 26, 1)
    np.testing.assert_allclose(heat.affine @ [3, 4, 0, 1], image.affine @ [3, 4, 7, 1], atol=1e-5)


def test_series_of_one_number_do_not_overwrite_each_other(
    capsys: pytest.CaptureFixture[str], bundle: Path, tmp_path: Path
) -> None:
    for seed in (1, 2):
        folder = tmp_path / f"patient{seed}"
        write_series(folder, stored_values((24, 20, 30), seed=seed), GEOMETRIES["oblique"], uid_seed=f"s{seed}")
        assert run(capsys, "explain", folder, "--model", bundle, "--formats", "nifti", "--out", tmp_path / "o")[0] == 0
    assert len(list((tmp_path / "o").glob("*.nii.gz"))) == 4


def test_weights_with_a_factory(capsys: pytest.CaptureFixture[str], scan: Path, tmp_path: Path) -> None:
    import torch

    torch.save(small_net().state_dict(), tmp_path / "net.pt")
    code, out, err = run(
        capsys, "explain", scan, "--model", tmp_path / "net.pt", "--factory", FACTORY, "--out", tmp_path / "o"
    )
    assert code == 0, err
    assert "No preprocessing was given" in out
    code, _, err = run(capsys, "explain", scan, "--model", tmp_path / "net.pt", "--out", tmp_path / "o")
    assert (code, "--factory" in err) == (3, True)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["explain", "NOWHERE.nii.gz", "--model", "BUNDLE"], 4, "there is nothing at"),
        (["explain", "SCAN", "--model", "nowhere.pt"], 3, "nowhere.pt"),
        (["explain", "SCAN"], 2, "--model is missing"),
        (["explain", "SCAN", "--model", "BUNDLE", "--layer", "featurs"], 2, "did you mean features"),
        (["explain", "SCAN", "--model", "BUNDLE", "--target", "tumour"], 2, "its classes are lesion"),
        (["explain", "SCAN", "SCAN", "--model", "BUNDLE"], 2, "takes 1 channels and the prepared image has 2"),
        (["explain", "SCAN", "--model", "BUNDLE", "--formats", "pdf"], 2, "there is no format 'pdf'"),
        (["explain", "SCAN", "--model", "BUNDLE", "--formats", "dicom-sc"], 5, "DICOM"),
        (["explain", "SCAN", "--model", "BUNDLE", "--method", "magic"], 2, "there is no method 'magic'"),
        (["explain", "SCAN", "--model", "BUNDLE", "--slice", "99"], 2, "slices 0 to 29"),
        (["explain", "SCAN", "--model", "BUNDLE", "--device", "cuda:7"], 3, "cuda:7"),
        (["explain", "CUT", "--model", "BUNDLE"], 4, "cut.nii.gz"),
        (["explain", "FOUR", "--model", "BUNDLE"], 4, "--volume 0 to 1"),
        (["explain", "SCAN", "--model", "BUNDLE", "--out", "FILE/x"], 5, "cannot write"),
        (["explain", "--nonsense"], 2, "--help"),
        (["paint"], 2, "invalid choice"),
        (["inspect", "demo-mri", "--input-shape", "1,a"], 2, "--input-shape takes"),
    ],
)
def test_each_mistake_gets_one_clear_line_and_its_exit_code(
    capsys: pytest.CaptureFixture[str],
    scan: Path,
    bundle: Path,
    tmp_path: Path,
    words: list[str],
    code: int,
    message: str,
) -> None:
    (tmp_path / "cut.nii.gz").write_bytes(scan.read_bytes()[:4000])
    (tmp_path / "file").write_text("in the way")
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5, 2), np.int16), np.eye(4)), tmp_path / "four.nii.gz")
    places = {"SCAN": scan, "BUNDLE": bundle, "CUT": tmp_path / "cut.nii.gz", "FOUR": tmp_path / "four.nii.gz"}
    filled = [
        str(places.get(word, word)).replace("FILE", str(tmp_path / "file")).replace("NOWHERE", str(tmp_path / "x"))
        for word in words
    ]
    if words[0] == "explain" and "--out" not in words:
        filled += ["--out", str(tmp_path / "out")]
    found, out, err = run(capsys, *filled)
    assert (found, out) == (code, ""), err
    last = err.splitlines()[-1]
    assert last.startswith("medcam: error: ")
    assert message in last
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_defect_is_one_line_and_a_traceback_only_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("medcam.doctor.examine", broken)
    code, _, err = run(capsys, "doctor")
    assert (code, err.count("\n"), "--debug" in err) == (1, 1, True)
    assert "Traceback" in run(capsys, "doctor", "--debug")[2]

    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medcam.doctor.examine", stopped)
    assert run(capsys, "doctor")[0] == 130


def test_inspect_lists_layers_with_their_cell_size_and_marks_the_default(
    capsys: pytest.CaptureFixture[str], bundle: Path
) -> None:
    code, out, err = run(capsys, "inspect", bundle)
    assert code == 0, err
    assert next(line for line in out.splitlines() if line.startswith("*")).split()[:2] == ["*", "features"]
    values = json.loads(run(capsys, "inspect", bundle, "--json")[1])
    (default,) = [layer for layer in values["layers"] if layer["default"]]
    assert (default["name"], default["cell_size_voxels"], default["first_cell_at"]) == (
        "features",
        [4, 4, 4],
        [0, 0, 0],
    )
    assert [layer["name"] for layer in values["layers"] if not layer["before_head"]] == ["score"]
    assert values["classes"] == ["lesion"]


def test_inspect_says_what_an_image_holds(capsys: pytest.CaptureFixture[str], scan: Path, tmp_path: Path) -> None:
    values = json.loads(run(capsys, "inspect", scan, "--json")[1])
    assert (values["axes"], values["shape"], values["spacing"]) == ("LPS", [22, 26, 30], [1.5, 1.25, 2.0])
    for number in (3, 4):
        write_series(
            tmp_path / "study" / str(number),
            stored_values((7, 5, 4)),
            GEOMETRIES["oblique"],
            number=number,
            uid_seed=f"s{number}",
        )
    _, out, _ = run(capsys, "inspect", tmp_path / "study")
    assert "choose one with --series" in out
    assert "7 x 5 x 4" in run(capsys, "inspect", tmp_path / "study", "--series", "4")[1]


def test_a_dicom_series_becomes_an_overlay_that_other_software_places_right(
    capsys: pytest.CaptureFixture[str], bundle: Path, tmp_path: Path
) -> None:
    write_series(tmp_path / "study", stored_values((24, 20, 30)), GEOMETRIES["oblique"])
    code, out, err = run(
        capsys,
        "explain",
        tmp_path / "study",
        "--model",
        bundle,
        "--formats",
        "dicom-sc,nifti",
        "--out",
        tmp_path / "out",
        "--json",
    )
    assert code == 0, err
    overlay = sitk.ReadImage(json.loads(out)["files"][0])
    assert overlay.GetSize() == (24, 20, 30)
    heat = nibabel.load(json.loads(out)["files"][1])
    index = [23, 4, 17]
    lps = np.array(overlay.TransformContinuousIndexToPhysicalPoint([float(n) for n in index]))
    np.testing.assert_allclose(lps * [-1, -1, 1], (heat.affine @ [*index, 1])[:3], atol=1e-2)


def test_a_missing_slice_is_named_and_allow_gaps_goes_on(
    capsys: pytest.CaptureFixture[str], bundle: Path, tmp_path: Path
) -> None:
    write_series(tmp_path / "study", stored_values((24, 20, 30)), GEOMETRIES["oblique"], leave_out=[12])
    words = [
        "explain",
        str(tmp_path / "study"),
        "--model",
        str(bundle),
        "--out",
        str(tmp_path / "out"),
        "--formats",
        "dicom-sc",
    ]
    code, _, err = run(capsys, *words)
    assert code == 4
    assert "5.000 mm apart, the others 2.500 mm" in err
    code, out, err = run(capsys, *words, "--allow-gaps")
    assert code == 0, err
    assert "note" in out


def test_doctor_tells_when_the_other_medcam_is_installed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run(capsys, "doctor")
    assert code == 0, out
    from importlib import metadata

    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.1.22" if name == "medcam" else real(name))
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert "M3d-CAM" in out


def test_the_demo_explains_both_samples_and_hits_both_lesions(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    start = time.perf_counter()
    code, out, err = run(capsys, "demo", "--out", tmp_path)
    assert code == 0, out + err
    assert out.count("lies in the lesion") == 2
    assert "next: medcam inspect" in out
    for model in ("demo-mri", "demo-cxr"):
        assert {p.suffix for p in (tmp_path / model).iterdir()} == {".gz", ".json", ".dcm", ".png", ".html"}
    assert time.perf_counter() - start < 60


def test_help_is_quick_and_shows_examples() -> None:
    subprocess.run([sys.executable, "-m", "medcam", "--version"], check=True, capture_output=True)
    used = []
    for _ in range(3):
        # CPU time of the child, since the machine may be busy.
        code = (
            "import resource, subprocess, sys; subprocess.run([sys.executable, '-m', 'medcam', 'explain', '--help'], check=True); "
            "u = resource.getrusage(resource.RUSAGE_CHILDREN); sys.stderr.write(str(u.ru_utime + u.ru_stime))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        used.append(float(done.stderr))
    assert "examples:" in done.stdout
    assert "exit codes:" in done.stdout
    assert min(used) < 0.3


@pytest.mark.parametrize("format_name", ["nifti", "dicom-sc", "png"])
def test_a_full_disk_ends_in_one_line_and_leaves_nothing_half_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, format_name: str
) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow beyond this: to the program that writes it, as good as a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        code, out, err = run(
            capsys,
            "explain",
            sample_path("cxr", "film.dcm"),
            "--model",
            "demo-cxr",
            "--formats",
            format_name,
            "--out",
            tmp_path / "out",
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (code, out) == (5, "")
    assert err.splitlines()[-1].startswith("medcam: error: cannot write ")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_word_that_means_nothing_is_named_with_what_it_resembles(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "head.nii.gz", "--metod=rise"]) == 2
    assert "medcam explain has no option --metod; did you mean --method?" in capsys.readouterr().err
    assert main(["validate", "cases.csv", "--zzz", "3"]) == 2
    assert "did you mean" not in capsys.readouterr().err
    assert main(["methods", "rise", "cam"]) == 2
    assert "medcam methods takes nothing more, but 'cam' came" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["methods", "formats"])
def test_every_row_of_a_table_tells_what_its_options_mean(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    assert main([kind, "--json"]) == 0
    for row in json.loads(capsys.readouterr().out)[kind]:
        assert main([kind, row["name"]]) == 0
        told = capsys.readouterr().out
        for option in row["options"]:
            # numpydoc: names of options on a line of their own, their meaning indented below.
            assert re.search(rf"^    (\w+, )*{option}(, \w+)*\n        \S", told, re.MULTILINE), (
                f"{row['name']}: {option}"
            )
    assert main([kind, "nothing-like-it"]) == 2
