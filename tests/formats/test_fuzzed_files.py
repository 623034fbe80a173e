"""Mutated and truncated files: each reader gives a Volume or a MedcamError, and nothing else, soon and in little memory."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from formats.test_masks import (
    SQUARE,
    contour,
    labels,
    on_slice,
    slicer_fields,
    source_series,
    write_seg,
    write_structures,
)
from medcam.errors import MedcamError
from medcam.formats import read, read_mask
from medcam.geometry import Grid
from medcam.volume import Volume

DATA = np.random.default_rng(1).integers(0, 300, (6, 5, 4)).astype(np.int16)
# Words that a hostile or broken header may hold.
WORDS = (
    b"nan",
    b"inf",
    b"-1",
    b"0",
    b"99999999999",
    b"1e400",
    b"none",
    b"\xff\xfe",
    b"%d",
    b"..",
    b"(",
    b"LIST",
    b"\n",
    b"\n\n",
    b"=",
    b": ",
    b"",
)


def _nifti(path: Path) -> None:
    image = nibabel.Nifti1Image(DATA, np.diag([1.5, 2, 3, 1]))
    image.header.set_slope_inter(0.5, 2)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def _nrrd(path: Path) -> None:
    fields = {
        "space": "LPS", "space directions": np.diag([1.5, 2, 3]), "space origin": [1, 2, 3], "kinds": ["domain"] * 3,
        "encoding": "raw" if "raw" in path.stem else "gzip",
    }  # fmt: skip
    nrrd.write(str(path), DATA, fields)


def _metaimage(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(DATA), str(path), useCompression="zlib" in path.stem)


def _picture(path: Path) -> None:
    Image.fromarray(DATA[..., 0].astype(np.uint8)).save(path)


SEEDS: dict[str, Callable[[Path], None]] = {
    "a.nii": _nifti, "a.nii.gz": _nifti, "a_raw.nrrd": _nrrd, "a.nrrd": _nrrd, "a.mha": _metaimage, "a_zlib.mha": _metaimage,
    "a.png": _picture, "a.tif": _picture, "a.jpg": _picture,
}  # fmt: skip


def mutated(content: bytes, rng: np.random.Generator, *, header: int = 700) -> bytes:
    """One to four changes: bytes, words, cuts, doublings, most of them in the header."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(0, max(1, len(changed))))
        at = at % header if rng.random() < 0.8 else at
        kind = rng.integers(0, 5)
        if kind == 0:
            changed[at : at + 1] = bytes([int(rng.integers(0, 256))])
        elif kind == 1:
            changed[at : at + 4] = bytes(int(n) for n in rng.integers(0, 256, 4))
        elif kind == 2:
            changed[at : at + int(rng.integers(0, 9))] = WORDS[int(rng.integers(0, len(WORDS)))]
        elif kind == 3:
            del changed[at:]
        else:
            changed[at:at] = changed[at : at + int(rng.integers(1, 40))]
    return bytes(changed)


def ends_well(path: Path, reader: Callable[..., Volume] = read, **more: Grid) -> None:
    try:
        assert isinstance(reader(path, **more), Volume)
    except MedcamError as error:
        assert str(error)  # noqa: PT017


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.parametrize("rounds", [100, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_mutated_file_is_a_volume_or_a_named_error(tmp_path: Path, name: str, rounds: int) -> None:
    SEEDS[name](tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    rng = np.random.default_rng(len(name) + rounds)
    path = tmp_path / f"mutated{name[1:]}"
    for n in range(rounds):
        # What is packed as a whole is changed under its packing too, where the checksum does not see it.
        unpacked = name.endswith(".gz") and n % 2 == 0
        content = mutated(gzip.decompress(whole) if unpacked else whole, rng)
        path.write_bytes(gzip.compress(content, 1) if unpacked else content)
        ends_well(path)


def _segmentation(path: Path, kind: str) -> None:
    write_seg(path, source_series(path.parent / "ct"), labels(), kind)


def _structures(path: Path) -> None:
    grid = read(path.parent / "ct").grid
    write_structures(
        path,
        {"a": [contour(on_slice(grid, SQUARE, k)) for k in (1, 2)], "b": [contour(grid.affine[:3, 3:].T, "POINT")]},
    )


def _slicer(path: Path) -> None:
    fields = slicer_fields(("a", "b"), LabelValue=("1", "2"), Layer=("0", "1"))
    nrrd.write(str(path), np.stack([labels()[0], 2 * labels()[1]]).astype(np.uint8), fields)


MASKS: dict[str, Callable[[Path], None]] = {
    "binary.dcm": lambda path: _segmentation(path, "BINARY"),
    "labelmap.dcm": lambda path: _segmentation(path, "LABELMAP"),
    "contours.dcm": _structures,
    "a.seg.nrrd": _slicer,
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("rounds", [40, pytest.param(1500, marks=pytest.mark.slow)])
def test_a_mutated_mask_is_a_volume_or_a_named_error(tmp_path: Path, name: str, rounds: int) -> None:
    source_series(tmp_path / "ct")
    MASKS[name](tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    rng = np.random.default_rng(len(name) + rounds)
    path = tmp_path / f"mutated.{name.partition('.')[2]}"
    like = read(tmp_path / "ct").grid
    for n in range(rounds):
        path.write_bytes(mutated(whole, rng, header=len(whole)))
        ends_well(path, read_mask, **({"like": like} if n % 2 else {}))
