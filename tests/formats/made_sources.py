"""What overlays, reports, states and selections must all serve: a CT, an oblique MR, an enhanced MR, films, another grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from formats import derived_sources
from formats.derived_sources import COMPLETE, SHAPE, WHEN
from formats.derived_sources import enhanced as made_enhanced
from medcam.formats.exporting import Export
from medcam.recipe import Recipe
from medcam.volume import Heatmap, Volume

__all__ = ["COMPLETE", "RECIPE", "SHAPE", "SOURCES", "blob", "made_enhanced", "made_export", "made_film", "made_series"]

RECIPE = Recipe("net", "ab" * 32, "grad-cam", "features.3", "lesion (class 0)", inputs=("cd" * 32,))
SOURCES = ("a CT", "an oblique MR", "an enhanced MR", "a CR", "a DX", "another grid")


def source(folder: Path, name: str) -> Volume:
    """Return one of `SOURCES`, written below a folder."""
    if name == "a CR":
        return made_film(folder, "CR", PixelSpacing=["0.2", "0.3"])
    if name == "a DX":
        return made_film(folder, "DX", ("P", "F"), ImagerPixelSpacing=["0.14", "0.14"])
    return derived_sources.volume_of(name, folder)


def made_series(folder: Path, geometry: str = "oblique", **options: Any) -> Volume:
    """Write and read a series of single-frame images."""
    return derived_sources.series(folder, geometry, **options)


def made_film(folder: Path, modality: str, orientation: Sequence[str] | None = ("L", "F"), **tags: Any) -> Volume:
    """Write and read a film of a chest, if nothing else is said."""
    return derived_sources.film(folder, modality, {"BodyPartExamined": "CHEST", **tags}, orientation)


def blob(volume: Volume, at: Sequence[float], width_mm: float = 3.0) -> np.ndarray:
    """Return a Gaussian around a (fractional) index, with a negative rim."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in volume.grid.shape], indexing="ij"), -1)
    apart = np.linalg.norm(volume.grid.world_mm(index) - volume.grid.world_mm(np.array(at)), axis=-1)
    return (np.exp(-0.5 * (apart / width_mm) ** 2) - 0.05).astype(np.float32)


def heatmap(volume: Volume, relevance: np.ndarray | None = None, **changes: Any) -> Heatmap:
    """Return a heatmap of a volume: an off-centre blob if nothing else is given."""
    if relevance is None:
        relevance = blob(volume, [0.3 * n for n in volume.grid.shape])
    given = {"recipe": RECIPE, "target": RECIPE.target, "score": 2.5, "probability": 0.9, "notes": (), **changes}
    return Heatmap(relevance, volume.grid, volume.source, **given)


def made_export(volume: Volume, folder: Path, *, threshold: float = 0.3, **changes: Any) -> Export:
    """Return an export of a heatmap of a volume, at a fixed moment."""
    of_export = {name: changes.pop(name) for name in ("lesion", "measures", "formats") if name in changes}
    return Export(heatmap(volume, **changes), volume, folder, "out", threshold, WHEN, **of_export)
