"""Voxels on a grid and where they came from: `Volume`, `Heatmap`, `Source`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Num

from medcam.errors import GeometryError, UsageError
from medcam.geometry import Grid
from medcam.recipe import Recipe


class Frame(NamedTuple):
    """One picture among the instances of a `Source`: which instance holds it, and as which frame of a multi-frame one (from 1)."""

    instance: int
    number: int | None = None


@dataclass(frozen=True)
class Source:
    """Where voxels came from, and what a writer needs to refer to it. Its repr names no patient.

    Parameters
    ----------
    format
        'dicom', 'nifti', 'picture' (PNG, JPEG, TIFF) or 'array'.
    sha256
        Digest of the bytes that were read: of a file, or of the digests of a series' files in the order of its slices.
    label
        A short name for output files that holds no patient identity.
    modality
        DICOM's term ('CT', 'MR', 'CR', 'DX', ...), or None where the format cannot say.
    oriented
        Whether the file says which way the patient lies. Where False no orientation letter may be shown.
    placed
        Whether the file says where in the patient its voxels lie. Where False the origin is the image's own first voxel.
    spaced
        Whether the file says how large a voxel is. Where False a 'millimetre' of the grid is one pixel.
    window
        (centre, width) for display in real-world values, as the file asks, or None.
    instances
        For DICOM, the dataset without its pixels of each instance that was read, once each, in the order of slices.
    slices
        For DICOM, the picture that each slice k is, and None for a slice that was interpolated into a gap or resampled.
    notes
        What was changed or assumed while reading, in sentences for the user.
    """

    format: str
    sha256: str
    label: str = "image"
    modality: str | None = None
    oriented: bool = True
    placed: bool = True
    spaced: bool = True
    window: tuple[float, float] | None = None
    instances: tuple[Any, ...] = field(default=(), repr=False, compare=False)
    slices: tuple[Frame | None, ...] = field(default=(), repr=False, compare=False)
    notes: tuple[str, ...] = ()

    def header(self, k: int) -> Any:
        """Return the DICOM dataset of the instance that slice k is a picture of, or None where there is none."""
        frame = self.slices[k] if self.slices else None
        return None if frame is None else self.instances[frame.instance]

    @property
    def length_unit(self) -> str:
        """'mm', or 'pixels' where the file does not say how large a pixel is."""
        return "mm" if self.spaced else "pixels"


@dataclass(frozen=True, eq=False)
class Volume:
    """One series or image in its stored axes, as real-world values.

    Parameters
    ----------
    voxels
        Real-world values; i runs along an image row (its columns), j down its rows, k through the slices.
    unit
        'HU' for CT, else what the file says, or 'a.u.'.

    Raises
    ------
    GeometryError
        If the voxels do not have the grid's shape.
    """

    voxels: Num[np.ndarray, "i j k"]
    grid: Grid
    unit: str
    source: Source

    def __post_init__(self) -> None:
        _freeze(self, "voxels", np.asarray(self.voxels))

    def slice(self, k: int) -> Volume:
        """Return slice k as a volume of one slice, in its place.

        Raises
        ------
        UsageError
            If there is no such slice.
        """
        count = self.grid.shape[2]
        if not 0 <= k < count:
            raise UsageError(f"slice {k} does not exist: the image has slices 0 to {count - 1}")
        affine = self.grid.affine.copy()
        affine[:3, 3] = self.grid.world_mm(np.array([0, 0, k]))
        grid = Grid((*self.grid.shape[:2], 1), affine, self.grid.frame_of_reference)
        note = f"Slice {k} of {count} (from 0) stands alone."
        source = replace(self.source, label=f"{self.source.label}_k{k}", notes=(*self.source.notes, note))
        if self.source.slices:
            frame = self.source.slices[k]
            if frame is None:
                source = replace(source, slices=(None,))
            else:
                alone = (self.source.instances[frame.instance],)
                source = replace(source, instances=alone, slices=(Frame(0, frame.number),))
        return Volume(self.voxels[:, :, k : k + 1], grid, self.unit, source)

    def _repr_html_(self) -> str | None:
        """Return what a notebook shows: the middle planes."""
        return _html("volume_html", self)


class Peak(NamedTuple):
    """The hottest voxel of a heatmap: its index i j k, its place (RAS+ mm) and its relevance."""

    voxel: tuple[int, int, int]
    world_mm: tuple[float, float, float]
    relevance: float


@dataclass(frozen=True, eq=False)
class Heatmap:
    """Relevance placed in the patient: raw, signed, on the source's own grid.

    Parameters
    ----------
    relevance
        Positive speaks for the target, negative against it. The scale is the method's own and does not compare between images.
        NaN was not looked at; zero was looked at and found irrelevant.
    target
        What was explained, in words: 'lesion (class 0)'.
    score
        The target's score, a logit unless the recipe says probability.
    probability
        The target's probability under the network's output activation, or None where the output is not a classification.
    notes
        Everything about this result that its reader must know, in sentences.

    Raises
    ------
    GeometryError
        If the relevance does not have the grid's shape.
    """

    relevance: Float32[np.ndarray, "i j k"]
    grid: Grid
    source: Source
    recipe: Recipe
    target: str
    score: float
    probability: float | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _freeze(self, "relevance", np.asarray(self.relevance, np.float32))

    @cached_property
    def maximum(self) -> float:
        """The largest relevance, or NaN where nothing was looked at."""
        seen = self.relevance[np.isfinite(self.relevance)]
        return float(seen.max()) if seen.size else float("nan")

    def peak(self) -> Peak | None:
        """Return the hottest voxel (the first in memory under ties), or None where no voxel speaks for the target."""
        if not self.maximum > 0:
            return None
        flat = int(np.nanargmax(self.relevance))
        i, j, k = (int(n) for n in np.unravel_index(flat, self.relevance.shape))
        x, y, z = (float(mm) for mm in self.grid.world_mm(np.array([i, j, k])))
        return Peak((i, j, k), (x, y, z), float(self.relevance[i, j, k]))

    def peak_in_words(self) -> str:
        """Say where the peak is, in millimetres where the source knows them, towards patient directions where it knows those."""
        peak = self.peak()
        if peak is None:
            return "none: nothing speaks for the target"
        voxel = f"voxel {', '.join(map(str, peak.voxel))}"
        if not self.source.spaced:
            return f"{voxel} (the image does not say how large a pixel is)"
        if not self.source.placed:
            i, j, k = (n * mm for n, mm in zip(peak.voxel, self.grid.spacing_mm, strict=True))
            deep = f", {k:.1f} deep" if self.grid.shape[2] > 1 else ""
            return f"{i:.1f} mm right and {j:.1f} mm down{deep} of the image's first voxel, {voxel}"
        x, y, z = peak.world_mm
        sides = f"{abs(x):.1f} {'R' if x >= 0 else 'L'}, {abs(y):.1f} {'A' if y >= 0 else 'P'}, {abs(z):.1f} {'S' if z >= 0 else 'I'} mm"
        return f"{sides} (RAS {x:.1f}, {y:.1f}, {z:.1f}), {voxel}"

    def mask(self, fraction: float) -> Bool[np.ndarray, "i j k"]:
        """Return where the relevance reaches `fraction` (0 to 1, exclusive of 0) of its positive maximum; nowhere if none is positive."""
        if not self.maximum > 0:
            return np.zeros(self.relevance.shape, bool)
        reached: np.ndarray = np.nan_to_num(self.relevance, nan=-np.inf) >= fraction * self.maximum
        return reached

    def _repr_html_(self) -> str | None:
        """Return what a notebook shows: planes through the peak, and what must be known."""
        return _html("heatmap_html", self)


def _html(drawing: str, shown: Volume | Heatmap) -> str | None:
    """Return what a notebook shows, or None, for which it shows text, where nothing can be drawn.

    Pages are drawn downstream of this room, by a function that is looked up when a notebook asks.
    """
    try:
        html: str = getattr(import_module("medcam.report.notebook"), drawing)(shown)
    except Exception:  # noqa: BLE001  a picture that cannot be drawn must not cost the user's cell
        return None
    return html


def _freeze(holder: Volume | Heatmap, name: str, array: np.ndarray) -> None:
    if array.shape != holder.grid.shape:
        raise GeometryError(f"{name} of shape {array.shape} cannot lie on a grid of shape {holder.grid.shape}")
    view = array.view()
    view.flags.writeable = False
    object.__setattr__(holder, name, view)
