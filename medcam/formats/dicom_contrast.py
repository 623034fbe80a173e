"""The contrast that a presentation state keeps: it replaces all of an image's own, from stored values on.

References
----------
DICOM PS3.3 C.11.1 (Modality LUT), C.11.8 (Softcopy VOI LUT), C.11.6 (Softcopy Presentation LUT), C.11.2.1.3 (window functions).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from pydicom import Dataset
from pydicom.valuerep import DSfloat

from medcam.formats.dicom_files import said
from medcam.formats.dicom_pixels import display_window, is_inverted, mirror, rescale, unit
from medcam.formats.dicom_slices import picture_header, picture_reference
from medcam.formats.dicom_view import Header
from medcam.render import display_range
from medcam.volume import Volume


def add_contrast(state: Dataset, volume: Volume, slices: Sequence[int]) -> None:
    """Show each image as it asks for, or as medcam's own pictures show it where it does not ask.

    One rescaling holds for all images of a state. Where theirs differ it is left out, and windows are told in stored values; so
    they are where a window is narrower than 1, which not every viewer can show.
    """
    headers = {k: header for k in slices if (header := picture_header(volume.source, k)) is not None}
    first = headers[slices[0]]
    otherwise = display_range(volume)
    asked = {k: _window(header, otherwise) for k, header in headers.items()}
    if table := said(first, "ModalityLUTSequence"):
        state.ModalityLUTSequence = [copy.deepcopy(table[0])]
    elif (
        len(scales := {rescale(header) for header in headers.values()}) == 1 and min(w for _, w in asked.values()) >= 1
    ):
        state.RescaleSlope, state.RescaleIntercept = (DSfloat(value, auto_format=True) for value in scales.pop())
        state.RescaleType = said(first, "RescaleType") or ("HU" if unit(first) == "HU" else "US")
    else:
        for k, header in headers.items():
            slope, intercept = rescale(header)
            asked[k] = (asked[k][0] - intercept) / slope, asked[k][1] / abs(slope)
    windows: dict[tuple[float, float], list[int]] = {}
    for k, window in asked.items():
        windows.setdefault(window, []).append(k)
    state.SoftcopyVOILUTSequence = [
        _voi(window, volume, () if len(windows) == 1 else shown) for window, shown in windows.items()
    ]
    state.PresentationLUTShape = "INVERSE" if is_inverted(first) else "IDENTITY"


def _window(header: Header, otherwise: tuple[float, float]) -> tuple[float, float]:
    """Return (centre, width) in rescaled values, not turned over."""
    low, high = otherwise
    centre, width = display_window(header) or ((low + high) / 2, high - low)
    return (mirror(header) - centre if is_inverted(header) else centre), width


def _voi(window: tuple[float, float], volume: Volume, slices: Sequence[int]) -> Dataset:
    item = Dataset()
    centre, width = (DSfloat(value, auto_format=True) for value in window)
    item.WindowCenter, item.WindowWidth = centre, width
    if width < 1:
        # The older function is not defined for windows of less than one value.
        item.VOILUTFunction = "LINEAR_EXACT"
    references = [reference for k in slices if (reference := picture_reference(volume.source, k)) is not None]
    if references:
        item.ReferencedImageSequence = references
    return item
