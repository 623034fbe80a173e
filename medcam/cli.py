"""The command line: argv to a command of `medcam.commands`, and errors to one line and an exit code."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import medcam
from medcam.commands import (
    atlas,
    cohort,
    compare,
    demo,
    doctor,
    explain,
    export,
    formats,
    inspect,
    listen,
    merge,
    methods,
    report,
    send,
    validate,
)
from medcam.commands.parsing import EXIT_CODES, Parser
from medcam.errors import MedcamError, UsageError

# Where headers are read, as it stands in the paths of source files.
_HEADERS = (f"{os.sep}pydicom{os.sep}", f"formats{os.sep}dicom")
COMMANDS = {
    "explain": explain,
    "export": export,
    "methods": methods,
    "formats": formats,
    "inspect": inspect,
    "validate": validate,
    "cohort": cohort,
    "merge": merge,
    "report": report,
    "compare": compare,
    "atlas": atlas,
    "send": send,
    "listen": listen,
    "demo": demo,
    "doctor": doctor,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run medcam as from a shell, and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Read from the raw words, since the error may be that the rest cannot be parsed.
    as_json, debug = "--json" in arguments, "--debug" in arguments
    caught: BaseException
    try:
        return _run(arguments)
    except MedcamError as error:
        caught, code, message = error, error.exit_code, str(error)
    except KeyboardInterrupt as error:
        caught, code, message = error, 130, "interrupted"
    except BrokenPipeError:  # whoever read our output has gone; nothing is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError as error:
        caught, code, message = error, 1, "not enough memory for this image and network"
    except Exception as error:  # noqa: BLE001  a defect: one line for the user, the traceback on request
        first = (_words(error).strip().splitlines() or [""])[0]
        message = f"unexpected {type(error).__name__}: {first}. This is a defect in medcam: run again with --debug and report it"
        caught, code = error, 1
    if debug:
        sys.stderr.write("Traceback (most recent call last):\n" + "".join(_told(caught)))
    sys.stderr.write(f"medcam: error: {message}\n")
    if as_json:
        sys.stdout.write(json.dumps({"ok": False, "error": message, "exit_code": code}) + "\n")
    return code


def _told(error: BaseException) -> list[str]:
    """Return the traceback of an error, and before it those of the errors that it came from."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    lines = [*_told(before), "\nfrom which came:\n\n"] if before is not None else []
    return [*lines, *traceback.format_tb(error.__traceback__), f"{type(error).__name__}: {_words(error)}\n"]


def _words(error: BaseException) -> str:
    """Return what an error says. Where a header did not parse, libraries quote it, and users send on what they read here."""
    reads_headers = any(
        place in frame.filename for frame in traceback.extract_tb(error.__traceback__) for place in _HEADERS
    )
    if reads_headers and not isinstance(error, MedcamError):
        return "(its words are left out, for they may quote a header)"
    return str(error)


def _run(arguments: list[str]) -> int:
    parser, commands = _parsers()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise UsageError(_no_such(unknown[0], options.command, commands))
    if not options.command:
        parser.print_help()
        return 0
    if getattr(options, "config", None):
        _apply_config(commands[options.command], Path(options.config))
        options = parser.parse_args(arguments)
    if not options.debug:
        # Libraries warn their programmers; what medcam's user must know stands in the notes.
        warnings.simplefilter("ignore")
    # What code will run is told whatever --quiet says; progress is not.
    options.tell = _tell
    say = (lambda _line: None) if options.quiet else _tell
    result = COMMANDS[options.command].run(options, say)
    if options.json:
        sys.stdout.write(json.dumps({"ok": result.ok, **result.values}, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("\n".join(result.lines) + "\n")
    return 130 if result.interrupted else 0 if result.ok else 1


def _no_such(word: str, name: str | None, commands: Mapping[str, argparse.ArgumentParser]) -> str:
    """Say that a word of the command line means nothing, and which one it resembles."""
    if name is None:
        return f"there is no option '{word}' before the command (`medcam --help` explains)"
    if not word.startswith("-"):
        return f"medcam {name} takes nothing more, but '{word}' came (`medcam {name} --help` explains)"
    option = word.partition("=")[0]
    # Without their dashes, which would make any two alike.
    known = [each.lstrip("-") for action in commands[name]._actions for each in action.option_strings]
    near = difflib.get_close_matches(option.lstrip("-"), known, n=1)
    hint = f"; did you mean --{near[0]}?" if near else ""
    return f"medcam {name} has no option {option}{hint} (`medcam {name} --help` explains)"


def _tell(line: str) -> None:
    sys.stderr.write(f"medcam: {line}\n")


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = Parser(
        prog="medcam",
        description="Explains what a trained network saw in a medical image, and puts it back in the right place.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"medcam {getattr(medcam, '__version__', 'unknown')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for each in COMMANDS.values():
        each.add(commands)
    return parser, dict(commands.choices)


def _apply_config(parser: argparse.ArgumentParser, path: Path) -> None:
    """Make the values of a configuration file the parser's defaults."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read the configuration {path}: {getattr(error, 'strerror', None) or error}"
        ) from error
    import yaml

    try:
        values = yaml.safe_load(text)  # JSON is YAML
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is neither JSON nor YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} should hold option names and values, such as `model: demo-mri`")
    flags = {a.dest: a.nargs == 0 for a in parser._actions}
    known = set(flags) - {"help", "config", "images", "json", "debug", "quiet"}
    defaults = {}
    for name, value in values.items():
        dest = str(name).lstrip("-").replace("-", "_")
        if dest not in known:
            near = difflib.get_close_matches(dest, known, n=1)
            raise UsageError(f"{path}: there is no option '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""))
        defaults[dest] = _config_value(flags[dest], value, f"{path}: '{name}'")
    parser.set_defaults(**defaults)


def _config_value(is_flag: bool, value: Any, where: str) -> Any:
    """Return a value as the command line would have given it; a flag is true or false and nothing that merely looks like it."""
    if is_flag != isinstance(value, bool):
        wanted = "true or false" if is_flag else "text or a number"
        raise UsageError(f"{where} should be {wanted}, not {value!r}")
    if is_flag:
        return value
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, (str, int, float)) for item in items):
        raise UsageError(f"{where} should be text, a number or a list of them, not {value!r}")
    # As text, so that the option's own conversion checks it as it would on the command line.
    return ",".join(map(str, items))


if __name__ == "__main__":
    sys.exit(main())
