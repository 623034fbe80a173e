"""Does the heatmap lie on the lesion?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool

from medcam.errors import GeometryError, InputError, UsageError
from medcam.geometry import resample
from medcam.occupancy import occupancy
from medcam.volume import Heatmap, Volume

# A share that was summed up may miss a whole by rounding.
_ROUNDING = 1e-5


def lesion_on(heatmap: Heatmap, lesion: Volume, *, at_least: float | None = None) -> Bool[np.ndarray, "i j k"]:
    """Return the lesion mask on the heatmap's grid.

    Where the image or the mask has no place in the patient, the mask must have the image's shape and lies on it voxel by voxel.

    Parameters
    ----------
    at_least
        The share of a voxel's volume (above 0, up to 1) that the lesion must fill. By default what lies at the voxel's centre
        counts, so that a lesion smaller than a voxel may vanish.

    Raises
    ------
    GeometryError
        If the mask lies in another frame of reference, or somewhere else; or does not fit an image without a place in the patient.
    InputError
        If its values are no labels.
    UsageError
        If `at_least` is no share.
    """
    if at_least is not None and not 0 < at_least <= 1:
        raise UsageError(f"at_least is a share of a voxel, above 0 and up to 1, not {at_least}")
    drawn = lesion.voxels[lesion.voxels != 0]
    if drawn.size and not np.array_equal(drawn, np.rint(drawn)):
        raise InputError("the lesion mask holds values between labels, so it is no mask; give one of whole numbers")
    mask: np.ndarray = lesion.voxels > 0.5
    if not (heatmap.source.placed and lesion.source.placed):
        _refuse_misfit(heatmap, lesion)
        return mask
    if at_least is not None:
        inside = occupancy(mask, lesion.grid, heatmap.grid) >= at_least - _ROUNDING
    else:
        inside = resample(mask.astype(np.float32), lesion.grid, heatmap.grid, nearest=True, outside=0.0) > 0.5
    if drawn.size and not inside.any() and not occupancy(mask, lesion.grid, heatmap.grid).any():
        raise GeometryError("the lesion mask lies wholly outside the image: it belongs to another image")
    return inside


def laid_on(heatmap: Heatmap, lesion: Volume, *, at_least: float | None = None) -> Volume:
    """Return the lesion mask as a volume on the heatmap's grid, 1 where `lesion_on` finds it, for whoever draws or writes it.

    Raises
    ------
    GeometryError, InputError, UsageError
        As `lesion_on`.
    """
    inside = lesion_on(heatmap, lesion, at_least=at_least)
    place = heatmap.source
    source = replace(lesion.source, oriented=place.oriented, placed=place.placed, spaced=place.spaced)
    return Volume(inside.astype(np.uint8), heatmap.grid, lesion.unit, source)


def _refuse_misfit(heatmap: Heatmap, lesion: Volume) -> None:
    """Refuse a mask that cannot be laid on the image voxel by voxel."""
    if lesion.grid.shape != heatmap.grid.shape:
        which = "lesion mask" if heatmap.source.placed else "image"
        raise GeometryError(
            f"the {which} has no place in the patient, so the lesion mask must have its shape, {heatmap.grid.shape}, "
            f"and not {lesion.grid.shape}"
        )
    if heatmap.source.placed and heatmap.grid.shape[2] > 1:
        raise GeometryError(
            "the lesion mask does not say where it lies in the patient, and the image does: which of its slices and sides "
            "belong to the image's is unknown; save the mask with the image's geometry"
        )
    codes, theirs = ("".join(grid.axis_codes) for grid in (heatmap.grid, lesion.grid))
    if lesion.source.oriented and codes != theirs:
        raise GeometryError(
            f"the lesion mask says that its axes run to {theirs}, and those of the image, which has no place in the patient, "
            f"are taken to run to {codes}: it might lie mirrored; save the mask in the way of the image (a picture for a picture)"
        )


def peak_in_lesion(heatmap: Heatmap, lesion: Volume) -> bool | None:
    """Tell whether the hottest voxel lies in the lesion: the pointing game's hit.

    A hit alone proves little: any bright spot may score it. Returns None where the heatmap has no peak or the mask is empty on its grid.

    References
    ----------
    Zhang et al., Top-down neural attention by excitation backprop, IJCV 2018, section 4 (the pointing game), without its tolerance.
    """
    inside, peak = lesion_on(heatmap, lesion), heatmap.peak()
    return None if peak is None or not inside.any() else bool(inside[peak.voxel])
