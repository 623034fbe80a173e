"""Write which objects of an export belong together: a Key Object Selection, DICOM's list of what to look at.

References
----------
DICOM PS3.3 A.35.4 (the object); PS3.16 TID 2010 (Key Object Selection), CID 7010 (titles).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
)

from medcam.errors import UsageError
from medcam.formats.dicom_companions import companions, evidence
from medcam.formats.dicom_derived import WARNING, Instance, check_source, derivation, derived_instance, finalised, saved
from medcam.formats.dicom_observer import observer
from medcam.formats.exporting import Export
from medcam.volume import Volume

_SERIES_NUMBER = 9005
# In the order in which they are worth a look.
_GATHERED = ("dicom-sc", "dicom-seg", "dicom-pm", "dicom-sr", "dicom-ps")
# These have no pixels.
_DOCUMENTS = (Comprehensive3DSRStorage, GrayscaleSoftcopyPresentationStateStorage)


def check_key_objects(volume: Volume, *, beside: tuple[str, ...]) -> None:
    """Refuse an image that no DICOM object can be derived from, and a list of nothing.

    Raises
    ------
    OutputError
        If the image is not DICOM.
    UsageError
        If none of what it could list is written with it.
    """
    check_source(volume)
    if not set(beside) & set(_GATHERED):
        raise UsageError(
            "dicom-ko lists the other DICOM objects of an export, and this one writes none; ask for some of "
            f"{', '.join(_GATHERED)} with it"
        )


def key_objects(export: Export) -> tuple[Path, ...]:
    """Write the list of all DICOM objects that an export writes beside it, in the source's study, or nothing where there is none.

    Raises
    ------
    OutputError
        If the source is not DICOM, or the file cannot be written.
    """
    dataset = key_objects_dataset(export)
    return () if dataset is None else (saved(dataset, export.path("_ko.dcm")),)


def key_objects_instance(export: Export) -> Instance | None:
    """Return the UIDs of what `key_objects` writes, or None where there is nothing to gather."""
    gathered = list(companions(export, _GATHERED).values())
    return _instance(export, gathered) if gathered else None


def key_objects_dataset(export: Export) -> Dataset | None:
    """Return what `key_objects` writes, None where there is nothing to gather."""
    gathered = list(companions(export, _GATHERED).values())
    if not gathered:
        return None
    heatmap, instance = export.heatmap, _instance(export, gathered)
    objects = evidence(export, gathered)[-len(gathered) :]
    for item in objects:
        if item.SOPClassUID not in _DOCUMENTS:
            # By these the library tells images from documents; neither is written.
            item.Columns, item.Rows, _ = heatmap.grid.shape
    content = KeyObjectSelection(
        CodedConcept("113009", "DCM", "For Research"),
        objects,
        observer_device_context=observer(),
        description=f"{WARNING}. {derivation(heatmap)}",
    )
    document = KeyObjectSelectionDocument(
        objects,
        content,
        series_instance_uid=instance.series,
        series_number=_SERIES_NUMBER,
        sop_instance_uid=instance.sop_instance,
        instance_number=1,
        manufacturer="medcam",
    )
    return finalised(document, heatmap, instance=instance, number=_SERIES_NUMBER, when=export.when, kind="key objects")


def _instance(export: Export, gathered: Sequence[Instance]) -> Instance:
    # Another list is another instance.
    return derived_instance(
        export.heatmap, sop_class=KeyObjectSelectionDocumentStorage, role=f"key objects {json.dumps(gathered)}"
    )
