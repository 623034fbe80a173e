"""`medcam methods`: the methods and their options."""

from __future__ import annotations

from argparse import Namespace

from medcam.commands import Result, Say
from medcam.commands.parsing import Commands, command
from medcam.commands.tables import listing

_EXAMPLES = """\
  medcam methods
  medcam methods 'grad-cam++'
  medcam explain film.dcm --model demo-cxr --method 'occlusion(window=64, stride=32)'
"""


def add(commands: Commands) -> None:
    """Add the parser."""
    parser = command(commands, "methods", "the methods and their options", examples=_EXAMPLES)
    parser.add_argument("name", nargs="?", metavar="NAME", help="one method, with what its options mean")


def run(options: Namespace, say: Say) -> Result:
    """List the methods, or explain one."""
    from medcam.engine.methods import EXPLAINERS

    return listing("method", EXPLAINERS, options.name, usage="--method 'rise(masks=2000)'")
