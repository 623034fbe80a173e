"""One Orthanc for all tests that need no settings of their own, emptied for each; a spool and instances to send."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from formats.dicom_phantom import GEOMETRIES, stored_values, write_series
from medcam.cli import main
from pacs import servers
from pacs.servers import Orthanc


@pytest.fixture(scope="session")
def running_orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    started = servers.orthanc(tmp_path_factory.mktemp("orthanc"))
    started.start()
    yield started
    started.kill()


@pytest.fixture
def orthanc(running_orthanc: Orthanc) -> Orthanc:
    """A running Orthanc that holds nothing."""
    running_orthanc.empty()
    return running_orthanc


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A folder with four oblique MR slices and a file that is not DICOM."""
    folder = tmp_path / "study"
    write_series(folder, stored_values((7, 5, 4)), GEOMETRIES["oblique"])
    (folder / "readme.txt").write_text("no image")
    return folder


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def send(spool: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any, str]]:
    """`medcam send` with this test's spool and hardly any pauses: exit code, its JSON, and what it said on stderr."""

    def run(*words: object) -> tuple[int, Any, str]:
        code = main(["send", *map(str, words), "--spool", str(spool), "--pause", "0.05", "--json"])
        caught = capsys.readouterr()
        return code, json.loads(caught.out), caught.err

    return run
