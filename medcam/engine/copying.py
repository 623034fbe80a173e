"""Copying a module tree quickly: what `copy.deepcopy` gives, without asking every number and string how it would like to be copied."""

from __future__ import annotations

import copy
from collections import OrderedDict
from functools import cache
from types import BuiltinFunctionType, FunctionType
from typing import Any, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)

# Values that nobody can change, so that a copy may have them too.
_FIXED = {
    int, float, str, bool, complex, bytes, type(None), type, torch.dtype, torch.device, torch.Size, FunctionType,
    BuiltinFunctionType,
}  # fmt: skip
_OWN_WAYS = ("__new__", "__deepcopy__", "__copy__", "__reduce_ex__", "__reduce__", "__getstate__", "__setstate__")


def copied(network: M, memo: dict[int, Any]) -> M:
    """Return a deep copy of a module.

    Parameters
    ----------
    memo
        By `id`, what stands for things that should not be copied, as in `copy.deepcopy`; it is added to.
    """
    result: M = _copied(network, memo)
    return result


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    kind: Any = type(value)
    if kind is dict or kind is OrderedDict:
        if not value:
            return kind()
        if id(value) in memo:
            return memo[id(value)]
        entries = memo[id(value)] = kind()
        entries.update({_copied(key, memo): _copied(item, memo) for key, item in value.items()})
        return entries
    if kind in _FIXED or (kind is tuple and all(type(item) in _FIXED for item in value)):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind is list:
        items: list[Any] = []
        memo[id(value)] = items
        items.extend(_copied(item, memo) for item in value)
        return items
    if isinstance(value, nn.Module) and _ordinary(kind):
        module = memo[id(value)] = object.__new__(kind)
        state = {name: item if type(item) in _FIXED else _copied(item, memo) for name, item in vars(value).items()}
        state.pop("_compiled_call_impl", None)
        vars(module).update(state)
        return module
    return copy.deepcopy(value, memo)


@cache
def _ordinary(kind: type) -> bool:
    """Tell whether modules of a class are no more than their attributes: it has no way of its own to be copied or restored."""
    owners = [next((base for base in kind.__mro__ if name in vars(base)), object) for name in _OWN_WAYS]
    return all(owner is object or owner.__module__.startswith("torch.nn.modules.") for owner in owners)
