"""Write where the relevance is high as a DICOM Segmentation: a region that any viewer can draw over the source images.

Such a region shows where a network's score came from. It outlines no lesion and no organ, and its codes say so: a Spatial and
Relational Concept of the type Visual explanation.

It is written with pydicom: highdicom's class refers to one multi-frame source only, and to none whose slices were resampled.

References
----------
DICOM PS3.3 A.51 (the object), A.87 (as label map), C.8.20 (Segmentation Image).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8
from pydicom import Dataset
from pydicom.uid import JPEGLSLossless, RLELossless, SegmentationStorage

from medcam.errors import UsageError
from medcam.formats.dicom_body_part import add_body_part
from medcam.formats.dicom_code import code
from medcam.formats.dicom_derived import (
    Instance,
    add_pixel_history,
    derived_image,
    derived_instance,
    derived_uid,
    frame_of_reference,
    saved,
    source_instances,
)
from medcam.formats.dicom_files import said
from medcam.formats.dicom_frames import Picture, add_frames, refuse_other_place, stack_as_stored, stack_of
from medcam.formats.dicom_patient import own_text
from medcam.formats.dicom_segment_words import WHOLE, Wanted, background, segment
from medcam.formats.exporting import Export
from medcam.options import between, one_of
from medcam.volume import Heatmap, Volume

# Label Map Segmentation Storage, younger than pydicom's table.
_LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
_SERIES_NUMBER = 9002
_KINDS = ("binary", "fractional", "labelmap")
# With pydicom's names of the encoders: GDCM's, which it would take first for RLE, ends the process at odd numbers of pixels.
_SYNTAXES = {"rle": (RLELossless, "pydicom"), "jpeg-ls": (JPEGLSLossless, "pyjpegls")}
_MOST_SEGMENTS = 255

# One fraction of the maximum or several; the export's own if None.
Thresholds: TypeAlias = Sequence[float | int] | float | int | None


def check_segmentation(
    volume: Volume,
    *,
    threshold: float,
    thresholds: Thresholds = None,
    kind: str = "binary",
    compress: str | None = None,
) -> None:
    """Refuse an image that no Segmentation can be made of, and options that make no sense: before a long computation.

    Raises
    ------
    UsageError, OutputError
        As `segmentation`.
    """
    _wanted(threshold, thresholds, kind, compress)
    source_instances(volume.source)
    if volume.source.placed:
        stack_of(volume.grid)


def segmentation(
    export: Export,
    *,
    thresholds: Thresholds = None,
    kind: str = "binary",
    compress: str | None = None,
) -> tuple[Path, ...]:
    """Write the Segmentation of an export, or nothing where there is no region: see `no_region`.

    Voxels that were not looked at, and those that speak against the target, are in no segment.

    Parameters
    ----------
    thresholds
        Fractions of the positive maximum, above 0 and at most 1; the export's threshold by default.
    kind
        'binary': one segment for each threshold, with all voxels that reach it, so that a higher one lies within a lower. GDCM
        (SimpleITK) and dcm2niix misread it where a slice's number of pixels is no multiple of 8.
        'labelmap': one value a voxel, so the segments are bands from one threshold to the next; older PACS do not know this
        class.
        'fractional': one segment without thresholds, whose values are the voxel's share of the largest relevance, 255 being
        all of it. DICOM knows two kinds of fractions. A share is no probability of a disease, and says so in the segment's
        description; but it is stored as PROBABILITY, since it means something when it is cut at a level (at half, it is the
        binary segmentation at 0.5), and as OCCUPANCY its sum would be read as a volume.
    compress
        'rle', 'jpeg-ls' (dcmqi and so 3D Slicer refuse it) or None. A binary segmentation has one bit a voxel, which neither
        can hold.

    Raises
    ------
    UsageError
        If an option is none of these.
    OutputError
        If the source is not DICOM, does not lie where the heatmap lies, or the file cannot be written.
    """
    dataset = segmentation_dataset(export, thresholds=thresholds, kind=kind, compress=compress)
    return () if dataset is None else (saved(dataset, export.path("_seg.dcm")),)


def segmentation_instance(
    export: Export,
    *,
    thresholds: Thresholds = None,
    kind: str = "binary",
    compress: str | None = None,
) -> Instance | None:
    """Return the UIDs of what `segmentation` writes with these options, or None where it writes nothing."""
    wanted = _wanted(export.threshold, thresholds, kind, compress)
    return None if no_region(export.heatmap) else _instance(export.heatmap, wanted)


def no_region(heatmap: Heatmap) -> str:
    """Return why there is no region to segment, in a sentence for the user; '' where there is one."""
    if not np.isfinite(heatmap.relevance).any():
        return "No voxel was looked at, so there is no region to segment."
    if not heatmap.maximum > 0:
        return "No voxel speaks for the target, so there is no region to segment."
    if not (heatmap.relevance < heatmap.maximum).any():
        return "The relevance is the same everywhere, so there is no region to segment."
    return ""


def segmentation_dataset(
    export: Export,
    *,
    thresholds: Thresholds = None,
    kind: str = "binary",
    compress: str | None = None,
) -> Dataset | None:
    """Return what `segmentation` writes with these options, or None where it writes nothing.

    Raises
    ------
    UsageError, OutputError
        As `segmentation`.
    """
    wanted = _wanted(export.threshold, thresholds, kind, compress)
    heatmap = export.heatmap
    source_instances(heatmap.source)
    refuse_other_place(heatmap, export.volume)
    if no_region(heatmap):
        return None
    stack = stack_as_stored(heatmap) if heatmap.source.placed else None
    order = stack.order if stack else range(heatmap.grid.shape[2])
    dataset = derived_image(
        heatmap,
        instance=_instance(heatmap, wanted),
        modality="SEG",
        number=_SERIES_NUMBER,
        when=export.when,
        kind="region",
    )
    _add_content(dataset, heatmap, placed=stack is not None)
    _add_segments(dataset, heatmap, wanted)
    pictures = _add_pixels(dataset, heatmap, wanted, order)
    derivation = code("113076", "DCM", "Segmentation")
    add_frames(
        dataset,
        heatmap,
        stack,
        pictures,
        derivation=derivation,
        uid=derived_uid(heatmap, f"{wanted.role} space"),
    )
    if wanted.compress is not None:
        syntax, encoder = _SYNTAXES[wanted.compress]
        dataset.compress(syntax, encoding_plugin=encoder, generate_instance_uid=False)
    return dataset


def _add_content(dataset: Dataset, heatmap: Heatmap, *, placed: bool) -> None:
    """Say what the image is of, where it lies, and what is left in it of its source's pixels: nothing."""
    headers = source_instances(heatmap.source)
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.ContentLabel = "RELEVANCE"
    dataset.ContentDescription = own_text(f"Where the network looked for {heatmap.target}", dataset, 64)
    dataset.ContentCreatorName = ""
    if placed:
        dataset.FrameOfReferenceUID = frame_of_reference(headers[0])
        dataset.PositionReferenceIndicator = said(headers[0], "PositionReferenceIndicator") or ""
    else:
        dataset.PatientOrientation = said(headers[0], "PatientOrientation") or ""
    add_body_part(dataset, headers[0])
    add_pixel_history(dataset, headers)
    dataset.BurnedInAnnotation, dataset.RecognizableVisualFeatures = "NO", "NO"
    dataset.LossyImageCompression = dataset.get("LossyImageCompression") or "00"


def _add_segments(dataset: Dataset, heatmap: Heatmap, wanted: Wanted) -> None:
    dataset.SegmentationType = wanted.kind.upper()
    dataset.SegmentsOverlap = "YES" if wanted.kind == "binary" and len(wanted.fractions) > 1 else "NO"
    dataset.SegmentSequence = [
        *([background()] if wanted.kind == "labelmap" else []),
        *(segment(dataset, heatmap, wanted, n) for n in range(len(wanted.fractions) or 1)),
    ]


def _wanted(threshold: float, thresholds: Thresholds, kind: str, compress: str | None) -> Wanted:
    one_of("kind", kind, _KINDS)
    if compress is not None:
        one_of("compress", compress, tuple(_SYNTAXES))
        if kind == "binary":
            raise UsageError(
                f"a binary segmentation holds one bit a voxel, which {compress} cannot; leave compress away, or ask for "
                "kind='labelmap'"
            )
    if kind == "fractional":
        if thresholds is not None:
            raise UsageError("a fractional segmentation holds the whole range of relevance and takes no thresholds")
        return Wanted(kind, (), compress)
    if thresholds is None:
        given: Sequence[float | int] = (threshold,)
    else:
        given = (thresholds,) if isinstance(thresholds, (int, float)) else tuple(thresholds)
    for fraction in given:
        if fraction != 1:
            between("thresholds", fraction, 0, 1)
    fractions = tuple(sorted({float(fraction) for fraction in given}))
    if not 0 < len(fractions) <= _MOST_SEGMENTS:
        raise UsageError(f"a segmentation has between 1 and {_MOST_SEGMENTS} thresholds, not {len(fractions)}")
    return Wanted(kind, fractions, compress)


def _instance(heatmap: Heatmap, wanted: Wanted) -> Instance:
    sop_class = _LABEL_MAP if wanted.kind == "labelmap" else SegmentationStorage
    return derived_instance(heatmap, sop_class=sop_class, role=wanted.role)


def _add_pixels(dataset: Dataset, heatmap: Heatmap, wanted: Wanted, order: Sequence[int]) -> list[Picture]:
    """Add the pixels of all frames that are not empty, and return which those are."""
    columns, rows, _ = heatmap.grid.shape
    dataset.Rows, dataset.Columns = rows, columns
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    bits = 1 if wanted.kind == "binary" else 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    if wanted.kind == "fractional":
        dataset.SegmentationFractionalType, dataset.MaximumFractionalValue = "PROBABILITY", WHOLE
    if wanted.kind == "labelmap":
        dataset.add_new("PixelPaddingValue", "US", 0)
    pictures, frames = [], []
    for picture, frame in _frames(heatmap, wanted, order):
        if frame.any():
            pictures.append(picture)
            frames.append(frame.ravel())
    pixels = np.concatenate(frames)
    content = np.packbits(pixels, bitorder="little").tobytes() if bits == 1 else pixels.tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OB"
    return pictures


def _frames(
    heatmap: Heatmap, wanted: Wanted, order: Sequence[int]
) -> Iterator[tuple[Picture, UInt8[np.ndarray, "j i"]]]:
    """Yield all frames, rows downwards, segment by segment and slice by slice."""
    levels = [np.float32(fraction * heatmap.maximum) for fraction in wanted.fractions]
    for n, _ in enumerate(levels) if wanted.kind == "binary" else [(0, None)]:
        for k in order:
            shown = np.nan_to_num(heatmap.relevance[:, :, k].T, nan=-1.0)
            if wanted.kind == "binary":
                yield Picture(k, n + 1), (shown >= levels[n]).astype(np.uint8)
            elif wanted.kind == "labelmap":
                yield Picture(k), np.digitize(shown, levels).astype(np.uint8)
            else:
                share = np.rint(WHOLE * (shown / np.float32(heatmap.maximum)).clip(0, 1))
                yield Picture(k, 1), share.astype(np.uint8)
