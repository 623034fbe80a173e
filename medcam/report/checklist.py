"""A checklist of what reviewers ask of a validation, with what medcam knows filled in and the rest left to the author."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from medcam import __version__
from medcam.cohort.results import Cohort
from medcam.report.cohort_numbers import Line, counted_cohort, lines, spoken, trial_lines, words_of
from medcam.validate.verdict import KINDS

AUTHOR = "author to complete"


class Item(NamedTuple):
    """One item: its guideline and number, what it asks in our words, the answer, and whether the number was checked at its source."""

    guideline: str
    asks: str
    answer: str
    checked: bool = False


def checklist(cohort: Cohort) -> tuple[Item, ...]:
    """Return the items that a validation of heatmaps can say something of; what only the author knows is marked so.

    References
    ----------
    Tejani et al., Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024 update, Radiology: AI 2024. Liu et al., Reporting
    guidelines for clinical trial reports for interventions involving artificial intelligence: the CONSORT-AI extension, 2020.
    """
    return (
        Item("CLAIM 13", "How missing data were handled", _missing(cohort), True),
        Item(
            "CLAIM 14",
            "What the reference standard is",
            f"lesion masks as the table of cases names them; how they came about: {AUTHOR}",
            True,
        ),
        Item("CLAIM 16", "Who annotated, and with what qualification", AUTHOR, True),
        Item("CLAIM 17", "With what tool it was annotated", AUTHOR, True),
        Item("CLAIM 18", "How much readers differ, from each other and from themselves", AUTHOR, True),
        Item(
            "CLAIM 19",
            "How the number of cases was chosen",
            f"{counted_cohort(cohort)} were measured; why so many: {AUTHOR}",
            True,
        ),
        Item(
            "CLAIM 28",
            "Which measures of performance were used",
            f"primary: {words_of(cohort.primary)}; all are in table.csv",
        ),
        Item("CLAIM 29", "How uncertain they are, and how that was found", _uncertainty(cohort)),
        Item("CLAIM 30", "How robust the results are", _robustness(cohort)),
        Item("CLAIM 31", "How explanations were made, and validated", _explanations(cohort)),
        Item("CLAIM", "Which software, in which version", _software(cohort)),
        Item("CLAIM", "Where the data come from, and how they were de-identified", AUTHOR),
        Item("CLAIM", "How training, tuning and test cases were kept apart", _partition(cohort)),
        Item("CONSORT-AI", "Which version of the algorithm", _algorithm(cohort)),
        Item("CONSORT-AI 19", "How errors of performance were analysed", _errors(cohort), True),
    )


def _missing(cohort: Cohort) -> str:
    failed = len(cohort.cases) - len(cohort.done)
    undefined = next((line.row.interval.undefined for line in lines(cohort) if line.row.measure == cohort.primary), 0)
    return (
        f"{failed} of {len(cohort.cases)} cases failed and count nowhere; the primary measure is undefined in {undefined} others, "
        f"which were left out of it and counted; data missing before that: {AUTHOR}"
    )


def _uncertainty(cohort: Cohort) -> str:
    how = cohort.resampling
    return f"{100 * how.level:g} % intervals, {how.replicates} bootstrap replicates over patients ({how.method}, seed {how.seed})"


def _robustness(cohort: Cohort) -> str:
    found = [line for line in trial_lines(cohort) if line.row.measure.startswith("retest_ssim@")]
    said = (
        [f"likeness (SSIM) of maps when the image is taken again: {', '.join(_again(line) for line in found)}"]
        if found
        else []
    )
    return "; ".join([*said, f"{'more of it' if said else 'not among the results of this cohort'}: {AUTHOR}"])


def _again(line: Line) -> str:
    return f"{line.row.measure.partition('@')[2]} {spoken(line.row.interval)}"


def _explanations(cohort: Cohort) -> str:
    baselines = dict.fromkeys(name for case in cohort.done for name in case.baselines)
    tried = dict.fromkeys(name.partition("@")[0] for case in cohort.done for name in case.trials)
    measured = f"measured beside chance{' and ' if baselines else ''}{listed(list(baselines))}"
    words = f"{cohort.method or 'by several methods, or unknown ones: see the recipes'}; {measured}"
    return f"{words}; tried on the network: {listed(list(tried))}" if tried else words


def _software(cohort: Cohort) -> str:
    made = dict.fromkeys(each for case in cohort.done if case.recipe for each in case.recipe.versions.items())
    heatmaps = f"; heatmaps by {', '.join(f'{name} {version}' for name, version in made)}" if made else ""
    return f"medcam {__version__}{heatmaps}"


def _partition(cohort: Cohort) -> str:
    tuned = any(threshold.tuned_on for threshold in cohort.settings.thresholds)
    kept = "the tuned threshold was used on none of the cases and patients that it was tuned on"
    return f"{AUTHOR}; {kept if tuned else 'no threshold was tuned'}"


def _algorithm(cohort: Cohort) -> str:
    if not cohort.model:
        return AUTHOR
    return f"{cohort.model}, SHA-256 {cohort.model_sha256}" if cohort.model_sha256 else cohort.model


def _errors(cohort: Cohort) -> str:
    counts = ", ".join(f"{KINDS[kind]}: {count}" for kind, count in cohort.counts.items()) or "none"
    return f"verdicts of cases: {counts}; what they mean for patients: {AUTHOR}"


def listed(words: Sequence[str]) -> str:
    """Return 'a', 'a and b' or 'a, b and c'."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)
