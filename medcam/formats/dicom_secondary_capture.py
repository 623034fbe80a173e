"""Write the overlay as one Multi-frame True Color Secondary Capture: the DICOM picture that every viewer shows.

The functional groups place each frame in the patient; without them readers take 1 mm voxels at the origin.

References
----------
DICOM PS3.3 A.8.5 (the object), C.8.6.3 (SC Multi-frame Image), C.7.6.16 (functional groups).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.uid import MultiFrameTrueColorSecondaryCaptureImageStorage
from pydicom.valuerep import DSfloat

from medcam.errors import OutputError
from medcam.formats import dicom_derived
from medcam.formats.dicom_body_part import add_body_part
from medcam.formats.dicom_files import said
from medcam.formats.dicom_patient import own_text
from medcam.formats.exporting import Export
from medcam.geometry import Grid
from medcam.render import THRESHOLD, display_range, overlay_rgb
from medcam.volume import Heatmap, Volume
from medcam.whole_file import whole_file

_SERIES_NUMBER = 9001
# A file counts its pixels in 32 bits.
_MOST_BYTES = 2**32 - 2
# As the reader: a slice may lie this share of a step off its place on the regular grid.
_DRIFT_SHARE, _DRIFT_MM = 0.1, 0.01
_LPS_FROM_RAS = np.diag((-1.0, -1.0, 1.0))


def secondary_capture(export: Export) -> tuple[Path, ...]:
    """Write the overlay of an export."""
    path = export.path("_sc.dcm")
    write_secondary_capture(export.heatmap, export.volume, path, threshold=export.threshold)
    return (path,)


def write_secondary_capture(heatmap: Heatmap, volume: Volume, path: Path, *, threshold: float = THRESHOLD) -> None:
    """Write the overlay of a heatmap on its DICOM source, one frame for each source image, in stored axes.

    The colours are those of `medcam.render`, normalised by the heatmap's own maximum over all frames. NaN and negative
    relevance show plain grey. Slices that were interpolated into a gap are left out.

    Parameters
    ----------
    volume
        The image that the heatmap was made for, as it was read from DICOM.
    threshold
        The fraction of the maximum (0 to 1, both excluded) below which no colour is shown.

    Raises
    ------
    OutputError
        If the source is not DICOM, does not lie where the heatmap lies, or the file cannot be written.
    """
    headers = dicom_derived.source_headers(volume.source)
    _refuse_other_place(heatmap.grid, volume, headers)
    slices = list(headers.values())
    dataset = dicom_derived.derived_image(
        heatmap,
        instance=dicom_derived.derived_instance(
            heatmap,
            sop_class=MultiFrameTrueColorSecondaryCaptureImageStorage,
            # Other pixels are another instance.
            role=f"secondary capture from {threshold:g}",
        ),
        modality="OT",
        number=_SERIES_NUMBER,
        when=datetime.now().astimezone(),
    )
    words = f"{dicom_derived.derivation(heatmap)} Coloured from {threshold:g} of the maximum."
    dataset.DerivationDescription = own_text(words, dataset, 1024)
    dataset.ConversionType = "WSD"
    dataset.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    if heatmap.notes:
        dataset.ImageComments = own_text(" ".join(heatmap.notes), dataset, 10240)
    dataset.PatientOrientation = slices[0].get("PatientOrientation") or ""
    add_body_part(dataset, slices[0])
    dicom_derived.add_pixel_history(dataset, slices)
    if slices[0].get("ImagePositionPatient"):
        _add_places(dataset, slices)
    else:
        _add_film_spacing(dataset, slices[0])
    _add_pixels(dataset, heatmap, volume, list(headers), threshold)
    with whole_file(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)


def _refuse_other_place(grid: Grid, volume: Volume, headers: Mapping[int, Dataset]) -> None:
    if not grid.is_close(volume.grid):
        raise OutputError(
            f"the heatmap lies on a grid of shape {grid.shape} and the image on another, of shape {volume.grid.shape}; "
            "give the image that the heatmap was made for"
        )
    tolerance = max(_DRIFT_MM, _DRIFT_SHARE * grid.spacing_mm[2])
    columns, rows, _ = grid.shape
    for k, header in headers.items():
        if (header.Columns, header.Rows) != (columns, rows):
            raise OutputError(
                f"the heatmap has {columns} x {rows} voxels a slice and its DICOM source {header.Columns} x {header.Rows}; "
                "write the heatmap that lies on the source's own grid"
            )
        if not header.get("ImagePositionPatient"):
            continue
        corners = np.array([(0, 0), (columns - 1, 0), (0, rows - 1)])
        position, directions = np.array(header.ImagePositionPatient), np.array(header.ImageOrientationPatient)
        across, down = directions.reshape(2, 3) * np.array(header.PixelSpacing, float)[::-1, None]
        said = position + corners[:, :1] * across + corners[:, 1:] * down
        ours = grid.world_mm(np.insert(corners, 2, k, axis=1)) @ _LPS_FROM_RAS
        off = float(np.linalg.norm(said - ours, axis=1).max())
        if off > tolerance:
            raise OutputError(
                f"slice {k} of the heatmap lies {off:.2f} mm from where its DICOM header says; "
                "write the heatmap that lies on the source's own grid"
            )


def _add_places(dataset: Dataset, slices: list[Dataset]) -> None:
    first = slices[0]
    dataset.FrameOfReferenceUID = dicom_derived.frame_of_reference(first)
    dataset.PositionReferenceIndicator = first.get("PositionReferenceIndicator") or ""
    directions = np.array(first.ImageOrientationPatient, float)
    positions = np.array([header.ImagePositionPatient for header in slices], float)
    along = positions @ np.cross(directions[:3], directions[3:])
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = _decimals(first.PixelSpacing)
    if thickness := said(first, "SliceThickness"):
        measures.SliceThickness = _decimals([thickness])[0]
    orientation.ImageOrientationPatient = _decimals(directions)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = [Dataset() for _ in slices]
    for frame, position in zip(dataset.PerFrameFunctionalGroupsSequence, positions, strict=True):
        place = Dataset()
        place.ImagePositionPatient = _decimals(position)
        frame.PlanePositionSequence = [place]
    # A single frame has nothing to step through.
    if len(slices) > 1:
        dataset.SliceLocationVector = _decimals(along)
        dataset.FrameIncrementPointer = tag_for_keyword("SliceLocationVector")


def _add_film_spacing(dataset: Dataset, header: Dataset) -> None:
    """Copy PixelSpacing if it makes sense. ImagerPixelSpacing will not do: at the detector, lengths are too long."""
    spacing = said(header, "PixelSpacing")
    if spacing is not None and min(spacing) > 0:
        dataset.PixelSpacing = _decimals(spacing)
        if kind := said(header, "PixelSpacingCalibrationType"):
            dataset.PixelSpacingCalibrationType = kind


def _add_pixels(dataset: Dataset, heatmap: Heatmap, volume: Volume, slices: list[int], threshold: float) -> None:
    columns, rows, _ = volume.grid.shape
    if (size := 3 * columns * rows * len(slices)) > _MOST_BYTES:
        raise OutputError(
            f"the overlay would take {size / 2**30:.1f} GiB, and a DICOM file holds at most 4; write NIfTI"
        )
    window, maximum = display_range(volume), heatmap.maximum
    frames = (
        overlay_rgb(
            volume.voxels[:, :, k].T, heatmap.relevance[:, :, k].T, window=window, maximum=maximum, threshold=threshold
        )
        for k in slices
    )
    content = b"".join(frame.tobytes() for frame in frames)
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = len(slices), rows, columns
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OB"


def _decimals(values: object) -> list[DSfloat]:
    """Return numbers in at most 16 characters, as DICOM writes them."""
    return [DSfloat(float(value), auto_format=True) for value in np.ravel(np.array(values, float))]
