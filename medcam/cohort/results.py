"""What travels: a row of the table of cases, what came of it, and what all rows add up to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from medcam.recipe import Recipe
from medcam.validate.bootstrap import Interval, Resampling
from medcam.validate.lesions import Froc
from medcam.validate.measures import CaseMeasures, Measure, Settings
from medcam.validate.paired import Difference
from medcam.validate.sanity import Sanity
from medcam.validate.statistics import DesignEffect
from medcam.validate.verdict import Verdict

# How the map under test is called beside its baselines.
HEATMAP = "heatmap"
# Of the voxels that are removed, or put back, where curves are kept.
CURVE_SHARES = tuple(n / 20 for n in range(21))


@dataclass(frozen=True)
class Entry:
    """One row of the table of cases. Its repr names neither patient nor case, nor files that may be called like them.

    Parameters
    ----------
    line
        Of the table, from 1, its header being one: how errors name the row.
    case, patient
        Names that the table gives. Cases of one patient belong together in all statistics.
    target
        What is explained, or was: the table's `class`. '' leaves it to the model, or to the heatmap.
    images
        The image, or one for each channel of the network, the first being the reference. May be empty where there is a heatmap.
    heatmap
        A stored heatmap, or None if the model is to make it.
    mask
        The lesion's mask, boxes or points; None for a case without a lesion.
    label
        Which label of the mask is the lesion, by number or name; '' for all.
    organ
        A mask of where evidence may lie, or None.
    truth
        1 where the finding is present, 0 where it is not, None where the table does not say: then the mask does.
    series, volume
        Which of a folder's series, and of a file's volumes, is the image; '' and None for the only one.
    split
        A part of the patients, such as those that choices are made on; '' if the table names none.
    transform
        A file that puts the case into a space shared by all, or None.
    """

    line: int
    case: str = field(repr=False)
    patient: str = field(repr=False)
    target: str = ""
    images: tuple[Path, ...] = field(default=(), repr=False)
    heatmap: Path | None = field(default=None, repr=False)
    mask: Path | None = field(default=None, repr=False)
    label: str = ""
    organ: Path | None = field(default=None, repr=False)
    truth: int | None = None
    series: str = ""
    volume: int | None = None
    split: str = ""
    transform: Path | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Cascade:
    """How alike a case's heatmap stays while more and more of the network's weights are drawn anew, from the input on.

    Parameters
    ----------
    stages
        The first layer of each stage.
    similarity
        Of the heatmap with all up to and with this stage drawn anew to the learned one, both at the size of the sketch: SSIM, NaN where a
        map is blank.
    sketch
        The learned heatmap averaged over a few cells for each axis, so that cases can be compared with one another.
    """

    stages: tuple[str, ...]
    similarity: tuple[float, ...]
    sketch: Float32[np.ndarray, "x y z"] = field(repr=False)


@dataclass(frozen=True, eq=False)
class CaseResult:
    """What came of one case; one that failed is a value, too.

    Parameters
    ----------
    error
        Why there are no measures, in words for the user; '' if there are.
    measures
        Of the heatmap; None if the case failed.
    baselines
        By name ('centre', 'brightness', 'edges', 'random-weights-1', ...): the same measures of maps that know nothing of the network,
        or of networks that know nothing.
    trials
        Numbers about the network, by name: 'necessity@inpaint', 'sufficiency', 'deletion@blur', ...; NaN with a reason where undefined.
    curves
        By name ('deletion@blur', 'insertion@mean', and 'deletion of blobs@blur' of maps that know nothing): the score at `CURVE_SHARES` of
        the voxels.
    cascade
        None where no weights were drawn anew.
    protocols
        By protocol, what it needs of this case for its numbers of the cohort.
    verdict
        None only if the case failed.
    target, score, probability
        What the heatmap explains, as it says itself; the score is a logit unless the recipe says otherwise, the probability None where
        the network gives none.
    truth, decision
        1, 0 or None; 'TP', 'FN', 'FP', 'TN' or 'unknown'.
    recipe
        How the heatmap was made.
    notes
        What the reader of the numbers must know, in sentences.
    cell_mm
        The longest side of a cell of the heatmap's layer; NaN where it is not known.
    heatmap, page
        Files of this case: the heatmap (stored or given), and its page once one is written.
    seconds
        What it took.
    """

    entry: Entry
    error: str = ""
    measures: CaseMeasures | None = None
    baselines: Mapping[str, CaseMeasures] = field(default_factory=dict)
    trials: Mapping[str, Measure] = field(default_factory=dict)
    curves: Mapping[str, tuple[float, ...]] = field(default_factory=dict, repr=False)
    cascade: Cascade | None = field(default=None, repr=False)
    protocols: Mapping[str, Any] = field(default_factory=dict, repr=False)
    verdict: Verdict | None = None
    target: str = ""
    score: float = float("nan")
    probability: float | None = None
    truth: int | None = None
    decision: str = "unknown"
    recipe: Recipe | None = None
    notes: tuple[str, ...] = ()
    cell_mm: float = float("nan")
    heatmap: Path | None = field(default=None, repr=False)
    page: Path | None = field(default=None, repr=False)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether there are measures."""
        return self.measures is not None


@dataclass(frozen=True)
class SummaryRow:
    """One measure of one map over the cases of one stratum.

    Parameters
    ----------
    map
        'heatmap', or the name of a baseline.
    measure, unit
        As in `CaseMeasures.numbers`.
    stratum
        'all', or 'decision: TP', 'size: up to 1 mL', ...
    interval
        Its mean over cases, with patients drawn for the interval.
    effect
        How much wider the patients make it than cases alone would.
    oracle
        Whether it looks at the truth: an upper bound and no result.
    """

    map: str
    measure: str
    unit: str
    stratum: str
    interval: Interval
    effect: DesignEffect
    oracle: bool = False


@dataclass(frozen=True)
class Comparison:
    """The heatmap less a baseline, case by case.

    Parameters
    ----------
    p
        Two-sided, of Wilcoxon's signed-rank test on patients' means.
    holm
        The same, adjusted for the family: the primary measure against all baselines. NaN for all other measures, which explore.
    """

    measure: str
    unit: str
    baseline: str
    difference: Difference
    p: float
    holm: float


@dataclass(frozen=True)
class BoxAccuracy:
    """MaxBoxAcc and its second version over all cases. Their threshold is the best on these very cases: optimistic."""

    max_box_accuracy: float
    max_box_accuracy_v2: float


@dataclass(frozen=True, eq=False)
class Cohort:
    """All cases, and what they add up to.

    Parameters
    ----------
    cases
        In the table's order, failed ones among them.
    primary
        The one measure that was named before; all others explore.
    model, model_sha256, method
        What made the heatmaps, where all agree; else ''.
    froc, pooled, boxes
        By map ('heatmap' and baselines): the free-response curve, the average precision over all voxels of all cases, and box accuracy.
    protocols
        By protocol, how it counts the cohort.
    counts
        How many cases got which verdict, by kind.
    verdict
        Of the cohort; None if all cases failed.
    drawn_on, allow_gaps, regrid
        How the files were read, so that pages read them alike; see `Asked`.
    sanity
        Whether maps of random weights are less like the learned ones than those of other patients; None where no weights were drawn anew.
    notes
        What the reader must know, in sentences: failed cases, cases without a lesion, small numbers.
    """

    cases: tuple[CaseResult, ...]
    settings: Settings
    resampling: Resampling
    primary: str
    model: str = ""
    model_sha256: str = ""
    method: str = ""
    summary: tuple[SummaryRow, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    froc: Mapping[str, Froc] = field(default_factory=dict)
    pooled: Mapping[str, float] = field(default_factory=dict)
    boxes: Mapping[str, BoxAccuracy] = field(default_factory=dict)
    protocols: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    verdict: Verdict | None = None
    drawn_on: tuple[int, int] | None = None
    allow_gaps: bool = False
    regrid: bool = False
    sanity: Sanity | None = None
    notes: tuple[str, ...] = ()

    @property
    def done(self) -> tuple[CaseResult, ...]:
        """The cases that have measures."""
        return tuple(case for case in self.cases if case.ok)
