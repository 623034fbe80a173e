"""`--lesion` takes a mask of any kind, one label of it, and a share of a voxel."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest

from medcam import cli
from medcam.samples import sample_path

SCAN = str(sample_path("mri", "head_flair_dicom"))


@pytest.fixture
def segmentation(tmp_path: Path) -> Path:
    """The sample's lesion and something else, as 3D Slicer stores segments."""
    lesion = nibabel.load(sample_path("mri", "head_lesion.nii.gz"))
    voxels = np.asarray(lesion.dataobj).astype(np.uint8)
    elsewhere = np.flip(voxels, 0) & ~voxels.astype(bool)
    fields = {"space": "RAS", "space directions": lesion.affine[:3, :3].T, "space origin": lesion.affine[:3, 3]}
    for n, name in enumerate(("lesion", "elsewhere")):
        fields |= {
            f"Segment{n}_ID": f"Segment_{n}",
            f"Segment{n}_Name": name,
            f"Segment{n}_LabelValue": str(n + 1),
            f"Segment{n}_Layer": "0",
        }
    nrrd.write(str(tmp_path / "drawn.seg.nrrd"), voxels + 2 * elsewhere.astype(np.uint8), fields)
    return tmp_path / "drawn.seg.nrrd"


def test_one_label_of_a_segmentation_is_the_lesion(
    segmentation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def values(command: str, *words: str) -> dict[str, object]:
        assert cli.main([command, *words, "--json", "--quiet", "--lesion", str(segmentation)]) == 0
        return dict(json.loads(capsys.readouterr().out))

    folder = tmp_path / "out"
    wanted = ["--formats", "nifti,seg-nrrd", "--lesion-label", "lesion", "--out", str(folder)]
    assert values("explain", SCAN, "--model", "demo-mri", *wanted)["peak_in_lesion"] is True
    (written,) = folder.glob("*.seg.nrrd")
    assert nrrd.read_header(str(written))["Segment1_Name"] == "lesion"
    (stored,) = folder.glob("*gradcam.nii.gz")
    export = [str(stored), "--source", SCAN, "--formats", "seg-nrrd", "--out", str(tmp_path / "again")]
    assert values("export", *export, "--lesion-label", "lesion", "--lesion-share", "0.5")["peak_in_lesion"] is True
    for label in ("elsewhere", "2"):
        assert values("export", *export, "--lesion-label", label)["peak_in_lesion"] is False


def test_a_wrong_label_or_share_is_wrong_use(
    segmentation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        (["--lesion-label", "tumour"], "it has 1 'lesion', 2 'elsewhere'"),
        (["--lesion-share", "2"], "share of a voxel"),
    ):
        command = ["explain", SCAN, "--model", "demo-mri", "--lesion", str(segmentation), "--out", str(tmp_path / "no")]
        assert cli.main([*command, *words]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "no").exists()
