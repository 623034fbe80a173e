"""The measures of a heatmap and a lesion as they lie in the patient."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Int

from medcam.errors import GeometryError
from medcam.geometry import Grid
from medcam.validate.ceiling import ceiling
from medcam.validate.localization import lesion_on
from medcam.validate.measures import CaseMeasures, Measure, Settings
from medcam.validate.measuring import measure
from medcam.validate.overlap import mass_in_lesion
from medcam.validate.ranked import Ranked
from medcam.validate.scene import Scene
from medcam.volume import Heatmap, Volume

# Axes may lean towards each other by this cosine: millimetres along them then add up to a part in a thousand.
_LEAN = 1e-3
# The length in a name, such as that of 'surface_dice_5mm@otsu' or 'hit_within_10mm_uniform'.
_MILLIMETRES = re.compile(r"(?<=\d)mm(?![^@_])")


def measure_heatmap(
    heatmap: Heatmap,
    lesion: Volume,
    *,
    organ: Volume | None = None,
    input_grid: Grid | None = None,
    boxes: Int[np.ndarray, "n 3 2"] | None = None,
    settings: Settings | None = None,
    case: str = "",
    patient: str = "",
) -> CaseMeasures:
    """Measure how well a heatmap locates a lesion, each on its own grid; the lesion is put on the heatmap's.

    Where the image does not say how large a pixel is, lengths are in pixels, names that hold one say so (`hit_within_10px`), and sizes
    are undefined.

    Parameters
    ----------
    organ
        A mask of where evidence may lie, such as the body.
    input_grid
        The grid of what the network saw, for the resolution ceiling. Without it the ceiling is known only where the network saw the image
        without preprocessing.
    boxes, settings, case, patient
        As for `measure`.

    Raises
    ------
    GeometryError
        If a mask lies elsewhere, or the heatmap's grid is sheared (a tilted gantry), so that distances along its axes do not add up.
    InputError
        If a mask holds no labels.
    UsageError
        If a threshold was tuned on this case or patient.
    """
    _refuse_shear(heatmap.grid)
    mask = lesion_on(heatmap, lesion)
    inside = None if organ is None else lesion_on(heatmap, organ)
    found = measure(
        heatmap.relevance,
        mask,
        spacing_mm=heatmap.grid.spacing_mm,
        organ=inside,
        boxes=boxes,
        settings=settings,
        case=case,
        patient=patient,
    )
    numbers = {**found.numbers, **_ceilings(heatmap, mask, inside, input_grid, found.numbers)}
    if not heatmap.source.spaced:
        numbers = {_MILLIMETRES.sub("px", name): _in_pixels(number) for name, number in numbers.items()}
        found = replace(found, lesions=tuple(replace(lesion, size=float("nan")) for lesion in found.lesions))
    return replace(found, numbers=numbers)


def has_right_angles(grid: Grid) -> bool:
    """Tell whether the axes of a grid stand at right angles, so that distances along them add up."""
    axes = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() <= _LEAN)


def _refuse_shear(grid: Grid) -> None:
    if not has_right_angles(grid):
        raise GeometryError(
            "the image's axes are not at right angles (a tilted gantry), so distances along them do not add up to millimetres; "
            "read the image with --regrid (regrid=True) before it is explained"
        )


def _in_pixels(number: Measure) -> Measure:
    if number.unit in ("mL", "cm2"):
        return replace(number, value=float("nan"), why="the image does not say how large a pixel is")
    return replace(number, unit="pixels") if number.unit == "mm" else number


def _ceilings(
    heatmap: Heatmap,
    mask: np.ndarray,
    organ: np.ndarray | None,
    input_grid: Grid | None,
    reached: Mapping[str, Measure],
) -> dict[str, Measure]:
    """Return what the lesion itself scores on the cells of the heatmap's layer, and which share of it the heatmap reaches."""
    recipe = heatmap.recipe
    names = {"average_precision": "average_precision", "mass_in_lesion": "mass_in_lesion", "dice": "dice@oracle-best"}
    why = _why_no_ceiling(heatmap, input_grid)
    best: dict[str, float] = {}
    if not why and mask.any():
        shown = ceiling(
            mask,
            heatmap.grid,
            input_grid=input_grid or heatmap.grid,
            feature_shape=recipe.feature_shape,
            stride=recipe.stride,
            offset=recipe.offset,
        )
        # Where the map looked is where the ceiling may.
        scene = Scene(np.where(np.isnan(heatmap.relevance), np.nan, shown), mask, heatmap.grid.spacing_mm, organ)
        ranked = Ranked.of(scene)
        best = {
            "average_precision": ranked.average_precision(),
            "mass_in_lesion": mass_in_lesion(scene),
            "dice": ranked.best()[1],
        }
    numbers = {}
    for name, measured in names.items():
        top, own = best.get(name, float("nan")), reached.get(measured)
        share = own.value / top if own is not None and top > 0 else float("nan")
        missing = why or (own.why if own else f"{measured} was not asked for") or "the lesion mask is empty"
        numbers[f"ceiling_{name}"] = Measure(top, why="" if top == top else missing, oracle=True)
        numbers[f"{name}_of_ceiling"] = Measure(share, why="" if share == share else missing, oracle=name == "dice")
    return numbers


def _why_no_ceiling(heatmap: Heatmap, input_grid: Grid | None) -> str:
    if not heatmap.recipe.feature_shape:
        return "the recipe does not say where the map's cells lie"
    if input_grid is None and heatmap.recipe.preprocessing:
        return "the grid of the network's input is not given"
    return ""
