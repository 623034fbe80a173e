"""Sample sizes: the arithmetic of the textbooks, and simulations that a planned study has the power that was asked for."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest

from medcam.errors import InputError, UsageError
from medcam.validate.bootstrap import Resampling
from medcam.validate.paired import difference, mcnemar
from medcam.validate.planning import (
    plan_difference,
    plan_difference_from,
    plan_hits,
    plan_hits_from,
    plan_precision,
    plan_precision_from,
)
from medcam.validate.statistics import design_effect


@pytest.mark.parametrize(("apart", "plain", "clustered"), [(0.05, 196, 483), (0.10, 49, 121)])
def test_a_paired_difference_takes_what_the_textbook_says(apart: float, plain: int, clustered: int) -> None:
    """7.849 SD² / Δ² for 80 % and 5 %; cases are rounded up, so one more than the rounded number where there is a rest."""
    found = plan_difference(0.25, apart)
    assert round(found.exact) == plain
    assert found.exact == pytest.approx(7.8489 * 0.25**2 / apart**2, rel=1e-4)
    assert found.cases == ceil(found.exact) == plain + 1
    assert plan_difference(0.25, apart, effect=2.46).cases == clustered


def test_hits_take_what_the_textbook_says() -> None:
    found = plan_hits(0.20, 0.10)
    assert round(found.exact) == 233
    assert found.cases == 234
    assert plan_hits(0.10, 0.20).exact == found.exact


def test_precision_takes_what_the_textbook_says() -> None:
    """Dice with a standard deviation of 0.10: about 4 points to either side of 20 cases; of 0.03: half a point after 138."""
    assert plan_precision(0.10, 0.0438).cases == pytest.approx(20, abs=1)
    assert plan_precision(0.03, 0.005).cases == 139
    assert plan_precision(0.03, 0.005, cases_per_patient=3).patients == 47
    # 4 / 0.5^2 is 16 and not 17, whatever rounding does.
    z = 1.959963984540054
    assert plan_precision(2 / z, 0.5).cases == 16


def test_a_planned_study_finds_the_difference_as_often_as_was_asked_for() -> None:
    """Patients with three cases each, whose differences go together."""
    random = np.random.default_rng(0)
    shared, own = 0.15, 0.2

    def study(patients: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
        of = np.repeat(np.arange(patients), 3)
        return shift + shared * random.normal(size=patients)[of] + own * random.normal(size=of.size), of

    pilot, of = study(2000, 0.0)
    plan = plan_difference_from(pilot, np.zeros(6000), of, difference=0.06)
    assert plan.spread == pytest.approx(0.25, rel=0.03)
    assert plan.effect == pytest.approx(1 + 2 * 0.36, rel=0.06)
    assert plan.cases_per_patient == 3
    found = 0
    for seed in range(300):
        values, of = study(plan.patients, 0.06)
        how = Resampling(400, "percentile", seed=seed)
        found += difference(values, np.zeros(values.size), of, how=how).interval.low > 0
    assert 0.75 < found / 300 < 0.87


def test_a_planned_study_of_hits_has_its_power() -> None:
    random = np.random.default_rng(1)
    plan = plan_hits(0.20, 0.10)
    found = 0
    for _ in range(600):
        kind = random.choice(3, plan.cases, p=[0.2, 0.1, 0.7])
        found += mcnemar((kind == 0) * 1.0, (kind == 1) * 1.0, np.arange(plan.cases)).durkalski_p < 0.05
    assert 0.75 < found / 600 < 0.85


def test_a_pilots_table_gives_spread_and_clustering() -> None:
    random = np.random.default_rng(2)
    of = np.repeat(np.arange(12), 2)
    one, other = random.normal(0.5, 0.2, 24), random.normal(0.4, 0.2, 24)
    one[3] = np.nan
    apart = (one - other)[~np.isnan(one)]
    found = plan_difference_from(one, other, of, difference=0.1)
    assert found.spread == pytest.approx(apart.std(ddof=1))
    assert found.effect == max(1, design_effect(one - other, of).effect)
    assert found.cases == plan_difference(found.spread, 0.1, effect=found.effect).cases
    assert found.cautious_cases > found.cases
    precise = plan_precision_from(one, of, half_width=0.02)
    assert precise.cases == plan_precision(np.nanstd(one, ddof=1), 0.02, effect=precise.effect).cases
    hits = plan_hits_from([1, 1, 0, 1, 0, np.nan], [0, 1, 0, 0, 1, 1], [*"aabbcc"])
    assert hits.exact == pytest.approx(plan_hits(0.4, 0.2, effect=hits.effect).exact)


def test_plans_without_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="infinitely many"):
        plan_difference(0.2, 0.0)
    with pytest.raises(UsageError, match="power lies between"):
        plan_difference(0.2, 0.1, power=1.0)
    with pytest.raises(UsageError, match="differ and sum"):
        plan_hits(0.2, 0.2)
    with pytest.raises(UsageError, match="half width"):
        plan_precision(0.2, 0.0)
    with pytest.raises(UsageError, match="above 0"):
        plan_precision(0.0, 0.1)
    with pytest.raises(InputError, match="pilot of 1 patients"):
        plan_precision_from([0.1, 0.2], [*"aa"], half_width=0.1)
