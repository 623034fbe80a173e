"""The commands of the how-to are run, on a folder with random weights."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import nibabel
import pytest
from plugins.nnunet_folders import plans, write_folder
from plugins.test_nnunet_models import image

from conftest import oblique_grid
from medcam.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "how-to-nnunet.md"


@pytest.mark.filterwarnings("ignore")
def test_the_commands_of_the_how_to_do_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nnunetv2", reason="nnunetv2, of the extra 'nnunet', is not installed")
    monkeypatch.chdir(tmp_path)
    grid = oblique_grid((40, 34, 26), (1.2, 1.0, 2.0))
    nibabel.save(nibabel.Nifti1Image(image(grid), grid.affine), "case_0000.nii.gz")
    (tmp_path / "MODEL").symlink_to(write_folder(tmp_path, plans(), folds=("0", "1")))
    commands = [
        line for block in re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.M | re.S) for line in block.splitlines()
    ]
    assert len(commands) == 3
    for line in commands:
        program, *words = shlex.split(line)
        assert program == "medcam"
        assert main(words) == 0, line
    (program,) = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    shared: dict[str, Any] = {}
    exec(compile(program, PAGE.name, "exec"), shared)
    assert shared["heatmap"].target == "lesion (class 2)"
    for folder in ("results", "one-fold", "largest"):
        assert len([p for p in (tmp_path / folder).glob("*.nii.gz") if "_label" not in p.name]) == 1
