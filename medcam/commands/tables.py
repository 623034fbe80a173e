"""`medcam methods` and `medcam formats`: the rows of a table, with their options."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from medcam.commands import Result


def listing(name: str, table: Mapping[str, Callable[..., Any]], usage: str) -> Result:
    """Return the rows of a table, their options and what they say of themselves."""
    from medcam.options import options_of

    values, rows = [], []
    for row, function in table.items():
        about = " ".join((function.__doc__ or "").strip().split("\n\n")[0].split())
        options = options_of(function)
        values.append({"name": row, "about": about, "options": {each: repr(value) for each, value in options.items()}})
        given = f"({', '.join(f'{each}={value!r}' for each, value in options.items())})" if options else ""
        rows += [f"{row}{given}", *textwrap.wrap(about, 110, initial_indent="    ", subsequent_indent="    ")]
    return Result({name: values}, [*rows, usage])
