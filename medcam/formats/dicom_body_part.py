"""Which part of the body a derived image shows, and on which side.

References
----------
DICOM PS3.3 C.7.3.1.1.1 (Laterality), C.8.18.1 (Image Laterality); PS3.16 annex L (terms of BodyPartExamined).
"""

from __future__ import annotations

from pydicom import Dataset

# Terms of BodyPartExamined (PS3.16 annex L). Of these there is one, so there is no side to name ...
_UNPAIRED = (
    "ABDOMEN ABDOMENPELVIS AORTA BLADDER BRAIN CHEST CHESTABDOMEN CHESTABDPELVIS COCCYX COLON CSPINE CTSPINE DUODENUM "
    "ESOPHAGUS GALLBLADDER HEAD HEADNECK HEART JAW LARYNX LIVER LSPINE LSSPINE MEDIASTINUM NECK NECKCHEST "
    "NECKCHESTABDOMEN NECKCHESTABDPELV NOSE PANCREAS PELVIS PHARYNX PROSTATE RECTUM SKULL SPINE SPLEEN SSPINE STERNUM "
    "STOMACH THYMUS THYROID TLSPINE TRACHEA TSPINE UTERUS WHOLEBODY"
)

# ... and these are other words for one of them.
_SYNONYMS = {"THORAX": "CHEST"}


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
