"""Does the heatmap lie on the lesion?"""

from __future__ import annotations

import numpy as np

from medcam.geometry import resample
from medcam.volume import Heatmap, Volume


def lesion_on(heatmap: Heatmap, lesion: Volume) -> np.ndarray:
    """Return the lesion mask on the heatmap's grid by nearest neighbour, bool `i j k`.

    Raises
    ------
    GeometryError
        If the mask lies in another frame of reference.
    """
    inside: np.ndarray = resample(lesion.voxels, lesion.grid, heatmap.grid, nearest=True, outside=0.0) > 0.5
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
