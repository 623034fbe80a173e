"""The how-to to 3D Slicer is what the program does: its commands run, and its picture is what they give."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medcam.cli import main

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "how-to-slicer.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the page's commands were run."""
    home = tmp_path_factory.mktemp("how-to")
    (home / "data_samples").symlink_to(ROOT / "data_samples")
    commands = re.findall(r"^medcam .*$", "\n".join(re.findall(r"```shell\n(.*?)```", PAGE.read_text(), re.S)), re.M)
    assert len(commands) == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for command in commands:
            assert main([*shlex.split(command)[1:], "--quiet"]) == 0, command
    return home


def test_the_commands_leave_the_files_that_the_page_names(folder: Path) -> None:
    results = {path.name for path in (folder / "results").iterdir()}
    assert {"MR_s1_880d1e_gradcam.mrb", "load_in_slicer.py", "MR_s1_880d1e_gradcam_slicer.json"} <= results
    assert [path.name for path in (folder / "lower").iterdir()] == ["MR_s1_880d1e_gradcam.mrb"]
    for name in re.findall(r"results/([\w.]+\w)", PAGE.read_text()):
        assert name in results


def test_the_picture_is_the_scene_as_slicer_draws_it(folder: Path, tmp_path: Path) -> None:
    python = os.environ.get("MEDCAM_SLICER_PYTHON")
    if not python:
        pytest.skip("MEDCAM_SLICER_PYTHON names no Python that has slicer-core, 3D Slicer's own library")
    if not can_draw(python):
        pytest.skip("3D Slicer's library finds neither EGL nor OSMesa to draw outlines with")
    script, picture = ROOT / "docs" / "make_slicer_picture.py", tmp_path / "picture.png"
    scene = folder / "results" / "MR_s1_880d1e_gradcam.mrb"
    done = subprocess.run([python, script, scene, picture], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found, shown = (
        np.asarray(Image.open(path)).astype(int) for path in (picture, ROOT / "docs/images/slicer_scene.png")
    )
    assert found.shape == shown.shape
    # Edges of letters and lines differ between drivers.
    assert np.mean(np.abs(found - shown).max(axis=-1) > 8) < 0.01
    row, column = found.shape[0] // 2, found.shape[0] // 2
    centre = found[row - 12 : row + 12, column - 12 : column + 12]
    assert np.ptp(centre, axis=-1).max() > 80
    outline = (np.abs(found - (51, 255, 204)).max(axis=-1) < 12).sum()
    assert outline > 60


def can_draw(python: str) -> bool:
    """Tell whether VTK finds a way to draw without a screen; where it does not, it ends the process."""
    code = (
        "import vtk; w = vtk.vtkRenderWindow(); w.SetOffScreenRendering(1); w.AddRenderer(vtk.vtkRenderer()); w.Render(); "
        "assert w.GetClassName() in ('vtkEGLRenderWindow', 'vtkOSOpenGLRenderWindow', 'vtkXOpenGLRenderWindow')"
    )
    return subprocess.run([python, "-c", code], capture_output=True, timeout=60).returncode == 0
