"""Write the relevance itself as a DICOM Parametric Map: float32, raw and signed, placed in the patient.

It is written with pydicom: highdicom's class sorts frames against row x column, which dcmqi (3D Slicer) and OHIF show mirrored,
and holds several copies of the pixels.

References
----------
DICOM PS3.3 A.75 (the object), C.8.32 (Parametric Map), C.7.6.24 (float pixels), C.7.6.16.2.11 (Real World Value Mapping); PS3.5
section 8 (NaN is a value).
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.uid import ParametricMapStorage

from medcam.errors import OutputError
from medcam.formats.dicom_algorithm import explanation, quantity_definition
from medcam.formats.dicom_body_part import add_body_part, frame_anatomy
from medcam.formats.dicom_code import code
from medcam.formats.dicom_derived import (
    Instance,
    add_pixel_history,
    derived_image,
    derived_instance,
    derived_uid,
    saved,
    source_instances,
)
from medcam.formats.dicom_files import said
from medcam.formats.dicom_frames import Picture, add_frames, decimals, refuse_other_place, stack_as_stored, stack_of
from medcam.formats.dicom_patient import own_text
from medcam.formats.exporting import Export
from medcam.volume import Heatmap, Volume

_SERIES_NUMBER = 9003
_ROLE = "parametric map"
# No reader's mistake about tilted slices may be larger than this share of a pixel.
_LEAN_SHARE = 0.1
# A file counts its pixels in 32 bits.
_MOST_BYTES = 2**32 - 2


def check_parametric_map(volume: Volume) -> None:
    """Refuse an image that no Parametric Map can be made of: to be asked before a long computation.

    Raises
    ------
    OutputError
        If it is not DICOM, does not say where in the patient it lies, names no frame of reference, is tilted, or is too large.
    """
    headers = source_instances(volume.source)
    if not volume.source.placed:
        raise OutputError(
            "a Parametric Map lies in the patient, and this image does not say where it lies (as X-ray films do not); write "
            "dicom-seg or dicom-sc instead"
        )
    if not said(headers[0], "FrameOfReferenceUID"):
        raise OutputError(
            "a Parametric Map must name the frame of reference of its source, and these images name none (removing identity "
            "often removes it); write dicom-seg, dicom-sc or NIfTI instead, or export the series again with its "
            "FrameOfReferenceUID"
        )
    stack = stack_of(volume.grid)
    if stack.lean_mm > _LEAN_SHARE * min(stack.spacing_mm):
        raise OutputError(
            f"the slices of this series are tilted: the last lies {stack.lean_mm:.1f} mm off the line through the first, and "
            "3D Slicer and dcm2niix draw a Parametric Map as if it lay on it. Read the series with regrid=True (--regrid) and "
            "explain that, or write dicom-seg or dicom-sc, which keep each slice in its place"
        )
    if (size := 4 * math.prod(volume.grid.shape)) > _MOST_BYTES:
        raise OutputError(f"the map would take {size / 2**30:.1f} GiB, and a DICOM file holds at most 4; write NIfTI")


def parametric_map(export: Export, *, unseen: float | int | None = None) -> tuple[Path, ...]:
    """Write the Parametric Map of an export: every slice of the heatmap, as it is, bit for bit.

    Parameters
    ----------
    unseen
        What is stored where the network did not look. None leaves NaN, which DICOM allows and no other value can be taken
        for; some viewers draw it badly, and 0 is then the harmless choice that no longer tells it from 'irrelevant'.

    Raises
    ------
    OutputError
        If the source is not DICOM, has no place in the patient, does not lie where the heatmap lies, or the file cannot be
        written.
    """
    return (saved(parametric_map_dataset(export, unseen=unseen), export.path("_pm.dcm")),)


def parametric_map_instance(export: Export, *, unseen: float | int | None = None) -> Instance | None:
    """Return the UIDs of what `parametric_map` writes with these options, or None where it would refuse the source."""
    try:
        check_parametric_map(export.volume)
    except OutputError:
        return None
    return _instance(export.heatmap, unseen)


def parametric_map_dataset(export: Export, *, unseen: float | int | None = None) -> Dataset:
    """Return what `parametric_map` writes with this option.

    Raises
    ------
    OutputError
        As `parametric_map`.
    """
    heatmap = export.heatmap
    check_parametric_map(export.volume)
    refuse_other_place(heatmap, export.volume)
    headers, stack = source_instances(heatmap.source), stack_as_stored(heatmap)
    dataset = derived_image(
        heatmap, instance=_instance(heatmap, unseen), modality="OT", number=_SERIES_NUMBER, when=export.when, kind="map"
    )
    dataset.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "QUANTITY"]
    dataset.ContentQualification = "RESEARCH"
    dataset.ContentLabel = "RELEVANCE"
    dataset.ContentDescription = own_text(f"Relevance for {heatmap.target}", dataset, 64)
    dataset.ContentCreatorName = ""
    dataset.FrameOfReferenceUID = str(headers[0].FrameOfReferenceUID)
    dataset.PositionReferenceIndicator = headers[0].get("PositionReferenceIndicator") or ""
    dataset.AcquisitionContextSequence = []
    add_body_part(dataset, headers[0])
    add_pixel_history(dataset, headers)
    # No pixel of the source is left in the map.
    dataset.BurnedInAnnotation, dataset.RecognizableVisualFeatures = "NO", "NO"
    dataset.LossyImageCompression = dataset.get("LossyImageCompression") or "00"
    dataset.PresentationLUTShape, dataset.PixelPresentation = "IDENTITY", "MONOCHROME"
    add_frames(
        dataset,
        heatmap,
        stack,
        [Picture(k) for k in stack.order],
        derivation=code(*explanation(heatmap)),
        uid=derived_uid(heatmap, f"{_ROLE} space"),
    )
    _add_meaning(dataset, heatmap, unseen)
    dataset.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [frame_anatomy(headers[0])]
    _add_pixels(dataset, heatmap, stack.order, unseen)
    return dataset


def _instance(heatmap: Heatmap, unseen: float | int | None) -> Instance:
    role = _ROLE if unseen is None else f"{_ROLE}, unseen {float(unseen)}"
    return derived_instance(heatmap, sop_class=ParametricMapStorage, role=role)


def _add_meaning(dataset: Dataset, heatmap: Heatmap, unseen: float | int | None) -> None:
    """Say what the stored numbers are: relevance itself, in no unit, from the smallest to the largest."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    frame_type, values, mapping = Dataset(), Dataset(), Dataset()
    frame_type.FrameType = dataset.ImageType
    shared.ParametricMapFrameTypeSequence = [frame_type]
    values.RescaleIntercept, values.RescaleSlope, values.RescaleType = "0", "1", "US"
    shared.PixelValueTransformationSequence = [values]
    low, high = _range(heatmap)
    if heatmap.maximum > 0:
        window = Dataset()
        window.WindowCenter, window.WindowWidth = decimals([high / 2])[0], decimals([high])[0]
        # The only linear function that allows a width below 1.
        window.VOILUTFunction = "LINEAR_EXACT"
        shared.FrameVOILUTSequence = [window]
    mapping.LUTLabel = "RELEVANCE"
    mapping.LUTExplanation = own_text(
        "Positive speaks for the target; "
        + ("NaN: not looked at" if unseen is None else f"{unseen:g}: or not looked at"),
        dataset,
        64,
    )
    mapping.DoubleFloatRealWorldValueFirstValueMapped = min(low, low if unseen is None else unseen)
    mapping.DoubleFloatRealWorldValueLastValueMapped = max(high, high if unseen is None else unseen)
    mapping.RealWorldValueIntercept, mapping.RealWorldValueSlope = 0.0, 1.0
    mapping.MeasurementUnitsCodeSequence = [code("1", "UCUM", "no units")]
    mapping.QuantityDefinitionSequence = quantity_definition(heatmap)
    shared.RealWorldValueMappingSequence = [mapping]


def _range(heatmap: Heatmap) -> tuple[float, float]:
    """Return the smallest and the largest relevance, or twice 0 where nothing was looked at."""
    seen = np.isfinite(heatmap.relevance)
    low = float(np.min(heatmap.relevance, where=seen, initial=np.inf))
    return (low, heatmap.maximum) if low < np.inf else (0.0, 0.0)


def _add_pixels(dataset: Dataset, heatmap: Heatmap, order: tuple[int, ...], unseen: float | int | None) -> None:
    columns, rows, _ = heatmap.grid.shape
    dataset.Rows, dataset.Columns = rows, columns
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.BitsAllocated = 1, "MONOCHROME2", 32
    stored = heatmap.relevance
    if unseen is not None and np.isnan(stored).any():
        stored = np.where(np.isnan(stored), np.float32(unseen), stored)
    ordered = stored if order[0] == 0 else stored[:, :, ::-1]
    # One copy, which the writer then reads piece by piece: a whole CT as float32 is large.
    dataset.FloatPixelData = io.BytesIO(ordered.T.astype("<f4", copy=False).tobytes())
