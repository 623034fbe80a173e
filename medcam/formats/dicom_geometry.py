"""Where DICOM slices lie: headers -> `Grid`. DICOM's LPS becomes medcam's RAS here and nowhere else.

A DICOM volume is a pile of separate images, and nothing in the format promises that the pile is complete, regular or of
one kind. What is not a regular grid is refused by name; nothing is averaged or guessed in silence.

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
from pydicom import Dataset

from medcam.errors import GeometryError
from medcam.formats.dicom_files import UNREADABLE, said
from medcam.geometry import Grid

_RAS_FROM_LPS = np.diag((-1.0, -1.0, 1.0))
_PLANES = ("sagittal", "coronal", "axial")
# How far direction cosines may be from perpendicular unit vectors, and those of two slices from each other.
_COSINES = 1e-3
# Steps between slices may differ by one part in a hundred or by ten micrometres; no slice may lie further from its
# place than a tenth of a step, however the small differences add up.
_STEP_SHARE, _STEP_MM, _DRIFT_SHARE = 0.01, 0.01, 0.1
_SAME_PLANE_MM = 1e-3
_TILT_DEGREES = 0.1
# What may tell the volumes of a 4D series apart.
_FOURTH_AXES = (
    "EchoTime",
    "EchoNumbers",
    "DiffusionBValue",
    "TemporalPositionIdentifier",
    "TriggerTime",
    "AcquisitionNumber",
    "AcquisitionTime",
    "ImageType",
)
# What is read of a header to place an image.
KEYWORDS = (
    "Rows",
    "Columns",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PatientOrientation",
    "FrameOfReferenceUID",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "EstimatedRadiographicMagnificationFactor",
    "NominalScannedPixelSpacing",
    "PixelAspectRatio",
    "SliceThickness",
    "SpacingBetweenSlices",
    *_FOURTH_AXES,
)


@dataclass(frozen=True)
class Placement:
    """Where the images of a series lie.

    Parameters
    ----------
    order
        For each slice k the number of its image among those given, or None where a slice is missing.
    oriented, placed, spaced, notes
        As in `medcam.volume.Source`.
    """

    grid: Grid
    order: tuple[int | None, ...]
    oriented: bool = True
    placed: bool = True
    spaced: bool = True
    notes: tuple[str, ...] = ()


def place_slices(headers: Sequence[Dataset], *, allow_gaps: bool = False) -> Placement:
    """Stack images that say where they lie in the patient, in the order of their positions along row x column.

    The slice axis of the affine is the actual step between positions, so a tilted gantry gives a sheared grid, which is
    right. A single slice is as thick as it says, or 1 mm.

    Raises
    ------
    GeometryError
        If they are not parallel images of one size on one regular grid, or slices are missing without `allow_gaps`.
    """
    columns, rows = _size(headers)
    directions = _directions(headers)
    spacing = _pixel_spacing(headers)
    normal = np.cross(directions[0], directions[1])
    normal /= np.linalg.norm(normal)
    positions = np.array([_required(header, "ImagePositionPatient", 3) for header in headers])
    order = np.argsort(positions @ normal, kind="stable")
    positions, sorted_headers = positions[order], [headers[n] for n in order]
    if len(headers) == 1:
        slots, step = np.zeros(1, int), normal * _thickness(headers[0])
    else:
        _refuse_shared_planes(sorted_headers, positions @ normal)
        slots = _slots(sorted_headers, positions @ normal, allow_gaps)
        step = (positions[-1] - positions[0]) / slots[-1]
        _refuse_drift(sorted_headers, positions, slots, step)
    image_of = {int(slot): int(n) for slot, n in zip(slots, order, strict=True)}
    image_at = tuple(image_of.get(k) for k in range(int(slots[-1]) + 1))
    affine = ras_affine(directions, spacing, step, positions[0])
    grid = Grid((columns, rows, len(image_at)), affine, _frame_of_reference(headers))
    return Placement(grid, image_at, notes=(*_tilt_note(step, normal), *_gap_note(image_at)))


def ras_affine(
    directions: Float[np.ndarray, "2 3"],
    spacing: Float[np.ndarray, " 2"],
    step: Float[np.ndarray, " 3"],
    position: Float[np.ndarray, " 3"],
) -> Float[np.ndarray, "4 4"]:
    """Return `world_from_index` (RAS) of DICOM's numbers (LPS).

    Parameters
    ----------
    directions
        Of an image row (along which the column index grows) and of an image column.
    spacing
        Between rows and between columns, in DICOM's order.
    step
        From one slice to the next.
    position
        Of the centre of the first voxel.
    """
    lps = np.stack([directions[0] * spacing[1], directions[1] * spacing[0], step, position], axis=1)
    affine = np.eye(4)
    affine[:3] = _RAS_FROM_LPS @ lps
    return affine


def numbers(header: Dataset, keyword: str, count: int) -> Float[np.ndarray, " count"] | None:
    """Return the values of an element, or None where it is absent or empty.

    Raises
    ------
    GeometryError
        If there are not `count` finite numbers.
    """
    try:
        value = header.get(keyword)
        if value is None or np.size(value) == 0 or value == "":
            return None
        found = np.array(value, np.float64).reshape(-1)
    except UNREADABLE:
        raise GeometryError(
            f"{keyword} of {_name(header)} does not hold numbers; export the series again as the scanner made it"
        ) from None
    if found.shape != (count,) or not np.isfinite(found).all():
        raise GeometryError(
            f"{keyword} of {_name(header)} should be {count} finite number{'s' if count > 1 else ''}, not "
            f"{found.tolist()}; export the series again as the scanner made it"
        )
    return found


def _required(header: Dataset, keyword: str, count: int) -> Float[np.ndarray, " count"]:
    found = numbers(header, keyword, count)
    if found is None:
        raise GeometryError(
            f"{_name(header)} has no {keyword}, so it cannot be placed in the patient; export the series again as the "
            "scanner made it"
        )
    return found


def _name(header: Dataset) -> str:
    number = said(header, "InstanceNumber")
    return "an image without InstanceNumber" if number is None else f"the image with InstanceNumber {number}"


def _size(headers: Sequence[Dataset]) -> tuple[int, int]:
    """Return (columns, rows)."""
    sizes = Counter((int(header.Columns), int(header.Rows)) for header in headers)
    if len(sizes) > 1:
        listed = ", ".join(f"{count} of {i} columns and {j} rows" for (i, j), count in sizes.most_common(6))
        raise GeometryError(
            f"the images of this series differ in size ({listed}), so they are not one volume; give one kind"
        )
    return next(iter(sizes))


def _frame_of_reference(headers: Sequence[Dataset]) -> str | None:
    frames = {str(uid) for header in headers if (uid := said(header, "FrameOfReferenceUID"))}
    if len(frames) > 1:
        raise GeometryError(
            f"the images of this series lie in {len(frames)} frames of reference, so their positions do not compare; "
            "give those of one"
        )
    return frames.pop() if frames else None


def _directions(headers: Sequence[Dataset]) -> Float[np.ndarray, "2 3"]:
    """Return the directions of rows and columns, LPS."""
    groups: list[tuple[Float[np.ndarray, "2 3"], int]] = []
    for header in headers:
        found = _required(header, "ImageOrientationPatient", 6).reshape(2, 3)
        if np.abs(found @ found.T - np.eye(2)).max() > _COSINES:
            raise GeometryError(
                f"ImageOrientationPatient of {_name(header)} is {found.ravel().tolist()}: rows and columns should be "
                "perpendicular and of length 1; export the series again as the scanner made it"
            )
        same = (n for n, (known, _) in enumerate(groups) if np.abs(known - found).max() <= _COSINES)
        if (n := next(same, None)) is None:
            groups.append((found, 1))
        else:
            groups[n] = (groups[n][0], groups[n][1] + 1)
    if len(groups) > 1:
        listed = "; ".join(f"{count} {_plane(directions)}" for directions, count in groups[:6])
        raise GeometryError(
            f"the images of this series look in {len(groups)} orientations ({listed}), so they are not one volume; "
            "give those of one"
        )
    # Cosines are rounded in the file, and spacing is the length of a step.
    return np.asarray(groups[0][0] / np.linalg.norm(groups[0][0], axis=1, keepdims=True))


def _plane(directions: Float[np.ndarray, "2 3"]) -> str:
    normal = np.cross(directions[0], directions[1])
    listed = ", ".join(f"{cosine:.3f}" for cosine in normal)
    return f"{_PLANES[int(np.argmax(np.abs(normal)))]} with normal ({listed})"


def _pixel_spacing(headers: Sequence[Dataset]) -> Float[np.ndarray, " 2"]:
    """Return the distance between rows and between columns."""
    found = np.array([_required(header, "PixelSpacing", 2) for header in headers])
    if found.min() <= 0:
        bad = int(np.argmin(found.min(axis=1)))
        raise GeometryError(
            f"PixelSpacing of {_name(headers[bad])} is {found[bad].tolist()} and should be positive millimetres; "
            "export the series again as the scanner made it"
        )
    if np.ptp(found, axis=0).max() > 1e-4 * found.min():
        listed = ", ".join(f"{j:g} x {i:g}" for j, i in sorted({(j, i) for j, i in found.tolist()})[:6])
        raise GeometryError(
            f"the images of this series differ in PixelSpacing ({listed} mm), so they are not one volume; give one kind"
        )
    return np.asarray(found[0])


def _thickness(header: Dataset) -> float:
    for keyword in ("SliceThickness", "SpacingBetweenSlices"):
        found = numbers(header, keyword, 1)
        if found is not None and found[0] != 0:
            return float(abs(found[0]))
    return 1.0


def _refuse_shared_planes(headers: Sequence[Dataset], along: Float[np.ndarray, " n"]) -> None:
    starts = np.flatnonzero(np.diff(along, prepend=-np.inf) > _SAME_PLANE_MM)
    counts = np.diff(starts, append=len(along))
    if counts.max() == 1:
        return
    if counts.min() == counts.max():
        differ = [keyword for keyword in _FOURTH_AXES if len({str(said(header, keyword)) for header in headers}) > 1]
        raise GeometryError(
            f"this series has {counts[0]} images at each position (4D: {len(headers)} images, {len(counts)} of them in "
            f"space; they differ in {', '.join(differ) or 'no element for this'}); medcam reads one volume "
            "at a time: export or convert (dcm2niix does) the volumes separately and give one"
        )
    shared = [f"{along[start]:.3f} mm ({n} images)" for start, n in zip(starts, counts, strict=True) if n > 1]
    raise GeometryError(
        f"different images of this series share {len(shared)} of its {len(counts)} positions along the slice normal: "
        f"{', '.join(shared[:6])}{', ...' if len(shared) > 6 else ''}; give the images of one volume"
    )


def _slots(headers: Sequence[Dataset], along: Float[np.ndarray, " n"], allow_gaps: bool) -> Int[np.ndarray, " n"]:
    """Return for each image, sorted along the normal, the number of its slice on the regular grid."""
    steps = np.diff(along)
    usual = _usual(steps)
    multiples = np.maximum(np.rint(steps / usual), 1).astype(int)
    if (np.abs(steps - multiples * usual) > np.maximum(_STEP_SHARE * multiples * usual, _STEP_MM)).any():
        listed = ", ".join(f"{step:.3f} mm ({n} x)" for step, n in Counter(steps.round(3).tolist()).most_common(8))
        raise GeometryError(
            f"the {len(along)} slices lie at uneven distances, so they are not a regular grid: {listed}; resample the "
            "series to even slices first (dcm2niix does) and give the result"
        )
    if multiples.max() > 1 and not allow_gaps:
        raise GeometryError(_gaps(headers, along, multiples, usual))
    return np.concatenate([[0], np.cumsum(multiples)])


def _usual(steps: Float[np.ndarray, " n"]) -> float:
    """Return the distance that most neighbours have, the shortest one under ties."""
    steps = np.sort(steps)
    tolerance = np.maximum(_STEP_SHARE * steps, _STEP_MM)
    first, last = np.searchsorted(steps, steps - tolerance), np.searchsorted(steps, steps + tolerance, "right")
    most = int(np.argmax(last - first))
    return float(np.median(steps[first[most] : last[most]]))


def _gaps(
    headers: Sequence[Dataset], along: Float[np.ndarray, " n"], multiples: Int[np.ndarray, " m"], usual: float
) -> str:
    wide, missing = np.flatnonzero(multiples > 1), int((multiples - 1).sum())
    instances = [said(header, "InstanceNumber") for header in headers]
    listed = "; ".join(
        f"slices {n + 1} and {n + 2} (InstanceNumber {instances[n]} and {instances[n + 1]}, at {along[n]:.3f} and "
        f"{along[n + 1]:.3f} mm along the normal) lie {along[n + 1] - along[n]:.3f} mm apart"
        for n in wide[:5]
    )
    verdict = "one slice is missing" if missing == 1 else f"{missing} slices are missing"
    return (
        f"{listed}{' (and so on)' if len(wide) > 5 else ''}, the others {usual:.3f} mm: {verdict}. Fetch the complete "
        "series, or pass --allow-gaps (allow_gaps=True) to interpolate between the neighbours"
    )


def _refuse_drift(
    headers: Sequence[Dataset],
    positions: Float[np.ndarray, "n 3"],
    slots: Int[np.ndarray, " n"],
    step: Float[np.ndarray, " 3"],
) -> None:
    off_mm = np.linalg.norm(positions - positions[0] - slots[:, None] * step, axis=1)
    worst = int(np.argmax(off_mm))
    if off_mm[worst] > max(_DRIFT_SHARE * float(np.linalg.norm(step)), _STEP_MM):
        raise GeometryError(
            f"the slices do not lie on one straight line at even steps: {_name(headers[worst])} is {off_mm[worst]:.3f} "
            "mm from its place on a regular grid; resample the series first (dcm2niix does) and give the result"
        )


def _tilt_note(step: Float[np.ndarray, " 3"], normal: Float[np.ndarray, " 3"]) -> list[str]:
    degrees = float(np.degrees(np.arctan2(np.linalg.norm(np.cross(step, normal)), step @ normal)))
    if degrees <= _TILT_DEGREES:
        return []
    return [f"gantry tilt: the slices step {degrees:.1f} degrees off their normal, so the grid is sheared"]


def _gap_note(image_at: Sequence[int | None]) -> list[str]:
    missing = [str(k + 1) for k, image in enumerate(image_at) if image is None]
    if not missing:
        return []
    slices = f"slice{'s' if len(missing) > 1 else ''} {', '.join(missing)} of {len(image_at)}"
    return [f"missing in the series and interpolated between the neighbours: {slices}"]
