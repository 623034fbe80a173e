"""`medcam methods` and `medcam formats`: the rows of a table, with their options."""

from __future__ import annotations

import inspect
import textwrap
from typing import TYPE_CHECKING

from medcam.commands import Result

if TYPE_CHECKING:
    from medcam.options import Table


def listing(kind: str, table: Table, name: str | None, *, usage: str) -> Result:
    """Return all rows of a table with their options, or what one row says of itself.

    Parameters
    ----------
    kind
        What a row is, in one word: 'method' or 'format'.
    usage
        How an option is given.

    Raises
    ------
    UsageError
        If there is no row of that name.
    """
    from medcam.options import chosen, function_at, options_of

    if name:
        choice = chosen(name, table, kind=kind)
        rows = {choice.name: choice.function}
    else:
        rows = {each: function_at(row) for each, row in table.items()}
    values, lines = [], []
    for row, function in rows.items():
        told = inspect.getdoc(function) or ""
        about = " ".join(told.split("\n\n")[0].split())
        options = options_of(function)
        values.append({"name": row, "about": about, "options": {each: repr(value) for each, value in options.items()}})
        given = f"({', '.join(f'{each}={value!r}' for each, value in options.items())})" if options else ""
        words = told.splitlines() if name else textwrap.wrap(about, 110)
        lines += [f"{row}{given}", *(f"    {line}".rstrip() for line in words)]
    closing = "" if name else f"; `medcam {kind}s NAME` tells what a {kind} does and what its options mean"
    return Result({f"{kind}s": values}, [*lines, f"an option is given with the {kind}: {usage}{closing}"])
