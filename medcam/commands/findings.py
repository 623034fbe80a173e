"""What was found, in words and as values."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from medcam.commands import Result

if TYPE_CHECKING:
    from medcam.validate.measures import Measure
    from medcam.volume import Heatmap, Volume


def against(heatmap: Heatmap, lesion: Volume | None) -> dict[str, Measure]:
    """Return what stands beside one heatmap whose lesion is known, nothing where it is not."""
    from medcam.validate.brief import in_brief

    return {} if lesion is None else in_brief(heatmap, lesion)


def reported(measures: Mapping[str, Measure]) -> dict[str, object]:
    """Return measures as formats take them: by name a number and its unit."""
    return {name: (measure.value, measure.unit) for name, measure in measures.items()}


def explained(heatmap: Heatmap, measures: Mapping[str, Measure], files: tuple[Path, ...], threshold: float) -> Result:
    """Return what a heatmap says, and how it lies on the lesion."""
    from medcam.formats.nifti import sidecar_values

    values = sidecar_values(heatmap, threshold) | {"files": [str(f) for f in files]}
    sure = "" if heatmap.probability is None else f", probability {heatmap.probability:.3f}"
    lines = [f"target  {heatmap.target}: {heatmap.recipe.score} {heatmap.score:.3f}{sure}"]
    lines.append(f"method  {heatmap.recipe.method}{f', layer {heatmap.recipe.layer}' if heatmap.recipe.layer else ''}")
    lines.append(f"peak    {heatmap.peak_in_words()}")
    if measures:
        values["peak_in_lesion"] = _hit(measures["hit"].value)
        values["lesion"] = {
            name: measure.value if isfinite(measure.value) else None for name, measure in measures.items()
        }
        lines.append(f"        {_where(measures)}")
        if isfinite(mass := measures["mass_in_lesion"].value):
            lines.append(
                f"lesion  holds {100 * mass:.1f} % of the positive relevance, {_times(measures['mass_lift'].value)} times chance"
            )
    lines += [f"note    {note}" for note in heatmap.notes]
    lines += [f"wrote   {f}" for f in files]
    return Result(values, lines)


def _hit(expected: float) -> bool | None:
    return None if not isfinite(expected) else expected >= 0.5


def _times(lift: float) -> str:
    return f"{lift:,.0f}" if lift >= 100 else f"{lift:.2g}"


def _where(measures: Mapping[str, Measure]) -> str:
    """Say where the peak is to the lesion."""
    hit, far = measures["hit"].value, measures["peak_distance"]
    if not isfinite(hit):
        return "cannot be tested: no peak, or an empty mask"
    chance = f"(a point put anywhere would: {100 * measures['hit_by_chance'].value:.2g} %)"
    if hit == 1:
        return f"lies in the lesion {chance}"
    away = f", {far.value:.1f} {far.unit} from it" if isfinite(far.value) else ""
    if hit == 0:
        return f"does not lie in the lesion{away} {chance}"
    return f"lies in the lesion by {hit:.0%}: several voxels share the largest relevance {chance}"
