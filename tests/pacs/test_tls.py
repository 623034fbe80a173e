"""TLS: Orthanc and dcmtk's storescp behind it, with and without client certificates, and DICOMweb behind a TLS proxy."""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pacs import servers
from pacs.servers import Certificates, Orthanc, Server, free_port, make_certificates, tool
from pacs.studies import states

# pynetdicom does not close a socket whose TLS did not come about.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <:ResourceWarning")
Send = Callable[..., tuple[int, Any, str]]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[Orthanc]:
    """An Orthanc that speaks DICOM only by TLS, and only with clients that its authority knows."""
    node = servers.orthanc(
        tmp_path_factory.mktemp("strict"),
        {
            "DicomTlsEnabled": True, "DicomTlsCertificate": str(certificates.server),
            "DicomTlsPrivateKey": str(certificates.server_key), "DicomTlsTrustedCertificates": str(certificates.authority),
            "DicomTlsRemoteCertificateRequired": True,
        },
    )  # fmt: skip
    node.start()
    yield node
    node.kill()


def address(node: Orthanc, host: str = "localhost") -> str:
    return f"dicoms://ORTHANC@{host}:{node.port}"


def test_a_known_client_is_let_in_by_a_known_server(
    strict: Orthanc, certificates: Certificates, study: Path, send: Send
) -> None:
    strict.empty()
    code, answer, _ = send(
        study, "--to", address(strict), "--tls-ca", certificates.authority, "--tls-cert", certificates.client,
        "--tls-key", certificates.client_key,
    )  # fmt: skip
    assert (code, states(answer)) == (0, ["sent"] * 4)
    assert len(strict.get("/instances")) == 4


def test_the_files_of_tls_are_remembered_for_resuming(
    strict: Orthanc, certificates: Certificates, study: Path, send: Send
) -> None:
    strict.empty()
    files = (
        "--tls-ca",
        certificates.authority,
        "--tls-cert",
        certificates.client,
        "--tls-key",
        certificates.client_key,
    )
    strict.kill()
    assert send(study, "--to", address(strict), *files, "--attempts", 1)[0] == 1
    strict.start()
    code, answer, _ = send("--resume")
    assert (code, states(answer)) == (0, ["sent"] * 4)


@pytest.mark.parametrize(
    ("host", "options", "words"),
    [
        ("localhost", {"--tls-ca": "authority"}, "wants to know its clients"),
        ("localhost", {"--tls-ca": "authority", "--tls-cert": "stranger", "--tls-key": "stranger_key"}, "certificate"),
        ("localhost", {"--tls-ca": "other_authority"}, "cannot be trusted"),
        ("127.0.0.1", {"--tls-ca": "authority"}, "cannot be trusted"),
        ("localhost", {}, "cannot be trusted"),
    ],
    ids=["no client certificate", "a stranger's certificate", "another authority", "another host name", "no authority"],
)
def test_whoever_is_not_known_is_refused_in_words(
    host: str, options: dict[str, str], words: str, strict: Orthanc, certificates: Certificates, study: Path, send: Send
) -> None:
    strict.empty()
    files = [word for option, name in options.items() for word in (option, getattr(certificates, name))]
    code, answer, _ = send(study, "--to", address(strict, host), *files, "--timeout", 5)
    assert (code, states(answer)) == (1, ["waiting"] * 4)
    assert words in answer["instances"][0]["words"]
    assert strict.get("/instances") == []


def test_a_server_known_by_another_name_is_let_in_by_that_name(
    strict: Orthanc, certificates: Certificates, study: Path, send: Send
) -> None:
    strict.empty()
    code, answer, _ = send(
        study, "--to", f"dicom://ORTHANC@127.0.0.1:{strict.port}", "--tls", "--tls-name", "localhost",
        "--tls-ca", certificates.authority, "--tls-cert", certificates.client, "--tls-key", certificates.client_key,
    )  # fmt: skip
    assert (code, states(answer)) == (0, ["sent"] * 4)


def test_speaking_plainly_to_a_node_that_wants_tls_is_refused_in_words(
    strict: Orthanc, study: Path, send: Send
) -> None:
    code, answer, _ = send(study, "--to", f"dicom://ORTHANC@127.0.0.1:{strict.port}", "--attempts", 1, "--timeout", 3)
    assert (code, states(answer)) == (1, ["waiting"] * 4)
    assert "--tls" in answer["instances"][0]["words"]


def test_speaking_tls_to_a_node_that_does_not_is_refused_in_words(
    orthanc: Orthanc, certificates: Certificates, study: Path, send: Send
) -> None:
    code, answer, _ = send(
        study, "--to", f"dicoms://ORTHANC@localhost:{orthanc.port}", "--tls-ca", certificates.authority, "--timeout", 3,
        "--attempts", 1,
    )  # fmt: skip
    assert (code, states(answer)) == (1, ["waiting"] * 4)
    assert "TLS" in answer["instances"][0]["words"]


def test_dcmtks_server_takes_instances_by_tls(
    certificates: Certificates, tmp_path: Path, study: Path, send: Send
) -> None:
    port = free_port()
    (tmp_path / "kept").mkdir()
    server = Server(
        [
            tool("storescp"), "--aetitle", "STORESCP", "--output-directory", str(tmp_path / "kept"),
            "+tls", str(certificates.server_key), str(certificates.server), "+cf", str(certificates.authority), str(port),
        ],
        port,
    )  # fmt: skip
    server.start()
    try:
        code, answer, _ = send(
            study, "--to", f"dicoms://STORESCP@localhost:{port}", "--tls-ca", certificates.authority,
            "--tls-cert", certificates.client, "--tls-key", certificates.client_key,
        )  # fmt: skip
    finally:
        server.kill()
    assert (code, states(answer)) == (0, ["sent"] * 4)
    assert len(list((tmp_path / "kept").iterdir())) == 4


@contextmanager
def tls_proxy(certificates: Certificates, http_port: int, *, ask_client: bool) -> Iterator[int]:
    """A TLS front of an HTTP server: Orthanc's own crashes in Debian 12's build."""

    class Relay(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            inner = http.client.HTTPConnection("127.0.0.1", http_port, timeout=30)
            inner.request("POST", self.path, body, dict(self.headers))
            answer = inner.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name in ("Content-Type", "Content-Encoding"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            inner.close()

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a refused handshake is what the test wants

    server = Server(("127.0.0.1", 0), Relay)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)
    if ask_client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificates.authority)
    # The handshake belongs to the handler's thread, or one silent client would stop all.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("ask_client", [False, True])
def test_dicomweb_goes_by_tls_with_or_without_a_client_certificate(
    ask_client: bool,
    orthanc: Orthanc,
    certificates: Certificates,
    study: Path,
    send: Send,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MEDCAM_DICOMWEB_USER", servers.USER)
    monkeypatch.setenv("MEDCAM_DICOMWEB_PASSWORD", servers.PASSWORD)
    # A variable of requests must not outdo --tls-ca.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates.other_authority))
    ours = ("--tls-cert", certificates.client, "--tls-key", certificates.client_key) if ask_client else ()
    with tls_proxy(certificates, orthanc.http_port, ask_client=ask_client) as port:
        code, answer, _ = send(
            study, "--to", f"https://localhost:{port}/dicom-web", "--tls-ca", certificates.authority, *ours
        )
    assert (code, states(answer)) == (0, ["sent"] * 4), answer["instances"][0]["words"]
    assert len(orthanc.get("/instances")) == 4


def test_dicomweb_behind_an_unknown_authority_or_without_our_certificate_is_refused(
    orthanc: Orthanc, certificates: Certificates, study: Path, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDCAM_DICOMWEB_TOKEN", "token-that-must-not-leave")
    with tls_proxy(certificates, orthanc.http_port, ask_client=True) as port:
        to = f"https://localhost:{port}/dicom-web"
        code, unknown, said = send(study, "--to", to)
        assert (code, states(unknown)) == (1, ["waiting"] * 4)
        assert "cannot be trusted; name its authority by --tls-ca" in unknown["instances"][0]["words"]
        code, strange, more = send(study, "--to", to, "--tls-ca", certificates.authority, "--attempts", 1)
        assert (code, states(strange)) == (1, ["waiting"] * 4)
        assert "token-that-must-not-leave" not in f"{unknown}{strange}{said}{more}"
    assert orthanc.get("/instances") == []
