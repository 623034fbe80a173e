"""What `--series`, `--volume`, `--regrid`, `--deidentify` and their fellows mean, for the commands that take an image."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medcam.volume import Heatmap, Volume


def read_image(options: Namespace, path: str | Path) -> Volume:
    """Return the image at a path, read as the options ask."""
    from medcam.formats import read

    return read(
        path, series=options.series, volume=options.volume, allow_gaps=options.allow_gaps, regrid=options.regrid
    )


def add_identity(parser: ArgumentParser) -> None:
    """Add the options of de-identification."""
    parser.add_argument(
        "--deidentify",
        action="store_true",
        help="write objects without the patient, by the PS3.15 basic profile (needs medcam-xai[deidentify])",
    )
    parser.add_argument(
        "--deidentify-key",
        metavar="FILE",
        help="a secret kept in this file (made if need be), so that pseudonyms are the same from run to run",
    )


def hides_identity(options: Namespace) -> bool:
    """Tell whether results shall know no patient."""
    return bool(options.deidentify or options.deidentify_key)


def explained_without_identity(options: Namespace, image: Volume, sidecar: Mapping[str, Any]) -> Volume | None:
    """Return the image without its patient if a stored heatmap was made of it so, with the same secret; else None."""
    if not options.deidentify_key:
        return None
    from medcam.formats.deidentify import deidentified, read_secret

    clean = deidentified(image, read_secret(Path(options.deidentify_key)))
    recipe = sidecar.get("recipe")
    inputs = recipe.get("inputs") if isinstance(recipe, dict) else None
    return clean if inputs and inputs[0] == clean.source.sha256 else None


def without_identity(
    options: Namespace, heatmap: Heatmap, image: Volume, lesion: Volume | None
) -> tuple[Heatmap, Volume, Volume | None]:
    """Return heatmap, image and lesion (on the heatmap's grid), without the patient where that is asked for."""
    if not hides_identity(options):
        return heatmap, image, lesion
    from dataclasses import replace

    from medcam.formats.deidentify import deidentified, deidentified_heatmap, new_secret, read_secret

    secret = read_secret(Path(options.deidentify_key)) if options.deidentify_key else new_secret()
    image = deidentified(image, secret)
    lesion = (
        None
        if lesion is None
        else replace(lesion, grid=image.grid, source=replace(lesion.source, instances=(), slices=()))
    )
    return deidentified_heatmap(heatmap, image, secret), image, lesion
