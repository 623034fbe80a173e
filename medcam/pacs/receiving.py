"""The receiving side of a node: C-STORE into the queue, and C-ECHO. Success is said when an instance is on disk, and never before.

References
----------
DICOM PS3.4 A (Verification), B (Storage), B.2.3 (statuses).
"""

from __future__ import annotations

import errno
import logging
import shutil
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, final

from pynetdicom import _config, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE

from medcam.errors import InputError, OutputError, UsageError
from medcam.pacs.admission import Door, Guests, Limits, peer_name
from medcam.pacs.arrivals import Arrival, arrival
from medcam.pacs.classes import CLASSES, SYNTAXES, VERIFICATION
from medcam.pacs.guarded import GuardedServer, GuardedSocket, entity
from medcam.pacs.inbox import Inbox

SUCCESS, PROCESSING_FAILURE, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0x0110, 0xA700, 0xC000
_POLL_S = 0.2
_RETRY_S = 0.05


@final
class Receiver:
    """Takes what is sent to one port into an inbox, from its start until it is stopped.

    Parameters
    ----------
    host, port
        Where it listens; '' for every address of the machine, and port 0 for any that is free.
    secured
        What TLS needs; with it, whoever speaks plainly is refused.
    say
        Told in words what was refused, without anything of a patient.
    came
        Called after each instance that was acknowledged.

    Raises
    ------
    UsageError
        If the port cannot be listened at.
    """

    def __init__(
        self,
        inbox: Inbox,
        *,
        host: str,
        port: int,
        guests: Guests,
        limits: Limits,
        secured: ssl.SSLContext | None = None,
        say: Callable[[str], object],
        came: Callable[[], object],
    ) -> None:
        self._inbox, self._limits, self._say, self._came = inbox, limits, say, came
        self.door = Door(guests, limits)
        own = entity(guests.called, limits)
        for each in CLASSES:
            own.add_supported_context(each, list(SYNTAXES))
        own.add_supported_context(VERIFICATION)
        handlers: list[evt.EventHandlerType] = [
            (evt.EVT_REQUESTED, self._asked),
            (evt.EVT_RELEASED, self._released),
            (evt.EVT_PDU_RECV, _pdu_came),
            (evt.EVT_DIMSE_RECV, _message_came),
            (evt.EVT_DIMSE_SENT, _message_answered),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_ECHO, lambda _: SUCCESS),
        ]
        try:
            self._server = own.make_server(
                (host or "0.0.0.0", port), evt_handlers=handlers, server_class=GuardedServer, door=self.door, limits=limits,
                secured=secured,
            )  # fmt: skip
        except OSError as error:
            busy = error.errno == errno.EADDRINUSE
            words = "another program listens there" if busy else error.strerror or str(error)
            raise UsageError(f"cannot listen at port {port}: {words}; choose another by --port") from error
        # What `shutdown` takes it off.
        own._servers.append(self._server)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), daemon=True)

    def start(self) -> None:
        """Begin to take connections."""
        self._thread.start()

    def stop(self, *, patience_s: float) -> None:
        """Take no more connections, let what is half here come to its end or to that of the patience, and hang up."""
        self.door.close()
        self._server.shutdown()
        end = time.monotonic() + patience_s
        while open_ones := self._server.active_associations:
            late = time.monotonic() > end
            for each in open_ones:
                if not each.is_established:
                    _guarded(each).hang_up()
                elif late or not _guarded(each).busy:
                    each.abort(block=False)
            if late:
                return
            time.sleep(_RETRY_S)

    def _asked(self, event: Any) -> None:
        guarded, request = event.assoc.dul.socket, event.assoc.requestor.primitive
        if not isinstance(request, A_ASSOCIATE):
            # The peer is gone before it asked.
            event.assoc.is_aborted = True
            return
        refusal = guarded.visit.enter(request.calling_ae_title, request.called_ae_title)
        if refusal is None:
            return
        self._say(f"refused an association from {guarded.visit.address}: {refusal.words}")
        event.assoc.acse.send_reject(refusal.result, refusal.source, refusal.reason)
        event.assoc.kill()

    def _released(self, event: Any) -> None:
        # If the disk is full, the series waits as if its peer had been cut off.
        with suppress(OutputError):
            self._inbox.released(_guarded(event.assoc).visit.name)

    def _store(self, event: Any) -> int:
        try:
            return self._kept(event)
        except InputError as error:
            return self._refused(event, CANNOT_UNDERSTAND, str(error))
        except OutputError as error:
            return self._refused(event, OUT_OF_RESOURCES, str(error))
        except MemoryError:
            return self._refused(event, OUT_OF_RESOURCES, "there is not enough memory for an instance")
        except Exception as error:  # noqa: BLE001  whatever one instance is like, the node goes on. Its words may quote a header.
            return self._refused(event, PROCESSING_FAILURE, f"unexpected {type(error).__name__}")

    def _kept(self, event: Any) -> int:
        request = event.request
        one = arrival(
            request.DataSet.getvalue(), uid=str(request.AffectedSOPInstanceUID or ""), sop_class=str(request.AffectedSOPClassUID or ""),
            syntax=str(event.context.transfer_syntax), peer=_peer(event.assoc),
        )  # fmt: skip
        if not self._inbox.has(one):
            self._refuse_excess(one)
        self._inbox.take(one, at=time.time(), association=_guarded(event.assoc).visit.name)
        self._came()
        return SUCCESS

    def _refuse_excess(self, one: Arrival) -> None:
        limits, held = self._limits, self._inbox.held(one.series)
        if len(one.content) > limits.instance_bytes:
            raise OutputError("an instance is larger than is taken (--max-instance)")
        if held.of_series >= limits.series_instances:
            raise OutputError(f"a series has more than {limits.series_instances} instances (--max-series)")
        if held.size + len(one.content) > limits.queue_bytes:
            raise OutputError("the queue is as full as it may be (--max-queue)")
        if shutil.disk_usage(self._inbox.folder).free - len(one.content) < limits.free_bytes:
            raise OutputError("the disk has less left free than it should have (--keep-free)")

    def _refused(self, event: Any, status: int, words: str) -> int:
        self._say(f"refused an instance from {_peer(event.assoc)} (0x{status:04X}): {words}")
        return status


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep pynetdicom and pydicom from telling of every message and odd value, and from quoting them, while the block lasts."""
    logger, level, handlers = (
        logging.getLogger("pynetdicom"),
        logging.getLogger("pynetdicom").level,
        _config.LOG_HANDLER_LEVEL,
    )
    logger.setLevel(logging.CRITICAL)
    _config.LOG_HANDLER_LEVEL = "none"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        _config.LOG_HANDLER_LEVEL = handlers


def _peer(assoc: Association) -> str:
    return peer_name(str(assoc.requestor.ae_title), _guarded(assoc).visit.address)


def _guarded(assoc: Association) -> GuardedSocket:
    guarded: GuardedSocket = assoc.dul.socket  # type: ignore[assignment]
    return guarded


def _pdu_came(event: Any) -> None:
    if type(event.pdu).__name__ != "P_DATA_TF":
        event.assoc.dul.socket.pdu_came()


def _message_came(event: Any) -> None:
    # A request to cancel is not answered.
    if type(event.message).__name__ != "C_CANCEL_RQ":
        event.assoc.dul.socket.message_came()


def _message_answered(event: Any) -> None:
    event.assoc.dul.socket.message_answered()
