"""Which series a node explains: what its user asked for, and never what medcam or another program made of images."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydicom import Dataset

from medcam.errors import UsageError
from medcam.formats.dicom_files import said
from medcam.pacs.classes import PROJECTIONS

# What a rule may ask about, and the element that answers.
_ASKED = {
    "modality": "Modality",
    "description": "SeriesDescription",
    "protocol": "ProtocolName",
    "sequence": "SequenceName",
    "body": "BodyPartExamined",
    "study": "StudyDescription",
    "station": "StationName",
}
_RULE = re.compile(r"\s*(?P<name>[a-z]+)\s*(?P<sign>!?[=~])\s*(?P<value>.*?)\s*")
KEYWORDS = ("SOPClassUID", "ImageType", "ContributingEquipmentSequence", *_ASKED.values())


@dataclass(frozen=True)
class Rule:
    """One condition on a series' header.

    Parameters
    ----------
    sign
        '=' the same, '~' holds these words, '!=' and '!~' their opposites; small and capital letters are the same.
    """

    name: str
    sign: str
    value: str

    def holds(self, header: Dataset) -> bool:
        """Tell whether a header meets the condition; what it does not say is ''."""
        found = str(said(header, _ASKED[self.name]) or "").strip().casefold()
        wanted = self.value.casefold()
        met = found == wanted if self.sign.endswith("=") else wanted in found
        return met != self.sign.startswith("!")


@dataclass(frozen=True)
class Choice:
    """What a node explains.

    Parameters
    ----------
    rules
        Alternatives, each of rules that must all hold; () for every series.
    derived
        Whether images that were derived from others are explained, too.
    """

    rules: tuple[tuple[Rule, ...], ...] = ()
    derived: bool = False

    def passes_over(self, header: Dataset) -> str:
        """Return why a series is not explained, in words, or '' if it is."""
        if any(said(each, "Manufacturer") == "medcam" for each in said(header, "ContributingEquipmentSequence") or ()):
            return "medcam made it of other images"
        kinds = _image_type(header)
        if "LOCALIZER" in kinds:
            return "it is a localizer"
        if not self.derived and kinds[:1] == ("DERIVED",) and str(said(header, "SOPClassUID")) not in PROJECTIONS:
            return "it is derived from other images; --derived takes such, too"
        if self.rules and not any(all(rule.holds(header) for rule in each) for each in self.rules):
            return "--only does not ask for it"
        return ""


def rules(text: str) -> tuple[Rule, ...]:
    """Return the rules in a text such as 'modality=MR,description~T1', which must all hold.

    Raises
    ------
    UsageError
        If it is none, or asks about what rules do not know.
    """
    found = []
    for part in text.split(","):
        match = _RULE.fullmatch(part)
        if match is None or match["name"] not in _ASKED or not match["value"]:
            raise UsageError(
                f"--only takes rules such as modality=MR,description~T1 (=, ~, !=, !~ and a value; about {', '.join(_ASKED)}), "
                f"not '{part.strip()}'"
            )
        found.append(Rule(match["name"], match["sign"], match["value"]))
    return tuple(found)


def _image_type(header: Dataset) -> tuple[str, ...]:
    value = said(header, "ImageType") or ()
    return tuple(str(each).upper() for each in ((value,) if isinstance(value, str) else value))
