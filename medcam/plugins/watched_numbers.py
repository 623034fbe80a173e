"""What is measured of a map at each look: where its peak is, how much of it lies in the lesion, how like the look before it is."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from medcam.errors import InputError
from medcam.plugins.watched_maps import Maps
from medcam.plugins.watched_scene import Scene
from medcam.validate.similarity import scaled, spearman, ssim
from medcam.whole_file import whole_file

TABLE = "numbers.csv"


@dataclass(frozen=True)
class Numbers:
    """One image's map at one step; NaN, and an empty cell of the table, where a number is not defined.

    Parameters
    ----------
    step, image
        When, and which.
    target, score, probability
        What was explained, and what the network said of it.
    maximum
        The largest relevance. It does not compare between methods, and grows as the network learns.
    peak
        The indices of the hottest voxel, 'i j k' or 'i j'; '' where nothing speaks for the target.
    peak_x_mm, peak_y_mm, peak_z_mm
        The same in RAS+ mm, where the image's affine is known.
    in_lesion
        The share of the positive relevance that lies in the lesion, 0 to 1.
    lesion_share
        The share of the image that is lesion: what `in_lesion` of a map that is the same everywhere would be.
    peak_in_lesion
        1 if the peak lies in the lesion, else 0.
    before
        The step of the look that the next three compare with, or -1: only maps of one image, class and layer compare.
    rank_correlation, ssim
        With the map before, on the cells of the layer: Spearman's, and the structural similarity of both maps scaled to 0..1. At 1 nothing
        changes any more, which says that the map has settled, not that it is right.
    moved
        How far the peak is from where it was: mm where the affine is known, else voxels.
    """

    step: int
    image: str
    target: str
    score: float
    probability: float
    maximum: float
    peak: str
    peak_x_mm: float
    peak_y_mm: float
    peak_z_mm: float
    in_lesion: float
    lesion_share: float
    peak_in_lesion: float
    before: int
    rank_correlation: float
    ssim: float
    moved: float


def measured(now: Maps, before: Maps | None, n: int, scene: Scene) -> Numbers:
    """Measure the map of image n."""
    found, values = now.relevance, now.on_input()[n]
    peak = peak_of(values)
    nan = float("nan")
    x, y, z = (nan, nan, nan) if peak is None or not scene.placed else scene.world_mm(peak)
    inside, share, hit = _against(values, scene, peak)
    compared = before if before is not None and now.compares(before, n) else None
    alike, structure, moved = nan, nan, nan
    if compared is not None:
        cells, earlier = now.cells(n), compared.cells(n)
        alike = spearman(cells, earlier)
        structure = ssim(scaled(cells), scaled(earlier), data_range=1.0)
        moved = scene.distance(peak, peak_of(compared.on_input()[n]))
    probability = nan if found.probabilities is None else float(found.probabilities[n])
    target = f"class {found.classes[n]}" if found.classes and len(set(found.classes)) > 1 else found.target
    return Numbers(
        now.step, scene.name, target, float(found.scores[n]), probability, maximum_of(values),
        "" if peak is None else " ".join(map(str, peak)), x, y, z, inside, share, hit,
        -1 if compared is None else compared.step, alike, structure, moved,
    )  # fmt: skip


def maximum_of(values: Float32[np.ndarray, "*s"]) -> float:
    """Return the largest relevance, or NaN where there is no number."""
    seen = values[np.isfinite(values)]
    return float(seen.max()) if seen.size else float("nan")


def peak_of(values: Float32[np.ndarray, "*s"]) -> tuple[int, ...] | None:
    """Return the hottest voxel, the first of several, or None where no relevance is positive."""
    if not maximum_of(values) > 0:
        return None
    flat = int(np.argmax(np.where(np.isfinite(values), values, -np.inf)))
    return tuple(int(i) for i in np.unravel_index(flat, values.shape))


def _against(
    values: Float32[np.ndarray, "*s"], scene: Scene, peak: tuple[int, ...] | None
) -> tuple[float, float, float]:
    """Return the share of positive relevance in the lesion, the lesion's share of the image, and whether the peak hits it."""
    nan = float("nan")
    if scene.lesion is None or not scene.lesion.any():
        return nan, nan, nan
    positive = np.where(np.isfinite(values), np.maximum(values, 0), 0).astype(np.float64)
    total = positive.sum()
    inside = float(positive[scene.lesion].sum() / total) if total > 0 else nan
    return inside, float(scene.lesion.mean()), nan if peak is None else float(scene.lesion[peak])


def write_numbers(numbers: tuple[Numbers, ...], folder: Path) -> None:
    """Add a look to the table; rows of its own step and of later ones, which a run that was set back left, go.

    Raises
    ------
    InputError
        If the table that is there is not one of these.
    OutputError
        If it cannot be written.
    """
    heads = [field.name for field in fields(Numbers)]
    path, kept = folder / TABLE, list[dict[str, str]]()
    if path.exists():
        with path.open(newline="", encoding="utf-8") as table:
            reader = csv.DictReader(table)
            if reader.fieldnames != heads:
                raise InputError(
                    f"{TABLE} in {folder} has other columns than this medcam writes; give each run a folder of its own"
                )
            kept = [row for row in reader if int(row["step"]) < numbers[0].step]
    text = io.StringIO()
    writer = csv.DictWriter(text, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows(kept)
    writer.writerows({name: _cell(value) for name, value in asdict(each).items()} for each in numbers)
    with whole_file(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value
