"""`medcam export`: more formats of a heatmap that was stored."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from medcam.commands import Result, Say
from medcam.commands.findings import against, explained, reported
from medcam.commands.images import (
    add_identity,
    explained_without_identity,
    hides_identity,
    read_image,
    without_identity,
)
from medcam.commands.lesions import add_lesion, lay_lesion, read_lesion
from medcam.commands.parsing import Commands, command
from medcam.errors import UsageError

_EXAMPLES = """\
  medcam export results/MR_s4_1a2b3c_gradcam.nii.gz --source study_folder --series 4 --formats slicer
  medcam export results/film_gradcam.nii.gz --source film.dcm --formats dicom-sc,png --threshold 0.3 --out for_the_pacs

The heatmap's JSON sidecar must lie beside it. No network is needed, and what is written equals what
`medcam explain` would have written at once.
"""


def add(commands: Commands) -> None:
    """Add the parser."""
    export = command(
        commands, "export", "more formats of a stored heatmap, without the network", examples=_EXAMPLES, takes="image"
    )
    export.add_argument("heatmap", metavar="HEATMAP", help="a heatmap that medcam wrote as NIfTI or NRRD")
    export.add_argument(
        "--source",
        metavar="IMAGE",
        help="the image that was explained; of several, the first (a file, a folder or a zip)",
    )
    export.add_argument(
        "--formats", help="formats, separated by commas (`medcam formats` lists them)", metavar="FORMAT[,FORMAT]"
    )
    add_lesion(export, "for formats that draw or hold it")
    add_identity(export)
    export.add_argument(
        "--threshold",
        type=float,
        help="where masks and colours begin, as a fraction of the maximum (default: as stored)",
    )
    export.add_argument("--out", metavar="DIR", help="where results go (default: beside the heatmap)")


def run(options: Namespace, say: Say) -> Result:
    """Write a stored heatmap in more formats."""
    from medcam.formats import check_formats, write
    from medcam.formats.stored import label_of, read_heatmap, sidecar_of, stored_threshold

    if not options.source:
        raise UsageError("--source is missing: name the image that was explained, for a heatmap does not hold it")
    if not options.formats:
        raise UsageError("--formats is missing: name what to write, such as slicer; `medcam formats` lists all")
    path = Path(options.heatmap)
    sidecar = sidecar_of(path)
    threshold = stored_threshold(sidecar, path) if options.threshold is None else options.threshold
    say("reading the image")
    image = read_image(options, options.source)
    say("reading the heatmap")
    clean = explained_without_identity(options, image, sidecar)
    heatmap, image = read_heatmap(path, image if clean is None else clean)
    check_formats(options.formats, image, threshold=threshold)
    lesion = lay_lesion(options, heatmap, read_lesion(options, image))
    folder = path.parent if options.out is None else Path(options.out)
    if clean is None:
        heatmap, image, lesion = without_identity(options, heatmap, image, lesion)
    say(f"writing {options.formats}")
    measures = against(heatmap, lesion)
    files = write(
        heatmap,
        image,
        folder,
        formats=options.formats,
        threshold=threshold,
        # The stored name holds a part of the image's own digest.
        label=None if clean is None and hides_identity(options) else label_of(path),
        lesion=lesion,
        measures=reported(measures),
    )
    return explained(heatmap, measures, files, threshold)
