"""The heatmaps of a cohort, read one by one and put into one space, and the files that say where they lie."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from medcam.cohort.atlas import Sums, by_group, in_own_frame, low_resolution, onto_template, read_transform
from medcam.cohort.cases import read_table
from medcam.cohort.plain import to_plain
from medcam.cohort.reading import heatmap_of, read_images
from medcam.cohort.results import Entry
from medcam.cohort.shortcuts import Cluster, Features, clusters, features, words
from medcam.cohort.stored import read_cohort
from medcam.errors import InputError, MedcamError, UsageError
from medcam.geometry import Grid
from medcam.whole_file import whole_file

Placed = Float[np.ndarray, "x y z"]
_EXAMPLES = 3


@dataclass(frozen=True, eq=False)
class Looked:
    """Where a cohort's maps lie.

    Parameters
    ----------
    grid
        Of the shared space; None for each image's own frame.
    lines
        Of the table, for each map that was placed.
    groups
        By 'all', 'class: NAME', 'decision: TP', ...
    failed
        By line, why a map was not placed.
    """

    grid: Grid | None
    lines: tuple[int, ...]
    groups: Mapping[str, Sums]
    clusters: tuple[Cluster, ...]
    features: tuple[Features, ...]
    placed: tuple[Placed, ...] = field(repr=False)
    failed: Mapping[int, str] = field(default_factory=dict)


def members_of(path: Path) -> tuple[tuple[Entry, Path, dict[str, str]], ...]:
    """Return each case with its heatmap, class and decision: of a folder that `medcam validate` wrote, or of a table of heatmaps.

    Raises
    ------
    InputError
        If there is neither, or no heatmap in it.
    """
    if path.is_dir():
        cases = read_cohort(path / "results.json").done
        found = [
            (case.entry, case.heatmap, {"class": case.target, "decision": case.decision})
            for case in cases
            if case.heatmap is not None
        ]
    else:
        entries = read_table(path, with_model=False, with_lesions=False)
        found = [(entry, entry.heatmap, {"class": entry.target}) for entry in entries if entry.heatmap is not None]
    if not found:
        raise InputError(f"{path.name} names no heatmap")
    return tuple((entry, file, labels) for entry, file, labels in found if file is not None)


def looked(
    members: Sequence[tuple[Entry, Path, Mapping[str, str]]], *, template: Grid | None, threshold: float = 0.5,
    normalise: str = "max", say: Callable[[str], Any],
) -> Looked:  # fmt: skip
    """Return where the maps lie, in the template's space or each in its image's own frame.

    Raises
    ------
    InputError
        If no map could be placed, or maps without a template do not lie alike.
    """
    placed, about, lines, labels = [], [], [], []
    codes, failed = {}, {}
    for number, (entry, file, label) in enumerate(members, 1):
        say(f"map {number} of {len(members)} (line {entry.line})")
        try:
            volumes = read_images(entry)
            heatmap, image = heatmap_of(file, volumes[0] if volumes else None)
            if template is None:
                codes["".join(heatmap.grid.axis_codes)] = entry.line
                # Before cells are averaged, or what speaks against the target would cancel what speaks for it.
                one = in_own_frame(np.maximum(heatmap.relevance, 0))
            else:
                transform = np.eye(4) if entry.transform is None else read_transform(entry.transform)
                one = onto_template(heatmap, template, transform)
            alike = image is not None and image.grid.shape == heatmap.grid.shape
            voxels = image.voxels if image is not None and alike else None
            about.append(features(heatmap.relevance, voxels, unit="a.u." if image is None else image.unit))
        except MedcamError as error:
            failed[entry.line] = str(error)
            continue
        placed.append(one)
        lines.append(entry.line)
        labels.append(label)
    if not placed:
        raise InputError(f"no map could be placed: {next(iter(failed.values()))}")
    if len(codes) > 1 and placed[0].shape[2] > 1:
        raise UsageError(
            f"the images' axes run to different sides ({', '.join(codes)}), so they have no frame of their own in common; give a --template"
        )
    groups = by_group(placed, labels, threshold=threshold, normalise=normalise)
    low = np.stack([low_resolution(one) for one in placed])
    return Looked(template, tuple(lines), groups, clusters(low, about), tuple(about), tuple(placed), failed)


def said(found: Looked) -> tuple[str, ...]:
    """Say which clusters point at shortcuts, with examples."""
    examples = [
        f"Cluster {n} ({len(cluster.members)} maps): such as line {', '.join(str(found.lines[m]) for m in cluster.members[:_EXAMPLES])}."
        for n, cluster in enumerate(found.clusters, 1)
    ]
    return (*words(found.clusters, found.features), *examples)


def write_atlas(found: Looked, out: Path, *, about: Mapping[str, object]) -> tuple[Path, ...]:
    """Write the mean and frequency map of each group (NIfTI), a picture of all groups and clusters (PNG), and atlas.json.

    In an image's own frame a voxel of the NIfTI is a cell of that frame, and its millimetres mean nothing.

    Raises
    ------
    OutputError
        If one cannot be written.
    """
    import nibabel

    affine = np.eye(4) if found.grid is None else found.grid.affine
    files = []
    for name, sums in found.groups.items():
        label = "".join(letter if letter.isalnum() else "_" for letter in name)
        for kind, values in (("mean", sums.mean), ("frequency", sums.frequency)):
            files.append(out / f"{kind}_{label}.nii.gz")
            with whole_file(files[-1]) as temporary:
                nibabel.save(nibabel.Nifti1Image(np.nan_to_num(values), affine), temporary)
    files += [out / "atlas.png", out / "atlas.json"]
    _draw(found, files[-2])
    plain = {
        "words": said(found),
        **about,
        "space": "each image's own frame" if found.grid is None else "template",
        "maps": {name: sums.maps for name, sums in found.groups.items()},
        "clusters": [
            {"shortcut": each.shortcut, "lines": [found.lines[n] for n in each.members]} for each in found.clusters
        ],
        "features": [{"line": line, **to_plain(each)} for line, each in zip(found.lines, found.features, strict=True)],
        "failed": found.failed,
    }
    with whole_file(files[-1]) as temporary:
        temporary.write_text(json.dumps(to_plain(plain), ensure_ascii=False, indent=1, allow_nan=False), "utf-8")
    return tuple(files)


def _draw(found: Looked, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows: list[tuple[str, list[tuple[str, Placed]]]] = [
        (f"{name}\n{sums.maps} maps", [("mean", sums.mean), ("frequency", sums.frequency)])
        for name, sums in found.groups.items()
    ]
    for n, cluster in enumerate(found.clusters, 1):
        words = f"\n{cluster.shortcut}" if cluster.shortcut else ""
        maps = [(f"line {found.lines[m]}", found.placed[m]) for m in cluster.members[:_EXAMPLES]]
        rows.append((f"cluster {n}{words}\n{len(cluster.members)} maps", maps))
    figure = Figure(figsize=(2 + 2 * _EXAMPLES, 2.1 * len(rows)))
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), _EXAMPLES, squeeze=False)
    for row, (title, maps) in zip(axes, rows, strict=True):
        row[0].text(-0.08, 0.5, title, transform=row[0].transAxes, ha="right", va="center", fontsize=8)
        for one in row:
            one.axis("off")
        for one, (name, values) in zip(row, maps, strict=False):
            # Depth is shown at its largest: a film is its own.
            flat = np.nan_to_num(np.maximum(values, 0)).max(2).T
            one.imshow(
                flat,
                cmap="inferno",
                vmin=0,
                vmax=float(flat.max()) or 1.0,
                origin="upper" if found.grid is None else "lower",
            )
            one.set_title(name, fontsize=7)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches="tight")
