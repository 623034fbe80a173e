"""Write where the relevance lies as a presentation state: lines and words that a viewer lays over the source's own images.

A Grayscale Softcopy Presentation State copies no pixel, and can be switched off with one click. It draws the outline of what
reaches the threshold, a cross at the peak of each finding, and what it is, on every image that holds some of it; the images
keep their own contrast. States that would colour the images (pseudo-colour, blending) are not written: hardly a viewer honours
them, and one that does not shows the source as if nothing had been found.

It is written with pydicom: highdicom's class squeezes pixels that are not square, and takes the rescaling of the first image for
all.

References
----------
DICOM PS3.3 A.33.1 (the object), C.11.10 and C.11.11 (its images), C.10.4 (Displayed Area), C.10.5 (Graphic Annotation),
C.11.1 and C.11.8 (contrast).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage
from pydicom.valuerep import DSfloat

from medcam.errors import OutputError
from medcam.formats.dicom_body_part import add_series_body_part
from medcam.formats.dicom_derived import WARNING, Instance, derived_instance, finalised, saved, source_instances
from medcam.formats.dicom_files import said
from medcam.formats.dicom_patient import own_text
from medcam.formats.dicom_slices import picture_header, picture_reference
from medcam.formats.dicom_view import Header
from medcam.formats.exporting import Export
from medcam.formats.findings import Finding, findings
from medcam.formats.outlines import outlines
from medcam.options import at_least
from medcam.render import display_range
from medcam.volume import Heatmap

_SERIES_NUMBER = 9006
_OUTLINE, _PEAK = "RELEVANCE", "RELEVANCE PEAK"
# In CIELab as DICOM scales it (PS3.3 C.10.7.1.1): the violet of the faintest relevance and the yellow of the strongest.
_COLOURS = {_OUTLINE: (30000, 46000, 18000), _PEAK: (58000, 31000, 52000)}
# A cross reaches from here to there, as a share of the image's shorter side, so that nothing covers the peak.
_CROSS = (0.015, 0.05)
# A polyline counts its points in 16 bits.
_MOST_POINTS = 65535
