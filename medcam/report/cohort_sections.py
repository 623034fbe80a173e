"""The parts of a cohort's page, each as HTML in which all words are escaped."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from html import escape

from medcam.cohort.results import HEATMAP, Cohort
from medcam.report.cohort_extras import extras
from medcam.report.cohort_numbers import (
    ALL,
    Line,
    counted,
    headline,
    lines,
    number,
    p_value,
    spoken,
    trial_lines,
    value_of,
)
from medcam.report.paper import methods_paragraph
from medcam.report.plate import Plate
from medcam.report.sheet import svg_bytes
from medcam.report.trial_plates import sanity_words
from medcam.validate.verdict import KINDS


def verdict_section(cohort: Cohort) -> str:
    """Return the primary number, what stands beside it, and what it all comes to."""
    found = [line for line in lines(cohort) if line.row.measure == cohort.primary]
    own = next((line for line in found if line.row.map == HEATMAP), None)
    said = []
    if own is not None:
        words = f"{own.name[:1].upper()}{own.name[1:]}: {spoken(own.row.interval, own.row.unit)}"
        said.append(f'<p class="number">{escape(words)}</p>')
        said.append(f"<p>{escape(f'{counted(own.row.interval)}; {_beside(own, found)}')}</p>")
    if cohort.verdict is None:
        said.append("<p><strong>No case could be measured.</strong></p>")
    else:
        reasons = "".join(f"<li>{escape(each)}</li>" for each in cohort.verdict.because)
        said.append(
            f"<p>What the numbers come to: <strong>{escape(cohort.verdict.words)}</strong>.</p><ul>{reasons}</ul>"
        )
        if cohort.verdict.missing:
            said.append(f"<p>To say more, one would have to know: {escape(' '.join(cohort.verdict.missing))}</p>")
    counts = ", ".join(f"{KINDS[kind]}: {count}" for kind, count in cohort.counts.items())
    said += [f"<p>Cases by verdict: {escape(counts)}.</p>"] if counts else []
    return f'<div class="verdict">{"".join(said)}</div>'


def _beside(own: Line, found: Sequence[Line]) -> str:
    words = [] if math.isnan(own.chance) else [f"chance ({own.chance_is}) {number(own.chance, own.row.unit)}"]
    words += [f"{line.row.map} {number(line.row.interval.value, line.row.unit)}" for line in found if line is not own]
    return f"beside it: {', '.join(words)}" if words else "nothing stands beside it"


def summary_section(cohort: Cohort) -> str:
    """Return the few measures of a paper with their baselines, and all others behind them."""
    found = lines(cohort)
    if not found:
        return ""
    few = [line for line in found if line.row.measure in headline(cohort, found)]
    parts = [_side_by_side(cohort, few)]
    apart = [line for line in few if line.against is not None]
    if apart:
        first = [line for line in apart if line.row.measure == cohort.primary]
        others = [line for line in apart if line.row.measure != cohort.primary]
        parts.append(f"<h3>Heatmap less its baselines</h3>{_apart('Differences on the same cases', first)}")
        parts.append(
            f"<details><summary>The same for other measures, which explore</summary>{_apart('', others)}</details>"
        )
    sane = sanity_words(cohort)
    parts += [f"<h3>Randomized weights</h3><p>{escape(sane)}</p>"] if sane else []
    strata = [
        line
        for name in dict.fromkeys(row.stratum for row in cohort.summary)
        if name != ALL
        for line in lines(cohort, name)
    ]
    more = {
        "All measures": found,
        "By decision and by size of the lesion": strata,
        "What was tried on the network": trial_lines(cohort),
    }
    parts += [
        f"<details><summary>{escape(title)}</summary>{_long(each)}</details>" for title, each in more.items() if each
    ]
    parts += [
        f"<details><summary>{escape(each.title)}</summary><p>{escape(each.words)}</p>{table('', each.heads, each.rows)}</details>"
        for each in extras(cohort)
    ]
    return "\n".join(parts)


def _apart(words: str, found: Sequence[Line]) -> str:
    rows = [
        (
            line.name,
            line.row.map,
            spoken(line.against.difference.interval, line.row.unit),
            p_value(line.against.p),
            p_value(line.against.holm),
        )
        for line in found
        if line.against is not None
    ]
    return table(words, ("measure", "baseline", "difference", "p", "Holm's p"), rows)


def _side_by_side(cohort: Cohort, few: Sequence[Line]) -> str:
    others = [name for name in dict.fromkeys(line.row.map for line in few) if name != HEATMAP]
    rows = []
    for measure in dict.fromkeys(line.row.measure for line in few):
        by = {line.row.map: line for line in few if line.row.measure == measure}
        if HEATMAP not in by:
            continue
        own = by[HEATMAP]
        mark = " (primary)" if measure == cohort.primary else ""
        beside = [spoken(by[name].row.interval, own.row.unit) if name in by else "" for name in others]
        chance = "" if math.isnan(own.chance) else f"{number(own.chance, own.row.unit)} ({own.chance_is})"
        n = own.row.interval
        rows.append(
            (own.name + mark, spoken(n, own.row.unit), f"{n.cases}/{n.patients}", str(n.undefined), chance, *beside)
        )
    level = f"{100 * cohort.resampling.level:g}"
    words = (
        f"Mean over cases with its {level} % interval; patients are drawn. Undefined cases are left out and counted."
    )
    return table(words, ("measure", HEATMAP, "cases/patients", "undefined", "chance", *others), rows)


def _long(found: Sequence[Line]) -> str:
    rows = [
        (
            line.name,
            line.row.stratum,
            line.row.map,
            spoken(line.row.interval, line.row.unit),
            f"{line.row.interval.cases}/{line.row.interval.patients}",
            str(line.row.interval.undefined),
            "" if math.isnan(line.chance) else number(line.chance, line.row.unit),
            number(line.row.effect.effect) if not math.isnan(line.row.effect.effect) else "",
        )
        for line in found
    ]
    return table(
        "", ("measure", "of", "map", "mean [interval]", "cases/patients", "undefined", "chance", "design effect"), rows
    )


def figures_section(drawn: Sequence[Plate]) -> str:
    """Return figures as pictures that stay sharp, each with its words."""
    return "\n".join(
        f'<figure><img alt="{escape(plate.words)}" src="data:image/svg+xml;base64,{_text(svg_bytes(plate.figure))}">'
        f"<figcaption>{escape(plate.words)}</figcaption></figure>"
        for plate in drawn
    )


def gallery_section(sights: Sequence[tuple[int, str, bytes]]) -> str:
    """Return pictures of some cases: line, words, PNG."""
    if not sights:
        return ""
    drawn = "".join(
        f'<figure><img alt="{escape(words)}" src="data:image/png;base64,{_text(png)}">'
        f"<figcaption>Line {line}: {escape(words)}</figcaption></figure>"
        for line, words, png in sights
    )
    return f'<div class="gallery">{drawn}</div>'


def notes_section(cohort: Cohort, more: Sequence[str]) -> str:
    """Return what the reader must know: notes, failed cases and why, what the primary measure leaves out, notes of cases."""
    parts = []
    notes = dict.fromkeys((*cohort.notes, *more))
    parts += [_list(list(notes))] if notes else []
    failed = [f"line {case.entry.line}: {case.error}" for case in cohort.cases if not case.ok]
    parts += [f"<h3>Failed cases</h3>{_list(failed)}"] if failed else []
    left = [
        f"line {case.entry.line}: {case.measures.numbers[cohort.primary].why or 'no reason is known'}"
        for case in cohort.done
        if case.measures and cohort.primary in case.measures.numbers and math.isnan(value_of(case, cohort.primary))
    ]
    parts += [f"<h3>Left out of the primary measure, which is not defined there</h3>{_list(left)}"] if left else []
    own: dict[str, list[str]] = {}
    for case in cohort.cases:
        for note in case.notes:
            own.setdefault(note, []).append(str(case.entry.line))
    told = [f"{note} (line {', '.join(where)})" for note, where in own.items()]
    parts += [f"<h3>Notes of single cases</h3>{_list(told)}"] if told else []
    return "\n".join(parts)


def making_section(cohort: Cohort) -> str:
    """Return settings and recipes, and the methods paragraph that follows from them."""
    settings, how = cohort.settings, cohort.resampling
    values = {
        "primary": cohort.primary,
        "thresholds": [t.name + (" (oracle)" if t.oracle else "") for t in settings.thresholds],
        "tolerances_mm": list(settings.tolerances_mm),
        "peaks": settings.peaks,
        "peak_radius_mm": settings.peak_radius_mm,
        "least_lesion": settings.least_lesion,
        "draws": settings.draws,
        "seed": settings.seed,
        "replicates": how.replicates,
        "interval": how.method,
        "level": how.level,
        "bootstrap_seed": how.seed,
    }
    parts = [f"<p>{escape(methods_paragraph(cohort))}</p>" if cohort.done else "", _details("Settings", values)]
    recipes: dict[str, list[int]] = {}
    for case in cohort.done:
        if case.recipe is not None:
            # What differs from case to case by nature stands with the case's own heatmap.
            shared = {
                k: v
                for k, v in case.recipe.to_json().items()
                if k not in ("inputs", "input_shape", "feature_shape", "offset")
            }
            recipes.setdefault(json.dumps(shared, indent=2, ensure_ascii=False), []).append(case.entry.line)
    for text, where in recipes.items():
        parts.append(f"<details><summary>Recipe of {len(where)} cases</summary><pre>{escape(text)}</pre></details>")
    return "\n".join(parts)


def _details(title: str, values: Mapping[str, object]) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(json.dumps(values, indent=2, ensure_ascii=False))}</pre></details>"


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column names its rows."""
    head = "".join(f'<th scope="col">{escape(word)}</th>' for word in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(word)}</td>" for word in rest)}</tr>'
        for first, *rest in rows
    )
    words = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="table numbers" tabindex="0"><table>{words}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _list(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(each)}</li>' for each in items)}</ul>"


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
