"""Which reader a file goes through, and readers of other packages."""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from formats import dicom_phantom as phantom
from medcam.errors import InputError, UsageError
from medcam.formats import READERS, kind_of, read
from medcam.geometry import Grid
from medcam.options import function_at, options_of
from medcam.volume import Source, Volume


def test_each_reader_takes_a_path_and_known_choices() -> None:
    for row in READERS.values():
        assert set(options_of(function_at(row.function))) <= {"series", "volume", "allow_gaps", "regrid"}


def test_dicom_is_known_by_what_is_in_it_whatever_it_is_called(tmp_path: Path) -> None:
    (path,) = phantom.write_series(tmp_path, phantom.stored_values((7, 5, 1)), phantom.GEOMETRIES["axial"])
    for name in ("image.img", "image.nii", "IM0001", "image.png"):
        path = path.rename(tmp_path / name)
        assert kind_of(path) == "dicom"
        assert read(path).source.format == "dicom"


def test_what_is_no_file_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        read(tmp_path / "pipe.nii")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(
        InputError,
        match=r"notes\.txt is none of what medcam reads: DICOM .*, NIfTI .*, NRRD .*, MetaImage .*, or a picture",
    ):
        read(tmp_path / "notes.txt")


def test_another_package_adds_a_reader_for_a_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_numbers(path: Path, *, volume: int | None = None) -> Volume:
        voxels = np.loadtxt(path, ndmin=2)[:, :, None] + (volume or 0)
        return Volume(voxels, Grid(voxels.shape, np.diag([2.0, 3, 4, 1])), "a.u.", Source("numbers", "00", path.stem))

    module = ModuleType("numbers_for_medcam")
    module.read_numbers = read_numbers  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "numbers_for_medcam", module)
    entry = EntryPoint(".Numbers", "numbers_for_medcam:read_numbers", "medcam.readers")
    monkeypatch.setattr(
        "medcam.formats.reading.entry_points", lambda *, group: [entry] if group == "medcam.readers" else []
    )
    (tmp_path / "a.numbers").write_text("1 2 3\n4 5 6\n")
    assert kind_of(tmp_path / "a.numbers") == ".Numbers"
    np.testing.assert_array_equal(read(tmp_path / "a.numbers").voxels[:, :, 0], [[1, 2, 3], [4, 5, 6]])
    assert read(tmp_path / "a.numbers", volume=2).voxels[0, 0, 0] == 3
    monkeypatch.setattr(module, "read_numbers", lambda path: read_numbers(path))
    with pytest.raises(UsageError, match="of a kind that holds one"):
        read(tmp_path / "a.numbers", volume=2)


def test_tilted_slices_are_put_upright_on_request(tmp_path: Path) -> None:
    affine = phantom.GEOMETRIES["axial"].copy()
    affine[1, 2] = 1.4
    phantom.write_series(tmp_path, phantom.stored_values(), affine)
    leaning, straight = read(tmp_path).grid, read(tmp_path, regrid=True).grid
    assert abs(leaning.affine[:3, 1] @ leaning.affine[:3, 2]) > 0.5
    np.testing.assert_allclose(straight.affine[:3, 1] @ straight.affine[:3, 2], 0, atol=1e-9)
