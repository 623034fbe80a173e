"""The numbers of a cohort as people read them: which come first, what they are called, and what stands beside each."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from medcam.cohort.results import HEATMAP, CaseResult, Cohort, Comparison, SummaryRow
from medcam.validate.bootstrap import Interval
from medcam.validate.statistics import design_effect, mean

ALL = "all"
_NAN = float("nan")
_WORDS = {
    "hit": "peak in the lesion",
    "peak_distance": "peak to lesion",
    "mass_in_lesion": "relevance in the lesion",
    "mass_lift": "relevance in the lesion, times chance",
    "rank_accuracy": "rank accuracy",
    "average_precision": "average precision",
    "average_precision_lift": "average precision, times chance",
    "auroc": "voxel AUROC",
    "soft_centre_distance": "centre to centre, by relevance",
    "dice": "Dice",
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "selected_size": "size of what is selected",
    "selected_share": "share that is selected",
    "centre_distance": "centre to centre",
    "matched_centre_distance": "centre to centre, piece by piece",
    "hausdorff": "Hausdorff distance",
    "hausdorff_95": "Hausdorff distance, 95 %",
    "surface_distance": "mean surface distance",
    "surface_dice": "surface Dice",
    "lesion_recall": "lesions found",
    "lesion_recall_peak": "lesions with a finding's peak",
    "lesion_recall_covered_0.5": "lesions half covered",
    "lesion_recall_iou_0.1": "lesions found at IoU 0.1",
    "lesion_precision": "findings on a lesion",
    "false_findings": "false findings a case",
    "lesion_size": "lesion size",
    "prevalence": "lesion's share of the domain",
    "road": "ROAD: least less most relevant replaced",
    "road_gain": "ROAD, better than random blobs by",
    "infidelity": "infidelity: share of changes not foretold",
    "average_drop": "average drop, of the probability",
    "average_gain": "average gain, of the probability",
    "share_shown": "share of the image that the map shows",
    "sensitivity": "largest change of the map under noise",
    "retest_ssim": "image taken again: map's likeness, SSIM",
    "retest_shift": "image taken again: shift of the map's centre",
    "retest_score_change": "image taken again: change of the score",
    "deletion": "deletion: area under the score",
    "insertion": "insertion: area under the score",
    "deletion_gain": "deletion, better than random blobs by",
    "insertion_gain": "insertion, better than random blobs by",
    "lesion_necessity": "score lost without the lesion",
    "lesion_excess": "the same, less what healthy regions cost",
    "lesion_span": "score lost without the body",
    "lesion_share": "share of the score that hangs on the lesion",
    "lesion_p": "healthy regions that matter as much",
    "lesion_sufficiency": "share of the score kept by the lesion alone",
    "score_without_body": "score without the body",
    "average_precision_of_ceiling": "average precision, of what the layer's cells allow",
    "ceiling_average_precision": "average precision that the layer's cells allow",
    "max_relevance": "largest relevance",
}
# Measures that a reader looks for first, by how their names begin; the others follow in the table.
_FIRST = (
    "hit", "mass_in_lesion", "average_precision", "rank_accuracy", "dice", "iou", "surface_dice", "lesion_recall_peak",
    "lesion_recall", "lesion_precision", "peak_distance", "soft_centre_distance", "matched_centre_distance", "hausdorff_95",
    "false_findings", "selected_size",
)  # fmt: skip
# Of these, what stands behind the @ is no threshold but what took the place of voxels.
_TRIALS = (
    "deletion",
    "insertion",
    "deletion_gain",
    "insertion_gain",
    "lesion_necessity",
    "lesion_excess",
    "lesion_span",
    "lesion_share",
    "lesion_p",
    "retest_ssim",
    "retest_shift",
    "retest_score_change",
)
_HEADLINE = (
    "mass_in_lesion", "average_precision", "dice", "peak_distance", "soft_centre_distance", "false_findings",
)  # fmt: skip
_CHANCE = ("_moved", "_uniform")
_BESIDE = (*_CHANCE, "_p", "_z")
# As names have them, and as they are said.
_LENGTHS = {"mm": "mm", "px": "pixels"}
# Where a smaller number is the better one.
_SMALL_IS_GOOD = ("distance", "hausdorff", "false_findings", "selected_size", "deletion")


@dataclass(frozen=True)
class Line:
    """One measure of one map over a stratum, and what stands beside it.

    Parameters
    ----------
    row
        The measure's mean with its interval.
    chance, chance_is
        The same measure of the lesion at random other places, or of a map that is the same everywhere; NaN and '' where neither is known.
    against
        The heatmap less this baseline; None for the heatmap itself, and where they were not compared.
    """

    row: SummaryRow
    chance: float = _NAN
    chance_is: str = ""
    against: Comparison | None = None

    @property
    def name(self) -> str:
        """The measure in words, an oracle said to be one."""
        return words_of(self.row.measure) + (" (oracle: an upper bound)" if self.row.oracle else "")


def lines(cohort: Cohort, stratum: str = ALL) -> tuple[Line, ...]:
    """Return the lines of a stratum: the primary measure first, then those that readers look for; the heatmap before its baselines."""
    rows = [row for row in cohort.summary if row.stratum == stratum]
    values = {(row.map, row.measure): row.interval.value for row in rows}
    apart = {(one.measure, one.baseline): one for one in cohort.comparisons}
    found = []
    for row in rows:
        if row.measure.endswith(_BESIDE):
            continue
        chance, what = _NAN, ""
        for ending in _CHANCE:
            value = values.get((row.map, row.measure + ending), _NAN)
            if math.isnan(chance) and not math.isnan(value):
                chance, what = value, "lesion elsewhere" if ending == "_moved" else "uniform map"
        against = apart.get((row.measure, row.map)) if stratum == ALL else None
        found.append(Line(row, chance, what, against))
    order = {name: n for n, name in enumerate(dict.fromkeys(line.row.measure for line in found))}
    return tuple(sorted(found, key=lambda line: _place(cohort, line, order)))


def _place(cohort: Cohort, line: Line, order: dict[str, int]) -> tuple[int, int, int]:
    measure = line.row.measure
    first = [n for n, name in enumerate(_FIRST) if _base(measure) == name]
    rank = -1 if measure == cohort.primary else first[0] if first and not line.row.oracle else len(_FIRST)
    return rank, order[measure], int(line.row.map != HEATMAP)


def main_measures(found: Sequence[Line]) -> tuple[str, ...]:
    """Return the measures that readers look for first, the primary one at the head; no oracles."""
    names = dict.fromkeys(line.row.measure for line in found if not line.row.oracle)
    head = found[0].row.measure if found else ""
    return tuple(name for name in names if name == head or _base(name) in _FIRST)


def headline(cohort: Cohort, found: Sequence[Line]) -> tuple[str, ...]:
    """Return the few measures that stand in a paper's table: the primary one first, overlap at the first fair threshold only, the
    peak near the lesion at the middle tolerance only.
    """
    settings = cohort.settings
    fair = next((threshold.name for threshold in settings.thresholds if not threshold.oracle), "")
    # Of several tolerances the middle one speaks for all.
    near = sorted(settings.tolerances_mm)[(len(settings.tolerances_mm) - 1) // 2 :][:1]
    # A finding as large as the body touches every lesion, so that one counts whose peak is there.
    tolerant = ("hit_within", "lesion_recall_peak_within")
    wanted = {"hit", *(f"{name}_{length:g}{unit}" for name in tolerant for length in near for unit in ("mm", "px"))}
    few = [
        name
        for name in main_measures(found)
        if name in wanted or (name.partition("@")[2] in ("", fair) and _base(name) in _HEADLINE)
    ]
    primary = [cohort.primary] if any(line.row.measure == cohort.primary for line in found) else []
    return tuple(dict.fromkeys([*primary, *few]))


def _base(measure: str) -> str:
    """Return a measure's name without threshold and tolerance: 'hit' of 'hit_within_5mm'."""
    name = measure.partition("@")[0]
    return re.sub(r"(_within)?_[\d.]+(mm|px)$", "", name)


def words_of(measure: str) -> str:
    """Return what a measure is called in print: 'Dice at half-max', 'peak within 5 mm of the lesion'."""
    name, _, where = measure.partition("@")
    found = re.search(r"_([\d.]+)(mm|px)$", name)
    tolerance = found and f"{found[1]} {_LENGTHS[found[2]]}"
    top = re.match(r"top(\d+)_hit", name)
    base = _base(measure)
    if tolerance and (base == "hit" or top):
        place = f"within {tolerance} of the lesion"
        return f"one of {top[1]} peaks {place}" if top else f"peak {place}"
    if top:
        return f"one of {top[1]} peaks in the lesion"
    words = _WORDS.get(base, base.replace("_", " "))
    if tolerance:
        words += f" within {tolerance}"
    if where and base in _TRIALS:
        return f"{words} ({where})"
    return f"{words} at {where}" if where else words


def small_is_good(measure: str) -> bool:
    """Tell whether a smaller number of this measure is the better one."""
    return any(part in measure for part in _SMALL_IS_GOOD)


def number(value: float, unit: str = "") -> str:
    """Return a number as print has it: two digits for shares, one for lengths; 'not defined' for NaN."""
    if math.isnan(value):
        return "not defined"
    length = unit in _LENGTHS.values()
    digits = 1 if length else 2
    if value != 0 and abs(value) < 0.01 and not length:
        return f"{value:.2g}"
    return f"{value:.{digits}f}"


def spoken(interval: Interval, unit: str = "") -> str:
    """Return '0.52 [0.41, 0.63]', with the unit where there is one; the number alone where there is no interval."""
    tail = f" {unit}" if unit not in ("", "count") and not math.isnan(interval.value) else ""
    if math.isnan(interval.low) or math.isnan(interval.high):
        return number(interval.value, unit) + tail
    return f"{number(interval.value, unit)} [{number(interval.low, unit)}, {number(interval.high, unit)}]{tail}"


def counted(interval: Interval) -> str:
    """Return '24 cases of 12 patients'."""
    return f"{many(interval.cases, 'case')} of {many(interval.patients, 'patient')}"


def counted_cohort(cohort: Cohort) -> str:
    """Return '24 cases of 12 patients', those that could be measured."""
    patients = {case.entry.patient for case in cohort.done}
    return f"{many(len(cohort.done), 'case')} of {many(len(patients), 'patient')}"


def length_unit(cohort: Cohort) -> str:
    """Return what lengths are in: 'mm', or 'pixels' where no image says how large one is."""
    units = {
        case.measures.numbers["peak_distance"].unit
        for case in cohort.done
        if case.measures and "peak_distance" in case.measures.numbers
    }
    return "pixels" if units == {"pixels"} else "mm"


def many(count: int, word: str) -> str:
    """Return '1 case' or '2 cases'."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def p_value(p: float) -> str:
    """Return a p value as journals print it."""
    return "" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def trial_lines(cohort: Cohort) -> tuple[Line, ...]:
    """Return the means of what was tried on the network (deletion, lesion use, ...), with patients drawn as for all else."""
    names = dict.fromkeys(name for case in cohort.done for name in case.trials)
    found = []
    for name in names:
        given = [(case.trials[name], case.entry.patient) for case in cohort.done if name in case.trials]
        interval = mean([one.value for one, _ in given], [patient for _, patient in given], how=cohort.resampling)
        effect = design_effect([one.value for one, _ in given], [patient for _, patient in given])
        found.append(Line(SummaryRow(HEATMAP, name, given[0][0].unit, ALL, interval, effect)))
    return tuple(found)


def value_of(case: CaseResult, measure: str) -> float:
    """Return a case's number, NaN where it has none."""
    found = case.measures.numbers.get(measure) if case.measures else None
    return _NAN if found is None else found.value


def ordered_by(cases: Iterable[CaseResult], measure: str) -> tuple[CaseResult, ...]:
    """Return the cases that have a number of this measure, the best first."""
    having = [case for case in cases if not math.isnan(value_of(case, measure))]
    return tuple(sorted(having, key=lambda case: value_of(case, measure) * (1 if small_is_good(measure) else -1)))


def extremes(cohort: Cohort) -> tuple[tuple[CaseResult, str], ...]:
    """Return the best, the median and the worst case by the primary measure, each with words; fewer of fewer cases."""
    ordered = ordered_by(cohort.done, cohort.primary)
    places = {"best": 0, "median": (len(ordered) - 1) // 2, "worst": len(ordered) - 1}
    found: dict[int, str] = {}
    for word, n in places.items():
        if 0 <= n < len(ordered):
            found.setdefault(n, word)
    return tuple(
        (ordered[n], f"{word}, {words_of(cohort.primary)} {number(value_of(ordered[n], cohort.primary))}")
        for n, word in sorted(found.items())
    )
