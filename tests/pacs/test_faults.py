"""Nodes that misbehave: they stall, hang up in mid-instance, are full, refuse, lie or gossip. Nothing is lost, and nothing hangs."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, MRImageStorage, generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]

from formats.dicom_phantom import GEOMETRIES, MARKERS, stored_values, write_series
from medcam.pacs.spool import Spool
from pacs.servers import free_port
from pacs.studies import random_series, states

# pynetdicom does not close a socket that found nobody.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
Send = Callable[..., tuple[int, Any, str]]


class Node:
    """A node of pynetdicom in this process: what it answers is the test's, and it keeps what it was sent."""

    def __init__(
        self,
        answer: Callable[[Any], int | Dataset] = lambda _: 0x0000,
        *,
        classes: Sequence[str] = (MRImageStorage,),
        syntaxes: Sequence[str] = (ExplicitVRLittleEndian, ImplicitVRLittleEndian),
        handlers: Sequence[Any] = (),
        **settings: Any,
    ) -> None:
        self.kept: list[Dataset] = []
        self.asked: list[str] = []
        self.answer = answer
        self.port = free_port()
        entity = AE("NODE")
        for name, value in settings.items():
            setattr(entity, name, value)
        for sop_class in classes:
            entity.add_supported_context(sop_class, list(syntaxes))
        if handlers:
            entity.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        self.server = entity.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store), *handlers]
        )

    @property
    def address(self) -> str:
        return f"dicom://NODE@127.0.0.1:{self.port}"

    def _store(self, event: Any) -> int | Dataset:
        self.asked.append(str(event.request.AffectedSOPInstanceUID))
        status = self.answer(event)
        code = status if isinstance(status, int) else int(status.Status)
        if code == 0 or 0xB000 <= code < 0xC000:
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            self.kept.append(dataset)
        return status


@contextmanager
def node(*arguments: Any, **options: Any) -> Iterator[Node]:
    made = Node(*arguments, **options)
    try:
        yield made
    finally:
        made.server.shutdown()


@contextmanager
def raw_server(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP server with one behaviour for each connection, and its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    over = threading.Event()
    connections: list[socket.socket] = []

    def serve() -> None:
        while not over.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            connections.append(connection)
            threading.Thread(target=behave, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        over.set()
        thread.join()
        for each in (listener, *connections):
            each.close()


def relay_until(node_port: int, limit: int) -> Callable[[socket.socket], None]:
    """Pass bytes to a node, and cut the line for good after so many of them."""

    def behave(client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", node_port)) as server:
            threading.Thread(target=_pump, args=(server, client), daemon=True).start()
            passed = 0
            while passed < limit and (content := client.recv(min(4096, limit - passed))):
                server.sendall(content)
                passed += len(content)
            server.shutdown(socket.SHUT_RDWR)

    return behave


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while content := source.recv(4096):
            sink.sendall(content)
    except OSError:
        pass


def test_a_node_that_takes_the_connection_and_says_nothing_is_left_in_time(study: Path, send: Send) -> None:
    with raw_server(lambda connection: time.sleep(20)) as port:
        start = time.monotonic()
        code, answer, _ = send(study, "--to", f"dicom://NODE@127.0.0.1:{port}", "--timeout", 0.5, "--attempts", 1)
        assert time.monotonic() - start < 8
    assert (code, states(answer)) == (1, ["waiting"] * 4)
    assert "did not answer as a DICOM node within 0.5 s" in answer["instances"][0]["words"]


def test_a_node_that_stalls_over_an_instance_is_left_in_time(study: Path, send: Send) -> None:
    over = threading.Event()

    def stall(_: Any) -> int:
        over.wait(20)
        return 0x0110

    with node(stall) as stalling:
        start = time.monotonic()
        code, answer, _ = send(study, "--to", stalling.address, "--timeout", 0.5, "--attempts", 1)
        assert time.monotonic() - start < 8
        over.set()
    assert (code, states(answer)) == (1, ["waiting"] * 4)
    assert any("did not answer in time" in row["words"] for row in answer["instances"])


def test_a_node_that_stops_reading_in_the_middle_of_an_instance_is_left_in_time(tmp_path: Path, send: Send) -> None:
    write_series(tmp_path / "large", stored_values((1800, 1400, 1)), GEOMETRIES["oblique"])
    over = threading.Event()
    with node() as reading:

        def deaf(client: socket.socket) -> None:
            with client, socket.create_connection(("127.0.0.1", reading.port)) as server:
                threading.Thread(target=_pump, args=(server, client), daemon=True).start()
                for _ in range(3):
                    server.sendall(client.recv(1000))
                over.wait(20)
                server.shutdown(socket.SHUT_RDWR)

        with raw_server(deaf) as port:
            start = time.monotonic()
            code, answer, _ = send(
                tmp_path / "large", "--to", f"dicom://NODE@127.0.0.1:{port}", "--timeout", 1, "--attempts", 1
            )
            assert time.monotonic() - start < 20
            over.set()
    assert (code, states(answer)) == (1, ["waiting"])


def test_a_line_cut_in_the_middle_of_an_instance_is_tried_again_and_all_arrive_once(study: Path, send: Send) -> None:
    with node() as there:
        cut = relay_until(there.port, 1500)
        connections: list[int] = []

        def first_cut(client: socket.socket) -> None:
            connections.append(1)
            (cut if len(connections) <= 2 else relay_until(there.port, 10**9))(client)

        with raw_server(first_cut) as port:
            code, answer, _ = send(study, "--to", f"dicom://NODE@127.0.0.1:{port}")
        assert (code, states(answer)) == (0, ["sent"] * 4)
        assert len(connections) > 2
        assert len(there.kept) == len({one.SOPInstanceUID for one in there.kept}) == 4


def test_a_full_node_is_asked_again_and_then_left_alone(tmp_path: Path, send: Send) -> None:
    random_series(tmp_path / "many", 12)
    with node(lambda _: 0xA700) as full:
        code, answer, _ = send(tmp_path / "many", "--to", full.address, "--attempts", 2)
        assert (code, states(answer)) == (1, ["waiting"] * 12)
        assert len(full.asked) <= 8
        words = {row["words"] for row in answer["instances"]}
        assert any("out of resources" in each and "0xA700" in each for each in words)
        full.answer = lambda _: 0x0000
        code, answer, _ = send("--resume")
        assert (code, states(answer)) == (0, ["sent"] * 12)
        assert len(full.kept) == 12


def test_a_node_that_was_full_for_a_moment_gets_all_in_one_go(study: Path, send: Send) -> None:
    refused: list[int] = []

    def full_at_first(_: Any) -> int:
        refused.append(1)
        return 0xA701 if len(refused) <= 2 else 0x0000

    with node(full_at_first) as filling:
        code, answer, _ = send(study, "--to", filling.address)
        assert (code, states(answer)) == (0, ["sent"] * 4)
        assert sorted(one.InstanceNumber for one in filling.kept) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [
        (0x0122, "waiting", "does not store objects of this class"),
        (0xA900, "waiting", "does not fit the object's class"),
        (0xC001, "waiting", "cannot understand"),
        (0x0124, "waiting", "does not allow us to store"),
        (0x1234, "waiting", "that the standard does not know"),
        (0xB000, "sent", "changed some elements"),
        (0xB006, "sent", "dropped some elements"),
        (0x0111, "sent", "has this instance already"),
    ],
)
def test_each_status_has_its_words_and_a_lasting_one_is_not_tried_again(
    status: int, state: str, words: str, study: Path, send: Send
) -> None:
    with node(lambda _: status) as strict:
        code, answer, _ = send(study, "--to", strict.address)
        assert len(strict.asked) == 4
    assert code == (0 if state == "sent" else 1)
    assert states(answer) == [state] * 4
    assert all(words in row["words"] and f"0x{status:04X}" in row["words"] for row in answer["instances"])


def test_one_poisonous_instance_does_not_keep_the_others_back(study: Path, send: Send) -> None:
    def crash_on_the_first(event: Any) -> int:
        if event.dataset.InstanceNumber == 1:
            event.assoc.abort()
        return 0x0000

    with node(crash_on_the_first) as crashing:
        code, answer, _ = send(study, "--to", crashing.address, "--attempts", 2)
        assert (code, states(answer)) == (1, ["sent", "sent", "sent", "waiting"])
        assert len(set(crashing.asked)) == 4


def test_objects_of_a_class_that_a_node_does_not_know_are_named_and_the_others_go(tmp_path: Path, send: Send) -> None:
    write_series(tmp_path / "in", stored_values((5, 7, 2)), GEOMETRIES["axial"], modality="CT", uid_seed="ct")
    write_series(tmp_path / "in" / "mr", stored_values((5, 7, 2)), GEOMETRIES["axial"], uid_seed="mr")
    with node() as only_mr:
        code, answer, _ = send(tmp_path / "in", "--to", only_mr.address)
    assert code == 1
    assert {(row["kind"], row["state"]) for row in answer["instances"]} == {
        ("CT Image", "waiting"),
        ("MR Image", "sent"),
    }
    assert any("does not store objects of this class (CT Image)" in row["words"] for row in answer["instances"])


def test_a_node_that_knows_none_of_the_classes_is_not_asked_again(study: Path, send: Send) -> None:
    with node(classes=["1.2.840.10008.5.1.4.1.1.2"]) as only_ct:
        code, answer, said = send(study, "--to", only_ct.address)
    assert (code, states(answer)) == (1, ["waiting"] * 4)
    assert all("does not store objects of this class" in row["words"] for row in answer["instances"])
    assert "trying again" not in said


def test_what_a_node_takes_only_uncompressed_is_decoded_and_that_is_said(tmp_path: Path, send: Send) -> None:
    voxels = stored_values((36, 41, 2))
    (first, _) = write_series(tmp_path / "in", voxels, GEOMETRIES["oblique"], transfer_syntax=JPEG2000Lossless)
    with node(syntaxes=[ImplicitVRLittleEndian]) as old:
        code, answer, _ = send(tmp_path / "in", "--to", old.address)
        kept = {one.SOPInstanceUID: one for one in old.kept}
    assert (code, states(answer)) == (0, ["sent"] * 2)
    assert all("rewritten on the way as Implicit VR Little Endian" in row["words"] for row in answer["instances"])
    assert all("JPEG 2000" in row["words"] for row in answer["instances"])
    original = pydicom.dcmread(first)
    arrived = kept[original.SOPInstanceUID]
    assert arrived.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert (arrived.pixel_array == original.pixel_array).all()
    assert [e for e in arrived if e.keyword != "PixelData"] == [e for e in original if e.keyword != "PixelData"]


def test_what_a_node_takes_as_it_is_arrives_byte_by_byte(tmp_path: Path, send: Send) -> None:
    (path,) = write_series(
        tmp_path, stored_values((36, 41, 1)), GEOMETRIES["oblique"], transfer_syntax=JPEG2000Lossless
    )
    # A group length of old times, which pydicom reads and does not write: whoever encodes anew loses it.
    content = path.read_bytes()
    start = content.index(b"\x08\x00", 132 + 12 + int.from_bytes(content[140:144], "little"))
    path.write_bytes(content[:start] + b"\x08\x00\x00\x00UL\x04\x00\x10\x00\x00\x00" + content[start:])
    received: list[bytes] = []

    def keep_bytes(event: Any) -> int:
        received.append(event.request.DataSet.getvalue())
        return 0x0000

    with node(keep_bytes, syntaxes=[ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless]) as modern:
        assert send(path, "--to", modern.address)[0] == 0
        assert modern.kept[0].file_meta.TransferSyntaxUID == JPEG2000Lossless
    assert received[0] == path.read_bytes()[start:]


def test_a_node_that_does_not_know_us_is_named_and_not_asked_for_ever(study: Path, send: Send) -> None:
    with node(require_calling_aet=["SOMEBODY"]) as strict:
        code, answer, said = send(study, "--to", strict.address, "--as", "US")
    assert code == 1
    assert "does not know our AE title 'US'" in answer["instances"][0]["words"]
    assert "trying again" not in said


def test_nobody_there_is_said(study: Path, send: Send) -> None:
    code, answer, said = send(study, "--to", f"dicom://NODE@127.0.0.1:{free_port()}", "--attempts", 2)
    assert (code, states(answer)) == (1, ["waiting"] * 4)
    assert "cannot be reached (Connection refused)" in answer["instances"][0]["words"]
    assert said.count("trying again") == 1


def test_an_unknown_host_is_said(study: Path, send: Send) -> None:
    code, answer, _ = send(study, "--to", "dicom://NODE@no-such-host.invalid:104", "--attempts", 1)
    assert code == 1
    assert "there is no host 'no-such-host.invalid'" in answer["instances"][0]["words"]


def test_what_a_node_gossips_about_the_patient_goes_nowhere(
    study: Path, spool: Path, send: Send, caplog: pytest.LogCaptureFixture
) -> None:
    def gossip(_: Any) -> Dataset:
        status = Dataset()
        status.Status = 0xC000
        status.ErrorComment = f"cannot file {MARKERS[0]}"
        status.OffendingElement = 0x00100020
        return status

    with caplog.at_level(logging.DEBUG), node(gossip) as gossiping:
        logging.getLogger("pynetdicom").setLevel(logging.DEBUG)
        code, answer, said = send(study, "--to", gossiping.address)
        logging.getLogger("pynetdicom").setLevel(logging.WARNING)
    assert code == 1
    assert not any(marker in said + str(answer) for marker in MARKERS)
    database = (spool / "queue.sqlite3").read_bytes()
    assert not any(marker.encode() in database for marker in MARKERS)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("medcam")]
    assert not any(marker in line for line in ours for marker in MARKERS)


def test_a_promise_on_the_same_association_is_heard(study: Path, send: Send) -> None:
    def promise(event: Any) -> tuple[int, None]:
        asked = event.action_information
        association = event.assoc

        def tell() -> None:
            said = Dataset()
            said.TransactionUID = asked.TransactionUID
            said.ReferencedSOPSequence = asked.ReferencedSOPSequence
            model = "1.2.840.10008.1.20.1"
            association.send_n_event_report(said, 1, model, f"{model}.1")

        threading.Timer(0.1, tell).start()
        return 0x0000, None

    with node(handlers=[(evt.EVT_N_ACTION, promise)]) as promising:
        code, answer, _ = send(study, "--to", promising.address, "--commit-port", free_port())
    assert (code, states(answer)) == (0, ["committed"] * 4)


def test_a_node_without_commitment_is_taken_at_its_word(study: Path, spool: Path, send: Send) -> None:
    with node() as plain:
        code, answer, _ = send(study, "--to", plain.address, "--commit-port", free_port())
    assert (code, states(answer)) == (0, ["sent"] * 4)
    assert all("does not offer storage commitment" in row["words"] for row in answer["instances"])
    assert list((spool / "files").iterdir()) == []


def test_a_promise_for_something_else_is_not_believed(study: Path, send: Send) -> None:
    def confused(event: Any) -> tuple[int, None]:
        association = event.assoc

        def tell() -> None:
            said = Dataset()
            said.TransactionUID = generate_uid()
            said.ReferencedSOPSequence = event.action_information.ReferencedSOPSequence
            association.send_n_event_report(said, 1, "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1")

        threading.Timer(0.1, tell).start()
        return 0x0000, None

    with node(handlers=[(evt.EVT_N_ACTION, confused)]) as lying:
        code, answer, _ = send(study, "--to", lying.address, "--commit-port", free_port(), "--commit-wait", 0.8)
    assert (code, states(answer)) == (1, ["sent"] * 4)


@pytest.mark.slow
def test_a_sender_killed_at_any_moment_loses_nothing_and_sends_nothing_twice_that_was_noted(
    tmp_path: Path, spool: Path, send: Send
) -> None:
    random_series(tmp_path / "many", 40)
    with node() as there:
        command = [sys.executable, "-m", "medcam", "send", tmp_path / "many", "--to", there.address, "--spool", spool]
        for seen in (1, 9, 23):
            sender = subprocess.Popen(
                [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )  # fmt: skip
            while len(there.asked) < seen and sender.poll() is None:
                time.sleep(0.002)
            sender.send_signal(signal.SIGKILL)
            sender.wait()
        noted = [one.state for one in Spool(spool).entries()]
        assert "waiting" in noted
        code, answer, _ = send("--resume")
        assert (code, set(states(answer))) == (0, {"sent"})
        assert len({one.SOPInstanceUID for one in there.kept}) == 40
        # Only the one on the way when the kill came can have gone twice, under its own UID.
        assert len(there.asked) <= 43
    assert [one.state for one in Spool(spool).entries()] == ["sent"] * 40
    assert list((spool / "files").iterdir()) == []


@pytest.mark.slow
def test_two_senders_with_one_spool_send_each_instance_once(tmp_path: Path, spool: Path) -> None:
    random_series(tmp_path / "many", 25)
    with node() as there:
        command = [sys.executable, "-m", "medcam", "send", tmp_path / "many", "--to", there.address, "--spool", spool]
        senders = [
            subprocess.Popen(
                [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )
            for _ in range(2)
        ]  # fmt: skip
        said = [sender.communicate(timeout=60) for sender in senders]
        assert [sender.returncode for sender in senders] == [0, 0], said
        assert len(there.asked) == len(set(there.asked)) == 25
