"""`medcam formats`: what a heatmap can be written as."""

from __future__ import annotations

from argparse import Namespace

from medcam.commands import Result, Say
from medcam.commands.parsing import Commands, command
from medcam.commands.tables import listing

_EXAMPLES = """\
  medcam formats
  medcam explain study_folder --model tumour_bundle.zip --formats nifti,dicom-sc,png
"""


def add(commands: Commands) -> None:
    """Add the parser."""
    command(commands, "formats", "what a heatmap can be written as", examples=_EXAMPLES)


def run(options: Namespace, say: Say) -> Result:
    """List the formats."""
    from medcam.formats import WRITERS
    from medcam.options import function_at

    writers = {name: function_at(row) for name, row in WRITERS.items()}
    return listing("formats", writers, "an option is given with the format: --formats \"nifti,NAME(option='value')\"")
