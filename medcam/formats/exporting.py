"""What is written of one heatmap, and all that a format may draw on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from medcam.volume import Heatmap, Volume


@dataclass(frozen=True, eq=False)
class Export:
    """One heatmap, to be written in some formats.

    Parameters
    ----------
    volume
        The (first) image that was explained: overlays show it.
    folder, label
        Where files go, and how their names begin.
    threshold
        The fraction of the positive maximum from which a mask is set and pictures are coloured.
    when
        The moment that all files of this export name, with its time zone.
    lesion
        The lesion's mask, for formats that draw or hold it.
    measures
        What was measured of the heatmap against the lesion, by name, for formats that report.
    formats
        Every format of this export with all its options: objects of one export refer to each other.
    """

    heatmap: Heatmap
    volume: Volume
    folder: Path
    label: str
    threshold: float
    when: datetime
    lesion: Volume | None = None
    measures: Mapping[str, object] = field(default_factory=dict)
    formats: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def path(self, ending: str) -> Path:
        """Return the path of a file of this export, `label` and an ending such as '_sc.dcm'."""
        return self.folder / f"{self.label}{ending}"
