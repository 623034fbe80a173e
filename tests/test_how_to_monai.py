"""The commands of the how-to are run on a whole bundle, and its configurations are the example's."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from plugins.zoo_bundles import write_segmenting

from conftest import blob, oblique_grid

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "how-to-monai.md").read_text()
OVERRIDES = ROOT / "examples" / "bundle_override"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


def test_the_pages_overrides_are_the_examples() -> None:
    beside, instead = (yaml.safe_load(block) for block in blocks("yaml"))
    assert beside == yaml.safe_load((OVERRIDES / "heatmap_beside.yaml").read_text())
    assert instead == yaml.safe_load((OVERRIDES / "heatmap_instead.yaml").read_text())


@pytest.mark.slow
def test_the_pages_commands_run_a_bundle_and_agree(tmp_path: Path) -> None:
    grid = oblique_grid((34, 30, 22), (1.2, 1.0, 2.0))
    write_segmenting(tmp_path / "bundle")
    (tmp_path / "volumes").mkdir()
    voxels = blob(grid, grid.world_mm(np.array([12.0, 20, 9])), 5.0)
    nibabel.save(nibabel.Nifti1Image(voxels, grid.affine), tmp_path / "volumes" / "case.nii.gz")
    for path in OVERRIDES.glob("*.yaml"):
        shutil.copy(path, tmp_path)
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 3
    for line in commands:
        program, *words = shlex.split(line)
        run = [sys.executable, *(["-m", "medcam"] if program == "medcam" else []), *words]
        # The package under test, not another one that may be installed.
        done = subprocess.run(
            run, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
    instead = nibabel.load(tmp_path / "instead" / "case_heatmap.nii.gz").get_fdata()
    beside = nibabel.load(tmp_path / "beside" / "case_heatmap.nii.gz").get_fdata()
    (path,) = [p for p in (tmp_path / "known").glob("*.nii.gz") if "_label" not in p.name]
    assert beside.shape == (*grid.shape, 2)
    assert (tmp_path / "beside" / "case_trans.nii.gz").exists()
    assert np.corrcoef(instead.ravel(), nibabel.load(path).get_fdata().ravel())[0, 1] > 0.98
