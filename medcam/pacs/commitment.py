"""Storage commitment: asking a node to promise that it keeps what it stored, and hearing its answer.

The answer may come on the association of the question, or minutes later on one that the node opens to us, so we listen as well.

References
----------
DICOM PS3.4 J (Storage Commitment Service Class, push model).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydicom import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, build_context, evt

from medcam.errors import UsageError
from medcam.pacs.association import association
from medcam.pacs.peers import Node, Peer, tls_context
from medcam.pacs.spool import Entry

_PUSH_MODEL, _ITS_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
_REQUEST = 1
_SUCCESS, _UNKNOWN_TRANSACTION = 0x0000, 0x0110
# How long the node may use the association of the question for its answer.
_SAME_ASSOCIATION_S = 1.0
_REASONS = {
    0x0110: "processing failure",
    0x0112: "it does not have the instance",
    0x0119: "the instance is there under another class",
    0x0122: "it does not promise anything for this class",
    0x0131: "it takes the question for an old one",
    0x0213: "it is out of resources",
}


@dataclass(frozen=True)
class Promise:
    """What a node said about keeping one instance: yes, no, or (None) nothing yet."""

    entry: Entry
    kept: bool | None
    words: str


@dataclass(frozen=True)
class _Report:
    """Filled by whichever thread hears the answer; `arrived` says when."""

    transaction: str
    said: Dataset = field(default_factory=Dataset)
    arrived: threading.Event = field(default_factory=threading.Event)

    def hear(self, event: Any) -> tuple[int, None]:
        information = event.event_information
        if information.get("TransactionUID") != self.transaction:
            return _UNKNOWN_TRANSACTION, None
        self.said.update(information)
        self.arrived.set()
        return _SUCCESS, None


def ask_commitment(
    entries: Sequence[Entry], peer: Peer, node: Node, *, port: int, wait_s: float
) -> tuple[Promise, ...] | None:
    """Return what the node promises for each instance, or None if it does not offer commitment.

    Parameters
    ----------
    port
        Where we listen; the node must know our AE title, address and this port.

    Raises
    ------
    NoConnectionError
        If the node cannot be reached.
    UsageError
        If the port cannot be listened at.
    """
    report = _Report(str(generate_uid(prefix=None)))
    handlers = [(evt.EVT_N_EVENT_REPORT, report.hear)]
    context = build_context(_PUSH_MODEL)
    give_up_at = time.monotonic() + wait_s
    with _listening(peer, node, port, handlers), association(peer, node, [context], handlers=handlers) as opened:
        if not opened.accepted_contexts:
            return None
        status, _ = opened.send_n_action(
            _question(report.transaction, entries),
            _REQUEST,
            _PUSH_MODEL,
            _ITS_INSTANCE,
        )
        if status.get("Status") != _SUCCESS:
            code = f" (0x{status.Status:04X})" if "Status" in status else ""
            return tuple(
                Promise(one, None, f"the PACS did not take the question for commitment{code}") for one in entries
            )
        report.arrived.wait(min(_SAME_ASSOCIATION_S, wait_s))
        if opened.is_established:
            opened.release()
        report.arrived.wait(max(give_up_at - time.monotonic(), 0))
    return tuple(_promise(one, report) for one in entries)


def _question(transaction: str, entries: Sequence[Entry]) -> Dataset:
    question = Dataset()
    question.TransactionUID = transaction
    question.ReferencedSOPSequence = [Dataset() for _ in entries]
    for item, entry in zip(question.ReferencedSOPSequence, entries, strict=True):
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = entry.instance.sop_class, entry.instance.uid
    return question


def _promise(entry: Entry, report: _Report) -> Promise:
    uid = entry.instance.uid
    if not report.arrived.is_set():
        words = "stored, and the PACS has not promised to keep it yet: does it know our AE title, address and port?"
        return Promise(entry, None, words)
    for item in report.said.get("FailedSOPSequence") or []:
        if item.get("ReferencedSOPInstanceUID") == uid:
            why = _REASONS.get(int(item.get("FailureReason") or 0x0110), "for a reason that the standard does not know")
            return Promise(entry, False, f"stored, but the PACS does not promise to keep it: {why}")
    if any(item.get("ReferencedSOPInstanceUID") == uid for item in report.said.get("ReferencedSOPSequence") or []):
        return Promise(entry, True, "stored, and the PACS promises to keep it")
    return Promise(entry, None, "stored, and the PACS's promise does not mention it")


@contextmanager
def _listening(peer: Peer, node: Node, port: int, handlers: list[Any]) -> Iterator[None]:
    ears = AE(peer.calling)
    ears.require_called_aet = True
    ears.acse_timeout = ears.dimse_timeout = ears.network_timeout = peer.timeout_s
    ears.add_supported_context(_PUSH_MODEL, scu_role=True, scp_role=True)
    secured = tls_context(peer.tls, server=True) if node.tls and peer.tls.certificate else None
    # Nobody else on the network needs to reach us if the node is on this machine.
    host = "127.0.0.1" if node.is_here else ""
    try:
        server = ears.start_server((host, port), block=False, ssl_context=secured, evt_handlers=handlers)
    except OSError as error:
        raise UsageError(
            f"cannot listen at port {port} for the PACS's promise ({error.strerror or error}); choose another by --commit-port"
        ) from error
    try:
        yield
    finally:
        if server is not None:
            server.shutdown()
