"""What a method's options may be, said in one voice."""

from __future__ import annotations

from collections.abc import Sequence

from medcam.engine.baselines import BASELINES
from medcam.errors import UsageError


def one_of(option: str, value: object, allowed: Sequence[str]) -> None:
    """Raise a UsageError unless the value is one of the allowed names."""
    if value not in allowed:
        names = ", ".join(f"'{name}'" for name in allowed)
        raise UsageError(f"{option} is one of {names}, not {value!r}")


def at_least(option: str, value: object, least: int = 1) -> None:
    """Raise a UsageError unless the value is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{option} is a whole number of at least {least}, not {value!r}")


def baseline_kind(value: object) -> str | float:
    """Return what `baseline` takes: a name or a number.

    Raises
    ------
    UsageError
        If the value is neither.
    """
    if isinstance(value, str) and value in BASELINES:
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    names = ", ".join(f"'{name}'" for name in BASELINES)
    raise UsageError(f"baseline is one of {names}, or a number, not {value!r}")


def between(option: str, value: object, low: float | int, high: float | int) -> None:
    """Raise a UsageError unless the value is a number strictly between two others."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low < value < high:
        raise UsageError(f"{option} is a number between {low:g} and {high:g}, not {value!r}")


def not_negative(option: str, value: object) -> None:
    """Raise a UsageError unless the value is a number of at least 0."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise UsageError(f"{option} is a number of at least 0, not {value!r}")
