"""Where sliding windows lie and how much each voxel of one counts: the rules of MONAI's SlidingWindowInferer, or of nnU-Net, as values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers.inferer import SlidingWindowInferer
from scipy.ndimage import gaussian_filter
from torch import Tensor

from medcam.errors import UsageError

_PADDINGS = ("constant", "reflect", "replicate", "circular")


@final
@dataclass(frozen=True)
class Windows:
    """How a volume is cut into windows; names and meanings are those of MONAI's SlidingWindowInferer.

    Parameters
    ----------
    roi_size
        Voxels of a window, for each axis or for all; 0 or less stands for the whole side.
    overlap
        The share of a window that the next one covers too, at least 0 and less than 1, for each axis or for all.
    mode
        'gaussian': the middle of a window counts most; 'constant': all its voxels count the same.
    sigma_scale
        The Gaussian's sigma as a share of the window's side.
    padding_mode, cval
        How a volume that is smaller than a window is filled up.
    sw_batch_size
        How many windows run at once.
    sw_device, device
        Where windows run (by default where the network's weights are), and where results are put together (where the input is).
    rule
        Whose windows these are. 'monai': each a whole step behind the one before, the last one moved back into the volume. 'nnunet':
        spread evenly; and their Gaussian is cut off at four sigma.

    References
    ----------
    Isensee et al., nnU-Net, Nature Methods 18, 2021, inference; in nnunetv2 `compute_steps_for_sliding_window` and `compute_gaussian`.
    """

    roi_size: int | Sequence[int]
    overlap: float | Sequence[float] = 0.25
    mode: str = "gaussian"
    sigma_scale: float | Sequence[float] = 0.125
    padding_mode: str = "constant"
    cval: float = 0.0
    sw_batch_size: int = 1
    sw_device: str | torch.device | None = None
    device: str | torch.device | None = None
    rule: str = "monai"

    def __post_init__(self) -> None:
        for name in ("roi_size", "overlap", "sigma_scale"):
            if isinstance(value := getattr(self, name), Sequence):
                object.__setattr__(self, name, tuple(value))  # a list could be changed
        if not all(isinstance(side, int) for side in _every(self.roi_size)) or not _every(self.roi_size):
            raise UsageError(f"a window's size is whole numbers of voxels, such as (96, 96, 96), not {self.roi_size!r}")
        if not all(0 <= share < 1 for share in _every(self.overlap)):
            raise UsageError(f"windows overlap by a share of at least 0 and less than 1, not {self.overlap!r}")
        if self.mode not in ("constant", "gaussian"):
            raise UsageError(f"windows are blended in mode 'constant' or 'gaussian', not '{self.mode}'")
        if not all(scale > 0 for scale in _every(self.sigma_scale)):
            raise UsageError(f"the Gaussian's sigma is a share of the window's side above 0, not {self.sigma_scale!r}")
        if self.padding_mode not in _PADDINGS:
            raise UsageError(f"the padding mode is one of {', '.join(_PADDINGS)}, not '{self.padding_mode}'")
        if self.rule not in ("monai", "nnunet"):
            raise UsageError(f"windows lie by the rule of 'monai' or 'nnunet', not '{self.rule}'")
        if self.sw_batch_size < 1:
            raise UsageError(f"at least one window runs at once, not {self.sw_batch_size}")

    def settings(self) -> dict[str, Any]:
        """Return what a recipe needs to cut a volume in the same way: all but the devices, and the rule where it is not MONAI's."""
        left_out = {"sw_device", "device", *(("rule",) if self.rule == "monai" else ())}
        known = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in left_out}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}

    @staticmethod
    def of(inferer: SlidingWindowInferer) -> Windows:
        """Return the settings of one of MONAI's own inferers.

        Raises
        ------
        UsageError
            If it cuts in another way than SlidingWindowInferer does.
        """
        if type(inferer) is not SlidingWindowInferer or inferer.with_coord:
            raise UsageError(
                f"medcam follows a SlidingWindowInferer without coordinates, not a {type(inferer).__name__}"
            )
        known: dict[str, Any] = {f.name: getattr(inferer, f.name) for f in fields(Windows) if f.name != "rule"}
        # MONAI keeps some words as members of its enumerations.
        words = {name: str(getattr(known[name], "value", known[name])) for name in ("mode", "padding_mode")}
        return Windows(**known | words)


@final
@dataclass(frozen=True, eq=False)
class Tiling:
    """The windows of one volume.

    Parameters
    ----------
    image
        The volume's sides.
    before, padded
        Voxels put in front along each axis, and the sides after that; equal to `image` unless that is smaller than a window.
    roi
        A window's sides.
    starts
        Along each axis, where windows begin in the padded volume; there is one for each combination, the first axis changing slowest.
    importance
        How much each voxel of a window counts.
    """

    image: tuple[int, ...]
    before: tuple[int, ...]
    padded: tuple[int, ...]
    roi: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    importance: Float[Tensor, "*roi"]

    @cached_property
    def corners(self) -> tuple[tuple[int, ...], ...]:
        """The first voxel of each window, in MONAI's order."""
        return tuple(itertools.product(*self.starts))

    def box(self, corner: Sequence[int], *lead: Any) -> tuple[Any, ...]:
        """Return the voxels of the window that begins there, as an index behind those of leading axes."""
        return (*lead, *(slice(at, at + side) for at, side in zip(corner, self.roi, strict=True)))

    def rows(self, corner: Sequence[int], *lead: Any) -> tuple[Any, ...]:
        """Return the same without the first spatial axis."""
        return (*lead, *self.box(corner)[1:])

    def inside_of(self, *lead: Any) -> tuple[Any, ...]:
        """Return the volume's own voxels in the padded volume, or in a window of it, as an index behind those of leading axes."""
        return (*lead, *(slice(at, at + side) for at, side in zip(self.before, self.image, strict=True)))

    @property
    def is_padded(self) -> bool:
        """Whether the volume had to be filled up to the size of a window."""
        return self.image != self.padded

    def on(self, device: torch.device, dtype: torch.dtype) -> Tiling:
        """Return the tiling with its importance there."""
        return replace(self, importance=self.importance.to(device, dtype))

    def summed(self, first: int) -> Float[Tensor, "r *s"]:
        """Return the importance of all windows, summed, on the rows of the windows that begin at `first` along the first axis."""
        rows = self.roi[0]
        total = self.importance.new_zeros((rows, *self.padded[1:]))
        for corner in self.corners:
            shift = corner[0] - first
            if abs(shift) < rows:
                here = slice(max(shift, 0), rows + min(shift, 0))
                there = slice(max(-shift, 0), rows - max(shift, 0))
                total[self.rows(corner, here)] += self.importance[there]
        return total


def tile(
    sides: Sequence[int], windows: Windows, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tiling:
    """Return the windows of a volume of these sides.

    Raises
    ------
    UsageError
        If the window has another number of axes than the volume.
    """
    axes = len(sides)
    roi = [
        side if side > 0 else whole
        for side, whole in zip(_for_axes(windows.roi_size, axes, "a window's size"), sides, strict=True)
    ]
    padded = tuple(map(max, sides, roi))
    overlap = _for_axes(windows.overlap, axes, "the overlap")
    if windows.rule == "nnunet":
        starts, importance = _spread_evenly(padded, roi, overlap), _bell(roi, windows).to(device, dtype)
    else:
        # MONAI's rule; its own function for this is private.
        steps = [
            max(int(r * (1 - share)), 1) if r != whole else r
            for r, whole, share in zip(roi, padded, overlap, strict=True)
        ]
        boxes = dense_patch_slices(padded, roi, steps)
        starts = tuple(tuple(sorted({int(box[axis].start) for box in boxes})) for axis in range(axes))
        importance = compute_importance_map(
            tuple(roi), mode=windows.mode, sigma_scale=windows.sigma_scale, device=device, dtype=dtype
        )
    return Tiling(
        image=tuple(sides),
        before=tuple((p - n) // 2 for p, n in zip(padded, sides, strict=True)),
        padded=padded,
        roi=tuple(roi),
        starts=starts,
        importance=importance,
    )


def _spread_evenly(padded: Sequence[int], roi: Sequence[int], overlap: Sequence[float]) -> tuple[tuple[int, ...], ...]:
    """Return where windows begin that are no further apart than the overlap allows, and all equally far but for rounding."""
    starts = []
    for whole, side, share in zip(padded, roi, overlap, strict=True):
        steps = math.ceil((whole - side) / (side * (1 - share)))
        starts.append(tuple(round((whole - side) / max(steps, 1) * n) for n in range(steps + 1)))
    return tuple(starts)


def _bell(roi: Sequence[int], windows: Windows) -> Float[Tensor, "*roi"]:
    """Return nnU-Net's importance: a point in the middle, spread by a Gaussian that is cut off, and beyond that its least value."""
    if windows.mode == "constant":
        return torch.ones(tuple(roi))
    scales = _for_axes(windows.sigma_scale, len(roi), "the Gaussian's sigma")
    point = np.zeros(tuple(roi))
    point[tuple(side // 2 for side in roi)] = 1
    bell = gaussian_filter(point, [side * scale for side, scale in zip(roi, scales, strict=True)], mode="constant")
    return torch.from_numpy(np.where(bell > 0, bell, bell[bell > 0].min()) / bell.max())


def pad(inputs: Float[Tensor, "b c *s"], tiling: Tiling, windows: Windows) -> Float[Tensor, "b c *p"]:
    """Return the volumes filled up to the size of a window where they are smaller."""
    if not tiling.is_padded:
        return inputs
    amounts: list[int] = []
    for n, before, whole in reversed(list(zip(tiling.image, tiling.before, tiling.padded, strict=True))):
        amounts += [before, whole - n - before]
    return F.pad(
        inputs, amounts, mode=windows.padding_mode, value=windows.cval if windows.padding_mode == "constant" else None
    )


def _every(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,)


def _for_axes(value: Any, axes: int, what: str) -> tuple[Any, ...]:
    given = _every(value)
    if len(given) not in (1, axes) or (isinstance(value, Sequence) and len(given) != axes):
        raise UsageError(f"{what} has {len(given)} axes and the input {axes}; give one number for each")
    return given * axes if len(given) == 1 else given
