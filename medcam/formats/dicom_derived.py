"""What every DICOM object made from a source series carries: whose it is, what it was made from, how, and by whom.

References
----------
DICOM PS3.3 C.7.1 to C.7.3 (Patient, Study, Series), C.7.5 (Equipment), C.12 (SOP Common), C.7.6.1 (General Image).
"""

from __future__ import annotations

import copy
import hashlib
import json
import unicodedata
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

from pydicom import Dataset
from pydicom.charset import convert_encodings
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, JPEGExtended12Bit

from medcam import __version__
from medcam.errors import OutputError
from medcam.formats.dicom_files import said
from medcam.volume import Heatmap, Source

WARNING = "NOT FOR DIAGNOSTIC USE"
_NAMESPACE = uuid.UUID("6c4fe886-fc81-4e30-b40a-803984c3fb32")
_IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")

# Elements of a patient and a study that must be there even when empty (type 2), and those that are copied if not empty.
_ALWAYS = (
    "PatientName PatientID PatientBirthDate PatientSex StudyInstanceUID StudyDate StudyTime ReferringPhysicianName "
    "StudyID AccessionNumber"
)
_WHERE_GIVEN = (
    "IssuerOfPatientID IssuerOfPatientIDQualifiersSequence TypeOfPatientID PatientBirthTime QualityControlSubject "
    "OtherPatientIDs OtherPatientIDsSequence OtherPatientNames EthnicGroup PatientComments PatientSpeciesDescription "
    "PatientSpeciesCodeSequence PatientBreedDescription PatientBreedCodeSequence ResponsiblePerson "
    "ResponsiblePersonRole ResponsibleOrganization PatientIdentityRemoved DeidentificationMethod "
    "DeidentificationMethodCodeSequence ClinicalTrialSponsorName ClinicalTrialProtocolID ClinicalTrialProtocolName "
    "ClinicalTrialSiteID ClinicalTrialSiteName ClinicalTrialSubjectID ClinicalTrialSubjectReadingID StudyDescription "
    "IssuerOfAccessionNumberSequence PhysiciansOfRecord NameOfPhysiciansReadingStudy ProcedureCodeSequence "
    "AdmittingDiagnosesDescription PatientAge PatientSize PatientWeight Occupation AdditionalPatientHistory "
    "PatientSexNeutered"
)

# Terms of BodyPartExamined (PS3.16 annex L). Of these there is one, so there is no side to name ...
_UNPAIRED = (
    "ABDOMEN ABDOMENPELVIS AORTA BLADDER BRAIN CHEST CHESTABDOMEN CHESTABDPELVIS COCCYX COLON CSPINE CTSPINE DUODENUM "
    "ESOPHAGUS GALLBLADDER HEAD HEADNECK HEART JAW LARYNX LIVER LSPINE LSSPINE MEDIASTINUM NECK NECKCHEST "
    "NECKCHESTABDOMEN NECKCHESTABDPELV NOSE PANCREAS PELVIS PHARYNX PROSTATE RECTUM SKULL SPINE SPLEEN SSPINE STERNUM "
    "STOMACH THYMUS THYROID TLSPINE TRACHEA TSPINE UTERUS WHOLEBODY"
)

# ... and these are other words for one of them.
_SYNONYMS = {"THORAX": "CHEST"}


def source_headers(source: Source) -> dict[int, Dataset]:
    """Return the header of each slice k that came from a DICOM file; slices interpolated into a gap have none.

    Raises
    ------
    OutputError
        If the source is not DICOM, or its headers lack the identifiers that a derived object must refer to.
    """
    headers = {k: header for k in range(len(source.slices)) if (header := source.header(k)) is not None}
    if not headers:
        raise OutputError(
            f"a DICOM object must refer to the DICOM images that it was made from, and this image was read from "
            f"{source.format}; write NIfTI or PNG instead, or explain the DICOM series itself"
        )
    missing = [keyword for keyword in _IDENTIFIERS if any(not header.get(keyword) for header in headers.values())]
    if missing:
        raise OutputError(
            f"a DICOM object must refer to the images that it was made from, and these lack {', '.join(missing)}; "
            "export the series again, or write NIfTI or PNG instead"
        )
    return headers


def derived_dataset(
    heatmap: Heatmap,
    headers: Sequence[Dataset],
    *,
    sop_class: str,
    modality: str,
    number: int,
    role: str,
    when: datetime,
) -> Dataset:
    """Return a dataset with all that does not depend on the kind of object, ready for its own modules.

    Parameters
    ----------
    headers
        Of the source's images, in the order of slices.
    number
        SeriesNumber; moved away from the source's own if equal.
    role
        What kind of object this is, in words that never change: the UIDs are made from it, the recipe and the source.
    when
        The moment to write down, with its time zone.
    """
    first = headers[0]
    dataset = Dataset()
    copy_patient_and_study(first, dataset)
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = derived_uid(heatmap, headers, f"{role} instance")
    dataset.SeriesInstanceUID = derived_uid(heatmap, headers, f"{role} series")
    dataset.Modality = modality
    dataset.SeriesNumber = number + 100 if said(first, "SeriesNumber") == number else number
    dataset.InstanceNumber = 1
    dataset.SeriesDescription = _series_description(heatmap, dataset)
    add_dates(dataset, first, when)
    add_equipment(dataset, heatmap, when)
    add_references(dataset, headers)
    dataset.DerivationDescription = own_text(derivation(heatmap), dataset, 1024)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationVersionName = f"medcam {__version__}"[:16]
    return dataset


def derived_uid(heatmap: Heatmap, headers: Sequence[Dataset], role: str) -> str:
    """Return a UID made from the recipe, the source's UIDs and the role: the same result is never stored under a second one.

    A recipe that does not know its model's digest could stand for many results, so the relevance itself is taken in.
    """
    values = [role, __version__, heatmap.recipe.to_json(), [str(header.SOPInstanceUID) for header in headers]]
    if not heatmap.recipe.model_sha256:
        values.append(hashlib.sha256(heatmap.relevance.tobytes()).hexdigest())
    return _uid(json.dumps(values, sort_keys=True))


def _uid(words: str) -> str:
    return f"2.25.{uuid.uuid5(_NAMESPACE, words).int}"


def frame_of_reference(header: Dataset) -> str:
    """Return the source's frame of reference; where it names none, one that is its series' own, which claims no kinship."""
    named = header.get("FrameOfReferenceUID")
    return str(named) if named else _uid(f"frame of reference {header.SeriesInstanceUID}")


def copy_patient_and_study(header: Dataset, onto: Dataset) -> None:
    """Copy whose images these are, byte by byte, with the character set that the bytes are in.

    Empty elements that a standard object would not hold are left out. Where the source names no character set, the bytes
    tell which one can be meant.
    """
    for keyword in _ALWAYS.split():
        setattr(onto, keyword, "")
    copied = [_copy(header, keyword, onto) for keyword in f"{_ALWAYS} {_WHERE_GIVEN}".split()]
    charset = header.get("SpecificCharacterSet")
    if not charset:
        charset = "ISO_IR 192" if _is_utf8(b"".join(copied)) else "ISO_IR 100"
    onto.SpecificCharacterSet = charset
    # Tells pydicom that the bytes are encoded as they will be written, so that it leaves them alone.
    onto.set_original_encoding(False, True, convert_encodings(charset))


def _copy(header: Dataset, keyword: str, onto: Dataset) -> bytes:
    """Copy an element if it is there and not empty, and return its bytes where they were copied as such."""
    element = header.get_item(keyword)
    if element is None or not element.value:
        return b""
    vr = dictionary_VR(keyword)
    if not element.is_raw or vr == "SQ":
        onto[keyword] = copy.deepcopy(header[keyword])
        return b""
    # Bytes that nobody decodes stay what they are, whatever their character set.
    value = element.value + b" " * (len(element.value) % 2)
    onto[keyword] = RawDataElement(element.tag, vr, len(value), value, 0, False, True)
    return bytes(value)


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def own_text(text: str, dataset: Dataset, longest: int) -> str:
    """Return medcam's own words as a value of a dataset: without what its character set or DICOM itself cannot hold."""
    if dataset.SpecificCharacterSet != "ISO_IR 192":
        text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    text = " ".join(text.replace("\\", "/").split())
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _series_description(heatmap: Heatmap, dataset: Dataset) -> str:
    verdict = "" if heatmap.maximum > 0 else "no positive evidence, "
    text = own_text(f"{heatmap.recipe.method}: {verdict}{heatmap.target}", dataset, 64 - 1 - len(WARNING))
    return f"{text} {WARNING}"


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
    words = f"{heatmap.recipe.method} of the network {heatmap.recipe.model}; {WARNING}"
    contribution.ContributionDescription = own_text(words, dataset, 1024)
    dataset.ContributingEquipmentSequence = [contribution]


def add_references(dataset: Dataset, headers: Sequence[Dataset]) -> None:
    """Refer to the source's images, one by one and as a series."""
    dataset.SourceImageSequence = [_reference(header) for header in headers]
    for item in dataset.SourceImageSequence:
        purpose = code("121322", "DCM", "Source image for image processing operation")
        item.PurposeOfReferenceCodeSequence = [purpose]
        item.SpatialLocationsPreserved = "YES"
    series = Dataset()
    series.SeriesInstanceUID = headers[0].SeriesInstanceUID
    series.ReferencedInstanceSequence = [_reference(header) for header in headers]
    dataset.ReferencedSeriesSequence = [series]


def _reference(header: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    return item


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """Return an item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def add_body_part(dataset: Dataset, header: Dataset) -> None:
    """Say which part of the body an image shows, and on which side.

    A known unpaired part has no side. Of any other the source's side is kept; where it names none, the side is left empty
    (unknown), or 'U' (unpaired) if it names no part either: validators want one or the other.
    """
    part = str(header.get("BodyPartExamined") or "").strip().upper()
    part = _SYNONYMS.get(part, part)
    if part:
        dataset.BodyPartExamined = part
    if part in _UNPAIRED.split():
        return
    side = header.get("ImageLaterality") or header.get("Laterality")
    if side in ("R", "L", "B"):
        dataset.ImageLaterality = side
    elif part:
        dataset.Laterality = ""
    else:
        dataset.ImageLaterality = "U"


def add_pixel_history(dataset: Dataset, headers: Sequence[Dataset]) -> None:
    """Carry on what happened to the source's pixels and still shows: lossy compression, text burned in, a visible face."""
    lossy = [header for header in headers if _was_lossy(header)]
    if lossy:
        dataset.LossyImageCompression = "01"
        for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            _copy(lossy[0], keyword, dataset)
    elif all(header.get("LossyImageCompression") == "00" for header in headers):
        dataset.LossyImageCompression = "00"
    burned = any(header.get("BurnedInAnnotation") == "YES" for header in headers)
    dataset.BurnedInAnnotation = "YES" if burned else "NO"
    features = {header.get("RecognizableVisualFeatures") for header in headers} & {"YES", "NO"}
    if features:
        dataset.RecognizableVisualFeatures = "YES" if "YES" in features else "NO"


def _was_lossy(header: Dataset) -> bool:
    syntax = getattr(header, "file_meta", {}).get("TransferSyntaxUID")
    return header.get("LossyImageCompression") == "01" or syntax in (JPEGBaseline8Bit, JPEGExtended12Bit)
