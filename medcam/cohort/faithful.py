"""Whether a heatmap is faithful to its network, and holds when the image is taken again: numbers and curves of one case by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from medcam.cohort.asked import Asked
from medcam.cohort.results import CURVE_SHARES
from medcam.cohort.trying import Case, Input, Tried, asked_about
from medcam.errors import MedcamError
from medcam.models import Model
from medcam.trials.deletion import Curve, deletion_and_insertion
from medcam.trials.infidelity import infidelity, sensitivity
from medcam.trials.masking import drop_and_gain
from medcam.trials.retest import retest
from medcam.trials.road import road
from medcam.trials.scoring import explaining, on_trial
from medcam.validate.measures import Measure

_CONTROL = "blob"
# What looks like the image's own tissue comes first: a blurred or flat patch with edges may be a lesion itself.
_FILLS = ("inpaint", "blur")
# The digits of a score that a curve can show.
_DIGITS = 6
_BOXES = 100
_BLANK = "the map, or the score, is the same everywhere"


def faithful(model: Model, case: Case, asked: Asked, at: Input) -> Tried:
    """Return deletion and insertion, ROAD, infidelity, average drop and gain.

    Raises
    ------
    MedcamError
        If the network cannot be tried.
    """
    numbers: dict[str, Measure] = {}
    curves: dict[str, tuple[float, ...]] = {}
    about = asked_about(model, case, asked)
    with on_trial(model.network, at.tensor, **about) as study:
        for found in deletion_and_insertion(
            study, at.map, fills=_FILLS, domain=at.domain, spacing_mm=at.spacing_mm, controls=(_CONTROL,)
        ):
            fill, (blobs,) = found.fill, found.control_curves[_CONTROL]
            numbers[f"deletion@{fill}"] = Measure(float(found.deletion.area[0]), "score")
            numbers[f"insertion@{fill}"] = Measure(float(found.insertion.area[0]), "score")
            numbers[f"deletion_gain@{fill}"] = Measure(float(found.deletion_gain(_CONTROL)[0]), "score")
            numbers[f"insertion_gain@{fill}"] = Measure(float(found.insertion_gain(_CONTROL)[0]), "score")
            curves[f"deletion@{fill}"], curves[f"insertion@{fill}"] = _kept(found.deletion), _kept(found.insertion)
            curves[f"deletion of blobs@{fill}"], curves[f"insertion of blobs@{fill}"] = map(_kept, blobs)
        replaced = road(study, at.map, domain=at.domain, spacing_mm=at.spacing_mm, draws=1)
        numbers["road"] = Measure(float(replaced.combined[0]), "score")
        numbers["road_gain"] = Measure(float((replaced.combined - replaced.control)[0]), "score")
        told = infidelity(study, at.map, perturbation="box", samples=_BOXES)
        numbers["infidelity"] = _measure(told.unexplained)
    try:
        with on_trial(model.network, at.tensor, score="probability", **about) as study:
            shown = drop_and_gain(study, at.map)
            numbers |= {"average_drop": _measure(shown.drop), "average_gain": _measure(shown.gain)}
            numbers["share_shown"] = _measure(shown.shown)
    except MedcamError as error:
        return Tried(numbers, curves, (f"Average drop and gain could not be tried: {error}.",))
    return Tried(numbers, curves)


def robust(model: Model, case: Case, asked: Asked, at: Input) -> Tried:
    """Return how far the map moves when the image gets a little noise, and how alike it stays when the image is taken again.

    Raises
    ------
    MedcamError
        If the network cannot be tried.
    """
    recipe, given = case.heatmap.recipe, asked.explaining
    how: dict[str, Any] = {name: given[name] for name in ("score", "activation", "output", "seed") if given.get(name)}
    about = asked_about(model, case, asked)
    explain = explaining(method=recipe.method, layer=recipe.layer or None, target=about["target"], **how)
    numbers: dict[str, Measure] = {}
    with on_trial(model.network, at.tensor, **about) as study:
        moved = sensitivity(study, model.network, explain)
        numbers["sensitivity"] = _measure(moved.largest)
        for again in retest(study, model.network, explain, spacing_mm=at.spacing_mm):
            one = again.similarities[0]
            numbers[f"retest_ssim@{again.acquisition}"] = Measure(one.ssim, why=_why(one.ssim))
            numbers[f"retest_shift@{again.acquisition}"] = Measure(one.shift_mm, at.unit, _why(one.shift_mm))
            numbers[f"retest_score_change@{again.acquisition}"] = Measure(float(again.score_change[0]), "score")
    return Tried(numbers)


def _kept(curve: Curve) -> tuple[float, ...]:
    """Return the scores of a curve at the shares that are kept of all cases."""
    shares, scores = (each[0].detach().cpu().double().numpy() for each in (curve.shares, curve.scores))
    return tuple(float(f"{score:.{_DIGITS}g}") for score in np.interp(CURVE_SHARES, shares, scores))


def _measure(values: torch.Tensor) -> Measure:
    value = float(values[0])
    return Measure(value, why=_why(value))


def _why(value: float) -> str:
    return _BLANK if np.isnan(value) else ""
