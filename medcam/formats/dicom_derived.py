"""What every DICOM object made from a source carries: whose it is, what it was made from, how, and by whom.

Objects that a library builds go through two doors: `sanitised` gives the library headers in which nothing of a real file can
trip it, and `finalised` puts into what it built what the source and the recipe say.

References
----------
DICOM PS3.3 C.7.1 to C.7.3 (Patient, Study, Series), C.7.5 (Equipment), C.12 (SOP Common), C.7.6.1 (General Image).
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, JPEGExtended12Bit, SecondaryCaptureImageStorage

from medcam import __version__
from medcam.errors import OutputError
from medcam.formats.dicom_code import code
from medcam.formats.dicom_files import said
from medcam.formats.dicom_patient import copy_element, empty_patient_and_study, own_text, with_patient_of
from medcam.volume import Heatmap, Source, Volume
from medcam.whole_file import whole_file

WARNING = "NOT FOR DIAGNOSTIC USE"
_NAMESPACE = uuid.UUID("6c4fe886-fc81-4e30-b40a-803984c3fb32")
_IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# What a library that makes derived objects reads of an image besides whose it is.
_OF_AN_IMAGE = (
    "Modality SeriesNumber InstanceNumber ImageType FrameOfReferenceUID PositionReferenceIndicator ImagePositionPatient "
    "ImageOrientationPatient PixelSpacing SliceThickness PatientOrientation Rows Columns NumberOfFrames SamplesPerPixel "
    "PhotometricInterpretation BitsAllocated BitsStored HighBit PixelRepresentation"
)


class Instance(NamedTuple):
    """What it takes to refer to a DICOM object, whether or not it has been written yet: three UIDs."""

    sop_class: str
    sop_instance: str
    series: str


def source_instances(source: Source) -> tuple[Dataset, ...]:
    """Return the header of each instance that a source was read from.

    Raises
    ------
    OutputError
        If the source is not DICOM, or its headers lack the identifiers that a derived object must refer to.
    """
    instances: tuple[Dataset, ...] = source.instances
    if not instances:
        raise OutputError(
            f"a DICOM object must refer to the DICOM images that it was made from, and this image was read from "
            f"{source.format}; write NIfTI or PNG instead, or explain the DICOM series itself"
        )
    missing = [keyword for keyword in _IDENTIFIERS if any(not header.get(keyword) for header in instances)]
    if missing:
        raise OutputError(
            f"a DICOM object must refer to the images that it was made from, and these lack {', '.join(missing)}; "
            "export the series again, or write NIfTI or PNG instead"
        )
    return instances


def check_source(volume: Volume) -> None:
    """Refuse an image that no DICOM object can be made of: to be asked before a long computation.

    Raises
    ------
    OutputError
        As `source_instances`.
    """
    source_instances(volume.source)


def sanitised(header: Dataset) -> Dataset:
    """Return what a library may know of an image: its identifiers, place and pixel format, and a patient and study left empty.

    Real headers hold what libraries refuse: an empty character set, a sex or a date in no known form, elements that do not
    parse. `finalised` puts the patient and the study back, byte by byte.
    """
    clean = Dataset()
    empty_patient_and_study(clean)
    for keyword in (*_IDENTIFIERS, *_OF_AN_IMAGE.split()):
        value = said(header, keyword)
        if value is not None:
            setattr(clean, keyword, value)
    return clean


def finalised(
    dataset: Dataset, heatmap: Heatmap, *, instance: Instance, number: int, when: datetime, kind: str = ""
) -> Dataset:
    """Return a dataset with all that does not depend on the kind of object, in place of what a library may have put there.

    Parameters
    ----------
    dataset
        What is peculiar to the kind of object, Modality included; it is left as it is.
    instance
        From `derived_instance`.
    number
        SeriesNumber; moved away from the source's own if equal.
    when
        The moment to write down, with its time zone.
    kind
        What SeriesDescription calls it, in a word or two after the method: 'grad-cam region: lesion NOT FOR DIAGNOSTIC USE'.
    """
    first = source_instances(heatmap.source)[0]
    final = with_patient_of(first, dataset)
    final.SOPClassUID, final.SOPInstanceUID, final.SeriesInstanceUID = instance
    final.SeriesNumber = number + 100 if said(first, "SeriesNumber") == number else number
    final.InstanceNumber = 1
    final.SeriesDescription = _series_description(heatmap, final, kind)
    add_dates(final, first, when)
    add_equipment(final, heatmap, when)
    final.file_meta = FileMetaDataset()
    syntax = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
    final.file_meta.TransferSyntaxUID = syntax or ExplicitVRLittleEndian
    final.file_meta.ImplementationVersionName = f"medcam {__version__}"[:16]
    return final


def derived_image(
    heatmap: Heatmap, *, instance: Instance, modality: str, number: int, when: datetime, kind: str = ""
) -> Dataset:
    """Return what every derived image begins with: a finalised dataset that says what it was derived from, and how."""
    image = Dataset()
    image.Modality = modality
    image = finalised(image, heatmap, instance=instance, number=number, when=when, kind=kind)
    add_references(image, heatmap.source, same_place=keeps_places(heatmap))
    image.DerivationDescription = own_text(derivation(heatmap), image, 1024)
    return image


def saved(dataset: Dataset, path: Path) -> Path:
    """Write a dataset to a file, whole or not at all, and return the path.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with whole_file(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)
    return path


def derived_instance(heatmap: Heatmap, *, sop_class: str, role: str) -> Instance:
    """Return the UIDs of an object of a heatmap: made from the recipe, the source and the role, so they never change.

    Parameters
    ----------
    role
        What kind of object this is, in words that never change, with all options that change what is in it.

    Raises
    ------
    OutputError
        If the source is not DICOM.
    """
    return Instance(sop_class, derived_uid(heatmap, f"{role} instance"), derived_uid(heatmap, f"{role} series"))


def derived_uid(heatmap: Heatmap, role: str) -> str:
    """Return a UID made from the recipe, the source's UIDs and the role: the same result is never stored under a second one.

    A recipe that does not know its model's digest could stand for many results, so the relevance itself is taken in.
    """
    source = heatmap.source
    uids = [str(header.SOPInstanceUID) for header in source_instances(source)]
    grid = [] if keeps_places(heatmap) else [heatmap.grid.shape, heatmap.grid.affine.round(4).tolist()]
    values = [role, __version__, heatmap.recipe.to_json(), uids, source.slices, grid]
    if not heatmap.recipe.model_sha256:
        values.append(hashlib.sha256(heatmap.relevance.tobytes()).hexdigest())
    return _uid(json.dumps(values, sort_keys=True))


def _uid(words: str) -> str:
    return f"2.25.{uuid.uuid5(_NAMESPACE, words).int}"


def frame_of_reference(header: Dataset) -> str:
    """Return the source's frame of reference; where it names none, one that is its series' own, which claims no kinship."""
    named = header.get("FrameOfReferenceUID")
    return str(named) if named else _uid(f"frame of reference {header.SeriesInstanceUID}")


def _series_description(heatmap: Heatmap, dataset: Dataset, kind: str) -> str:
    verdict = "" if heatmap.maximum > 0 else "no positive evidence, "
    words = f"{heatmap.recipe.method} {kind}".strip()
    return f"{own_text(f'{words}: {verdict}{heatmap.target}', dataset, 64 - 1 - len(WARNING))} {WARNING}"


def derivation(heatmap: Heatmap) -> str:
    """Return how the heatmap was made, in one paragraph."""
    recipe = heatmap.recipe
    where = f" at layer {recipe.layer}" if recipe.layer else ""
    digest = f", sha256 {recipe.model_sha256}" if recipe.model_sha256 else ""
    evidence = "" if heatmap.maximum > 0 else " There is no positive evidence for the target."
    return (
        f"{recipe.method} of {heatmap.target} ({recipe.score} {heatmap.score:.4g}){where} of the network {recipe.model}"
        f"{digest}, made by medcam {__version__}.{evidence} Relevance shows what moved the network's score: it is neither "
        "a segmentation nor a diagnosis. Research use only."
    )


def add_dates(dataset: Dataset, header: Dataset, when: datetime) -> None:
    """Write down the moment, in the source's time zone if it names one: an object has one time zone for all its times."""
    zone = str(header.get("TimezoneOffsetFromUTC") or "")
    if len(zone) == 5 and zone[1:].isdigit() and zone[0] in "+-":
        offset = timedelta(hours=int(zone[1:3]), minutes=int(zone[3:])) * (-1 if zone[0] == "-" else 1)
        when = when.astimezone(timezone(offset))
        dataset.TimezoneOffsetFromUTC = zone
    for name in ("Series", "Content", "InstanceCreation"):
        setattr(dataset, f"{name}Date", when.strftime("%Y%m%d"))
        setattr(dataset, f"{name}Time", when.strftime("%H%M%S"))


def add_equipment(dataset: Dataset, heatmap: Heatmap, when: datetime) -> None:
    """Name medcam as the equipment, and as the one that contributed the processing."""
    contribution = Dataset()
    for each in (dataset, contribution):
        each.Manufacturer = "medcam"
        each.ManufacturerModelName = "medcam"
        each.SoftwareVersions = __version__
        each.DeviceSerialNumber = __version__
    contribution.PurposeOfReferenceCodeSequence = [code("109102", "DCM", "Processing Equipment")]
    contribution.ContributionDateTime = when.strftime("%Y%m%d%H%M%S%z")
    contribution.ContributionDescription = own_text(f"{WARNING}. {derivation(heatmap)}", dataset, 1024)
    dataset.ContributingEquipmentSequence = [contribution]


def keeps_places(heatmap: Heatmap) -> bool:
    """Tell whether the voxels of a heatmap lie where pixels of its source lie: not on another grid, nor in tiles of a mosaic."""
    source, (columns, rows, count) = heatmap.source, heatmap.grid.shape
    headers = [header for k in range(len(source.slices)) if (header := source.header(k)) is not None]
    return len(source.slices) == count and {(h.Columns, h.Rows) for h in headers} == {(columns, rows)}


def add_references(dataset: Dataset, source: Source, *, same_place: bool) -> None:
    """Refer to the source's images, one by one, with the frames that were used, and as their series.

    Parameters
    ----------
    same_place
        Whether each pixel lies where a pixel of the source lies.
    """
    instances = source_instances(source)
    frames: dict[int, list[int]] = {n: [] for n in range(len(instances))}
    for picture in source.slices:
        if picture is not None and picture.number is not None:
            frames[picture.instance].append(picture.number)
    dataset.SourceImageSequence = [
        source_image(header, sorted(frames[n]), same_place=same_place) for n, header in enumerate(instances)
    ]
    series: dict[str, list[Dataset]] = {}
    for header in instances:
        series.setdefault(str(header.SeriesInstanceUID), []).append(reference(header))
    dataset.ReferencedSeriesSequence = []
    for uid, items in series.items():
        item = Dataset()
        item.SeriesInstanceUID, item.ReferencedInstanceSequence = uid, items
        dataset.ReferencedSeriesSequence.append(item)


def source_image(header: Dataset, frames: Sequence[int] = (), *, same_place: bool) -> Dataset:
    """Return an item of a Source Image Sequence.

    Parameters
    ----------
    frames
        Which frames of a multi-frame image, from 1; all if none is named.
    same_place
        Whether each pixel lies where the source's pixel lies.
    """
    item = reference(header)
    if frames:
        item.ReferencedFrameNumber = list(frames)
    item.PurposeOfReferenceCodeSequence = [code("121322", "DCM", "Source image for image processing operation")]
    item.SpatialLocationsPreserved = "YES" if same_place else "NO"
    return item


def reference(header: Dataset) -> Dataset:
    """Return an item that refers to an instance by its class and UID."""
    item = Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    return item


def add_pixel_history(dataset: Dataset, headers: Sequence[Dataset]) -> None:
    """Carry on what happened to the source's pixels and still shows: lossy compression, text burned in, a visible face."""
    lossy = [header for header in headers if _was_lossy(header)]
    if lossy:
        dataset.LossyImageCompression = "01"
        for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            copy_element(lossy[0], keyword, dataset)
    elif all(header.get("LossyImageCompression") == "00" for header in headers):
        dataset.LossyImageCompression = "00"
    burned = {header.get("BurnedInAnnotation") for header in headers}
    if "YES" in burned:
        dataset.BurnedInAnnotation = "YES"
    elif burned == {"NO"} or dataset.SOPClassUID != SecondaryCaptureImageStorage:
        # An object of several frames must say; a film of which nothing is known may leave it open.
        dataset.BurnedInAnnotation = "NO"
    features = {header.get("RecognizableVisualFeatures") for header in headers} & {"YES", "NO"}
    if features:
        dataset.RecognizableVisualFeatures = "YES" if "YES" in features else "NO"


def _was_lossy(header: Dataset) -> bool:
    syntax = getattr(header, "file_meta", {}).get("TransferSyntaxUID")
    return header.get("LossyImageCompression") == "01" or syntax in (JPEGBaseline8Bit, JPEGExtended12Bit)
