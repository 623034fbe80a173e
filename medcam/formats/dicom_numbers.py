"""Numbers as a Structured Report holds them: with a coded name and a coded unit.

Only standard codes are used: validators take a scheme of our own for a defect, and dcmtk, dcmqi and highdicom do not read codes
that are addresses. What such a code leaves open (a ratio of what?) the number's own tracking identifier says in words.

References
----------
DICOM PS3.16 TID 300 (Measurement), TID 4108 (Tracking Identifier), CID 7464 (how a value was derived).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

import numpy as np
from highdicom import sr
from pydicom.sr.codedict import codes

VOLUME = sr.CodedConcept("118565006", "SCT", "Volume")
AREA = sr.CodedConcept("42798000", "SCT", "Area")
SCORE = sr.CodedConcept("246262008", "SCT", "Score")
PROBABILITY = sr.CodedConcept("122157", "DCM", "Probability")
THRESHOLD = sr.CodedConcept("122411", "DCM", "Threshold Value")
RATIO = sr.CodedConcept("118586006", "SCT", "Ratio")
QUANTITY = sr.CodedConcept("246205007", "SCT", "Quantity")
_DISTANCE = sr.CodedConcept("121206", "DCM", "Distance")
# What is measured in a unit, and the unit in UCUM.
_UNITS = {
    "": (RATIO, "1", "no units"),
    "count": (QUANTITY, "1", "no units"),
    "mm": (_DISTANCE, "mm", "millimeter"),
    "mm2": (AREA, "mm2", "square millimeter"),
    "cm²": (AREA, "cm2", "square centimeter"),
    "mm3": (VOLUME, "mm3", "cubic millimeter"),
    "mL": (VOLUME, "ml", "milliliter"),
}
# A decimal string holds 16 characters.
_DIGITS = 9


def number(
    name: sr.CodedConcept,
    value: float | int,
    unit: str = "",
    *,
    derivation: str = "",
    label: sr.TrackingIdentifier | None = None,
) -> sr.Measurement:
    """Return a measurement.

    Parameters
    ----------
    unit
        'mm', 'mm2', 'cm²', 'mm3' or 'mL'; anything else is a number without a unit.
    derivation
        A keyword of CID 7464, such as 'Maximum'.
    label
        What the number is, in words.
    """
    _, symbol, meaning = _UNITS.get(unit, _UNITS[""])
    return sr.Measurement(
        name=name,
        value=float(f"{value:.{_DIGITS}g}"),
        unit=sr.CodedConcept(symbol, "UCUM", meaning),
        tracking_identifier=label,
        derivation=getattr(codes.cid7464, derivation) if derivation else None,
    )


def measured(
    measures: Mapping[str, object], label: Callable[[str], sr.TrackingIdentifier]
) -> tuple[list[sr.Measurement], list[str]]:
    """Return what was measured of a heatmap, and the names of what is not defined.

    DICOM has codes for why there is no number, but highdicom does not read a report with such a one.

    Parameters
    ----------
    measures
        By name: a number, a truth value, None or NaN for what is not defined, or any of them with its unit. Names without a unit
        that end in '_mm' or speak of a distance are millimetres.
    label
        Makes the words, and a UID, that tell one ratio from another.
    """
    numbers, undefined = [], []
    for name, given in measures.items():
        value, unit = given if isinstance(given, tuple) else (given, "mm" if _is_length(name) else "")
        words = name.replace("_", " ")
        if not isinstance(value, (bool, int, float, np.bool_, np.number)) or not math.isfinite(value):
            undefined.append(words)
            continue
        concept = _UNITS.get(str(unit), _UNITS[""])[0]
        numbers.append(number(concept, float(value), str(unit), label=label(words)))
    return numbers, undefined


def _is_length(name: str) -> bool:
    return bool(re.search(r"_mm$|distance|hausdorff", name))
