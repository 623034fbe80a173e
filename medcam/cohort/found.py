"""The table of the cases that were found in a folder: which image each is, for people, and for `medcam cohort` to take up again."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path

from medcam.cohort.results import Entry
from medcam.whole_file import whole_file

FOUND = "found.csv"


def write_found(entries: Iterable[Entry], out: Path) -> Path:
    """Write found.csv, images named relative to its folder, and return the file.

    Parameters
    ----------
    entries
        Their patients already by number.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    path = out / FOUND
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["case", "patient", "image", "series", "volume"])
        for entry in entries:
            image = Path(os.path.relpath(entry.images[0], out)).as_posix()
            volume = "" if entry.volume is None else entry.volume
            table.writerow([entry.case, entry.patient, image, entry.series, volume])
    return path
