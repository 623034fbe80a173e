"""What a MONAI configuration would run, found before any of it does.

A configuration names classes and functions to call (`_target_`) and holds Python expressions (`$...`). MONAI's own networks and transforms
with plain arguments are known to be safe; everything else is code of whoever wrote the file.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Sequence
from pydoc import locate
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.config_item import ConfigComponent, ConfigExpression
from monai.bundle.reference_resolver import ReferenceResolver
from monai.transforms import Transform
from torch import nn

from medcam.errors import ModelError

_SAFE_HOMES = ("monai.networks.", "monai.transforms.", "torch.nn.", "medcam.")
# These call what they are given, look a class up in another package by its name, or write files.
_CALLS_OTHERS = re.compile(r"(Rand)?(Lambda|TorchVision|TorchIO|CuCIM)d?|(Save|Write|Load)\w*|\w*ImageFilterd?")
# Weights that a network would fetch from the internet, only to be replaced by those of the bundle.
_FETCHES = {"pretrained": False, "use_pretrained": False, "pretrained_url": None}
_ARITHMETIC_NODES = (
    *(
        ast.Expression,
        ast.Constant,
        ast.Load,
        ast.List,
        ast.Tuple,
        ast.Dict,
        ast.Subscript,
        ast.Slice,
        ast.UnaryOp,
        ast.unaryop,
    ),
    *(
        ast.BinOp,
        ast.Add,
        ast.Sub,
        ast.Mult,
        ast.Div,
        ast.FloorDiv,
        ast.Mod,
        ast.BoolOp,
        ast.boolop,
        ast.Compare,
        ast.cmpop,
        ast.IfExp,
    ),
)
_DTYPES = {
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "long",
    "float16",
    "bfloat16",
    "half",
    "float32",
    "float",
    "float64",
    "double",
}
_FUNCTIONS = {"int", "float", "bool", "str", "len", "min", "max", "abs", "round", "sum", "list", "tuple"}


def prune(parser: ConfigParser, ids: Sequence[str]) -> None:
    """Forget every item of a parsed configuration that the given items do not refer to.

    MONAI runs each import statement of a configuration as soon as one item is resolved, wherever it stands; the forgotten ones never run.

    Raises
    ------
    ModelError
        If an item refers to one that is not there.
    """
    items = parser.ref_resolver.items
    needed: dict[str, Any] = {}
    waiting = list(ids)
    while waiting:
        place = parser.ref_resolver.normalize_id(waiting.pop())
        if place in needed:
            continue
        if place not in items:
            raise ModelError(f"the configuration refers to '{place}', which it does not hold")
        needed[place] = items[place]
        waiting += parser.ref_resolver.find_refs_in_config(items[place].get_config(), place)
    parser.ref_resolver.items = needed


def code_in(parser: ConfigParser) -> Iterator[str]:
    """Yield 'place = code' for each item of a pruned configuration that is not known to be safe."""
    for place, item in parser.ref_resolver.items.items():
        config = item.get_config()
        if isinstance(item, ConfigExpression) and not is_arithmetic(config):
            yield f"{place} = {config[:120]}"
        elif isinstance(item, ConfigComponent) and not _is_off(config) and known_class(item) is None:
            yield f"{place} = {config['_target_']!s:.120}"


def known_class(item: ConfigComponent) -> type | None:
    """Return the network or transform that an item builds, or None if it is not known to be safe to build it."""
    config = item.get_config()
    target = config["_target_"]
    if (
        not isinstance(target, str)
        or not re.fullmatch(r"[A-Za-z_][\w.]*", target)
        or config.get("_mode_", "default") != "default"
    ):
        return None
    path = item.resolve_module_name()
    if not path.startswith(_SAFE_HOMES):
        return None
    found = locate(path)
    if not isinstance(found, type) or not issubclass(found, (nn.Module, Transform)):
        return None
    return None if _CALLS_OTHERS.fullmatch(found.__name__) or not found.__module__.startswith(_SAFE_HOMES) else found


def adapt_arguments(parser: ConfigParser) -> Iterator[str]:
    """Take from each known class the arguments that it no longer has, and keep it from fetching weights; yield notes of it."""
    for item in parser.ref_resolver.items.values():
        kind = known_class(item) if isinstance(item, ConfigComponent) else None
        if kind is None or _is_off(item.get_config()):
            continue
        parameters = inspect.signature(kind).parameters
        config = dict(item.get_config())
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            unknown = sorted(set(config) - set(parameters) - ConfigComponent.non_arg_keys)
            for name in unknown:
                del config[name]
                yield f"the argument {name} of {kind.__name__} was left out: the installed MONAI does not have it"
        config |= {name: value for name, value in _FETCHES.items() if name in parameters}
        item.update_config(config)


def is_arithmetic(expression: str) -> bool:
    """Whether a `$` expression only calculates: literals, references to other items, dtypes, and functions such as len."""
    # Exactly the text that MONAI evaluates: it pastes references in even inside quotes, where they can end a string.
    references = ReferenceResolver.match_refs_pattern(expression)
    text = ReferenceResolver.update_refs_pattern(expression, references).removeprefix("$")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return _calculates(tree.body)


def _calculates(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return bool(node.id == ReferenceResolver._vars)
    if isinstance(node, ast.Attribute):
        return isinstance(node.value, ast.Name) and node.value.id in ("torch", "np", "numpy") and node.attr in _DTYPES
    if isinstance(node, ast.Call):
        known = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and not node.keywords
        return known and all(_calculates(argument) for argument in node.args)
    return isinstance(node, _ARITHMETIC_NODES) and all(_calculates(child) for child in ast.iter_child_nodes(node))


def _is_off(config: dict[str, Any]) -> bool:
    return config.get("_disabled_") is True
