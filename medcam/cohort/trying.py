"""What only the network itself can tell: above all, whether it uses the lesion."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32

from medcam.cohort.asked import Asked
from medcam.errors import MedcamError
from medcam.geometry import Grid, resample
from medcam.models import Model
from medcam.occupancy import occupancy
from medcam.prepare import Prepared, prepare
from medcam.trials.lesion_use import LesionUse, lesion_use
from medcam.trials.scoring import on_trial
from medcam.validate.measures import Measure
from medcam.volume import Heatmap, Volume

# Of an input voxel, from which it belongs to the lesion.
_HALF = 0.5
# A constant, or a blur of the image, would be another bright spot where a lung is dark.
_FILLS = ("inpaint",)


@dataclass(frozen=True, eq=False)
class Case:
    """A case as the network sees it: images and what was prepared of them, the heatmap, and on its grid the lesion and the domain."""

    volumes: tuple[Volume, ...]
    ready: Prepared
    heatmap: Heatmap
    lesion: Bool[np.ndarray, "i j k"]
    domain: Bool[np.ndarray, "i j k"] | None

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Of the input's voxels, one for each of its axes."""
        return self.ready.grid.spacing_mm[: self.ready.tensor.ndim - 1]

    @property
    def target(self) -> str | int | None:
        """The class that the heatmap explains, which another network must be asked for too."""
        words = re.search(r"class (\d+)\)?", self.heatmap.target)
        return int(words[1]) if words else None


def prepared(model: Model, volumes: Sequence[Volume]) -> Prepared:
    """Return what the network sees of the images, and where it lies."""
    dims = model.spatial_dims or (3 if volumes[0].grid.shape[2] > 1 else 2)
    return prepare(volumes, model.preprocessing, spatial_dims=dims)


@dataclass(frozen=True, eq=False)
class Tried:
    """What was tried on a network: numbers and curves by name (see `CaseResult`), and notes on what could not be tried."""

    numbers: Mapping[str, Measure] = field(default_factory=dict)
    curves: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def tried(model: Model, case: Case, asked: Asked) -> Tried:
    """Return what comes of removing the lesion, and what the map shows, from the image, and of taking the image again."""
    if not case.lesion.any() or not (asked.lesion_draws or asked.faithfulness or asked.robustness):
        return Tried()
    if case.heatmap.recipe.windows and _beyond(case.ready, case.heatmap.recipe.windows):
        return Tried(
            notes=("The network was not tried, nor whether it uses the lesion: it sees the volume in windows.",)
        )
    lesion = _on_input(case.lesion, case.heatmap.grid, case.ready.grid)
    domain = None if case.domain is None else _on_input(case.domain, case.heatmap.grid, case.ready.grid) | lesion
    inside = None if domain is None else _tensor(domain, case.ready)
    map_ = _tensor(resample(case.heatmap.relevance, case.heatmap.grid, case.ready.grid), case.ready)
    at = Input(as_input(model, case), map_, inside, case.spacing_mm, "mm" if case.heatmap.source.spaced else "pixels")
    found: list[Tried] = []
    try:
        with on_trial(model.network, at.tensor, **asked_about(model, case, asked)) as study:
            if asked.lesion_draws:
                uses = lesion_use(
                    study, _tensor(lesion, case.ready), fills=_FILLS, domain=inside, spacing_mm=case.spacing_mm, draws=asked.lesion_draws
                )  # fmt: skip
                found.append(Tried(_of_uses(uses)))
        if asked.faithfulness or asked.robustness:
            from medcam.cohort.faithful import faithful, robust

            found += [faithful(model, case, asked, at)] if asked.faithfulness else []
            found += [robust(model, case, asked, at)] if asked.robustness else []
    except MedcamError as error:
        found.append(Tried(notes=(f"The network could not be tried: {error}.",)))
    return Tried(
        {name: number for one in found for name, number in one.numbers.items()},
        {name: curve for one in found for name, curve in one.curves.items()},
        tuple(note for one in found for note in one.notes),
    )


@dataclass(frozen=True, eq=False)
class Input:
    """What the network sees of a case, as a batch of one: image, map and domain on its grid, and the unit of its lengths."""

    tensor: torch.Tensor
    map: torch.Tensor
    domain: torch.Tensor | None
    spacing_mm: tuple[float, ...]
    unit: str


def as_input(model: Model, case: Case) -> torch.Tensor:
    """Return the prepared image as the network takes it."""
    parameters = list(model.network.parameters())
    dtype = next((each.dtype for each in parameters if each.is_floating_point()), torch.float32)
    device = next((each.device for each in parameters), torch.device("cpu"))
    return case.ready.tensor.unsqueeze(0).to(device, dtype)


def asked_about(model: Model, case: Case, asked: Asked) -> dict[str, Any]:
    """Return what `on_trial` is asked: the score that the heatmap explains."""
    return {
        "target": asked.explaining.get("target") or case.target,
        "activation": asked.explaining.get("activation"),
        "output": asked.explaining.get("output"),
        "class_names": model.class_names,
        "seed": asked.explaining.get("seed", 0),
    }


def _of_uses(uses: Sequence[LesionUse]) -> dict[str, Measure]:
    numbers: dict[str, Measure] = {}
    for use in uses:
        # An image of which nothing is left may score anything; the score itself is what it stands above being undecided.
        span = max(abs(float(use.clean[0] - use.nothing[0])), abs(float(use.clean[0])))
        excess = float(use.excess[0])
        few = "the lesion fits at no other place of the body"
        numbers[f"lesion_necessity@{use.fill}"] = Measure(float(use.necessity[0]), "score")
        numbers[f"lesion_excess@{use.fill}"] = Measure(excess, "score", few)
        share = excess / span if span > 0 else float("nan")
        numbers[f"lesion_span@{use.fill}"] = Measure(span, "score")
        numbers[f"lesion_share@{use.fill}"] = Measure(share, "", "the score does not depend on the body")
        numbers[f"lesion_p@{use.fill}"] = Measure(float(use.chance[0]), "", few)
    numbers["lesion_sufficiency"] = Measure(float(uses[0].sufficiency[0]), "", "the score does not depend on the body")
    numbers["score_without_body"] = Measure(float(uses[0].nothing[0]), "score")
    return {name: replace(number, why=number.why if np.isnan(number.value) else "") for name, number in numbers.items()}


def _beyond(ready: Prepared, windows: Mapping[str, Any]) -> bool:
    """Tell whether an input is larger than the windows in which the network sees it."""
    sides = ready.tensor.shape[1:]
    window = windows.get("roi_size", sides)
    window = [window] * len(sides) if isinstance(window, int) else list(window)
    return any(0 < size < n for size, n in zip(window, sides, strict=True))


def _on_input(mask: Bool[np.ndarray, "i j k"], grid: Grid, onto: Grid) -> Bool[np.ndarray, "x y z"]:
    """Return a mask on the network's input; of one smaller than a voxel the voxel that holds most of it."""
    share = occupancy(mask, grid, onto)
    inside: np.ndarray = share >= _HALF
    return inside if inside.any() or not share.any() else share >= share.max()


def _tensor(array: Bool[np.ndarray, "x y z"] | Float32[np.ndarray, "x y z"], ready: Prepared) -> torch.Tensor:
    flat = array[:, :, 0] if ready.tensor.ndim == 3 else array
    return torch.from_numpy(np.ascontiguousarray(flat)).unsqueeze(0)
