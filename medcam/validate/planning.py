"""How many cases, and patients, a study needs: from assumed numbers, or from a pilot's table."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
from scipy.special import ndtri
from scipy.stats import chi2

from medcam.errors import InputError, UsageError
from medcam.validate.patients import Column, Labels, column, grouped, rows_of
from medcam.validate.statistics import design_effect

# The pilot's spread is uncertain; the cautious plan takes the value that it exceeds with this chance.
_CAUTION = 0.2


@dataclass(frozen=True)
class Plan:
    """What a study needs.

    Parameters
    ----------
    cases, patients
        Rounded up.
    exact
        The cases before rounding.
    spread, effect, cases_per_patient
        What was assumed: the standard deviation (of the differences, for paired designs), the design effect, the cases of each patient.
    cautious_cases
        The cases for the upper 80 % limit of a pilot's spread; the same as `cases` where no pilot was given.
    """

    cases: int
    patients: int
    exact: float
    spread: float
    effect: float
    cases_per_patient: float
    cautious_cases: int


def plan_difference(
    spread: float | int, difference: float | int, *, power: float | int = 0.8, alpha: float | int = 0.05, effect: float | int = 1.0,
    cases_per_patient: float | int = 1.0,
) -> Plan:  # fmt: skip
    """Return the cases that show a paired mean difference, by the normal approximation.

    Parameters
    ----------
    spread
        The standard deviation of the differences between two methods on the same case.
    difference
        The smallest one worth finding.
    alpha
        Two-sided.
    effect
        The design effect (`design_effect` of a pilot's differences).

    Raises
    ------
    UsageError
        If a number is out of range.
    """
    _check(power=power, alpha=alpha)
    if difference == 0:
        raise UsageError("a difference of 0 takes infinitely many cases; say the smallest one worth finding")
    exact = effect * (_z(1 - alpha / 2) + _z(power)) ** 2 * spread**2 / difference**2
    return _plan(exact, spread, effect, cases_per_patient)


def plan_hits(
    first_only: float | int, second_only: float | int, *, power: float | int = 0.8, alpha: float | int = 0.05, effect: float | int = 1.0,
    cases_per_patient: float | int = 1.0,
) -> Plan:  # fmt: skip
    """Return the cases that show that one of two methods hits more often, by McNemar's test.

    Parameters
    ----------
    first_only, second_only
        The expected shares of cases that only the one, or only the other, hits.

    Raises
    ------
    UsageError
        If the shares are equal, or a number is out of range.

    References
    ----------
    Connor, Sample size for testing differences in proportions for the paired-sample design, Biometrics 1987, eq. 3.
    """
    _check(power=power, alpha=alpha)
    apart, either = first_only - second_only, first_only + second_only
    if apart == 0 or min(first_only, second_only) < 0 or either > 1:
        raise UsageError(
            f"shares of cases that one method hits alone differ and sum to at most 1, unlike {first_only} and {second_only}"
        )
    spread = sqrt(either - apart**2)
    exact = effect * (_z(1 - alpha / 2) * sqrt(either) + _z(power) * spread) ** 2 / apart**2
    return _plan(exact, spread, effect, cases_per_patient)


def plan_precision(
    spread: float | int,
    half_width: float | int,
    *,
    level: float | int = 0.95,
    effect: float | int = 1.0,
    cases_per_patient: float | int = 1.0,
) -> Plan:
    """Return the cases after which a mean's interval reaches `half_width` to either side, by the normal approximation.

    Raises
    ------
    UsageError
        If a number is out of range.
    """
    _check(level=level)
    if not half_width > 0:
        raise UsageError(f"an interval's half width is above 0, not {half_width}")
    exact = effect * (_z((1 + level) / 2) * spread / half_width) ** 2
    return _plan(exact, spread, effect, cases_per_patient)


def plan_difference_from(
    first: Column,
    second: Column,
    patients: Labels,
    *,
    difference: float | int,
    power: float | int = 0.8,
    alpha: float | int = 0.05,
) -> Plan:
    """Return the cases that a study needs whose cases spread and cluster as a pilot's.

    Parameters
    ----------
    first, second
        A measure of two methods on the pilot's cases.
    difference
        The smallest difference worth finding; not the one that the pilot found, which is too uncertain to plan by.

    Raises
    ------
    InputError
        If the pilot has fewer than two patients with values of both, or no spread.
    UsageError
        If a number is out of range.
    """
    apart = column(first, len(patients), name="the first") - column(second, len(patients), name="the second")
    pilot = _pilot(apart, patients)
    asked = {"power": power, "alpha": alpha, "effect": pilot.effect, "cases_per_patient": pilot.cases_per_patient}
    plain = plan_difference(pilot.spread, difference, **asked)
    return _cautious(plain, plan_difference(pilot.upper, difference, **asked))


def plan_precision_from(
    values: Column, patients: Labels, *, half_width: float | int, level: float | int = 0.95
) -> Plan:
    """Return the cases after which the interval of a mean is so narrow, if they spread and cluster as a pilot's.

    Raises
    ------
    InputError
        If the pilot has fewer than two patients, or no spread.
    UsageError
        If a number is out of range.
    """
    pilot = _pilot(column(values, len(patients)), patients)
    asked = {"level": level, "effect": pilot.effect, "cases_per_patient": pilot.cases_per_patient}
    plain = plan_precision(pilot.spread, half_width, **asked)
    return _cautious(plain, plan_precision(pilot.upper, half_width, **asked))


def plan_hits_from(
    first: Column, second: Column, patients: Labels, *, power: float | int = 0.8, alpha: float | int = 0.05
) -> Plan:
    """Return the cases that a study needs to show that one method hits more often, if it does so as in a pilot.

    Raises
    ------
    InputError
        If the pilot has fewer than two patients with hits of both methods, or no spread.
    UsageError
        If both hit equally often in the pilot.
    """
    one, other = column(first, len(patients), name="the first"), column(second, len(patients), name="the second")
    pilot = _pilot(one - other, patients)
    kept = ~np.isnan(one - other)
    only = [float((a * (1 - b))[kept].mean()) for a, b in ((one, other), (other, one))]
    return plan_hits(
        only[0], only[1], power=power, alpha=alpha, effect=pilot.effect, cases_per_patient=pilot.cases_per_patient
    )


@dataclass(frozen=True)
class _Pilot:
    spread: float
    upper: float
    effect: float
    cases_per_patient: float


def _pilot(values: np.ndarray, patients: Labels) -> _Pilot:
    kept = ~np.isnan(values)
    by, found = grouped(rows_of(patients, kept)), values[kept]
    if by.count < 2 or np.ptp(found) == 0:
        raise InputError(f"a pilot of {by.count} patients and {found.size} cases shows no spread to plan by")
    spread, free = float(found.std(ddof=1)), by.count - 1
    # Fewer cases than independent ones are never planned for: a design effect below 1 is the pilot's chance.
    effect = max(1.0, design_effect(found, rows_of(patients, kept)).effect)
    return _Pilot(spread, spread * sqrt(free / chi2.ppf(_CAUTION, free)), effect, found.size / by.count)


def _plan(exact: float | int, spread: float | int, effect: float | int, cases_per_patient: float | int) -> Plan:
    if not (spread > 0 and effect > 0 and cases_per_patient > 0):
        raise UsageError("a plan's spread, design effect and cases per patient are above 0")
    # A billionth less, so that a whole number that rounding lifted stays what it is.
    cases = ceil(exact * (1 - 1e-9))
    return Plan(
        cases, ceil(cases / cases_per_patient), exact, float(spread), float(effect), float(cases_per_patient), cases
    )


def _cautious(plain: Plan, wider: Plan) -> Plan:
    return Plan(
        plain.cases, plain.patients, plain.exact, plain.spread, plain.effect, plain.cases_per_patient, wider.cases
    )


def _check(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 < share < 1:
            raise UsageError(f"{name} lies between 0 and 1, not at {share}")


def _z(share: float) -> float:
    return float(ndtri(share))
