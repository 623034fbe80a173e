"""A preprocessing step in words: its name and every parameter that it holds, so that a recipe is enough to make it again."""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import types
from collections.abc import Mapping, Set
from pathlib import PurePath
from typing import Any

import numpy as np

# Numbers that are written out; of larger arrays the digest tells them apart.
_MOST_NUMBERS = 64
# Transforms hold transforms, and those grids and readers; below this only the name of a thing is told.
_DEEPEST = 4


def step_words(step: object) -> str:
    """Return a transform as `Name(parameter=value, ...)`: its public attributes by name, values as JSON, what it holds alike.

    The same transform gives the same words in every run: no address, no order of a set, and of a path its last part. Of an array of many
    numbers the digest stands for them, of a function its module and name, of a lambda the digest of its code.
    """
    return _told(step, 0)


def _told(value: Any, depth: int) -> str:
    plain = _plain(value)
    if plain is not None:
        return plain
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_told(key, depth)}: {_told(each, depth)}" for key, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_told(each, depth) for each in value) + "]"
    if isinstance(value, Set):
        return "[" + ", ".join(sorted(_told(each, depth) for each in value)) + "]"
    if isinstance(value, functools.partial):
        return f"{_told(value.func, depth)}({_told([*value.args, dict(value.keywords)], depth)})"
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)):
        return _function(value)
    name = type(value).__name__
    held = {key: each for key, each in sorted(getattr(value, "__dict__", {}).items()) if not key.startswith("_")}
    if depth >= _DEEPEST or not held:
        return name
    return f"{name}({', '.join(f'{key}={_told(each, depth + 1)}' for key, each in held.items())})"


def _plain(value: Any) -> str | None:
    """Return a value that JSON has, an enumeration's, an array's or a data type's; None for any other."""
    if isinstance(value, enum.Enum):
        return json.dumps(value.value, default=str)
    if isinstance(value, PurePath) or (isinstance(value, str) and PurePath(value).is_absolute()):
        return json.dumps(PurePath(value).name, ensure_ascii=False)
    if value is None or isinstance(value, (bool, int, float, str)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, np.generic):
        return json.dumps(value.item(), default=str)
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        if value.size <= _MOST_NUMBERS:
            return json.dumps(value.tolist(), default=str)
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f'array(dtype="{value.dtype}", shape={list(value.shape)}, sha256="{digest}")'
    if isinstance(value, np.dtype) or type(value).__module__ == "torch":
        return json.dumps(str(value))
    return None


def _function(value: Any) -> str:
    name = f"{value.__module__}.{value.__qualname__}"
    code = getattr(value, "__code__", None)
    if code is None or "<lambda>" not in name:
        return name
    numbers = [each for each in code.co_consts if not isinstance(each, types.CodeType)]
    digest = hashlib.sha256(code.co_code + repr((code.co_names, numbers)).encode()).hexdigest()
    return f"{name}(sha256={digest[:16]})"
