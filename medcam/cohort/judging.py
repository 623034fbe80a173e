"""One case's run in three steps, from its files to its numbers and its verdict: read, explain and measure, write.

`judged` takes them one after the other; a worker of a cohort overlaps those of different cases. A case that fails is a value.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from medcam.cohort.asked import Asked
from medcam.cohort.reading import Domain, Truth, domain_of, heatmap_of, image_on, read_images, truth_of
from medcam.cohort.results import CaseResult, Entry
from medcam.errors import InputError, MedcamError
from medcam.formats import read_mask, write
from medcam.geometry import Grid
from medcam.validate.baselines import bright_spots
from medcam.validate.heatmaps import measure_heatmap
from medcam.validate.localization import lesion_on
from medcam.validate.measures import CaseMeasures, Settings
from medcam.validate.measuring import baseline_maps
from medcam.validate.protocols import protocol
from medcam.validate.strata import decisions
from medcam.validate.verdict import of_case
from medcam.volume import Heatmap, Volume

if TYPE_CHECKING:
    from medcam.cohort.randomness import Randomness
    from medcam.cohort.trying import Tried
    from medcam.models import Model

# Baselines are measured as the heatmap is, but for chance, which does not depend on the map.
_NO_CHANCE = 0
_SPOTS = 64


@dataclass(frozen=True, eq=False)
class Inputs:
    """What was read of one case.

    Parameters
    ----------
    volumes
        The images; () where the table names none. Where a given heatmap lies on a slice of the first, that slice.
    heatmap
        The one that the table names, or None if the model is to make it.
    truth
        Where the lesion is; None where that is not known, so that there is nothing to measure against.
    organ
        Where evidence may lie, as the table says.
    """

    volumes: tuple[Volume, ...]
    heatmap: Heatmap | None = None
    truth: Truth | None = None
    organ: Volume | None = None


@dataclass(frozen=True, eq=False)
class _Scene:
    """What was read and made of one case."""

    volumes: tuple[Volume, ...]
    heatmap: Heatmap
    truth: Truth
    domain: Domain
    lesion: Bool[np.ndarray, "i j k"]
    ready: Any = None

    @property
    def input_grid(self) -> Grid | None:
        return None if self.ready is None else self.ready.grid


def judged(entry: Entry, asked: Asked, *, model: Model | None, out: Path | None) -> CaseResult:
    """Return what came of one case; why, where nothing did.

    Parameters
    ----------
    model
        Makes the heatmap if the table names none; with it, the network is tried too.
    out
        Where a heatmap that was made is stored; None to store none.
    """
    start = time.perf_counter()
    try:
        result = judge(entry, asked, model=model, out=out)
    except MedcamError as error:
        result = CaseResult(entry, error=str(error))
    except MemoryError:
        result = CaseResult(entry, error="it takes more memory than there is")
    except Exception as error:  # noqa: BLE001  one case's defect is no reason to lose the others
        first = (str(error).strip().splitlines() or [""])[0]
        result = CaseResult(
            entry, error=f"unexpected {type(error).__name__}: {first}; this is a defect in medcam, report it"
        )
    return replace(result, seconds=time.perf_counter() - start)


def judge(entry: Entry, asked: Asked, *, model: Model | None, out: Path | None) -> CaseResult:
    """Return what came of one case, as `judged` does.

    Raises
    ------
    MedcamError
        If it cannot be done.
    """
    inputs = read_inputs(entry, asked)
    heatmap = explained(entry, asked, inputs, model=model)
    result = measured(entry, asked, inputs, heatmap, model=model)
    if entry.heatmap is not None or out is None:
        return result
    files = write(heatmap, inputs.volumes[0], out, formats="nifti", label=case_label(entry))
    return replace(result, heatmap=next(path for path in files if path.name.endswith(f"{case_label(entry)}.nii.gz")))


def has_truth(entry: Entry) -> bool:
    """Tell whether a row says where the lesion is, or that there is none, so that a heatmap can be measured against it."""
    return entry.mask is not None or entry.truth == 0


def read_inputs(entry: Entry, asked: Asked, *, files: Sequence[Path] = ()) -> Inputs:
    """Return all that is to be read of one case.

    Parameters
    ----------
    files
        Those of the DICOM series that is the image, where they are known; else they are looked for at the image's path.

    Raises
    ------
    MedcamError
        If a file cannot be read, or those of one case do not belong together.
    """
    volumes = read_images(entry, allow_gaps=asked.allow_gaps, regrid=asked.regrid, files=files)
    heatmap = None
    shown = volumes[0] if volumes else None
    if entry.heatmap is not None:
        heatmap, shown = heatmap_of(entry.heatmap, shown)
        volumes = (shown, *volumes[1:]) if shown is not None else ()
        shown = shown or Volume(heatmap.relevance, heatmap.grid, "relevance", heatmap.source)
    if shown is None or not has_truth(entry):
        return Inputs(volumes, heatmap)
    truth = truth_of(entry, shown, drawn_on=asked.drawn_on)
    return Inputs(volumes, heatmap, truth, None if entry.organ is None else read_mask(entry.organ, like=shown))


def explained(entry: Entry, asked: Asked, inputs: Inputs, *, model: Model | None) -> Heatmap:
    """Return the heatmap that was read, or that the network gives of the images.

    Raises
    ------
    MedcamError
        If there is none, and it cannot be made.
    """
    if inputs.heatmap is not None:
        return inputs.heatmap
    if model is None or not inputs.volumes:
        raise InputError("there is no heatmap, and none can be made without a model and an image")
    from medcam.pipeline import explain

    how: dict[str, Any] = {**asked.explaining, "target": asked.explaining.get("target") or entry.target or None}
    return explain(inputs.volumes, model, **how)


def measured(entry: Entry, asked: Asked, inputs: Inputs, heatmap: Heatmap, *, model: Model | None) -> CaseResult:
    """Return what comes of one heatmap: numbers and a verdict, or the heatmap's own score alone where the lesion is not known.

    Raises
    ------
    MedcamError
        If the lesion does not belong to the image.
    """
    if inputs.truth is None:
        return _unmeasured(entry, asked, heatmap)
    domain = domain_of(heatmap, inputs.volumes[0] if inputs.volumes else None, inputs.organ, inputs.truth)
    ready = None
    if model is not None and inputs.volumes and _is_of(heatmap, model):
        from medcam.cohort.trying import prepared

        ready = prepared(model, inputs.volumes)
    lesion = lesion_on(heatmap, inputs.truth.mask)
    return _numbers(entry, asked, _Scene(inputs.volumes, heatmap, inputs.truth, domain, lesion, ready), model)


def _unmeasured(entry: Entry, asked: Asked, heatmap: Heatmap) -> CaseResult:
    decision = decisions([entry.truth], [heatmap.probability], threshold=asked.decision_threshold)[0]
    return CaseResult(
        entry, target=heatmap.target or entry.target, score=heatmap.score, probability=heatmap.probability, truth=entry.truth,
        decision=decision, recipe=heatmap.recipe, notes=heatmap.notes, heatmap=entry.heatmap,
    )  # fmt: skip


def case_label(entry: Entry) -> str:
    """Return how the names of a case's files begin: by its line, for its name may tell who it is."""
    return f"case_{entry.line:04d}"


def _is_of(heatmap: Heatmap, model: Model) -> bool:
    """Tell whether a heatmap was made by this network; a heatmap that does not say so is no one's."""
    return bool(heatmap.recipe.model) and heatmap.recipe.model_sha256 == model.sha256


def _numbers(entry: Entry, asked: Asked, scene: _Scene, model: Model | None) -> CaseResult:
    heatmap = scene.heatmap
    measures = _measured(scene, heatmap, asked.settings, scene.input_grid, entry)
    random = _random(asked, scene, model)
    baselines, notes = _baselines(entry, asked, scene, random.heatmaps if random else {})
    trials: Tried | None = None
    if model is not None and scene.ready is not None:
        from medcam.cohort.trying import tried

        trials = tried(model, _as_seen(scene), asked)
    notes = (*notes, *(note for each in (random, trials) if each for note in each.notes))
    numbers = trials.numbers if trials else {}
    truth = entry.truth if entry.truth is not None else int(bool(scene.lesion.any()))
    protocols, odd = _by_protocols(asked, scene)
    side = _cell_mm(scene)
    return CaseResult(
        entry,
        measures=measures,
        baselines=baselines,
        trials=numbers,
        curves=trials.curves if trials else {},
        cascade=random.cascade if random else None,
        protocols=protocols,
        verdict=of_case(measures.numbers, {name: each.numbers for name, each in baselines.items()}, numbers, side),
        target=heatmap.target or entry.target,
        score=heatmap.score,
        probability=heatmap.probability,
        truth=truth,
        decision=decisions([truth], [heatmap.probability], threshold=asked.decision_threshold)[0],
        recipe=heatmap.recipe,
        notes=tuple(dict.fromkeys((*_disagreements(entry, scene), *scene.domain.notes, *notes, *odd, *heatmap.notes))),
        cell_mm=side,
        heatmap=entry.heatmap,
    )


def _cell_mm(scene: _Scene) -> float:
    """Return the longest side of a cell of the heatmap's layer, in mm; NaN where it is not known."""
    recipe, grid = scene.heatmap.recipe, scene.input_grid
    if grid is None and not recipe.preprocessing:
        grid = scene.heatmap.grid
    if grid is None or not recipe.stride or not scene.heatmap.source.spaced:
        return float("nan")
    return float(max(step * mm for step, mm in zip(recipe.stride, grid.spacing_mm, strict=False)))


def _measured(scene: _Scene, map_: Heatmap, settings: Settings, input_grid: Grid | None, entry: Entry) -> CaseMeasures:
    return measure_heatmap(
        map_, scene.truth.mask, organ=scene.domain.mask, input_grid=input_grid, boxes=scene.truth.boxes,
        settings=settings, case=entry.case, patient=entry.patient,
    )  # fmt: skip


def _baselines(
    entry: Entry, asked: Asked, scene: _Scene, random: Mapping[str, Heatmap]
) -> tuple[dict[str, CaseMeasures], tuple[str, ...]]:
    """Return what maps score that know nothing of the network, and the heatmaps of networks that know nothing."""
    heatmap = scene.heatmap
    if not scene.volumes:
        return {}, ("Brightness, edges and centre were not compared with: they need the image.",)
    image = image_on(heatmap, scene.volumes[0])
    inside = ~np.isnan(heatmap.relevance)
    if scene.domain.mask is not None:
        inside &= lesion_on(heatmap, scene.domain.mask)
    spacing = heatmap.grid.spacing_mm
    maps = baseline_maps(image.voxels, inside, spacing_mm=spacing)
    maps["bright-spots"] = bright_spots(image.voxels, inside, spacing_mm=spacing, width_mm=_width_mm(scene))
    made = {name: replace(heatmap, relevance=values) for name, values in maps.items()} | dict(random)
    plain = replace(asked.settings, draws=_NO_CHANCE)
    return {name: _measured(scene, each, plain, scene.input_grid, entry) for name, each in made.items()}, ()


def _random(asked: Asked, scene: _Scene, model: Model | None) -> Randomness | None:
    """Return the heatmaps of networks with random weights, None without a network or where none are asked for."""
    if model is None or scene.ready is None or not asked.random_networks:
        return None
    from medcam.cohort.randomness import random_heatmaps

    return random_heatmaps(model, _as_seen(scene), asked)


def _width_mm(scene: _Scene) -> float:
    """Return how wide the spots are that the heatmap is compared with: half a cell, at least a 64th of the image."""
    shape, spacing = scene.heatmap.grid.shape, scene.heatmap.grid.spacing_mm
    least = max(n * mm for n, mm in zip(shape, spacing, strict=True)) / _SPOTS
    half = _cell_mm(scene) / 2
    return max(half, least) if half == half else least


def _as_seen(scene: _Scene) -> Any:
    from medcam.cohort.trying import Case

    domain = None if scene.domain.mask is None else lesion_on(scene.heatmap, scene.domain.mask)
    return Case(scene.volumes, scene.ready, scene.heatmap, scene.lesion, domain)


def _by_protocols(asked: Asked, scene: _Scene) -> tuple[dict[str, Any], tuple[str, ...]]:
    found: dict[str, Any] = {}
    notes = []
    for name in asked.protocols:
        try:
            found[name] = protocol(name).case(scene.heatmap.relevance, scene.lesion)
        except MedcamError as error:
            notes.append(f"The protocol {name} does not count this case: {error}.")
    return found, tuple(notes)


def _disagreements(entry: Entry, scene: _Scene) -> tuple[str, ...]:
    """Say where the table's truth and the mask contradict each other."""
    if entry.truth == 0 and scene.lesion.any():
        return ("The table says that there is no lesion, and the mask shows one.",)
    if entry.truth == 1 and not scene.lesion.any():
        return ("The table says that there is a lesion, and the mask is empty.",)
    return ()
