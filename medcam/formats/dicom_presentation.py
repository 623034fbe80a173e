"""Write where the relevance lies as a presentation state: lines and words that a viewer lays over the source's own images.

A Grayscale Softcopy Presentation State copies no pixel, and can be switched off with one click. It draws the outline of what
reaches the threshold, a cross at the peak of each finding, and what it is, on every image that holds some of it; the images
keep their own contrast. States that would colour the images (pseudo-colour, blending) are not written: hardly a viewer honours
them, and one that does not shows the source as if nothing had been found.

It is written with pydicom: highdicom's class squeezes pixels that are not square, and takes the rescaling of the first image for
all.

References
----------
DICOM PS3.3 A.33.1 (the object), C.11.10 and C.11.11 (its images), C.10.4 (Displayed Area), C.10.5 (Graphic Annotation).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage
from pydicom.valuerep import DSfloat

from medcam.errors import OutputError
from medcam.formats.dicom_body_part import add_body_part
from medcam.formats.dicom_contrast import add_contrast
from medcam.formats.dicom_derived import (
    WARNING,
    Instance,
    derived_instance,
    finalised,
    keeps_places,
    saved,
    source_instances,
)
from medcam.formats.dicom_files import said
from medcam.formats.dicom_patient import own_text
from medcam.formats.dicom_slices import picture_reference
from medcam.formats.exporting import Export
from medcam.formats.findings import Finding, findings
from medcam.formats.outlines import outlines
from medcam.options import at_least
from medcam.volume import Heatmap

_SERIES_NUMBER = 9006
_OUTLINE, _PEAK = "RELEVANCE", "RELEVANCE PEAK"
# In CIELab as DICOM scales it (PS3.3 C.10.7.1.1): the violet of the faintest relevance and the yellow of the strongest.
_COLOURS = {_OUTLINE: (30000, 46000, 18000), _PEAK: (58000, 31000, 52000)}
# The gap around a peak and the arms of its cross, as shares of the image's shorter side: nothing covers the peak.
_CROSS = (0.015, 0.05)
# An element of two floats a point holds no more in 64 kB.
_MOST_POINTS = 8191


def presentation_state(export: Export, *, most: int = 10) -> tuple[Path, ...]:
    """Write the presentation state of an export, or nothing where no voxel speaks for the target.

    Parameters
    ----------
    most
        How many findings have their peak marked, strongest first. All are outlined.

    Raises
    ------
    UsageError
        If `most` is no positive whole number.
    OutputError
        If the source is not DICOM or its slices are no images of their own, or the file cannot be written.
    """
    dataset = presentation_state_dataset(export, most=most)
    return () if dataset is None else (saved(dataset, export.path("_ps.dcm")),)


def presentation_state_instance(export: Export, *, most: int = 10) -> Instance | None:
    """Return the UIDs of what `presentation_state` writes with this option, or None where it writes nothing."""
    heatmap = export.heatmap
    if not heatmap.maximum > 0 or not keeps_places(heatmap):
        return None
    role = f"presentation state of {most} peaks from {export.threshold:g}"
    return derived_instance(heatmap, sop_class=GrayscaleSoftcopyPresentationStateStorage, role=role)


def presentation_state_dataset(export: Export, *, most: int = 10) -> Dataset | None:
    """Return what `presentation_state` writes, or None.

    Raises
    ------
    UsageError, OutputError
        As `presentation_state`.
    """
    at_least("most", most)
    heatmap = export.heatmap
    first = source_instances(heatmap.source)[0]
    if not keeps_places(heatmap):
        raise OutputError(
            "a presentation state draws on the source's own images, and the slices of this heatmap are none: they were put on "
            "another grid, or are tiles of a mosaic; write dicom-sc or dicom-seg instead"
        )
    drawn = _annotations(export, most)
    instance = presentation_state_instance(export, most=most)
    if instance is None or not drawn:
        return None
    state = Dataset()
    state.Modality = "PR"
    state.ContentLabel = _OUTLINE
    state.ContentCreatorName = ""
    state.PresentationCreationDate, state.PresentationCreationTime = f"{export.when:%Y%m%d}", f"{export.when:%H%M%S}"
    _add_series_part(state, first)
    _add_images(state, heatmap, list(drawn))
    state.DisplayedAreaSelectionSequence = [_displayed_area(heatmap, first)]
    state.GraphicAnnotationSequence = [item for items in drawn.values() for item in items]
    state.GraphicLayerSequence = [_layer(order, name) for order, name in enumerate(_COLOURS, 1)]
    add_contrast(state, export.volume, list(drawn))
    final = finalised(state, heatmap, instance=instance, number=_SERIES_NUMBER, when=export.when, kind="outline")
    final.ContentDescription = own_text(f"Relevance for {heatmap.target}, {WARNING}", final, 64)
    # The state has one time zone, the source's.
    final.PresentationCreationDate, final.PresentationCreationTime = final.ContentDate, final.ContentTime
    del final.ContentDate, final.ContentTime
    return final


def _annotations(export: Export, most: int) -> dict[int, list[Dataset]]:
    """Return what is drawn on each slice that is an image and holds some of a finding, by slice."""
    heatmap = export.heatmap
    peaks: dict[int, list[tuple[int, Finding]]] = {}
    for n, finding in enumerate(findings(heatmap, export.threshold)[:most], 1):
        peaks.setdefault(finding.peak.voxel[2], []).append((n, finding))
    drawn = {}
    for k in np.flatnonzero(heatmap.mask(export.threshold).any(axis=(0, 1))):
        if (reference := picture_reference(heatmap.source, int(k))) is not None:
            lines = outlines(heatmap.relevance[:, :, k], export.threshold * heatmap.maximum)
            outline, peak = _item(reference, _OUTLINE), _item(reference, _PEAK)
            outline.GraphicObjectSequence = [_polyline(part) for line in lines for part in _parts(line)]
            outline.TextObjectSequence = [_caption(export)]
            drawn[int(k)] = [outline]
            if here := peaks.get(int(k)):
                peak.GraphicObjectSequence = [arm for _, finding in here for arm in _cross(heatmap, finding)]
                peak.TextObjectSequence = [_number(heatmap, n, finding) for n, finding in here]
                drawn[int(k)].append(peak)
    return drawn


def _item(reference: Dataset, layer: str) -> Dataset:
    item = Dataset()
    item.ReferencedImageSequence, item.GraphicLayer = [reference], layer
    return item


def _parts(line: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(line) - 1, _MOST_POINTS - 1):
        yield line[start : start + _MOST_POINTS]


def _polyline(points: np.ndarray) -> Dataset:
    """Return a line through fractional indices. An image's coordinates start at the corner of its first pixel."""
    graphic = Dataset()
    graphic.GraphicAnnotationUnits, graphic.GraphicDimensions = "PIXEL", 2
    graphic.NumberOfGraphicPoints = len(points)
    graphic.GraphicData = [float(value) for value in (np.asarray(points) + 0.5).round(3).ravel()]
    graphic.GraphicType, graphic.GraphicFilled = "POLYLINE", "N"
    return graphic


def _cross(heatmap: Heatmap, finding: Finding) -> list[Dataset]:
    near, far = _reach(heatmap)
    centre = np.array(finding.peak.voxel[:2], float)
    arms = (np.array(step, float) for step in ((1, 0), (-1, 0), (0, 1), (0, -1)))
    return [_polyline(np.array([centre + near * arm, centre + far * arm])) for arm in arms]


def _reach(heatmap: Heatmap) -> tuple[float, float]:
    """Return how far from a peak its cross begins and ends, in pixels."""
    gap, arm = (max(1.5, share * min(heatmap.grid.shape[:2])) for share in _CROSS)
    return gap, gap + arm


def _number(heatmap: Heatmap, n: int, finding: Finding) -> Dataset:
    """Return the words below the cross: the finding's number in the report, and its share of the heatmap's maximum."""
    _, far = _reach(heatmap)
    text = Dataset()
    text.UnformattedTextValue = f"{n}: {finding.peak.relevance / heatmap.maximum:.2f}"
    text.AnchorPoint = [float(index) + 0.5 + far for index in finding.peak.voxel[:2]]
    text.AnchorPointAnnotationUnits, text.AnchorPointVisibility = "PIXEL", "N"
    return text


def _caption(export: Export) -> Dataset:
    """Return the words at the lower edge of the picture, wherever that lies on the screen."""
    text = Dataset()
    heatmap = export.heatmap
    text.UnformattedTextValue = (
        f"{heatmap.recipe.method}: {heatmap.target}\r\nfrom {export.threshold:g} of the maximum\r\n{WARNING}"
    )
    text.BoundingBoxTopLeftHandCorner, text.BoundingBoxBottomRightHandCorner = [0.02, 0.86], [0.6, 0.98]
    text.BoundingBoxAnnotationUnits, text.BoundingBoxTextHorizontalJustification = "DISPLAY", "LEFT"
    return text


def _layer(order: int, name: str) -> Dataset:
    layer = Dataset()
    layer.GraphicLayer, layer.GraphicLayerOrder = name, order
    layer.GraphicLayerRecommendedDisplayCIELabValue = list(_COLOURS[name])
    return layer


def _add_series_part(state: Dataset, header: Dataset) -> None:
    """Say which part of the body the series is about. A state is no image, so its side stands with the series."""
    part = Dataset()
    add_body_part(part, header)
    if "BodyPartExamined" in part:
        state.BodyPartExamined = part.BodyPartExamined
    side = part.get("ImageLaterality")
    if side in ("R", "L"):
        state.Laterality = side
    elif side is not None or "Laterality" in part:
        state.Laterality = ""


def _add_images(state: Dataset, heatmap: Heatmap, slices: Sequence[int]) -> None:
    """Refer to the images that are drawn on, by series."""
    series: dict[str, dict[str, Dataset]] = {}
    for k in slices:
        header, reference = heatmap.source.header(k), picture_reference(heatmap.source, k)
        if reference is None:
            continue
        images = series.setdefault(str(header.SeriesInstanceUID), {})
        known = images.setdefault(str(header.SOPInstanceUID), reference)
        if known is not reference:
            frames = [*np.atleast_1d(known.ReferencedFrameNumber), reference.ReferencedFrameNumber]
            known.ReferencedFrameNumber = sorted(int(frame) for frame in frames)
    state.ReferencedSeriesSequence = []
    for uid, images in series.items():
        item = Dataset()
        item.SeriesInstanceUID, item.ReferencedImageSequence = uid, list(images.values())
        state.ReferencedSeriesSequence.append(item)


def _displayed_area(heatmap: Heatmap, header: Dataset) -> Dataset:
    """Return that the whole of each image is shown, its pixels in their true shape."""
    columns, rows, _ = heatmap.grid.shape
    area = Dataset()
    area.DisplayedAreaTopLeftHandCorner, area.DisplayedAreaBottomRightHandCorner = [1, 1], [columns, rows]
    area.PresentationSizeMode = "SCALE TO FIT"
    across, down, _ = heatmap.grid.spacing_mm
    if heatmap.source.spaced:
        area.PresentationPixelSpacing = [DSfloat(mm, auto_format=True) for mm in (down, across)]
    else:
        area.PresentationPixelAspectRatio = said(header, "PixelAspectRatio") or [1, 1]
    return area
