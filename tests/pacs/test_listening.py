"""A node at work: what is complete is explained once, sent once, and kept or given up in words; a kill loses nothing."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
from damaged_associations import hammer
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, SecondaryCaptureImageStorage, generate_uid
from pynetdicom import AE, build_context

from formats.dicom_phantom import GEOMETRIES, MARKERS, stored_values, write_series
from medcam.errors import ModelError, UsageError
from medcam.pacs.inbox import Inbox
from medcam.pacs.listening import tidy
from medcam.pacs.node_status import status_of
from medcam.pacs.peers import Peer, destination
from medcam.pacs.series_job import Explaining
from medcam.pacs.spool import Spool
from medcam.workers.local import local
from pacs import servers
from pacs.quick import Apart, Broken, node_here, result_uid, settings
from pacs.servers import Orthanc, free_port, tool, wait_for_port
from pacs.test_faults import Node as Archive
from pacs.test_receiving import stored

pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed <:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def series(folder: Path, seed: str = "one", *, count: int = 4, values: int = 0, **options: Any) -> list[Path]:
    voxels = stored_values((7, 5, count), seed=values)
    study = generate_uid(entropy_srcs=[seed, "study"])
    tags = {
        "StudyInstanceUID": study,
        "FrameOfReferenceUID": generate_uid(entropy_srcs=[seed, "frame"]),
        **options.pop("tags", {}),
    }
    return write_series(folder / seed, voxels, GEOMETRIES["oblique"], uid_seed=seed, tags=tags, **options)


def expected(*paths: list[Path]) -> list[str]:
    return sorted(result_uid([pydicom.dcmread(path) for path in each]) for each in paths)


@pytest.fixture
def archive() -> Iterator[Archive]:
    made = Archive(classes=(SecondaryCaptureImageStorage,))
    yield made
    made.server.shutdown()  # type: ignore[union-attr]


@contextmanager
def archive_at(port: int) -> Iterator[Archive]:
    """An archive at a port that others know."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pacs.test_faults.free_port", lambda: port)
        made = Archive(classes=(SecondaryCaptureImageStorage,))
    try:
        yield made
    finally:
        made.server.shutdown()  # type: ignore[union-attr]


def test_what_comes_is_explained_and_sent_once_and_again_only_when_it_changes(tmp_path: Path, archive: Archive) -> None:
    first, second = series(tmp_path, "one"), series(tmp_path, "two")
    with node_here(settings(tmp_path / "queue", archive.address)) as here:
        assert stored(here.port, [*first, *second]) == [0] * 8
        here.until("sent", "sent")
        assert sorted(archive.asked) == expected(first, second)
        # The same once more is nothing new.
        assert stored(here.port, first) == [0] * 4
        time.sleep(0.8)
        assert len(archive.asked) == 2
        # One more slice makes another result.
        longer = series(tmp_path, "one", count=5)
        assert stored(here.port, longer[4:]) == [0]
        here.until("received", "sent")
        here.until("sent", "sent")
        assert len(set(archive.asked)) == len(archive.asked) == 3
        (one,) = [one for one in here.series().values() if one.version == 2]
        assert one.here == 5


@pytest.mark.slow
def test_other_pixels_under_a_known_uid_make_another_result_and_are_noted(tmp_path: Path, archive: Archive) -> None:
    with node_here(settings(tmp_path / "queue", archive.address)) as here:
        assert stored(here.port, series(tmp_path, "one")) == [0] * 4
        here.until("sent")
        changed = series(tmp_path, "one", values=9)
        assert stored(here.port, changed[:1]) == [0]
        here.until("received")
        here.until("sent")
        assert len(set(archive.asked)) == 2
        (one,) = here.series().values()
        assert "other content" in one.note


def test_a_gap_is_waited_for_and_what_never_comes_fails_with_the_reason_until_it_does(
    tmp_path: Path, archive: Archive
) -> None:
    gapped, other = series(tmp_path, "gap"), series(tmp_path, "late")
    with node_here(settings(tmp_path / "queue", archive.address)) as here:
        assert stored(here.port, [*gapped[:1], *gapped[2:], *other[:1], *other[2:]]) == [0] * 6
        end = time.monotonic() + 10
        while not any("waits for more images" in one.words for one in here.series().values()):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert stored(here.port, other[1:2]) == [0]
        here.until("failed", "sent")
        assert archive.asked == expected(other)
        status = status_of(here.folder)
        assert status.running
        assert [one.words for one, _ in status.failed] == ["a slice is missing among [1, 3, 4]"]
        assert stored(here.port, gapped[1:2]) == [0]
        here.until("sent", "sent")
        assert sorted(archive.asked) == expected(gapped, other)


@pytest.mark.slow
def test_headers_that_promise_more_are_believed_for_a_while(tmp_path: Path, archive: Archive) -> None:
    paths = series(tmp_path, "one", tags={"ImagesInAcquisition": "6", "AcquisitionNumber": "1"})
    with node_here(settings(tmp_path / "queue", archive.address)) as here:
        start = time.monotonic()
        assert stored(here.port, paths) == [0] * 4
        here.until("sent")
        assert time.monotonic() - start > 1.4


def test_a_peer_that_is_cut_off_may_come_again_with_the_rest(tmp_path: Path, archive: Archive) -> None:
    paths = series(tmp_path)
    headers = [pydicom.dcmread(path) for path in paths]
    with node_here(settings(tmp_path / "queue", archive.address)) as here:
        own = AE("TESTER")
        opened = own.associate(
            "127.0.0.1", here.port, [build_context(MRImageStorage, ExplicitVRLittleEndian)], ae_title="MEDCAM"
        )
        assert [opened.send_c_store(one).Status for one in headers[:2]] == [0, 0]
        opened.abort()
        time.sleep(0.8)
        assert here.states() == ["received"]
        assert stored(here.port, paths[2:]) == [0, 0]
        here.until("sent")
        assert archive.asked == expected(paths)


def test_what_cannot_be_explained_costs_itself_only(tmp_path: Path, archive: Archive) -> None:
    asked = ("fails", "unfit", "fine", "nothing")
    with node_here(settings(tmp_path / "queue", archive.address)) as here:
        for each in asked:
            assert stored(here.port, series(tmp_path, each, description=each)) == [0] * 4
        here.until("failed", "passed", "sent", "sent")
        words = " ".join(one.words for one in here.series().values())
        assert "unexpected ValueError" in words
        assert "not for this network" in words
        assert "quote a header" not in f"{words}{here.said}"
        assert len(archive.asked) == 1


@pytest.mark.slow
def test_a_worker_that_dies_hangs_or_fails_costs_that_series_only(tmp_path: Path, archive: Archive) -> None:
    asked = ("dies", "hangs", "fails", "unfit", "fine", "nothing")
    with node_here(settings(tmp_path / "queue", archive.address), local(workers=1, limit_s=1.0, tries=1)) as here:
        for each in asked:
            assert stored(here.port, series(tmp_path, each, description=each)) == [0] * 4
        here.until("failed", "failed", "failed", "passed", "sent", "sent")
        words = " ".join(one.words for one in here.series().values())
        for part in ("SIGKILL", "took longer than the 1 s", "unexpected ValueError", "not for this network"):
            assert part in words
        assert "quote a header" not in f"{words}{here.said}"
        assert len(archive.asked) == 1


def test_a_destination_that_is_down_is_tried_until_it_is_there(tmp_path: Path) -> None:
    port = free_port()
    with node_here(settings(tmp_path / "queue", f"dicom://NODE@127.0.0.1:{port}")) as here:
        paths = series(tmp_path)
        assert stored(here.port, paths) == [0] * 4
        end = time.monotonic() + 10
        while not any("trying again" in line for line in here.said):
            assert time.monotonic() < end
            time.sleep(0.05)
        (to,) = status_of(here.folder).destinations
        assert to.counts == {"waiting": 1}
        assert "cannot be reached" in to.words
        with archive_at(port) as server:
            here.until("sent")
        assert server.asked == expected(paths)


@pytest.mark.slow
def test_a_result_that_is_lost_is_made_again(tmp_path: Path) -> None:
    port = free_port()
    asked = settings(tmp_path / "queue", f"dicom://NODE@127.0.0.1:{port}")
    with node_here(asked) as here:
        assert stored(here.port, series(tmp_path)) == [0] * 4
        here.until("explained")
    shutil.rmtree(asked.folder / "spool")
    # What a kill leaves of a series that is explained is explained at the next start.
    inbox = Inbox(asked.folder)
    (one,) = inbox.series()
    with archive_at(port) as late, node_here(asked) as here:
        here.until("sent")
        assert here.series()[one.uid].version == 2
        assert len(late.asked) == 1


@pytest.mark.slow
def test_a_result_that_is_to_be_kept_is_done_when_the_archive_promises_it(tmp_path: Path) -> None:
    port = free_port()
    keeper = servers.orthanc(tmp_path / "keeper", {"DicomModalities": {"us": ["MEDCAM", "127.0.0.1", port]}})
    keeper.start()
    try:
        peer = Peer(destination(keeper.node), timeout_s=5.0, commitment_port=port)
        with node_here(settings(tmp_path / "queue", peers=(peer,))) as here:
            assert stored(here.port, series(tmp_path)) == [0] * 4
            here.until("sent")
        (entry,) = Spool(tmp_path / "queue" / "spool").entries()
        assert entry.state == "committed"
        assert list((tmp_path / "queue" / "spool" / "files").iterdir()) == []
    finally:
        keeper.kill()


@pytest.mark.parametrize(
    ("code", "times", "words"),
    [(0xC001, 1, "cannot understand"), pytest.param(0xA700, 3, "tried 3 times", marks=pytest.mark.slow)],
)
def test_what_a_destination_refuses_fails_and_is_sent_on_request(
    tmp_path: Path, code: int, times: int, words: str
) -> None:
    strict, lax = (Archive(classes=(SecondaryCaptureImageStorage,)) for _ in range(2))
    strict.answer = lambda _: code
    try:
        with node_here(settings(tmp_path / "queue", strict.address, lax.address)) as here:
            assert stored(here.port, series(tmp_path)) == [0] * 4
            here.until("failed")
            ((_, reasons),) = status_of(here.folder).failed
            assert len(reasons) == 1
            assert words in reasons[0]
            assert len(strict.asked) == times
            strict.answer = lambda _: 0
            assert here.inbox.retry_failed(at=time.time()) == 1
            here.until("sent")
            assert len(strict.kept) == len(lax.kept) == 1
    finally:
        strict.server.shutdown()  # type: ignore[union-attr]
        lax.server.shutdown()  # type: ignore[union-attr]


def test_images_are_kept_for_a_while_and_a_late_one_is_told_from_a_new_series(tmp_path: Path, archive: Archive) -> None:
    asked = settings(tmp_path / "queue", archive.address)
    paths = series(tmp_path)
    with node_here(asked) as here:
        assert stored(here.port, paths) == [0] * 4
        here.until("sent")
        now = time.time()
        tidy(here.inbox, asked, now=now + 3600)
        assert here.inbox.held().count == 4
        tidy(here.inbox, asked, now=now + 86_500)
        assert here.inbox.held().count == 0
        # The same images once more are the same series, and nothing new.
        assert stored(here.port, paths) == [0] * 4
        here.until("received")
        here.until("sent")
        assert len(archive.asked) == 1
        tidy(here.inbox, asked, now=time.time() + 86_500)
        late = series(tmp_path, count=5)[4:]
        assert stored(here.port, late) == [0]
        here.until("failed")
        assert "send the whole series again" in next(iter(here.series().values())).words
        assert stored(here.port, series(tmp_path, count=5)) == [0] * 5
        here.until("sent")
        assert len(archive.asked) == 2


def test_only_one_node_works_on_a_folder_and_at_a_port_and_a_network_that_cannot_be_loaded_ends_it(
    tmp_path: Path,
) -> None:
    asked = settings(tmp_path / "queue", "dicom://NODE@127.0.0.1:104")
    with node_here(asked) as here:
        with pytest.raises(UsageError, match="another node is at work"), node_here(asked):
            pass
        with pytest.raises(UsageError, match=f"port {here.port}: another program"), \
                node_here(settings(tmp_path / "other", "dicom://NODE@127.0.0.1:104", port=here.port)):  # fmt: skip
            pass
        assert status_of(asked.folder).running
    assert not status_of(asked.folder).running
    bad = settings(tmp_path / "bad", "dicom://NODE@127.0.0.1:104", explaining=Broken())
    with pytest.raises(ModelError, match="no such network"), node_here(bad) as here:
        assert here.stop.wait(20)


def test_a_demonstration_network_explains_what_it_is_sent_and_orthanc_gets_the_results(
    tmp_path: Path, orthanc: Orthanc
) -> None:
    paths = write_series(tmp_path / "study", stored_values((29, 24, 18)), GEOMETRIES["oblique"])
    film = series(tmp_path, "film", count=1)
    real = Explaining("demo-mri", formats="dicom-sc,dicom-pm")
    with node_here(settings(tmp_path / "queue", orthanc.node, explaining=real)) as here:
        assert stored(here.port, [*paths, *film]) == [0] * 19
        # Loading what the network needs takes long where nothing has loaded it yet.
        here.until("passed", "sent", within_s=240.0)
        assert "the network is 3D" in " ".join(one.words for one in here.series().values())
    found = [orthanc.get(f"/instances/{each}/tags?simplify") for each in orthanc.get("/instances")]
    assert sorted(one["SOPClassUID"] for one in found) == sorted(
        ("1.2.840.10008.5.1.4.1.1.30", "1.2.840.10008.5.1.4.1.1.7.4")
    )
    source = pydicom.dcmread(paths[0])
    assert {one["StudyInstanceUID"] for one in found} == {source.StudyInstanceUID}
    assert {one["PatientID"] for one in found} == {MARKERS[1]}


@pytest.mark.slow
def test_orthanc_sends_studies_and_gets_their_results_back_without_end_of_it(tmp_path: Path) -> None:
    """The archive that sends is the one that results go to: what comes back is not explained once more."""
    port = free_port()
    both = servers.orthanc(tmp_path / "both", {"DicomModalities": {"medcam": ["MEDCAM", "127.0.0.1", port]}})
    both.start()
    try:
        given = [series(tmp_path / "in", f"study {n}") for n in range(3)]
        for path in (path for paths in given for path in paths):
            both.post("/instances", path.read_bytes())
        with node_here(settings(tmp_path / "queue", both.node, port=port)) as here:
            for _ in range(2):
                # Permissive: the results among them are refused by negotiation.
                asked = {"Resources": both.get("/studies"), "Permissive": True}
                both.post("/modalities/medcam/store", json.dumps(asked))
                here.until("sent", "sent", "sent", within_s=30.0)
                time.sleep(1)
        found = [both.get(f"/instances/{each}/tags?simplify") for each in both.get("/instances")]
        results = sorted(one["SOPInstanceUID"] for one in found if one["Modality"] == "OT")
        assert results == expected(*given)
    finally:
        both.kill()


def send_until_taken(port: int, paths: list[Path], calling: str, acknowledged: set[str], lock: threading.Lock) -> None:
    """Send what is not yet acknowledged, as a modality does, until all is; give up after a while."""
    left = {pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID: path for path in paths}
    end = time.monotonic() + 60
    while left and time.monotonic() < end:
        found = dict(zip(list(left), stored(port, list(left.values()), calling=calling), strict=True))
        taken = {uid for uid, status in found.items() if status == 0}
        with lock:
            acknowledged |= taken
        left = {uid: path for uid, path in left.items() if uid not in taken}
        if left:
            time.sleep(0.3)
    assert not left


def trial(tmp_path: Path, orthanc: Orthanc, *, studies: int, at_once: int, kills: int, fuzz: int) -> None:
    """Send studies side by side while the node is killed and started again, and damaged connections come."""
    given = [series(tmp_path / "in", f"study {n}", count=3 + n % 3) for n in range(studies)]
    node = Apart(tmp_path / "queue", free_port(), (orthanc.node,))
    node.start()
    try:
        _trial(node, given, orthanc, at_once=at_once, kills=kills, fuzz=fuzz)
    finally:
        node.end(signal.SIGKILL)
    results = [orthanc.get(f"/instances/{each}/tags?simplify")["SOPInstanceUID"] for each in orthanc.get("/instances")]
    assert sorted(results) == expected(*given)


def _trial(node: Apart, given: list[list[Path]], orthanc: Orthanc, *, at_once: int, kills: int, fuzz: int) -> None:
    wait_for_port(node.port, node.process)
    acknowledged: set[str] = set()
    lock = threading.Lock()
    chance = random.Random(7)
    queue = list(enumerate(given))

    def worker() -> None:
        while True:
            with lock:
                if not queue:
                    return
                n, paths = queue.pop()
            send_until_taken(node.port, paths, f"SENDER{n % at_once}", acknowledged, lock)

    senders = [threading.Thread(target=worker) for _ in range(at_once)]
    fuzzing = threading.Thread(target=hammer, args=(node.port, fuzz), kwargs={"seed": 3})
    for each in (*senders, fuzzing):
        each.start()
    for n in range(kills):
        end = time.monotonic() + 60
        while len(acknowledged) < (n + 1) * sum(map(len, given)) // (kills + 2):
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        assert node.end(signal.SIGKILL) == -signal.SIGKILL
        there = {row for one in Inbox(node.folder).series() for row in held_uids(node.folder, one.uid)}
        with lock:
            told = set(acknowledged)
        assert told <= there
        node.start()
    for each in (*senders, fuzzing):
        each.join(120)
    assert len(acknowledged) == sum(map(len, given))
    inbox, end = Inbox(node.folder), time.monotonic() + 120
    while [one.state for one in inbox.series()] != ["sent"] * len(given):
        assert time.monotonic() < end, inbox.series()
        time.sleep(0.1)
    assert node.end(signal.SIGTERM) == 0


def held_uids(folder: Path, uid: str) -> list[str]:
    _, files = Inbox(folder).content(uid)
    return [pydicom.dcmread(path).SOPInstanceUID for path in files]


def test_studies_side_by_side_a_kill_and_damaged_connections_lose_and_double_nothing(
    tmp_path: Path, orthanc: Orthanc
) -> None:
    trial(tmp_path, orthanc, studies=6, at_once=3, kills=1, fuzz=50)


@pytest.mark.slow
def test_many_studies_and_kills_lose_and_double_nothing(tmp_path: Path, orthanc: Orthanc) -> None:
    trial(tmp_path, orthanc, studies=40, at_once=8, kills=6, fuzz=400)


def test_dcmtk_sees_a_node_that_stops_as_one_that_aborts(tmp_path: Path) -> None:
    with node_here(settings(tmp_path / "queue", "dicom://NODE@127.0.0.1:104")) as here:
        assert (
            subprocess.run([tool("echoscu"), "-aec", "MEDCAM", "127.0.0.1", str(here.port)], timeout=30).returncode == 0
        )
        port = here.port
    assert (
        subprocess.run(
            [tool("echoscu"), "-aec", "MEDCAM", "127.0.0.1", str(port)], capture_output=True, timeout=30
        ).returncode
        != 0
    )


def test_what_a_node_says_and_keeps_of_a_series_names_no_patient(tmp_path: Path, archive: Archive) -> None:
    with node_here(settings(tmp_path / "queue", archive.address)) as here:
        assert stored(here.port, series(tmp_path, description="fails")) == [0] * 4
        here.until("failed")
        told = f"{here.said}{status_of(here.folder)}"
        rows = b"".join(path.read_bytes() for path in here.folder.glob("*.sqlite3*"))
        names = " ".join(str(path) for path in here.folder.rglob("*"))
    for marker in MARKERS:
        assert marker not in told
        assert marker not in names
        assert marker.encode() not in rows
