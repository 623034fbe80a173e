"""The same patient imaged again: small changes of the kind that scanners make, by MONAI, each with the way back for its map.

Strengths are meant to leave the diagnosis alone. Everything acts on the network's input, in its own units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medcam.errors import UsageError
from medcam.options import chosen

# Where less than this share of a warped voxel was seen, it is not looked at.
_SEEN = 0.5


@dataclass(frozen=True, eq=False)
class Acquired:
    """An image taken again.

    Parameters
    ----------
    image
        `c *s`.
    there, back
        A map of the first image as it would lie on the second, and one of the second as it lies on the first; NaN where there is nothing.
    """

    image: Float[Tensor, "c *s"]
    there: Callable[[Float[Tensor, "*s"]], Float[Tensor, "*s"]]
    back: Callable[[Float[Tensor, "*s"]], Float[Tensor, "*s"]]


# From an image, the spacing of its voxels and a seed.
Acquisition = Callable[[Float[Tensor, "c *s"], Sequence[float], int], Acquired]


def acquisition_named(text: str) -> Acquisition:
    """Return a way to image again: 'noise', or with options, 'rigid(degrees=2, mm=1)'.

    Raises
    ------
    UsageError
        If there is none of this name, or it has no such option.
    """
    choice = chosen(text, ACQUISITIONS, kind="acquisition")
    found: Acquisition = choice.function(**choice.options)
    return found


def noise(*, share: float | int = 0.05) -> Acquisition:
    """Add Gaussian noise of this share of each channel's standard deviation."""
    _positive("share", share)

    def take(image: Float[Tensor, "c *s"], _: Sequence[float], seed: int) -> Acquired:
        from monai.transforms.intensity.array import RandGaussianNoise

        channels = [
            _random(RandGaussianNoise(prob=1.0, std=float(share * one.std(correction=0)), sample_std=False), seed + c)(
                one
            )
            for c, one in enumerate(image)
        ]
        return _still(torch.stack([torch.as_tensor(one) for one in channels]).to(image))

    return take


def bias(*, strength: float | int = 0.1) -> Acquisition:
    """Multiply the image, above its minimum, by a smooth field as coils leave it, whose exponent has coefficients up to this.

    The mean stays, as where intensities are normalised.
    """
    _positive("strength", strength)

    def take(image: Float[Tensor, "c *s"], _: Sequence[float], seed: int) -> Acquired:
        from monai.transforms.intensity.array import RandBiasField

        # Signals are positive; a normalised image is not.
        low = image.amin(tuple(range(1, image.ndim)), keepdim=True)
        field = _random(RandBiasField(coeff_range=(-float(strength), float(strength)), prob=1.0), seed)
        signal = image - low
        shaded = torch.as_tensor(field(signal)).to(image)
        axes = tuple(range(1, image.ndim))
        gain = signal.mean(axes, keepdim=True) / shaded.mean(axes, keepdim=True).clamp(
            min=torch.finfo(image.dtype).tiny
        )
        return _still(gain * shaded + low)

    return take


def gamma(*, exponent: float | int = 1.15) -> Acquisition:
    """Bend the grey values, between each image's least and greatest, by this exponent."""
    _positive("exponent", exponent)

    def take(image: Float[Tensor, "c *s"], _: Sequence[float], __: int) -> Acquired:
        from monai.transforms.intensity.array import AdjustContrast

        bent = [torch.as_tensor(AdjustContrast(gamma=float(exponent))(one[None])) for one in image]
        return _still(torch.cat(bent).to(image))

    return take


def resampled(*, factor: float | int = 1.25) -> Acquisition:
    """Take the image with voxels larger by this factor along each axis, and interpolate it back."""
    if not factor > 1:
        raise UsageError(f"a resampling's factor is above 1, not {factor}")

    def take(image: Float[Tensor, "c *s"], _: Sequence[float], __: int) -> Acquired:
        from monai.transforms.spatial.array import Resize

        sides = [int(n) for n in image.shape[1:]]
        mode = "bilinear" if len(sides) == 2 else "trilinear"
        coarse = Resize([max(1, round(n / factor)) for n in sides], mode=mode, align_corners=False)(image)
        return _still(torch.as_tensor(Resize(sides, mode=mode, align_corners=False)(coarse)).to(image))

    return take


def rigid(*, degrees: float | int = 3.0, mm: float | int = 2.0) -> Acquisition:
    """Turn and move the patient, up to so many degrees about each axis and so many millimetres along each."""
    if degrees < 0 or mm < 0 or degrees + mm == 0:
        raise UsageError(f"a rigid motion turns or moves by something above 0, not by {degrees} degrees and {mm} mm")

    def take(image: Float[Tensor, "c *s"], spacing_mm: Sequence[float], seed: int) -> Acquired:
        random = np.random.default_rng(seed)
        axes = image.ndim - 1
        angles = np.deg2rad(random.uniform(-degrees, degrees, 3 if axes == 3 else 1))
        matrix = np.eye(axes + 1)
        scale = np.asarray(spacing_mm, np.float64)
        # A turn in millimetres is no turn of an anisotropic grid.
        matrix[:axes, :axes] = np.diag(1 / scale) @ _turn(angles) @ np.diag(scale)
        matrix[:axes, axes] = random.uniform(-mm, mm, axes) / scale
        inverse = np.linalg.inv(matrix)
        return Acquired(
            _warped(image, matrix, "border"),
            lambda values: _map_warped(values, matrix),
            lambda values: _map_warped(values, inverse),
        )

    return take


# Ways to image again, by name.
ACQUISITIONS: Mapping[str, Callable[..., Acquisition]] = {
    "noise": noise,
    "bias": bias,
    "gamma": gamma,
    "resampled": resampled,
    "rigid": rigid,
}


def _positive(option: str, value: float | int) -> None:
    if not value > 0:
        raise UsageError(f"{option} is a number above 0, not {value}")


def _random(transform: Any, seed: int) -> Any:
    transform.set_random_state(seed=seed)
    return transform


def _still(image: Float[Tensor, "c *s"]) -> Acquired:
    return Acquired(image.as_subclass(Tensor), lambda values: values, lambda values: values)


def _turn(angles: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the turn in the plane by one angle, or one after the other about three axes."""
    if len(angles) == 1:
        c, s = math.cos(angles[0]), math.sin(angles[0])
        return np.array([[c, -s], [s, c]])
    whole = np.eye(3)
    for axis, angle in enumerate(angles):
        plane = [other for other in range(3) if other != axis]
        part = np.eye(3)
        part[np.ix_(plane, plane)] = _turn([float(angle)])
        whole = part @ whole
    return whole


def _warped(values: Float[Tensor, "c *s"], matrix: np.ndarray, padding: str) -> Float[Tensor, "c *s"]:
    """Return values whose voxel x, from the centre, is taken from `matrix x`."""
    from monai.transforms.spatial.array import Affine

    warp = Affine(affine=matrix, mode="bilinear", padding_mode=padding, image_only=True)
    # MONAI answers in single precision and in a subclass that remembers where it has been.
    return torch.as_tensor(warp(values.float())).as_subclass(Tensor).to(values)


def _map_warped(values: Float[Tensor, "*s"], matrix: np.ndarray) -> Float[Tensor, "*s"]:
    seen = torch.isfinite(values)
    both = torch.stack([torch.where(seen, values, 0).float(), seen.float()])
    mass, weight = _warped(both, matrix, "zeros")
    return torch.where(weight >= _SEEN, mass / weight.clamp(min=_SEEN), torch.nan).to(values.dtype)
