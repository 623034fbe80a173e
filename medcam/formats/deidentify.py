"""A source without its patient: headers by the PS3.15 Basic Profile, before any writer sees them.

Which attributes it is about, and what the profile asks of each, comes from the table of the package `dicom-anonymizer`. What stands in
place of a UID or a patient is computed from a secret: the same in all that one secret was used for, and without it not to be traced back.

References
----------
DICOM PS3.15 E.2 (Basic Application Level Confidentiality Profile) and table E.1-1, edition 2026c.
"""

from __future__ import annotations

import base64
import copy
import functools
import hashlib
import hmac
import secrets
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataset import FileMetaDataset
from pydicom.tag import BaseTag, Tag

from medcam import __version__
from medcam.errors import InputError, UsageError
from medcam.formats.dicom_code import code
from medcam.formats.dicom_files import UNREADABLE, said
from medcam.geometry import Grid
from medcam.volume import Heatmap, Source, Volume

_EDITION = "2026c"
_SECRET_BYTES = 32
# What stands for a moment that nobody shall know: no real one, and valid in every value representation of DICOM.
_NO_MOMENT = datetime(1900, 1, 1, tzinfo=timezone.utc)


class _Rules(NamedTuple):
    """What the profile asks of an attribute: 'X' (remove), 'Z' (empty), 'D' (dummy), 'U' (another UID) or 'K' (go into its items).

    `ranges` are repeating groups, as (group, element, group mask, element mask), all to be removed.
    """

    actions: Mapping[BaseTag, str]
    ranges: tuple[tuple[int, int, int, int], ...]

    def action(self, tag: BaseTag) -> str | None:
        for group, element, group_mask, element_mask in self.ranges:
            if tag.group & group_mask == group and tag.element & element_mask == element & element_mask:
                return "X"
        return self.actions.get(tag)


def new_secret() -> bytes:
    """Return a secret for one run, to be forgotten after it: nobody can then trace a pseudonym back."""
    return secrets.token_bytes(_SECRET_BYTES)


def read_secret(path: Path) -> bytes:
    """Return the secret in a file, made with it if it is not there yet: for pseudonyms that stay the same from run to run.

    Raises
    ------
    UsageError
        If the file cannot be read or made, or holds less than a secret.
    """
    try:
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(new_secret().hex())
        found = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read or make the secret in {path}: {getattr(error, 'strerror', None) or 'no text'}"
        ) from error
    if len(found) < _SECRET_BYTES:
        raise UsageError(
            f"{path} holds {len(found)} characters, too few for a secret: delete it, and medcam makes a new one"
        )
    return hashlib.sha256(found.encode()).digest()


def deidentified(volume: Volume, secret: bytes) -> Volume:
    """Return a volume that no longer knows its patient. Voxels and places stay.

    UIDs, patient and digests are replaced consistently for one secret; dates and times go; private attributes go. The digest of the
    source goes too: whoever has the original could prove by it which patient this is, as by a UID.

    Raises
    ------
    InputError
        If the source says that text is burned into its pixels.
    UsageError
        If the package `dicom-anonymizer` is not installed.
    """
    source = volume.source
    if any(said(header, "BurnedInAnnotation") == "YES" for header in source.instances):
        raise InputError(
            "the source says that text is burned into its pixels (BurnedInAnnotation YES), where no header rule reaches it; blank "
            "the pixels first, or leave --deidentify away"
        )
    headers = tuple(_deidentified_header(header, secret) for header in source.instances)
    grid = volume.grid
    if grid.frame_of_reference:
        grid = Grid(grid.shape, grid.affine, _uid(grid.frame_of_reference, secret))
    return Volume(volume.voxels, grid, volume.unit, _deidentified_source(source, headers, secret))


def deidentified_heatmap(heatmap: Heatmap, volume: Volume, secret: bytes) -> Heatmap:
    """Return a heatmap that was made before its source was de-identified, on the source that `deidentified` returned."""
    inputs = tuple(_digest(each, secret) for each in heatmap.recipe.inputs)
    grid = Grid(heatmap.grid.shape, heatmap.grid.affine, volume.grid.frame_of_reference)
    notes = (*heatmap.notes, *(note for note in volume.source.notes if note not in heatmap.source.notes))
    return replace(heatmap, source=volume.source, grid=grid, recipe=replace(heatmap.recipe, inputs=inputs), notes=notes)


def moment(source: Source) -> datetime:
    """Return the moment that a result may name: now, or none that is real where the source's own dates were removed.

    A result is made soon after its images, and its dates would tell theirs.
    """
    removed = any(said(header, "LongitudinalTemporalInformationModified") == "REMOVED" for header in source.instances)
    return _NO_MOMENT if removed else datetime.now().astimezone()


def _deidentified_source(source: Source, headers: tuple[Dataset, ...], secret: bytes) -> Source:
    label, notes = source.label, list(source.notes)
    for before, after in zip(source.instances, headers, strict=True):
        # A series without a number is labelled by a digest of its UID.
        old, new = (hashlib.sha256(str(each.SeriesInstanceUID).encode()).hexdigest()[:6] for each in (before, after))
        label = label.replace(f"_{old}", f"_{new}")
    if headers:
        notes.append(
            "Headers were de-identified by the DICOM basic profile; names, numbers, dates and UIDs are not the real ones."
        )
        if not all(said(header, "BurnedInAnnotation") == "NO" for header in headers):
            notes.append("Whether text is burned into the pixels the source does not say: look before you share.")
        if source.modality in ("MR", "CT", "PT"):
            notes.append("A face can be reconstructed from images of a head: de-identified headers do not change that.")
    return replace(source, sha256=_digest(source.sha256, secret), label=label, instances=headers, notes=tuple(notes))


def _deidentified_header(header: Dataset, secret: bytes) -> Dataset:
    clean = _cleaned(header, secret)
    clean.PatientID = _patient(header, secret)
    clean.PatientName = f"ANON^{clean.PatientID}"
    clean.PatientIdentityRemoved = "YES"
    clean.DeidentificationMethod = f"medcam {__version__}: PS3.15 Basic Profile, edition {_EDITION}"
    done = [item for item in clean.get("DeidentificationMethodCodeSequence") or () if item.get("CodeValue") != "113100"]
    clean.DeidentificationMethodCodeSequence = [
        *done,
        code("113100", "DCM", "Basic Application Confidentiality Profile"),
    ]
    clean.LongitudinalTemporalInformationModified = "REMOVED"
    meta, old = FileMetaDataset(), getattr(header, "file_meta", None) or FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = clean.SOPClassUID, clean.SOPInstanceUID
    if "TransferSyntaxUID" in old:
        meta.TransferSyntaxUID = old.TransferSyntaxUID
    clean.file_meta = meta
    return clean


def _cleaned(dataset: Dataset, secret: bytes) -> Dataset:
    """Return a dataset by the rules, sequences included; what cannot be read, or is in no dictionary, cannot be judged and goes."""
    rules = _rules()
    clean = Dataset()
    for tag in dataset.keys():  # noqa: SIM118  iterating a Dataset parses its elements
        action = rules.action(tag)
        if action == "X" or not keyword_for_tag(tag):  # private attributes have no keyword
            continue
        vr = dictionary_VR(tag)
        if action is None and vr != "SQ":
            # As it lies there, undecoded; never the header's own element, which would change with ours.
            kept_as_is = dataset.get_item(tag)
            clean[tag] = kept_as_is if kept_as_is.is_raw else copy.copy(kept_as_is)
            continue
        try:
            element = dataset[tag]
            kept = _ACTIONS[action or "K"](element, secret)
        except (*UNREADABLE, NotImplementedError):
            continue
        if kept is not None:
            clean.add(kept)
    implicit, little = dataset.original_encoding
    if implicit is not None and little is not None:
        clean.set_original_encoding(implicit, little, dataset.original_character_set)
    return clean


def _emptied(element: DataElement, secret: bytes) -> DataElement:
    return DataElement(element.tag, element.VR, [] if element.VR == "SQ" else None)


def _dummy(element: DataElement, secret: bytes) -> DataElement | None:
    from dicomanonymizer.simpledicomanonymizer import replace_element

    # A source's header is never written as such, so it needs no sequence of dummies to keep a form.
    if element.VR == "SQ":
        return None
    if element.VR == "UI":
        return _other_uid(element, secret)
    dummy = DataElement(element.tag, element.VR, element.value)
    replace_element(dummy)
    return dummy


def _other_uid(element: DataElement, secret: bytes) -> DataElement:
    if element.VM == 0:
        return element
    several = element.VM > 1
    uids = [_uid(str(each), secret) for each in (element.value if several else [element.value])]
    return DataElement(element.tag, element.VR, uids if several else uids[0])


def _with_items(element: DataElement, secret: bytes) -> DataElement:
    return DataElement(element.tag, "SQ", [_cleaned(item, secret) for item in element.value])


_ACTIONS: Mapping[str, Callable[[DataElement, bytes], DataElement | None]] = {
    "Z": _emptied,
    "D": _dummy,
    "U": _other_uid,
    "K": _with_items,
}


@functools.cache
def _rules() -> _Rules:
    """Return the table, each attribute with the one of its actions that every object can bear.

    An action such as X/Z/D depends on whether the object needs the attribute: what is empty or a dummy fits where it may be absent, too.
    """
    try:
        from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--deidentify needs the package {error.name}: pip install 'medcam-xai[deidentify]'"
        ) from error
    table = dicom_anonymization_database_selector(f"dicomfields_{_EDITION}")
    actions: dict[BaseTag, str] = {}
    ranges: list[tuple[int, int, int, int]] = []
    for name, action in {"X": "X", "Z": "Z", "D": "D", "U": "U", "Z_D": "D", "X_Z": "Z", "X_D": "D", "X_Z_D": "D",
                         "X_Z_U_STAR": "K"}.items():  # fmt: skip
        for numbers in table[f"{name}_TAGS"]:
            if len(numbers) == 2:
                actions[Tag(numbers)] = action
            else:
                ranges.append(numbers)
    return _Rules(actions, tuple(ranges))


def _patient(header: Dataset, secret: bytes) -> str:
    """Return a pseudonym that is equal for equal patients: of their number and who gave it, or of all else that is known."""
    keywords = ["PatientID", "IssuerOfPatientID"]
    if not said(header, "PatientID"):
        keywords += ["PatientName", "PatientBirthDate"]
    known = [str(said(header, keyword) or "").strip() for keyword in keywords]
    if not any(known):
        # Of nobody in particular: one person for each study.
        known = [str(header.StudyInstanceUID)]
    return base64.b32encode(_keyed("patient\n" + "\n".join(known), secret))[:16].decode()


def _uid(uid: str, secret: bytes) -> str:
    return f"2.25.{uuid.UUID(bytes=_keyed(f'uid {uid}', secret)[:16], version=4).int}"


def _digest(digest: str, secret: bytes) -> str:
    return _keyed(f"digest {digest}", secret).hex()


def _keyed(text: str, secret: bytes) -> bytes:
    return hmac.new(secret, text.encode(), hashlib.sha256).digest()
