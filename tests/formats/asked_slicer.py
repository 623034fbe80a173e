"""Asks 3D Slicer's own library, in a Python of its own: see `slicer_reader`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest


def asked(requests: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Return the library's answers, or skip the test where there is none."""
    python = os.environ.get("MEDCAM_SLICER_PYTHON")
    if not python:
        pytest.skip("MEDCAM_SLICER_PYTHON names no Python that has slicer-core, 3D Slicer's own library")
    (folder / "requests.json").write_text(json.dumps(requests))
    reader = Path(__file__).with_name("slicer_reader.py")
    command = [python, str(reader), str(folder / "requests.json"), str(folder / "answers.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ERR|" not in done.stderr, done.stderr[-3000:]
    answers: list[dict[str, Any]] = json.loads((folder / "answers.json").read_text())
    return answers
