"""The doors: the only room that knows tags, suffixes and LPS. `read` and `write` choose one by what lies there and by name."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from pkgutil import resolve_name

from medcam.errors import OutputError, UsageError
from medcam.formats.exporting import Export
from medcam.formats.masks import read_mask
from medcam.formats.reading import READERS, Reader, kind_of, read
from medcam.options import Choice, chosen, listed, options_of
from medcam.volume import Heatmap, Source, Volume

__all__ = ["CHECKS", "READERS", "WRITERS", "Export", "Reader", "check_formats", "kind_of", "read", "read_mask", "write"]


def write(
    heatmap: Heatmap,
    volume: Volume,
    folder: str | Path,
    *,
    formats: str | Iterable[str] = ("nifti", "png"),
    threshold: float = 0.5,
    label: str | None = None,
    lesion: Volume | None = None,
    measures: Mapping[str, object] | None = None,
) -> tuple[Path, ...]:
    """Write a heatmap in several formats, and return the files written. Each is there whole or not at all.

    Parameters
    ----------
    volume
        The (first) image that was explained: overlays show it.
    formats
        Names from `WRITERS`, with options where wanted: `["nifti", "dicom-seg(thresholds=[0.3, 0.6])"]`.
    threshold
        The fraction of the maximum (0 to 1, both excluded) from which a mask is set and pictures are coloured.
    label
        How file names begin; by default the source's label, for DICOM part of its digest, and the method; and part of the recipe's
        digest, if another heatmap of that name is stored there.
    lesion
        The lesion's mask, for formats that draw or hold it.
    measures
        What was measured against the lesion, for formats that report.

    Raises
    ------
    UsageError
        If a format or an option is unknown, or the threshold is not a fraction.
    OutputError
        If a file cannot be written, or the source cannot be written in this format.
    """
    wanted = check_formats(formats, volume, threshold=threshold)
    export = Export(
        heatmap,
        volume,
        Path(folder),
        _label(heatmap, Path(folder)) if label is None else label,
        threshold,
        _moment(volume.source),
        lesion,
        measures or {},
        {each.name: options_of(each.function) | dict(each.options) for each in wanted},
    )
    written: list[Path] = []
    for each in wanted:
        try:
            written += each.function(export, **each.options)
        except OSError as error:
            raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error
    # NIfTI and NRRD share a sidecar.
    return tuple(dict.fromkeys(written))


def check_formats(formats: str | Iterable[str], volume: Volume, *, threshold: float) -> tuple[Choice, ...]:
    """Return the formats, each once, if `write` could write them for this image: to be asked before a long computation.

    Raises
    ------
    UsageError
        If a format or an option is unknown, none is named, one is named twice, or the threshold is not a fraction.
    OutputError
        If the image cannot be the source of one of them.
    """
    words = listed(formats) if isinstance(formats, str) else list(formats)
    wanted = {text: chosen(text, WRITERS, kind="format") for text in words}
    if not wanted:
        raise UsageError(f"no format is named; medcam writes {', '.join(WRITERS)}")
    twice = [name for name, times in Counter(each.name for each in wanted.values()).items() if times > 1]
    if twice:
        raise UsageError(f"the format {twice[0]} is asked for twice, with different options; write one after the other")
    if not 0 < threshold < 1:
        raise UsageError(f"a threshold is a fraction of the maximum, above 0 and below 1, not {threshold}")
    names = tuple(each.name for each in wanted.values())
    for each in wanted.values():
        if each.name in CHECKS:
            check = resolve_name(CHECKS[each.name])
            given = {"threshold": threshold, "beside": names} | options_of(each.function) | dict(each.options)
            check(volume, **{name: given[name] for name in options_of(check)})
    return tuple(wanted.values())


def _moment(source: Source) -> datetime:
    if not source.instances:
        return datetime.now().astimezone()
    from medcam.formats.deidentify import moment

    return moment(source)


def _label(heatmap: Heatmap, folder: Path) -> str:
    """Return how file names begin, unlike those of another heatmap that is stored in the folder."""
    # Series of two patients often have one number: part of the digest keeps their files apart.
    own = f"_{heatmap.source.sha256[:6]}" if heatmap.source.format == "dicom" else ""
    # Of a method with options the name alone: the options stand in the recipe.
    method = re.sub(r"[^a-z0-9+]", "", heatmap.recipe.method.partition("(")[0].lower())
    label, recipe = f"{heatmap.source.label}{own}_{method}", heatmap.recipe.to_json()
    try:
        stored = json.loads((folder / f"{label}.json").read_text(encoding="utf-8"))["recipe"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return label
    if stored == json.loads(json.dumps(recipe)):
        return label
    # Another target, layer or network: its files would be taken for these.
    return f"{label}_{hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:6]}"


# A format is one file of this folder and one row here: a function of an `Export`, its keyword-only parameters being the options. Loaded on
# use, since each needs libraries that the others do not.
WRITERS: dict[str, str] = {
    "nifti": "medcam.formats.nifti:write_nifti",
    "nrrd": "medcam.formats.nrrd_writing:write_nrrd",
    "seg-nrrd": "medcam.formats.nrrd_writing:write_seg_nrrd",
    "dicom-sc": "medcam.formats.dicom_secondary_capture:secondary_capture",
    "dicom-seg": "medcam.formats.dicom_segmentation:segmentation",
    "dicom-pm": "medcam.formats.dicom_parametric_map:parametric_map",
    "dicom-sr": "medcam.formats.dicom_report:structured_report",
    "dicom-ps": "medcam.formats.dicom_presentation:presentation_state",
    "dicom-ko": "medcam.formats.dicom_key_objects:key_objects",
    "slicer": "medcam.formats.slicer:write_scene",
    "slicer-script": "medcam.formats.slicer_script:write_script",
    "html": "medcam.report:write_html",
    "png": "medcam.formats.picture:write_png",
}
# What refuses an image that a format cannot be written for, or its options, before anything is computed: a function of the `Volume`, and by
# name of those options that it asks for, of the `threshold`, and of the formats that are written with it (`beside`).
CHECKS: dict[str, str] = {
    "dicom-sc": "medcam.formats.dicom_secondary_capture:check_secondary_capture",
    "dicom-seg": "medcam.formats.dicom_segmentation:check_segmentation",
    "dicom-pm": "medcam.formats.dicom_parametric_map:check_parametric_map",
    "dicom-sr": "medcam.formats.dicom_derived:check_source",
    "dicom-ps": "medcam.formats.dicom_derived:check_source",
    "dicom-ko": "medcam.formats.dicom_key_objects:check_key_objects",
}
