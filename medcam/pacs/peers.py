"""Whom instances are sent to: `dicom://AET@host:port`, `dicoms://` (TLS) or the address of a DICOMweb service."""

from __future__ import annotations

import ipaddress
import json
import re
import ssl
from dataclasses import asdict, dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit

from medcam.errors import UsageError

_EXAMPLES = "dicom://AET@host:port, dicoms://AET@host:port or https://host/dicom-web"
_DEFAULT_PORT = {"dicom": 104, "dicoms": 2762}
# PS3.5, VR AE: up to 16 characters of the default repertoire, without backslash and control characters, not only spaces.
_AET = re.compile(r"[ -\[\]-~]{1,16}")


@dataclass(frozen=True)
class Node:
    """A DICOM node: who it is, where it listens, and whether TLS is spoken there."""

    aet: str
    host: str
    port: int
    tls: bool = False

    @property
    def address(self) -> str:
        """The node in one line, always the same for the same node."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'dicoms' if self.tls else 'dicom'}://{self.aet}@{host}:{self.port}"

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine."""
        return _is_loopback(self.host)


@dataclass(frozen=True)
class Web:
    """A DICOMweb service by its base URL, below which `/studies` lies."""

    url: str

    @property
    def address(self) -> str:
        """The service in one line, always the same for the same service."""
        return self.url

    @property
    def is_private(self) -> bool:
        """Whether nobody on the way can listen: TLS, or this machine itself."""
        parts = urlsplit(self.url)
        return parts.scheme == "https" or _is_loopback(parts.hostname or "")


@dataclass(frozen=True)
class TlsFiles:
    """Paths of PEM files, never their content.

    Parameters
    ----------
    authority
        Certificates that are trusted, or None for those of the system (for the web: of the package certifi).
    certificate, key
        Our own, for services that want to know their clients; without `key` the certificate's file holds it.
    name
        The host name that the peer's certificate is expected to have, where it is not the one in the address.
    """

    authority: str | None = None
    certificate: str | None = None
    key: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Peer:
    """A destination with all that is needed to speak to it, except credentials, which come from the environment.

    Parameters
    ----------
    calling
        Our own AE title.
    timeout_s
        How long one answer may take, besides the time that its bytes take on the way.
    commitment_port
        Where we listen for the promise to keep what was stored, if we ask for one.
    """

    to: Node | Web
    calling: str = "MEDCAM"
    tls: TlsFiles = field(default_factory=TlsFiles)
    timeout_s: float = 30.0
    commitment_port: int | None = None

    def to_json(self) -> str:
        """Return all of it as text; it holds no secret."""
        return json.dumps({**asdict(self), "to": self.to.address})


def peer_from_json(text: str) -> Peer:
    """Return the peer that `Peer.to_json` wrote."""
    values = json.loads(text)
    return Peer(**{**values, "to": destination(values["to"]), "tls": TlsFiles(**values["tls"])})


def destination(text: str, *, tls: bool = False) -> Node | Web:
    """Return the destination that a user wrote.

    Parameters
    ----------
    tls
        Whether a DICOM node speaks TLS though its address does not say so.

    Raises
    ------
    UsageError
        If it is no address, lacks a part, or holds credentials. The text itself is not repeated where it may hold a secret.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise UsageError(f"--to is no address that can be read; it looks like {_EXAMPLES}") from None
    if parts.password is not None or (parts.scheme in ("http", "https") and parts.username is not None):
        raise UsageError(
            "--to holds a user name or password, which every process on this machine could read there; give them by the "
            "environment: MEDCAM_DICOMWEB_USER and MEDCAM_DICOMWEB_PASSWORD, or MEDCAM_DICOMWEB_TOKEN"
        )
    if parts.query or parts.fragment:
        raise UsageError("--to goes on after its path (from '?' or '#'), where a token might stand; leave that away")
    if not parts.hostname:
        raise UsageError(f"--to names no host; it looks like {_EXAMPLES}")
    if parts.scheme in ("http", "https"):
        return Web(f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}")
    if parts.scheme not in _DEFAULT_PORT:
        raise UsageError(f"--to begins with '{parts.scheme}:', and medcam sends to {_EXAMPLES}")
    return _node(parts, port, tls or parts.scheme == "dicoms")


def _node(parts: SplitResult, port: int | None, tls: bool) -> Node:
    if parts.path.strip("/"):
        raise UsageError(f"a DICOM node's address ends with its port, without '{parts.path}'")
    if not parts.username:
        raise UsageError("--to names no AE title: write it before the host, dicom://AET@host:port")
    host = parts.hostname or ""
    return Node(aet(unquote(parts.username)), host, port or _DEFAULT_PORT["dicoms" if tls else "dicom"], tls)


def aet(text: str) -> str:
    """Return an AE title without the spaces around it.

    Raises
    ------
    UsageError
        If it is none: empty, longer than 16 characters, or with characters that an AE title cannot have.
    """
    title = text.strip(" ")
    if not title or not _AET.fullmatch(title):
        raise UsageError(
            f"'{text}' is no AE title: 1 to 16 characters, letters, digits, spaces and signs without backslash"
        )
    return title


def tls_context(files: TlsFiles, *, server: bool = False) -> ssl.SSLContext:
    """Return what TLS needs: who is trusted, and who we are. Peers without a trusted certificate are refused.

    Raises
    ------
    UsageError
        If a file is missing, is not PEM, does not belong to the other, or its key is locked by a password.
    """
    purpose = ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH
    try:
        context = ssl.create_default_context(purpose, cafile=files.authority)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"--tls-ca {files.authority} cannot be read as PEM certificates ({_why(error)})") from error
    if server and files.authority:
        context.verify_mode = ssl.CERT_REQUIRED
    if files.certificate:
        try:
            # A locked key would make OpenSSL ask at the terminal, and nobody may be there.
            context.load_cert_chain(files.certificate, files.key, password=lambda: b"")
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"--tls-cert {files.certificate} and its key cannot be used ({_why(error)}): both are PEM files that "
                "belong together, the key without a password"
            ) from error
    elif files.key:
        raise UsageError("--tls-key needs --tls-cert: the certificate that belongs to it")
    return context


def _why(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error.strerror or type(error).__name__)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
