"""One case explained by every method at every layer of every network, and measured: one pass of each network serves all."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from medcam.cohort.reading import domain_of, image_on, read_images, truth_of
from medcam.cohort.results import Entry
from medcam.cohort.trying import prepared
from medcam.engine.methods import method_named
from medcam.errors import InputError, MedcamError, UsageError
from medcam.formats import read_mask
from medcam.models import Model
from medcam.pipeline import explain_all
from medcam.trials.randomizing import with_random_weights
from medcam.validate.heatmaps import measure_heatmap
from medcam.validate.localization import lesion_on
from medcam.validate.measures import Measure, Settings
from medcam.validate.measuring import baseline_maps
from medcam.volume import Heatmap, Volume

Numbers = Mapping[str, Measure]
DEFAULT_LAYER = "default"
# How a network with its weights drawn anew is called among the baselines.
RANDOM = "random-weights"


@dataclass(frozen=True)
class Configuration:
    """What makes a heatmap.

    Parameters
    ----------
    layer
        Its name, 'default', or '' for a method that looks at the input alone.
    place
        Which of the layers that were asked for it is, from 0; -1 for none. The same place in two networks is one level of the factor layer.
    """

    model: str
    method: str
    layer: str
    place: int

    @property
    def name(self) -> str:
        """In words, as tables have it."""
        at = f" at {self.layer}" if self.layer else ""
        return f"{self.method}{at} of {self.model}"


@dataclass(frozen=True, eq=False)
class Sweep:
    """What is compared, and how.

    Parameters
    ----------
    models
        By name, in the order of `layers`.
    layers
        For each model the names of its layers, None for its default.
    explaining
        What `explain_all` takes besides, by its names; 'target' wins over the table's class.
    random
        By model, the same network with its weights drawn anew; where none, it is not compared with.
    drawn_on, allow_gaps
        See `medcam.cohort.asked.Asked`.

    Raises
    ------
    UsageError
        If nothing is compared, or something twice, or a method does not exist.
    """

    models: Mapping[str, Model]
    methods: tuple[str, ...]
    layers: tuple[tuple[str | None, ...], ...]
    settings: Settings = field(default_factory=lambda: Settings(draws=0))
    explaining: Mapping[str, object] = field(default_factory=dict)
    random: Mapping[str, Model] = field(default_factory=dict)
    drawn_on: tuple[int, int] | None = None
    allow_gaps: bool = False

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.models):
            raise UsageError(f"{len(self.layers)} lists of layers were given for {len(self.models)} models")
        for what, names in {"method": self.methods, **{f"layer of {m}": n for m, n in self.by_model().items()}}.items():
            if not names or len(set(names)) < len(names):
                raise UsageError(f"a comparison takes each {what} once, not {', '.join(map(str, names)) or 'none'}")
        if len(self.configurations) < 2:
            raise UsageError("a comparison takes at least two configurations; name more methods, layers or models")

    def by_model(self) -> dict[str, tuple[str | None, ...]]:
        """Return the layers of each model."""
        return dict(zip(self.models, self.layers, strict=True))

    @property
    def configurations(self) -> tuple[Configuration, ...]:
        """All that is compared, in the order in which `explain_all` answers, model by model."""
        found = []
        for model, layers in self.by_model().items():
            for method in self.methods:
                if method_named(method).looks_at_layer:
                    named = [layer or DEFAULT_LAYER for layer in layers]
                    found += [Configuration(model, method, layer, n) for n, layer in enumerate(named)]
                else:
                    found.append(Configuration(model, method, "", -1))
        return tuple(found)


@dataclass(frozen=True, eq=False)
class Answer:
    """What came of one configuration in one case.

    Parameters
    ----------
    numbers
        By name; empty if it failed.
    random
        Of the same configuration of the network with random weights; empty where there is none.
    target
        What it explains, in words.
    error
        Why there are no numbers; '' if there are.
    """

    numbers: Numbers = field(default_factory=dict)
    random: Numbers = field(default_factory=dict)
    target: str = ""
    error: str = ""


@dataclass(frozen=True, eq=False)
class Swept:
    """What came of one case: by configuration, and of maps that know nothing of any network. A case that failed says why."""

    entry: Entry
    answers: Mapping[Configuration, Answer] = field(default_factory=dict)
    baselines: Mapping[str, Numbers] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    error: str = ""
    seconds: float = 0.0


def random_networks(models: Mapping[str, Model], *, seed: int) -> tuple[dict[str, Model], tuple[str, ...]]:
    """Return each network with its weights drawn anew, and notes on those whose weights cannot be."""
    found, notes = {}, []
    for name, model in models.items():
        try:
            found[name] = replace(model, network=with_random_weights(model.network, seed=seed))
        except MedcamError as error:
            notes.append(f"{name} was not compared with random weights: {error}.")
    return found, tuple(notes)


def swept(entry: Entry, sweep: Sweep) -> Swept:
    """Return what every configuration scores in one case; why, where none does."""
    start = time.perf_counter()
    try:
        found = _swept(entry, sweep)
    except MedcamError as error:
        found = Swept(entry, error=str(error))
    except MemoryError:
        found = Swept(entry, error="it takes more memory than there is")
    return replace(found, seconds=time.perf_counter() - start)


def _swept(entry: Entry, sweep: Sweep) -> Swept:
    volumes = read_images(entry, allow_gaps=sweep.allow_gaps)
    if not volumes:
        raise InputError("it names no image, and methods are compared on images")
    maps, errors = _explained(sweep.models, volumes, entry, sweep)
    if not maps:
        raise InputError(next(iter(errors.values()), "no configuration gave a map"))
    targets = {c.model: _class_of(heatmap) for c, heatmap in maps.items()}
    random, _ = _explained(sweep.random, volumes, entry, sweep, targets)
    first = next(iter(maps.values()))
    truth = truth_of(entry, volumes[0], drawn_on=sweep.drawn_on)
    organ = None if entry.organ is None else read_mask(entry.organ, like=volumes[0])
    domain = domain_of(first, volumes[0], organ, truth)
    inside, notes = _common(first, domain.mask, [*maps.values(), *random.values()])
    grids = {name: prepared(model, volumes).grid for name, model in sweep.models.items()}

    def measured(map_: Heatmap, model: str) -> Numbers:
        return measure_heatmap(
            map_, truth.mask, organ=inside, input_grid=grids.get(model), boxes=truth.boxes, settings=sweep.settings,
            case=entry.case, patient=entry.patient,
        ).numbers  # fmt: skip

    answers = {
        c: Answer(measured(maps[c], c.model), measured(random[c], c.model) if c in random else {}, maps[c].target)
        if c in maps
        else Answer(error=errors.get(c, ""))
        for c in sweep.configurations
    }
    image = image_on(first, volumes[0])
    seen = np.ones(first.grid.shape, bool) if inside is None else lesion_on(first, inside)
    plain = baseline_maps(image.voxels, seen, spacing_mm=first.grid.spacing_mm)
    baselines = {name: measured(replace(first, relevance=values), "") for name, values in plain.items()}
    return Swept(entry, answers, baselines, (*_targets(maps), *domain.notes, *notes))


def _explained(
    models: Mapping[str, Model],
    volumes: Sequence[Volume],
    entry: Entry,
    sweep: Sweep,
    targets: Mapping[str, object] | None = None,
) -> tuple[dict[Configuration, Heatmap], dict[Configuration, str]]:
    """Return the heatmap of each configuration, and why others have none."""
    maps: dict[Configuration, Heatmap] = {}
    errors: dict[Configuration, str] = {}
    layers = sweep.by_model()
    for name, model in models.items():
        given = sweep.explaining.get("target") or entry.target or (targets or {}).get(name)
        how: dict[str, Any] = {**sweep.explaining, "target": given}
        own = [c for c in sweep.configurations if c.model == name]
        try:
            found = explain_all(volumes, model, methods=sweep.methods, layers=layers[name], **how)
            maps |= dict(zip(own, found, strict=True))
        except MedcamError:
            # One that fails is told apart from the others, which are made one by one.
            for each in own:
                layer = None if each.place < 0 else layers[name][each.place]
                try:
                    maps[each] = explain_all(volumes, model, methods=[each.method], layers=[layer], **how)[0]
                except MedcamError as error:
                    errors[each] = str(error)
    return maps, errors


def _class_of(heatmap: Heatmap) -> int | None:
    """Return the class that a heatmap explains, which another network must be asked for too."""
    words = re.search(r"class (\d+)\)?", heatmap.target)
    return int(words[1]) if words else None


def _common(first: Heatmap, organ: Volume | None, maps: Sequence[Heatmap]) -> tuple[Volume | None, tuple[str, ...]]:
    """Return where evidence may lie, which must be the same for all maps, and a note where that leaves something out."""
    unseen = [np.isnan(each.relevance) for each in maps]
    everywhere: np.ndarray = ~np.logical_or.reduce(unseen)
    if everywhere.all():
        return organ, ()
    notes: tuple[str, ...] = ()
    if any((each != unseen[0]).any() for each in unseen):
        notes = ("Not all maps looked at the same part of the image; only what all looked at counts.",)
    if organ is not None:
        everywhere = everywhere & lesion_on(first, organ)
    return Volume(everywhere.astype(np.uint8), first.grid, "label", first.source), notes


def _targets(maps: Mapping[Configuration, Heatmap]) -> tuple[str, ...]:
    """Say where not all explain the same class."""
    words = list(dict.fromkeys(heatmap.target for heatmap in maps.values()))
    if len({_class_of(heatmap) for heatmap in maps.values()}) < 2:
        return ()
    return (f"The models explain different classes here ({', '.join(words)}); name one with --target or in the table.",)
