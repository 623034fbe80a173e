"""A DICOM server that nobody can hold up: what pynetdicom waits for, or keeps, without end has an end here.

pynetdicom reads a PDU of any length that its header claims, for as long as that takes; keeps messages of any size, any number of them;
and does the handshake of TLS in the thread that lets everybody in.
"""

from __future__ import annotations

import secrets
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, final

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import A_P_ABORT
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from medcam.pacs.admission import Door, Limits, Refusal, plain_address

# PS3.8 9.3.1: type, reserved, length. Of the PDUs that are no data the largest is A-ASSOCIATE-RQ, with 128 contexts of many syntaxes.
_HEAD_BYTES = 6
_LARGEST_PDU_BYTES = 1 << 20
# A command comes with its data; what is beyond an instance's own bytes.
_BESIDES_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 18
# A line slower than this is not expected to carry images.
_SLOWEST_BYTES_PER_S = 50_000


class GuardedSocket(AssociationSocket):
    """The socket of one association, with an end to what it reads."""

    def __init__(self, assoc: Association, client_socket: socket.socket, *, limits: Limits, visit: Visit) -> None:
        super().__init__(assoc, client_socket=client_socket)
        self._limits = limits
        self.visit = visit
        self._message_bytes = 0
        self._since = 0.0
        self.serving = False
        client_socket.settimeout(limits.message_s)
        # Answers are small, and the peer waits for each.
        client_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def busy(self) -> bool:
        """Whether a message is half here, or is being answered."""
        return self.serving or self._message_bytes > _HEAD_BYTES

    @property
    def ready(self) -> bool:
        """Whether there is something to read, and room for it: one message at a time."""
        return not self.serving and super().ready

    def recv(self, nr_bytes: int) -> bytearray:
        """Return so many bytes, or fewer if the peer hangs up.

        Raises
        ------
        OSError
            If they are more than a PDU or an instance may have, or do not come in time. pynetdicom then closes the connection.
        """
        now = time.monotonic()
        if not self._message_bytes:
            self._since = now
        self._message_bytes += nr_bytes
        if nr_bytes > _LARGEST_PDU_BYTES or self._message_bytes > self._limits.instance_bytes + _BESIDES_BYTES:
            raise OSError("the peer sends more than is taken")
        content = bytearray()
        # A message may be larger than a PDU, and has its time; many small PDUs are no way to more.
        message_end = self._since + self._limits.message_s + self._message_bytes / _SLOWEST_BYTES_PER_S
        end = min(now + self._limits.message_s, message_end)
        while len(content) < nr_bytes:
            if time.monotonic() > end:
                raise TimeoutError("the peer sends too slowly")
            found = self._some(min(nr_bytes - len(content), _CHUNK_BYTES))
            if not found:
                break
            content += found
        return content

    def _some(self, most: int) -> bytes:
        if self.socket is None:
            return b""
        # A peer's second small write waits for our word on its first, which a system holds back for 40 ms unless told, each time.
        if hasattr(socket, "TCP_QUICKACK"):
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return self.socket.recv(most)

    def hang_up(self) -> None:
        """End the connection from another thread; whoever reads notices."""
        with suppress(OSError):
            if self.socket is not None:
                self.socket.shutdown(socket.SHUT_RDWR)

    def message_came(self) -> None:
        """Note that a message is whole and is to be answered before the next is read."""
        self._message_bytes, self.serving = 0, True

    def message_answered(self) -> None:
        """Note that the next message may be read."""
        self.serving = False

    def pdu_came(self) -> None:
        """Note that a PDU was whole that is no part of a message."""
        self._message_bytes = 0


class GuardedServer(ThreadedAssociationServer):
    """Takes connections, each in a thread of its own that ends with it.

    Parameters
    ----------
    door, limits
        Who comes in, and what is taken from them.
    secured
        What TLS needs, if it is spoken here; then nothing else is.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self,
        own: AE,
        address: tuple[str, int],
        aet: str,
        contexts: list[PresentationContext],
        ssl_context: ssl.SSLContext | None = None,
        evt_handlers: list[evt.EventHandlerType] | None = None,
        *,
        door: Door,
        limits: Limits,
        secured: ssl.SSLContext | None,
    ) -> None:
        self.door, self.limits, self.secured = door, limits, secured
        super().__init__(own, address, aet, contexts, ssl_context, evt_handlers, request_handler=_Connection)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Let a connection in, or hang up at once."""
        return self.door.knock(str(plain_address(client_address[0])))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a connection that fails is closed, and is no matter for anybody else."""


class _Connection(RequestHandler):
    """One connection, from its first byte to its last."""

    server: GuardedServer

    def handle(self) -> None:
        door, limits = self.server.door, self.server.limits
        address = str(plain_address(self.client_address[0]))
        visit = Visit(door, address)
        try:
            self.request.settimeout(limits.opening_s)
            if self.server.secured is not None:
                # Here, in the connection's own thread: the server's would let nobody in meanwhile.
                self.request = self.server.secured.wrap_socket(self.request, server_side=True)
            assoc = self._create_association()
            # The first socket told the state machine of the connection, and so does ours.
            assoc.dul.event_queue.get_nowait()
            assoc.dul.socket = GuardedSocket(assoc, self.request, limits=limits, visit=visit)
            setattr(assoc.dul, "run", _to_its_end(assoc.dul))  # noqa: B010  a method, which the type checker guards
            assoc.start()
            assoc.join()
        finally:
            visit.end()
            self._hang_up()

    def _hang_up(self) -> None:
        for step in (lambda: self.request.shutdown(socket.SHUT_RDWR), self.request.close):
            with suppress(OSError):
                step()


@final
class Visit:
    """What the door counts of one connection: first as one that has not said who it is, then as an association. No other has its name."""

    def __init__(self, door: Door, address: str) -> None:
        self._door, self.address = door, address
        self.name = secrets.token_hex(16)
        self._calling: str | None = None
        self._unnamed = True

    def enter(self, calling: str, called: str) -> Refusal | None:
        """Let the association in, or say why not."""
        refusal = self._door.enter(calling, called, address=self.address)
        if refusal is None:
            self._name()
            self._calling = calling
        # Else it still counts as one that may not stay.
        return refusal

    def end(self) -> None:
        """Forget it; called when both its threads have ended."""
        self._name()
        if self._calling is not None:
            self._door.leave(self._calling, self.address)

    def _name(self) -> None:
        if self._unnamed:
            self._unnamed = False
            self._door.leave_unnamed(self.address)


def _to_its_end(dul: DULServiceProvider) -> Callable[[], None]:
    """Return what the thread does that reads from the peer, with an end that the association's other thread hears of."""
    run = dul.run

    def running() -> None:
        # What a damaged PDU makes pynetdicom raise here ends the association; it would be printed besides.
        with suppress(Exception):
            run()
        # Else the other thread waits for a request until its time is over, though nobody is there any more.
        dul.to_user_queue.put(A_P_ABORT())

    return running


def entity(aet: str, limits: Limits) -> AE:
    """Return the application entity of a node."""
    own = AE(aet)
    own.maximum_pdu_size = _LARGEST_PDU_BYTES - 64
    own.acse_timeout, own.dimse_timeout, own.network_timeout = limits.opening_s, limits.idle_s, limits.idle_s
    # The door counts, and has words of its own.
    own.maximum_associations = 1 << 16
    return own
