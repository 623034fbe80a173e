"""A case of a cohort as it can be shown: its image, heatmap and lesion, read again from the files that its result names."""

from __future__ import annotations

from collections.abc import Sequence

from medcam.cohort.reading import heatmap_of, image_on, read_images, truth_of
from medcam.cohort.results import CaseResult
from medcam.errors import InputError
from medcam.report.cohort_numbers import words_of
from medcam.report.page import Case
from medcam.volume import Volume

_HALF = 0.5


def case_of(
    result: CaseResult,
    measures: Sequence[str],
    *,
    drawn_on: tuple[int, int] | None = None,
    allow_gaps: bool = False,
    regrid: bool = False,
) -> Case:
    """Return what the page of a case shows.

    Parameters
    ----------
    measures
        Which of its numbers stand on the page, by name.
    drawn_on, allow_gaps, regrid
        As the cohort knows them: how boxes and images were read.

    Raises
    ------
    InputError
        If the case failed, has no heatmap or image, or one of its files can no longer be read.
    """
    if result.measures is None:
        raise InputError(f"the case of line {result.entry.line} failed, so there is nothing to show of it")
    path = result.heatmap or result.entry.heatmap
    if path is None or not result.entry.images:
        lacks = "heatmap" if path is None else "image"
        raise InputError(f"the case of line {result.entry.line} has no {lacks} to show")
    reference = read_images(result.entry, allow_gaps=allow_gaps, regrid=regrid)[0]
    heatmap, image = heatmap_of(path, reference)
    shown = image_on(heatmap, reference if image is None else image)
    lesion = _lesion(result, reference, drawn_on)
    numbers = result.measures.numbers
    known = {words_of(name): (numbers[name].value, _unit(numbers[name].unit)) for name in measures if name in numbers}
    verdict = (
        {} if result.verdict is None else {"verdict": " ".join((result.verdict.words + ".", *result.verdict.because))}
    )
    target = result.target or heatmap.target
    title = f"Line {result.entry.line} of the table{f': {target}' if target else ''}"
    return Case(shown, (heatmap,), _HALF, lesion, ({**verdict, **known},), title)


def _unit(unit: str) -> str:
    return "" if unit == "count" else "cm²" if unit == "cm2" else unit


def _lesion(result: CaseResult, reference: Volume, drawn_on: tuple[int, int] | None) -> Volume | None:
    return None if result.entry.mask is None else truth_of(result.entry, reference, drawn_on=drawn_on).mask
