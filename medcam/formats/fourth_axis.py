"""One volume out of an array that holds several: over time, echoes, directions, channels."""

from __future__ import annotations

from math import prod
from typing import Any

from medcam.errors import InputError


def choose(name: str, shape: tuple[int, ...], volume: int | None) -> tuple[Any, ...]:
    """Return the index that takes one volume out of an array whose first three axes run through space.

    Raises
    ------
    InputError
        If there are several and none is chosen, or the chosen one does not exist, or there are more than four axes.
    """
    extra = shape[3:]
    count = prod(extra)
    if sum(n > 1 for n in extra) > 1:
        raise InputError(
            f"{name} has {len(shape)} axes, {' x '.join(map(str, shape))}; medcam reads 3D, or one volume of 4D"
        )
    if count > 1 and volume is None:
        raise InputError(f"{name} is 4D with {count} volumes; choose one with --volume 0 to {count - 1}")
    if volume is not None and not 0 <= volume < count:
        raise InputError(f"{name} has {count} volume{'s' if count > 1 else ''}; --volume {volume} does not exist")
    return (..., *(volume if n > 1 else 0 for n in extra)) if extra else (...,)


def said(name: str, shape: tuple[int, ...], volume: int | None) -> tuple[str, tuple[str, ...]]:
    """Return what a file's label gets appended, and the notes, where a volume was chosen."""
    if volume is None or len(shape) < 4:
        return "", ()
    return f"_v{volume}", (f"Volume {volume} (from 0) of {name} was read.",)
