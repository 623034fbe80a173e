"""C-STORE: each instance as it is, byte by byte, or decoded where a node takes only uncompressed objects, and that is said.

References
----------
DICOM PS3.4 B (Storage Service Class), PS3.8 9.3.2.2 (presentation contexts: at most 128 an association).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING

from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import _config, build_context
from pynetdicom.presentation import PresentationContext

from medcam.pacs.answers import Answer, Verdict, answer
from medcam.pacs.association import association
from medcam.pacs.decoding import decoded
from medcam.pacs.peers import Node, Peer
from medcam.pacs.spool import Entry

if TYPE_CHECKING:
    from pynetdicom.association import Association

_MOST_CONTEXTS = 128
# An answer can come only when all is there. A line slower than this is not expected to carry images.
_SLOWEST_BYTES_PER_S = 50_000
_UNCOMPRESSED: tuple[str | UID, ...] = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)


def store(entries: tuple[Entry, ...], peer: Peer, node: Node) -> Generator[Answer, None, None]:
    """Send instances over as few associations as their classes need; see `medcam.pacs.answers.Store`."""
    for batch in _batches(entries):
        with association(peer, node, _contexts(batch)) as opened:
            for number, entry in enumerate(batch):
                yield _store_one(opened, entry, peer, number % 0xFFFF + 1)
                if opened.accepted_contexts and not opened.is_established:
                    return


def _batches(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Yield entries in order, as many as one association has contexts for: two for each class and syntax."""
    batch: list[Entry] = []
    pairs: set[tuple[str, str]] = set()
    for entry in entries:
        pair = _pair(entry)
        if pair not in pairs and 2 * len(pairs) + 2 > _MOST_CONTEXTS:
            yield batch
            batch, pairs = [], set()
        batch.append(entry)
        pairs.add(pair)
    if batch:
        yield batch


def _pair(entry: Entry) -> tuple[str, str]:
    return entry.instance.sop_class, entry.instance.syntax


def _contexts(entries: Sequence[Entry]) -> list[PresentationContext]:
    contexts = []
    for sop_class, syntax in dict.fromkeys(map(_pair, entries)):
        contexts.append(build_context(sop_class, syntax))
        # As a second proposal, not within the first: a node chooses one syntax of a context, and would often choose this.
        contexts.append(build_context(sop_class, [each for each in _UNCOMPRESSED if each != syntax]))
    return contexts


def _store_one(opened: Association, entry: Entry, peer: Peer, message: int) -> Answer:
    one = entry.instance
    accepted = [UID(c.transfer_syntax[0]) for c in opened.accepted_contexts if c.abstract_syntax == one.sop_class]
    if not accepted:
        return Answer(entry, Verdict.REFUSED, f"the PACS does not store objects of this class ({one.kind})")
    opened.dimse_timeout = peer.timeout_s + one.size / _SLOWEST_BYTES_PER_S
    if one.syntax in accepted:
        # pynetdicom sends a file's own bytes only with this switch; without it, everything is decoded and encoded again.
        _config.STORE_SEND_CHUNKED_DATASET = True
        return _said(entry, opened.send_c_store(entry.path, msg_id=message))
    plain = next((syntax for syntax in accepted if syntax in _UNCOMPRESSED), None)
    if plain is None:
        words = f"the PACS takes objects of this class, but not in {UID(one.syntax).name}"
        return Answer(entry, Verdict.REFUSED, words)
    rewritten = decoded(one, plain)
    if rewritten.dataset is None:
        return Answer(entry, Verdict.REFUSED, rewritten.words)
    answered = _said(entry, opened.send_c_store(rewritten.dataset, msg_id=message))
    if answered.verdict is not Verdict.STORED:
        return answered
    return Answer(entry, answered.verdict, f"{answered.words}, {rewritten.words}", answered.status)


def _said(entry: Entry, status: Dataset) -> Answer:
    if "Status" in status:
        return answer(entry, int(status.Status))
    return Answer(entry, Verdict.LATER, "the PACS hung up, or did not answer in time")
