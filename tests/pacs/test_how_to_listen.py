"""The how-to's commands are what it says they are: the node is started, sent to, asked how it stands, and stopped."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medcam.cli import _parsers, main
from pacs.servers import Orthanc, free_port, wait_for_port
from run_page import blocks_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to-listen.md"


def commands() -> list[str]:
    blocks = [block.code for block in blocks_of(PAGE.read_text()) if block.is_run]
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_every_option_that_the_how_to_names_exists() -> None:
    _, parsers = _parsers()
    options = {
        option for name in ("listen", "send") for action in parsers[name]._actions for option in action.option_strings
    }
    trial = set(re.findall(r'"(--[a-z-]+)"', (ROOT / "examples" / "listen_trial.py").read_text()))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE.read_text())) <= options | trial


def test_every_limit_is_told_with_its_default() -> None:
    _, parsers = _parsers()
    defaults = {option: action.default for action in parsers["listen"]._actions for option in action.option_strings}
    told = dict(re.findall(r"^\| `(--[a-z-]+)` \| (\d+)", PAGE.read_text(), re.M))
    assert set(told) == {
        "--max-instance",
        "--max-series",
        "--max-queue",
        "--keep-free",
        "--associations",
        "--rate",
        "--idle",
    }
    assert told == {option: defaults[option] for option in told}


@pytest.mark.slow
def test_the_commands_of_the_how_to_do_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], orthanc: Orthanc
) -> None:
    port = str(free_port())
    here = {
        "dicom://ARCHIVE@pacs.example:11112": orthanc.node, "10.1.0.0/16": "127.0.0.1", "11112": port,
        "dicom://MEDCAM@node.example:11112": f"dicom://MEDCAM@127.0.0.1:{port}",
    }  # fmt: skip
    (tmp_path / "data_samples").symlink_to(ROOT / "data_samples")
    monkeypatch.chdir(tmp_path)
    # The user's own state folder is not the test's.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    start, *rest = [[here.get(word, word) for word in shlex.split(line)] for line in commands()]
    process = subprocess.Popen([sys.executable, "-m", *start], stderr=subprocess.DEVNULL)
    try:
        wait_for_port(int(port), process)
        send, status, as_json, retry = rest
        assert main(send[1:]) == 0, capsys.readouterr().err
        end = time.monotonic() + 200
        while True:
            capsys.readouterr()
            assert main(as_json[1:]) == 0
            if (values := json.loads(capsys.readouterr().out))["series"]["sent"]:
                break
            assert time.monotonic() < end, values
            time.sleep(1)
        assert main(status[1:]) == 0
        assert "1 sent" in capsys.readouterr().out
        assert main(retry[1:]) == 0
        assert "nothing has failed" in capsys.readouterr().out
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    kinds = {orthanc.get(f"/instances/{each}/tags?simplify")["Modality"] for each in orthanc.get("/instances")}
    assert kinds == {"OT", "SEG"}
