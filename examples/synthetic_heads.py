"""Synthetic MRI heads with an exactly known lesion, built on the MNI152 tissue maps that ship inside nilearn.

Each head is a new one: a random pose and size, a smooth random deformation, random tissue intensities (T1-like or FLAIR-like), a bias
field, blur and noise. What stands out on it is not the lesion alone: the scalp is bright, and vessel-like spots as bright as the lesion
lie outside the brain, so a detector of plain brightness fails.

A head is defined in world millimetres (RAS+), so it can be drawn on any voxel grid, oblique and anisotropic ones included.

The maps are the ICBM 2009a symmetric template, copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal
Neurological Institute, McGill University, free to use, copy, modify and distribute for any purpose provided that this notice is kept.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch import Generator, Tensor
from torch.nn import functional as F

TISSUES = ("grey matter", "white matter", "csf", "skull", "fat", "muscle", "eye")
GREY, WHITE, CSF, SKULL, FAT, MUSCLE, EYE = range(len(TISSUES))

# The world point (mm, RAS+) that every drawn grid is centred on: the middle of the template's head.
HEAD_CENTRE = (0.0, -16.0, 8.0)


@dataclass(frozen=True)
class Anatomy:
    """The tissue fractions of the template head.

    Attributes
    ----------
    fractions
        `t x y z`, one map for each of `TISSUES`; what is missing to 1 is air.
    origin, spacing
        World position (mm, RAS+) of the first voxel, and the voxel size in mm. The axes are those of the world.
    """

    fractions: Tensor
    origin: tuple[float, float, float]
    spacing: float


@dataclass(frozen=True)
class Head:
    """One head drawn on a voxel grid.

    Attributes
    ----------
    image
        `x y z`, intensities of arbitrary scale, never negative; white matter lies near 1.
    lesion
        `x y z`, bool: the exact lesion, empty where the head has none.
    brain
        `x y z`, bool: grey and white matter.
    affine
        `4 4`, voxel to world (mm, RAS+).
    """

    image: Tensor
    lesion: Tensor
    brain: Tensor
    affine: np.ndarray

    @property
    def has_lesion(self) -> bool:
        """Whether a lesion was implanted."""
        return bool(self.lesion.any())


@dataclass(frozen=True)
class Recipe:
    """What one head is made with; `random_recipe` draws one.

    Attributes
    ----------
    intensities
        One for each of `TISSUES`.
    lesion_diameter
        Millimetres; 0 for a head without a lesion.
    lesion_contrast
        Lesion intensity over that of the brighter brain tissue.
    lesion_centre
        Template position (mm, RAS+), or None for a random place in the brain.
    spots
        How many bright spots lie outside the brain.
    turn, shift, stretch
        Pose of the head: degrees, mm and factor on each axis.
    warp, bias, blur, noise
        Deformation in mm, bias field as log amplitude, blur in voxels on each axis, noise against white matter.
    stripped, masked_air
        Whether all but the brain is blanked out; whether the air alone is.
    """

    intensities: tuple[float, ...]
    lesion_diameter: float
    lesion_contrast: float
    lesion_centre: tuple[float, float, float] | None
    spots: int
    turn: tuple[float, ...]
    shift: tuple[float, ...]
    stretch: tuple[float, ...]
    warp: float
    bias: float
    blur: tuple[float, ...]
    noise: float
    stripped: bool
    masked_air: bool


# --- the template head ------------------------------------------------------------------------------------------------------------------


def load_anatomy(resolution: int = 2) -> Anatomy:
    """Build the template head: nilearn's grey and white matter, and a modelled skull, scalp, face and neck around them.

    Parameters
    ----------
    resolution
        Voxel size in mm, a whole number.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nilearn import datasets

        grey_image = datasets.load_mni152_gm_template(resolution=resolution)
        white_image = datasets.load_mni152_wm_template(resolution=resolution)
        mask_image = datasets.load_mni152_brain_mask(resolution=resolution)
    # Room for the neck below and the face in front: the lowest slice is repeated downwards as the cord.
    below, front = 48 // resolution, 16 // resolution
    maps = [np.asarray(image.dataobj, dtype=np.float32) for image in (grey_image, white_image, mask_image)]
    maps = [np.pad(m, ((0, 0), (0, 0), (below, 0)), mode="edge") for m in maps]
    grey, white, mask = (np.pad(m, ((0, 0), (0, front), (0, 0))) for m in maps)
    origin = np.asarray(grey_image.affine)[:3, 3] - [0, 0, below * resolution]
    x, y, z = (
        (np.arange(n, dtype=np.float32) * resolution + o).reshape([-1 if a == b else 1 for b in range(3)])
        for a, (n, o) in enumerate(zip(grey.shape, origin, strict=True))
    )

    def ball(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
        (cx, cy, cz), (rx, ry, rz) = centre, radii
        return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 < 1

    def distance_from(region: np.ndarray) -> np.ndarray:
        return ndimage.distance_transform_edt(~region).astype(np.float32) * resolution

    brain = ndimage.binary_fill_holes(mask > 0.5)
    from_brain = distance_from(brain)
    cranium = ~(distance_from(from_brain > 20) < 20)  # the brain with its notches closed
    from_cranium = distance_from(cranium)
    face = ball((0, 32, -58), (60, 62, 66))
    neck = ((x / 58) ** 2 + ((y + 30) / 62) ** 2 < 1) & (z < -25)
    head = ndimage.gaussian_filter(((from_cranium < 14) | face | neck).astype(np.float32), 5 / resolution) > 0.5
    under_skin = distance_from(~head)

    cavities = ball((0, 66, -46), (15, 24, 22)) | ball((0, 30, -78), (13, 38, 9))
    eyes = ball((-32, 68, -34), (12, 12, 12)) | ball((32, 68, -34), (12, 12, 12))
    orbits = ball((-32, 60, -34), (18, 26, 18)) | ball((32, 60, -34), (18, 26, 18))
    label = np.full(grey.shape, -1, dtype=np.int8)
    label[head] = MUSCLE
    label[head & orbits] = FAT
    label[head & cavities] = -1
    label[head & (under_skin < 5)] = FAT
    label[head & eyes] = EYE
    label[(from_cranium < 8.5) & (z > -80)] = SKULL
    label[(from_cranium > 4) & (from_cranium < 6.5) & (z > -60)] = FAT  # the marrow; faded below
    label[from_brain < 3] = CSF

    fractions = np.stack(
        [ndimage.gaussian_filter((label == t).astype(np.float32), 0.8 / resolution) for t in range(len(TISSUES))]
    )
    marrow = ndimage.gaussian_filter(((from_cranium < 8.5) & (label == FAT)).astype(np.float32), 0.8 / resolution)
    fractions[FAT] -= 0.6 * marrow
    fractions[SKULL] += 0.6 * marrow
    # Inside the brain mask the maps rule. Squaring sharpens the average of 152 people towards one person's brain.
    rest = np.clip(1 - grey - white, 0, 1)
    shares = np.stack([grey, white, rest]) ** 2
    shares /= np.maximum(shares.sum(axis=0), 1e-6)
    inside = ndimage.gaussian_filter(brain.astype(np.float32), 0.8 / resolution)
    fractions *= 1 - inside
    fractions[GREY] += inside * shares[0]
    fractions[WHITE] += inside * shares[1]
    fractions[CSF] += inside * shares[2]
    return Anatomy(
        torch.from_numpy(fractions), (float(origin[0]), float(origin[1]), float(origin[2])), float(resolution)
    )


# --- drawing at random ------------------------------------------------------------------------------------------------------------------


def uniform(generator: Generator, low: float, high: float) -> float:
    """Draw one number."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def random_recipe(generator: Generator, with_lesion: bool) -> Recipe:
    """Draw what a head is made with: half of the heads look like T1, half like FLAIR.

    Parameters
    ----------
    generator
        Source of chance.
    with_lesion
        Whether a lesion of 6 to 25 mm is implanted.
    """

    def draw(low: float, high: float) -> float:
        return uniform(generator, low, high)

    def three(low: float, high: float) -> tuple[float, ...]:
        return tuple(draw(low, high) for _ in range(3))

    if draw(0, 1) < 0.5:  # T1-like
        grey, white = draw(0.6, 0.85), 1.0
        csf, fat, eye = draw(0.15, 0.4), draw(0.9, 1.6), draw(0.15, 0.4)
    else:  # FLAIR-like
        grey, white = draw(1.0, 1.3), 1.0
        csf, fat, eye = draw(0.05, 0.35), draw(0.7, 1.6), draw(0.05, 0.35)
    return Recipe(
        intensities=(grey, white, csf, draw(0.05, 0.3), fat, draw(0.35, 0.75), eye),
        lesion_diameter=draw(6, 25) if with_lesion else 0.0,
        lesion_contrast=draw(1.35, 1.9),
        lesion_centre=None,
        spots=int(draw(4, 16)),
        turn=three(-12, 12),
        shift=three(-8, 8),
        stretch=three(0.9, 1.08),
        warp=draw(1, 4),
        bias=draw(0, 0.15),
        blur=three(0, 0.8),
        noise=draw(0.01, 0.06),
        stripped=draw(0, 1) < 0.2,
        masked_air=draw(0, 1) < 0.3,
    )


def smooth_field(generator: Generator, points: Tensor, scale: float, channels: int = 1) -> Tensor:
    """Draw a smooth random field of standard deviation near 1 and read it at world points.

    Parameters
    ----------
    generator
        Source of chance.
    points
        `x y z 3`, world mm.
    scale
        Distance in mm over which the field changes.
    channels
        How many fields.

    Returns
    -------
    Tensor
        `c x y z`.
    """
    reach = 150.0
    nodes = max(4, round(2 * reach / scale))
    field = torch.randn((1, channels, nodes, nodes, nodes), generator=generator)
    if nodes < 24:  # few nodes: round off the corners of the linear interpolation
        field = F.interpolate(field, size=(2 * nodes,) * 3, mode="trilinear", align_corners=True)
        field = F.avg_pool3d(field, 3, stride=1, padding=1, count_include_pad=False)
    field = field / field.std()
    return _read(field, (points / reach).clamp(-1, 1))


def make_head(
    anatomy: Anatomy, shape: tuple[int, ...], affine: np.ndarray, recipe: Recipe, generator: Generator
) -> Head:
    """Draw a head on a voxel grid.

    Parameters
    ----------
    anatomy
        The template head.
    shape, affine
        The grid: voxels on each axis; voxel to world (mm, RAS+).
    recipe
        What the head is made with.
    generator
        Source of chance for the deformation, the lesion's shape and the noise.
    """
    points = world_points(shape, affine)
    template = _to_template(points, recipe, generator)
    extent = (torch.tensor(anatomy.fractions.shape[1:]) - 1) * anatomy.spacing
    fractions = _read(anatomy.fractions[None], (template - torch.tensor(anatomy.origin)) / extent * 2 - 1)
    parenchyma = fractions[GREY] + fractions[WHITE]

    intensities = torch.tensor(recipe.intensities)
    image = torch.einsum("t,txyz->xyz", intensities, fractions)
    image = image * (1 + 0.04 * smooth_field(generator, points, 9.0)[0])  # no tissue is flat
    bright = recipe.lesion_contrast * float(intensities[[GREY, WHITE]].max())

    share = torch.zeros(shape)
    if recipe.lesion_diameter:
        share = _lesion_share(points, template, parenchyma, recipe, generator)
        image = image + share * (bright - image)
    spots = _spots(points, fractions, recipe.spots, generator)
    image = image + spots * (bright - image).clamp_min(0)

    bias = smooth_field(generator, points, 110.0)[0]
    image = image * torch.exp(recipe.bias * bias)
    image = _blur(image, recipe.blur)
    real, imaginary = (recipe.noise * torch.randn(shape, generator=generator) for _ in range(2))
    image = torch.sqrt((image + real) ** 2 + imaginary**2)
    brain = parenchyma > 0.5
    if recipe.stripped:
        image = image * (parenchyma + 0.6 * fractions[CSF] > 0.4)
    elif recipe.masked_air:
        image = image * (fractions.sum(dim=0) > 0.3)
    return Head(image, share > 0.5, brain, np.asarray(affine, dtype=np.float64))


def random_head(
    anatomy: Anatomy,
    generator: Generator,
    with_lesion: bool,
    shape: tuple[int, ...] = (96, 112, 96),
    spacing: float = 2.0,
) -> Head:
    """Draw a head at random on an isotropic RAS grid: what the demonstration model is trained and tested on."""
    recipe = random_recipe(generator, with_lesion)
    affine = centred_affine(shape, np.eye(3) * spacing)
    head = make_head(anatomy, shape, affine, recipe, generator)
    while with_lesion and int(head.lesion.sum()) < 8:  # the place drawn had no room: draw another
        head = make_head(anatomy, shape, affine, replace(recipe, lesion_centre=None), generator)
    return head


def centred_affine(
    shape: tuple[int, ...], axes: np.ndarray, centre: tuple[float, float, float] = HEAD_CENTRE
) -> np.ndarray:
    """Return the affine of a grid whose middle lies on a world point.

    Parameters
    ----------
    shape
        Voxels on each axis.
    axes
        `3 3`, one voxel step on each axis as a column, mm RAS+.
    centre
        World position of the grid's middle.
    """
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = np.asarray(centre) - axes @ ((np.asarray(shape) - 1) / 2)
    return affine


def world_points(shape: tuple[int, ...], affine: np.ndarray) -> Tensor:
    """Return the world position (mm, RAS+) of each voxel centre, `x y z 3`."""
    index = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij"), dim=-1)
    matrix = torch.as_tensor(np.asarray(affine), dtype=torch.float32)
    return index @ matrix[:3, :3].T + matrix[:3, 3]


# --- parts ------------------------------------------------------------------------------------------------------------------------------


def _read(volume: Tensor, unit: Tensor) -> Tensor:
    """Read `1 c x y z` at positions in -1 to 1 on each of x, y, z; zero outside."""
    grid = unit.flip(-1)[None]
    return F.grid_sample(volume, grid, mode="bilinear", padding_mode="zeros", align_corners=True)[0]


def _to_template(points: Tensor, recipe: Recipe, generator: Generator) -> Tensor:
    """Map world points to the template position whose tissue lies there."""
    turn = torch.eye(3)
    for axis, degrees in enumerate(recipe.turn):
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        step = torch.eye(3)
        a, b = [i for i in range(3) if i != axis]
        step[a, a], step[a, b], step[b, a], step[b, b] = c, -s, s, c
        turn = turn @ step
    centre = torch.tensor(HEAD_CENTRE)
    template = ((points - centre - torch.tensor(recipe.shift)) @ turn) / torch.tensor(recipe.stretch) + centre
    warp = smooth_field(generator, points, 45.0, channels=3)
    return template + recipe.warp * warp.movedim(0, -1)


def _lesion_share(points: Tensor, template: Tensor, parenchyma: Tensor, recipe: Recipe, generator: Generator) -> Tensor:
    """Draw a lesion: an ellipsoid with an irregular rim, confined to the brain. Returns the share of each voxel that it fills."""
    if recipe.lesion_centre is not None:
        centre = points.reshape(-1, 3)[(template - torch.tensor(recipe.lesion_centre)).square().sum(dim=-1).argmin()]
    else:
        places = ((parenchyma > 0.85) & (template[..., 2] > -55)).nonzero()
        if not len(places):
            return torch.zeros_like(parenchyma)
        picks = places[torch.randint(len(places), (20,), generator=generator)]
        roomy = [pick for pick in picks if parenchyma[_box(pick, 1)].mean() > 0.8]
        centre = points[tuple(roomy[0] if roomy else picks[0])]
    shape = torch.exp(0.18 * torch.randn(3, generator=generator))
    shape = shape / shape.prod() ** (1 / 3)
    axes = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    radius = recipe.lesion_diameter / 2
    offset = (points - centre) @ axes / (radius * shape)
    rim = smooth_field(generator, points - centre, max(6.0, radius))[0]
    depth = (1 + 0.25 * rim - offset.norm(dim=-1)) * radius  # mm under the lesion's rim
    return torch.sigmoid(2 * depth) * (parenchyma * 1.25).clamp(0, 1)


def _spots(points: Tensor, fractions: Tensor, count: int, generator: Generator) -> Tensor:
    """Draw vessel-like bright spots, short tubes of 2 to 6 mm, outside the brain. Returns the share of each voxel that they fill."""
    brain = fractions[GREY] + fractions[WHITE]
    share = torch.zeros_like(brain)
    outside = (fractions[CSF:].sum(dim=0) > 0.8).nonzero()
    if not len(outside):
        return share
    picks = outside[torch.randint(len(outside), (4 * count,), generator=generator)]
    picks = [pick for pick in picks if brain[_box(pick, 2)].max() < 0.3][:count]
    for pick in picks:
        along = F.normalize(torch.randn(3, generator=generator), dim=0)
        radius, length = uniform(generator, 1.0, 3.0), uniform(generator, 0.0, 12.0)
        box = _box(pick, 8)
        offset = points[box] - points[tuple(pick)]
        t = (offset @ along).clamp(-length / 2, length / 2)
        depth = radius - (offset - t[..., None] * along).norm(dim=-1)
        share[box] = torch.maximum(share[box], torch.sigmoid(2 * depth) * (1 - brain[box]))
    return share


def _box(voxel: Tensor, reach: int) -> tuple[slice, ...]:
    """Return the voxels within `reach` of one voxel on each axis."""
    return tuple(slice(max(0, int(v) - reach), int(v) + reach + 1) for v in voxel)


def _blur(image: Tensor, sigmas: tuple[float, ...]) -> Tensor:
    """Blur with a Gaussian of its own width on each axis, in voxels."""
    reach = torch.arange(-3.0, 4.0)
    blurred = image[None, None]
    for axis, sigma in enumerate(sigmas):
        if sigma < 0.05:
            continue
        kernel = torch.exp(-(reach**2) / (2 * sigma**2))
        size = [1, 1, 1]
        size[axis] = len(reach)
        padding = [0, 0, 0]
        padding[axis] = 3
        blurred = F.conv3d(blurred, (kernel / kernel.sum()).reshape(1, 1, *size), padding=padding)
    return blurred[0, 0]
