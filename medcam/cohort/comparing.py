"""Which method, layer and network is best on annotated cases, what that owes to having been chosen on them, and what decides it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float

from medcam.cohort.shares import Shares, shares
from medcam.cohort.summary import KEY, PRIMARY
from medcam.cohort.sweeping import RANDOM, Configuration, Numbers, Swept
from medcam.errors import InputError, UsageError
from medcam.validate.bootstrap import Interval, Resampling
from medcam.validate.measures import Settings
from medcam.validate.paired import Comparison, Difference, Ranking, compare, difference, rank_methods
from medcam.validate.patients import grouped
from medcam.validate.statistics import holm, mean

ALL = "all"
# A configuration that gives a value in a smaller share of cases than this does not compete.
_ENOUGH = 0.5
_NAN = float("nan")


@dataclass(frozen=True, eq=False)
class Table:
    """One measure of all configurations and baselines in the cases of one part, for paired statistics.

    Parameters
    ----------
    part
        'all', or a split.
    patients
        Whose each case is.
    values
        By configuration, one number a case; NaN where it has none.
    baselines
        By baseline the same, and for random weights by configuration as `NAME RANDOM`.
    """

    part: str
    patients: tuple[str, ...] = field(repr=False)
    values: Mapping[Configuration, Float[np.ndarray, " n"]]
    baselines: Mapping[str, Float[np.ndarray, " n"]]
    random: Mapping[Configuration, Float[np.ndarray, " n"]]

    @cached_property
    def competing(self) -> tuple[Configuration, ...]:
        """Configurations with values in at least half of the cases that any has a value in."""
        known = {c: np.count_nonzero(~np.isnan(column)) for c, column in self.values.items()}
        most = max(known.values(), default=0)
        return tuple(c for c, count in known.items() if count and count >= _ENOUGH * most)

    @cached_property
    def complete(self) -> np.ndarray:
        """Which cases have a value of every competing configuration."""
        columns = [~np.isnan(self.values[c]) for c in self.competing]
        return np.logical_and.reduce(columns) if columns else np.zeros(len(self.patients), bool)

    @cached_property
    def best(self) -> Configuration | None:
        """The competing configuration of the highest mean over complete cases; None without such cases."""
        if not self.complete.any():
            return None
        return max(self.competing, key=lambda c: float(self.values[c][self.complete].mean()))


@dataclass(frozen=True, eq=False)
class Place:
    """How one configuration does on the primary measure in one part.

    Parameters
    ----------
    interval
        Its mean over its cases.
    optimistic
        Whether it was chosen on these very cases, so that chance has flattered it.
    mean_rank
        Over patients, 1 the best; NaN where ranks were not formed.
    to_best
        Itself less the best, and p adjusted by Holm for the family of all others; None for the best itself.
    to_baselines
        Itself less each baseline, with p before and after Holm, for the family of all configurations and baselines.
    """

    configuration: Configuration
    interval: Interval
    optimistic: bool
    mean_rank: float
    to_best: Comparison | None
    to_baselines: Mapping[str, tuple[Difference, float, float]]


@dataclass(frozen=True, eq=False)
class Standing:
    """How all configurations do in one part, the best first.

    Parameters
    ----------
    baselines
        The mean of each map that knows nothing of a network.
    ranking
        Friedman's and Nemenyi's tests; None for fewer than three configurations or two patients.
    others
        The means of other measures, which explore: by measure and configuration.
    """

    part: str
    places: tuple[Place, ...]
    baselines: Mapping[str, Interval]
    ranking: Ranking | None
    others: Mapping[str, Mapping[Configuration, Interval]]
    complete: int
    patients: int


@dataclass(frozen=True, eq=False)
class Compared:
    """What a sweep comes to.

    Parameters
    ----------
    chosen
        The best configuration of the part that was chosen on (all cases, if no split was named).
    elsewhere
        Its mean on other patients: those of the other splits; or, without a split, of each patient by the configuration that was best for
        all others. NaN limits for fewer than two patients.
    by_split
        Whether a split was named to choose on.
    shares, levels
        What decides the primary measure, and the mean of each level of each factor: over methods that look at a layer, all part taken.
    """

    primary: str
    cases: tuple[Swept, ...]
    standings: tuple[Standing, ...]
    chosen: Configuration | None
    elsewhere: Interval | None
    by_split: str
    shares: Shares | None
    levels: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]


def check_primary(primary: str, settings: Settings) -> None:
    """Raise a UsageError unless a measure is one of those that the best can be told by: higher is better, and chance known of it."""
    fair = [*PRIMARY[:-1], *(f"dice@{t.name}" for t in settings.thresholds if not t.oracle)]
    if primary not in fair:
        raise UsageError(f"the primary measure is one of {', '.join(fair)}, not '{primary}'")


def check_split(cases: Sequence[Swept], choose_on: str) -> None:
    """Raise an InputError unless a split has cases, leaves others, and shares no patient with them."""
    inside = {case.entry.patient for case in cases if case.entry.split == choose_on}
    outside = {case.entry.patient for case in cases if case.entry.split != choose_on}
    names = sorted({case.entry.split for case in cases if case.entry.split})
    if not inside:
        known = f"its splits are {', '.join(names)}" if names else "it has no column 'split'"
        raise InputError(f"the table has no case of the split '{choose_on}': {known}")
    if not outside:
        raise InputError(f"all cases are of the split '{choose_on}', and none is left to report the choice on")
    if both := inside & outside:
        lines = [str(case.entry.line) for case in cases if case.entry.patient in both]
        raise InputError(
            f"{len(both)} patients lie in the split '{choose_on}' and outside it (lines {', '.join(lines[:10])}); what is chosen on "
            "a patient cannot be reported on the same patient"
        )


def compared(
    cases: Sequence[Swept], configurations: Sequence[Configuration], *, primary: str, choose_on: str = "",
    how: Resampling | None = None,
) -> Compared:  # fmt: skip
    """Return what a sweep comes to.

    Parameters
    ----------
    choose_on
        The split that the best is chosen on; it is reported on the others. '' chooses on all, which flatters the best.

    Raises
    ------
    InputError
        If the split does not part the patients.
    """
    how = how or Resampling()
    if choose_on:
        check_split(cases, choose_on)
    done = [case for case in cases if not case.error]
    parts = {ALL: done}
    if choose_on:
        parts = {choose_on: [case for case in done if case.entry.split == choose_on]}
        parts[f"not {choose_on}"] = [case for case in done if case.entry.split != choose_on]
    tables = {name: _table(name, members, configurations, primary) for name, members in parts.items()}
    first, last = next(iter(tables.values())), list(tables.values())[-1]
    elsewhere = None
    if first.best is not None:
        column = last.values[first.best] if choose_on else _without_oneself(first)
        patients = last.patients if choose_on else tuple(np.array(first.patients, object)[first.complete])
        elsewhere = mean(column, patients, how=how)
    whole = _table(ALL, done, configurations, primary)
    decided, levels = _decided(whole, how)
    standings = tuple(
        _standing(tables[name], parts[name], configurations, first if name == first.part else None, how)
        for name in parts
    )
    return Compared(
        primary, tuple(cases), standings, first.best, elsewhere, choose_on, decided, levels, _notes(cases, whole)
    )


def _table(part: str, cases: Sequence[Swept], configurations: Sequence[Configuration], measure: str) -> Table:
    def column(found: Sequence[Numbers]) -> Float[np.ndarray, " n"]:
        return np.array([_value(numbers, measure) for numbers in found], np.float64)

    answers = {c: [case.answers[c] for case in cases] for c in configurations}
    names = dict.fromkeys(name for case in cases for name in case.baselines)
    baselines = {name: column([case.baselines.get(name, {}) for case in cases]) for name in names}
    # What a map scores that is the same everywhere does not depend on the configuration.
    chance = [next((a.numbers for a in case.answers.values() if a.numbers), {}) for case in cases]
    uniform = np.array([_value(numbers, f"{measure}_uniform") for numbers in chance], np.float64)
    if not np.isnan(uniform).all():
        baselines = {"uniform": uniform, **baselines}
    random = {c: column([answer.random for answer in found]) for c, found in answers.items()}
    return Table(
        part,
        tuple(case.entry.patient for case in cases),
        {c: column([answer.numbers for answer in found]) for c, found in answers.items()},
        baselines,
        {c: values for c, values in random.items() if not np.isnan(values).all()},
    )


def _value(numbers: Numbers, measure: str) -> float:
    value = numbers[measure].value if measure in numbers else _NAN
    return value if np.isfinite(value) else _NAN


def _without_oneself(table: Table) -> Float[np.ndarray, " n"]:
    """Return for each complete case the value of the configuration that is best for all other patients."""
    columns = np.stack([table.values[c][table.complete] for c in table.competing], 1)
    by = grouped([p for p, kept in zip(table.patients, table.complete, strict=True) if kept])
    if by.count < 2:
        return np.full(len(columns), _NAN)
    sums = np.stack([by.sums(one) for one in columns.T], 1)
    # The number of other cases is the same for all configurations, so that sums rank them as means do.
    best = (sums.sum(0) - sums).argmax(1)[by.code]
    return np.asarray(columns[np.arange(len(columns)), best])


def _standing(
    table: Table,
    cases: Sequence[Swept],
    configurations: Sequence[Configuration],
    chosen_on: Table | None,
    how: Resampling,
) -> Standing:
    """Return how all do in one part; `chosen_on` is its table if the best was chosen there."""
    best, names = table.best, {c.name: values for c, values in table.values.items() if c in table.competing}
    to_best = {}
    if best is not None and len(names) > 1:
        to_best = {one.first: one for one in compare(names, table.patients, against=best.name, how=how)}
    apart = {
        (c, name): difference(table.values[c], values, table.patients, how=how)
        for c in table.competing
        for name, values in {**table.baselines, **({RANDOM: table.random[c]} if c in table.random else {})}.items()
    }
    adjusted = holm({f"{c.name}|{name}": found.wilcoxon_p for (c, name), found in apart.items()})
    patients = {p for p, kept in zip(table.patients, table.complete, strict=True) if kept}
    ranking = rank_methods(names, table.patients) if len(names) > 2 and len(patients) > 1 else None
    places = [
        Place(
            c,
            mean(table.values[c], table.patients, how=how),
            chosen_on is not None and c == best,
            ranking.mean_ranks.get(c.name, _NAN) if ranking else _NAN,
            to_best.get(c.name),
            {
                name: (found, found.wilcoxon_p, adjusted[f"{c.name}|{name}"])
                for (other, name), found in apart.items()
                if other == c
            },
        )
        for c in configurations
    ]
    # The best stands first also where another, with fewer cases, has a higher mean.
    places.sort(key=lambda place: (place.configuration != best, -np.nan_to_num(place.interval.value, nan=-1.0)))
    baselines = {name: mean(values, table.patients, how=how) for name, values in table.baselines.items()}
    others = _others(cases, configurations, table.patients, how)
    return Standing(table.part, tuple(places), baselines, ranking, others, int(table.complete.sum()), len(patients))


def _others(
    cases: Sequence[Swept], configurations: Sequence[Configuration], patients: Sequence[str], how: Resampling
) -> dict[str, dict[Configuration, Interval]]:
    names = dict.fromkeys(name for case in cases for answer in case.answers.values() for name in answer.numbers)
    found: dict[str, dict[Configuration, Interval]] = {}
    for name in names:
        plain = name.partition("@")[0]
        if plain not in KEY and plain.rpartition("_")[0] not in KEY:
            continue
        for c in configurations:
            values = [_value(case.answers[c].numbers, name) for case in cases]
            if not all(np.isnan(values)):
                found.setdefault(name, {})[c] = mean(values, patients, how=how)
    return found


def _decided(table: Table, how: Resampling) -> tuple[Shares | None, dict[str, dict[str, float]]]:
    """Return what decides, and the mean of each level, where every model has every method that looks at layers, at every layer."""
    crossed = [c for c in table.values if c.place >= 0]
    models, methods = (list(dict.fromkeys(getattr(c, of) for c in crossed)) for of in ("model", "method"))
    places = sorted({c.place for c in crossed})
    at = {(c.model, c.place, c.method): table.values[c] for c in crossed}
    keys = [(m, p, k) for m in models for p in places for k in methods]
    if len(keys) < 2 or any(key not in at for key in keys):
        return None, {}
    columns = np.stack([at[key] for key in keys], 1)
    kept = ~np.isnan(columns).any(1)
    patients = [p for p, keep in zip(table.patients, kept, strict=True) if keep]
    if len(set(patients)) < 2:
        return None, {}
    values = columns[kept].reshape(-1, len(models), len(places), len(methods))
    layers = [" or ".join(dict.fromkeys(c.layer for c in crossed if c.place == place)) for place in places]
    means = values.mean(0)
    levels = {
        name: {level: float(number) for level, number in zip(words, means.mean(axes), strict=True)}
        for name, words, axes in (
            ("model", models, (1, 2)),
            ("layer", layers, (0, 2)),
            ("method", methods, (0, 1)),
        )
        if len(words) > 1
    }
    return shares(values, patients, how=how), levels


def _notes(cases: Sequence[Swept], table: Table) -> tuple[str, ...]:
    notes = []
    if failed := [str(case.entry.line) for case in cases if case.error]:
        notes.append(f"{len(failed)} of {len(cases)} cases failed and count nowhere: line {', '.join(failed[:20])}.")
    with_value = np.logical_or.reduce([~np.isnan(values) for values in table.values.values()])
    for c, values in table.values.items():
        missing = int((with_value & np.isnan(values)).sum())
        if missing:
            out = "" if c in table.competing else " It does not compete."
            notes.append(f"{c.name} has no value in {missing} of {int(with_value.sum())} cases.{out}")
    if left := len(table.patients) - int(with_value.sum()):
        notes.append(f"{left} cases have no value of any configuration, such as those without a lesion.")
    notes += dict.fromkeys(
        f"line {case.entry.line}: {c.name} failed: {answer.error}"
        for case in cases
        for c, answer in case.answers.items()
        if answer.error
    )
    differing = [str(case.entry.line) for case in cases if any("different classes" in note for note in case.notes)]
    if differing:
        notes.append(
            f"The models explain different classes in {len(differing)} cases (line {', '.join(differing[:10])}): name one with --target."
        )
    return tuple(notes)
