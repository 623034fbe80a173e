"""What the parsers of several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from medcam.errors import UsageError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = argparse._SubParsersAction

EXIT_CODES = """\
exit codes:
  0 done   1 a check failed, or an unexpected error   2 wrong use   3 the model could not be loaded or run
  4 an image could not be read, or is not a regular grid   5 a result could not be written   130 interrupted
"""


class Parser(argparse.ArgumentParser):
    """Raises what argparse would print, so that all errors leave by one door."""

    def error(self, message: str) -> Any:
        raise UsageError(f"{message} (`{self.prog} --help` explains)")


def command(
    commands: Commands, name: str, words: str, *, examples: str = "", takes: str = ""
) -> argparse.ArgumentParser:
    """Add the parser of a command, and return it.

    Parameters
    ----------
    words
        What the command is for, as the list of commands shows it.
    takes
        Which shared options it has besides those that all have: 'model', 'image' or both.
    """
    shared = {"model": _model, "image": _image}
    parents = [*(shared[each]() for each in takes.split()), _common()]
    return commands.add_parser(
        name,
        help=words,
        parents=parents,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=(f"examples:\n{examples}\n" if examples else "") + EXIT_CODES,
    )


def _common() -> argparse.ArgumentParser:
    common = Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    common.add_argument("--quiet", action="store_true", help="no progress on stderr")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return common


def _model() -> argparse.ArgumentParser:
    model = Parser(add_help=False)
    model.add_argument(
        "--factory",
        metavar="MODULE:FUNCTION",
        help="what builds the network of a state dict; may have literal arguments",
    )
    model.add_argument(
        "--trust-code", action="store_true", help="allow code in the model's files to run; it is listed first"
    )
    model.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    return model


def _image() -> argparse.ArgumentParser:
    image = Parser(add_help=False)
    image.add_argument("--series", help="which DICOM series: its number, or its UID or the end of it")
    image.add_argument("--volume", type=int, metavar="N", help="which volume of a 4D image, from 0")
    image.add_argument("--allow-gaps", action="store_true", help="fill missing DICOM slices by interpolation")
    image.add_argument(
        "--regrid", action="store_true", help="interpolate tilted or uneven DICOM slices onto a regular grid"
    )
    return image


def window_sides(text: str | None) -> tuple[int, ...] | int | None:
    """Return the sides of a window; () for 'whole'."""
    if text is None or text == "whole":
        return None if text is None else ()
    try:
        sides = tuple(int(part) for part in str(text).replace("x", ",").split(","))
    except ValueError:
        raise UsageError(f"--window takes numbers of voxels, such as 96,96,96, or 'whole', not '{text}'") from None
    return sides if len(sides) > 1 else sides[0]


def overlap_shares(text: str | None) -> tuple[float, ...] | float | None:
    """Return how much windows overlap; None where nothing was said."""
    if text is None:
        return None
    try:
        shares = tuple(float(part) for part in str(text).split(","))
    except ValueError:
        raise UsageError(f"--overlap takes a share such as 0.25, or one for each axis, not '{text}'") from None
    return shares if len(shares) > 1 else shares[0]
