"""What a node's worker does with a series: it reads, explains, and writes DICOM objects into a folder. It knows no queue."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medcam.errors import InputError
from medcam.workers.jobs import Place, Stages

if TYPE_CHECKING:
    from medcam.models import Model
    from medcam.volume import Heatmap, Volume

IMAGES, RESULTS = "images", "results"
WRITTEN, UNREADABLE, UNFIT = "written", "unreadable", "unfit"


@dataclass(frozen=True)
class Made:
    """What came of a series.

    Parameters
    ----------
    kind
        'written', 'unreadable' (more images may help), or 'unfit' (it is not for this network).
    words
        Why, or what was found.
    """

    kind: str
    words: str = ""


@dataclass(frozen=True)
class Explaining:
    """Loads the network in a worker. The fields are what `medcam explain` takes.

    Parameters
    ----------
    reading
        Options of `medcam.read`.
    how
        Options of `medcam.explain`.
    """

    model: str
    factory: str | None = None
    preprocessing: str | None = None
    trust_code: bool = False
    device: str = "cpu"
    reading: Mapping[str, Any] = field(default_factory=dict)
    how: Mapping[str, Any] = field(default_factory=dict)
    formats: str = "dicom-sc,dicom-seg"
    threshold: float = 0.5

    def __call__(self, place: Place) -> Stages:
        """Return what is done with each series."""
        from medcam.engine.methods import method_named
        from medcam.formats import WRITERS
        from medcam.models import load_model
        from medcam.options import chosen, listed

        # A slip ends the node at once, and not one series after the other.
        method_named(str(self.how.get("method", "grad-cam")))
        for each in listed(self.formats):
            chosen(each, WRITERS, kind="format")
        model = load_model(
            self.model, factory=self.factory, preprocessing=self.preprocessing, trust_code=self.trust_code, device=self.device, say=_tell
        )  # fmt: skip
        return Stages(self._read, lambda read: self._compute(model, read), self._write)

    def _read(self, folder: str) -> tuple[Path, Volume] | Made:
        from medcam.formats import check_formats, read

        place = Path(folder)
        try:
            volume = read(place / IMAGES, **self.reading)
        except InputError as error:
            return Made(UNREADABLE, str(error))
        check_formats(self.formats, volume, threshold=self.threshold)
        return place, volume

    def _compute(self, model: Model, read: tuple[Path, Volume] | Made) -> tuple[Path, Volume, Heatmap] | Made:
        if isinstance(read, Made):
            return read
        from medcam.pipeline import explain

        place, volume = read
        slices = volume.grid.shape[2]
        if model.spatial_dims is not None and (slices > 1) != (model.spatial_dims == 3):
            return Made(UNFIT, f"the network is {model.spatial_dims}D and the series has {slices} slices")
        return place, volume, explain(volume, model, device=self.device, **self.how)

    def _write(self, computed: tuple[Path, Volume, Heatmap] | Made) -> Made:
        if isinstance(computed, Made):
            return computed
        from medcam.formats import write

        place, volume, heatmap = computed
        files = write(heatmap, volume, place / RESULTS, formats=self.formats, threshold=self.threshold)
        return Made(WRITTEN, "" if files else "there was nothing to write")


def _tell(line: str) -> None:
    sys.stderr.write(f"medcam: {line}\n")
