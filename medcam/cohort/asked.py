"""What is asked of every case of a cohort."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from medcam.errors import UsageError
from medcam.options import at_least, between, not_negative
from medcam.validate.measures import Settings
from medcam.validate.protocols import protocol
from medcam.validate.thresholds import (
    Threshold,
    best_overlap,
    fixed,
    fraction_of_maximum,
    half_maximum,
    otsu,
    top_share,
    volume_matched,
)

_THRESHOLDS = {"half-max": half_maximum, "otsu": otsu, "oracle-volume": volume_matched, "oracle-best": best_overlap}
_WITH_NUMBER = {"top": top_share, "max": fraction_of_maximum, "raw": fixed}


@dataclass(frozen=True)
class Asked:
    """What is asked of every case.

    Parameters
    ----------
    settings
        Of the measures.
    explaining
        What `medcam.explain` takes besides images and model, by its names; 'target' wins over the table's class.
    random_networks
        How many networks with weights drawn anew are explained beside the given one, 0 for none.
    random_stages
        In how many stages the weights of the first of them are drawn anew, each explained: a cascade from the input on.
    lesion_draws
        With how many healthy regions the lesion is compared, when it is removed from the image; 0 to remove nothing.
    faithfulness
        Whether deletion and insertion, ROAD, average drop and infidelity are tried, which takes some hundred passes a case.
    robustness
        Whether the image is tried with a little noise and as other scanners might take it, which takes about twenty explanations a case.
    protocols
        Published ways of counting that stand beside medcam's own.
    decision_threshold
        The probability from which the network decides for the finding.
    drawn_on
        The size of the picture in whose pixels boxes are given, where it is not the image's.
    allow_gaps, regrid
        Whether missing DICOM slices are filled by interpolation, and tilted or uneven ones put on an even grid.

    Raises
    ------
    UsageError
        If a number is out of range, or there is no such protocol.
    """

    settings: Settings = field(default_factory=Settings)
    explaining: Mapping[str, object] = field(default_factory=dict)
    random_networks: int = 2
    random_stages: int = 5
    lesion_draws: int = 20
    faithfulness: bool = False
    robustness: bool = False
    protocols: tuple[str, ...] = ()
    decision_threshold: float = 0.5
    drawn_on: tuple[int, int] | None = None
    allow_gaps: bool = False
    regrid: bool = False

    def __post_init__(self) -> None:
        not_negative("the number of random networks", self.random_networks)
        at_least("the number of stages in which weights are drawn anew", self.random_stages)
        not_negative("the number of healthy regions", self.lesion_draws)
        between("the probability from which the network decides", self.decision_threshold, 0, 1)
        for name in self.protocols:
            protocol(name)
        if self.drawn_on is not None:
            for side in self.drawn_on:
                at_least("a side of the picture that boxes were drawn on", side)
        if self.settings.draws < 1:
            raise UsageError("a verdict needs chance: at least one random place of the lesion")


def threshold_named(name: str) -> Threshold:
    """Return a threshold by the name that stands in its numbers: 'half-max', 'otsu', 'top-0.1', 'max-0.3', 'raw-0.2'.

    Raises
    ------
    UsageError
        If there is none of that name, or its number is out of range.
    """
    if name in _THRESHOLDS:
        return _THRESHOLDS[name]()
    kind, _, number = name.partition("-")
    try:
        return _WITH_NUMBER[kind](float(number))
    except (KeyError, ValueError):
        raise UsageError(
            f"a threshold is one of {', '.join(_THRESHOLDS)}, top-SHARE, max-FRACTION or raw-RELEVANCE, not '{name}'"
        ) from None
