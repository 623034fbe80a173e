"""Whose images these are: a patient and a study, copied byte by byte, and medcam's own words beside them.

References
----------
DICOM PS3.3 C.7.1 and C.7.2 (Patient, Study), C.12.1.1.2 (Specific Character Set).
"""

from __future__ import annotations

import copy
import unicodedata

from pydicom import Dataset
from pydicom.charset import convert_encodings
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement

# Elements of a patient and a study that must be there even when empty (type 2), and those that are copied where given.
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
    "PatientSexNeutered LongitudinalTemporalInformationModified"
)
# Of these, no standard object holds an empty one.
_NEVER_EMPTY = (
    "IssuerOfPatientIDQualifiersSequence OtherPatientIDsSequence PatientSpeciesDescription PatientSpeciesCodeSequence "
    "PatientBreedCodeSequence ResponsiblePersonRole DeidentificationMethod DeidentificationMethodCodeSequence "
    "ClinicalTrialSponsorName ClinicalTrialProtocolID ClinicalTrialSubjectID ClinicalTrialSubjectReadingID "
    "IssuerOfAccessionNumberSequence ProcedureCodeSequence"
)
_COPIED = frozenset(tag_for_keyword(keyword) for keyword in f"SpecificCharacterSet {_ALWAYS} {_WHERE_GIVEN}".split())
_TEXTS = ("LO", "LT", "PN", "SH", "ST", "UC", "UT")
_UTF8 = "ISO_IR 192"


def with_patient_of(header: Dataset, dataset: Dataset) -> Dataset:
    """Return a dataset with the patient and the study of a header in place of its own, byte by byte, and the header's
    character set; what its other texts hold beyond that character set is left out.

    Empty elements that a standard object would not hold are left out. Where the source names no character set, the bytes
    tell which one can be meant.
    """
    whose = Dataset()
    always, where_given, never_empty = _ALWAYS.split(), _WHERE_GIVEN.split(), _NEVER_EMPTY.split()
    for keyword in (*always, *(each for each in where_given if each in header and each not in never_empty)):
        setattr(whose, keyword, "")
    copied = [copy_element(header, keyword, whose) for keyword in (*always, *where_given)]
    charset = header.get("SpecificCharacterSet")
    if not charset:
        charset = _UTF8 if _is_utf8(b"".join(copied)) else "ISO_IR 100"
    whose.SpecificCharacterSet = charset
    # Tells pydicom that the bytes are encoded as they will be written, so that it leaves them alone.
    whose.set_original_encoding(False, True, convert_encodings(charset))
    for element in dataset if charset == _UTF8 else _fitted(dataset):
        if element.tag not in _COPIED:
            whose.add(element)
    return whose


def empty_patient_and_study(onto: Dataset) -> None:
    """Write down a patient and a study of whom nothing is known, in UTF-8."""
    for keyword in _ALWAYS.split():
        setattr(onto, keyword, "")
    onto.SpecificCharacterSet = _UTF8


def copy_element(header: Dataset, keyword: str, onto: Dataset) -> bytes:
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
    if dataset.SpecificCharacterSet != _UTF8:
        text = _ascii(text)
    text = " ".join(text.replace("\\", "/").split())
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _fitted(dataset: Dataset) -> Dataset:
    """Return a dataset whose texts, however deep, hold nothing beyond ASCII."""
    fitted = Dataset()
    for element in dataset:
        if element.VR == "SQ":
            element = DataElement(element.tag, "SQ", [_fitted(item) for item in element.value])
        elif element.VR in _TEXTS and element.value:
            several = element.VM > 1
            values = [_ascii(str(value)) for value in (element.value if several else [element.value])]
            element = DataElement(element.tag, element.VR, values if several else values[0])
        fitted.add(element)
    return fitted


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
