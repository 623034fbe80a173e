"""Directives for pages that are made from medcam's own code while the site is built, so that they cannot say anything else.

| directive | what stands there |
| --- | --- |
| `{commands}` | the help of every command, from its parser |
| `{options} medcam.engine.methods:EXPLAINERS` | a table of methods or formats, with their options and defaults |
| `{public} medcam` | what a package exports |
| `{modules} medcam.validate` | the public functions and classes of each module below a package, or of those named after it |
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Callable
from pkgutil import resolve_name
from types import ModuleType

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, NumpyDocstring
from sphinx.util.docutils import SphinxDirective

import medcam
from medcam.cli import _parsers
from medcam.options import function_at, options_of


class FromCode(SphinxDirective):
    """Markdown or reStructuredText that a function made of medcam's code, parsed where the directive stands."""

    has_content = False
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return the parsed text."""
        made = {"commands": commands, "options": options, "public": public, "modules": modules}[self.name]
        return self.parse_text_to_nodes(made(*" ".join(self.arguments).split()), allow_section_headings=True)


def commands() -> str:
    """Return the help of every command."""
    _, parsers = _parsers()
    return "\n\n".join(help_of(parser) for parser in parsers.values())


def help_of(parser: argparse.ArgumentParser) -> str:
    """Return what a command's parser says of it: usage, options in a table, examples."""
    words, _, _ = (parser.epilog or "").partition("exit codes:")
    examples = textwrap.dedent(words.replace("examples:\n", "", 1)).strip()
    usage = textwrap.fill(" ".join(parser.format_usage().split()).removeprefix("usage: "), 76, subsequent_indent="    ")
    rows = "\n".join(row for action in parser._actions if (row := row_of(action)))
    table = f"| option | |\n| --- | --- |\n{rows}"
    told = f"\n\n{fenced(examples)}" if examples else ""
    return f"(command-{parser.prog.split()[-1]})=\n## {parser.prog}\n\n{fenced(usage)}\n\n{table}{told}"


def row_of(action: argparse.Action) -> str:
    """Return an option as a row of a table, or nothing for what is hidden."""
    if action.help is argparse.SUPPRESS:
        return ""
    value = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
    if action.choices:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    name = ", ".join(f"{flag} {value}".strip() for flag in action.option_strings) or value
    about = str(action.help or "") % (vars(action) | {"prog": "medcam"})
    return f"| `{name}` | {plain(about)} |"


def options(table: str) -> str:
    """Return the rows of a table of functions: names and what they are, then each with its options."""
    functions = {name: function_at(row) for name, row in resolve_name(table).items()}
    heads = {name: " ".join((inspect.getdoc(each) or "").split("\n\n")[0].split()) for name, each in functions.items()}
    lines = [f"| `{name}` | {plain(about)} |" for name, about in heads.items()]
    told = [row_in_full(name, each) for name, each in functions.items()]
    return "\n\n".join(["\n".join(["| name | |", "| --- | --- |", *lines]), *told])


def row_in_full(name: str, function: Callable[..., object]) -> str:
    """Return what a row of a table says of itself, with what its options mean."""
    given = ", ".join(f"{each}={value!r}" for each, value in options_of(function).items())
    lines = (inspect.getdoc(function) or "").splitlines()
    escape(None, "function", name, function, None, lines)
    told = str(NumpyDocstring(lines, Config(napoleon_use_param=False)))
    return f"```{{eval-rst}}\n.. describe:: {name}({given})\n\n{textwrap.indent(told, '   ')}\n```"


def public(package: str) -> str:
    """Return what documents the names that a package exports."""
    found = importlib.import_module(package)
    named = {f"{package}.{name}": getattr(found, name) for name in sorted(found.__all__, key=str.swapcase)}
    return "\n\n".join(
        documented(each, name)
        for name, each in named.items()
        if callable(each) and (package == "medcam" or not is_everyday(each))
    )


def modules(package: str, *named: str) -> str:
    """Return what documents the public functions and classes of each module below a package, a heading for each."""
    found = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
    names = [f"{package}.{name}" for name in named] or sorted(each.name for each in found)
    return "\n\n".join(section for name in names if (section := module_section(importlib.import_module(name))))


def module_section(module: ModuleType) -> str:
    """Return a heading, what a module says of itself, and what documents its public functions and classes; nothing where it has none."""
    here = [
        documented(each, f"{module.__name__}.{name}")
        for name, each in vars(module).items()
        if not name.startswith("_") and is_own(each, module) and not is_everyday(each)
    ]
    about = " ".join((inspect.getdoc(module) or "").split("\n\n")[0].split())
    return "\n\n".join([f"## {module.__name__}", about, *here]) if here else ""


def is_own(found: object, module: ModuleType) -> bool:
    """Tell a function or class of this module from values and from what it imports."""
    return callable(found) and getattr(found, "__module__", "") == module.__name__


def is_everyday(found: object) -> bool:
    """Tell whether `medcam` itself exports it, so that it stands on that page."""
    return any(found is getattr(medcam, name) for name in medcam.__all__)


def documented(found: object, name: str) -> str:
    """Return the directive that documents a function or class."""
    kind = "autoclass" if inspect.isclass(found) else "autofunction"
    members = "\n   :members:" if kind == "autoclass" else ""
    return f"```{{eval-rst}}\n.. {kind}:: {name}{members}\n```"


def fenced(text: str) -> str:
    """Return text as a block of its own."""
    return f"```text\n{text}\n```"


def plain(text: str) -> str:
    """Return a sentence as a cell of a Markdown table; what stands in backticks is left alone."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    return "`".join(part if odd % 2 else re.sub(r"([*_<])", r"\\\1", part) for odd, part in enumerate(parts))


def escape(_app: Sphinx | None, what: str, _name: str, _found: object, _options: object, lines: list[str]) -> None:
    """Let formulas of docstrings stand as they are: `b c *s` and |m| are no markup outside backticks either."""
    if what == "property":  # what stands before a colon would be taken for its type
        lines[0] = lines[0].replace(": ", ", ")
    for at, line in enumerate(lines):
        parts = line.split("`")
        lines[at] = "`".join(part if odd % 2 else re.sub(r"([*|])", r"\\\1", part) for odd, part in enumerate(parts))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    for name in ("commands", "options", "public", "modules"):
        app.add_directive(name, FromCode)
    # Before napoleon takes the sections apart.
    app.connect("autodoc-process-docstring", escape, priority=100)
    return {"parallel_read_safe": True}
