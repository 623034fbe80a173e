"""Whatever a series, a target or a method is called, every file lies in the output folder, and no name holds the words."""

from __future__ import annotations

from pathlib import Path

import pytest

from formats.derived_sources import COMPLETE
from formats.dicom_phantom import GEOMETRIES, stored_values, write_series
from formats.test_stored import heatmap_of
from medcam.formats import read, write

NAMES = ("../../escaped", "/absolute", "a\nb", "x" * 64, "\N{PILE OF POO}" * 9, "con:aux", "..")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_written_outside_the_folder(name: str, tmp_path: Path) -> None:
    tags = {
        **COMPLETE,
        "SeriesDescription": name,
        "ProtocolName": name,
        "StudyID": "1",
        "SpecificCharacterSet": "ISO_IR 192",
    }
    write_series(tmp_path / "in" / "study", stored_values((19, 14, 6)), GEOMETRIES["oblique"], tags=tags)
    volume = read(tmp_path / "in" / "study")
    before = set(tmp_path.rglob("*"))
    out = tmp_path / "deep" / "er" / "out"
    paths = write(heatmap_of(volume), volume, out, formats="nifti,nrrd,dicom-sc,dicom-pm,slicer,png")
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert set(paths) == new
    assert all(path.parent == out for path in new)
    assert not any(name in path.name or "escaped" in path.name for path in new if name != "..")
