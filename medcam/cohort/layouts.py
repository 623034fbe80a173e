"""How the files of a cohort's cases are called: as a mirror of the input's tree, flat in one folder, or by BIDS derivatives."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from medcam.errors import UsageError
from medcam.formats import READERS

LAYOUTS = ("mirror", "flat", "bids")
# Where exports lie below the cohort's folder, but for BIDS, which has its own.
HEATMAPS = "heatmaps"
# Where files go that lie outside the table's folder.
_ELSEWHERE = "elsewhere"
# Names of files may have 255 bytes, and formats add endings.
_LONGEST = 180
# From a folder, a label and formats to the files that were written.
Exporter = Callable[[Path, str, str], tuple[Path, ...]]


@dataclass(frozen=True)
class Spot:
    """Where the files of a case go, and what they are called after.

    Parameters
    ----------
    folder
        Below the cohort's folder, parts separated by '/'.
    label
        How the names of files begin.
    source
        The image, as BIDS names it below its dataset; '' for other layouts.
    """

    folder: str
    label: str
    source: str = ""


def spots(named: Mapping[str, Path | str], *, layout: str, root: Path, method: str) -> dict[str, Spot]:
    """Return by id where the files of each case go: no two at one spot, whatever the system thinks of capitals.

    Parameters
    ----------
    named
        By id: the image, or a name with parts separated by '/' where the image's own may tell who it is.
    root
        The folder that names are relative to.
    method
        The method by which heatmaps are made.

    Raises
    ------
    UsageError
        If there is no such layout, or an image is not named as it asks.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"a layout is one of {', '.join(LAYOUTS)}, not '{layout}'")
    from medcam.cohort.bids import spot_of

    short = re.sub(r"[^a-z0-9+]", "", method.partition("(")[0].lower()) or "heatmap"
    places: dict[str, Callable[[Path | str], Spot]] = {
        "mirror": lambda name: _mirrored(_parts(name, root), short),
        "flat": lambda name: Spot(HEATMAPS, _fitted(f"{'-'.join(_parts(name, root))}_{short}")),
        "bids": lambda name: spot_of(Path(name), re.sub("[^a-z0-9]", "", short)),
    }
    found = {id_: places[layout](name) for id_, name in named.items()}
    taken = Counter(_place(spot) for spot in found.values())
    # The same image, asked about two classes: part of the id tells them apart.
    return {id_: spot if taken[_place(spot)] == 1 else _apart(spot, id_) for id_, spot in found.items()}


def laid_out(layout: str, spot: Spot, out: Path, formats: str, export: Exporter) -> tuple[Path, ...]:
    """Write a heatmap where its layout wants it, and return the files."""
    if layout != "bids":
        return export(out / spot.folder, spot.label, formats)
    from medcam.cohort.bids import derivatives

    return derivatives(spot, out, formats, export)


def _place(spot: Spot) -> str:
    return f"{spot.folder}/{spot.label}".casefold()


def _apart(spot: Spot, id_: str) -> Spot:
    if not spot.source:
        return replace(spot, label=f"{spot.label}_{id_[:8]}")
    return replace(spot, label=spot.label.removesuffix("_probseg") + f"{id_[:8]}_probseg")


def _parts(name: Path | str, root: Path) -> tuple[str, ...]:
    """Return the parts of a name below the root, the last without its ending."""
    if isinstance(name, str):
        return PurePosixPath(name).parts
    relative = Path(os.path.relpath(name, root))
    if ".." in relative.parts or relative.is_absolute():
        whole = Path(os.path.abspath(name))  # noqa: PTH100  a link stays what it is called
        relative = Path(_ELSEWHERE, *whole.parts[1:])
    return without_ending(relative)


def without_ending(path: Path) -> tuple[str, ...]:
    """Return the parts of an image's path, the last without the ending of its format."""
    *folders, last = path.parts
    suffixes = (
        suffix for kind, row in READERS.items() if kind != "dicom" for suffix in (*row.suffixes, ".dcm", ".ima")
    )
    ending = max((each for each in suffixes if last.lower().endswith(each)), key=len, default="")
    return (*folders, last[: len(last) - len(ending)] or last)


def _mirrored(parts: Sequence[str], method: str) -> Spot:
    *folders, last = parts
    return Spot("/".join([HEATMAPS, *folders]), _fitted(f"{last}_{method}"))


def _fitted(label: str) -> str:
    """Return a name that is not too long for a file, and that no two different ones share."""
    if len(label.encode()) <= _LONGEST:
        return label
    digest = hashlib.sha256(label.encode()).hexdigest()[:12]
    return label.encode()[: _LONGEST - 13].decode(errors="ignore") + f"_{digest}"
