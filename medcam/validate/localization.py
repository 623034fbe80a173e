"""Does the heatmap lie on the lesion?"""

from __future__ import annotations

import numpy as np

from medcam.errors import GeometryError, InputError
from medcam.geometry import resample
from medcam.volume import Heatmap, Volume


def lesion_on(heatmap: Heatmap, lesion: Volume) -> np.ndarray:
    """Return the lesion mask on the heatmap's grid by nearest neighbour, bool `i j k`.

    Raises
    ------
    GeometryError
        If the mask lies in another frame of reference, or somewhere else; or on another grid than an image without a place in the patient.
    InputError
        If its values are no labels.
    """
    drawn = lesion.voxels[lesion.voxels != 0]
    if drawn.size and not np.array_equal(drawn, np.rint(drawn)):
        raise InputError("the lesion mask holds values between labels, so it is no mask; give one of whole numbers")
    if not heatmap.source.placed and lesion.grid.shape != heatmap.grid.shape:
        raise GeometryError(
            f"the image has no place in the patient, so its lesion mask must have its shape, {heatmap.grid.shape}, "
            f"and not {lesion.grid.shape}"
        )
    inside: np.ndarray = resample(lesion.voxels, lesion.grid, heatmap.grid, nearest=True, outside=0.0) > 0.5
    if drawn.size and not inside.any():
        raise GeometryError("the lesion mask lies wholly outside the image: it belongs to another image")
    return inside


def peak_in_lesion(heatmap: Heatmap, lesion: Volume) -> bool | None:
    """Tell whether the hottest voxel lies in the lesion: the pointing game's hit.

    A hit alone proves little: any bright spot may score it. Returns None where the heatmap has no peak or the mask is empty on its grid.

    References
    ----------
    Zhang et al., Top-down neural attention by excitation backprop, IJCV 2018, section 4 (the pointing game), without its tolerance.
    """
    inside, peak = lesion_on(heatmap, lesion), heatmap.peak()
    return None if peak is None or not inside.any() else bool(inside[peak.voxel])
