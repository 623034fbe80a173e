"""What a text such as `rise(masks=2000)` asks for: a row of a table, with options; and what options may be, said in one voice."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pkgutil import resolve_name
from typing import Any

from medcam.errors import UsageError

Table = Mapping[str, Callable[..., Any]] | Mapping[str, str]


@dataclass(frozen=True)
class Choice:
    """A row of a table: what it is called, the function that stands there, and the options given for it."""

    name: str
    function: Callable[..., Any]
    options: Mapping[str, object]


def chosen(text: str, table: Table, *, kind: str) -> Choice:
    """Return the row that a text names: `grad-cam`, or with options, `rise(masks=2000)`.

    Other packages add rows by the entry point groups `medcam.explainers` and `medcam.formats`.

    Parameters
    ----------
    table
        Functions by name, or where they are ('package.module:function', loaded on use). Their keyword-only parameters are the options.
    kind
        What a row is, in one word: 'method' or 'format'.

    Raises
    ------
    UsageError
        If there is no such row or option, or an option's value is not a literal.
    """
    name, bracket, rest = text.strip().partition("(")
    name = name.strip()
    function = _row(name, table, kind)
    options = _literals(text, rest, kind) if bracket else {}
    known = options_of(function)
    for option in options:
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UsageError(f"{name} has no option '{option}'; {has}")
    return Choice(name, function, options)


def function_at(row: Callable[..., Any] | str) -> Callable[..., Any]:
    """Return the function of a row, which may say only where it is."""
    function: Callable[..., Any] = resolve_name(row) if isinstance(row, str) else row
    return function


def options_of(function: Callable[..., Any]) -> dict[str, object]:
    """Return the options of a row's function and their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def listed(text: str) -> list[str]:
    """Return the parts of a list separated by commas, except for commas within brackets or quotes: `nifti,rise(masks=5,seed=1)`."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def one_of(option: str, value: object, allowed: Sequence[str]) -> None:
    """Raise a UsageError unless the value is one of the allowed names."""
    if value not in allowed:
        names = ", ".join(f"'{name}'" for name in allowed)
        raise UsageError(f"{option} is one of {names}, not {value!r}")


def at_least(option: str, value: object, least: int = 1) -> None:
    """Raise a UsageError unless the value is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{option} is a whole number of at least {least}, not {value!r}")


def between(option: str, value: object, low: float | int, high: float | int) -> None:
    """Raise a UsageError unless the value is a number strictly between two others."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low < value < high:
        raise UsageError(f"{option} is a number between {low:g} and {high:g}, not {value!r}")


def not_negative(option: str, value: object) -> None:
    """Raise a UsageError unless the value is a number of at least 0."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise UsageError(f"{option} is a number of at least 0, not {value!r}")


def _row(name: str, table: Table, kind: str) -> Callable[..., Any]:
    if name in table:
        return function_at(table[name])
    added = {entry.name: entry for entry in entry_points(group=_GROUPS[kind])}
    if name in added:
        found: Callable[..., Any] = added[name].load()
        return found
    every = sorted([*table, *added])
    near = difflib.get_close_matches(name, every, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UsageError(f"there is no {kind} '{name}'{hint} (medcam has {', '.join(every)})")


def _literals(text: str, rest: str, kind: str) -> dict[str, object]:
    try:
        tree = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(tree, ast.Call) or tree.args or any(keyword.arg is None for keyword in tree.keywords):
            raise ValueError(text)
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in tree.keywords}
    except (ValueError, SyntaxError, TypeError, RecursionError) as error:
        raise UsageError(
            f"'{text}' is not a {kind} with options, such as {_EXAMPLES[kind]}: options are name=value, and values are numbers, "
            "'texts', True, False, None or lists of them"
        ) from error


# Where other packages add rows, and what a row with options looks like.
_GROUPS = {"method": "medcam.explainers", "format": "medcam.formats"}
_EXAMPLES = {"method": "grad-cam or rise(masks=2000)", "format": "nifti or dicom-sc(slices='key')"}
