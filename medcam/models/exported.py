"""Networks that `torch.export.save` wrote (.pt2): the whole network in one file, without the Python code that made it.

Such a file is meant to hold data alone, but torch's reader trusts it: it unpickles what it cannot read otherwise, loads compiled
libraries, hands symbolic sizes to `sympy.sympify` (which is `eval`), calls any function below `torch` that a node names, and writes the
names of inputs into Python source that it executes. So every record and every string of the file is held against a list of what an export
needs before torch sees it, and whatever else is found needs the user's explicit word.
"""

from __future__ import annotations

import ast
import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medcam.errors import ModelError
from medcam.models.checkpoints import TRUST_MEANS
from medcam.models.user_code import first_line

if TYPE_CHECKING:
    from torch.export import ExportedProgram

# Records that are numbers or marks; everything else is looked into, or refused.
_PLAIN_RECORDS = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|data/extra/.*|data/(weights|constants)/(weight|tensor)_\d+"
)
_JSON_RECORDS = re.compile(r"models/\w+\.json|data/(weights|constants)/\w+_config\.json")
_PICKLED_RECORDS = re.compile(r"data/(sample_inputs|weights|constants)/\w+\.pt")
# What strings may look like, by the key that they stand under. None of these can leave the place they are written to.
_WORD = re.compile(r"[\w.@]*")
_STRINGS = {
    "nn_module_stack": re.compile(r"[\w.,;@<>\[\]']*"),
    "as_string": re.compile(r"[\w., >-]*"),
    "range_constraints": re.compile(r"[\w.*+/() ,-]*"),
}
# Kept by torch as text and never run where a program is unflattened.
_NEVER_RUN = {"stack_trace", "source_fn_stack", "torch_fn", "from_node", "custom", "guards_code", "torch_version"}
_SIZE_CALLS = {
    *(
        "Symbol",
        "Integer",
        "Rational",
        "Float",
        "Add",
        "Mul",
        "Pow",
        "Max",
        "Min",
        "Mod",
        "FloorDiv",
        "CeilDiv",
        "CleanDiv",
    ),
    *(
        "PythonMod",
        "ModularIndexing",
        "FloatTrueDiv",
        "IntTrueDiv",
        "TruncToInt",
        "RoundToInt",
        "CeilToInt",
        "FloorToInt",
        "ToFloat",
    ),
    *("PowByNatural", "floor", "ceiling", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Where"),
    *("Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan"),
}
_SIZE_NODES = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call, ast.keyword, ast.UnaryOp, ast.USub, ast.UAdd),
    *(ast.BinOp, ast.operator, ast.Compare, ast.cmpop),
)
_WRAPPING_OPERATORS = {"wrap_with_set_grad_enabled", "wrap_with_autocast"}
_PYTHON_OPERATORS = {
    *(
        "_operator.getitem",
        "_operator.eq",
        "_operator.ne",
        "_operator.le",
        "_operator.ge",
        "_operator.lt",
        "_operator.gt",
    ),
    *(
        "_operator.neg",
        "_operator.pos",
        "_operator.mul",
        "_operator.add",
        "_operator.sub",
        "_operator.floordiv",
        "_operator.mod",
    ),
    *(
        "_operator.pow",
        "_operator.truediv",
        "_operator.and_",
        "_operator.or_",
        "math.trunc",
        "torch.sym_not",
        "torch.sym_int",
    ),
    *("torch.sym_float", "torch.sym_ite", "torch.sym_max", "torch.sym_min"),
}


def load_exported(
    content: bytes, name: str, *, trust_code: bool, device: str, say: Callable[[str], None]
) -> tuple[nn.Module, tuple[int | None, ...] | None, tuple[str, ...]]:
    """Return the unflattened network of an exported program, the shape of its first input (None for a side that may vary), and notes.

    The modules keep the names that they had before the export.

    Raises
    ------
    ModelError
        If the file is damaged, or would run code and `trust_code` is False.
    """
    from torch.export.passes import move_to_device_pass

    try:
        running = list(_code_in(content))
    except Exception as error:
        raise ModelError(f"{name} is damaged or not a torch.export file: {first_line(error)}") from error
    if running and not trust_code:
        listed = "; ".join(running[:5]) + (f"; and {len(running) - 5} more" if len(running) > 5 else "")
        raise ModelError(
            f"{name} is more than an exported network, and opening it can run code: {listed}. {TRUST_MEANS}"
        )
    for item in running:
        say(f"{name} can run: {item}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(io.BytesIO(content))
            if torch.device(device).type != "cpu":
                # Tensors that the graph itself makes have their device written into it.
                program = move_to_device_pass(program, device)
            # The flag alone: whether the operators act as in training was fixed by the export.
            return torch.export.unflatten(program).eval(), _input_shape(program), _notes(program)
    except Exception as error:
        raise ModelError(
            f"{name} cannot be opened as a torch.export file by torch {torch.__version__}: {first_line(error)}. A file written by another "
            "version of torch may have to be exported again"
        ) from error


def _code_in(content: bytes) -> Iterator[str]:
    # torch's own reader: a second reader of the zip could be shown other bytes than those that torch then loads.
    from torch.export.pt2_archive import PT2ArchiveReader

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if "version" in archive.namelist():
            yield "the archive has the form of torch 2.7 and before, which is read as a pickle"
            return
    with PT2ArchiveReader(io.BytesIO(content)) as reader:
        for record in reader.get_file_names():
            if _JSON_RECORDS.fullmatch(record):
                yield from _code_in_json(json.loads(reader.read_bytes(record)), record)
            elif _PICKLED_RECORDS.fullmatch(record):
                yield from _code_in_pickle(reader.read_bytes(record), record)
            elif not _PLAIN_RECORDS.fullmatch(record):
                yield f"the record {record[:80]}"


def _code_in_pickle(content: bytes, record: str) -> Iterator[str]:
    # What the restricted reader accepts, torch.export.load also reads with it, so nothing runs.
    if content:
        try:
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception:  # noqa: BLE001 - whatever the reason, torch would go on to unpickle it without restriction
            yield f"the pickle {record}"


def _code_in_json(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name, held in value.items():
            if not _STRINGS.get(key, _WORD).fullmatch(name):
                yield f"the name {name[:80]!r}"
            if name == "use_pickle" and held is not False:
                yield "a pickled tensor"
            elif name not in _NEVER_RUN:
                yield from _code_in_json(held, name)
    elif isinstance(value, list):
        for held in value:
            yield from _code_in_json(held, key)
    elif isinstance(value, str) and not _is_harmless(value, key):
        yield f"{key} {value[:80]!r}"


def _is_harmless(text: str, key: str) -> bool:
    if key == "target":
        return text in _PYTHON_OPERATORS or _is_torch_operator(text)
    if key == "expr_str":
        return _is_size(text)
    if key in ("in_spec", "out_spec"):
        return text == "" or _is_tree(json.loads(text)[1])
    return _STRINGS.get(key, _WORD).fullmatch(text) is not None


def _is_torch_operator(target: str) -> bool:
    found = re.fullmatch(r"torch\.ops\.(aten|prims|higher_order)\.(\w+)(?:\.(\w+))?", target)
    if found is None:
        return False
    family, name, overload = found.groups()
    if family == "higher_order":
        return name in _WRAPPING_OPERATORS and overload is None
    operator = getattr(getattr(getattr(torch.ops, family), name, None), overload or "", None)
    # aten::save and aten::from_file write files.
    return isinstance(operator, torch._ops.OpOverload) and not any("file" in a.name for a in operator._schema.arguments)


def _is_size(text: str) -> bool:
    """Whether a symbolic size is arithmetic of symbols and integers, so that evaluating it can do nothing else."""
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in nodes:
        if not isinstance(node, _SIZE_NODES):
            return False
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in _SIZE_CALLS):
            return False
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and not re.fullmatch(r"[A-Za-z]\w*", node.value)
        ):
            return False
    return True


def _is_tree(spec: Any) -> bool:
    if spec["type"] not in (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"):
        return False
    # A context can name an enumeration, which torch would import.
    return "__enum__" not in str(spec["context"]) and all(_is_tree(child) for child in spec["children_spec"])


def _input_shape(program: ExportedProgram) -> tuple[int | None, ...] | None:
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and node.name in names and isinstance(value, torch.Tensor):
            return tuple(side if isinstance(side, int) else None for side in value.shape)
    return None


def _notes(program: ExportedProgram) -> tuple[str, ...]:
    notes = []
    shape = _input_shape(program)
    if shape is not None and None not in shape:
        notes.append(f"the network was exported for inputs of exactly {' x '.join(map(str, shape))}")
    if any(_trains(node) for node in program.graph.nodes):
        notes.append("the network was exported in training mode: dropout or batch statistics make its answers vary")
    return tuple(notes)


def _trains(node: torch.fx.Node) -> bool:
    operator = node.target
    if not isinstance(operator, torch._ops.OpOverload):
        return False
    for place, argument in enumerate(operator._schema.arguments):
        if argument.name in ("train", "training"):
            default = node.kwargs.get(argument.name, argument.default_value)
            return (node.args[place] if place < len(node.args) else default) is True
    return False
