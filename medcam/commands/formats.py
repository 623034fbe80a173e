"""`medcam formats`: what a heatmap can be written as."""

from __future__ import annotations

from argparse import Namespace

from medcam.commands import Result, Say
from medcam.commands.parsing import Commands, command
from medcam.commands.tables import listing

_EXAMPLES = """\
  medcam formats
  medcam formats dicom-seg
  medcam explain study_folder --model tumour_bundle.zip --formats nifti,dicom-sc,png
"""


def add(commands: Commands) -> None:
    """Add the parser."""
    parser = command(commands, "formats", "what a heatmap can be written as", examples=_EXAMPLES)
    parser.add_argument("name", nargs="?", metavar="NAME", help="one format, with what its options mean")


def run(options: Namespace, say: Say) -> Result:
    """List the formats, or explain one."""
    from medcam.formats import WRITERS

    return listing("format", WRITERS, options.name, usage="--formats \"nifti,NAME(option='value')\"")
