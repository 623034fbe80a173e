"""Pixels of the pictures that were chosen -> voxels: each file is opened once, and files or frames are decoded side by side."""

from __future__ import annotations

import hashlib
import io
import math
import mmap
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pydicom
from jaxtyping import Float32
from pydicom.uid import UID

from medcam.formats import dicom_decoding, dicom_pixels
from medcam.formats.dicom_decoding import Pixels
from medcam.formats.dicom_files import naming, read_dataset
from medcam.formats.dicom_pictures import Instance, Picture
from medcam.formats.dicom_pixels import Decode
from medcam.formats.dicom_workers import workers

# Where this many pixels or more are compressed, they are decoded in processes of their own: 150 slices of 512 x 512.
_WORKERS_FROM_PIXELS = 150 * 512**2
# Applies a function to each of many things.
Mapper = Callable[[Callable[..., Any], Iterable[Any]], Iterable[Any]]


class _Wanted(NamedTuple):
    """A picture and the slice that it is to become."""

    k: int
    picture: Picture


def read_voxels(
    pictures: Sequence[Picture | None], size: tuple[int, int]
) -> tuple[Float32[np.ndarray, "k j i"], dict[int, bytes]]:
    """Return the slices, and the SHA-256 of each instance's file by `id(instance)`.

    Parameters
    ----------
    pictures
        What slice k is; None where one is missing: such slices are blended of their nearest neighbours.
    size
        (columns, rows).

    Raises
    ------
    InputError
        If a file cannot be read or decoded.
    """
    columns, rows = size
    voxels = _room((len(pictures), rows, columns))
    wanted: dict[int, list[_Wanted]] = defaultdict(list)
    for k, picture in enumerate(pictures):
        if picture is not None:
            wanted[id(picture.instance)].append(_Wanted(k, picture))
    count = os.cpu_count() or 1
    with _decoder(wanted.values(), columns * rows, count) as decode, ThreadPoolExecutor(count) as pool:
        # A pool that waits for itself would stand still: either files go side by side, or the frames of the only one.
        files, frames = (pool.map, map) if len(wanted) > 1 else (map, pool.map)
        digests = files(lambda of_one: _read_instance(of_one, voxels, frames, decode), wanted.values())
        by_instance = dict(zip(wanted, digests, strict=True))
    _fill_gaps(voxels, [k for k, picture in enumerate(pictures) if picture is not None])
    return voxels, by_instance


def _room(shape: tuple[int, int, int]) -> Float32[np.ndarray, "k j i"]:
    """Return an array to be filled, in pages of the usual size where the system lets one choose.

    numpy asks for huge pages, and where free memory lies in pieces, as on a virtual machine that has run for a while,
    putting those together takes several times as long as all of the reading.
    """
    if not hasattr(mmap, "MAP_PRIVATE"):
        return np.empty(shape, np.float32)
    try:
        pages = mmap.mmap(-1, 4 * math.prod(shape), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError from error
    return np.frombuffer(pages, np.float32).reshape(shape)


def digest_of(picture: Picture) -> bytes:
    """Return a digest of a picture's values: equal for the same pixels in other files.

    Raises
    ------
    InputError
        If its file cannot be read or decoded.
    """
    _, dataset = read_dataset(picture.instance.file)
    with naming(picture.instance.file):
        values = dicom_pixels.real_world(dicom_decoding.open_pixels(dataset), picture.header, picture.frame)
        return hashlib.sha256(_cut(values, picture).tobytes()).digest()


@contextmanager
def _decoder(wanted: Iterable[Sequence[_Wanted]], pixels: int, count: int) -> Iterator[Decode]:
    """Yield what decodes frames: in processes of their own where there is so much to decode that starting them pays."""
    compressed = sum(len(each) for each in wanted if _is_compressed(each[0].picture.instance))
    if count == 1 or compressed * pixels < _WORKERS_FROM_PIXELS:
        yield dicom_decoding.stored
        return
    with workers(count) as decode:
        yield decode


def _is_compressed(instance: Instance) -> bool:
    syntax = UID(str(instance.header.file_meta.TransferSyntaxUID))
    return bool(syntax.is_transfer_syntax and syntax.is_encapsulated)


def _read_instance(
    wanted: Sequence[_Wanted], voxels: Float32[np.ndarray, "k j i"], mapped: Mapper, decode: Decode
) -> bytes:
    """Decode the wanted pictures of one instance into their slices, and return its file's digest."""
    instance = wanted[0].picture.instance
    digest, pixels = _open(instance)
    frames: dict[int, list[_Wanted]] = defaultdict(list)
    for each in wanted:
        frames[each.picture.frame].append(each)

    def fill(of_frame: Sequence[_Wanted]) -> None:
        first = of_frame[0].picture
        with naming(instance.file):
            if first.corner is None:
                for each in of_frame:
                    dicom_pixels.real_world(pixels, first.header, first.frame, out=voxels[each.k], decode=decode)
                return
            # All tiles of a mosaic are rescaled alike.
            values = dicom_pixels.real_world(pixels, first.header, first.frame, decode=decode)
            for each in of_frame:
                voxels[each.k] = _cut(values, each.picture)

    for _ in mapped(fill, frames.values()):
        pass
    for keyword in dicom_decoding.PIXEL_KEYWORDS:
        if keyword in instance.header:
            del instance.header[keyword]
    return digest


def _open(instance: Instance) -> tuple[bytes, Pixels]:
    """Return the digest of an instance's file, and its pixels; its header is not parsed again."""
    if instance.pixels_at is None:
        content, dataset = read_dataset(instance.file)
        with naming(instance.file):
            return hashlib.sha256(content).digest(), dicom_decoding.open_pixels(dataset)
    with naming(instance.file):
        with instance.file.open() as stream:
            content = stream.read()
        digest = hashlib.sha256(content).digest()
        plain = dicom_decoding.plain_pixels(content, instance.header, instance.pixels_at)
        if plain is not None:
            return digest, plain
        implicit, little = instance.header.original_encoding
        rest = io.BytesIO(content)
        rest.seek(instance.pixels_at)
        instance.header.update(pydicom.filereader.read_dataset(rest, bool(implicit), bool(little)))
        return digest, dicom_decoding.open_pixels(instance.header)


def _cut(values: Float32[np.ndarray, "j i"], picture: Picture) -> Float32[np.ndarray, "y x"]:
    if picture.corner is None:
        return values
    column, row = picture.corner
    return values[row : row + int(picture.header.get("Rows")), column : column + int(picture.header.get("Columns"))]


def _fill_gaps(voxels: Float32[np.ndarray, "k j i"], present: Sequence[int]) -> None:
    known = np.array(present)
    for k in set(range(len(voxels))) - set(present):
        after = int(np.searchsorted(known, k))
        low, high = int(known[after - 1]), int(known[after])
        share = np.float32((k - low) / (high - low))
        voxels[k] = voxels[low] * (1 - share) + voxels[high] * share
