"""The receiving side of a node: who comes in, what is taken, what each refusal says, and that nobody can hold it up."""

from __future__ import annotations

import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from damaged_associations import command, data, hammer, request
from pydicom.uid import MPEG2MPML, JPEG2000Lossless, JPEGLSLossless, RLELossless
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import CTImageStorage, MRImageStorage, SecondaryCaptureImageStorage, SegmentationStorage

from formats.dicom_phantom import GEOMETRIES, MARKERS, stored_values, write_series
from medcam.errors import InputError, UsageError
from medcam.pacs import receiving
from medcam.pacs.admission import Door, Guests, Limits, networks
from medcam.pacs.inbox import Inbox
from medcam.pacs.peers import TlsFiles, tls_context
from medcam.pacs.receiving import Receiver, quiet_libraries
from pacs.servers import Certificates, make_certificates, tool

pytestmark = [
    # The library's sockets are closed by the one that ends its thread, and what it raises there is caught.
    pytest.mark.filterwarnings("ignore:unclosed <:ResourceWarning"),
]
CALLED, USUAL = Guests("MEDCAM"), Limits()


class Node:
    """A receiver, what it said, and its queue."""

    def __init__(self, folder: Path) -> None:
        self.inbox = Inbox(folder)
        self.said: list[str] = []
        self.port = 0
        self.receiver: Receiver

    def count(self) -> int:
        return self.inbox.held().count


@contextmanager
def node(folder: Path, *, guests: Guests = CALLED, limits: Limits = USUAL, secured: Any = None) -> Iterator[Node]:
    made = Node(folder / "queue")
    with quiet_libraries():
        made.receiver = Receiver(
            made.inbox, host="127.0.0.1", port=0, guests=guests, limits=limits, secured=secured, say=made.said.append, came=lambda: None
        )  # fmt: skip
        made.port = made.receiver.port
        made.receiver.start()
        try:
            yield made
        finally:
            made.receiver.stop(patience_s=5.0)


@pytest.fixture
def slices(tmp_path: Path) -> list[Path]:
    return write_series(tmp_path / "study", stored_values((7, 5, 4)), GEOMETRIES["oblique"])


def storescu(port: int, paths: list[Path], *words: str, called: str = "MEDCAM") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [tool("storescu"), "-v", "-aec", called, *words, "127.0.0.1", str(port), *map(str, paths)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def stored(port: int, paths: list[Path], *, calling: str = "TESTER") -> list[int | None]:
    """Send files with pynetdicom, and return the status of each; None where there was no answer."""
    own, sockets = AE(calling), []
    own.acse_timeout = own.dimse_timeout = own.network_timeout = 10
    watch = (evt.EVT_CONN_OPEN, lambda event: sockets.append(event.assoc.dul.socket.socket))
    headers = [pydicom.dcmread(path) for path in paths]
    contexts = {(one.SOPClassUID, one.file_meta.TransferSyntaxUID) for one in headers}
    opened = own.associate(
        "127.0.0.1", port, [build_context(*each) for each in contexts], ae_title="MEDCAM", evt_handlers=[watch]
    )  # fmt: skip
    found = [opened.send_c_store(one).get("Status") if opened.is_established else None for one in headers]
    if opened.is_established:
        opened.release()
    # pynetdicom leaves the socket open where the other side has hung up.
    for each in sockets:
        each.close()
    return found


def drips(connection: socket.socket) -> bool:
    """Send one more byte of a message without end, and tell whether anybody takes it."""
    try:
        connection.sendall(data(b"x"))
    except OSError:
        return False
    return True


def until(true: Callable[[], bool], *, within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def connection(port: int) -> socket.socket:
    found = socket.create_connection(("127.0.0.1", port), timeout=10)
    found.settimeout(10)
    return found


def answer(port: int, *parts: bytes) -> bytes:
    """The kind of PDU that comes after these bytes, or b'' if the node hangs up."""
    with connection(port) as open_one:
        for part in parts:
            open_one.sendall(part)
        try:
            return open_one.recv(1)
        except OSError:
            return b""


def test_dcmtk_stores_and_echoes_and_what_it_sent_is_on_disk(tmp_path: Path, slices: list[Path]) -> None:
    with node(tmp_path) as here:
        assert (
            subprocess.run([tool("echoscu"), "-aec", "MEDCAM", "127.0.0.1", str(here.port)], timeout=60).returncode == 0
        )
        done = storescu(here.port, slices)
        assert done.returncode == 0
        (series,) = here.inbox.series()
        assert (series.here, series.peer) == (4, "STORESCU@127.0.0.1")
        _, files = here.inbox.content(series.uid)
        kept = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, files)}
        for path in slices:
            sent = pydicom.dcmread(path)
            assert list(kept[sent.SOPInstanceUID]) == list(sent)
        assert here.said == []


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_compressed_images_are_kept_as_they_come(tmp_path: Path, syntax: str) -> None:
    paths = write_series(tmp_path / "in", stored_values((70, 64, 2)), GEOMETRIES["axial"], transfer_syntax=syntax)
    with node(tmp_path) as here:
        assert stored(here.port, paths) == [0, 0]
        (series,) = here.inbox.series()
        kept = [pydicom.dcmread(path) for path in here.inbox.content(series.uid)[1]]
    assert {one.file_meta.TransferSyntaxUID for one in kept} == {syntax}
    sent = {one.SOPInstanceUID: one.pixel_array for one in map(pydicom.dcmread, paths)}
    assert all((one.pixel_array == sent[one.SOPInstanceUID]).all() for one in kept)


def test_what_medcam_does_not_read_is_refused_by_negotiation(tmp_path: Path) -> None:
    own = AE("TESTER")
    wanted = [
        build_context(MRImageStorage), build_context(SecondaryCaptureImageStorage), build_context(SegmentationStorage),
        build_context(CTImageStorage, MPEG2MPML),
    ]  # fmt: skip
    with node(tmp_path) as here:
        opened = own.associate("127.0.0.1", here.port, wanted, ae_title="MEDCAM")
        assert [each.abstract_syntax for each in opened.accepted_contexts] == [MRImageStorage]
        opened.release()


@pytest.mark.parametrize(
    ("guests", "called", "calling", "words"),
    [
        (CALLED, "OTHER", "ME", "it calls another AE title"),
        (Guests("MEDCAM", frozenset({"SCANNER", "PACS"})), "MEDCAM", "ME", "not on the list"),
    ],
)
def test_strangers_are_rejected_in_words(tmp_path: Path, guests: Guests, called: str, calling: str, words: str) -> None:
    with node(tmp_path, guests=guests) as here:
        assert answer(here.port, request(called, calling)) == b"\x03"
        assert words in here.said[0]
        assert answer(here.port, request("MEDCAM", "PACS")) == b"\x02"


def test_addresses_that_are_not_on_the_list_are_hung_up_on(tmp_path: Path) -> None:
    with node(tmp_path, guests=Guests("MEDCAM", networks=networks(["10.0.0.0/8", "192.168.1.7"]))) as here:
        assert answer(here.port, request()) == b""
    guests = Guests("MEDCAM", networks=networks(["10.0.0.0/8", "192.168.1.7", "fd00::/8"]))
    asked = ("10.255.0.3", "192.168.1.7", "192.168.1.8", "fd00::5", "fe80::5%eth0", "::ffff:10.1.1.1", "127.0.0.1")
    assert [guests.expects(each) for each in asked] == [True, True, False, True, False, True, False]
    with pytest.raises(UsageError, match=r"10.0.0.1/8"):
        networks(["10.0.0.1/8"])


def test_an_address_that_comes_too_often_is_put_off(tmp_path: Path) -> None:
    with node(tmp_path, limits=Limits(per_minute=3)) as here:
        assert [answer(here.port, request()) for _ in range(5)] == [b"\x02"] * 3 + [b"\x03"] * 2
        assert "too often" in here.said[0]


def test_a_minute_later_it_may_come_again() -> None:
    now = [0.0]
    door = Door(CALLED, Limits(per_minute=2), lambda: now[0])
    came = []
    for now[0], address in ((0, "a"), (50, "a"), (59, "a"), (59, "b"), (60.5, "a"), (61, "a"), (111, "a")):
        came.append(door.enter("X", "MEDCAM", address=address) is None)
    assert came == [True, True, False, True, True, False, True]


def test_more_associations_than_are_allowed_are_put_off_and_those_that_say_nothing_hold_no_place(
    tmp_path: Path,
) -> None:
    with node(tmp_path, limits=Limits(associations=2)) as here, ExitStack() as stack:
        silent = [stack.enter_context(connection(here.port)) for _ in range(6)]
        for _ in range(2):
            stack.enter_context(open_one := connection(here.port))
            open_one.sendall(request())
            assert open_one.recv(1) == b"\x02"
        assert answer(here.port, request()) == b"\x03"
        assert "too many" in here.said[0]
        assert here.receiver.door.open_peers() == {"FUZZ@127.0.0.1"}
        open_one.close()
        until(lambda: answer(here.port, request()) == b"\x02")
        assert len(silent) == 6


def test_whoever_hangs_is_hung_up_on(tmp_path: Path) -> None:
    """Before the request, in the middle of a PDU, and in an association without a word: each connection ends in its time."""
    limits = Limits(opening_s=0.4, message_s=0.5, idle_s=0.6)
    half = data(b"x" * 1000)[:300]
    with node(tmp_path, limits=limits) as here, ExitStack() as stack:
        before = threading.active_count()
        hanging = [stack.enter_context(connection(here.port)) for _ in range(4)]
        hanging[1].sendall(request()[:60])
        # One sends without end, little by little: each PDU is in time, and the message never whole.
        stack.enter_context(dripping := connection(here.port)).sendall(request())
        assert dripping.recv(1 << 16)
        for each, more in ((hanging[2], b""), (hanging[3], half)):
            each.sendall(request())
            assert each.recv(1 << 16)
            each.sendall(more)
        start = time.monotonic()
        for each in hanging:
            while True:
                try:
                    if not each.recv(1 << 16):
                        break
                except ConnectionResetError:
                    break
        until(lambda: not drips(dripping))
        assert time.monotonic() - start < 8
        until(lambda: threading.active_count() <= before)
        assert here.receiver.door.open_peers() == frozenset()


def test_a_pdu_that_claims_to_be_large_is_not_waited_for(tmp_path: Path) -> None:
    with node(tmp_path) as here, connection(here.port) as claiming:
        claiming.sendall(request())
        assert claiming.recv(1 << 16)[:1] == b"\x02"
        start = time.monotonic()
        claiming.sendall(struct.pack(">BBI", 4, 0, 4 << 20) + bytes(100))
        assert claiming.recv(1) == b""
        assert time.monotonic() - start < 5


def test_a_peer_that_does_not_wait_for_answers_fills_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go = threading.Event(), threading.Event()

    def slowly(*_: object, **__: object) -> None:
        entered.set()
        assert go.wait(10)
        raise InputError("it is none")

    monkeypatch.setattr(receiving, "arrival", slowly)
    with node(tmp_path) as here, connection(here.port) as hasty:
        hasty.sendall(request())
        hasty.recv(1 << 16)
        for _ in range(3):
            hasty.sendall(data(command(), kind=3) + data(b"x" * 1000, kind=2))
        assert entered.wait(10)
        time.sleep(0.3)
        (open_one,) = here.receiver._server.active_associations
        assert open_one.dimse.msg_queue.qsize() == 0
        go.set()
        until(lambda: len(here.said) == 3)


@pytest.mark.parametrize(
    "limits",
    [Limits(queue_bytes=2000), Limits(series_instances=1), Limits(free_bytes=1 << 60)],
    ids=["queue", "series", "disk"],
)
def test_what_is_too_much_gets_out_of_resources(tmp_path: Path, slices: list[Path], limits: Limits) -> None:
    with node(tmp_path, limits=limits) as here:
        found = stored(here.port, slices)
        first = 0xA700 if limits.free_bytes > 1 << 50 else 0
        assert found == [first, *[0xA700] * 3]
        assert here.count() == (first == 0)
        assert "--" in here.said[0]
        # What is here already is acknowledged again.
        assert stored(here.port, slices[:1]) == [first]


def test_an_instance_that_is_too_large_costs_its_association_only(tmp_path: Path, slices: list[Path]) -> None:
    large = write_series(
        tmp_path / "large", np.zeros((1200, 1100, 1), np.uint16), GEOMETRIES["axial"], uid_seed="large"
    )
    with node(tmp_path, limits=Limits(instance_bytes=1 << 20)) as here:
        assert storescu(here.port, [*large, *slices]).returncode != 0
        assert here.count() == 0
        assert stored(here.port, slices) == [0] * 4


def test_a_full_disk_gets_out_of_resources_and_the_node_goes_on(
    tmp_path: Path, slices: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with node(tmp_path) as here:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", full)
            assert stored(here.port, slices) == [0xA700] * 4
        assert "No space left" in here.said[0]
        assert stored(here.port, slices) == [0] * 4


def test_what_cannot_be_understood_or_fails_has_its_status_and_tells_nothing_of_the_patient(
    tmp_path: Path, slices: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = pydicom.dcmread(slices[0])
    del bad.SeriesInstanceUID
    bad.save_as(tmp_path / "bad.dcm")
    with node(tmp_path) as here:
        assert stored(here.port, [tmp_path / "bad.dcm", slices[1]]) == [0xC000, 0]

        def broken(*_: object, **__: object) -> None:
            raise ValueError(MARKERS[0])

        monkeypatch.setattr(receiving, "arrival", broken)
        assert stored(here.port, slices[2:]) == [0x0110, 0x0110]
        assert "ValueError" in here.said[1]
        assert MARKERS[0] not in " ".join(here.said)


def test_damaged_connections_do_not_stop_it(
    tmp_path: Path, slices: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    with node(tmp_path, limits=Limits(opening_s=1.0, message_s=1.0, idle_s=2.0)) as here:
        before = threading.active_count()
        hammer(here.port, 54, seed=1)
        assert storescu(here.port, slices).returncode == 0
        assert here.count() == 4
        until(lambda: threading.active_count() <= before)
        assert here.receiver.door.open_peers() == frozenset()
        assert MARKERS[0] not in " ".join(here.said)
    told = capfd.readouterr()
    assert "Traceback" not in told.err


def test_a_stop_lets_what_is_half_here_end_and_takes_nothing_more(tmp_path: Path, slices: list[Path]) -> None:
    dataset = slices[0].read_bytes()
    dataset = dataset[144 + int.from_bytes(dataset[140:144], "little") :]
    header = pydicom.dcmread(slices[0])
    own = AE("TESTER")
    with node(tmp_path) as here:
        opened = own.associate("127.0.0.1", here.port, [build_context(MRImageStorage)], ae_title="MEDCAM")
        idle = connection(here.port)
        idle.sendall(request())
        assert idle.recv(1) == b"\x02"
        took = here.inbox.take
        entered, go = threading.Event(), threading.Event()

        def slowly(*given: Any, **named: Any) -> str:
            entered.set()
            assert go.wait(10)
            return took(*given, **named)

        here.inbox.take = slowly  # type: ignore[method-assign]
        found: list[Any] = []
        sending = threading.Thread(target=lambda: found.append(opened.send_c_store(header)))
        sending.start()
        assert entered.wait(10)
        stopping = threading.Thread(target=lambda: here.receiver.stop(patience_s=10.0))
        stopping.start()
        until(lambda: answer_or_refused(here.port) == b"")
        go.set()
        sending.join()
        stopping.join()
        assert found[0].Status == 0
        assert here.count() == 1
        idle.close()
        here.receiver.stop = lambda **_: None  # type: ignore[method-assign]
    assert dataset


def answer_or_refused(port: int) -> bytes:
    try:
        return answer(port, request())
    except OSError:
        return b""


def test_a_port_that_is_taken_is_refused_in_words(tmp_path: Path) -> None:
    with node(tmp_path) as here, pytest.raises(UsageError, match=f"port {here.port}: another program listens there"):
        Receiver(
            here.inbox, host="127.0.0.1", port=here.port, guests=CALLED, limits=Limits(), say=print, came=lambda: None
        )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def served(certificates: Certificates, *, clients: bool) -> ssl.SSLContext:
    authority = str(certificates.authority) if clients else None
    return tls_context(TlsFiles(authority, str(certificates.server), str(certificates.server_key)), server=True)


def test_with_tls_plain_words_are_refused_and_a_silent_client_keeps_nobody_out(
    tmp_path: Path, slices: list[Path], certificates: Certificates
) -> None:
    with node(tmp_path, secured=served(certificates, clients=False)) as here:
        silent = connection(here.port)
        assert storescu(here.port, slices).returncode != 0
        done = storescu(here.port, slices, "+tla", "+cf", str(certificates.authority))
        assert done.returncode == 0, done.stderr
        assert here.count() == 4
        silent.close()


def test_with_an_authority_for_clients_only_they_come_in(
    tmp_path: Path, slices: list[Path], certificates: Certificates
) -> None:
    trusted = ("+cf", str(certificates.authority))
    with node(tmp_path, secured=served(certificates, clients=True)) as here:
        assert storescu(here.port, slices, "+tla", *trusted).returncode != 0
        strange = ("+tls", str(certificates.stranger_key), str(certificates.stranger))
        assert storescu(here.port, slices, *strange, *trusted).returncode != 0
        assert here.count() == 0
        known = ("+tls", str(certificates.client_key), str(certificates.client))
        done = storescu(here.port, slices, *known, *trusted)
        assert done.returncode == 0, done.stderr
        assert here.count() == 4
