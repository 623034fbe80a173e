"""Heatmaps of networks that know nothing, since their weights were drawn anew: all at once, and stage by stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from medcam.cohort.asked import Asked
from medcam.cohort.results import Cascade
from medcam.cohort.sketches import likeness, sketch
from medcam.cohort.trying import Case, as_input
from medcam.errors import MedcamError
from medcam.models import Model
from medcam.pipeline import explain
from medcam.trials.randomizing import randomized, stages
from medcam.volume import Heatmap


@dataclass(frozen=True, eq=False)
class Randomness:
    """Heatmaps of networks whose weights were all drawn anew, by name; the cascade of the first; notes on what could not be made."""

    heatmaps: Mapping[str, Heatmap] = field(default_factory=dict)
    cascade: Cascade | None = None
    notes: tuple[str, ...] = ()


def random_heatmaps(model: Model, case: Case, asked: Asked) -> Randomness:
    """Return heatmaps of `asked.random_networks` networks without knowledge; on the way to the first, how alike the map stays."""
    made: dict[str, Heatmap] = {}
    names: list[str] = []
    alike: list[float] = []
    how: dict[str, Any] = {**asked.explaining, "target": asked.explaining.get("target") or case.target}
    learned = sketch(case.heatmap)
    try:
        for seed in range(1, asked.random_networks + 1):
            parts = stages(model.network, as_input(model, case), most=asked.random_stages if seed == 1 else 1)
            for stage, network in randomized(model.network, parts, order="bottom-up", seed=seed):
                heatmap = explain(case.volumes, replace(model, network=network), **how)
                if seed == 1:
                    names.append(stage.name)
                    alike.append(likeness(learned, sketch(heatmap)))
            made[f"random-weights-{seed}"] = heatmap
    except MedcamError as error:
        return Randomness(made, notes=(f"There is no heatmap of random weights (seed {seed}): {error}.",))
    return Randomness(made, Cascade(tuple(names), tuple(alike), learned))
