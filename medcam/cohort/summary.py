"""What the cases of a cohort add up to, with the patient as the unit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np

from medcam.cohort.asked import Asked
from medcam.cohort.results import HEATMAP, BoxAccuracy, CaseResult, Cohort, Comparison, SummaryRow
from medcam.cohort.sketches import randomization_sanity
from medcam.errors import UsageError
from medcam.validate.bootstrap import Interval, Resampling
from medcam.validate.boxes import max_box_accuracy, max_box_accuracy_v2
from medcam.validate.discrimination import area_under_roc
from medcam.validate.lesions import froc
from medcam.validate.measures import CaseMeasures, Measure
from medcam.validate.paired import difference
from medcam.validate.protocols import protocol
from medcam.validate.statistics import design_effect, holm, mean, proportion, ratio
from medcam.validate.strata import NO_LESION, UNKNOWN, sizes
from medcam.validate.verdict import Evidence, Verdict, of_cohort

# Measures that are read in strata and of baselines too; a threshold or tolerance may follow each name.
KEY = (
    "hit", "hit_within", "peak_distance", "mass_in_lesion", "rank_accuracy", "average_precision", "average_precision_lift", "auroc",
    "average_precision_of_ceiling", "ceiling_average_precision", "soft_centre_distance", "dice", "iou", "surface_dice",
    "lesion_recall", "lesion_recall_peak_within", "false_findings", "selected_size", "selected_share", "max_relevance",
)  # fmt: skip
# What chance is known of, so that it can be named as primary.
PRIMARY = ("average_precision", "hit", "mass_in_lesion", "dice")
# In cm² of a film: a nodule, a mass, a lobe.
EDGES_CM2 = (1.0, 10.0, 100.0)
_NAN = float("nan")


def check_primary(primary: str, asked: Asked) -> None:
    """Raise a UsageError unless a measure can be the primary one: it must be measured, and chance known of it."""
    fair = [*PRIMARY[:-1], *(f"dice@{t.name}" for t in asked.settings.thresholds if not t.oracle)]
    if primary not in fair:
        raise UsageError(f"the primary measure is one that chance is known of: {', '.join(fair)}, not '{primary}'")


def summarized(cases: Sequence[CaseResult], asked: Asked, *, primary: str, how: Resampling | None = None) -> Cohort:
    """Return what the cases add up to.

    Parameters
    ----------
    primary
        The one measure that was named before the results were seen.

    Raises
    ------
    UsageError
        If chance is not known of the primary measure.
    """
    check_primary(primary, asked)
    how = how or Resampling()
    done = [case for case in cases if case.ok]
    bare = Cohort(
        tuple(cases), asked.settings, how, primary, drawn_on=asked.drawn_on, allow_gaps=asked.allow_gaps, regrid=asked.regrid,
        notes=_notes(cases)
    )  # fmt: skip
    if not done:
        return bare
    maps, apart = _in_one_unit(_maps(done))
    bare = replace(bare, notes=(*bare.notes, *apart))
    comparisons = _comparisons(done, maps, primary, how)
    return replace(
        bare,
        model=_one(case.recipe.model for case in done if case.recipe),
        model_sha256=_one(case.recipe.model_sha256 for case in done if case.recipe),
        method=_one(case.recipe.method for case in done if case.recipe),
        summary=tuple(_summary(done, maps, how)),
        comparisons=comparisons,
        froc={name: froc([each.findings for each in found.values()]) for name, found in maps.items()},
        pooled={name: _pooled(list(found.values())) for name, found in maps.items()},
        boxes={name: _boxes(list(found.values())) for name, found in maps.items()},
        protocols={name: _protocol(name, done) for name in asked.protocols},
        counts=dict(Counter(case.verdict.kind for case in done if case.verdict)),
        verdict=_verdict(done, comparisons, primary, how),
        sanity=randomization_sanity(done, how),
    )


def _maps(done: Sequence[CaseResult]) -> dict[str, dict[int, CaseMeasures]]:
    """Return the measures of each map by the case's place; a baseline may lack some cases."""
    maps: dict[str, dict[int, CaseMeasures]] = {HEATMAP: {}}
    for n, case in enumerate(done):
        for name, found in {HEATMAP: case.measures, **case.baselines}.items():
            if found is not None:
                maps.setdefault(name, {})[n] = found
    return maps


def _in_one_unit(
    maps: dict[str, dict[int, CaseMeasures]],
) -> tuple[dict[str, dict[int, CaseMeasures]], tuple[str, ...]]:
    """Return the measures without numbers of another unit than most cases have: millimetres and pixels have no mean."""
    units: dict[str, Counter[str]] = {}
    for found in maps[HEATMAP].values():
        for name, number in found.numbers.items():
            units.setdefault(name, Counter())[number.unit] += 1
    mixed = {name: counted.most_common(1)[0][0] for name, counted in units.items() if len(counted) > 1}
    if not mixed:
        return maps, ()
    kept = {
        name: {n: replace(each, numbers=_of_unit(each.numbers, mixed)) for n, each in found.items()}
        for name, found in maps.items()
    }
    said = ", ".join(dict.fromkeys(mixed.values()))
    return kept, (
        f"Not all cases are measured in the same units: only those in {said} count where lengths and sizes do.",
    )


def _of_unit(numbers: Mapping[str, Measure], units: Mapping[str, str]) -> dict[str, Measure]:
    kept = dict(numbers)
    for name, unit in units.items():
        if name in kept and kept[name].unit != unit:
            kept[name] = replace(kept[name], value=_NAN, unit=unit, why="it was measured in another unit")
    return kept


def _summary(done: Sequence[CaseResult], maps: dict[str, dict[int, CaseMeasures]], how: Resampling) -> list[SummaryRow]:
    strata = {"all": list(range(len(done))), **_strata(done)}
    rows = []
    for name, found in maps.items():
        measures = list(dict.fromkeys(measure for each in found.values() for measure in each.numbers))
        for measure in measures:
            if name != HEATMAP and not _is_key(measure):
                continue
            for stratum, members in strata.items():
                if stratum == "all" or (name == HEATMAP and _is_key(measure)):
                    chosen = [n for n in members if n in found]
                    rows += _row(name, measure, stratum, [(done[n], found[n]) for n in chosen], how)
    return rows


def _row(
    name: str, measure: str, stratum: str, members: Sequence[tuple[CaseResult, CaseMeasures]], how: Resampling
) -> list[SummaryRow]:
    numbers = [found.numbers.get(measure, Measure(_NAN)) for _, found in members]
    values = [number.value if np.isfinite(number.value) else _NAN for number in numbers]
    if not members or all(np.isnan(values)):
        return []
    patients = [case.entry.patient for case, _ in members]
    share = measure.partition("_within")[0].endswith("hit") and measure[:3] in ("hit", "top")
    average: Callable[..., Interval] = proportion if share else mean
    unit = next((number.unit for number in numbers if number.unit), "")
    return [
        SummaryRow(
            name, measure, unit, stratum, average(values, patients, how=how), design_effect(values, patients),
            oracle=any(number.oracle for number in numbers),
        )
    ]  # fmt: skip


def _is_key(measure: str) -> bool:
    """Tell whether a measure, without its threshold or tolerance, is one of `KEY`."""
    plain = measure.partition("@")[0]
    return plain in KEY or (plain[-2:] in ("mm", "px") and plain.rpartition("_")[0] in KEY)


def _strata(done: Sequence[CaseResult]) -> dict[str, list[int]]:
    """Return the places of the cases of each decision and of each size of lesion."""
    labels = {
        "decision": [case.decision for case in done],
        "size": size_labels([case.measures for case in done if case.measures]),
    }
    found: dict[str, list[int]] = {}
    for kind, names in labels.items():
        for n, name in enumerate(names):
            if name != UNKNOWN:
                found.setdefault(f"{kind}: {name}", []).append(n)
    return dict(sorted(found.items()))


def size_labels(measures: Sequence[CaseMeasures]) -> list[str]:
    """Return the size of each case's lesions in words, in mL, or in cm² of a film."""
    labels = []
    for each in measures:
        size = each.numbers["lesion_size"]
        if each.numbers["lesions"].value == 0:
            labels.append(NO_LESION)
        elif size.unit == "cm2":
            labels.append(sizes([size.value], edges_ml=EDGES_CM2)[0].replace(" mL", " cm²"))
        else:
            labels.append(sizes([size.value])[0])
    return labels


def _comparisons(
    done: Sequence[CaseResult], maps: dict[str, dict[int, CaseMeasures]], primary: str, how: Resampling
) -> tuple[Comparison, ...]:
    """Compare the heatmap with each baseline on the cases that both have; the primary measure first."""
    own = maps[HEATMAP]
    measures = [primary, *(m for m in next(iter(own.values())).numbers if _is_key(m) and m != primary)]
    found = []
    for measure in measures:
        for name in maps:
            if name == HEATMAP:
                continue
            both = [n for n in own if n in maps[name]]
            one, other = ([_value(part[n], measure) for n in both] for part in (own, maps[name]))
            if all(np.isnan(np.subtract(one, other))):
                continue
            apart = difference(one, other, [done[n].entry.patient for n in both], how=how)
            unit = own[both[0]].numbers[measure].unit
            found.append(Comparison(measure, unit, name, apart, apart.wilcoxon_p, _NAN))
    adjusted = holm({each.baseline: each.p for each in found if each.measure == primary})
    return tuple(
        Comparison(
            c.measure, c.unit, c.baseline, c.difference, c.p, adjusted[c.baseline] if c.measure == primary else _NAN
        )
        for c in found
    )


def _value(found: CaseMeasures, measure: str) -> float:
    value = found.numbers[measure].value if measure in found.numbers else _NAN
    return value if np.isfinite(value) else _NAN


def _pooled(found: Sequence[CaseMeasures]) -> float:
    return reduce(add, (each.histogram for each in found)).average_precision()


def _boxes(found: Sequence[CaseMeasures]) -> BoxAccuracy:
    curves = [each.boxes for each in found]
    return BoxAccuracy(max_box_accuracy(curves), max_box_accuracy_v2(curves))


def _protocol(name: str, done: Sequence[CaseResult]) -> dict[str, float]:
    counted = [case.protocols[name] for case in done if name in case.protocols]
    return protocol(name).cohort(counted) if counted else {}


def _verdict(done: Sequence[CaseResult], comparisons: Sequence[Comparison], primary: str, how: Resampling) -> Verdict:
    ill = [case for case in done if case.measures and case.measures.numbers["lesions"].value > 0]
    patients = [case.entry.patient for case in ill]
    found = [case.measures for case in ill if case.measures]
    chance = primary + ("_moved" if any(f"{primary}_moved" in each.numbers for each in found) else "_uniform")
    over = difference(
        [_value(each, primary) for each in found], [_value(each, chance) for each in found], patients, how=how
    )
    reached = [_value(each, "average_precision_of_ceiling") for each in found]
    evidence = Evidence(
        primary,
        len(set(patients)),
        share=_shares(ill, patients, how),
        tells_apart=_tells_apart(done, how),
        ceiling=_mean([_value(each, "ceiling_average_precision") for each in found]),
        reached=_mean(reached),
        within_a_cell=_mean([_within_a_cell(case) for case in ill]),
        over_chance=over.interval,
        over_baselines={c.baseline: c.difference.interval for c in comparisons if c.measure == primary},
    )
    return of_cohort(evidence)


def _shares(ill: Sequence[CaseResult], patients: Sequence[str], how: Resampling) -> dict[str, Interval]:
    """Return by fill the sum of what hangs on the lesions over the sum of what hangs on the body: single shares may divide by little."""
    fills = dict.fromkeys(
        name.partition("@")[2] for case in ill for name in case.trials if name.startswith("lesion_share@")
    )
    missing = Measure(_NAN)
    found = {}
    for fill in fills:
        excess, span = (
            [case.trials.get(f"{name}@{fill}", missing).value for case in ill]
            for name in ("lesion_excess", "lesion_span")
        )
        found[fill] = ratio(excess, span, patients, how=how)
    return found


def _tells_apart(done: Sequence[CaseResult], how: Resampling) -> Interval | None:
    """Return the network's own AUC, where all cases are asked about one class and some have a lesion and some none."""
    asked = [case for case in done if case.probability is not None and case.truth is not None]
    if len({case.target for case in asked}) != 1 or len({case.truth for case in asked}) != 2:
        return None
    return area_under_roc(
        [case.truth for case in asked],
        [case.probability for case in asked],
        [case.entry.patient for case in asked],
        how=how,
    )


def _within_a_cell(case: CaseResult) -> float:
    away = _value(case.measures, "peak_distance") if case.measures else _NAN
    return _NAN if np.isnan(case.cell_mm) or np.isnan(away) else float(away <= case.cell_mm)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return float(np.mean(known)) if known else _NAN


def _one(values: object) -> str:
    found = set(values)  # type: ignore[call-overload]
    return str(found.pop()) if len(found) == 1 else ""


def _notes(cases: Sequence[CaseResult]) -> tuple[str, ...]:
    failed = [case for case in cases if not case.ok]
    without = sum(
        case.ok and case.measures is not None and case.measures.numbers["lesions"].value == 0 for case in cases
    )
    notes = []
    if failed:
        lines = ", ".join(str(case.entry.line) for case in failed[:20])
        notes.append(f"{len(failed)} of {len(cases)} cases failed and count nowhere: line {lines}.")
    if without:
        notes.append(
            f"{without} cases have no lesion: they count in FROC and as a burden, and in no measure of overlap."
        )
    if len({case.target for case in cases if case.ok}) > 1:
        notes.append("The heatmaps explain different classes; each case counts once, whatever its class.")
    return tuple(notes)
