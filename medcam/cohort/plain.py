"""Frozen values as plain JSON and back: by the types that their fields are annotated with."""

from __future__ import annotations

import base64
import dataclasses
import types
import typing
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medcam.errors import InputError

# JSON has no such numbers.
_ODD = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


def to_plain(value: object) -> Any:
    """Return a value as JSON can hold it: numbers that JSON lacks as words, arrays packed, paths as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        packed = zlib.compress(np.ascontiguousarray(value).tobytes(), 6)
        return {"dtype": value.dtype.str, "shape": list(value.shape), "packed": base64.b64encode(packed).decode()}
    if isinstance(value, Mapping):
        return {str(key): to_plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(each) for each in value]
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return number if np.isfinite(number) else str(number)
    if isinstance(value, np.integer):
        return int(value)
    return value.as_posix() if isinstance(value, Path) else value


def from_plain(kind: Any, value: Any) -> Any:
    """Return the value of a kind that `to_plain` made plain.

    Raises
    ------
    InputError
        If the plain value is damaged, or of another kind.
    """
    try:
        return _revived(kind, value)
    except (KeyError, TypeError, ValueError, AttributeError, zlib.error) as error:
        raise InputError(
            f"a stored result is damaged: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from error


def _revived(kind: Any, value: Any) -> Any:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _revived(next(part for part in parts if part is not types.NoneType), value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        return kind(**{f.name: _revived(hints[f.name], value[f.name]) for f in dataclasses.fields(kind)})
    if isinstance(value, dict) and "packed" in value:
        flat = np.frombuffer(zlib.decompress(base64.b64decode(value["packed"])), np.dtype(value["dtype"]))
        return flat.reshape(value["shape"])
    if origin is tuple or (isinstance(kind, type) and issubclass(kind, tuple)):
        return _tuple(kind, parts, value)
    if origin is not None and issubclass(origin, Mapping):
        return {key: _revived(parts[1], each) for key, each in value.items()}
    if kind is float:
        return _ODD[value] if isinstance(value, str) else float(value)
    if kind is Path:
        return Path(value)
    return value


def _tuple(kind: Any, parts: tuple[Any, ...], value: Any) -> Any:
    if isinstance(kind, type) and hasattr(kind, "_fields"):
        hints = typing.get_type_hints(kind)
        return kind(*(_revived(hints[name], each) for name, each in zip(kind._fields, value, strict=True)))
    if len(parts) == 2 and parts[1] is Ellipsis:
        return tuple(_revived(parts[0], each) for each in value)
    return tuple(_revived(part, each) for part, each in zip(parts, value, strict=True))
