"""Programs that judge DICOM files, as functions."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from formats.derived_sources import clunie


def complaints(path: Path, *iods: str) -> list[str]:
    """Return what dciodvfy says against a file; the source's own lack of study data is not medcam's.

    The validator must have known the file for one of `iods`, secondary captures if none is named.
    """
    result = subprocess.run([clunie("dciodvfy"), "-new", path], capture_output=True, text=True, errors="replace")
    lines = (result.stdout + result.stderr).splitlines()
    assert {*lines} & {*(iods or ("MultiframeTrueColorSCImage", "SCImage"))}, lines
    return [line for line in lines if line.startswith(("Error", "Warning")) and "needed to build DICOMDIR" not in line]


def disagreements(files: Iterable[Path]) -> list[str]:
    """Return what dcentvfy says against files of one study.

    It counts the accession number into entities of its own, and warns of any study that has one.
    """
    result = subprocess.run([clunie("dcentvfy"), *files], capture_output=True, text=True, errors="replace")
    lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    return [line for line in lines if "AccessionNumber" not in line]


def of_dcmtk(name: str) -> str:
    """Return a program of dcmtk, which systems install."""
    if (found := shutil.which(name)) is None:
        pytest.skip(f"dcmtk's {name} is not installed")
    return found
