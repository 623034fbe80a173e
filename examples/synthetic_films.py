"""Chest films drawn from nothing: a procedural thorax, and nodules implanted into it or into a real film.

Every array is held as i = column (image left to right) and j = row (top to bottom), `film[i, j]`, and a brighter value means that more
of the beam was absorbed, as bone is. The patient faces the detector (PA), so the patient's right lies at small i.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FloatImage = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass
class Film:
    """A chest film and where its lungs are.

    Attributes
    ----------
    absorption
        `float32 (columns, rows)`, about 0 (air) to 1 (spine).
    lungs
        `bool (columns, rows)`, the part of the lung fields that neither heart nor diaphragm hides.
    """

    absorption: FloatImage
    lungs: Mask


def _soft_step(value: NDArray[np.floating], width: float) -> NDArray[np.floating]:
    """Rise smoothly from 0 to 1 where `value` crosses 0, over about `width`."""
    ramp = np.clip(value / width * 0.5 + 0.5, 0, 1)
    return np.asarray(ramp * ramp * (3 - 2 * ramp))


def _band(distance: NDArray[np.floating], cortex: float) -> NDArray[np.floating]:
    """Cross-section of a tubular bone: a plateau for |distance| < 1 with a denser rim of weight `cortex`."""
    across = np.abs(distance)
    rim = np.exp(-(((across - 0.82) / 0.2) ** 2))
    return np.asarray(_soft_step(1 - across, 0.35) * (1 + cortex * rim))


def _vessels(
    rng: np.random.Generator, columns: int, rows: int, hila: list[tuple[float, float, int]]
) -> NDArray[np.floating]:
    """Draw the branching vessels of both lungs; `hila` gives x, y and side of each root."""
    drawn = np.zeros((columns, rows))
    for x_root, y_root, side in hila:
        branches = [
            (
                x_root + rng.normal(0, 0.02),
                y_root + rng.normal(0, 0.03),
                angle + rng.normal(0, 0.15),
                rng.uniform(2.4, 3.4),
                0,
            )
            for angle in np.linspace(-1.35, 1.25, 9)
        ]
        while branches:
            x, y, angle, calibre, generation = branches.pop()
            length = rng.uniform(0.06, 0.13)
            steps = max(2, int(length * columns))
            bend = rng.normal(0, 0.25)
            along = np.linspace(0, 1, steps)
            headings = angle + bend * along
            xs = x + np.cumsum(np.cos(headings)) * length / steps * side
            ys = y + np.cumsum(np.sin(headings)) * length / steps * columns / rows
            i, j = np.round((xs + 1) * columns / 2).astype(int), np.round(ys * rows).astype(int)
            inside = (i >= 0) & (i < columns) & (j >= 0) & (j < rows)
            i, j = i[inside], j[inside]
            if len(i):
                margin = 10
                i_low, j_low = max(i.min() - margin, 0), max(j.min() - margin, 0)
                box = (slice(i_low, i.max() + margin), slice(j_low, j.max() + margin))
                stamp = np.zeros_like(drawn[box])
                stamp[i - i_low, j - j_low] = 1
                sigma = calibre * columns / 512 * 0.6
                drawn[box] += ndimage.gaussian_filter(stamp, sigma) * sigma**2 * 2.2
            if generation < 3:
                for turn in (rng.uniform(0.1, 0.45), -rng.uniform(0.1, 0.45)):
                    thinner = calibre * rng.uniform(0.62, 0.82)
                    branches.append((float(xs[-1]), float(ys[-1]), float(headings[-1] + turn), thinner, generation + 1))
    return np.minimum(drawn, 6.0)


def synthetic_film(rng: np.random.Generator, columns: int = 512, rows: int = 512) -> Film:
    """Draw one chest film of a made-up patient without any nodule.

    Parameters
    ----------
    rng
        Source of every random choice: the same state draws the same film.
    columns, rows
        Size of the film. The thorax always fills it.
    """
    x, y = np.meshgrid(
        ((np.arange(columns) + 0.5) / columns * 2 - 1).astype(np.float32),
        ((np.arange(rows) + 0.5) / rows).astype(np.float32),
        indexing="ij",
    )
    x = x * rng.uniform(0.98, 1.08) + rng.normal(0, 0.02)
    y = (y - 0.5) * rng.uniform(0.97, 1.06) + 0.5 + rng.normal(0, 0.015) + rng.normal(0, 0.01) * x

    # The outline of the body: neck, shoulders that slope to the upper arms, flanks.
    slope = np.clip((y - rng.uniform(0.02, 0.05)) / 0.12, 0, 1)
    shoulder = 0.27 + 0.8 * slope**1.6 - rng.uniform(0.02, 0.12) * _soft_step(y - 0.45, 0.3)
    body = _soft_step(shoulder - np.abs(x), 0.03)
    thickness = np.sqrt(np.clip(1 - (x / 1.18) ** 2, 0.05, 1))
    absorption = body * (0.5 + 0.2 * thickness + 0.1 * y)

    # Lungs: an apex, a lateral wall and a diaphragm dome on each side.
    apex = rng.uniform(0.09, 0.13)
    width = rng.uniform(0.71, 0.79)
    lungs = np.zeros((columns, rows), bool)
    cage = np.zeros((columns, rows), bool)
    under_dome = np.zeros((columns, rows))
    for side, base in ((-1, rng.uniform(0.68, 0.76)), (1, rng.uniform(0.71, 0.79))):
        u = x * side
        t = np.clip((y - apex) / 0.7, 0, 1.2)
        rise = (1 - (1 - np.minimum(t, 1)) ** 3.2) ** 0.62
        lateral = 0.27 + (width - 0.27) * rise
        medial = 0.1 + 0.15 * np.exp(-((t / 0.07) ** 2))
        dome = base + rng.uniform(0.3, 0.42) * (u - 0.34) ** 2 + 1.6 * np.clip(u - 0.6, 0, None) ** 2
        lungs |= (u > medial) & (u < lateral) & (y > apex) & (y < dome)
        cage |= (u > 0) & (u < lateral + 0.045) & (y > apex - 0.025) & (y < dome + 0.09)
        below = _soft_step(y - dome, 0.012) * _soft_step(u - 0.02, 0.12) * _soft_step(lateral + 0.03 - u, 0.05)
        under_dome = np.maximum(under_dome, below)
        if side == 1:  # gas in the stomach
            gas = ((u - rng.uniform(0.3, 0.42)) / rng.uniform(0.12, 0.2)) ** 2
            gas += ((y - base - 0.075) / rng.uniform(0.02, 0.045)) ** 2
            absorption -= rng.uniform(0, 0.16) * _soft_step(1 - gas, 0.8)
    # Heart and great vessels: most of the shadow on the patient's left (large i).
    size = rng.uniform(0.88, 1.12)
    slant = (y - 0.6) * 0.35
    heart = ((x - 0.13 - slant) / (0.31 * size)) ** 2 + ((y - 0.605) / (0.185 * size)) ** 2
    knob = ((x - 0.12) / 0.1) ** 2 + ((y - 0.315) / 0.055) ** 2
    column_half = 0.125 + 0.03 * np.cos((y - 0.3) * 9)
    shadow = np.maximum(_soft_step(1 - heart, 0.16), _soft_step(1 - knob, 0.4))
    shadow = np.maximum(shadow, _soft_step(column_half - np.abs(x - 0.01), 0.05))
    lungs &= shadow < 0.5

    depth = ndimage.distance_transform_edt(lungs) / columns
    air = 1 - np.exp(-depth / rng.uniform(0.018, 0.028))
    air *= 1 - 0.25 * _soft_step(y - 0.55, 0.3)
    absorption -= body * rng.uniform(0.48, 0.56) * air
    absorption += body * (0.1 * shadow + 0.12 * under_dome)
    hila = [(-0.2, rng.uniform(0.43, 0.47), -1), (0.22, rng.uniform(0.4, 0.44), 1)]
    for x_hilum, y_hilum, _ in hila:
        swell = ((x - x_hilum) / 0.07) ** 2 + ((y - y_hilum) / 0.075) ** 2
        absorption += 0.07 * np.exp(-swell)
    absorption += rng.uniform(0.035, 0.05) * _vessels(rng, columns, rows, hila) * _soft_step(depth - 0.003, 0.012)

    # Bones. `in_cage` softens the ends of the ribs at the chest wall.
    in_cage = ndimage.gaussian_filter(cage.astype(np.float64), 2.5 * columns / 512)
    strength = rng.uniform(0.055, 0.09)
    pitch = rng.uniform(0.064, 0.072)
    for side in (-1, 1):
        u = x * side
        droop = rng.uniform(0.24, 0.32)
        for number in range(10):  # posterior ribs rise a little from the spine, then fall to the wall
            middle = apex + 0.035 + number * pitch - 0.14 * u + droop * u**2 + 0.9 * np.clip(u - 0.6, 0, None) ** 2
            band = _band((y - middle) / rng.uniform(0.0125, 0.016), 0.45)
            absorption += strength * band * in_cage * _soft_step(u - 0.04, 0.04) * (0.75 + 0.35 * np.clip(u, 0, 0.8))
        for number in range(6):  # anterior ribs fall towards the breastbone and fade into cartilage
            middle = apex + 0.16 + number * 0.088 - 0.36 * (u - 0.3) + 0.22 * (u - 0.3) ** 2
            band = _band((y - middle) / rng.uniform(0.014, 0.018), 0.3)
            absorption += 0.6 * strength * band * in_cage * _soft_step(u - 0.3 - 0.02 * number, 0.15)
        clavicle = apex + 0.085 + rng.normal(0, 0.008) - 0.012 * np.sin(u * 8) - 0.07 * u
        ends = _soft_step(u - 0.09, 0.03) * _soft_step(rng.uniform(0.7, 0.8) - u, 0.06)
        absorption += 1.2 * strength * body * _band((y - clavicle) / 0.015, 0.6) * ends
        blade = ((u - 0.84 + 0.12 * (y - 0.3)) / 0.11) ** 2 + ((y - 0.31) / 0.14) ** 2
        absorption += 0.055 * _soft_step(1 - blade, 0.25) * body
        humerus = ((u - 0.98) / 0.08) ** 2 + ((y - 0.26) / 0.06) ** 2
        absorption += 0.09 * _soft_step(1 - humerus, 0.3) * body
    vertebra = 0.5 + 0.5 * np.cos(2 * np.pi * y / rng.uniform(0.052, 0.06))
    spine = _soft_step(0.075 + 0.008 * vertebra - np.abs(x), 0.025)
    absorption += body * spine * (0.1 + 0.035 * vertebra * (1 - 0.6 * shadow))
    trachea = _soft_step(0.035 - np.abs(x + 0.01), 0.02) * _soft_step(0.36 - y, 0.05)
    absorption -= 0.09 * body * trachea

    # The rest: soft tissue that varies slowly, the system's blur, quantum noise, the shoulder of the film's curve.
    slow = ndimage.zoom(rng.normal(0, 1, (7, 7)), (columns / 7, rows / 7), order=3, grid_mode=True, mode="nearest")
    absorption += body * 0.015 * slow
    absorption = ndimage.gaussian_filter(absorption, 0.9 * columns / 512)
    noise = ndimage.gaussian_filter(rng.normal(0, 1, (columns, rows)), 0.6) * rng.uniform(0.008, 0.016)
    absorption = np.clip(absorption + noise, 0, None)
    film = 1 - np.exp(-1.9 * absorption)
    return Film((film / film.max()).astype(np.float32), lungs)


def draw_nodule(rng: np.random.Generator, diameter: float) -> tuple[FloatImage, Mask]:
    """Draw one soft-edged, irregular nodule on a square of its own.

    Parameters
    ----------
    rng
        Source of the shape, the softness and the texture.
    diameter
        Mean diameter in pixels.

    Returns
    -------
    thickness
        How much tissue the beam crosses, 0 to about 1; 0 outside the mask but for the blur of its edge.
    mask
        The nodule itself.
    """
    half = int(np.ceil(diameter * 0.85)) + 3
    i, j = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.35)
    along, across = i * np.cos(turn) + j * np.sin(turn), j * np.cos(turn) - i * np.sin(turn)
    angle = np.arctan2(across, along)
    edge = np.ones_like(angle)
    for order in range(2, 8):
        edge += rng.normal(0, 0.12) / order**0.7 * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    radius = np.hypot(along / np.sqrt(stretch), across * np.sqrt(stretch)) / (diameter / 2) / np.clip(edge, 0.6, 1.4)
    mask = radius < 1
    roundness = rng.uniform(0.25, 0.7)  # low: a plateau with a sharp edge, high: a mound
    thickness = np.clip(1 - radius**2, 0, 1) ** roundness
    texture = ndimage.gaussian_filter(rng.normal(0, 1, radius.shape), max(1.0, diameter / 9))
    thickness *= 1 + rng.uniform(0, 0.18) * texture / (texture.std() + 1e-6)
    thickness = ndimage.gaussian_filter(np.clip(thickness, 0, None), rng.uniform(0.4, 0.5 + diameter / 25))
    return thickness.astype(np.float32), mask


def implant_nodule(
    film: FloatImage, lungs: Mask, rng: np.random.Generator, diameter: float, contrast: float
) -> tuple[FloatImage, Mask]:
    """Add a nodule somewhere in the lungs.

    The film is taken as already logarithmic in exposure, so that what the nodule absorbs is added; the sum is bent below the film's
    brightest value as its curve would bend it.

    Parameters
    ----------
    film
        `float32 (columns, rows)`, 0 to 1.
    lungs
        Where the centre may lie.
    rng
        Source of the place and the shape.
    diameter
        Mean diameter in pixels.
    contrast
        Added value at the nodule's thickest, in units of the film's range.

    Returns
    -------
    film, mask
        A new film, and the nodule's exact outline.
    """
    core = lungs
    if diameter > 8:  # mostly inside the lung, as most of them are
        shrunk = ndimage.binary_erosion(lungs, iterations=max(1, int(diameter * 0.25)))
        core = shrunk if shrunk.any() else lungs
    places = np.argwhere(core)
    i, j = places[rng.integers(len(places))]
    thickness, outline = draw_nodule(rng, diameter)
    half = thickness.shape[0] // 2
    padded_film = np.zeros((film.shape[0] + 2 * half, film.shape[1] + 2 * half), np.float32)
    padded_mask = np.zeros(padded_film.shape, bool)
    box = (slice(i, i + 2 * half + 1), slice(j, j + 2 * half + 1))
    padded_film[box] = thickness
    padded_mask[box] = outline
    inner = (slice(half, half + film.shape[0]), slice(half, half + film.shape[1]))
    headroom = np.clip(1.15 - film, 0.15, 1.0)  # the shoulder: little is added where the film is bright already
    with_nodule = film + contrast * padded_film[inner] * headroom
    return with_nodule.astype(np.float32), padded_mask[inner].copy()
