"""Words for a paper: a methods paragraph that says what was done and no more, the primary result, and the checklist."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from medcam import __version__
from medcam.cohort.results import HEATMAP, Cohort
from medcam.recipe import Recipe
from medcam.report.checklist import checklist, listed
from medcam.report.cohort_numbers import counted, counted_cohort, length_unit, lines, number, p_value, spoken, words_of
from medcam.report.trial_plates import sanity_words
from medcam.validate.lesions import LUNA_RATES
from medcam.whole_file import whole_file

_INTERVALS = {
    "expanded": "bias-corrected and accelerated (BCa), widened for few patients by Student's t",
    "bca": "bias-corrected and accelerated (BCa)",
    "percentile": "percentiles of the replicates",
}
_PAGE = """\
# For the paper

Written by medcam from the settings, recipes and counts of this cohort. Read every sentence before you use it.

## Methods

{methods}

## Results

{results}

## Checklist

| item | asks for | answer |
| --- | --- | --- |
{rows}

CLAIM is the Checklist for Artificial Intelligence in Medical Imaging (2024 update), CONSORT-AI the extension of CONSORT for trials. Items
are in our own words. A star: the number was not checked against the guideline; look it up before you submit.
"""


def write_paper(cohort: Cohort, path: Path) -> None:
    """Write methods paragraph, results in one paragraph, and checklist as Markdown.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    with whole_file(path) as temporary:
        temporary.write_text(paper(cohort), encoding="utf-8")


def paper(cohort: Cohort) -> str:
    """Return what a paper needs of a cohort, as Markdown."""
    rows = (
        f"| {_text(item.guideline)}{'' if item.checked else ' *'} | {_text(item.asks)} | {_text(item.answer)} |"
        for item in checklist(cohort)
    )
    methods, results = methods_paragraph(cohort), results_paragraph(cohort)
    return _PAGE.format(methods=_text(methods), results=_text(results), rows="\n".join(rows))


def methods_paragraph(cohort: Cohort) -> str:
    """Return how the heatmaps were made, measured and summed up, in sentences that are true of this cohort."""
    return " ".join([*_making(cohort), *_measuring(cohort), *_trying(cohort), *_summing(cohort)])


def _making(cohort: Cohort) -> list[str]:
    recipes = [case.recipe for case in cohort.done if case.recipe is not None and case.recipe.method]
    failed, unknown = len(cohort.cases) - len(cohort.done), len(cohort.done) - len(recipes)
    said = [f"Heatmaps of {counted_cohort(cohort)} were measured with medcam {__version__}."]
    if failed:
        said.append(
            f"{failed} more of {len(cohort.cases)} cases in the table could not be measured and are reported as failed."
        )
    if unknown:
        said.append(f"How {unknown} of the heatmaps were made is not recorded in them.")
    if not recipes:
        return said
    layer, digests = _all_of(r.layer for r in recipes), dict.fromkeys(r.model_sha256 for r in recipes if r.model_sha256)
    where = f" at layer {layer}" if layer else ""
    digest = f" (SHA-256 {next(iter(digests))})" if len(digests) == 1 else ""
    said += [
        f"{'The others' if unknown else 'They'} were computed by {_all_of(r.method for r in recipes)}{where} of the network "
        f"{_all_of(r.model for r in recipes) or 'in memory'}{digest}, for the target {_all_of(r.target for r in recipes)}.",
        f"What was explained is the target's score ({_all_of(r.score for r in recipes)}).",
        f"The seed of the method's random numbers was {_all_of(str(r.seed) for r in recipes)}.",
        *_input_words(recipes),
    ]
    names = dict.fromkeys(name for r in recipes for name in r.versions)
    versions = [f"{name} {_all_of(r.versions[name] for r in recipes if name in r.versions)}" for name in names]
    return [*said, *([f"They were computed with {', '.join(versions)}."] if versions else [])]


def _input_words(recipes: list[Recipe]) -> list[str]:
    # Their parameters stand in the recipe; a sentence holds the names.
    steps = dict.fromkeys(tuple(step.partition("(")[0] for step in r.preprocessing) for r in recipes)
    windowed = sum(bool(r.windows) for r in recipes)
    same = len(steps) == 1 and next(iter(steps))
    said = [f"Between image and network stood {', '.join(next(iter(steps)))}."] if same else []
    return [*said, *([f"In {windowed} cases the network saw the volume in sliding windows."] if windowed else [])]


def _measuring(cohort: Cohort) -> list[str]:
    settings = cohort.settings
    fair = [t.name for t in settings.thresholds if not t.oracle]
    oracles = [t.name for t in settings.thresholds if t.oracle]
    unit = length_unit(cohort)
    without = sum(case.measures is not None and not case.measures.lesions for case in cohort.done)
    said = [
        "Each heatmap was compared with its lesion mask on the heatmap's grid; negative relevance counted as none, and voxels that were "
        "not looked at counted nowhere.",
        f"The primary measure, named before the results were seen, was {words_of(cohort.primary)} ({cohort.primary}); all others explore.",
        "Where several voxels share the maximum, the hit is the share of them in the lesion; in average precision and rank accuracy "
        "voxels of equal relevance enter together.",
        "Average precision is the area under the precision-recall curve by steps.",
        f"Overlap was measured at {listed(fair)}, the same for all cases." if fair else "",
        f"{listed(oracles)} look at the case's own lesion: these are upper bounds and no results." if oracles else "",
        f"Tolerances of {listed([f'{t:g}' for t in settings.tolerances_mm])} {unit} include their limit."
        if settings.tolerances_mm
        else "",
        f"The {settings.peaks} highest peaks counted, none within {settings.peak_radius_mm:g} {unit} of a higher one.",
        "Lesions and findings are pieces connected by faces, edges or corners; findings are those at "
        f"{settings.thresholds[0].name}, and a lesion is found if one shares a voxel with it.",
        f"Pieces of a mask below {settings.least_lesion:g} mL (cm² of a film) were no lesions of their own."
        if settings.least_lesion
        else "",
        f"The free-response curve is of raw scores, read at {listed([_rate(r) for r in LUNA_RATES])} false findings a scan; there a lesion "
        f"is found by a finding whose peak lies in it, or at most {min(settings.tolerances_mm, default=0.0):g} {unit} from it."
        if cohort.froc
        else "",
        "A measure that is not defined, as of an empty mask or of a map without positive relevance, was left out and counted, never set "
        "to 0 or 1.",
        f"{without} cases had no lesion." if without else "",
    ]
    return [sentence for sentence in said if sentence]


def _trying(cohort: Cohort) -> list[str]:
    """Return what was tried on the network itself, a sentence for each trial that any case has."""
    tried = {name for case in cohort.done for name in case.trials}
    kinds = {name.partition("@")[0] for name in tried}

    def ways(kind: str) -> str:
        return listed(sorted(name.partition("@")[2] for name in tried if name.startswith(f"{kind}@")))

    said = {
        "lesion_share": "To see whether the network uses the lesion, it was filled from its surroundings, and the loss of score compared "
        "with that of healthy regions of its shape.",
        "deletion": f"Deletion and insertion replaced voxels by {ways('deletion')}, in patches, beside random maps of blobs.",
        "road": "ROAD replaced each voxel by its neighbours' mean with a little noise, beside random maps of blobs.",
        "infidelity": "Infidelity is the share of the score's changes, as boxes of the image were blurred, that the map does not foretell.",
        "average_drop": "Average drop and gain are of the probability when the image is multiplied by the map.",
        "sensitivity": "Sensitivity is the map's largest relative change under noise of a tenth of the image's standard deviation.",
        "retest_ssim": f"The image was taken again with changes of {ways('retest_ssim')}, and the maps, brought back, compared by SSIM.",
    }
    cascades = [case.cascade for case in cohort.done if case.cascade]
    drawn = (
        f"The weights of the network were drawn anew in {len(cascades[0].stages)} stages from the input on; "
        if cascades
        else ""
    )
    compared = (
        "maps were compared with the learned network's by SSIM, and that with the SSIM of maps of different patients."
    )
    return [*(words for kind, words in said.items() if kind in kinds), *([drawn + compared] if drawn else [])]


def _summing(cohort: Cohort) -> list[str]:
    how, settings = cohort.resampling, cohort.settings
    baselines = dict.fromkeys(name for case in cohort.done for name in case.baselines)
    said = [
        f"Means over cases are given with {100 * how.level:g} % intervals from {how.replicates} bootstrap replicates in which "
        f"patients were drawn with all their cases (seed {how.seed}; {_INTERVALS[how.method]}).",
        f"Chance is the same measure with the lesion moved to {settings.draws} random other places of the domain (seed {settings.seed}) "
        "or, where that is not given, that of a map that is the same everywhere, in closed form.",
    ]
    if baselines:
        known = "Beside the heatmap stand maps that know nothing of the trained network, measured alike"
        said.append(f"{known}: {listed(list(baselines))}.")
    if any(not math.isnan(one.holm) for one in cohort.comparisons):
        said.append(
            "In the primary measure the heatmap was compared with each baseline by Wilcoxon's signed-rank test on patients' mean "
            "differences, two-sided, adjusted by Holm's method for the number of baselines."
        )
    return said


def results_paragraph(cohort: Cohort) -> str:
    """Return the primary result with what stands beside it, and the verdict."""
    found = [line for line in lines(cohort) if line.row.measure == cohort.primary]
    said = []
    for line in found:
        row, name = line.row, words_of(line.row.measure)
        if row.map == HEATMAP:
            undefined = f"; undefined in {row.interval.undefined}" if row.interval.undefined else ""
            beside = "" if math.isnan(line.chance) else f"; chance {number(line.chance, row.unit)} ({line.chance_is})"
            said.append(
                f"{name[:1].upper()}{name[1:]}: {spoken(row.interval, row.unit)} ({counted(row.interval)}{undefined}{beside})."
            )
        if line.against is not None:
            over, p = line.against.difference.interval, p_value(line.against.holm)
            adjusted = f" (Holm's p {p if p.startswith('<') else f'= {p}'})" if p else ""
            said.append(f"Heatmap less {row.map}: {spoken(over, row.unit)}{adjusted}.")
    said += [sanity_words(cohort)] if cohort.sanity else []
    if cohort.verdict is not None:
        said.append(f"Verdict: {cohort.verdict.words}. {' '.join(cohort.verdict.because)}")
    return " ".join(said) or "No case could be measured."


def _all_of(values: Iterable[str]) -> str:
    """Return what all agree on, or the values one by one where they do not."""
    found = list(dict.fromkeys(values))
    if len(found) > 5:
        return f"{len(found)} different ones (see the recipes)"
    return found[0] if len(found) == 1 else listed(found)


def _rate(rate: float) -> str:
    return f"1/{round(1 / rate)}" if rate < 1 else f"{rate:g}"


def _text(text: str) -> str:
    """Return a text in which Markdown sees no markup of its own, on one line."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>#|" else letter for letter in " ".join(text.split()))
