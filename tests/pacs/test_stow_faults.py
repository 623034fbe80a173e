"""DICOMweb services that answer oddly: no success is believed that is not said of the instance, and no secret leaves."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

from formats.dicom_phantom import GEOMETRIES, MARKERS, stored_values, write_series
from medcam.errors import UsageError
from medcam.pacs.peers import Web
from medcam.pacs.stow import credentials
from pacs.servers import free_port
from pacs.studies import states

Send = Callable[..., tuple[int, Any, str]]
# What a service answers: status, headers, body. It is given the instance and how many requests came before.
Answering = Callable[[Dataset, int], tuple[int, dict[str, str], bytes]]
JSON = {"Content-Type": "application/dicom+json"}
TOKEN = "eyJ.secret-token.x"


class Service:
    """An HTTP server of the test's own."""

    def __init__(self, answering: Answering) -> None:
        self.received: list[Dataset] = []
        self.headers: list[Message] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.headers.append(self.headers)
                # One part: after its own header, before the last boundary.
                content = body[body.index(b"\r\n\r\n") + 4 : body.rindex(b"\r\n--")]
                dataset = pydicom.dcmread(pydicom.filebase.DicomBytesIO(content))
                status, headers, text = answering(dataset, len(outer.received))
                outer.received.append(dataset)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(text)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"hi")

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/dicom-web"


@contextmanager
def service(answering: Answering) -> Iterator[Service]:
    made = Service(answering)
    try:
        yield made
    finally:
        made.server.shutdown()
        made.thread.join()
        made.server.server_close()


def stored(dataset: Dataset, *, failure: int | None = None, warning: int | None = None) -> bytes:
    """The body of a Store Instances Response about one instance."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    said = Dataset()
    # As many services do: the sequence of failures is there, and empty.
    said.FailedSOPSequence = []
    said.ReferencedSOPSequence = []
    if failure is not None:
        item.FailureReason = failure
        said.FailedSOPSequence = [item]
    else:
        if warning is not None:
            item.WarningReason = warning
        said.ReferencedSOPSequence = [item]
    return said.to_json().encode()


def test_an_empty_sequence_of_failures_is_no_failure(study: Path, send: Send) -> None:
    with service(lambda dataset, _: (200, JSON, stored(dataset))) as good:
        code, answer, _ = send(study, "--to", good.address)
    assert (code, states(answer)) == (0, ["sent"] * 4)


@pytest.mark.parametrize("kind", ["application/dicom+json; charset=utf-8", "Application/JSON"])
def test_an_answer_is_read_whatever_follows_its_type(kind: str, study: Path, send: Send) -> None:
    with service(lambda dataset, _: (200, {"Content-Type": kind}, stored(dataset))) as good:
        assert send(study, "--to", good.address)[0] == 0


def test_an_answer_in_xml_is_read(study: Path, send: Send) -> None:
    def xml(dataset: Dataset, _: int) -> tuple[int, dict[str, str], bytes]:
        text = (
            '<?xml version="1.0"?><NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">'
            '<DicomAttribute tag="00081199" vr="SQ" keyword="ReferencedSOPSequence"><Item number="1">'
            '<DicomAttribute tag="00081155" vr="UI" keyword="ReferencedSOPInstanceUID">'
            f'<Value number="1">{dataset.SOPInstanceUID}</Value></DicomAttribute>'
            "</Item></DicomAttribute></NativeDicomModel>"
        )
        return 200, {"Content-Type": "application/dicom+xml"}, text.encode()

    with service(xml) as good:
        code, answer, _ = send(study, "--to", good.address)
    assert (code, states(answer)) == (0, ["sent"] * 4), answer["instances"][0]["words"]


@pytest.mark.parametrize(
    ("reason", "words", "requests"),
    [
        (0xA700, "out of resources", 2),
        (0xA900, "does not fit", 1),
        (0xC000, "cannot understand", 1),
        (0x0122, "class", 1),
    ],
)
def test_a_failure_in_the_answer_is_believed_whatever_the_code_says(
    reason: int, words: str, requests: int, tmp_path: Path, send: Send
) -> None:
    (path,) = write_series(tmp_path, stored_values((5, 7, 1)), GEOMETRIES["axial"])
    for status in (200, 202, 409):
        with service(lambda dataset, _, status=status: (status, JSON, stored(dataset, failure=reason))) as strict:
            code, answer, _ = send(path, "--to", strict.address, "--attempts", 2)
            assert len(strict.received) == requests
        assert (code, states(answer)) == (1, ["waiting"])
        assert words in answer["instances"][0]["words"]


def test_a_warning_is_passed_on(study: Path, send: Send) -> None:
    with service(lambda dataset, _: (202, JSON, stored(dataset, warning=0xB000))) as good:
        code, answer, _ = send(study, "--to", good.address)
    assert code == 0
    assert "changed some elements (0xB000)" in answer["instances"][0]["words"]


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"<html>Log in, please</html>", b"[1]", b'{"00081199":{"vr":"SQ","Value":[]}}']
)
def test_success_without_a_word_of_the_instance_is_not_believed(body: bytes, study: Path, send: Send) -> None:
    with service(lambda *_: (200, JSON if body[:1] in b"{[" else {"Content-Type": "text/html"}, body)) as odd:
        code, answer, _ = send(study, "--to", odd.address)
    assert (code, states(answer)) == (1, ["waiting"] * 4)
    assert "check the path in --to" in answer["instances"][0]["words"]


def test_a_redirect_is_named_and_not_followed(study: Path, send: Send) -> None:
    with service(lambda *_: (302, {"Location": "/login"}, b"")) as elsewhere:
        code, answer, _ = send(study, "--to", elsewhere.address)
    assert (code, states(answer)) == (1, ["waiting"] * 4)
    assert "sends us on to another address" in answer["instances"][0]["words"]


@pytest.mark.parametrize(("status", "words"), [(401, "credentials"), (403, "not allow"), (404, "no DICOMweb service")])
def test_a_shut_door_is_knocked_at_once(status: int, words: str, study: Path, send: Send) -> None:
    with service(lambda *_: (status, {}, f"patient {MARKERS[0]}".encode())) as shut:
        code, answer, said = send(study, "--to", shut.address)
        assert len(shut.received) == 1
    assert (code, states(answer)) == (1, ["waiting"] * 4)
    assert all(words in row["words"] for row in answer["instances"])
    assert MARKERS[0] not in said + str(answer)


def test_a_busy_service_is_asked_again(study: Path, send: Send) -> None:
    with service(lambda dataset, before: (200, JSON, stored(dataset)) if before > 1 else (503, {}, b"later")) as busy:
        code, answer, said = send(study, "--to", busy.address)
    assert (code, states(answer)) == (0, ["sent"] * 4)
    assert "trying again" in said


def test_a_service_that_stalls_is_left_in_time(study: Path, send: Send) -> None:
    over = threading.Event()

    def stall(dataset: Dataset, _: int) -> tuple[int, dict[str, str], bytes]:
        over.wait(20)
        return 200, JSON, stored(dataset)

    with service(stall) as stalling:
        start = time.monotonic()
        code, answer, _ = send(study, "--to", stalling.address, "--timeout", 0.4, "--attempts", 1)
        assert time.monotonic() - start < 8
        over.set()
    assert (code, states(answer)) == (1, ["waiting"] * 4)
    assert any("no answer within" in row["words"] for row in answer["instances"])


def test_nobody_there_is_said(study: Path, send: Send) -> None:
    code, answer, _ = send(study, "--to", f"http://127.0.0.1:{free_port()}/dicom-web", "--attempts", 1)
    assert (code, states(answer)) == (1, ["waiting"] * 4)
    assert "cannot be reached" in answer["instances"][0]["words"]


def test_what_a_service_takes_only_uncompressed_is_decoded_and_that_is_said(tmp_path: Path, send: Send) -> None:
    (path,) = write_series(
        tmp_path, stored_values((36, 41, 1)), GEOMETRIES["oblique"], transfer_syntax=JPEG2000Lossless
    )

    def plain_only(dataset: Dataset, _: int) -> tuple[int, dict[str, str], bytes]:
        compressed = dataset.file_meta.TransferSyntaxUID.is_encapsulated
        return 200, JSON, stored(dataset, failure=0xC122 if compressed else None)

    with service(plain_only) as old:
        code, answer, _ = send(path, "--to", old.address)
        arrived = old.received[-1]
    assert code == 0
    assert "rewritten on the way as Explicit VR Little Endian" in answer["instances"][0]["words"]
    original = pydicom.dcmread(path)
    assert arrived.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert arrived.SOPInstanceUID == original.SOPInstanceUID
    assert (arrived.pixel_array == original.pixel_array).all()


def test_credentials_go_to_the_service_and_nowhere_else(
    study: Path, spool: Path, send: Send, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MEDCAM_DICOMWEB_TOKEN", f" {TOKEN}\n")
    # A .netrc that nobody named must not outdo it.
    netrc = study.parent / "netrc"
    netrc.write_text("machine 127.0.0.1 login other password nobody-said-so\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with caplog.at_level(logging.DEBUG), service(lambda dataset, _: (200, JSON, stored(dataset))) as good:
        code, answer, said = send(study, "--to", good.address)
        assert [headers["Authorization"] for headers in good.headers] == [f"Bearer {TOKEN}"] * 4
    assert code == 0
    texts = [said, json.dumps(answer), *(record.getMessage() for record in caplog.records)]
    assert not any(TOKEN in text for text in texts)
    assert not any(TOKEN.encode() in path.read_bytes() for path in spool.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("environment", "url", "words"),
    [
        ({"TOKEN": "a", "USER": "b", "PASSWORD": "c"}, "https://pacs/dicom-web", "both"),
        ({"USER": "b"}, "https://pacs/dicom-web", "go together"),
        ({"PASSWORD": "s3cret"}, "https://pacs/dicom-web", "go together"),
        ({"TOKEN": "s3cret"}, "http://pacs/dicom-web", "readable"),
        ({"USER": "b", "PASSWORD": "s3cret"}, "http://10.0.0.7/dicom-web", "readable"),
        ({"TOKEN": "s3cret\nX-Other: y"}, "https://pacs/dicom-web", "no bearer token"),
        ({"TOKEN": "s3crét"}, "https://pacs/dicom-web", "no bearer token"),
    ],
)
def test_credentials_that_cannot_be_used_are_refused_without_being_repeated(
    environment: dict[str, str], url: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        credentials({f"MEDCAM_DICOMWEB_{name}": value for name, value in environment.items()}, Web(url))
    assert "s3cr" not in str(caught.value)


def test_no_credentials_are_none_and_plain_http_on_this_machine_may_have_them() -> None:
    assert credentials({}, Web("http://pacs/dicom-web")) is None
    assert credentials({"MEDCAM_DICOMWEB_TOKEN": "t"}, Web("http://localhost:8042/dicom-web")) is not None
    assert credentials({"MEDCAM_DICOMWEB_TOKEN": "t"}, Web("http://[::1]:8042/dicom-web")) is not None
