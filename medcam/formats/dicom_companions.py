"""The DICOM objects that one export writes side by side, known by their UIDs before any of them is written.

Reports and selections refer to them. UIDs are made from the recipe, the source and the options, so nobody has to wait for
another's file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pkgutil import resolve_name

from pydicom import Dataset

from medcam.formats.dicom_derived import Instance, sanitised, source_instances
from medcam.formats.dicom_patient import empty_patient_and_study
from medcam.formats.exporting import Export

# What tells the UIDs of what a format writes: a function of the export and the format's options.
_INSTANCES = {
    "dicom-sc": "medcam.formats.dicom_secondary_capture:secondary_capture_instance",
    "dicom-seg": "medcam.formats.dicom_segmentation:segmentation_instance",
    "dicom-pm": "medcam.formats.dicom_parametric_map:parametric_map_instance",
    "dicom-sr": "medcam.formats.dicom_report:structured_report_instance",
    "dicom-ps": "medcam.formats.dicom_presentation:presentation_state_instance",
}


def companions(export: Export, formats: Sequence[str]) -> dict[str, Instance]:
    """Return those of some formats that an export writes, by format, in the order given; without those that write nothing."""
    found = {}
    for name in formats:
        if name in export.formats:
            instance: Instance | None = resolve_name(_INSTANCES[name])(export, **export.formats[name])
            if instance is not None:
                found[name] = instance
    return found


def evidence(export: Export, instances: Sequence[Instance] = ()) -> list[Dataset]:
    """Return what a document refers to, as a library wants to know of it: the source's images, then objects of the export."""
    sources = [sanitised(header) for header in source_instances(export.heatmap.source)]
    derived = []
    for instance in instances:
        item = Dataset()
        empty_patient_and_study(item)
        item.StudyInstanceUID, item.SeriesInstanceUID = sources[0].StudyInstanceUID, instance.series
        item.SOPClassUID, item.SOPInstanceUID = instance.sop_class, instance.sop_instance
        derived.append(item)
    return [*sources, *derived]
