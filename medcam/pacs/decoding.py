"""The same instance written down without compression, for a PACS that takes no other."""

from __future__ import annotations

from typing import NamedTuple

from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from medcam.pacs.instances import Instance


class Decoded(NamedTuple):
    """An instance in another transfer syntax, or None, and in words what was done or why it could not be."""

    dataset: Dataset | None
    words: str


def decoded(instance: Instance, syntax: str) -> Decoded:
    """Return the instance with its pixels decoded, ready to be written in an uncompressed little endian syntax.

    Its UID stays: decoding changes how an instance is written down, not what it is.
    """
    given = UID(instance.syntax)
    name = given.name
    if not given.is_little_endian:
        return Decoded(None, f"the PACS does not take {name}, and medcam does not turn bytes round")
    dataset = instance.dataset()
    if given.is_encapsulated:
        try:
            dataset.decompress(generate_instance_uid=False)
        except Exception as error:  # noqa: BLE001  decoders raise nearly anything
            return Decoded(
                None, f"the PACS does not take {name}, and it cannot be decoded here ({type(error).__name__})"
            )
    elif given.is_deflated:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return Decoded(dataset, f"rewritten on the way as {UID(syntax).name}, since the PACS does not take {name}")
