"""From volumes to a network's input, by MONAI transforms, without losing where each voxel lies."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from monai.data.meta_tensor import MetaTensor
from monai.transforms.compose import Compose
from monai.transforms.io.array import LoadImage
from monai.transforms.io.dictionary import LoadImaged
from monai.transforms.traits import RandomizableTrait
from monai.transforms.transform import MapTransform
from monai.transforms.utility.array import EnsureChannelFirst, Lambda, Transpose
from monai.transforms.utility.dictionary import EnsureChannelFirstd, Lambdad, Transposed
from monai.utils.enums import MetaKeys, SpaceKeys
from torch import Tensor

from medcam.errors import GeometryError, MedcamError, UsageError
from medcam.geometry import Grid, resample
from medcam.steps import step_words
from medcam.volume import Volume

# Two pictures this alike are one picture, up to contrast.
_ALIKE = 0.9
_SAMPLES = 32
_LOADERS = (LoadImage, LoadImaged, EnsureChannelFirst, EnsureChannelFirstd)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A network's input for one sample, and where its voxels lie.

    Parameters
    ----------
    tensor
        Channels first, 2D or 3D, float32.
    grid
        Of the tensor's spatial axes; k = 1 in 2D.
    steps
        The transforms that made it, with their parameters; see `medcam.steps`.
    notes
        What was changed on the way that its reader must know.
    """

    tensor: Float[Tensor, "c *s"]
    grid: Grid
    steps: tuple[str, ...]
    notes: tuple[str, ...]


def prepare(volumes: Sequence[Volume], transform: Callable[[Any], Any] | None, *, spatial_dims: int) -> Prepared:
    """Stack volumes as channels and apply a chain of MONAI transforms, dictionary or array, following the grid through it.

    The first volume is the reference: the others are put on its grid, which they must share a frame of reference with. In a chain of
    dictionary transforms the stack goes under the key 'image', or, where the chain names one key for each volume, each volume under
    its own.

    Parameters
    ----------
    spatial_dims
        2 or 3; a 2D network takes volumes of one slice.

    Raises
    ------
    UsageError
        If the volumes do not fit the network's dimensions or the chain's keys, or the chain is random.
    GeometryError
        If a transform moves voxels and does not say where to, or the volumes lie in different frames of reference.
    """
    reference = volumes[0]
    if spatial_dims == 2 and reference.grid.shape[2] > 1:
        raise UsageError(
            f"the network is 2D and the image has {reference.grid.shape[2]} slices; choose one with --slice (from 0)"
        )
    if spatial_dims == 3 and reference.grid.shape[2] == 1:
        raise UsageError("the network is 3D and the image has one slice; give it a volume")
    arrays, notes = _on_one_grid(volumes)
    # MONAI's 2D transforms read the upper left of the affine, which is singular for a coronal film: give them the image plane's own axes.
    spacing = reference.grid.spacing_mm
    local = reference.grid.affine if spatial_dims == 3 else np.diag([spacing[0], spacing[1], 1.0, 1.0])
    images = [_meta_tensor(array if spatial_dims == 3 else array[:, :, 0], local) for array in arrays]
    # The image is read and has its channel axis: a chain's own loader has nothing to do.
    steps = [step for step in _flat(transform) if not isinstance(step, _LOADERS)]
    # Before they run: some keep what they have seen.
    words = tuple(step_words(step) for step in steps)
    key, data = _bundle(images, steps)
    for step in steps:
        data = _apply(step, data, key, notes)
    image = data[key] if isinstance(data, dict) else data
    if image.ndim != spatial_dims + 1:
        raise UsageError(
            f"after preprocessing the image has shape {tuple(image.shape)}; "
            f"the network takes a channel axis and {spatial_dims} spatial ones"
        )
    affine = np.eye(4)
    found = np.asarray(image.affine, np.float64)
    # A 3x3 affine is one of two dimensions in homogeneous coordinates.
    rank = found.shape[0] - 1
    affine[:rank, :rank], affine[:rank, 3] = found[:rank, :rank], found[:rank, -1]
    if spatial_dims == 2:
        affine = reference.grid.affine @ np.linalg.inv(local) @ affine
    tensor = image.as_tensor().to(torch.float32).contiguous()
    sides = [*(int(n) for n in image.shape[1:]), 1]
    grid = Grid((sides[0], sides[1], sides[2]), affine, reference.grid.frame_of_reference)
    return Prepared(tensor, grid, words, tuple(notes))


def _on_one_grid(volumes: Sequence[Volume]) -> tuple[list[np.ndarray], list[str]]:
    grid = volumes[0].grid
    arrays, notes = [], []
    for number, volume in enumerate(volumes, 1):
        voxels = np.asarray(volume.voxels, np.float32)
        broken = ~np.isfinite(voxels)
        if broken.any():
            voxels = np.where(broken, 0, voxels)
            notes.append(
                f"Image {number} has {int(broken.sum())} voxels that are not numbers; the network was given 0 there."
            )
        # Also on an equal grid, since `resample` is what refuses another frame of reference.
        if number > 1 and not (
            volume.grid.is_close(grid) and volume.grid.frame_of_reference == grid.frame_of_reference
        ):
            same_place = volume.grid.is_close(grid)
            voxels = resample(voxels, volume.grid, grid, outside=float(voxels.min()))
            if not same_place:
                notes.append(f"Image {number} lies on another grid than image 1 and was resampled onto it.")
        arrays.append(voxels)
    return arrays, notes


def _meta_tensor(array: np.ndarray, affine: np.ndarray) -> MetaTensor:
    tensor = torch.from_numpy(np.array(array, np.float32, order="C")).unsqueeze(0)
    return MetaTensor(tensor, affine=torch.from_numpy(affine.copy()), meta={MetaKeys.SPACE: SpaceKeys.RAS})


def _at(tensor: Tensor, affine: Tensor, like: MetaTensor) -> MetaTensor:
    """Return `tensor` with this affine and all else that `like` knows."""
    image = MetaTensor(tensor, meta=dict(like.meta))
    image.affine = affine
    return image


def _stack(images: Sequence[MetaTensor]) -> MetaTensor:
    stacked = torch.cat([image.as_tensor() for image in images])
    return _at(stacked, images[0].affine, images[0])


def _flat(transform: Callable[[Any], Any] | None) -> Iterator[Callable[[Any], Any]]:
    """Yield the single steps of a chain, so that each can be watched."""
    if transform is None:
        return
    if isinstance(transform, Compose) and type(transform) is Compose:  # its subclasses choose at random
        for inner in transform.transforms:
            yield from _flat(inner)
        return
    if isinstance(transform, RandomizableTrait):
        name = type(transform).__name__
        raise UsageError(
            f"the preprocessing is random ({name}), so a heatmap could not be placed or repeated; leave that step out"
        )
    yield transform


def _bundle(images: list[MetaTensor], steps: Sequence[Callable[[Any], Any]]) -> tuple[str, Any]:
    """Return the images as the chain's first step takes them, and the key under which the network's input comes out."""
    keyed = [step for step in steps if isinstance(step, MapTransform)]
    if not keyed:
        return "image", _stack(images)
    keys = list(dict.fromkeys(str(key) for step in keyed for key in step.keys))
    made = [str(name) for step in keyed if (name := getattr(step, "name", None)) is not None]
    taken = [key for key in keys if key not in made]
    if "image" in keys and "image" not in made:
        return "image", {"image": _stack(images)}
    if len(taken) == len(images):
        return (made or taken)[-1] if len(images) > 1 else taken[0], dict(zip(taken, images, strict=True))
    if len(taken) == 1:
        return taken[0], {taken[0]: _stack(images)}
    raise UsageError(
        f"the preprocessing takes {len(taken)} images ({', '.join(taken)}) and {len(images)} were given; give one for each, in that order"
    )


def _apply(step: Callable[[Any], Any], data: Any, key: str, notes: list[str]) -> Any:
    """Apply one step, and make sure that the image still knows where it lies."""
    name = type(step).__name__
    before = data.get(key) if isinstance(data, dict) else data
    try:
        after_all = step(data)
    except MedcamError:
        raise
    except Exception as error:  # whatever a user's own transform raises, the user learns which one and why
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"the preprocessing step {name} failed: {words[0]}") from error
    if isinstance(after_all, list):
        raise UsageError(
            f"the preprocessing step {name} cuts the image into {len(after_all)} pieces; medcam explains one image"
        )
    if not isinstance(after_all, dict) or before is None:
        return _placed(step, before, after_all, notes) if before is not None else after_all
    if key not in after_all:
        raise UsageError(f"the preprocessing step {name} drops the image")
    return {**after_all, key: _placed(step, before, after_all[key], notes)}


def _placed(step: Callable[[Any], Any], before: MetaTensor, after: Any, notes: list[str]) -> MetaTensor:
    """Return the image with an affine that is true, or refuse."""
    name = type(step).__name__
    # A Lambda that returns a plain tensor gets a new affine, the identity, from MONAI: that is no statement of where its voxels lie.
    lost = not isinstance(after, MetaTensor) or isinstance(step, (Lambda, Lambdad))
    image = _at(torch.as_tensor(np.asarray(after)), before.affine, before) if lost else after
    if isinstance(step, (Transpose, Transposed)):
        # MONAI swaps the axes and leaves the affine as it was.
        indices = (step.transform if isinstance(step, Transposed) else step).indices
        return _transposed(before, image, [int(n) for n in indices])
    # The list of applied operations proves nothing: a Lambda enters it too. A transform that moves voxels and says so changes the affine.
    if not torch.equal(torch.as_tensor(image.affine), torch.as_tensor(before.affine)):
        return image
    if image.shape[1:] != before.shape[1:]:
        raise GeometryError(
            f"the preprocessing step {name} turns {tuple(before.shape[1:])} voxels into {tuple(image.shape[1:])} and does not say where "
            "they went, so a heatmap could not be put back; use a MONAI spatial transform, which records it"
        )
    first, second = before[0].numpy(), image[0].numpy()
    if moved := _moved(first, second):
        raise GeometryError(
            f"the preprocessing step {name} {moved} the image and does not say so, so a heatmap would come back wrong; "
            "use MONAI's Flip, Rotate90 or Transpose, which medcam can follow"
        )
    own = isinstance(step, (Lambda, Lambdad)) or not type(step).__module__.startswith("monai.")
    if own and _likeness(first, second) < _ALIKE:
        notes.append(
            f"The preprocessing step {name} changes the image much; its voxels are taken to stay where they are."
        )
    return image


def _transposed(before: MetaTensor, image: MetaTensor, indices: list[int]) -> MetaTensor:
    if not indices or indices[0] != 0:
        raise UsageError("the preprocessing transposes the channel axis away from the front")
    order = [n - 1 for n in indices[1:]]
    columns = [*order, *range(len(order), 3), 3]
    return _at(image.as_tensor(), torch.as_tensor(before.affine)[:, columns], image)


def _moved(before: np.ndarray, after: np.ndarray) -> str:
    """Say how `after` moves `before` if it is that image flipped or with its axes swapped, else ''."""
    if _likeness(before, after) >= _ALIKE:
        return ""
    for order in itertools.permutations(range(before.ndim)):
        swapped = before.transpose(order)
        if swapped.shape != after.shape:
            continue
        for flips in itertools.product((1, -1), repeat=before.ndim):
            if _likeness(swapped[tuple(slice(None, None, f) for f in flips)], after) >= _ALIKE:
                return "turns" if order != tuple(range(before.ndim)) else "flips"
    return ""


def _likeness(first: np.ndarray, second: np.ndarray) -> float:
    """Return the correlation of two arrays, on a sample of their voxels."""
    thin = tuple(slice(None, None, max(1, n // _SAMPLES)) for n in first.shape)
    a, b = first[thin].ravel().astype(np.float64), second[thin].ravel().astype(np.float64)
    a, b = a - a.mean(), b - b.mean()
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(abs(a @ b) / size) if size > 0 else 1.0
