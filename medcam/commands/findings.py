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
    lines.append(f"peak    {describe_peak(heatmap)}")
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


def describe_peak(heatmap: Heatmap) -> str:
    """Say where the peak is, in millimetres where the source knows them, towards patient directions where it knows those."""
    peak = heatmap.peak()
    if peak is None:
        return "none: nothing speaks for the target"
    voxel = f"voxel {', '.join(map(str, peak.voxel))}"
    if not heatmap.source.spaced:
        return f"{voxel} (the image does not say how large a pixel is)"
    if not heatmap.source.placed:
        i, j, k = (n * mm for n, mm in zip(peak.voxel, heatmap.grid.spacing_mm, strict=True))
        deep = f", {k:.1f} deep" if heatmap.grid.shape[2] > 1 else ""
        return f"{i:.1f} mm right and {j:.1f} mm down{deep} of the image's first voxel, {voxel}"
    x, y, z = peak.world_mm
    words = f"{abs(x):.1f} {'R' if x >= 0 else 'L'}, {abs(y):.1f} {'A' if y >= 0 else 'P'}, {abs(z):.1f} {'S' if z >= 0 else 'I'} mm"
    return f"{words} (RAS {x:.1f}, {y:.1f}, {z:.1f}), {voxel}"
