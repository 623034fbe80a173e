"""`medcam methods`: the methods and their options."""

from __future__ import annotations

from argparse import Namespace

from medcam.commands import Result, Say
from medcam.commands.parsing import Commands, command
from medcam.commands.tables import listing

_EXAMPLES = """\
  medcam methods
  medcam explain film.dcm --model demo-cxr --method 'occlusion(window=64, stride=32)'
"""


def add(commands: Commands) -> None:
    """Add the parser."""
    command(commands, "methods", "the methods and their options", examples=_EXAMPLES)


def run(options: Namespace, say: Say) -> Result:
    """List the methods."""
    from medcam.engine.methods import EXPLAINERS

    return listing("methods", EXPLAINERS, "an option is given with the method: --method 'rise(masks=2000)'")
