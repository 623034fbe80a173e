"""Which cases there are at a path: rows of a table, images of a BIDS dataset, series of a DICOM archive, files of a folder."""

from __future__ import annotations

from pathlib import Path

from medcam.cohort.cases import read_table
from medcam.cohort.driving import Case, Cases
from medcam.errors import InputError, UsageError


def cases_in(
    path: Path, *, with_model: bool, suffix: str | None = None, datatype: str | None = None, volume: int | None = None
) -> Cases:
    """Return the cases at a path, in order.

    Parameters
    ----------
    with_model
        Whether there is a network to make heatmaps.
    suffix, datatype
        Of a BIDS dataset: which images.
    volume
        Which volume of images that hold several.

    Raises
    ------
    InputError
        If there is nothing there, or no case.
    UsageError
        If what was asked does not fit what is there.
    """
    if path.is_file():
        if suffix or datatype or volume is not None:
            raise UsageError(
                "--suffix, --datatype and --volume choose from a folder; a table names each image, series and volume"
            )
        entries = read_table(path, with_model=with_model, with_lesions=False, with_files=False)
        return Cases(tuple(map(Case, entries)), path.parent.absolute())
    if not path.is_dir():
        raise InputError(f"there is nothing at {path}")
    raise UsageError("folders come next")
