"""A heatmap that was stored comes back as it was: from its voxels (NIfTI or NRRD), its JSON sidecar, and the image that it was made of."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from jaxtyping import Bool, Float32

from medcam.errors import GeometryError, InputError
from medcam.formats.reading import read
from medcam.recipe import Recipe
from medcam.volume import Heatmap, Volume

VERSION = 1
_ENDINGS = (".nii.gz", ".nii", ".nrrd")
# A recipe takes a few kilobytes; what was not looked at, in a large oblique volume, some hundreds.
_LONGEST_SIDECAR = 64 * 2**20
# Of the standard deviation.
_SAME_MEAN = 1e-4
_AGAIN = "fetch it again, or explain the image again"


def kept_values(heatmap: Heatmap, image: Volume) -> dict[str, Any]:
    """Return what a sidecar must hold besides what it tells people, for the heatmap to come back as it was.

    Viewers do not all show NaN as nothing, so voxels that were not looked at are stored as 0; which they are stands here, in bits. What
    the image's values are like tells the volumes of a 4D image apart, which lie in one file.
    """
    unseen = ~np.isfinite(heatmap.relevance)
    mean, spread = _values_of(image)
    return {
        "sidecar_version": VERSION,
        "relevance_sha256": _digest(np.where(unseen, np.float32(0), heatmap.relevance)),
        "not_looked_at": _packed(unseen),
        "image": {"mean": mean, "standard_deviation": spread},
    }


def read_heatmap(path: Path, image: Volume) -> tuple[Heatmap, Volume]:
    """Return a stored heatmap, and the image on whose grid it lies: the one given, or its slice that was explained.

    Parameters
    ----------
    path
        The heatmap's NIfTI or NRRD file; its sidecar lies beside it.
    image
        The (first) image that was explained, read as it was then.

    Raises
    ------
    InputError
        If the file or its sidecar is not there, damaged, of another version, or no heatmap, or the image is not the one explained.
    GeometryError
        If the heatmap does not lie on the image's grid.
    """
    values = sidecar_of(path)
    recipe = Recipe.from_json(_entry(values, "recipe", dict, path))
    if recipe.inputs[:1] != (image.source.sha256,):
        raise InputError(
            f"{path.name} was made of another image than {image.source.label}: their digests differ; give the files that were "
            "explained, all of them, and choose with --series, --volume and --allow-gaps as then"
        )
    stored = read(path)
    image = _own_slice(stored, image)
    if not stored.grid.is_close(image.grid):
        raise GeometryError(
            f"{path.name} lies on a grid of shape {stored.grid.shape} and the image on another, of shape {image.grid.shape}: it was "
            "moved or resampled since it was written; give the file that medcam wrote"
        )
    _refuse_other_values(values, image, path)
    return _restored(values, path, stored, image), image


def read_heatmap_alone(path: Path) -> Heatmap:
    """Return a stored heatmap without the image that it was made of: placed as its file says, and of no known instances.

    Raises
    ------
    InputError
        If the file or its sidecar is not there, damaged, of another version, or no heatmap.
    """
    stored = read(path)
    return _restored(sidecar_of(path), path, stored, stored)


def _restored(values: Mapping[str, Any], path: Path, stored: Volume, image: Volume) -> Heatmap:
    """Return what a sidecar and its voxels make together, on the grid of the image."""
    recipe = Recipe.from_json(_entry(values, "recipe", dict, path))
    relevance = np.asarray(stored.voxels, np.float32)
    if _digest(relevance) != _entry(values, "relevance_sha256", str, path):
        raise InputError(f"the voxels of {path.name} are not those that its sidecar tells of; {_AGAIN}")
    unseen = _unpacked(_entry(values, "not_looked_at", str, path), relevance.shape, path)
    score, probability = values.get("score"), values.get("probability")
    notes = _entry(values, "notes", list, path)
    if not _is_number(score) or not (probability is None or _is_number(probability)):
        raise _damaged(path, "its score or probability is no number")
    if not all(isinstance(note, str) for note in notes):
        raise _damaged(path, "its notes are no texts")
    return Heatmap(
        np.where(unseen, np.float32(np.nan), relevance),
        image.grid,
        image.source,
        recipe,
        _entry(values, "target", str, path),
        float(score),
        None if probability is None else float(probability),
        tuple(notes),
    )


def sidecar_of(path: Path) -> Mapping[str, Any]:
    """Return what the sidecar of a stored heatmap says.

    Raises
    ------
    InputError
        If it is not there, damaged, of another version, or no heatmap's.
    """
    name = label_of(path)
    sidecar = path.with_name(f"{name}.json")
    if not path.is_file() or not sidecar.is_file():
        missing = sidecar if path.is_file() else path
        raise InputError(
            f"there is no file {missing.name}: a stored heatmap is a file of voxels with its JSON sidecar beside it"
        )
    try:
        if sidecar.stat().st_size > _LONGEST_SIDECAR:
            raise ValueError(f"it has {sidecar.stat().st_size} bytes")
        values = json.loads(sidecar.read_text(encoding="utf-8"))
        # JSON can spell halves of letters, which no file can hold.
        json.dumps(values, ensure_ascii=False).encode()
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error
    if not isinstance(values, dict):
        raise _damaged(path, "it holds no names and values")
    version = values.get("sidecar_version")
    if version != VERSION:
        if path.name.partition(".")[0].endswith("_label"):
            raise InputError(
                f"{path.name} is the mask of a heatmap; give the heatmap itself, the file without '_label'"
            )
        holds = "holds no heatmap that medcam can take up" if version is None else f"has version {version!r:.20}"
        raise InputError(
            f"{sidecar.name} {holds}; this medcam reads heatmaps stored in version {VERSION}: explain the image again"
        )
    return values


def label_of(path: Path) -> str:
    """Return how the names of a stored heatmap's files begin.

    Raises
    ------
    InputError
        If it is no file that medcam stores heatmaps in.
    """
    for ending in _ENDINGS:
        if path.name.endswith(ending) and path.name != ending:
            return path.name.removesuffix(ending)
    raise InputError(
        f"{path.name} is no stored heatmap; give the heatmap that medcam wrote as NIfTI or NRRD ({', '.join(_ENDINGS)})"
    )


def stored_threshold(values: Mapping[str, Any], path: Path) -> float:
    """Return the threshold with which a heatmap was first written, as a fraction of its maximum.

    Raises
    ------
    InputError
        If the sidecar does not say it.
    """
    fraction = _entry(values, "threshold", dict, path).get("fraction_of_maximum")
    if not _is_number(fraction):
        raise _damaged(path, "its threshold is no number")
    return float(fraction)


def _own_slice(stored: Volume, image: Volume) -> Volume:
    """Return the slice of an image that a heatmap of one slice lies on, if any; else the image."""
    if stored.grid.shape[2] > 1 or image.grid.shape[2] == 1:
        return image
    k = round(float(image.grid.index(stored.grid.world_mm(np.zeros(3)))[2]))
    return image.slice(k) if 0 <= k < image.grid.shape[2] else image


def _refuse_other_values(values: Mapping[str, Any], image: Volume, path: Path) -> None:
    kept = _entry(values, "image", dict, path)
    mean, spread = kept.get("mean"), kept.get("standard_deviation")
    if not _is_number(mean) or not _is_number(spread):
        raise _damaged(path, "it does not say what its image's values are like")
    found, _ = _values_of(image)
    # Decoders of lossy pictures may differ by one grey level here and there.
    if not (abs(found - mean) <= _SAME_MEAN * spread or (np.isnan(found) and np.isnan(mean))):
        raise InputError(
            f"{path.name} was made of other values than {image.source.label} now has (mean {mean:g}, now {found:g}); "
            "choose with --series, --volume and --allow-gaps as when it was explained"
        )


def _values_of(image: Volume) -> tuple[float, float]:
    """Return the mean and the standard deviation of an image's finite values, slice by slice to take little memory."""
    count, total, squares = 0, 0.0, 0.0
    for each in np.moveaxis(image.voxels, 2, 0):
        finite = np.asarray(each[np.isfinite(each)], np.float64)
        count, total, squares = count + finite.size, total + float(finite.sum()), squares + float((finite**2).sum())
    if count == 0:
        return float("nan"), float("nan")
    mean = total / count
    return mean, float(np.sqrt(max(squares / count - mean**2, 0.0)))


def _digest(relevance: Float32[np.ndarray, "i j k"]) -> str:
    running = hashlib.sha256()
    for each in np.moveaxis(relevance, 2, 0):
        running.update(each.astype("<f4").tobytes(order="F"))
    return running.hexdigest()


def _packed(mask: Bool[np.ndarray, "i j k"]) -> str:
    """Return a mask as text: its bits, the first axis running fastest, packed by zlib, in base64; '' where it is empty."""
    if not mask.any():
        return ""
    return base64.b64encode(zlib.compress(np.packbits(mask.ravel(order="F")).tobytes(), 9)).decode()


def _unpacked(text: str, shape: tuple[int, ...], path: Path) -> Bool[np.ndarray, "i j k"]:
    if not text:
        return np.zeros(shape, bool)
    count = int(np.prod(shape))
    size = (count + 7) // 8
    try:
        packed = base64.b64decode(text, validate=True)
        # One byte more than there may be tells whether there are more, however small they were packed.
        bits = zlib.decompressobj().decompress(packed, size + 1)
    except (ValueError, zlib.error) as error:
        raise _damaged(path, f"what was not looked at cannot be unpacked ({error})") from error
    if len(bits) != size:
        raise _damaged(path, f"what was not looked at are not {count} voxels")
    mask: np.ndarray = np.unpackbits(np.frombuffer(bits, np.uint8), count=count).astype(bool).reshape(shape, order="F")
    return mask


def _entry(values: Mapping[str, Any], name: str, kind: type, path: Path) -> Any:
    value = values.get(name)
    if not isinstance(value, kind):
        raise _damaged(path, f"its entry '{name}' is missing or of a wrong kind")
    return value


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"the sidecar of {path.name} is damaged: {why}; {_AGAIN}")
