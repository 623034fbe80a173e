"""From the numbers of a text header (NRRD, MetaImage) to a grid in the patient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from medcam.errors import GeometryError
from medcam.formats.picture import FILM_AXES
from medcam.geometry import Grid

LPS = (-1, -1, 1)
_ABSURD = 1e12
_MM_PER_UNIT = {"mm": 1.0, "millimeter": 1.0, "um": 1e-3, "micron": 1e-3, "cm": 10.0, "m": 1000.0, "meter": 1000.0}


class Place(NamedTuple):
    """Where an image lies; `oriented`, `placed`, `spaced` and `notes` as in `medcam.volume.Source`."""

    affine: Float[np.ndarray, "4 4"]
    oriented: bool
    placed: bool
    spaced: bool
    notes: tuple[str, ...] = ()


def affine_of(
    steps: Float[np.ndarray, "world axes"],
    first: Float[np.ndarray, " world"],
    *,
    ras_from_world: Sequence[int] = LPS,
    scale: float = 1.0,
) -> Float[np.ndarray, "4 4"]:
    """Return `world_from_index` (RAS+ mm) of a header's steps along two or three axes, and the place of its first voxel.

    In a plane of its own, without a third dimension, an image is hung like a film. Where there is no third axis, it is the
    normal, 1 mm thick.

    Parameters
    ----------
    ras_from_world
        The signs that make RAS of the header's space.
    scale
        Millimetres per unit of the header.

    Raises
    ------
    GeometryError
        If a number is none, or so large that lengths overflow.
    """
    if not all((np.abs(numbers) < _ABSURD).all() for numbers in (steps, first)):
        raise GeometryError("its directions, spacings and origin are no lengths in a patient")
    turned = FILM_AXES[:, :2] if len(steps) == 2 else np.diag(ras_from_world)
    steps, first = turned @ steps * scale, turned @ first * scale
    if steps.shape[1] == 2:
        normal = np.cross(steps[:, 0], steps[:, 1])
        length = np.linalg.norm(normal)
        steps = np.column_stack([steps, normal / length if length else normal])
    affine = np.eye(4)
    affine[:3] = np.column_stack([steps, first])
    return affine


def grid_of(shape: Sequence[int], place: Place, name: str) -> Grid:
    """Return the grid of an image with two or three axes.

    Raises
    ------
    GeometryError
        If they are not a regular grid.
    """
    try:
        i, j, k = (*shape, 1, 1)[:3]
        return Grid((i, j, k), place.affine)
    except GeometryError as error:
        raise GeometryError(f"{name}: {error}") from error


def mm_per_unit(units: Iterable[str], name: str) -> tuple[float, tuple[str, ...]]:
    """Return how many millimetres the unit of a header is, 1 where it names none that is known, and what to note.

    Raises
    ------
    GeometryError
        If the axes are in different units.
    """
    named = {unit.strip().lower() for unit in units if unit.strip()}
    if len(named) > 1:
        raise GeometryError(f"its axes are in different units ({', '.join(sorted(named))})")
    unit = named.pop() if named else "mm"
    scale = _MM_PER_UNIT.get(unit, 1.0)
    return scale, () if scale == 1.0 else (f"{name} is in {unit}; positions were converted to mm.",)
