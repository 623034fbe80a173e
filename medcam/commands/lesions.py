"""What `--lesion` and its fellows mean, for the commands that take a mask."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medcam.volume import Heatmap, Volume


def add_lesion(parser: ArgumentParser, words: str) -> None:
    """Add the options of a lesion mask; `words` say what it is for."""
    parser.add_argument(
        "--lesion",
        metavar="MASK",
        help=f"a lesion mask, {words}: DICOM SEG or RTSTRUCT, NIfTI, NRRD, .seg.nrrd, MetaImage or a picture",
    )
    parser.add_argument(
        "--lesion-label", metavar="LABEL", help="which label of the mask, by number or name (default: all)"
    )
    parser.add_argument(
        "--lesion-share",
        type=float,
        metavar="SHARE",
        help="how much of a voxel the lesion must fill to count, above 0 to 1 (default: the voxel's centre decides)",
    )


def read_lesion(options: Namespace, image: Volume) -> Volume | None:
    """Return the mask that is asked for, or None."""
    if not options.lesion:
        return None
    from medcam.formats import read_mask

    return read_mask(options.lesion, label=options.lesion_label, like=image)


def lay_lesion(options: Namespace, heatmap: Heatmap, lesion: Volume | None) -> Volume | None:
    """Return the mask on the heatmap's grid, so that one that does not belong there is refused before anything is written."""
    from medcam.validate.localization import laid_on

    return None if lesion is None else laid_on(heatmap, lesion, at_least=options.lesion_share)
