"""What is asked of a case, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from medcam.errors import UsageError
from medcam.validate.boxes import BoxCurve
from medcam.validate.lesions import Findings
from medcam.validate.pooled import Histogram
from medcam.validate.thresholds import DECLARED, Curve, Threshold


@dataclass(frozen=True)
class Settings:
    """What is asked of each case of a cohort; recorded with the numbers.

    Parameters
    ----------
    thresholds
        Where the map is cut. Findings, and what counts lesions, are those of the first.
    tolerances_mm
        Distances for hits near the lesion and for the surface Dice.
    peaks, peak_radius_mm
        How many of the highest peaks count, none within a radius of a higher one.
    least_lesion
        Pieces of the mask smaller than this (mL, or cm² of a film) are no lesions of their own; their voxels count in the overlap.
    draws, seed
        Random places of the lesion for chance, 0 for none.

    Raises
    ------
    UsageError
        If there is no threshold, two have one name, no peak counts, or a distance, size or count lies below 0.
    """

    thresholds: tuple[Threshold, ...] = DECLARED
    tolerances_mm: tuple[float, ...] = (5.0, 10.0, 15.0)
    peaks: int = 3
    peak_radius_mm: float = 10.0
    least_lesion: float = 0.0
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        names = [threshold.name for threshold in self.thresholds]
        if not names or len(set(names)) < len(names):
            raise UsageError(f"thresholds are one or more of different names, not {', '.join(names) or 'none'}")
        if self.peaks < 1 or self.peak_radius_mm < 0 or self.least_lesion < 0 or self.draws < 0:
            raise UsageError("at least one peak counts, and no radius, size or number of draws lies below 0")
        if not all(tolerance > 0 for tolerance in self.tolerances_mm):
            raise UsageError(
                f"tolerances are distances above 0 mm, not {', '.join(f'{t:g}' for t in self.tolerances_mm)}"
            )


@dataclass(frozen=True)
class Measure:
    """A number with its unit ('' for shares), why it is NaN, and whether it looks at the truth ('oracle': an upper bound, no result)."""

    value: float
    unit: str = ""
    why: str = ""
    oracle: bool = False


@dataclass(frozen=True, eq=False)
class LesionRow:
    """One lesion: its size and place, and whether the map finds it.

    Parameters
    ----------
    size, centre_voxel
        In mL (cm² of a film; NaN where pixels have no known size), and its centre of mass as a fractional index.
    peak_hit
        The chance that one of the highest peaks lies in it.
    touched, covered
        Whether a finding shares a voxel with it, and which share of it all findings cover.
    score
        The largest raw relevance of a finding that touches it; minus infinity without one.
    centre_distance_mm
        How far the finding matched to it lies from it, centre to centre, in pixels where they have no known size; NaN where it got none.
    """

    size: float
    centre_voxel: tuple[float, float, float]
    peak_hit: float
    touched: bool
    covered: float
    score: float
    centre_distance_mm: float


@dataclass(frozen=True, eq=False)
class CaseMeasures:
    """What one case scores, and what a cohort makes its own numbers of.

    Parameters
    ----------
    numbers
        By name, such as 'hit_within_5mm' ('hit_within_5px' where pixels have no known size) or 'dice@otsu': `NAME@THRESHOLD`; chance beside
        it as `NAME_uniform` (a map that is the same everywhere), `NAME_moved`, `NAME_p` and `NAME_z` (the lesion elsewhere).
    lesions
        One row a lesion.
    findings, boxes, histogram, curve
        For FROC, MaxBoxAcc, pooled average precision, and tuning a threshold for other cases.
    """

    numbers: Mapping[str, Measure]
    lesions: tuple[LesionRow, ...]
    findings: Findings
    boxes: BoxCurve
    histogram: Histogram
    curve: Curve = field(repr=False)

    def flat(self) -> dict[str, float]:
        """Return the values by name, a row of a table; NaN for what is undefined."""
        return {name: measure.value for name, measure in self.numbers.items()}
