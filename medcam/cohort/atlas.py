"""Where a network looks across a cohort: heatmaps put into one space, added up by class and by decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Num

from medcam.errors import GeometryError, InputError, UsageError
from medcam.geometry import Grid, resample
from medcam.volume import Heatmap

NORMALISED = ("max", "mass")
# Cells of an image's own frame along its sides.
_SIDES = (64, 64, 32)
# Cells of the maps that are grouped.
_LOW = (8, 8, 4)


@dataclass(frozen=True, eq=False)
class Sums:
    """The maps of one group in the shared space.

    Parameters
    ----------
    mean
        Of the normalised positive relevance of the maps that looked there; NaN where none did.
    frequency
        The share of those maps that reach the threshold there.
    maps
        How many there are.
    """

    mean: Float[np.ndarray, "i j k"] = field(repr=False)
    frequency: Float[np.ndarray, "i j k"] = field(repr=False)
    maps: int


def onto_template(heatmap: Heatmap, template: Grid, transform: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "x y z"]:
    """Return the map on a template's grid.

    Parameters
    ----------
    transform
        From the case's space to the template's, both RAS+ mm.
    """
    # The template is another frame of reference, which the transform leads to.
    moved = Grid(heatmap.grid.shape, transform @ heatmap.grid.affine)
    return resample(heatmap.relevance, moved, Grid(template.shape, template.affine))


def in_own_frame(
    relevance: Num[np.ndarray, "i j k"], sides: tuple[int, int, int] = _SIDES
) -> Float[np.ndarray, "x y z"]:
    """Return the map averaged over cells that divide each side of its image alike; a side never has more cells than voxels."""
    found = np.asarray(relevance, np.float64)
    seen = ~np.isnan(found)
    total, count = np.where(seen, found, 0.0), seen.astype(np.float64)
    for axis, cells in enumerate(sides):
        n = total.shape[axis]
        starts = (np.arange(min(cells, n)) * n) // min(cells, n)
        total, count = np.add.reduceat(total, starts, axis), np.add.reduceat(count, starts, axis)
    mean: np.ndarray = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean.astype(np.float32)


def low_resolution(placed: Float[np.ndarray, "x y z"]) -> Float[np.ndarray, " c"]:
    """Return a placed map as a few cells that add up to 1, to be grouped; all 0 for a map without positive relevance."""
    cells = np.nan_to_num(in_own_frame(np.maximum(placed, 0), _LOW)).ravel().astype(np.float64)
    return np.asarray(cells / cells.sum()) if cells.sum() > 0 else cells


def added_up(placed: Sequence[Float[np.ndarray, "x y z"]], *, threshold: float = 0.5, normalise: str = "max") -> Sums:
    """Return the mean map and the frequency map of placed maps; one without positive relevance counts as zeros.

    Parameters
    ----------
    threshold
        The fraction of a map's own maximum that counts as reached.
    normalise
        'max': each map over its maximum; 'mass': over its sum, so that each speaks alike in all.

    Raises
    ------
    InputError
        If the maps differ in shape.
    UsageError
        If there is no such normalisation.
    """
    if normalise not in NORMALISED:
        raise UsageError(f"maps are normalised by {' or '.join(NORMALISED)}, not '{normalise}'")
    if len({each.shape for each in placed}) != 1:
        raise InputError("the maps have no shared space: their shapes differ; give a template")
    total, reached, count = (np.zeros(placed[0].shape) for _ in range(3))
    for each in placed:
        seen = ~np.isnan(each)
        positive = np.where(seen, np.maximum(each, 0), 0).astype(np.float64)
        high = float(positive.max())
        size = high if normalise == "max" else float(positive.sum())
        total += positive / size if size > 0 else 0
        reached += (positive >= threshold * high) & seen if high > 0 else False
        count += seen
    nowhere = np.full(total.shape, np.nan)
    return Sums(
        np.divide(total, count, out=nowhere.copy(), where=count > 0).astype(np.float32),
        np.divide(reached, count, out=nowhere, where=count > 0).astype(np.float32),
        len(placed),
    )


def by_group(
    placed: Sequence[Float[np.ndarray, "x y z"]],
    labels: Sequence[Mapping[str, str]],
    *,
    threshold: float,
    normalise: str,
) -> dict[str, Sums]:
    """Return the sums of all maps, and of those of each label: {'class': 'nodule', 'decision': 'TP'}."""
    groups: dict[str, list[int]] = {"all": list(range(len(placed)))}
    for n, each in enumerate(labels):
        for kind, label in each.items():
            if label:
                groups.setdefault(f"{kind}: {label}", []).append(n)
    return {
        name: added_up([placed[n] for n in members], threshold=threshold, normalise=normalise)
        for name, members in groups.items()
    }


def read_transform(path: Path) -> Float[np.ndarray, "4 4"]:
    """Return what takes points of the case to the template, RAS+ mm.

    Parameters
    ----------
    path
        Four rows of four numbers as text: that matrix. Or an ITK transform (.tfm, .mat, .h5), which takes points of the template to the
        case in LPS mm, as registration tools write it, and is inverted.

    Raises
    ------
    InputError
        If it cannot be read, or is no affine transform.
    """
    if path.suffix in (".tfm", ".mat", ".h5"):
        matrix = _of_itk(path)
    else:
        try:
            matrix = np.loadtxt(path, dtype=np.float64)
        except (OSError, ValueError) as error:
            raise InputError(f"{path.name} is no matrix of four rows of four numbers") from error
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
        raise GeometryError(f"{path.name} holds no affine that can be inverted: four rows of four numbers are needed")
    return matrix


def _of_itk(path: Path) -> Float[np.ndarray, "4 4"]:
    try:
        import SimpleITK
    except ImportError as error:
        raise UsageError(f"{path.name} needs SimpleITK (pip install SimpleITK), or give the matrix as text") from error
    try:
        transform = SimpleITK.ReadTransform(str(path))  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise InputError(f"{path.name} is no ITK transform") from error
    if not transform.IsLinear():
        raise InputError(f"{path.name} bends space; an atlas of heatmaps takes affine transforms")
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    case_from_template = np.eye(4)
    case_from_template[:3, 3] = origin
    for axis in range(3):
        unit = tuple(float(n == axis) for n in range(3))
        case_from_template[:3, axis] = np.array(transform.TransformPoint(unit)) - origin
    turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    return np.asarray(np.linalg.inv(turn @ case_from_template @ turn))
