"""Everything that is measured of one case: its numbers by name, and what it adds to a cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int, Num

from medcam.validate.baselines import brightness, centre, edges, expected_of_uniform
from medcam.validate.boxes import box_curve
from medcam.validate.chance import chance, moved
from medcam.validate.distances import LesionDistance, Surfaces, centre_mm, matched_mm
from medcam.validate.hits import Peak, any_peak_hits, hit, hit_within, peaks, tied_maxima
from medcam.validate.lesions import Findings, Matching, Piece, centres_mm, distances_of, pieces
from medcam.validate.measures import CaseMeasures, LesionRow, Measure, Settings
from medcam.validate.overlap import lift, mass_in_lesion, overlap, selected
from medcam.validate.pooled import Histogram
from medcam.validate.ranked import Ranked, rank_accuracy
from medcam.validate.scene import Scene
from medcam.validate.thresholds import Curve, Threshold, refuse_leaks

_NAN = float("nan")
_NOTHING = "the threshold selects nothing"


@dataclass(frozen=True, eq=False)
class _Facts:
    """What several measures of one case rest on, each found once."""

    scene: Scene
    settings: Settings
    ranked: Ranked
    distance: LesionDistance | None
    high: tuple[Peak, ...]
    lesions: tuple[Piece, ...]
    chosen: Mapping[str, Bool[np.ndarray, "i j k"]]
    findings: tuple[Piece, ...]
    matching: Matching

    @staticmethod
    def of(scene: Scene, settings: Settings) -> _Facts:
        ranked = Ranked.of(scene)
        chosen = {t.name: selected(scene, t.cut(scene, ranked)) for t in settings.thresholds}
        findings = pieces(scene, chosen[settings.thresholds[0].name])
        lesions = pieces(scene, scene.lesion, least=settings.least_lesion)
        distance = LesionDistance.of(scene, max(settings.tolerances_mm, default=0.0))
        high = peaks(scene, settings.peak_radius_mm, settings.peaks) if distance else ()
        matching = Matching.of(scene, findings, lesions)
        return _Facts(scene, settings, ranked, distance, high, lesions, chosen, findings, matching)


def measure(
    relevance: Num[np.ndarray, "i j k"],
    lesion: Bool[np.ndarray, "_ _ _"],
    *,
    spacing_mm: tuple[float, float, float],
    organ: Bool[np.ndarray, "_ _ _"] | None = None,
    boxes: Int[np.ndarray, "n 3 2"] | None = None,
    settings: Settings | None = None,
    case: str = "",
    patient: str = "",
) -> CaseMeasures:
    """Measure how well a map locates a lesion.

    Parameters
    ----------
    relevance
        Raw and signed; NaN was not looked at and counts for nothing.
    lesion
        True where the lesion is, of the map's shape; all False for a case without one.
    spacing_mm
        Distance between voxel centres along each axis.
    organ
        Where evidence may lie, such as the body; all that was looked at if not given. Chance depends on it: air makes any map look good.
    boxes
        First and last voxels of boxes that experts drew, for MaxBoxAcc; those around the lesion's pieces if not given. Drawn boxes may
        overlap, and are then one piece of a mask.
    settings
        What is asked; `Settings()` if not given.
    case, patient
        Names that tell cases and patients apart, for thresholds tuned on others. They appear in no error and no repr.

    Raises
    ------
    InputError
        If shapes differ, a relevance is infinite or a spacing not positive.
    UsageError
        If a threshold was tuned on this case or patient.
    """
    settings = settings or Settings()
    refuse_leaks(settings.thresholds, case, patient)
    scene = Scene(relevance, lesion, spacing_mm, organ)
    facts = _Facts.of(scene, settings)
    numbers = {**_of_the_case(facts), **_of_the_peak(facts), **_of_all_thresholds(facts), **_of_lesions(facts)}
    for threshold in settings.thresholds:
        numbers |= _at(facts, threshold)
    numbers |= _by_chance(facts)
    around_lesions = np.array([piece.box for piece in facts.lesions], np.int64).reshape(-1, 3, 2)
    return CaseMeasures(
        {name: _explained(scene, number) for name, number in numbers.items()},
        _rows(facts),
        Findings.of(facts.findings, facts.matching, facts.matching.peak_within(_nearest(facts.settings))),
        box_curve(scene, around_lesions if boxes is None else boxes),
        Histogram.of(facts.ranked),
        Curve(case, patient, facts.ranked.level_dice()),
    )


def baseline_maps(
    image: Num[np.ndarray, "i j k"], domain: Bool[np.ndarray, "i j k"], *, spacing_mm: tuple[float, float, float]
) -> dict[str, Num[np.ndarray, "i j k"]]:
    """Return maps that know nothing of the network, by name, to be measured beside its own: centre, brightness and edges."""
    return {
        "centre": centre(domain, spacing_mm=spacing_mm),
        "brightness": brightness(image, domain),
        "edges": edges(image, domain, spacing_mm=spacing_mm),
    }


def _explained(scene: Scene, number: Measure) -> Measure:
    """Return a number with the reason why it is NaN, the case's own where the number has none."""
    if not np.isnan(number.value):
        return replace(number, why="")
    blank = "" if scene.maximum > 0 else "no voxel speaks for the target"
    return replace(number, why=scene.why_nothing() or blank or number.why)


def _of_the_case(facts: _Facts) -> dict[str, Measure]:
    scene = facts.scene
    return {
        "lesions": Measure(float(len(facts.lesions)), "count"),
        "lesion_size": Measure(scene.lesion_voxels * scene.voxel_size, scene.size_unit),
        "prevalence": Measure(scene.prevalence),
        "lesion_left_out": Measure(scene.lesion_left_out),
        "negative_share": Measure(scene.negative_share),
        "max_relevance": Measure(scene.maximum if scene.domain_voxels else _NAN, "relevance"),
    }


def _of_the_peak(facts: _Facts) -> dict[str, Measure]:
    maxima, distance, k = tied_maxima(facts.scene), facts.distance, facts.settings.peaks
    away = distance.at(maxima) if distance else np.zeros(0, np.float32)
    numbers = {
        "tied_maxima": Measure(float(len(maxima)), "count"),
        "hit": Measure(hit(facts.scene, maxima)),
        "peak_distance": Measure(float(away.mean()) if len(away) else _NAN, "mm"),
    }
    for tolerance in (0.0, *facts.settings.tolerances_mm):
        suffix = _within(tolerance)
        if suffix:
            numbers[f"hit{suffix}"] = Measure(hit_within(away, tolerance))
        any_of_k = any_peak_hits(facts.high, k, distance.at, tolerance) if distance else _NAN
        numbers[f"top{k}_hit{suffix}"] = Measure(any_of_k)
    return numbers


def _nearest(settings: Settings) -> float:
    """Return how near to a lesion a finding's peak detects it in FROC: a finding as large as the body touches every lesion."""
    return min(settings.tolerances_mm, default=0.0)


def _within(tolerance_mm: float) -> str:
    return f"_within_{tolerance_mm:g}mm" if tolerance_mm else ""


def _of_all_thresholds(facts: _Facts) -> dict[str, Measure]:
    scene, ranked = facts.scene, facts.ranked
    mass, precision = mass_in_lesion(scene), ranked.average_precision()
    soft = centre_mm(scene.positive, scene.spacing_mm) - centre_mm(scene.lesion, scene.spacing_mm)
    return {
        "mass_in_lesion": Measure(mass),
        "mass_lift": Measure(lift(mass, scene.prevalence)),
        "rank_accuracy": Measure(rank_accuracy(scene, ranked)),
        "average_precision": Measure(precision),
        "average_precision_lift": Measure(lift(precision, scene.prevalence)),
        "auroc": Measure(ranked.auroc(), why="the lesion fills all that was looked at"),
        "soft_centre_distance": Measure(float(np.linalg.norm(soft)), "mm"),
    }


def _at(facts: _Facts, threshold: Threshold) -> dict[str, Measure]:
    """Return what depends on one threshold."""
    scene, chosen = facts.scene, facts.chosen[threshold.name]
    over, parts = overlap(scene, chosen), centres_mm(scene, chosen)
    away = centre_mm(chosen, scene.spacing_mm) - centre_mm(scene.lesion, scene.spacing_mm)
    matched = matched_mm(parts, _centres(facts.lesions))
    found = matched[~np.isnan(matched)]
    size = np.count_nonzero(chosen) * scene.voxel_size if scene.domain_voxels else _NAN
    numbers = {
        "dice": Measure(over.dice),
        "iou": Measure(over.iou),
        "precision": Measure(over.precision, why=_NOTHING),
        "recall": Measure(over.recall),
        "selected_share": Measure(over.selected_share),
        "selected_size": Measure(size, scene.size_unit),
        "pieces": Measure(float(len(parts)) if scene.domain_voxels else _NAN, "count"),
        "centre_distance": Measure(float(np.linalg.norm(away)), "mm", _NOTHING),
        "matched_centre_distance": Measure(float(found.mean()) if len(found) else _NAN, "mm", _NOTHING),
        **_surfaces(facts, chosen),
    }
    return {f"{name}@{threshold.name}": replace(number, oracle=threshold.oracle) for name, number in numbers.items()}


def _surfaces(facts: _Facts, chosen: Bool[np.ndarray, "i j k"]) -> dict[str, Measure]:
    surfaces = Surfaces.of(facts.distance, chosen) if facts.distance else Surfaces.nowhere()
    far = surfaces.distances()
    return {
        "hausdorff": Measure(far.hausdorff, "mm", _NOTHING),
        "hausdorff_95": Measure(far.hausdorff_95, "mm", _NOTHING),
        "surface_distance": Measure(far.mean, "mm", _NOTHING),
        **{f"surface_dice_{t:g}mm": Measure(surfaces.surface_dice(t)) for t in facts.settings.tolerances_mm},
    }


def _centres(parts: Sequence[Piece]) -> np.ndarray:
    return np.array([part.centre_mm for part in parts]).reshape(-1, 3)


def _of_lesions(facts: _Facts) -> dict[str, Measure]:
    """Return the shares of lesions that are found, by each rule, and the findings that touch none."""
    lesions, matching, k = facts.lesions, facts.matching, facts.settings.peaks
    small = "no lesion reaches the least size"
    rules = {
        "lesion_recall": matching.touching(),
        "lesion_recall_covered_0.5": matching.covering(0.5),
        "lesion_recall_iou_0.1": matching.iou_at_least(0.1),
        **{f"lesion_recall_peak{_within(t)}": matching.peak_within(t) for t in (0.0, *facts.settings.tolerances_mm)},
    }
    numbers = {name: Measure(float(hits.any(0).mean()) if lesions else _NAN, why=small) for name, hits in rules.items()}
    right = np.asarray(matching.touching().any(1))
    judged = len(right) > 0 and len(lesions) > 0
    numbers["lesion_precision"] = Measure(float(right.mean()) if judged else _NAN, why=f"{_NOTHING}, or {small}")
    false = np.count_nonzero(~right) if facts.scene.domain_voxels else _NAN
    numbers["false_findings"] = Measure(float(false), "count")
    numbers[f"lesions_hit_by_top{k}"] = Measure(float(np.mean(_peak_hits(facts))) if lesions else _NAN, why=small)
    return numbers


def _peak_hits(facts: _Facts) -> list[float]:
    """Return for each lesion the chance that one of the highest peaks lies in it."""
    lesions = distances_of(facts.scene, facts.lesions)
    return [any_peak_hits(facts.high, facts.settings.peaks, lesion, 0.0) for lesion in lesions]


def _rows(facts: _Facts) -> tuple[LesionRow, ...]:
    matching = facts.matching
    scores = Findings.of(facts.findings, matching, matching.touching()).lesion_scores
    matched = matched_mm(_centres(facts.findings), _centres(facts.lesions))
    covered = matching.shared.sum(0) / np.maximum(matching.lesion_voxels, 1)
    hits = _peak_hits(facts)
    middles = [lesion.voxels.mean(0) for lesion in facts.lesions]
    return tuple(
        LesionRow(
            lesion.size,
            (float(middles[n][0]), float(middles[n][1]), float(middles[n][2])),
            hits[n],
            bool(matching.shared[:, n].any()),
            float(covered[n]),
            scores[n],
            float(matched[n]),
        )
        for n, lesion in enumerate(facts.lesions)
    )


def _by_chance(facts: _Facts) -> dict[str, Measure]:
    """Return what chance scores: a map that is the same everywhere, and the lesion moved to random places of the domain."""
    settings = facts.settings
    uniform = expected_of_uniform(facts.scene, facts.distance, settings.tolerances_mm)
    numbers = {f"{name}_uniform": Measure(value) for name, value in uniform.items()}
    fair = {t.name: facts.chosen[t.name] for t in settings.thresholds if not t.oracle}
    moves = moved(facts.scene, draws=settings.draws, seed=settings.seed) if settings.draws else None
    nulls = chance(facts.scene, facts.ranked, moves, fair)
    why = "the lesion fits at too few other places" if settings.draws else "no random places were asked for"
    for name in ("hit", "mass_in_lesion", "average_precision", *(f"dice@{threshold}" for threshold in fair)):
        null = nulls.get(name)
        numbers[f"{name}_moved"] = Measure(null.mean if null else _NAN, why=why)
        numbers[f"{name}_p"] = Measure(null.p if null else _NAN, why=why)
        numbers[f"{name}_z"] = Measure(
            null.z if null else _NAN, why=why if not null else "it is the same at all places"
        )
    return numbers
