"""Instances and the pictures in them: one in a plain file, a frame each in an enhanced one, a tile each in a mosaic."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from pydicom import Dataset, FileDataset
from pydicom.uid import UID

from medcam.errors import GeometryError, InputError
from medcam.formats import dicom_mosaic
from medcam.formats.dicom_files import StoredFile, said
from medcam.formats.dicom_plane import numbers
from medcam.formats.dicom_view import Header, View

# More frames than any scanner writes into one file.
_MAX_FRAMES = 100_000


@dataclass(frozen=True, eq=False)
class Instance:
    """A DICOM file that holds pictures.

    Parameters
    ----------
    header
        All that stands before the pixels, or the elements that tell series apart.
    pixels_at
        Where in the file the pixels start, if `header` is whole and they can be read from there.
    whole
        Whether `header` is whole.
    """

    file: StoredFile
    header: FileDataset = field(repr=False)
    pixels_at: int | None = None
    whole: bool = True


class Picture(NamedTuple):
    """One picture of an instance.

    Parameters
    ----------
    header
        What is said of this picture: the instance's header, or a view of it.
    frame
        Which frame of the instance, from 0.
    corner
        For a tile of a mosaic, its first column and row.
    """

    instance: Instance
    header: Header
    frame: int = 0
    corner: tuple[int, int] | None = None

    @property
    def number(self) -> int | None:
        """The number of its frame, from 1; None in a single-frame instance."""
        return self.header.number if isinstance(self.header, View) else None


def pictures_of(instance: Instance) -> tuple[Picture, ...]:
    """Return the pictures of an instance, in stored order.

    Raises
    ------
    InputError
        If it holds several and does not say where each lies.
    """
    header = instance.header
    if dicom_mosaic.is_mosaic(header):
        try:
            tiles = dicom_mosaic.tiles(header)
        except GeometryError:
            raise
        except InputError as error:
            raise InputError(f"{instance.file.path.name} {error}") from error
        return tuple(Picture(instance, view, 0, corner) for view, corner in tiles)
    frames = frame_count(header)
    per_frame = said(header, "PerFrameFunctionalGroupsSequence")
    if frames == 1 and per_frame is None:
        return (Picture(instance, header),)
    if not 0 < frames <= _MAX_FRAMES or (per_frame is not None and len(per_frame) != frames):
        described = 0 if per_frame is None else len(per_frame)
        raise InputError(
            f"{instance.file.path.name} is damaged: it says that it holds {frames} frames and describes {described}; "
            "fetch it again"
        )
    if per_frame is None:
        if numbers(header, "ImagePositionPatient", 3) is not None or "Enhanced" in kind_of(header):
            raise InputError(
                f"{instance.file.path.name} holds {frames} frames ({kind_of(header)}) and does not say where each lies "
                "(it has no functional groups); export the series again as single-frame or enhanced images"
            )
        return tuple(Picture(instance, View(header, n + 1), n) for n in range(frames))
    shared = tuple(said(header, "SharedFunctionalGroupsSequence") or ())[:1]
    return tuple(Picture(instance, View(header, n + 1, (own, *shared)), n) for n, own in enumerate(per_frame))


def frame_count(header: Dataset) -> int:
    """Return how many frames an instance says it holds; 1 where it does not say."""
    try:
        return int(said(header, "NumberOfFrames") or 1)
    except (ValueError, TypeError):
        return 1


def kind_of(header: Dataset) -> str:
    """Return the name of an instance's class."""
    uid = said(header, "SOPClassUID")
    if uid is None and isinstance(header, FileDataset):
        uid = said(header.file_meta, "MediaStorageSOPClassUID")
    known = UID(str(uid))
    return known.name if known.name != known else "object of no public class"
