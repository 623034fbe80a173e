"""The 3D demonstration model and the sample MRI: the training script runs, the sample is in its place, the model finds its lesion."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
import train_demo_mri
from monai.bundle import ConfigParser
from scipy import ndimage

# MONAI's LoadImaged looks for an NVIDIA decoder that few machines have.
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data_samples" / "mri"
BUNDLE = ROOT / "data_samples" / "models" / "demo_mri"


def load_bundle(folder: Path) -> tuple[torch.nn.Module, object]:
    """Return the bundle's network with its weights, and its preprocessing."""
    parser = ConfigParser()
    parser.read_config(folder / "configs" / "inference.json")
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    return network.eval(), parser.get_parsed_content("preprocessing")


def test_training_script_writes_a_bundle_that_loads_and_scores(tmp_path: Path) -> None:
    assert train_demo_mri.main(["--out", str(tmp_path), "--quick"]) == 0
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"configs/inference.json", "configs/metadata.json", "models/model.pt", "docs/README.md"}
    network, _ = load_bundle(tmp_path)
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 40, 48, 40)).shape == (1, 1)


def test_shipped_bundle_is_small_and_holds_no_expressions() -> None:
    text = (BUNDLE / "configs" / "inference.json").read_text(encoding="utf-8")
    assert "$" not in text
    assert {"network_def", "preprocessing"} <= json.loads(text).keys()
    assert (BUNDLE / "models" / "model.pt").stat().st_size < 400_000
    state = torch.load(BUNDLE / "models" / "model.pt", weights_only=True)
    assert {t.dtype for t in state.values() if t.is_floating_point()} == {torch.float32}


def test_sample_nifti_and_dicom_agree_in_place() -> None:
    nifti = nib.load(SAMPLE / "head_flair.nii.gz")
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(SAMPLE / "head_flair_dicom")))
    series = reader.Execute()
    assert np.array_equal(SimpleITK.GetArrayFromImage(series).transpose(2, 1, 0), np.asarray(nifti.dataobj))
    rng = np.random.default_rng(0)
    index = rng.uniform(0, np.array(nifti.shape) - 1, size=(20, 3))
    by_dicom = np.array([series.TransformContinuousIndexToPhysicalPoint(point) for point in index.tolist()]) * [
        -1,
        -1,
        1,
    ]
    by_nifti = nib.affines.apply_affine(nifti.affine, index)
    np.testing.assert_allclose(by_dicom, by_nifti, atol=1e-3)
    np.testing.assert_allclose(nifti.get_qform(), nifti.get_sform(), atol=1e-4)


def test_sample_grid_is_oblique_and_anisotropic() -> None:
    affine = nib.load(SAMPLE / "head_flair.nii.gz").affine
    assert nib.aff2axcodes(affine) == ("L", "P", "S")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(spacing, [1.7, 1.7, 2.6], atol=1e-4)
    tilt = np.degrees(np.arccos(np.abs(affine[:3, :3] / spacing).max(axis=0)))
    assert (tilt > 5).all()


def test_sample_lesion_is_one_blob_on_the_left() -> None:
    lesion = nib.load(SAMPLE / "head_lesion.nii.gz")
    mask = np.asarray(lesion.dataobj) > 0
    assert ndimage.label(mask)[1] == 1
    assert nib.affines.apply_affine(lesion.affine, np.argwhere(mask))[:, 0].max() < -10
    np.testing.assert_array_equal(lesion.affine, nib.load(SAMPLE / "head_flair.nii.gz").affine)


def test_shipped_model_finds_the_lesion_of_the_sample() -> None:
    network, preprocessing = load_bundle(BUNDLE)
    image = preprocessing({"image": str(SAMPLE / "head_flair.nii.gz")})["image"]
    batch = image.as_tensor()[None].float()
    with torch.no_grad():
        logit = float(network(batch))
        cells = network.location_logits(batch)[0, 0].numpy()
    assert logit > 1
    peak = 4 * np.array(np.unravel_index(cells.argmax(), cells.shape))  # a cell is centred on every fourth voxel
    lesion = nib.load(SAMPLE / "head_lesion.nii.gz")
    world = nib.affines.apply_affine(image.affine.numpy(), peak)
    i, j, k = np.round(nib.affines.apply_affine(np.linalg.inv(lesion.affine), world)).astype(int)
    assert np.asarray(lesion.dataobj)[i, j, k] == 1
