"""Write the overlay as one Secondary Capture: the DICOM picture that every viewer shows.

Slices become frames of a Multi-frame True Color one. Its functional groups place each frame in the patient; without them
readers take 1 mm voxels at the origin. A film has no place, and groups that speak of pixel size alone are not allowed (GDCM
refuses to read them): it becomes a single-frame one, of which every reader takes the pixel size.

References
----------
DICOM PS3.3 A.8.1 and A.8.5 (the objects), C.8.6.3 (SC Multi-frame Image), C.7.6.16 (functional groups), 10.7 (pixel spacing);
PS3.5 A.4 (compressed pixels), 8.2.4 (colours under JPEG 2000).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.uid import (
    UID,
    JPEG2000Lossless,
    JPEGLSLossless,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from medcam.errors import OutputError, UsageError
from medcam.formats import dicom_derived
from medcam.formats.burned_in import Border, border
from medcam.formats.dicom_body_part import add_body_part
from medcam.formats.dicom_files import said
from medcam.formats.dicom_frames import decimals, refuse_other_place
from medcam.formats.dicom_patient import own_text
from medcam.formats.dicom_slices import (
    Plane,
    only,
    picture_header,
    picture_slices,
    slice_plane,
)
from medcam.formats.exporting import Export
from medcam.formats.findings import findings
from medcam.options import at_least, one_of
from medcam.render import display_range, overlay_rgb, to_display
from medcam.volume import Source, Volume

_SERIES_NUMBER = 9001
# A file counts its pixels in 32 bits.
_MOST_BYTES = 2**32 - 2
_SMALLEST_JPEG_2000 = 32
# How pixels are compressed, and by which of pydicom's encoders: GDCM's ends the process at an odd number of bytes.
_SYNTAXES: dict[str, tuple[UID, str]] = {
    "rle": (RLELossless, "pylibjpeg"),
    "jpeg-ls": (JPEGLSLossless, "pyjpegls"),
    "jpeg-2000": (JPEG2000Lossless, "pylibjpeg"),
}


def check_secondary_capture(
    volume: Volume, *, colour_bar: object = False, compress: str | None = None, slices: str = "all", most: int = 10
) -> None:
    """Refuse an image that no Secondary Capture can be made of, and options that make no sense: before a long computation.

    Raises
    ------
    UsageError, OutputError
        As `secondary_capture`.
    """
    if colour_bar not in (True, False):
        raise UsageError(f"colour_bar is True or False, not {colour_bar!r}")
    one_of("slices", slices, ("all", "key"))
    at_least("most", most)
    if compress is not None:
        one_of("compress", compress, tuple(_SYNTAXES))
    dicom_derived.source_instances(volume.source)


def secondary_capture(
    export: Export, *, colour_bar: bool = False, compress: str | None = None, slices: str = "all", most: int = 10
) -> tuple[Path, ...]:
    """Write the overlay of a heatmap on its DICOM source, in stored axes, one frame for each source image.

    The colours are those of `medcam.render`, normalised by the heatmap's own maximum over all frames. NaN and negative
    relevance show plain grey. Slices that were interpolated into a gap are left out; a volume that was put on another grid
    shows the slices of that grid.

    Parameters
    ----------
    colour_bar
        Draw a border around each frame with the colour bar, the patient's sides (where the source says how the patient
        lies) and a warning. The frames are larger than the source's images, and lie where those lie.
    compress
        'rle', 'jpeg-ls' or 'jpeg-2000', all lossless: the pixels do not change, and so neither do the UIDs.
    slices
        'all', or 'key' for those through the peaks of the strongest findings (the middle one if there is none).
    most
        How many findings have a key slice.

    Raises
    ------
    UsageError
        If an option has no such value.
    OutputError
        If the source is not DICOM, does not lie where the heatmap lies, or the file cannot be written.
    """
    check_secondary_capture(export.volume, colour_bar=colour_bar, compress=compress, slices=slices, most=most)
    heatmap, volume = export.heatmap, export.volume
    source = volume.source
    dicom_derived.source_instances(source)
    refuse_other_place(heatmap, volume)
    shown = _slices(export, slices, most)
    edge = _border(export) if colour_bar else None
    dataset = dicom_derived.derived_image(
        heatmap,
        instance=_instance(export, colour_bar, slices, most),
        modality="OT",
        number=_SERIES_NUMBER,
        when=export.when,
    )
    dataset.ConversionType = "WSD"
    dataset.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    _add_source(dataset, only(source, shown), edge, same_place=dicom_derived.keeps_places(heatmap) and edge is None)
    _add_words(dataset, export, slices, most)
    if volume.source.placed:
        _add_places(dataset, export, shown, edge)
    else:
        _add_film_spacing(dataset, source.instances[0])
    _add_pixels(dataset, export, shown, edge)
    if compress is not None:
        _compress(dataset, compress)
    return (dicom_derived.saved(dataset, export.path("_sc.dcm")),)


def secondary_capture_instance(
    export: Export, *, colour_bar: bool = False, compress: str | None = None, slices: str = "all", most: int = 10
) -> dicom_derived.Instance:
    """Return the UIDs of what `secondary_capture` writes with these options."""
    return _instance(export, colour_bar, slices, most)


def _instance(export: Export, colour_bar: bool, slices: str, most: int) -> dicom_derived.Instance:
    # Other pixels are another instance.
    role = f"secondary capture from {export.threshold:g}" + ", colour bar" * colour_bar
    placed = export.volume.source.placed
    return dicom_derived.derived_instance(
        export.heatmap,
        sop_class=MultiFrameTrueColorSecondaryCaptureImageStorage if placed else SecondaryCaptureImageStorage,
        role=role + f", {most} key slices" * (slices == "key"),
    )


def _slices(export: Export, slices: str, most: int) -> list[int]:
    every = picture_slices(export.volume.source)
    if slices == "all":
        return every
    peaks = [one.peak.voxel[2] for one in findings(export.heatmap, export.threshold)[:most]]
    # A peak in an interpolated slice is shown on the nearest image.
    near = {min(every, key=lambda k: abs(k - peak)) for peak in peaks or [export.volume.grid.shape[2] // 2]}
    return sorted(near)


def _border(export: Export) -> Border:
    volume = export.volume
    columns, rows, _ = volume.grid.shape
    letters = to_display(volume.voxels, volume.grid, "stored", 0).letters if volume.source.oriented else None
    warnings = (dicom_derived.WARNING, *["no positive evidence"] * (not export.heatmap.maximum > 0))
    return border(rows, columns, letters=letters, threshold=export.threshold, warnings=warnings)


def _add_source(dataset: Dataset, source: Source, edge: Border | None, *, same_place: bool) -> None:
    first = source.instances[0]
    dicom_derived.add_references(dataset, source, same_place=same_place)
    dataset.PatientOrientation = said(first, "PatientOrientation") or ""
    add_body_part(dataset, first)
    dicom_derived.add_pixel_history(dataset, source.instances)
    if edge is not None:
        dataset.BurnedInAnnotation = "YES"


def _add_words(dataset: Dataset, export: Export, slices: str, most: int) -> None:
    heatmap = export.heatmap
    words = f"{dicom_derived.derivation(heatmap)} Coloured from {export.threshold:g} of the maximum."
    if slices == "key":
        count = len(findings(heatmap, export.threshold))
        words += f" Only slices through the peaks of {min(count, most)} of {count} findings."
    dataset.DerivationDescription = own_text(words, dataset, 1024)
    if heatmap.notes:
        dataset.ImageComments = own_text(" ".join(heatmap.notes), dataset, 10240)


def _add_places(dataset: Dataset, export: Export, slices: Sequence[int], edge: Border | None) -> None:
    source, grid = export.volume.source, export.volume.grid
    planes = [slice_plane(source, grid, k) for k in slices]
    dataset.FrameOfReferenceUID = dicom_derived.frame_of_reference(source.instances[0])
    dataset.PositionReferenceIndicator = said(source.instances[0], "PositionReferenceIndicator") or ""
    across, down = planes[0].across, planes[0].down
    steps = np.linalg.norm([down, across], axis=1)
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = decimals(steps)
    header = picture_header(source, slices[0])
    if header is not None and (thickness := said(header, "SliceThickness")):
        measures.SliceThickness = decimals([thickness])[0]
    orientation.ImageOrientationPatient = decimals([*across / steps[1], *down / steps[0]])
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    positions = np.array([_corner(plane, edge) for plane in planes])
    dataset.NumberOfFrames = len(slices)
    dataset.PerFrameFunctionalGroupsSequence = [Dataset() for _ in slices]
    for group, position in zip(dataset.PerFrameFunctionalGroupsSequence, positions, strict=True):
        place = Dataset()
        place.ImagePositionPatient = decimals(position)
        group.PlanePositionSequence = [place]
    # A single frame has nothing to step through.
    if len(slices) > 1:
        dataset.SliceLocationVector = decimals(positions @ np.cross(across / steps[1], down / steps[0]))
        dataset.FrameIncrementPointer = tag_for_keyword("SliceLocationVector")


def _corner(plane: Plane, edge: Border | None) -> np.ndarray:
    return plane.position if edge is None else plane.position - edge.left * plane.across - edge.top * plane.down


def _add_film_spacing(dataset: Dataset, header: Dataset) -> None:
    """Say how large a pixel is in the patient, if the source knows. At the detector, where lengths are too long, will not do."""
    spacing = said(header, "PixelSpacing")
    factor = said(header, "EstimatedRadiographicMagnificationFactor")
    detector = said(header, "ImagerPixelSpacing")
    if spacing is not None and min(spacing) > 0:
        if kind := said(header, "PixelSpacingCalibrationType"):
            dataset.PixelSpacingCalibrationType = kind
            dataset.PixelSpacingCalibrationDescription = said(header, "PixelSpacingCalibrationDescription") or "unknown"
    elif detector is not None and min(detector) > 0 and factor is not None and factor > 0:
        spacing = np.array(detector, float) / float(factor)
        dataset.PixelSpacingCalibrationType = "GEOMETRY"
        dataset.PixelSpacingCalibrationDescription = "ImagerPixelSpacing / EstimatedRadiographicMagnificationFactor"
    else:
        if (ratio := said(header, "PixelAspectRatio")) is not None:
            dataset.PixelAspectRatio = ratio
        return
    dataset.PixelSpacing = decimals(spacing)


def _add_pixels(dataset: Dataset, export: Export, slices: Sequence[int], edge: Border | None) -> None:
    columns, rows, _ = export.volume.grid.shape
    if edge is not None:
        rows, columns = edge.pixels.shape[:2]
    if (size := 3 * columns * rows * len(slices)) > _MOST_BYTES:
        raise OutputError(
            f"the overlay would take {size / 2**30:.1f} GiB, and a DICOM file holds at most 4; write NIfTI, or key slices only"
        )
    frames = _frames(export, slices)
    content = b"".join((frame if edge is None else edge.around(frame)).tobytes() for frame in frames)
    dataset.Rows, dataset.Columns = rows, columns
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OB"


def _frames(export: Export, slices: Sequence[int]) -> Iterator[UInt8[np.ndarray, "y x 3"]]:
    heatmap, volume = export.heatmap, export.volume
    window, maximum = display_range(volume), heatmap.maximum
    for k in slices:
        image, relevance = volume.voxels[:, :, k].T, heatmap.relevance[:, :, k].T
        yield overlay_rgb(image, relevance, window=window, maximum=maximum, threshold=export.threshold)


def _compress(dataset: Dataset, name: str) -> None:
    syntax, encoder = _SYNTAXES[name]
    if name == "jpeg-2000":
        if min(dataset.Rows, dataset.Columns) < _SMALLEST_JPEG_2000:
            raise OutputError(
                f"frames of {dataset.Columns} x {dataset.Rows} pixels are too small for jpeg-2000, which halves them five "
                "times; choose rle, jpeg-ls or none"
            )
        # It turns RGB into a colour space of its own, and must say so.
        dataset.PhotometricInterpretation = "YBR_RCT"
    dataset.compress(syntax, encoding_plugin=encoder, generate_instance_uid=False)
