"""A small cohort on disk: scans with and without lesions, a network, and its tables."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from scipy import ndimage

from conftest import blob, oblique_grid
from medcam.geometry import Grid
from medcam.lesion_net import LesionNet

GRID = oblique_grid((14, 17, 11), (3.1, 2.6, 4.2))
FACTORY = "medcam.lesion_net:LesionNet(3, (3, 4, 4, 4))"
# What a run that measures takes little of.
QUICK = (
    "--chance", "10", "--replicates", "50", "--thresholds", "half-max", "--tolerances", "5",
    "--random-networks", "0", "--lesion-draws", "0", "--report", "none",
)  # fmt: skip
# And with the network on trial, too.
TRIED = ("--random-networks", "1", "--lesion-draws", "3")


def save(path: Path, voxels: np.ndarray, grid: Grid = GRID) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.float32), grid.affine), path)
    return path


def scan(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The voxels of scan n, and of its lesion."""
    rng = np.random.default_rng(n)
    lesion = blob(GRID, GRID.world_mm(np.array([6.0, 8.0, 5.0]) + rng.uniform(-2, 2, 3)), 5.0) > 0.6
    index = np.stack(np.meshgrid(*map(np.arange, GRID.shape), indexing="ij"), -1)
    body = np.linalg.norm((GRID.world_mm(index) - GRID.world_mm(np.array([6.5, 8.0, 5.0]))) / 19.0, axis=-1) < 1
    return 100 * body + 30 * ndimage.gaussian_filter(lesion.astype(float), 0.7) + rng.normal(0, 3, GRID.shape), lesion


def weights(folder: Path, seed: int = 0) -> list[str]:
    """Save a network, and return the options that name it."""
    torch.manual_seed(seed)
    network = LesionNet(3, (3, 4, 4, 4)).eval()
    torch.save(network.state_dict(), folder / "net.pt")
    return ["--model", str(folder / "net.pt"), "--factory", FACTORY]


def study(folder: Path, count: int = 4, *, masks: bool = False) -> Path:
    """Write scans in folders of their sites, and a table of them; return the table."""
    rows = ["case,patient,image" + (",mask" if masks else "")]
    for n in range(count):
        voxels, lesion = scan(n)
        name = f"site{n % 2}/scan{n}"
        save(folder / f"{name}.nii.gz", voxels)
        row = f"c{n},p{n // 2},{name}.nii.gz"
        if masks:
            save(folder / f"{name}_lesion.nii.gz", lesion)
            row += f",{name}_lesion.nii.gz"
        rows.append(row)
    table = folder / "cases.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


# What holds times, or where a run stood, by its nature.
_TIMED = ("manifest.sqlite3", ".lock.sqlite3", "cases.parquet")


def contents(out: Path) -> dict[str, str]:
    """Digests of all files that a run wrote, without the times that tables and results hold."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and not path.name.startswith(_TIMED):
            found[path.relative_to(out).as_posix()] = hashlib.sha256(_timeless(path)).hexdigest()
    return found


def _timeless(path: Path) -> bytes:
    if path.name == "cases.csv":
        lines = path.read_text().splitlines()
        at = lines[0].split(",").index("seconds")
        # Words stand in quotes before the seconds, numbers alone after them.
        after = len(lines[0].split(",")) - at - 1
        return "\n".join(
            ",".join(each for n, each in enumerate(line.rsplit(",", after + 1)) if n != 1) for line in lines
        ).encode()
    if path.name == "results.json":
        values: dict[str, Any] = json.loads(path.read_text())
        for case in values["cases"]:
            case["seconds"] = 0
        return json.dumps(values).encode()
    return path.read_bytes()
