"""The commands: each file adds its parser and runs what was asked, from options to a result; nothing is printed here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Say = Callable[[str], Any]


@dataclass(frozen=True)
class Result:
    """What a command found: for machines, for people, whether all is well, and whether the user ended it early."""

    values: dict[str, Any]
    lines: list[str]
    ok: bool = True
    interrupted: bool = False
