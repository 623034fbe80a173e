"""What was found, in words and as values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medcam.commands import Result

if TYPE_CHECKING:
    from medcam.volume import Heatmap, Volume


def explained(heatmap: Heatmap, lesion: Volume | None, files: tuple[Path, ...], threshold: float) -> Result:
    """Return what a heatmap says, and whether its peak lies in the lesion."""
    from medcam.formats.nifti import sidecar_values

    values = sidecar_values(heatmap, threshold) | {"files": [str(f) for f in files]}
    sure = "" if heatmap.probability is None else f", probability {heatmap.probability:.3f}"
    lines = [f"target  {heatmap.target}: {heatmap.recipe.score} {heatmap.score:.3f}{sure}"]
    lines.append(f"method  {heatmap.recipe.method}{f', layer {heatmap.recipe.layer}' if heatmap.recipe.layer else ''}")
    lines.append(f"peak    {heatmap.peak_in_words()}")
    if lesion is not None:
        from medcam.validate.localization import peak_in_lesion

        hit = peak_in_lesion(heatmap, lesion)
        values["peak_in_lesion"] = hit
        words = {
            True: "lies in the lesion",
            False: "does not lie in the lesion",
            None: "cannot be tested: no peak, or an empty mask",
        }
        lines.append(f"        {words[hit]}")
    lines += [f"note    {note}" for note in heatmap.notes]
    lines += [f"wrote   {f}" for f in files]
    return Result(values, lines)
