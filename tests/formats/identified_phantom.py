"""A header in which every standard attribute says something of a patient, on three levels, and private ones too."""

from __future__ import annotations

from collections.abc import Iterable

from pydicom import DataElement, Dataset
from pydicom.datadict import DicomDictionary, dictionary_VR
from pydicom.dataset import FileMetaDataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

DATE, TIME, AGE, NUMBER = "18870611", "135724.733125", "087Y", 733125
UID_ROOT = "1.2.733125."
# Whatever of these is found in bytes came from the patient.
TRACES = (b"PHI", DATE.encode(), b"135724", AGE.encode(), b"733125", UID_ROOT.encode())
# Identify the object itself, or say how its bytes are to be read.
_APART = {"SOPClassUID", "SpecificCharacterSet", "PixelData", "FloatPixelData", "DoubleFloatPixelData"}
_TEXTS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")


def standard_tags() -> list[BaseTag]:
    """Every attribute of pydicom's dictionary that may stand in a data set."""
    return [
        Tag(number)
        for number, (_, _, _, _, keyword) in DicomDictionary.items()
        if keyword and keyword not in _APART and 0x0008 <= Tag(number).group < 0x7F00 and Tag(number).element
    ]


def telling(tag: BaseTag, depth: int = 0) -> DataElement | None:
    """An attribute with a value that says which attribute it is; None where its VR has no value that could tell."""
    vr = dictionary_VR(tag).split(" or ")[0]
    text = f"PHI{tag:08X}"
    if vr in _TEXTS:
        return DataElement(tag, vr, text)
    if vr == "SQ":
        item = Dataset()
        for inner in (0x00100010, 0x00080014, 0x00081030, 0x00080020):
            item.add(telling(Tag(inner)))
        item.add_new(0x00090010, "LO", "PHI PRIVATE")
        item.add_new(0x00091001, "LO", "PHI PRIVATE")
        if depth:
            item.add(telling(Tag(0x52009229), depth - 1))
        return DataElement(tag, "SQ", [item])
    values = {
        "AS": AGE, "DA": DATE, "TM": TIME, "DT": f"{DATE}{TIME}", "UI": f"{UID_ROOT}{tag:d}", "DS": str(NUMBER), "IS": str(NUMBER),
        "OB": text.encode() + b" ", "OW": text.encode() + b" ", "UN": text.encode() + b" ",
    }  # fmt: skip
    return DataElement(tag, vr, values[vr]) if vr in values else None


def identified(tags: Iterable[BaseTag]) -> Dataset:
    """A header with all these attributes, at its top and in the items of a sequence that the profile keeps."""
    header = Dataset()
    for tag in tags:
        element = telling(tag, depth=2)
        if element is not None:
            header.add(element)
    header.SOPClassUID = MRImageStorage
    header.SOPInstanceUID, header.StudyInstanceUID = f"{UID_ROOT}1", f"{UID_ROOT}2"
    header.SeriesInstanceUID = f"{UID_ROOT}3"
    header.Modality, header.Rows, header.Columns = "MR", 5, 7
    header.BurnedInAnnotation = "NO"
    header.add_new(0x00090010, "LO", "PHI PRIVATE")
    header.add_new(0x00091001, "LO", "PHI PRIVATE")
    header.file_meta = FileMetaDataset()
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.SourceApplicationEntityTitle = "PHISENDER"
    return header
