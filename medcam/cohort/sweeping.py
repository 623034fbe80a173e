"""One case explained by every method at every layer of every network, and measured: one pass of each network serves all."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medcam.cohort.reading import Truth, domain_of, image_on, read_images, truth_of
from medcam.cohort.results import Entry
from medcam.cohort.trying import prepared
from medcam.engine.methods import method_named
from medcam.errors import InputError, MedcamError, UsageError
from medcam.formats import read_mask
from medcam.geometry import Grid
from medcam.models import Model
from medcam.pipeline import Unplaced, answers
from medcam.trials.randomizing import with_random_weights
from medcam.validate.heatmaps import measure_heatmap
from medcam.validate.localization import lesion_on
from medcam.validate.measures import Measure, Settings
from medcam.validate.measuring import baseline_maps
from medcam.volume import Heatmap, Volume

if TYPE_CHECKING:
    from medcam.cohort.kept import Kept

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
    drawn_on, allow_gaps, regrid
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
    regrid: bool = False

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
class Plain:
    """What maps score in one case that know nothing of any network, by name; notes on the case; and whether not all heatmaps looked at the
    same part of it."""

    baselines: Mapping[str, Numbers]
    notes: tuple[str, ...]
    differing: bool


@dataclass(frozen=True, eq=False)
class Swept:
    """What came of one case: by configuration, and of maps that know nothing of any network. A case that failed says why."""

    entry: Entry
    answers: Mapping[Configuration, Answer] = field(default_factory=dict)
    baselines: Mapping[str, Numbers] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    error: str = ""
    seconds: float = 0.0
    done_before: bool = False


def random_networks(models: Mapping[str, Model], *, seed: int) -> tuple[dict[str, Model], tuple[str, ...]]:
    """Return each network with its weights drawn anew, and notes on those whose weights cannot be."""
    found, notes = {}, []
    for name, model in models.items():
        try:
            found[name] = replace(model, network=with_random_weights(model.network, seed=seed))
        except MedcamError as error:
            notes.append(f"{name} was not compared with random weights: {error}.")
    return found, tuple(notes)


def swept(entry: Entry, sweep: Sweep, *, kept: Kept | None = None) -> Swept:
    """Return what every configuration scores in one case; why, where none does.

    One heatmap is measured after the other, and let go.

    Parameters
    ----------
    kept
        Where each configuration's result is kept as soon as it is there, and taken from if it was done before.
    """
    start = time.perf_counter()
    try:
        found = _swept(entry, sweep, kept)
    except MedcamError as error:
        found = Swept(entry, error=str(error))
    except MemoryError:
        found = Swept(entry, error="it takes more memory than there is")
    return replace(found, seconds=time.perf_counter() - start)


def _swept(entry: Entry, sweep: Sweep, kept: Kept | None) -> Swept:
    before = None if kept is None else kept.whole(sweep.configurations)
    if before is not None:
        found, plain = before
        return Swept(entry, found, plain.baselines, _notes(found, plain), done_before=True)
    volumes = read_images(entry, allow_gaps=sweep.allow_gaps, regrid=sweep.regrid)
    if not volumes:
        raise InputError("it names no image, and methods are compared on images")
    maps, errors = _explained(sweep.models, volumes, entry, sweep)
    if not maps:
        raise InputError(next(iter(errors.values()), "no configuration gave a map"))
    targets = {c.model: _class_of(map_.found.target) for c, map_ in maps.items()}
    random, _ = _explained(sweep.random, volumes, entry, sweep, targets)
    ground = _Ground.of(entry, sweep, volumes, maps, random)
    found = {}
    for c in sweep.configurations:
        done = None if kept is None else kept.answer(c, ground.looked)
        found[c] = done or _answer(ground, maps.get(c), random.get(c), c, errors.get(c, ""))
        if kept is not None and done is None and not found[c].error:
            kept.keep(c, ground.looked, found[c])
    plain = Plain(ground.baselines(volumes[0]), ground.notes, ground.differing)
    if kept is not None:
        kept.keep(None, ground.looked, plain)
    return Swept(entry, found, plain.baselines, _notes(found, plain))


def _answer(ground: _Ground, map_: Unplaced | None, random: Unplaced | None, c: Configuration, error: str) -> Answer:
    if map_ is None:
        return Answer(error=error)
    numbers = ground.measured(map_.placed(), c.model)
    return Answer(numbers, {} if random is None else ground.measured(random.placed(), c.model), map_.found.target)


@dataclass(frozen=True, eq=False)
class _Ground:
    """What all maps of a case are measured on.

    Parameters
    ----------
    first
        The first heatmap.
    inside
        Where evidence may lie: what all maps looked at, in the organ or body.
    looked
        A digest of what the maps together looked at, since each is measured there alone; '' for everywhere.
    differing
        Whether not all looked at the same.
    """

    entry: Entry
    sweep: Sweep
    first: Heatmap
    truth: Truth
    inside: Volume | None
    grids: Mapping[str, Grid]
    notes: tuple[str, ...]
    looked: str
    differing: bool

    @staticmethod
    def of(
        entry: Entry, sweep: Sweep, volumes: Sequence[Volume], maps: Mapping[Configuration, Unplaced],
        random: Mapping[Configuration, Unplaced],
    ) -> _Ground:  # fmt: skip
        """Read the lesion and find where evidence may lie, by a look at each map in turn."""
        first = next(iter(maps.values())).placed()
        truth = truth_of(entry, volumes[0], drawn_on=sweep.drawn_on)
        organ = None if entry.organ is None else read_mask(entry.organ, like=volumes[0])
        domain = domain_of(first, volumes[0], organ, truth)
        unseen = np.isnan(first.relevance)
        every, differing = unseen, False
        for each in (*list(maps.values())[1:], *random.values()):
            own = np.isnan(each.placed().relevance)
            differing |= bool((own != unseen).any())
            every = every | own
        inside, looked = domain.mask, ""
        if every.any():
            looked = hashlib.sha256(np.packbits(every).tobytes()).hexdigest()
            seen = ~every if inside is None else ~every & lesion_on(first, inside)
            inside = Volume(seen.astype(np.uint8), first.grid, "label", first.source)
        grids = {name: prepared(model, volumes).grid for name, model in sweep.models.items()}
        return _Ground(entry, sweep, first, truth, inside, grids, domain.notes, looked, differing)

    def measured(self, map_: Heatmap, model: str) -> Numbers:
        """Return what a map scores; '' for the model if it is none's."""
        return measure_heatmap(
            map_, self.truth.mask, organ=self.inside, input_grid=self.grids.get(model), boxes=self.truth.boxes,
            settings=self.sweep.settings, case=self.entry.case, patient=self.entry.patient,
        ).numbers  # fmt: skip

    def baselines(self, image: Volume) -> dict[str, Numbers]:
        """Return what maps score that know nothing of any network."""
        seen = np.ones(self.first.grid.shape, bool) if self.inside is None else lesion_on(self.first, self.inside)
        plain = baseline_maps(image_on(self.first, image).voxels, seen, spacing_mm=self.first.grid.spacing_mm)
        return {name: self.measured(replace(self.first, relevance=values), "") for name, values in plain.items()}


def _explained(
    models: Mapping[str, Model],
    volumes: Sequence[Volume],
    entry: Entry,
    sweep: Sweep,
    targets: Mapping[str, object] | None = None,
) -> tuple[dict[Configuration, Unplaced], dict[Configuration, str]]:
    """Return the answer of each configuration, and why others have none."""
    maps: dict[Configuration, Unplaced] = {}
    errors: dict[Configuration, str] = {}
    layers = sweep.by_model()
    for name, model in models.items():
        given = sweep.explaining.get("target") or entry.target or (targets or {}).get(name)
        how: dict[str, Any] = {**sweep.explaining, "target": given}
        own = [c for c in sweep.configurations if c.model == name]
        try:
            found = answers(volumes, model, methods=sweep.methods, layers=layers[name], **how)
            maps |= dict(zip(own, found, strict=True))
        except MedcamError:
            # One that fails is told apart from the others, which are made one by one.
            for each in own:
                layer = None if each.place < 0 else layers[name][each.place]
                try:
                    maps[each] = answers(volumes, model, methods=[each.method], layers=[layer], **how)[0]
                except MedcamError as error:
                    errors[each] = str(error)
    return maps, errors


def _class_of(target: str) -> int | None:
    """Return the class that a heatmap explains, which another network must be asked for too."""
    words = re.search(r"class (\d+)\)?", target)
    return int(words[1]) if words else None


def _notes(answers: Mapping[Configuration, Answer], plain: Plain) -> tuple[str, ...]:
    """Say where not all explain the same class, or looked at the same part of the image."""
    words = list(dict.fromkeys(answer.target for answer in answers.values() if not answer.error))
    notes = list(plain.notes)
    if len({_class_of(target) for target in words}) > 1:
        notes.insert(
            0,
            f"The models explain different classes here ({', '.join(words)}); name one with --target or in the table.",
        )
    if plain.differing:
        notes.append("Not all maps looked at the same part of the image; only what all looked at counts.")
    return tuple(notes)
