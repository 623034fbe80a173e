"""Writes each format whole, then while the disk is full, then in a process that is killed, and says how each ended.

Run with the folder. No file may grow beyond so many bytes: the system then refuses to write, as a full disk does, or ends the process in
the midst of it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path

import numpy as np

from formats.dicom_phantom import GEOMETRIES, stored_values, write_series
from medcam.errors import OutputError
from medcam.formats import WRITERS, read, write
from medcam.recipe import Recipe
from medcam.volume import Heatmap, Volume

LIMIT = 1024


def main() -> None:
    folder = Path(sys.argv[1])
    write_series(folder / "study", stored_values((19, 14, 6)), GEOMETRIES["oblique"])
    volume = read(folder / "study")
    recipe = Recipe("net", "ab" * 32, "grad-cam", "features", "lesion", inputs=(volume.source.sha256,))
    relevance = np.random.default_rng(0).random(volume.grid.shape).astype(np.float32)
    heatmap = Heatmap(relevance, volume.grid, volume.source, recipe, "lesion", 1.0)
    # First whole, and here, so that what a format loads is loaded for the others.
    for name in WRITERS:
        write(heatmap, volume, folder / "whole" / name, formats=asked(name), threshold=0.4)
    for how in ("full", "killed"):
        told = {name: one(asked(name), heatmap, volume, folder / how / name, how) for name in WRITERS}
        (folder / f"{how}.json").write_text(json.dumps(told))


def asked(name: str) -> str:
    """Return what to ask for: a list of objects has something to list only beside them."""
    return f"dicom-sc,{name}" if name == "dicom-ko" else name


def one(formats: str, heatmap: Heatmap, volume: Volume, folder: Path, how: str) -> str:
    """Write a format in a process of its own, and return 'done', the error's words, or the name of the signal that ended it."""
    mouth, ear = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if how == "killed" else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
        words = "done"
        try:
            write(heatmap, volume, folder, formats=formats, threshold=0.4)
        except OutputError as error:
            words = str(error)
        os.write(ear, words.encode())
        os._exit(0)
    os.close(ear)
    with os.fdopen(mouth) as stream:
        words = stream.read()
    _, status = os.waitpid(child, 0)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else words


if __name__ == "__main__":
    main()
