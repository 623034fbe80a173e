"""The how-to to OHIF is what the program does: its commands run, against a real Orthanc, and leave there what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from medcam.cli import main
from pacs import servers
from pacs.servers import Orthanc

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "how-to-ohif.md"


@pytest.fixture
def archive(tmp_path: Path) -> Orthanc:
    return servers.orthanc(tmp_path / "orthanc")


@pytest.mark.slow
def test_the_commands_bring_image_and_results_into_one_study(
    archive: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {
        "https://pacs.example/dicom-web": archive.dicomweb,
        "MEDCAM_DICOMWEB_USER=me": f"MEDCAM_DICOMWEB_USER={servers.USER}",
        "MEDCAM_DICOMWEB_PASSWORD=secret": f"MEDCAM_DICOMWEB_PASSWORD={servers.PASSWORD}",
    }
    (tmp_path / "data_samples").symlink_to(ROOT / "data_samples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    blocks = re.findall(r"```shell\n(.*?)```", PAGE.read_text(), re.S)
    # The last block installs OHIF itself, which the tests of viewers do.
    lines = [line for block in blocks if "npm pack" not in block for line in block.splitlines()]
    assert len(lines) == 5
    archive.start()
    try:
        for line in lines:
            words = [here.get(word, word) for word in shlex.split(line)]
            if words[0] == "export":
                monkeypatch.setenv(*words[1].split("=", 1))
            else:
                assert main([*words[1:], "--quiet"]) == 0, line
        assert len(archive.get("/studies")) == 1
        modalities = [archive.get(f"/series/{each}")["MainDicomTags"]["Modality"] for each in archive.get("/series")]
    finally:
        archive.kill()
    assert sorted(modalities) == ["MR", "OT", "OT", "SEG", "SR"]
    assert [path.name for path in (tmp_path / "lower").iterdir()] == ["MR_s1_880d1e_gradcam_seg.dcm"]
