"""The maps of earlier looks, in files: small, since a map is kept on its own cells."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from medcam.engine import Relevance
from medcam.errors import InputError
from medcam.whole_file import whole_file

_NAME = re.compile(r"maps_(\d+)\.npz")


@dataclass(frozen=True, eq=False)
class Maps:
    """The relevance of all watched images at one step.

    Parameters
    ----------
    digests
        Of each image, so that only maps of the same image are compared.
    """

    step: int
    relevance: Relevance
    digests: tuple[str, ...]

    def on_input(self) -> Float32[np.ndarray, "b *s"]:
        """Return the maps at the images' size."""
        found: np.ndarray = self.relevance.on_input().float().cpu().numpy()
        return found

    def cells(self, n: int) -> Float32[np.ndarray, "*t"]:
        """Return the map of one image on its own cells."""
        found: np.ndarray = self.relevance.values[n].float().cpu().numpy()
        return found

    def compares(self, other: Maps, n: int) -> bool:
        """Tell whether both looked at the same image, for the same class, by the same method at the same layer."""
        mine, theirs = self.relevance, other.relevance
        same = [
            (one.method, one.layer, one.score, one.values.shape[1:], one.classes[n : n + 1])
            for one in (mine, theirs)
            if n < len(one.values)
        ]
        return len(same) == 2 and same[0] == same[1] and self.digests[n] == other.digests[n]


def digests(images: Tensor) -> tuple[str, ...]:
    """Return the SHA-256 of each image's numbers."""
    plain = images.detach().as_subclass(Tensor).cpu().contiguous()
    return tuple(hashlib.sha256(one.float().numpy().tobytes()).hexdigest() for one in plain)


def path_of(folder: Path, step: int) -> Path:
    """Return where the maps of a step are kept."""
    return folder / f"maps_{step:08d}.npz"


def steps_in(folder: Path) -> list[int]:
    """Return the steps whose maps a folder holds, in rising order."""
    found = [_NAME.fullmatch(path.name) for path in folder.glob("maps_*.npz")]
    return sorted(int(match[1]) for match in found if match)


def write_maps(maps: Maps, folder: Path) -> None:
    """Write a step's maps, and remove those of later steps: they are of a run that was set back.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    for later in steps_in(folder):
        if later > maps.step:
            path_of(folder, later).unlink(missing_ok=True)
            (folder / f"picture_{later:08d}.png").unlink(missing_ok=True)
    found = maps.relevance
    probabilities = found.scores[:0] if found.probabilities is None else found.probabilities
    with whole_file(path_of(folder, maps.step)) as temporary:
        np.savez_compressed(
            temporary, values=found.values.float().cpu().numpy(), stride=found.stride, offset=found.offset,
            input_shape=found.input_shape, scores=found.scores.float().cpu().numpy(),
            probabilities=probabilities.float().cpu().numpy(),
            classes=np.array(found.classes, np.int64), digests=np.array(maps.digests),
            words=np.array([found.method, found.layer, found.target, found.score]),
        )  # fmt: skip


def read_maps(folder: Path, step: int) -> Maps:
    """Return the maps of a step.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    path = path_of(folder, step)
    try:
        with np.load(path, allow_pickle=False) as kept:
            method, layer, target, score = (str(word) for word in kept["words"])
            probabilities = torch.from_numpy(kept["probabilities"]) if kept["probabilities"].size else None
            values = torch.from_numpy(kept["values"])
            found = Relevance(
                values, tuple(map(float, kept["stride"])), tuple(map(float, kept["offset"])),
                tuple(map(int, kept["input_shape"])), layer, method, tuple(map(int, kept["classes"])),
                torch.from_numpy(kept["scores"]), probabilities, tuple(() for _ in values), score, target,
            )  # fmt: skip
            return Maps(step, found, tuple(map(str, kept["digests"])))
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise InputError(
            f"{path.name} does not hold the maps of a look that medcam wrote ({type(error).__name__}); remove it"
        ) from error


def maps_before(folder: Path, step: int) -> Maps | None:
    """Return the maps of the latest look before a step, or None if there was none."""
    earlier = [each for each in steps_in(folder) if each < step]
    return read_maps(folder, earlier[-1]) if earlier else None
