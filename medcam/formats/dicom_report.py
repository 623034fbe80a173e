"""Write what a heatmap found as a Structured Report: DICOM's measurement report (TID 1500), in numbers that machines read.

The first group speaks of the whole heatmap: the class, its score, the algorithm with the recipe, what was measured against a
lesion. One group follows for each finding: its peak, its place and its size. Each group refers to the map and the segmentation of
the same export as visual explanations. Nobody has verified any of it, and the report says so.

References
----------
DICOM PS3.16 TID 1500 (Measurement Report), TID 1501 (Measurement Group), TID 1600 (Image Library), TID 4019 (Algorithm);
PS3.3 A.35.13 (Comprehensive 3D SR), C.18.6 and C.18.9 (coordinates in images and in space).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from highdicom import sr
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import Comprehensive3DSRStorage

from medcam import __version__
from medcam.formats.dicom_algorithm import VISUAL_EXPLANATION, algorithm_name, explanation, parameters
from medcam.formats.dicom_companions import companions, evidence
from medcam.formats.dicom_derived import (
    WARNING,
    Instance,
    derivation,
    derived_instance,
    derived_uid,
    finalised,
    frame_of_reference,
    saved,
    source_instances,
)
from medcam.formats.dicom_files import said
from medcam.formats.dicom_numbers import (
    AREA,
    PROBABILITY,
    QUANTITY,
    RATIO,
    SCORE,
    THRESHOLD,
    VOLUME,
    measured,
    number,
)
from medcam.formats.dicom_observer import observer
from medcam.formats.dicom_slices import LPS_FROM_RAS, picture_reference
from medcam.formats.exporting import Export
from medcam.formats.findings import Finding, findings
from medcam.options import at_least
from medcam.volume import Heatmap

_SERIES_NUMBER = 9004
# The objects that show what the numbers are of.
_SHOWN = ("dicom-pm", "dicom-seg", "dicom-sc")
_RESEARCH = f"{WARNING}. Research use only: relevance shows what moved the network's score, and is no diagnosis."


def structured_report(export: Export, *, most: int = 10) -> tuple[Path, ...]:
    """Write the report of an export, also where there is no positive evidence.

    Parameters
    ----------
    most
        How many findings have a group of their own, strongest first. Their number is told in any case.

    Raises
    ------
    UsageError
        If `most` is no positive whole number.
    OutputError
        If the source is not DICOM, or the file cannot be written.
    """
    return (saved(structured_report_dataset(export, most=most), export.path("_sr.dcm")),)


def structured_report_instance(export: Export, *, most: int = 10) -> Instance:
    """Return the UIDs of what `structured_report` writes with this option."""
    shown = companions(export, _SHOWN)
    # Another content is another instance.
    content = [
        f"{export.threshold:g}",
        most,
        list(shown.values()),
        {name: str(value) for name, value in export.measures.items()},
    ]
    return derived_instance(
        export.heatmap, sop_class=Comprehensive3DSRStorage, role=f"structured report {json.dumps(content)}"
    )


def structured_report_dataset(export: Export, *, most: int = 10) -> Dataset:
    """Return what `structured_report` writes.

    Raises
    ------
    UsageError, OutputError
        As `structured_report`.
    """
    at_least("most", most)
    heatmap = export.heatmap
    headers = source_instances(heatmap.source)
    shown = companions(export, _SHOWN)
    found = findings(heatmap, export.threshold)
    groups = [_whole(export, found, shown.values())]
    groups += [_one(export, n, finding, shown.values()) for n, finding in enumerate(found[:most], 1)]
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer()),
        procedure_reported=_procedure(headers[0]),
        imaging_measurements=groups,
        title=codes.cid7021.ImagingMeasurementReport,
    )
    # The images stand before what was measured in them.
    content[0].ContentSequence.insert(-1, _library(headers))
    instance = structured_report_instance(export, most=most)
    report = sr.Comprehensive3DSR(
        evidence=evidence(export, list(shown.values())),
        content=content[0],
        series_instance_uid=instance.series,
        series_number=_SERIES_NUMBER,
        sop_instance_uid=instance.sop_instance,
        instance_number=1,
        manufacturer="medcam",
        is_complete=True,
    )
    return finalised(report, heatmap, instance=instance, number=_SERIES_NUMBER, when=export.when, kind="report")


def _whole(
    export: Export, found: Sequence[Finding], shown: Iterable[Instance]
) -> sr.MeasurementsAndQualitativeEvaluations:
    """Return the group that speaks of the whole heatmap."""
    heatmap, kind = export.heatmap, sr.CodedConcept(*explanation(export.heatmap))
    label = _labels(heatmap, "heatmap")
    numbers = [
        *_scores(heatmap),
        *([number(kind, heatmap.maximum, derivation="Maximum")] if math.isfinite(heatmap.maximum) else []),
        number(THRESHOLD, export.threshold, label=label("share of the maximum")),
        number(QUANTITY, float(len(found)), "count", label=label("regions above the threshold")),
    ]
    if found and heatmap.source.spaced:
        numbers.append(_size(heatmap, sum(one.size for one in found), derivation="Total"))
    if unseen := float(np.isnan(heatmap.relevance).mean()):
        numbers.append(number(RATIO, unseen, label=label("share of the image that was not looked at")))
    against_lesion, undefined = measured(export.measures, label)
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=label("medcam heatmap"),
        finding_type=kind,
        algorithm_id=sr.AlgorithmIdentification(
            name=algorithm_name(heatmap),
            version=__version__,
            parameters=parameters(heatmap),
            family=sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
        ),
        measurements=[*numbers, *against_lesion],
        qualitative_evaluations=None if found else [sr.QualitativeEvaluation(kind, codes.cid240.Absent)],
    )
    texts = [_RESEARCH, derivation(heatmap), *heatmap.notes, *heatmap.source.notes]
    _complete(group, heatmap, shown, [*texts, f"Not defined: {', '.join(undefined)}."] if undefined else texts)
    return group


def _one(
    export: Export, n: int, finding: Finding, shown: Iterable[Instance]
) -> sr.MeasurementsAndQualitativeEvaluations:
    """Return the group of one finding."""
    heatmap = export.heatmap
    label = _labels(heatmap, f"finding {n} from {export.threshold:g}")
    relative = finding.peak.relevance / heatmap.maximum
    numbers = [
        number(sr.CodedConcept(*explanation(heatmap)), finding.peak.relevance, derivation="Maximum"),
        number(RATIO, relative, label=label("peak relative to the maximum of the heatmap")),
        *([_size(heatmap, finding.size)] if heatmap.source.spaced else []),
        *_scores(heatmap),
    ]
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=label(f"medcam finding {n}"),
        finding_type=sr.CodedConcept("C85402", "NCIt", "Imaging Region of Interest"),
        measurements=numbers,
    )
    _complete(group, heatmap, shown, [_RESEARCH])
    group[0].ContentSequence.append(_place(heatmap, finding))
    return group


def _labels(heatmap: Heatmap, what: str) -> Callable[[str], sr.TrackingIdentifier]:
    """Return what makes tracking identifiers: words, and a UID that the same result has again."""
    return lambda words: sr.TrackingIdentifier(derived_uid(heatmap, f"tracked {words} of {what}"), words)


def _complete(
    group: sr.MeasurementsAndQualitativeEvaluations, heatmap: Heatmap, shown: Iterable[Instance], texts: Iterable[str]
) -> None:
    """Add what every group tells and highdicom's template has no argument for: rows 9d and 12 of TID 1501."""
    contains = sr.RelationshipTypeValues.CONTAINS
    items = group[0].ContentSequence
    items.append(sr.TextContentItem(sr.CodedConcept("278201002", "SCT", "Classification"), heatmap.target, contains))
    for text in texts:
        items.append(sr.TextContentItem(sr.CodedConcept("121106", "DCM", "Comment"), text, contains))
    for instance in shown:
        name = sr.CodedConcept(*VISUAL_EXPLANATION)
        items.append(sr.ImageContentItem(name, instance.sop_class, instance.sop_instance, relationship_type=contains))


def _place(heatmap: Heatmap, finding: Finding) -> sr.Scoord3DContentItem | sr.ScoordContentItem:
    """Return where a finding peaks: in the space of the source, or as a point of its image where it names no space."""
    source, (i, j, k) = heatmap.source, finding.peak.voxel
    name = sr.CodedConcept("56851009", "SCT", "Maximum")
    contains = sr.RelationshipTypeValues.CONTAINS
    reference = picture_reference(source, k)
    if reference is None or (source.placed and said(source.instances[0], "FrameOfReferenceUID")):
        point = np.array([LPS_FROM_RAS @ finding.peak.world_mm])
        space = frame_of_reference(source.instances[0])
        return sr.Scoord3DContentItem(name, sr.GraphicTypeValues3D.POINT, point, space, relationship_type=contains)
    # An image's coordinates start at the corner of its first pixel, and an index at its centre.
    point = np.array([[i + 0.5, j + 0.5]])
    item = sr.ScoordContentItem(name, sr.GraphicTypeValues.POINT, point, relationship_type=contains)
    number = reference.get("ReferencedFrameNumber")
    image = sr.SourceImageForRegion(
        reference.ReferencedSOPClassUID,
        reference.ReferencedSOPInstanceUID,
        referenced_frame_numbers=None if number is None else [int(number)],
    )
    item.ContentSequence = sr.ContentSequence([image])
    return item


def _scores(heatmap: Heatmap) -> list[sr.Measurement]:
    kind = heatmap.recipe.score
    scores = [] if kind == "probability" else [number(SCORE, heatmap.score, label=_labels(heatmap, "class")(kind))]
    probability = heatmap.score if kind == "probability" else heatmap.probability
    return scores if probability is None else [*scores, number(PROBABILITY, probability)]


def _size(heatmap: Heatmap, size: float, *, derivation: str = "") -> sr.Measurement:
    name, unit = (AREA, "mm2") if heatmap.grid.shape[2] == 1 else (VOLUME, "mm3")
    return number(name, size, unit, derivation=derivation)


def _procedure(header: Dataset) -> sr.CodedConcept:
    """Return what was done to make the images, as the source says, or that it was some imaging procedure."""
    for item in said(header, "ProcedureCodeSequence") or ():
        value, scheme, meaning = (said(item, f"Cod{end}") for end in ("eValue", "ingSchemeDesignator", "eMeaning"))
        if value and scheme and meaning:
            return sr.CodedConcept(str(value), str(scheme), str(meaning)[:64])
    return sr.CodedConcept("363679005", "SCT", "Imaging procedure")


def _library(headers: Sequence[Dataset]) -> sr.ContainerContentItem:
    """Return the list of the source's images. highdicom's own asks headers for what films and enhanced images lack."""
    contains = sr.RelationshipTypeValues.CONTAINS
    library = sr.ContainerContentItem(codes.DCM.ImageLibrary, relationship_type=contains)
    group = sr.ContainerContentItem(codes.DCM.ImageLibraryGroup, relationship_type=contains)
    name = sr.CodedConcept("260753009", "SCT", "Source")
    group.ContentSequence = sr.ContentSequence(
        [
            sr.ImageContentItem(name, header.SOPClassUID, header.SOPInstanceUID, relationship_type=contains)
            for header in headers
        ]
    )
    library.ContentSequence = sr.ContentSequence([group])
    return library
