"""compare.csv, ranking.csv and compare.json, and what a comparison says in words."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medcam.cohort.comparing import Compared, Place, Standing
from medcam.cohort.plain import to_plain
from medcam.cohort.shares import INTERPLAY
from medcam.cohort.sweeping import RANDOM, Answer, Configuration, Numbers
from medcam.validate.bootstrap import Interval
from medcam.validate.paired import Difference
from medcam.whole_file import whole_file

OPTIMISTIC = "optimistic"
_RANKING = (
    "part", "primary", "measure", "configuration", "model", "method", "layer", "less", "value", "low", "high", "level", "cases",
    "patients", "undefined", "mean_rank", "p", "p_holm", "remark",
)  # fmt: skip


def write_comparison(found: Compared, out: Path, *, about: Mapping[str, object]) -> tuple[Path, ...]:
    """Write the three files, and return them.

    compare.csv: a row for each case, configuration (and baseline), with all its measures. ranking.csv: means, then differences (`less`),
    with their intervals; an undefined number is an empty field. Patients are numbered.

    Parameters
    ----------
    about
        What was asked for and what made the maps, for compare.json.

    Raises
    ------
    OutputError
        If one cannot be written.
    """
    files = out / "compare.csv", out / "ranking.csv", out / "compare.json"
    _table(files[0], _cases(found))
    _table(files[1], _ranking(found))
    values = {
        "primary": found.primary,
        "words": list(words(found)),
        "notes": list(found.notes),
        **about,
        **_plain(found),
    }
    with whole_file(files[2]) as temporary:
        temporary.write_text(json.dumps(to_plain(values), ensure_ascii=False, indent=1, allow_nan=False), "utf-8")
    return files


def words(found: Compared) -> tuple[str, ...]:
    """Say which is best and how sure that is, whether it beats what knows nothing, and what decides."""
    if found.chosen is None:
        return ("No configuration has a value: nothing can be compared.",)
    return (*_choice(found), *_rivals(found), *_against_nothing(found), *_decided(found))


def _choice(found: Compared) -> list[str]:
    first, name = found.standings[0], found.chosen.name if found.chosen else ""
    own = next(place.interval for place in first.places if place.optimistic)
    count = len(first.places)
    if found.by_split:
        told = [
            f"Chosen on the split '{found.by_split}' ({own.patients} patients) of {count}: {name}, {found.primary} {_width(own)} there, "
            f"which is {OPTIMISTIC}."
        ]
        if found.elsewhere is not None and found.elsewhere.cases:
            told.append(
                f"On the other {found.elsewhere.patients} patients it has {_width(found.elsewhere)}: report that."
            )
        return told
    told = [
        f"Best of {count} on these {own.patients} patients: {name}, {found.primary} {_width(own)}. That is {OPTIMISTIC}, for it was "
        "chosen on them: report it on other patients (--choose-on SPLIT)."
    ]
    other = found.elsewhere
    if other is not None and other.value == other.value:
        told.append(
            f"Were each patient scored by what is best for all others, it would be {_width(other)}: what choosing is worth on others."
        )
    return told


def _rivals(found: Compared) -> list[str]:
    """Say which cannot be told from the best, by Nemenyi's test, which knows that the best was chosen."""
    last = found.standings[-1]
    best, ranking = found.chosen, last.ranking
    if ranking is None or best is None or best.name not in ranking.mean_ranks:
        return []
    level = [
        other
        for other in ranking.mean_ranks
        if other != best.name
        and max(p for pair, p in ranking.nemenyi_p.items() if set(pair) == {other, best.name}) > 0.05
    ]
    where = f" on the {ranking.patients} patients it is reported on" if found.by_split else ""
    told = f"Friedman's test that all rank alike{where}: p {_p(ranking.friedman_p)}."
    if level:
        return [told, f"Not told apart from it by Nemenyi's test: {', '.join(level)}."]
    return [told, "Nemenyi's test tells it from all others."]


def _against_nothing(found: Compared) -> list[str]:
    place = next(place for place in found.standings[-1].places if place.configuration == found.chosen)
    told = []
    for name, (apart, _, adjusted) in place.to_baselines.items():
        each = apart.interval
        verdict = (
            "worse" if each.high < 0 else "no clear gain" if not (each.low > 0) else f"p {_p(adjusted)} after Holm"
        )
        own = " of the same method and layer" if name == RANDOM else ""
        remark = f", {OPTIMISTIC}" if place.optimistic else ""
        told.append(f"Over {name.replace('-', ' ')}{own}: {_width(each, sign=True)}, {verdict}{remark}.")
    return told


def _decided(found: Compared) -> list[str]:
    decided = found.shares
    if decided is None:
        return []
    factors = {name: share for name, share in decided.factors.items() if share.value == share.value}
    if not factors:
        return ["The configurations do not differ."]
    told = []
    ordered = sorted((n for n in factors if n != INTERPLAY), key=lambda n: -factors[n].value)
    parts = [f"the {name} {_percent(factors[name])}" for name in ordered]
    if INTERPLAY in factors:
        parts.append(f"their interplay {_percent(factors[INTERPLAY])}")
    told.append(f"Of the differences between configurations {', '.join(parts)} decides.")
    for name in ordered:
        levels = found.levels[name]
        low, high = min(levels, key=lambda n: levels[n]), max(levels, key=lambda n: levels[n])
        told.append(f"By {name}, the mean goes from {levels[low]:.3f} ({low}) to {levels[high]:.3f} ({high}).")
    told.append(
        f"Of all differences {_percent(decided.cases)} lies between cases and {_percent(decided.configurations)} between configurations."
    )
    return told


def _cases(found: Compared) -> Iterable[Sequence[object]]:
    patients = {name: n for n, name in enumerate(dict.fromkeys(case.entry.patient for case in found.cases), 1)}
    everything = [(case, *row) for case in found.cases for row in _maps(case.answers, case.baselines, case.error)]
    names = list(dict.fromkeys(name for _, _, _, numbers, _ in everything for name in numbers))
    yield ["line", "case", "patient", "split", "class", "map", "model", "method", "layer", "error", *names]
    for case, map_, c, numbers, error in everything:
        which = ("", "", "") if c is None else (c.model, c.method, c.layer)
        target = "" if c is None else case.answers[c].target
        yield [
            case.entry.line, case.entry.case, patients[case.entry.patient], case.entry.split, target or case.entry.target, map_, *which,
            error, *(_number(numbers[name].value) if name in numbers else "" for name in names),
        ]  # fmt: skip


def _maps(
    answers: Mapping[Configuration, Answer], baselines: Mapping[str, Numbers], error: str
) -> Iterable[tuple[str, Configuration | None, Numbers, str]]:
    if error:
        yield "", None, {}, error
    for c, answer in answers.items():
        yield "heatmap", c, answer.numbers, answer.error
        if answer.random:
            yield RANDOM, c, answer.random, ""
    for name, numbers in baselines.items():
        yield name, None, numbers, ""


def _ranking(found: Compared) -> Iterable[Sequence[object]]:
    yield _RANKING
    for standing in found.standings:
        for place in standing.places:
            remark = OPTIMISTIC if place.optimistic else ""
            head = _head(standing, found.primary, 1, place.configuration)
            yield [*head, "", *_fields(place.interval), _number(place.mean_rank), "", "", remark]
            if place.to_best is not None:
                apart = place.to_best.difference
                p = _number(place.to_best.p), _number(place.to_best.adjusted_p)
                yield [*head, place.to_best.second, *_fields(apart.interval), "", *p, ""]
            yield from _to_baselines(place, head, remark)
        for name, interval in standing.baselines.items():
            yield [standing.part, 1, found.primary, name, "", "", "", "", *_fields(interval), "", "", "", "baseline"]
        for measure, each in standing.others.items():
            if measure != found.primary:
                for c, interval in each.items():
                    yield [*_head(standing, measure, 0, c), "", *_fields(interval), "", "", "", ""]


def _to_baselines(place: Place, head: Sequence[object], remark: str) -> Iterable[Sequence[object]]:
    for name, (apart, p, adjusted) in place.to_baselines.items():
        yield [*head, name, *_fields(apart.interval), "", _number(p), _number(adjusted), remark]


def _head(standing: Standing, measure: str, primary: int, c: Configuration) -> list[object]:
    return [standing.part, primary, measure, c.name, c.model, c.method, c.layer]


def _fields(each: Interval) -> list[object]:
    return [
        _number(each.value), _number(each.low), _number(each.high), each.level, each.cases, each.patients, each.undefined,
    ]  # fmt: skip


def _plain(found: Compared) -> dict[str, object]:
    return {
        "chosen": found.chosen,
        "chosen_on": found.by_split or "all",
        "elsewhere": found.elsewhere,
        "shares": found.shares,
        "levels": found.levels,
        "parts": [
            {
                "part": standing.part,
                "complete_cases": standing.complete,
                "patients": standing.patients,
                "friedman_p": standing.ranking.friedman_p if standing.ranking else None,
                "critical_difference": standing.ranking.critical_difference if standing.ranking else None,
                "nemenyi_p": [[*pair, p] for pair, p in standing.ranking.nemenyi_p.items()] if standing.ranking else [],
                "baselines": standing.baselines,
                "configurations": [_plain_place(place) for place in standing.places],
            }
            for standing in found.standings
        ],
    }


def _plain_place(place: Place) -> dict[str, object]:
    def with_p(apart: Difference, p: float, adjusted: float) -> dict[str, object]:
        return {"difference": apart.interval, "p": p, "p_holm": adjusted}

    return {
        "configuration": place.configuration,
        "interval": place.interval,
        "remark": OPTIMISTIC if place.optimistic else "",
        "mean_rank": place.mean_rank,
        "less_best": with_p(place.to_best.difference, place.to_best.p, place.to_best.adjusted_p)
        if place.to_best
        else None,
        "less_baselines": {name: with_p(*each) for name, each in place.to_baselines.items()},
    }


def _table(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def _number(value: float) -> str:
    return "" if value != value else f"{value:.6g}"


def _width(each: Interval, *, sign: bool = False) -> str:
    value = f"{each.value:+.3f}" if sign else f"{each.value:.3f}"
    if each.low != each.low:
        return f"{value} (too few patients for an interval)"
    return f"{value} ({each.low:+.3f} to {each.high:+.3f})" if sign else f"{value} ({each.low:.3f} to {each.high:.3f})"


def _percent(each: Interval) -> str:
    return f"{each.value:.0%} ({each.low:.0%} to {each.high:.0%})" if each.low == each.low else f"{each.value:.0%}"


def _p(value: float) -> str:
    return "unknown" if value != value else "below 0.001" if value < 0.001 else f"{value:.3f}"
