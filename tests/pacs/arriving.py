"""Instances as a peer sends them, and a queue with some of them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydicom

from formats.dicom_phantom import GEOMETRIES, stored_values, write_series
from medcam.pacs.arrivals import Arrival, arrival


def sent(path: Path) -> tuple[bytes, pydicom.FileDataset]:
    """The encoded dataset of a file, without its meta group, and what is in it."""
    content = path.read_bytes()
    return content[144 + int.from_bytes(content[140:144], "little") :], pydicom.dcmread(path)


def arrived(path: Path, *, peer: str = "SCANNER@127.0.0.1") -> Arrival:
    """A file as if a peer had sent it."""
    dataset, header = sent(path)
    return arrival(
        dataset, uid=header.SOPInstanceUID, sop_class=header.SOPClassUID, syntax=header.file_meta.TransferSyntaxUID, peer=peer
    )  # fmt: skip


def arrivals(
    count: int = 3, *, seed: str = "one", values: int = 0, tags: Mapping[str, Any] | None = None
) -> list[Arrival]:
    """Instances of one series; other `values` give the same UIDs other pixels."""
    with tempfile.TemporaryDirectory() as folder:
        voxels = stored_values((7, 5, count), seed=values)
        paths = write_series(Path(folder), voxels, GEOMETRIES["oblique"], uid_seed=seed, tags=tags)
        return [arrived(path) for path in paths]
