"""Codes of DICOM: what a thing is, in a word that machines know."""

from __future__ import annotations

from pydicom import Dataset


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """Return an item of a code sequence.

    References
    ----------
    DICOM PS3.3 section 8.8 (Code Sequence Macro).
    """
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
