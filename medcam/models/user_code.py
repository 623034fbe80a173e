"""Code that the user names: `package.module:function`, `file.py:function` or `module:Class(size=3)`.

Whoever types the name vouches for it, so it needs no further trust; its arguments are literals and are never evaluated.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from medcam.errors import ModelError

EXAMPLE = "--factory 'monai.networks.nets:DenseNet121(spatial_dims=3, in_channels=1, out_channels=2)'"
_PIP_NAMES = {
    "cv2": "opencv-python-headless",
    "ignite": "pytorch-ignite",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


def first_line(error: BaseException) -> str:
    """Return what an error says, without its traceback: the first line that is not blank, or the name of its kind."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def missing_package(error: BaseException | None) -> str | None:
    """Return the pip name of the package whose absence led to `error`, following the chain of causes, or None."""
    while error is not None:
        if isinstance(error, ImportError) or type(error).__name__ == "OptionalImportError":
            found = re.search(r"No module named '([\w.]+)'|(?:package|import) `?([\w.]+)`?", str(error))
            name = getattr(error, "name", None) or (found and (found[1] or found[2]))
            if name and name != "from":
                return _PIP_NAMES.get(name.split(".")[0], name.split(".")[0])
        error = error.__cause__ or error.__context__
    return None


def call_factory(text: str) -> Any:
    """Return what a factory such as `package.module:function`, `file.py:function` or `module:Class(size=3)` gives.

    The folder of `file.py`, or the working folder for a module, can be imported from while the factory runs, and not afterwards.

    Raises
    ------
    ModelError
        If the text has another form, the module or the name in it cannot be found, an argument is not a literal, or the call fails.
    """
    found = re.fullmatch(r"(?P<place>.+?):(?P<name>[A-Za-z_][\w.]*)\s*(?P<call>\(.*\))?", text.strip(), re.DOTALL)
    if found is None:
        raise ModelError(f"'{text}' is not 'module:function' or 'file.py:function', such as {EXAMPLE}")
    place, name = found["place"], found["name"]
    arguments, keywords = _literal_arguments(found["call"] or "()", text)
    folder = str(Path(place).resolve().parent) if place.endswith(".py") else str(Path.cwd())
    with importable(folder):
        target: Any = _module_at(place)
        for part in name.split("."):
            target = _attribute(target, part, place)
        if isinstance(target, nn.Module) and found["call"] is None:
            return target
        try:
            return target(*arguments, **keywords)
        except Exception as error:
            raise ModelError(
                f"{name} of {place} failed: {type(error).__name__}: {first_line(error)}{pip_hint(error)}"
            ) from error


@contextmanager
def importable(folder: str) -> Iterator[None]:
    """Let modules be imported from `folder` inside the block, after all other places; `sys.path` is then as it was."""
    before = list(sys.path)
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path[:] = before


def _literal_arguments(call: str, text: str) -> tuple[list[Any], dict[str, Any]]:
    try:
        tree = ast.parse(f"f{call}", mode="eval").body
        if not (isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name)) or any(
            keyword.arg is None for keyword in tree.keywords
        ):
            raise ValueError(call)
        return [ast.literal_eval(a) for a in tree.args], {str(k.arg): ast.literal_eval(k.value) for k in tree.keywords}
    except (ValueError, SyntaxError, TypeError, RecursionError) as error:
        raise ModelError(
            f"the arguments of the factory '{text}' are not literals: only numbers, strings, True, False, None, lists, tuples and "
            f"dictionaries of them can be given, such as {EXAMPLE}"
        ) from error


def _module_at(place: str) -> Any:
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except Exception as error:
            raise ModelError(
                f"the module {place} cannot be imported: {type(error).__name__}: {first_line(error)}{pip_hint(error)}"
            ) from error
    path = Path(place)
    if not path.is_file():
        raise ModelError(f"{place} is not a file{nearest(path.name, neighbours(path))}")
    name = f"medcam_factory_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{place} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and type hints of the file look their module up by name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ModelError(
            f"{place} cannot be run: {type(error).__name__}: {first_line(error)}{pip_hint(error)}"
        ) from error
    return module


def _attribute(target: Any, name: str, place: str) -> Any:
    try:
        return getattr(target, name)
    except AttributeError as error:
        raise ModelError(f"{place} holds nothing named {name}{nearest(name, dir(target))}") from error


def pip_hint(error: BaseException) -> str:
    """Return ' (a missing package ...)' with the pip command where a missing package led to `error`, else ''."""
    package = missing_package(error)
    return "" if package is None else f" (a missing package is installed by: pip install {package})"


def neighbours(path: Path) -> list[str]:
    """Return the names of what lies in the folder of `path`."""
    try:
        return sorted(p.name for p in path.parent.iterdir())
    except OSError:
        return []


def nearest(name: str, names: list[str]) -> str:
    """Return '; did you mean a, b?' for the names most like `name`, or '' where none is."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else ""
