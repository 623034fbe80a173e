"""What the segments of a Segmentation say of themselves: where the relevance is how high, by which algorithm, in which colour.

References
----------
DICOM PS3.3 C.8.20.4 (Segment Description Macro), C.10.7.1.1 (CIELab); PS3.16 CID 7150 and 7151 (what a segment is).
"""

from __future__ import annotations

from dataclasses import dataclass

from pydicom import Dataset

from medcam.formats.dicom_algorithm import VISUAL_EXPLANATION, algorithm_identification, algorithm_name, explanation
from medcam.formats.dicom_body_part import anatomic_region
from medcam.formats.dicom_code import code
from medcam.formats.dicom_derived import derived_uid, source_instances
from medcam.formats.dicom_patient import own_text
from medcam.render import COLOURS
from medcam.volume import Heatmap

WHOLE = 255
"""The stored value of the largest relevance in a fractional segmentation."""


@dataclass(frozen=True)
class Wanted:
    """The options of a segmentation, checked: fractions in rising order."""

    kind: str
    fractions: tuple[float, ...]
    compress: str | None

    @property
    def role(self) -> str:
        """What the object is, for its UIDs. Compression changes no pixel, so it is none of it."""
        return f"{self.kind} segmentation from {', '.join(str(fraction) for fraction in self.fractions)}"


def segment(dataset: Dataset, heatmap: Heatmap, wanted: Wanted, n: int) -> Dataset:
    """Return the description of segment n (from 0)."""
    where = _where(wanted, n)
    colour = wanted.fractions[n] if wanted.fractions else 1.0
    item = Dataset()
    item.SegmentNumber = n + 1
    item.SegmentLabel = f"{own_text(heatmap.target, dataset, 64 - 2 - len(where))}: {where}"
    item.SegmentDescription = own_text(_description(heatmap, wanted, where), dataset, 1024)
    item.SegmentAlgorithmType = "AUTOMATIC"
    item.SegmentAlgorithmName = own_text(algorithm_name(heatmap), dataset, 64)
    item.SegmentationAlgorithmIdentificationSequence = algorithm_identification(heatmap)
    item.SegmentedPropertyCategoryCodeSequence = [code("309825002", "SCT", "Spatial and Relational Concept")]
    kind = code(*VISUAL_EXPLANATION)
    if explanation(heatmap) != VISUAL_EXPLANATION:
        kind.SegmentedPropertyTypeModifierCodeSequence = [code(*explanation(heatmap))]
    item.SegmentedPropertyTypeCodeSequence = [kind]
    if region := anatomic_region(source_instances(heatmap.source)[0]):
        item.AnatomicRegionSequence = [region]
    item.TrackingID = own_text(f"{heatmap.target}: {where}", dataset, 1024)
    item.TrackingUID = derived_uid(
        heatmap, f"{where}, {wanted.fractions[n : n + 2] if wanted.kind == 'labelmap' else colour}"
    )
    item.RecommendedDisplayCIELabValue = _cielab(colour)
    return item


def _where(wanted: Wanted, n: int) -> str:
    """Return what segment n (from 0) holds, in few words."""
    if not wanted.fractions:
        return "relevance"
    low, *higher = (f"{100 * fraction:g} %" for fraction in wanted.fractions[n:])
    return f"relevance {low} to {higher[0]}" if higher and wanted.kind == "labelmap" else f"relevance from {low}"


def _description(heatmap: Heatmap, wanted: Wanted, where: str) -> str:
    what = f"{where.capitalize()} of its maximum" if wanted.fractions else f"{WHOLE} times relevance by its maximum"
    return (
        f"{what} ({heatmap.maximum:.4g}) for {heatmap.target}, by {heatmap.recipe.method} of {heatmap.recipe.model}. It shows "
        "where a network's score came from: it outlines no lesion and is no probability of disease. Research use only."
    )


def background() -> Dataset:
    """Return the description of the value 0 of a label map."""
    item = Dataset()
    item.SegmentNumber = 0
    item.SegmentLabel = "Background"
    item.SegmentAlgorithmType = "AUTOMATIC"
    item.SegmentAlgorithmName = "medcam"
    for keyword in ("SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence"):
        setattr(item, keyword, [code("125040", "DCM", "Background")])
    item.RecommendedDisplayCIELabValue = [0, 32896, 32896]
    return item


def _cielab(share: float) -> list[int]:
    """Return the colour that the overlay gives to a share of the maximum, in DICOM's 16-bit CIELab."""
    import matplotlib
    from highdicom.color import CIELabColor

    red, green, blue, _ = matplotlib.colormaps[COLOURS](share)
    return [int(value) for value in CIELabColor.from_rgb(255 * red, 255 * green, 255 * blue).value]
