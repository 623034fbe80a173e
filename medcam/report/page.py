"""One self-contained HTML page for a case: viewer, figure, findings and recipe, without any request to the outside."""

from __future__ import annotations

import base64
import gzip
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np

from medcam import __version__
from medcam.errors import UsageError
from medcam.geometry import index_map
from medcam.render import display_range, montage
from medcam.report.frame import framed, web_file
from medcam.report.layers import Shown, heatmap_layer, image_layer, on_grid, outline_layer, shown_grid
from medcam.volume import Heatmap, Volume
from medcam.whole_file import whole_file

LIBRARY = "niivue-0.69.0.umd.js.gz"
_PLANES = {"sagittal": 2, "coronal": 1, "axial": 0}
_THREE = [["three planes", 3], *([name, number] for name, number in reversed(_PLANES.items()))]


@dataclass(frozen=True, eq=False)
class Case:
    """What a page shows.

    Parameters
    ----------
    volume
        The image that was explained.
    heatmaps
        One or more, on the image's grid: of several methods, layers, targets or models.
    threshold
        The fraction of each heatmap's maximum from which it is coloured, at first.
    lesion
        The lesion's mask, to be outlined.
    measures
        For each heatmap what was measured of it, by name: a number, or a number and its unit.
    title
        The page's title; what was explained if empty. It must name no patient.
    """

    volume: Volume
    heatmaps: tuple[Heatmap, ...]
    threshold: float = 0.5
    lesion: Volume | None = None
    measures: tuple[Mapping[str, object], ...] = ()
    title: str = ""


def write_case_page(case: Case, path: Path) -> None:
    """Write the page of a case to a file, whole or not at all.

    Raises
    ------
    UsageError
        If there is no heatmap, or one does not lie on the image's grid.
    OutputError
        If the file cannot be written.
    """
    page = case_page(case)
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def case_page(case: Case) -> str:
    """Return the page of a case. The same case gives the same page.

    Raises
    ------
    UsageError
        If there is no heatmap, or one does not lie on the image's grid.
    """
    _check(case)
    first, shown = case.heatmaps[0], shown_grid(case.volume.grid)
    lesion = None if case.lesion is None else on_grid(case.lesion, case.volume.grid)
    layers = {"image": image_layer(case.volume, shown)}
    layers |= {f"heatmap-{n}": heatmap_layer(each, shown) for n, each in enumerate(case.heatmaps)}
    if lesion is not None:
        layers["outline"] = outline_layer(lesion, shown)
    main = Template(web_file("page.html")).substitute(
        shown=escape(_shown_words(shown)),
        figures="\n".join(_figure(case, each) for each in case.heatmaps),
        findings=_findings(case),
        measures=_measures(case),
        notes=_notes(case),
        recipes="\n".join(_recipe(each) for each in case.heatmaps),
    )
    made_by = f"<p>Made by medcam {escape(__version__)}. The viewer is NiiVue, under its own licence.</p>"
    licences = escape(web_file("niivue-NOTICE.txt"))
    return framed(
        case.title or first.target,
        " · ".join(dict.fromkeys((first.target, first.recipe.model or "a network in memory", first.source.label))),
        main=main,
        footer=f"{made_by}<details><summary>Licences of the viewer</summary><pre>{licences}</pre></details>",
        style="page.css",
        script="viewer.js",
        data=_data(_viewer_values(case, lesion is not None), layers),
    )


def _data(values: dict[str, object], layers: Mapping[str, bytes]) -> str:
    """Return what the viewer's script reads: the case, its layers, and the library itself."""
    library = _text((files("medcam.report") / "web" / LIBRARY).read_bytes())
    held = {**{f"layer-{name}": _text(data) for name, data in layers.items()}, "library": library}
    parts = [f'<script type="text/plain" id="{name}">{text}</script>' for name, text in held.items()]
    return "\n".join([f'<script type="application/json" id="case">{_json(values)}</script>', *parts])


def library_source() -> bytes:
    """Return the viewer's library as its makers published it."""
    return gzip.decompress((files("medcam.report") / "web" / LIBRARY).read_bytes())


def _check(case: Case) -> None:
    if not case.heatmaps:
        raise UsageError("a report needs at least one heatmap")
    for each in case.heatmaps:
        index_map(each.grid, case.volume.grid)
        if not each.grid.is_close(case.volume.grid):
            raise UsageError(
                f"a heatmap lies on a grid of shape {each.grid.shape} and the image on another, of shape "
                f"{case.volume.grid.shape}; give the image that the heatmaps were made for"
            )


def names_of(heatmaps: Sequence[Heatmap]) -> list[str]:
    """Return what tells the heatmaps apart: the method, and what else differs among them."""
    parts = [
        (each.recipe.method, each.recipe.layer, each.target, each.recipe.model, f"seed {each.recipe.seed}")
        for each in heatmaps
    ]
    differs = [n == 0 or len({one[n] for one in parts}) > 1 for n in range(len(parts[0]))] if parts else []
    names = [" · ".join(part for part, told in zip(one, differs, strict=True) if told and part) for one in parts]
    return [name if names.count(name) == 1 else f"{name} ({n + 1})" for n, name in enumerate(names)]


def _viewer_values(case: Case, lesion: bool) -> dict[str, object]:
    grid, source = case.volume.grid, case.volume.source
    thin = [axis for axis, n in enumerate(grid.shape) if n == 1]
    centre = grid.world_mm((np.array(grid.shape) - 1) / 2)
    planes = _THREE
    if thin:
        letter = grid.axis_codes[thin[-1]]
        name = "sagittal" if letter in "LR" else "coronal" if letter in "AP" else "axial"
        planes = [[name if source.oriented else "as stored", _PLANES[name]]]
    peaks = [each.peak() for each in case.heatmaps]
    return {
        "heatmaps": [
            {"name": name, "peak_mm": None if peak is None else list(peak.world_mm)}
            for name, peak in zip(names_of(case.heatmaps), peaks, strict=True)
        ],
        "lesion": lesion,
        "window": list(display_range(case.volume)),
        "threshold": case.threshold,
        "unit": case.volume.unit,
        "oriented": source.oriented,
        "placed": source.placed,
        "spaced": source.spaced,
        "spacing_mm": list(grid.spacing_mm),
        "index_from_world": np.linalg.inv(grid.affine)[:3].tolist(),
        "centre_mm": centre.tolist(),
        "planes": planes,
    }


def _shown_words(shown: Shown) -> str:
    if shown.factors == (1, 1, 1):
        return ""
    return (
        f" To keep the page small, each voxel shown stands for {' x '.join(map(str, shown.factors))} of the image: its mean, and the "
        "largest relevance. The figure and the numbers are of the image itself."
    )


def _figure(case: Case, heatmap: Heatmap) -> str:
    drawn = io.BytesIO()
    figure = montage(heatmap, case.volume, lesion=case.lesion, threshold=case.threshold)
    figure.savefig(drawn, dpi=100, format="png", metadata={"Software": None})
    words = (
        f"Planes through the peak of {heatmap.recipe.method} for {heatmap.target}, plain and with the heatmap. Peak: "
    )
    words += heatmap.peak_in_words()
    return f'<figure><img alt="{escape(words)}" src="data:image/png;base64,{_text(drawn.getvalue())}"></figure>'


def _findings(case: Case) -> str:
    rows = []
    for name, each in zip(names_of(case.heatmaps), case.heatmaps, strict=True):
        voxel = math.prod(case.volume.grid.spacing_mm)
        count = int(each.mask(case.threshold).sum())
        size = (
            f"{count * voxel / 1000:.2f} mL"
            if case.volume.source.spaced and 1 not in case.volume.grid.shape
            else f"{count} voxels"
        )
        sure = "" if each.probability is None else f"{each.probability:.3f}"
        unseen = f"{100 * float(np.isnan(each.relevance).mean()):.1f} %"
        rows.append(
            (name, each.target, f"{each.score:.4g} ({each.recipe.score})", sure, each.peak_in_words(), size, unseen)
        )
    heads = (
        "heatmap",
        "target",
        "score",
        "probability",
        "peak",
        f"at or above {case.threshold:g} of the maximum",
        "not looked at",
    )
    return _table(heads, rows)


def _measures(case: Case) -> str:
    if not any(case.measures):
        return ""
    names = names_of(case.heatmaps)
    keys = list(dict.fromkeys(key for each in case.measures for key in each))
    rows = [(key, *(_shown(each.get(key)) for each in case.measures)) for key in keys]
    title = '<h2 id="measures-title">Against the lesion</h2>'
    return f'<section aria-labelledby="measures-title">{title}{_table(("measure", *names), rows)}</section>'


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        number, unit = value
        return (
            " ".join(word for word in (_shown(number), str(unit)) if word and _shown(number) != "not defined")
            or "not defined"
        )
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "not defined"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _notes(case: Case) -> str:
    notes = dict.fromkeys((*case.volume.source.notes, *(note for each in case.heatmaps for note in each.notes)))
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<section aria-labelledby="notes-title"><h2 id="notes-title">To know about this result</h2><ul>{items}</ul></section>'


def _recipe(heatmap: Heatmap) -> str:
    words = json.dumps(heatmap.recipe.to_json(), indent=2, ensure_ascii=False)
    return f"<details><summary>{escape(heatmap.recipe.method)}, {escape(heatmap.target)}</summary><pre>{escape(words)}</pre></details>"


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(word)}</th>' for word in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(word)}</td>" for word in rest)}</tr>'
        for first, *rest in rows
    )
    return f'<div class="table" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _json(values: object) -> str:
    """Return JSON that no word in it can end the script element of."""
    text = json.dumps(values, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
