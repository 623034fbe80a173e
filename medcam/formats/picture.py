"""X-rays saved as pictures: PNG, JPEG, TIFF. They say nothing of the patient's orientation or of the size of a pixel."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from medcam.errors import InputError
from medcam.formats.exporting import Export
from medcam.formats.stored_array import digest
from medcam.geometry import Grid
from medcam.volume import Source, Volume

# Where a film lies if nothing says so: columns to the patient's left, rows to the feet, as a postero-anterior chest film hangs.
FILM_AXES = np.array([[-1.0, 0, 0], [0, 0, -1], [0, -1, 0]])
# Pillow opens many more by what is in a file, some of them by starting other programs.
_KINDS = ("PNG", "JPEG", "TIFF")
# What Pillow raises for damaged files.
_UNREADABLE = (
    UnidentifiedImageError, OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, OverflowError,
    EOFError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip


def read_picture(path: Path) -> Volume:
    """Read a grey picture as a volume of one slice: i along a row of pixels, j down the rows.

    Raises
    ------
    InputError
        If the file is damaged, holds real colours, or holds several pages.
    """
    return _read(path, _grey)


def read_label_picture(path: Path) -> Volume:
    """Read a picture of labels: a grey one's values, or the numbers of a palette's colours.

    Raises
    ------
    InputError
        If the file is damaged, holds colours without a palette or several pages, or is a JPEG, which blurs labels.
    """
    with path.open("rb") as stream:
        if stream.read(2) == b"\xff\xd8":
            raise InputError(f"{path.name} is a JPEG, which blurs the borders of labels; save the mask as PNG")
    return _read(path, lambda image, name: np.asarray(image) if image.mode == "P" else _grey(image, name))


def _read(path: Path, pixels_of: Callable[[Image.Image, str], np.ndarray]) -> Volume:
    try:
        with warnings.catch_warnings():
            # Of a damaged EXIF nothing but the orientation would be used.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_KINDS) as image:
                pages = getattr(image, "n_frames", 1)
                turned = image.getexif().get(0x0112, 1) != 1
                pixels = pixels_of(ImageOps.exif_transpose(image), path.name)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(f"{path.name} claims more pixels than a radiograph has; medcam does not unpack it") from error
    except _UNREADABLE as error:
        raise InputError(f"{path.name} is not a readable picture, or is cut short: {error}") from error
    if pages > 1:
        raise InputError(f"{path.name} holds {pages} pages; medcam reads pictures of one page")
    notes = ["A picture names neither orientation nor pixel size: no letters are shown and lengths are in pixels."]
    if turned:
        notes.append("The picture asked to be turned (EXIF), and was.")
    affine = np.eye(4)
    affine[:3, :3] = FILM_AXES
    voxels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False).T[:, :, None]
    source = Source(
        "picture", digest(path), path.stem, oriented=False, placed=False, spaced=False, notes=tuple(notes)
    )  # fmt: skip
    return Volume(voxels, Grid((voxels.shape[0], voxels.shape[1], 1), affine), "a.u.", source)


def _grey(image: Image.Image, name: str) -> np.ndarray:
    if image.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    pixels = np.asarray(image)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    if image.mode in ("LA", "La"):
        pixels = pixels[..., 0]
    if pixels.ndim == 3:
        colours = pixels[..., :3].astype(np.int32)
        # JPEG rounds the channels of a grey picture a little apart.
        if np.abs(colours - colours.mean(-1, keepdims=True)).max() > 4:
            raise InputError(f"{name} is in colour; medcam reads grey radiographs")
        pixels = pixels[..., 1]
    return pixels


def write_png(export: Export) -> tuple[Path, ...]:
    """Write the montage: the image, and the heatmap on it, through the peak.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    from medcam.render import montage, save_png

    path = export.path(".png")
    figure = montage(export.heatmap, export.volume, lesion=export.lesion, threshold=export.threshold)
    save_png(figure, path)
    return (path,)
