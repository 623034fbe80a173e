"""One association with a DICOM node: opened with exact contexts, watched for stalls, and explained when it fails."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from medcam import __version__
from medcam.pacs.answers import NoConnectionError
from medcam.pacs.peers import Node, Peer, tls_context

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext

# PS3.8 table 9-21: (source, diagnostic) of a rejection, in words, and whether trying again cannot help.
_REJECTIONS: dict[tuple[int, int], tuple[str, bool]] = {
    (1, 1): ("it gives no reason", True),
    (1, 2): ("it does not know the application context", True),
    (1, 3): (
        "it does not know our AE title '{calling}': ask its administrator to allow it, or give another by --as",
        True,
    ),
    (1, 7): ("it is not called '{called}': check the AE title in --to", True),
    (2, 1): ("it gives no reason", True),
    (2, 2): ("it does not speak this version of the protocol", True),
    (3, 1): ("it is busy", False),
    (3, 2): ("it has too many associations already", False),
}
_TRANSIENT = 2
# A certificate that is refused shows itself only when TLS 1.3 is read from.
_ALERT_S = 1.0


@contextmanager
def association(
    peer: Peer,
    node: Node,
    contexts: Sequence[PresentationContext],
    *,
    handlers: Sequence[Any] = (),
) -> Iterator[Association]:
    """Yield an open association, and release it at the end, or abort it after an error.

    One of which the node accepts no context is closed already; it has no `accepted_contexts`.

    Parameters
    ----------
    handlers
        What is called on events, as pynetdicom takes it.

    Raises
    ------
    NoConnectionError
        If there is no such node, it does not answer, it refuses us, or TLS does not come about.
    """
    from pynetdicom import AE, evt

    entity = AE(peer.calling)
    entity.implementation_version_name = f"medcam {__version__}"[:16]
    entity.acse_timeout = entity.connection_timeout = entity.dimse_timeout = peer.timeout_s
    entity.network_timeout = peer.timeout_s
    sockets: list[socket.socket] = []
    watch = (evt.EVT_CONN_OPEN, lambda event: sockets.append(_set_socket(event, peer.timeout_s)))
    tls = (tls_context(peer.tls), peer.tls.name or node.host) if node.tls else None
    try:
        opened = entity.associate(
            node.host, node.port, contexts=list(contexts), ae_title=node.aet, tls_args=tls,
            evt_handlers=[watch, *handlers],
        )  # fmt: skip
    except socket.gaierror as error:
        raise NoConnectionError(f"there is no host '{node.host}'; check --to", lasting=False) from error
    try:
        if not opened.is_established and not opened.rejected_contexts:
            raise _failure(opened, peer, node)
        yield opened
        if opened.is_established:
            opened.release()
    except BaseException:
        opened.abort()
        raise
    finally:
        # pynetdicom leaves the socket open where the other side has hung up.
        for each in sockets:
            each.close()


def _set_socket(event: Any, timeout_s: float) -> socket.socket:
    connection: socket.socket = event.assoc.dul.socket.socket
    # Bytes that nobody takes would block for ever: pynetdicom itself lets a socket wait without end.
    connection.settimeout(timeout_s)
    # An instance goes as two small writes, and the second would wait for the other side's delayed word on the first.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _failure(opened: Association, peer: Peer, node: Node) -> NoConnectionError:
    if opened.is_rejected:
        said = opened.acceptor.primitive
        found = (said.result_source or 1, said.diagnostic or 1) if said else (1, 1)
        words, lasting = _REJECTIONS.get(found, ("it gives a reason that the standard does not know", True))
        lasting = lasting and not (said and said.result == _TRANSIENT)
        words = words.format(calling=peer.calling, called=node.aet)
        return NoConnectionError(f"{node.address} rejects the association: {words}", lasting=lasting)
    return why_unreached(peer, node) or NoConnectionError(
        f"{node.address} took the connection and did not answer as a DICOM node within {peer.timeout_s:g} s; check the port, and "
        "whether it wants TLS (--tls)",
        lasting=False,
    )


def why_unreached(peer: Peer, node: Node) -> NoConnectionError | None:
    """Return what stands between us and a node, found by connecting once more, or None if nothing does.

    pynetdicom only logs why a connection failed.
    """
    try:
        with socket.create_connection((node.host, node.port), timeout=peer.timeout_s) as plain:
            if node.tls:
                _try_tls(plain, peer, node)
    except ssl.SSLCertVerificationError as error:
        return NoConnectionError(
            f"the certificate of {node.address} cannot be trusted ({error.verify_message}); name its authority by --tls-ca, or "
            "the host name that it was made for by --tls-name",
            lasting=True,
        )
    except ssl.SSLError as error:
        return NoConnectionError(_tls_words(error, node), lasting=True)
    except TimeoutError:
        return NoConnectionError(f"{node.address} does not answer within {peer.timeout_s:g} s", lasting=False)
    except OSError as error:
        return NoConnectionError(
            f"{node.address} cannot be reached ({error.strerror or error}): is it running, is the port right"
            f"{', and does it speak TLS' if node.tls else ''}?",
            lasting=False,
        )
    return None


def _try_tls(plain: socket.socket, peer: Peer, node: Node) -> None:
    with tls_context(peer.tls).wrap_socket(plain, server_hostname=peer.tls.name or node.host) as secured:
        secured.settimeout(_ALERT_S)
        try:
            secured.recv(1)
        except TimeoutError:
            return  # it waits for us to speak: all is well


def _tls_words(error: ssl.SSLError, node: Node) -> str:
    reason = (error.reason or "").replace("_", " ").lower()
    if "certificate required" in reason or "handshake failure" in reason:
        return (
            f"{node.address} wants to know its clients: give a certificate that it trusts by --tls-cert and --tls-key"
        )
    if "unknown ca" in reason or "bad certificate" in reason or "certificate" in reason:
        return f"{node.address} does not trust our certificate ({reason}): give one that it trusts by --tls-cert and --tls-key"
    return f"{node.address} does not speak TLS as we do ({reason or 'it hung up'}); check the port, or send without TLS"
