"""`medcam atlas`: where a network looks across a cohort, and which of its maps point at shortcuts."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from medcam.commands import Result, Say
from medcam.commands.parsing import Commands, command
from medcam.errors import UsageError

_EXAMPLES = """\
  medcam atlas medcam-validated --out atlas
  medcam atlas heatmaps.csv --template mni_t1.nii.gz --out atlas

A folder that `medcam validate` wrote, or a table with case, patient, heatmap, and optionally image (for body and text), class and transform
(from the case to the template: 4x4 text in RAS mm, or an ITK .tfm or .mat). Research use only.
"""


def add(commands: Commands) -> None:
    """Add the parser."""
    atlas = command(
        commands, "atlas", "where a network looks across a cohort, and which maps point at shortcuts", examples=_EXAMPLES
    )  # fmt: skip
    atlas.add_argument("cohort", metavar="DIR|TABLE", help="results of `medcam validate`, or a table of heatmaps (CSV)")
    atlas.add_argument(
        "--template", metavar="IMAGE", help="the space that maps are put into (default: each image's own frame)"
    )
    atlas.add_argument(
        "--threshold", type=float, default=0.5, help="what counts as reached, as a fraction of a map's maximum (0.5)"
    )
    atlas.add_argument(
        "--normalise", default="max", choices=["max", "mass"], help="each map over its maximum (default) or its sum"
    )
    atlas.add_argument("--out", metavar="DIR", default="medcam-atlas", help="where results go (default: medcam-atlas)")


def run(options: Namespace, say: Say) -> Result:
    """Put all maps into one space, and say where they lie."""
    if not 0 < options.threshold <= 1:
        raise UsageError(f"--threshold is a fraction above 0 and up to 1, not {options.threshold:g}")
    from medcam.cohort.looking import looked, members_of, said, write_atlas
    from medcam.formats import read

    members = members_of(Path(options.cohort))
    template = read(options.template).grid if options.template else None
    found = looked(members, template=template, threshold=options.threshold, normalise=options.normalise, say=say)
    about = {"threshold": options.threshold, "normalise": options.normalise}
    files = write_atlas(found, Path(options.out), about=about)
    lines = [*said(found), *(f"{sums.maps:5} maps: {name}" for name, sums in found.groups.items())]
    lines += [f"failed   line {line}: {why}" for line, why in found.failed.items()]
    lines += [f"wrote    {file}" for file in files]
    values = {
        "words": list(said(found)),
        "shortcuts": [cluster.shortcut for cluster in found.clusters if cluster.shortcut],
        "failed": {str(line): why for line, why in found.failed.items()},
        "files": [str(file) for file in files],
    }
    return Result(values, lines, ok=not found.failed)
