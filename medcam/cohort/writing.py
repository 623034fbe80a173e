"""The tables that a cohort is read from: cases.csv, lesions.csv, summary.csv."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from medcam.cohort.results import CaseResult, Cohort
from medcam.cohort.stored import store_cohort
from medcam.whole_file import whole_file

CASE_COLUMNS = (
    "line",
    "case",
    "patient",
    "class",
    "truth",
    "decision",
    "probability",
    "score",
    "verdict",
    "because",
    "error",
    "notes",
    "heatmap",
    "seconds",
)


def write_results(cohort: Cohort, out: Path) -> tuple[Path, ...]:
    """Write results.json and the tables, and return the files.

    cases.csv: a row a case, with its verdict and all its numbers, baselines as `BASELINE:MEASURE`. lesions.csv: a row a lesion.
    summary.csv: a row a measure, map and stratum, with its interval; differences from baselines follow. An undefined number is an empty
    field.

    Raises
    ------
    OutputError
        If one cannot be written.
    """
    patients = _numbered(cohort.cases)
    files = [out / name for name in ("results.json", "cases.csv", "lesions.csv", "summary.csv")]
    store_cohort(cohort, files[0])
    write_case_table(cohort.cases, files[1])
    _table(files[2], _lesions(cohort, patients))
    _table(files[3], _summary(cohort))
    return tuple(files)


def write_case_table(cases: Sequence[CaseResult], path: Path) -> Path:
    """Write cases.csv alone, those among them that were not measured, for nothing is known of a lesion, and return the file.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    _table(path, _cases(cases, _numbered(cases), path.parent))
    return path


def _numbered(cases: Sequence[CaseResult]) -> dict[str, int]:
    """Return patients by number, in the order of the cases."""
    return {name: n for n, name in enumerate(dict.fromkeys(case.entry.patient for case in cases), 1)}


def _cases(cases: Sequence[CaseResult], patients: dict[str, int], out: Path) -> Iterable[Sequence[object]]:
    rows = [_numbers(case) for case in cases]
    names = list(dict.fromkeys(name for row in rows for name in row))
    yield [*CASE_COLUMNS, *names]
    for case, row in zip(cases, rows, strict=True):
        verdict = case.verdict
        where = "" if case.heatmap is None else Path(os.path.relpath(case.heatmap, out)).as_posix()
        yield [
            case.entry.line, case.entry.case, patients[case.entry.patient], case.target or case.entry.target, _said(case.truth),
            case.decision, _number(case.probability), _number(case.score),
            verdict.words if verdict else "failed" if case.error else "",
            " ".join(verdict.because) if verdict else "", case.error, " ".join(case.notes), where, f"{case.seconds:.2f}",
            *(_number(row.get(name)) for name in names),
        ]  # fmt: skip


def _numbers(case: CaseResult) -> dict[str, float]:
    own = case.measures.flat() if case.measures else {}
    others = {f"{name}:{m}": value for name, found in case.baselines.items() for m, value in found.flat().items()}
    return {**own, **{name: number.value for name, number in case.trials.items()}, **others}


def _lesions(cohort: Cohort, patients: dict[str, int]) -> Iterable[Sequence[object]]:
    yield [
        "case", "patient", "lesion", "size", "size_unit", "i", "j", "k", "peak_hit", "touched", "covered", "score",
        "centre_distance", "length_unit",
    ]  # fmt: skip
    for case in cohort.done:
        if case.measures is None:
            continue
        size, far = case.measures.numbers["lesion_size"], case.measures.numbers["soft_centre_distance"]
        for n, lesion in enumerate(case.measures.lesions, 1):
            yield [
                case.entry.case, patients[case.entry.patient], n, _number(lesion.size), size.unit,
                *(f"{index:.1f}" for index in lesion.centre_voxel), _number(lesion.peak_hit), int(lesion.touched),
                _number(lesion.covered), _number(lesion.score), _number(lesion.centre_distance_mm), far.unit,
            ]  # fmt: skip


def _summary(cohort: Cohort) -> Iterable[Sequence[object]]:
    yield [
        "map", "measure", "unit", "stratum", "primary", "oracle", "value", "low", "high", "level", "method", "cases", "patients",
        "undefined", "design_effect", "p", "p_holm",
    ]  # fmt: skip
    for row in cohort.summary:
        each = row.interval
        yield [
            row.map, row.measure, row.unit, row.stratum, int(row.measure == cohort.primary and row.stratum == "all"),
            int(row.oracle), _number(each.value), _number(each.low), _number(each.high), each.level, each.method, each.cases,
            each.patients, each.undefined, _number(row.effect.effect), "", "",
        ]  # fmt: skip
    for apart in cohort.comparisons:
        each = apart.difference.interval
        yield [
            f"heatmap less {apart.baseline}", apart.measure, apart.unit, "all", int(apart.measure == cohort.primary), 0,
            _number(each.value), _number(each.low), _number(each.high), each.level, each.method, each.cases, each.patients,
            each.undefined, "", _number(apart.p), _number(apart.holm),
        ]  # fmt: skip
    for kind, numbers in _of_all(cohort).items():
        for name, value in numbers.items():
            yield [kind, name, "", "all", 0, 0, _number(value), *[""] * 10]


def _of_all(cohort: Cohort) -> dict[str, dict[str, float]]:
    """Return numbers that belong to all cases together, by map or protocol."""
    found: dict[str, dict[str, float]] = {}
    for name, curve in cohort.froc.items():
        boxes = cohort.boxes[name]
        found[name] = {
            "froc_score": curve.score(),
            "pooled_average_precision": cohort.pooled[name],
            "max_box_accuracy": boxes.max_box_accuracy,
            "max_box_accuracy_v2": boxes.max_box_accuracy_v2,
        }
    return {**found, **{f"protocol {name}": dict(numbers) for name, numbers in cohort.protocols.items()}}


def _table(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def _number(value: float | None) -> str:
    """Return a number as text, '' where it is undefined."""
    return "" if value is None or value != value else f"{value:.6g}"


def _said(value: int | None) -> str:
    return "" if value is None else str(value)
