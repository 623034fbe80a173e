"""The demonstration model of chest films, the script that trains it, and the sample film."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data_samples" / "cxr"
BUNDLE = ROOT / "data_samples" / "models" / "demo_cxr"
SIDE, CELL = 256, 4

# MONAI warns of a GPU decoder that is not installed each time it makes a reader, and that a film has no place in the patient.
pytestmark = pytest.mark.filterwarnings(
    "ignore:NvImgCodecPydicomReader:UserWarning", "ignore:PydicomReader. ImageOrientationPatient:UserWarning"
)


def load_bundle(folder: Path) -> tuple[Any, Any]:
    """Return the bundle's network, with its weights, and its preprocessing."""
    parser = ConfigParser()
    parser.read_config(folder / "configs" / "inference.json")
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    return network.eval(), parser.get_parsed_content("preprocessing")


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any]:
    """Load the bundle in the repository."""
    return load_bundle(BUNDLE)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], ModuleType]:
    """Import a script of the repository by its path, with its neighbours importable as when a user runs it."""

    def load(path: Path) -> ModuleType:
        monkeypatch.syspath_prepend(str(ROOT / "examples"))
        spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


def test_quick_training_writes_a_bundle_that_scores(tmp_path: Path, script: Callable[[Path], ModuleType]) -> None:
    out = tmp_path / "bundle"
    assert script(ROOT / "examples" / "train_demo_cxr.py").main(["--quick", "--out", str(out), "--seed", "3"]) == 0
    for name in ("configs/metadata.json", "configs/inference.json", "models/model.pt", "docs/README.md"):
        assert (out / name).is_file(), name
    network, steps = load_bundle(out)
    image = steps({"image": str(SAMPLE / "film.png")})["image"]
    with torch.no_grad():
        assert torch.isfinite(network(image[None])).all()


def test_bundle_configuration_is_data_alone() -> None:
    inference = (BUNDLE / "configs" / "inference.json").read_text()
    assert "$" not in inference
    assert {"network_def", "preprocessing"} <= json.loads(inference).keys()
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    data_format = metadata["network_data_format"]
    assert data_format["inputs"]["image"]["spatial_shape"] == [SIDE, SIDE]
    assert data_format["outputs"]["pred"]["channel_def"] == {"0": "nodule"}
    assert (BUNDLE / "models" / "model.pt").stat().st_size < 400_000


def test_sample_files_hold_one_picture_in_the_same_axes() -> None:
    nifti = nib.load(SAMPLE / "film.nii.gz")
    film = np.asarray(nifti.dataobj)[:, :, 0]
    columns, rows = film.shape
    assert columns != rows, "equal sides would hide a transposition"

    header = pydicom.dcmread(SAMPLE / "film.dcm")
    assert (header.Columns, header.Rows) == (columns, rows)
    assert header.PhotometricInterpretation == "MONOCHROME2"
    assert list(header.PatientOrientation) == ["L", "F"]
    np.testing.assert_array_equal(header.pixel_array.T, film)

    picture = np.asarray(Image.open(SAMPLE / "film.png"))
    np.testing.assert_array_equal(picture.T, film // 16)

    spacing = float(header.PixelSpacing[0])
    expected = np.array([[-spacing, 0, 0, 0], [0, 0, -1, 0], [0, -spacing, 0, 0], [0, 0, 0, 1]])
    for image in (nifti, nib.load(SAMPLE / "film_nodule.nii.gz")):
        np.testing.assert_allclose(image.affine, expected, atol=1e-6)
        assert image.shape == (columns, rows, 1)
        assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)


def test_nodule_is_one_blob_in_the_right_lung() -> None:
    nifti = nib.load(SAMPLE / "film_nodule.nii.gz")
    mask = np.asarray(nifti.dataobj)
    assert set(np.unique(mask)) == {0, 1}
    assert ndimage.label(mask)[1] == 1
    inside = nib.affines.apply_affine(nifti.affine, np.argwhere(mask))
    middle = nib.affines.apply_affine(nifti.affine, (np.array(mask.shape) - 1) / 2)
    assert (inside[:, 0] > middle[0]).all(), "the mask lies on the left of the patient"
    film = np.asarray(nib.load(SAMPLE / "film.nii.gz").dataobj)
    around = ndimage.binary_dilation(mask, iterations=8) & (mask == 0)
    assert film[mask == 1].mean() > film[around].mean() + 200


@pytest.mark.parametrize("name", ["film.png", "film.dcm"])
def test_shipped_model_finds_the_nodule(shipped: tuple[Any, Any], name: str) -> None:
    network, steps = shipped
    mask = np.asarray(nib.load(SAMPLE / "film_nodule.nii.gz").dataobj)[:, :, 0]
    image = steps({"image": str(SAMPLE / name)})["image"]
    assert tuple(image.shape) == (1, SIDE, SIDE)
    with torch.no_grad():
        assert float(network(image[None])) > 1
        location = network.location_logits(image[None])[0, 0]
    cell = np.unravel_index(int(location.argmax()), location.shape)
    scale = np.array(mask.shape) / SIDE
    pixel = np.floor((np.array(cell) * CELL + 0.5) * scale).astype(int)
    assert mask[tuple(pixel)] == 1


def test_shipped_model_finds_nothing_without_the_nodule(shipped: tuple[Any, Any]) -> None:
    network, steps = shipped
    film = np.asarray(nib.load(SAMPLE / "film.nii.gz").dataobj)[:, :, 0].astype(np.float32)
    mask = np.asarray(nib.load(SAMPLE / "film_nodule.nii.gz").dataobj)[:, :, 0] > 0
    hidden = ndimage.binary_dilation(mask, iterations=6)
    source, shift = np.argwhere(hidden), np.array([0, -45])  # one rib and one gap higher
    film[hidden] = film[tuple((source + shift).T)]
    image = type(steps)(steps.transforms[2:])({"image": torch.from_numpy(film)[None]})["image"]
    with torch.no_grad():
        assert float(network(image[None])) < 0


def test_sample_is_reproducible(tmp_path: Path, script: Callable[[Path], ModuleType]) -> None:
    assert script(ROOT / "data_samples" / "make_cxr.py").main(["--out", str(tmp_path)]) == 0
    again = np.asarray(nib.load(tmp_path / "film.nii.gz").dataobj).astype(int)
    film = np.asarray(nib.load(SAMPLE / "film.nii.gz").dataobj).astype(int)
    assert np.abs(again - film).max() <= 1  # of 4096: the last bit may differ between processors
    header, header_again = (
        pydicom.dcmread(folder / "film.dcm", stop_before_pixels=True) for folder in (SAMPLE, tmp_path)
    )
    assert header == header_again
