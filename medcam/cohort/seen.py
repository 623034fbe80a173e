"""Whether files are still what they were: by size and time of change where that is enough, by their digest where it is not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medcam.cohort.results import Entry
from medcam.whole_file import UNFINISHED

_BLOCK = 1 << 20
# What stands for a file that is not there.
GONE: list[Any] = []


def files_of(entry: Entry, series: Sequence[Path] = ()) -> dict[str, tuple[Path, ...]]:
    """Return by a name the files that a case is made of; of a folder, all below it."""
    found: dict[str, tuple[Path, ...]] = {}
    for n, path in enumerate(entry.images):
        found[f"image {n + 1}"] = tuple(series) if series and n == 0 else _below(path)
    for name in ("heatmap", "mask", "organ"):
        path = getattr(entry, name)
        if path is not None:
            found[name] = (*_below(path), *_sidecar(path))
    return found


def seen_of(files: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """Return by name what the system says of files: of one its size and time of change (ns), of several a digest of these."""
    return {name: _seen(paths) for name, paths in files.items()}


def looks_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Tell whether files have kept size and time of change. One that is gone could not be read again anyway."""
    return before.keys() == now.keys() and all(now[name] in (GONE, before[name]) for name in now)


def record(path: Path) -> list[Any]:
    """Return size, time of change (ns) and SHA-256 of a file.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, digest_of([path])]


def verified(folder: Path, files: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]] | None:
    """Return the records of written files, brought up to date, or None if one is gone or holds something else.

    What kept its size and time of change is not read again.
    """
    found: dict[str, list[Any]] = {}
    for name, before in files.items():
        path = folder / name
        try:
            status = path.stat()
            kept = [status.st_size, status.st_mtime_ns] == list(before[:2])
            found[name] = list(before) if kept else record(path)
        except OSError:
            return None
        if found[name][2] != before[2]:
            return None
    return found


def digest_of(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of files' content, one after the other, each after its length.

    Raises
    ------
    OSError
        If one cannot be read.
    """
    running = hashlib.sha256()
    for path in paths:
        running.update(f"{path.stat().st_size}:".encode())
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                running.update(block)
    return running.hexdigest()


def _seen(paths: Sequence[Path]) -> list[Any]:
    try:
        stats = [(path.name, status.st_size, status.st_mtime_ns) for path in paths for status in (path.stat(),)]
    except OSError:
        return GONE
    if not stats:
        return GONE
    if len(stats) == 1:
        return list(stats[0][1:])
    return [len(stats), sum(each[1] for each in stats), hashlib.sha256(repr(stats).encode()).hexdigest()]


def _below(path: Path) -> tuple[Path, ...]:
    if not path.is_dir():
        return (path, *_fellows(path))
    return tuple(
        Path(parent, name)
        for parent, folders, names in os.walk(path)
        for _ in [folders.sort()]
        for name in sorted(names)
        if not name.startswith(UNFINISHED)
    )


def _fellows(path: Path) -> tuple[Path, ...]:
    """Return files of the same stem: the voxels of a header that stands alone (.hdr, .nhdr, .mhd) lie in one of them."""
    if path.suffix.lower() not in (".hdr", ".img", ".nhdr", ".mhd"):
        return ()
    found = (each for each in sorted(path.parent.glob("*")) if each.stem.partition(".")[0] == path.stem)
    return tuple(each for each in found if each != path and each.is_file())


def _sidecar(path: Path) -> tuple[Path, ...]:
    sidecar = path.with_name(path.name.partition(".")[0] + ".json")
    return (sidecar,) if sidecar != path and sidecar.is_file() else ()
