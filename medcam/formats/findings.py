"""The findings of a heatmap: the connected regions that reach the threshold, strongest first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medcam.volume import Heatmap, Peak


@dataclass(frozen=True)
class Finding:
    """One connected region of relevance.

    Parameters
    ----------
    peak
        Its hottest voxel.
    voxels
        How many voxels it holds.
    size
        Its volume in mm3; of a heatmap of one slice its area in mm2. Pixels instead where the source is not spaced.
    """

    peak: Peak
    voxels: int
    size: float


def findings(heatmap: Heatmap, threshold: float) -> tuple[Finding, ...]:
    """Return the regions where the relevance reaches `threshold` (a fraction, 0 to 1) of its positive maximum.

    Voxels that share a face, an edge or a corner are connected (26 neighbours; 8 in a plane). The first has the highest peak;
    equal ones come as they lie in memory. None where no voxel speaks for the target.
    """
    mask, grid = heatmap.mask(threshold), heatmap.grid
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3), bool))
    inside = np.flatnonzero(mask)
    if not inside.size:
        return ()
    label, relevance = labels.ravel()[inside], heatmap.relevance.ravel()[inside]
    # Region by region, the hottest voxel first and the earlier one under ties.
    order = np.lexsort((inside, -relevance, label))
    _, first, counts = np.unique(label[order], return_index=True, return_counts=True)
    hottest = inside[order][first]
    index = np.stack(np.unravel_index(hottest, grid.shape), -1)
    world, peaks = grid.world_mm(index), heatmap.relevance.ravel()[hottest]
    axes = grid.affine[:3, :3]
    one = np.linalg.norm(np.cross(axes[:, 0], axes[:, 1])) if grid.shape[2] == 1 else abs(np.linalg.det(axes))
    found = [
        Finding(
            Peak((int(i), int(j), int(k)), (float(x), float(y), float(z)), float(peak)), int(count), float(count * one)
        )
        for (i, j, k), (x, y, z), peak, count in zip(index, world, peaks, counts, strict=True)
    ]
    return tuple(found[n] for n in np.lexsort((hottest, -peaks)))
