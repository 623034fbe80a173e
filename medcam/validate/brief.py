"""The few numbers that stand beside one heatmap whose lesion is known; `measure_heatmap` gives all of them, with chance."""

from __future__ import annotations

import numpy as np

from medcam.validate.distances import LesionDistance
from medcam.validate.heatmaps import has_right_angles
from medcam.validate.hits import hit, tied_maxima
from medcam.validate.localization import lesion_on
from medcam.validate.measures import Measure
from medcam.validate.overlap import lift, mass_in_lesion
from medcam.validate.scene import Scene
from medcam.volume import Heatmap, Volume

_NAN = float("nan")


def in_brief(heatmap: Heatmap, lesion: Volume) -> dict[str, Measure]:
    """Return by name whether the peak hits the lesion, how far it lies from it, and how much of the map lies in it.

    Beside the hit and the mass stands what a map without knowledge would score: a number without it means nothing.

    Raises
    ------
    GeometryError, InputError
        As `lesion_on`.
    """
    scene = Scene(heatmap.relevance, lesion_on(heatmap, lesion), heatmap.grid.spacing_mm)
    maxima, mass = tied_maxima(scene), mass_in_lesion(scene)
    far, why = _NAN, "there is no peak, or the lesion mask is empty"
    if not has_right_angles(heatmap.grid):
        why = "the image's axes are not at right angles"
    elif (distance := LesionDistance.of(scene)) is not None and len(maxima):
        far, why = float(np.mean(distance.at(maxima))), ""
    return {
        "hit": Measure(hit(scene, maxima)),
        "hit_by_chance": Measure(scene.prevalence),
        "peak_distance": Measure(far, heatmap.source.length_unit, why),
        "mass_in_lesion": Measure(mass),
        "mass_lift": Measure(lift(mass, scene.prevalence)),
    }
