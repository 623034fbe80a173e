"""Repeated measurements: published numbers and the definition in loops."""

from __future__ import annotations

import numpy as np
import pytest

from medcam.errors import UsageError
from medcam.validate import agreement
from medcam.validate.agreement import intraclass, limits_of_agreement
from medcam.validate.bootstrap import Resampling

# Six targets and four judges: Shrout and Fleiss 1979, table 2.
JUDGES = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)


def test_the_intraclass_correlation_of_shrout_and_fleiss() -> None:
    found = intraclass(list(JUDGES.T), list("abcdef"))
    assert found.value == pytest.approx(0.29, abs=0.005)
    assert found.low < found.value < found.high
    # Far from 0 it is the same.
    assert intraclass(list(JUDGES.T + 1e6), list("abcdef")).value == pytest.approx(found.value, rel=1e-6)


def test_a_replicate_is_the_correlation_of_the_cases_that_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin repeats rows and takes mean squares."""
    random = np.random.default_rng(3)
    of = np.array([0, 0, 1, 2, 2, 2, 3])
    table = random.normal(size=(7, 3)) + random.normal(size=(7, 1))
    weights, seen = np.array([[2.0, 0.0, 3.0, 1.0]]), []

    def twin(rows: np.ndarray) -> float:
        n, k = rows.shape
        cases, times = rows.mean(1, keepdims=True), rows.mean(0, keepdims=True)
        between = k * ((cases - rows.mean()) ** 2).sum() / (n - 1)
        repeats = n * ((times - rows.mean()) ** 2).sum() / (k - 1)
        error = ((rows - cases - times + rows.mean()) ** 2).sum() / ((n - 1) * (k - 1))
        return (between - error) / (between + (k - 1) * error + k / n * (repeats - error))

    rows = np.concatenate([table[of == p] for p, times in enumerate(weights[0]) for _ in range(int(times))])
    original = agreement.bootstrap
    monkeypatch.setattr(
        agreement,
        "bootstrap",
        lambda statistic, *rest, **named: seen.append(statistic(weights)) or original(statistic, *rest, **named),
    )
    assert intraclass(list(table.T), of).value == pytest.approx(twin(table))
    assert seen[0] == pytest.approx(twin(rows))


def test_agreement_is_one_for_copies_low_for_a_shift_and_undefined_for_constants() -> None:
    random = np.random.default_rng(0)
    x, patients = random.normal(size=30), list(range(30))
    assert intraclass([x, x, x], patients).value == pytest.approx(1)
    assert intraclass([x, x + 5], patients).value < 0.2
    assert np.isnan(intraclass([np.ones(5), np.ones(5)], [*"abcde"]).value)
    partly = intraclass([x, np.where(x > 1, np.nan, x)], patients)
    assert partly.undefined == (x > 1).sum()
    with pytest.raises(UsageError, match="at least two"):
        intraclass([x], patients)


def test_limits_of_agreement_hold_most_of_the_differences() -> None:
    random = np.random.default_rng(1)
    first = random.normal(size=900)
    second = first + random.normal(2, 0.5, 900)
    found = limits_of_agreement(first, second, np.arange(900) // 3, how=Resampling(500))
    assert found.bias.value == pytest.approx((second - first).mean())
    sd = (second - first).std(ddof=1)
    assert found.lower.value == pytest.approx((second - first).mean() - 1.959964 * sd)
    assert found.upper.value == pytest.approx((second - first).mean() + 1.959964 * sd)
    assert found.lower.low < found.lower.value < found.lower.high < found.upper.low
    assert np.isnan(limits_of_agreement([np.nan], [1.0], ["a"]).upper.value)
