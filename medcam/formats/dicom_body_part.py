"""Which part of the body a derived image shows, and on which side.

References
----------
DICOM PS3.3 C.7.3.1.1.1 (Laterality), C.8.18.1 (Image Laterality), C.7.6.16.2.8 (Frame Anatomy); PS3.16 annex L (terms of
BodyPartExamined and their codes).
"""

from __future__ import annotations

import copy

from pydicom import Dataset

from medcam.formats.dicom_code import code
from medcam.formats.dicom_files import said

# Terms of BodyPartExamined, and their SNOMED codes. Of these there is one, so there is no side to name ...
_UNPAIRED = {
    "ABDOMEN": ("818981001", "Abdomen"),
    "ABDOMENPELVIS": ("818982008", "Abdomen and Pelvis"),
    "AORTA": ("15825003", "Aorta"),
    "BLADDER": ("89837001", "Bladder"),
    "BRAIN": ("12738006", "Brain"),
    "CHEST": ("816094009", "Chest"),
    "CHESTABDOMEN": ("416550000", "Chest and Abdomen"),
    "CHESTABDPELVIS": ("416775004", "Chest, Abdomen and Pelvis"),
    "COCCYX": ("64688005", "Coccyx"),
    "COLON": ("71854001", "Colon"),
    "CSPINE": ("122494005", "Cervical spine"),
    "CTSPINE": ("1217257000", "Cervico-thoracic spine"),
    "DUODENUM": ("38848004", "Duodenum"),
    "ESOPHAGUS": ("32849002", "Esophagus"),
    "GALLBLADDER": ("28231008", "Gallbladder"),
    "HEAD": ("69536005", "Head"),
    "HEADNECK": ("774007", "Head and Neck"),
    "HEART": ("80891009", "Heart"),
    "JAW": ("661005", "Jaw region"),
    "LARYNX": ("4596009", "Larynx"),
    "LIVER": ("10200004", "Liver"),
    "LSPINE": ("122496007", "Lumbar spine"),
    "LSSPINE": ("1217253001", "Lumbo-sacral spine"),
    "MEDIASTINUM": ("72410000", "Mediastinum"),
    "NECK": ("45048000", "Neck"),
    "NECKCHEST": ("417437006", "Neck and Chest"),
    "NECKCHESTABDOMEN": ("416152001", "Neck, Chest and Abdomen"),
    "NECKCHESTABDPELV": ("416319003", "Neck, Chest, Abdomen and Pelvis"),
    "NOSE": ("45206002", "Nose"),
    "PANCREAS": ("15776009", "Pancreas"),
    "PELVIS": ("816092008", "Pelvis"),
    "PHARYNX": ("54066008", "Pharynx"),
    "PROSTATE": ("41216001", "Prostate"),
    "RECTUM": ("34402009", "Rectum"),
    "SKULL": ("89546000", "Skull"),
    "SPINE": ("421060004", "Spine"),
    "SPLEEN": ("78961009", "Spleen"),
    "SSPINE": ("54735007", "Sacrum"),
    "STERNUM": ("56873002", "Sternum"),
    "STOMACH": ("69695003", "Stomach"),
    "THYMUS": ("9875009", "Thymus"),
    "THYROID": ("69748006", "Thyroid"),
    "TLSPINE": ("1217256009", "Thoraco-lumbar spine"),
    "TRACHEA": ("44567001", "Trachea"),
    "TSPINE": ("122495006", "Thoracic spine"),
    "UTERUS": ("35039007", "Uterus"),
    "WHOLEBODY": ("38266002", "Entire body"),
}
# ... and of these two.
_PAIRED = {
    "ANKLE": ("70258002", "Ankle joint"),
    "ARM": ("40983000", "Upper arm"),
    "BREAST": ("76752008", "Breast"),
    "CLAVICLE": ("51299004", "Clavicle"),
    "ELBOW": ("16953009", "Elbow joint"),
    "EXTREMITY": ("66019005", "Extremity"),
    "EYE": ("81745001", "Eye"),
    "FEMUR": ("71341001", "Femur"),
    "FINGER": ("7569003", "Finger"),
    "FOOT": ("56459004", "Foot"),
    "FOREARM": ("14975008", "Forearm"),
    "HAND": ("85562004", "Hand"),
    "HIP": ("29836001", "Hip"),
    "HUMERUS": ("85050009", "Humerus"),
    "KIDNEY": ("64033007", "Kidney"),
    "KNEE": ("72696002", "Knee"),
    "LEG": ("30021000", "Lower leg"),
    "LUNG": ("39607008", "Lung"),
    "RIB": ("113197003", "Rib"),
    "SCAPULA": ("79601000", "Scapula"),
    "SHOULDER": ("16982005", "Shoulder"),
    "THIGH": ("68367000", "Thigh"),
    "TOE": ("29707007", "Toe"),
    "WRIST": ("74670003", "Wrist joint"),
}
# These are other words for one of them.
_SYNONYMS = {"THORAX": "CHEST"}
# Says no more than that it is part of a body.
_SOME_STRUCTURE = ("91723000", "Anatomical Structure")


def add_body_part(dataset: Dataset, header: Dataset) -> None:
    """Say which part of the body an image shows, and on which side.

    A known unpaired part has no side. Of any other the source's side is kept; where it names none, the side is left empty
    (unknown), or 'U' (unpaired) if it names no part either: validators want one or the other.
    """
    part = _part(header)
    if part:
        dataset.BodyPartExamined = part
    if part in _UNPAIRED:
        return
    side = header.get("ImageLaterality") or header.get("Laterality")
    if side in ("R", "L", "B"):
        dataset.ImageLaterality = side
    elif part:
        dataset.Laterality = ""
    else:
        dataset.ImageLaterality = "U"


def frame_anatomy(header: Dataset) -> Dataset:
    """Return an item of a Frame Anatomy Sequence, which some readers cannot do without: the source's own if it has one.

    The group has no word for an unknown side; 'U' (unpaired) stands for it, as for parts that have none. A part that the
    source does not name by a known term is "Anatomical Structure".
    """
    for group in said(header, "SharedFunctionalGroupsSequence") or ():
        for item in said(group, "FrameAnatomySequence") or ():
            if said(item, "AnatomicRegionSequence") and said(item, "FrameLaterality"):
                own: Dataset = copy.deepcopy(item)
                return own
    item = Dataset()
    side = header.get("ImageLaterality") or header.get("Laterality")
    item.FrameLaterality = side if side in ("R", "L", "B") and _part(header) not in _UNPAIRED else "U"
    item.AnatomicRegionSequence = [anatomic_region(header) or code(_SOME_STRUCTURE[0], "SCT", _SOME_STRUCTURE[1])]
    return item


def anatomic_region(header: Dataset) -> Dataset | None:
    """Return the code of the part of the body that an image shows, or None where the source does not name one that is known."""
    for item in said(header, "AnatomicRegionSequence") or ():
        if said(item, "CodeValue") and said(item, "CodingSchemeDesignator") and said(item, "CodeMeaning"):
            return code(item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning)
    found = (_UNPAIRED | _PAIRED).get(_part(header))
    return None if found is None else code(found[0], "SCT", found[1])


def _part(header: Dataset) -> str:
    part = str(header.get("BodyPartExamined") or "").strip().upper()
    return _SYNONYMS.get(part, part)
