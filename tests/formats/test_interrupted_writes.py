"""A full disk, or a kill in the midst of writing, leaves no part of a file under its final name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medcam.errors import InputError
from medcam.formats import WRITERS, read

if sys.platform == "win32":
    pytest.skip("Windows does not limit how large a file may grow", allow_module_level=True)

LIMIT = 1024


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every format was written whole, onto a full disk, and by a process that was killed."""
    folder = tmp_path_factory.mktemp("interrupted")
    script = Path(__file__).with_name("interrupted_writes.py")
    paths = os.pathsep.join([str(script.parents[2]), str(script.parents[1])])
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    # Nothing was tried again behind the user's back, to fail out of sight.
    assert "Exception ignored" not in done.stderr, done.stderr[-3000:]
    return folder


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_said_and_leaves_nothing_or_what_is_whole(name: str, home: Path) -> None:
    assert "File too large" in json.loads((home / "full.json").read_text())[name]
    whole = {path.name: path.stat().st_size for path in files(home / "whole" / name)}
    assert max(whole.values()) > LIMIT
    for path in files(home / "full" / name):
        assert path.stat().st_size == whole[path.name]
        assert not path.name.startswith(".medcam-")


@pytest.mark.parametrize("name", WRITERS)
def test_a_kill_in_the_midst_of_writing_leaves_nothing_under_a_final_name(name: str, home: Path) -> None:
    assert json.loads((home / "killed.json").read_text())[name] == "SIGXFSZ"
    whole = {path.name: path.stat().st_size for path in files(home / "whole" / name)}
    left = files(home / "killed" / name)
    assert any(path.name.startswith(".medcam-") for path in left)
    for path in left:
        assert path.name.startswith(".medcam-") or path.stat().st_size == whole[path.name]


def test_what_a_kill_left_is_no_file_to_a_reader(home: Path) -> None:
    left = home / "killed" / "dicom-sc"
    assert files(left)
    with pytest.raises(InputError, match="holds no DICOM image"):
        read(left)
