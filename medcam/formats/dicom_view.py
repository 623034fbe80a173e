"""What the header of a file with many pictures says about one of them.

A frame of an enhanced image is described in functional groups: its own, those that all frames share, and the top of the
dataset. A tile of a mosaic has a place and a size of its own. To all other code either looks like the header of a
single-frame image.

References
----------
DICOM PS3.3 C.7.6.16 (Multi-frame Functional Groups), A.70 (Legacy Converted Enhanced images).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pydicom import Dataset

# Where an element of a single-frame image stands in functional groups: (sequence, keyword there).
_IN_GROUPS: dict[str, tuple[tuple[str, str], ...]] = {
    "ImagePositionPatient": (("PlanePositionSequence", "ImagePositionPatient"),),
    "ImageOrientationPatient": (("PlaneOrientationSequence", "ImageOrientationPatient"),),
    **{
        keyword: (("PixelMeasuresSequence", keyword),)
        for keyword in ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices")
    },
    **{
        keyword: (("PixelValueTransformationSequence", keyword),)
        for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType")
    },
    **{keyword: (("FrameVOILUTSequence", keyword),) for keyword in ("WindowCenter", "WindowWidth")},
    "ImageType": tuple(
        (f"{kind}FrameTypeSequence", "FrameType") for kind in ("MRImage", "CTImage", "PET", "XRay3D", "XAXRF")
    ),
    "ComplexImageComponent": (("MRImageFrameTypeSequence", "ComplexImageComponent"),),
    "EchoTime": (("MREchoSequence", "EffectiveEchoTime"),),
    "FlipAngle": (("MRTimingAndRelatedParametersSequence", "FlipAngle"),),
    "InversionTime": (("MRModifierSequence", "InversionTimes"),),
    "DiffusionBValue": (("MRDiffusionSequence", "DiffusionBValue"),),
    "TriggerTime": (
        ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
        ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
    ),
    "ConvolutionKernel": (("CTReconstructionSequence", "ConvolutionKernel"),),
    "KVP": (("CTXRayDetailsSequence", "KVP"),),
    "AcquisitionNumber": (("FrameContentSequence", "FrameAcquisitionNumber"),),
    "TemporalPositionIdentifier": (("FrameContentSequence", "TemporalPositionIndex"),),
    "AcquisitionTime": (("FrameContentSequence", "FrameAcquisitionDateTime"),),
    "StackID": (("FrameContentSequence", "StackID"),),
}
# What a converter from single-frame images found no functional group for.
_CONVERTED = ("UnassignedPerFrameConvertedAttributesSequence", "UnassignedSharedConvertedAttributesSequence")


@dataclass(frozen=True, eq=False)
class View:
    """One picture of an instance that holds several, as if it had a header of its own.

    Parameters
    ----------
    header
        Of the instance.
    number
        Of the frame, from 1; None for a tile of a single-frame mosaic.
    groups
        The functional groups that speak of this frame, its own before the shared ones.
    own
        What is known of this picture in another way, by keyword; it comes before all else.
    """

    header: Dataset = field(repr=False)
    number: int | None = None
    groups: tuple[Dataset, ...] = field(default=(), repr=False)
    own: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def get(self, keyword: str, default: Any = None) -> Any:
        """Return the value of an element, as `Dataset.get` does."""
        if keyword in self.own:
            return self.own[keyword]
        for sequence, name in (*_IN_GROUPS.get(keyword, ()), *((each, keyword) for each in _CONVERTED)):
            for group in self.groups:
                items = group.get(sequence)
                value = items[0].get(name) if items else None
                if value is not None and value != "":
                    return value
        return self.header.get(keyword, default)


Header: TypeAlias = Dataset | View
