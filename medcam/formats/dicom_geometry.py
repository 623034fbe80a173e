"""Where a pile of DICOM pictures lies: planes -> `Grid`.

A DICOM volume is a pile of separate images, and nothing in the format promises that the pile is complete, regular or of
one kind. What is not a regular grid is refused by name, or resampled onto one if that is asked for; nothing is averaged
or guessed in silence.

References
----------
DICOM PS3.3 C.7.6.2 (Image Plane).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from medcam.errors import GeometryError, InputError
from medcam.formats.dicom_plane import Plane, ras_affine, slice_grid
from medcam.formats.dicom_regrid import even_grid
from medcam.geometry import Grid

_MAX_VOLUME_BYTES, _MAX_SLICES = 16 * 2**30, 100_000
# Steps between slices may differ by one part in a hundred or by ten micrometres; no slice may lie further from its
# place than a tenth of a step, however the small differences add up.
_STEP_SHARE, _STEP_MM, _DRIFT_SHARE = 0.01, 0.01, 0.1
_TILT_DEGREES = 0.1
_REGRID = "or pass --regrid (regrid=True) to resample them onto an even grid"


@dataclass(frozen=True)
class Placement:
    """Where the pictures of a volume lie.

    Parameters
    ----------
    order
        For each slice k the number of its picture among those given, or None where a slice is missing.
    oriented, placed, spaced, notes
        As in `medcam.volume.Source`.
    stored
        Where the pictures of `order` themselves lie, one grid of one slice each, if they are to be resampled onto `grid`;
        else empty.
    """

    grid: Grid
    order: tuple[int | None, ...]
    oriented: bool = True
    placed: bool = True
    spaced: bool = True
    notes: tuple[str, ...] = ()
    stored: tuple[Grid, ...] = ()


def place_slices(planes: Sequence[Plane], *, allow_gaps: bool = False, regrid: bool = False) -> Placement:
    """Stack parallel pictures of one size in the order of their positions along row x column.

    The slice axis of the affine is the actual step between positions, so a tilted gantry gives a sheared grid, which is
    right. A single slice is as thick as it says, or 1 mm.

    Parameters
    ----------
    allow_gaps
        Leave room for missing slices.
    regrid
        Where the slices are uneven or step off their normal, place them for resampling onto an even, orthogonal grid.

    Raises
    ------
    GeometryError
        If they do not lie on one regular grid and `regrid` is not set, or slices are missing without `allow_gaps`.
    """
    first = planes[0]
    normal = first.normal
    along = np.array([each.position for each in planes]) @ normal
    order = np.argsort(along, kind="stable")
    pile, along = [planes[n] for n in order], along[order]
    if len(pile) == 1:
        refuse_size(*first.size, 1)
        return Placement(slice_grid(first), (0,))
    even = _is_even(along)
    if not even and not regrid:
        raise GeometryError(_unevenness(along))
    slots = _slots(pile, along, allow_gaps) if even else np.arange(len(pile))
    step = (pile[-1].position - pile[0].position) / slots[-1]
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(np.cross(step, normal)), step @ normal)))
    straight = even and _is_straight(pile, slots, step, regrid=regrid)
    if regrid and not (straight and tilt <= _TILT_DEGREES):
        return _regridded(pile, order, int(slots[-1]) if even else None)
    image_of = {int(slot): int(n) for slot, n in zip(slots, order, strict=True)}
    image_at = tuple(image_of.get(k) for k in range(int(slots[-1]) + 1))
    affine = ras_affine(first.directions, first.spacing, step, pile[0].position)
    grid = Grid((*first.size, len(image_at)), affine, first.frame_of_reference)
    return Placement(grid, image_at, notes=(*_tilt_note(tilt), *_gap_note(image_at)))


def _regridded(pile: Sequence[Plane], order: Int[np.ndarray, " n"], steps: int | None) -> Placement:
    grid, notes = even_grid(pile, steps)
    refuse_size(*grid.shape)
    return Placement(grid, tuple(int(n) for n in order), notes=notes, stored=tuple(slice_grid(each) for each in pile))


def refuse_size(columns: int, rows: int, slices: int) -> None:
    """Refuse a volume that only a damaged header can ask for.

    Raises
    ------
    InputError
        If it has more slices than DICOM can number frames in practice, or takes more memory than any volume.
    """
    size = columns * rows * slices * 4
    if size > _MAX_VOLUME_BYTES or slices > _MAX_SLICES:
        raise InputError(
            f"a volume of {columns} x {rows} x {slices} voxels would take {size / 2**30:.0f} GiB; medcam reads at most "
            f"{_MAX_VOLUME_BYTES / 2**30:.0f} GiB and {_MAX_SLICES} slices: check whether the header is damaged"
        )


def _is_even(along: Float[np.ndarray, " n"]) -> bool:
    """Tell whether all distances are whole multiples of the usual one."""
    steps, multiples, usual = _multiples(along)
    return bool((np.abs(steps - multiples * usual) <= np.maximum(_STEP_SHARE * multiples * usual, _STEP_MM)).all())


def _multiples(
    along: Float[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"], float]:
    """Return the steps between slices, how many usual ones each is (whole, at least 1), and the usual one."""
    steps = np.diff(along)
    usual = _usual(steps)
    return steps, np.maximum(np.rint(steps / usual), 1), usual


def _unevenness(along: Float[np.ndarray, " n"]) -> str:
    steps = np.diff(along)
    listed = ", ".join(f"{step:.3f} mm ({n} x)" for step, n in Counter(steps.round(3).tolist()).most_common(8))
    return (
        f"the {len(along)} slices lie at uneven distances, so they are not a regular grid: {listed}; give the series as "
        f"the scanner made it, {_REGRID}"
    )


def _slots(pile: Sequence[Plane], along: Float[np.ndarray, " n"], allow_gaps: bool) -> Int[np.ndarray, " n"]:
    """Return for each slice, sorted along the normal, its number on the regular grid."""
    _, multiples, usual = _multiples(along)
    if multiples.max() > 1 and not allow_gaps:
        raise GeometryError(_gaps(pile, along, multiples.astype(int), usual))
    refuse_size(*pile[0].size, int(multiples.sum()) + 1)
    return np.concatenate([[0], np.cumsum(multiples)]).astype(int)


def _usual(steps: Float[np.ndarray, " n"]) -> float:
    """Return the distance that most neighbours have, the shortest one under ties."""
    steps = np.sort(steps)
    tolerance = np.maximum(_STEP_SHARE * steps, _STEP_MM)
    first, last = np.searchsorted(steps, steps - tolerance), np.searchsorted(steps, steps + tolerance, "right")
    most = int(np.argmax(last - first))
    return float(np.median(steps[first[most] : last[most]]))


def _gaps(pile: Sequence[Plane], along: Float[np.ndarray, " n"], multiples: Int[np.ndarray, " m"], usual: float) -> str:
    wide, missing = np.flatnonzero(multiples > 1), int((multiples - 1).sum())
    listed = "; ".join(
        f"slices {n + 1} and {n + 2} ({pile[n].name} and {pile[n + 1].name}, at {along[n]:.3f} and "
        f"{along[n + 1]:.3f} mm along the normal) lie {along[n + 1] - along[n]:.3f} mm apart"
        for n in wide[:5]
    )
    empty = [along[n] + usual * m for n in wide[:5] for m in range(1, min(multiples[n], 9))]
    places = ", ".join(f"{place:.3f}" for place in empty[:8]) + (", ..." if missing > len(empty[:8]) else "")
    verdict = "one slice is missing" if missing == 1 else f"{missing} slices are missing"
    return (
        f"{listed}{' (and so on)' if len(wide) > 5 else ''}, the others {usual:.3f} mm: {verdict}, at {places} mm along "
        "the normal. Fetch the complete series, or pass --allow-gaps (allow_gaps=True) to interpolate between the "
        "neighbours"
    )


def _is_straight(
    pile: Sequence[Plane], slots: Int[np.ndarray, " n"], step: Float[np.ndarray, " 3"], *, regrid: bool
) -> bool:
    """Tell whether each slice lies where even steps on a straight line put it; refuse what does not if it must."""
    positions = np.array([each.position for each in pile])
    off_mm = np.linalg.norm(positions - positions[0] - slots[:, None] * step, axis=1)
    worst = int(np.argmax(off_mm))
    straight = bool(off_mm[worst] <= max(_DRIFT_SHARE * float(np.linalg.norm(step)), _STEP_MM))
    if not straight and not regrid:
        raise GeometryError(
            f"the slices do not lie on one straight line at even steps: {pile[worst].name} is {off_mm[worst]:.3f} mm "
            f"from its place on a regular grid; give the series as the scanner made it, {_REGRID}"
        )
    return straight


def _tilt_note(degrees: float) -> list[str]:
    if degrees <= _TILT_DEGREES:
        return []
    return [f"gantry tilt: the slices step {degrees:.1f} degrees off their normal, so the grid is sheared"]


def _gap_note(image_at: Sequence[int | None]) -> list[str]:
    missing = [str(k + 1) for k, image in enumerate(image_at) if image is None]
    if not missing:
        return []
    slices = f"slice{'s' if len(missing) > 1 else ''} {', '.join(missing)} of {len(image_at)}"
    return [f"missing in the series and interpolated between the neighbours: {slices}"]
