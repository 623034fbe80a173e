"""MONAI configurations (JSON or YAML): reading them, and building the few items of them that medcam needs."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.config_item import ConfigExpression
from monai.transforms import Compose
from monai.transforms.traits import RandomizableTrait

from medcam.errors import ModelError
from medcam.models.checkpoints import TRUST_MEANS
from medcam.models.config_trust import adapt_arguments, code_in, prune
from medcam.models.user_code import first_line, missing_package, pip_hint

SUFFIXES = (".json", ".yaml", ".yml")
# medcam reads the image and gives the transforms a tensor whose first axis is the channel, on the device that it runs on.
_READING = re.compile(r"(LoadImage|EnsureChannelFirst|AddChannel|AsChannelFirst|ToDevice)(d|D|Dict)?")
_MOVING = re.compile(r"EnsureType(d|D|Dict)?")


def read_config(path: Path) -> dict[str, Any]:
    """Return a configuration file as it is written, with nothing in it resolved or run.

    Raises
    ------
    ModelError
        If the file is not JSON or YAML of an object, or a package to read it is missing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = ConfigParser.load_config_file(path)
            # Keys such as 'network_def#out_channels' mean a place inside another item.
            return ConfigParser.load_config_files(path) if isinstance(content, dict) else {"preprocessing": content}
    except Exception as error:
        raise ModelError(f"{path.name} cannot be read: {first_line(error)}{pip_hint(error)}") from error


def find(config: Mapping[str, Any], ids: Sequence[str]) -> str | None:
    """Return the first of `ids` that the configuration holds, those that name a class before others, or None."""
    parser = ConfigParser(copy.deepcopy(dict(config)))
    held = [place for place in ids if place in parser]
    return next(
        (place for place in held if isinstance(parser[place], dict) and "_target_" in parser[place]),
        next(iter(held), None),
    )


def build(
    config: Mapping[str, Any], ids: Sequence[str], what: str, *, trust_code: bool, say: Callable[[str], None]
) -> tuple[list[Any], tuple[str, ...]]:
    """Return what the items `ids` of a configuration build, and notes on what was changed for it.

    Transforms that read a file or move to a device are left out. `what` names the configuration in errors.

    Raises
    ------
    ModelError
        If an item cannot be built, or building it would run code and `trust_code` is False.
    """
    with warnings.catch_warnings():
        # What MONAI warns of here (ambiguous names, deprecated arguments) is the bundle author's business, not the reader's.
        warnings.simplefilter("ignore")
        try:
            parser = ConfigParser(copy.deepcopy(dict(config)))
            parser.resolve_macro_and_relative_ids()
            _leave_out_reading(parser.get())
            parser.parse()
            imports = {place: i for place, i in parser.ref_resolver.items.items() if _is_import(i.get_config())}
            prune(parser, ids)
            code = list(code_in(parser))
            if code and trust_code:
                # Expressions use what the imports bring in.
                parser.ref_resolver.items |= imports
                code += [f"{place} = {item.get_config()}" for place, item in imports.items()]
            _ask_for_trust(code, what, trust_code, say)
            notes = tuple(adapt_arguments(parser))
            return [parser.ref_resolver.get_resolved_content(place) for place in ids], notes
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"{what} cannot be built: {_story(error)}{pip_hint(error)}") from error


def compose(transforms: Any, what: str) -> tuple[Compose, tuple[str, ...]]:
    """Return preprocessing as one Compose without the transforms that read files, and notes on what in it is random.

    Raises
    ------
    ModelError
        If it is no transform.
    """
    if isinstance(transforms, (list, tuple)):
        transforms = Compose(list(transforms))
    if not callable(transforms):
        raise ModelError(
            f"the preprocessing of {what} is a {type(transforms).__name__}; expected a list of transforms or a Compose"
        )
    if not isinstance(transforms, Compose):
        transforms = Compose([transforms])
    transforms.transforms = tuple(t for t in transforms.transforms if not _READING.fullmatch(type(t).__name__))
    random = [type(t).__name__ for t in transforms.flatten().transforms if isinstance(t, RandomizableTrait)]
    note = f"the preprocessing is random, so results can differ from run to run: {', '.join(random)}"
    return transforms, (note,) if random else ()


def _ask_for_trust(code: Sequence[str], what: str, trust_code: bool, say: Callable[[str], None]) -> None:
    if code and not trust_code:
        listed = "; ".join(code[:8]) + (f"; and {len(code) - 8} more" if len(code) > 8 else "")
        raise ModelError(f"{what} runs code: {listed}. {TRUST_MEANS}")
    for item in code:
        say(f"{what} runs: {item}")


def _is_import(config: Any) -> bool:
    try:
        return bool(ConfigExpression.is_import_statement(config))
    except SyntaxError:
        return False


def _leave_out_reading(config: Any) -> None:
    if isinstance(config, list):
        for held in config:
            _leave_out_reading(held)
    elif isinstance(config, dict):
        target = str(config.get("_target_", "")).rsplit(".", 1)[-1]
        if _READING.fullmatch(target):
            # Kept as a switched-off place without arguments: others may be referred to by their number in the list.
            config.clear()
            config.update({"_target_": target, "_disabled_": True})
        elif _MOVING.fullmatch(target):
            config.pop("device", None)
        for held in list(config.values()):
            _leave_out_reading(held)


def _story(error: BaseException) -> str:
    """Say what failed and why: MONAI wraps the reason in one error for each level of the configuration."""
    told = [first_line(error)]
    while (cause := error.__cause__) is not None:
        error = cause
    if first_line(error) not in told:
        told.append(f"{type(error).__name__}: {first_line(error)}")
    return "; ".join(told) if missing_package(error) is None else told[-1]
