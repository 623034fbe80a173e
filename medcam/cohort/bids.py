"""Heatmaps as BIDS derivatives: their names, their sidecars, and what a dataset of them says of itself.

References
----------
Brain Imaging Data Structure 1.10, 'Derivatives: imaging', and its schema, by which `bids-validator-deno` judges.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medcam
from medcam.errors import OutputError, UsageError
from medcam.formats.nifti import WHAT_A_MASK_IS
from medcam.options import listed
from medcam.whole_file import whole_file

if TYPE_CHECKING:
    from medcam.cohort.layouts import Exporter, Spot

_VERSION = "1.10.0"
_ADDRESS = "https://medcam-xai.readthedocs.io"
_ENTITY = re.compile(r"[a-z]+-[A-Za-z0-9+]+")
# What BIDS has no names for, and where pictures and other formats go.
IGNORED = (
    "*.html", "*.csv", "*.parquet", "manifest.*", ".lock.*", "results.json", "cases", "pages", "paper", "figures", "**/figures",
)  # fmt: skip
_README = """\
Heatmaps of what a network saw, made by medcam, one for each image of the dataset that `DatasetLinks` names.

`*_probseg.nii.gz` is the relevance of each voxel for the target's score, raw and signed: no probability, and no segmentation of a
tissue, for BIDS has no suffix for such maps. `*_mask.nii.gz` is 1 where it reaches the threshold. The sidecars hold all that is
needed to make them again. Research use only.
"""
_NOT_A_PROBABILITY = (
    "Relevance of each voxel for the target's score, raw and signed. BIDS has no suffix for such maps: this is not a probability, "
    "and no segmentation of a tissue. Research use only."
)


@dataclass(frozen=True)
class BidsName:
    """The name of a file by BIDS: its entities in their order, its suffix and its ending."""

    entities: tuple[str, ...]
    suffix: str
    ending: str

    @property
    def subject(self) -> str:
        """Such as 'sub-01'."""
        return self.entities[0]


def parsed(name: str) -> BidsName | None:
    """Return the parts of a file's name if it is one by BIDS, with a subject first."""
    stem, dot, ending = name.partition(".")
    *entities, suffix = stem.split("_")
    known = [bool(_ENTITY.fullmatch(each)) for each in entities]
    if not entities or not all(known) or not entities[0].startswith("sub-") or not suffix.isalnum():
        return None
    return BidsName(tuple(entities), suffix, dot + ending)


def spot_of(path: Path, method: str) -> Spot:
    """Return where the heatmap of an image goes.

    Its suffix becomes a space, for images of several kinds may share all other entities, and a heatmap lies on its image's own grid.

    Raises
    ------
    UsageError
        If the image is not named by BIDS.
    """
    from medcam.cohort.layouts import Spot

    name, folders = parsed(path.name), path.parent.parts
    first = next((n for n, part in enumerate(folders) if part == (name and name.subject)), None)
    if name is None or first is None or first + 1 == len(folders):
        raise UsageError(
            "the layout bids needs images named by BIDS, such as sub-01/anat/sub-01_T1w.nii.gz, and not all are: use --layout mirror"
        )
    kept = [each for each in name.entities if not each.startswith(("space-", "desc-", "label-"))]
    own = next((each for each in name.entities if each.startswith("space-")), "")
    space = f"space-{name.suffix}{own.removeprefix('space-')}"
    folder = "/".join(folders[first:])
    return Spot(folder, "_".join([*kept, space, f"desc-{method}", "probseg"]), f"{folder}/{path.name}")


def derivatives(spot: Spot, out: Path, formats: str, export: Exporter) -> tuple[Path, ...]:
    """Write a heatmap as `_probseg` and its mask as `_mask`, and other formats into the subject's figures, and return the files."""
    names = listed(formats)
    placed = [each for each in names if each.partition("(")[0].strip() == "nifti"]
    others = [each for each in names if each not in placed]
    files: list[Path] = []
    if placed:
        files += [_as_bids(path, spot) for path in export(out / spot.folder, spot.label, ",".join(placed))]
    if others:
        figures = out / spot.folder.partition("/")[0] / "figures"
        files += export(figures, spot.label.removesuffix("_probseg"), ",".join(others))
    return tuple(files)


def describe(out: Path, raw: Path) -> None:
    """Write what the dataset of derivatives says of itself, and what a validator is to leave alone.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    said = {
        "Name": "Heatmaps of what a network saw",
        "BIDSVersion": _VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "medcam", "Version": medcam.__version__, "CodeURL": _ADDRESS}],
        "DatasetLinks": {"raw": Path(os.path.relpath(raw, out)).as_posix()},
    }
    _write(out / "dataset_description.json", json.dumps(said, indent=2) + "\n")
    _write(out / "README.md", _README)
    _write(out / ".bidsignore", "".join(f"{pattern}\n" for pattern in IGNORED))


def _as_bids(path: Path, spot: Spot) -> Path:
    """Give a file its name by BIDS, and a sidecar what BIDS wants of one."""
    is_mask = path.name.startswith(f"{spot.label}_label.")
    mask = spot.label.removesuffix("_probseg") + "_mask"
    final = path.with_name(path.name.replace(f"{spot.label}_label", mask)) if is_mask else path
    try:
        if path.suffix == ".json":
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            values["file"] = final.name.removesuffix(".json") + ".nii.gz"
            about = {"Description": _NOT_A_PROBABILITY, "Units": "arbitrary"}
            if is_mask:
                about = {"Description": WHAT_A_MASK_IS, "Type": "ROI"}
            image = f"bids:raw:{spot.source}"
            values |= {**about, "Sources": [image], "SpatialReference": image}
            _write(final, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
            if final != path:
                path.unlink()
        elif final != path:
            path.replace(final)
    except OSError as error:
        raise OutputError(f"cannot write {final}: {error.strerror or error}") from error
    return final


def _write(path: Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
