"""The node's queue: what was taken is on disk whole, one UID is one instance, and states follow each other as they should."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pydicom
import pytest

from formats.dicom_phantom import GEOMETRIES, MARKERS, stored_values, write_series
from medcam.errors import InputError, OutputError
from medcam.pacs.arrivals import arrival
from medcam.pacs.inbox import Inbox
from pacs.arriving import arrivals, sent

TO = "dicom://ARCHIVE@127.0.0.1:104"


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    return Inbox(tmp_path / "queue")


def states(inbox: Inbox) -> list[str]:
    return [one.state for one in inbox.series()]


def begun(inbox: Inbox, series: str) -> str:
    """Bring a series to 'explaining', and return the digest of its content."""
    assert inbox.move(series, before="received", to="complete", at=2.0)
    assert inbox.move(series, before="complete", to="explaining", at=3.0)
    return inbox.content(series)[0]


def test_what_was_taken_lies_on_disk_as_it_came_under_names_that_tell_nothing(inbox: Inbox) -> None:
    given = arrivals(3)
    assert [inbox.take(one, at=1.0) for one in given] == ["new"] * 3
    (series,) = inbox.series()
    assert (series.state, series.here, series.modality, series.peer) == ("received", 3, "MR", "SCANNER@127.0.0.1")
    _, files = inbox.content(series.uid)
    read = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, files)}
    for one in given:
        assert read[one.uid].PatientName == MARKERS[0]
        assert read[one.uid].file_meta.TransferSyntaxUID == one.syntax
        assert one.content in [path.read_bytes() for path in files]
    assert inbox.held(series.uid).size == sum(len(one.content) for one in given)
    names = " ".join(str(path.relative_to(inbox.folder)) for path in inbox.folder.rglob("*"))
    rows = (inbox.folder / "inbox.sqlite3").read_bytes() + (inbox.folder / "inbox.sqlite3-wal").read_bytes() \
        if (inbox.folder / "inbox.sqlite3-wal").exists() else (inbox.folder / "inbox.sqlite3").read_bytes()  # fmt: skip
    for marker in MARKERS:
        assert marker not in names
        assert marker.encode() not in rows
        assert marker not in repr(given)
    assert inbox.folder.stat().st_mode & 0o077 == 0


def test_one_uid_is_one_instance_and_its_last_content_counts(inbox: Inbox) -> None:
    first, other = arrivals(2, values=1), arrivals(2, values=2)
    assert [inbox.take(one, at=1.0) for one in (*first, *first)] == ["new", "new", "again", "again"]
    assert inbox.take(other[0], at=2.0) == "changed"
    _, files = inbox.content(first[0].series)
    kept = {path.read_bytes() for path in files}
    assert kept == {other[0].content, first[1].content}
    assert len(list((inbox.folder / "files").iterdir())) == 2
    assert inbox.held().size == len(other[0].content) + len(first[1].content)
    assert inbox.series()[0].note == ""


def test_other_content_after_explaining_brings_the_series_back_and_is_noted(inbox: Inbox) -> None:
    first, other = arrivals(2, values=1), arrivals(2, values=2)
    for one in first:
        inbox.take(one, at=1.0)
    content = begun(inbox, first[0].series)
    assert inbox.explained(first[0].series, content=content, results=[("1.2", TO)], words="", at=4.0)
    assert states(inbox) == ["explained"]
    inbox.take(first[1], at=5.0)
    assert states(inbox) == ["explained"]
    inbox.take(other[1], at=6.0)
    (series,) = inbox.series()
    assert series.state == "received"
    assert "other content" in series.note
    assert inbox.content(series.uid)[0] != content == series.content


def test_what_comes_while_a_series_is_explained_makes_the_explanation_void(inbox: Inbox) -> None:
    given = arrivals(3)
    inbox.take(given[0], at=1.0)
    content = begun(inbox, given[0].series)
    inbox.take(given[1], at=3.5)
    assert states(inbox) == ["explaining"]
    assert not inbox.explained(given[0].series, content=content, results=[("1.2", TO)], words="", at=4.0)
    (series,) = inbox.series()
    assert (series.state, series.version) == ("received", 0)
    assert "more came" in series.words
    assert inbox.unsent(TO, most=9) == ()


def test_a_series_is_sent_once_every_destination_has_every_result(inbox: Inbox) -> None:
    one = arrivals(1)[0]
    inbox.take(one, at=1.0)
    both = [("1.2", TO), ("1.3", TO), ("1.2", "https://a.example")]
    inbox.explained(one.series, content=begun(inbox, one.series), results=both, words="", at=4.0)
    assert inbox.unsent(TO, most=9) == (("1.2", 0), ("1.3", 0))
    inbox.told(TO, "1.2", state="waiting", words="busy", at=5.0)
    assert inbox.unsent(TO, most=9) == (("1.3", 0), ("1.2", 1))
    for address, uid in ((TO, "1.2"), (TO, "1.3")):
        inbox.told(address, uid, state="sent", words="stored", at=6.0)
        assert states(inbox) == ["explained"]
    inbox.told("https://a.example", "1.2", state="sent", words="stored", at=7.0)
    assert states(inbox) == ["sent"]


def test_a_refused_result_fails_the_series_and_is_sent_again_on_request(inbox: Inbox) -> None:
    one = arrivals(1)[0]
    inbox.take(one, at=1.0)
    inbox.explained(one.series, content=begun(inbox, one.series), results=[("1.2", TO)], words="", at=4.0)
    inbox.told(TO, "1.2", state="refused", words="the PACS does not store objects of this class", at=5.0)
    (series,) = inbox.series()
    assert (series.state, series.words) == ("failed", "1 results were refused by their destination")
    assert inbox.refused_words(series.uid) == ("the PACS does not store objects of this class",)
    assert inbox.retry_failed(at=6.0) == 1
    assert states(inbox) == ["explained"]
    assert inbox.unsent(TO, most=9) == (("1.2", 0),)


def test_a_failed_series_is_explained_again_on_request_only(inbox: Inbox) -> None:
    one = arrivals(1)[0]
    inbox.take(one, at=1.0)
    content = begun(inbox, one.series)
    inbox.settle(one.series, content=content, to="failed", words="a slice is missing", at=4.0)
    inbox.recover(at=5.0)
    assert states(inbox) == ["failed"]
    assert inbox.retry_failed(at=6.0) == 1
    assert states(inbox) == ["complete"]
    assert inbox.series()[0].words == ""


def test_images_go_and_the_series_stays_known(inbox: Inbox) -> None:
    given = arrivals(3)
    for one in given:
        inbox.take(one, at=1.0)
    inbox.explained(given[0].series, content=begun(inbox, given[0].series), results=[], words="nothing", at=4.0)
    assert states(inbox) == ["sent"]
    assert inbox.remove(given[0].series, before="failed", at=5.0) == 0
    assert inbox.remove(given[0].series, before="sent", at=5.0) == 3
    assert list((inbox.folder / "files").iterdir()) == []
    assert inbox.held().count == inbox.held().size == 0
    assert inbox.take(given[0], at=6.0) == "new"
    (series,) = inbox.series()
    assert (series.state, series.here, series.removed) == ("received", 1, 3)


def test_whether_a_peer_left_in_order_is_known_after_a_restart(inbox: Inbox) -> None:
    given = arrivals(2)
    inbox.take(given[0], at=1.0, association="a")
    inbox.released("b")
    assert inbox.series()[0].released == 0
    inbox.released("a")
    assert Inbox(inbox.folder).series()[0].released == 1
    inbox.take(given[1], at=2.0, association="b")
    inbox.released("a")
    assert inbox.series()[0].released == 0
    # The same instance once more, by another association: its first answer may have been lost.
    inbox.take(given[1], at=3.0, association="c")
    inbox.released("b")
    assert inbox.series()[0].released == 0
    inbox.released("c")
    assert inbox.series()[0].released == 1


def test_headers_that_promise_more_instances_are_counted_by_acquisition(inbox: Inbox) -> None:
    for seed, tags in (("a", {"ImagesInAcquisition": "5", "AcquisitionNumber": "1"}), ("b", {"ImagesInAcquisition": "2"}),
                       ("c", {"NumberOfSeriesRelatedInstances": "3"}), ("d", {"ImagesInAcquisition": None})):  # fmt: skip
        for one in arrivals(2, seed=seed, tags=tags):
            inbox.take(one, at=1.0)
    missing = {one.uid: one.missing for one in inbox.series()}
    assert [missing[arrivals(1, seed=seed)[0].series] for seed in "abcd"] == [3, 0, 1, 0]


def test_a_kill_leaves_nothing_half_done(tmp_path: Path) -> None:
    """A process that takes and acknowledges is killed: what it acknowledged is there, whole, and what is left over goes."""
    code = f"""
import sys
from pathlib import Path
from medcam.pacs.inbox import Inbox
from pacs.arriving import arrivals
inbox = Inbox(Path({str(tmp_path / "queue")!r}))
given = [one for n in range(4) for one in arrivals(8, seed=str(n))]
print("ready", flush=True)
for one in given:
    inbox.take(one, at=1.0)
    print(one.uid, one.sha256, flush=True)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for count in (2, 17):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env)
        with child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            told = [child.stdout.readline().split() for _ in range(count)]
            child.send_signal(signal.SIGKILL)
            told += [line.split() for line in child.stdout.read().splitlines() if len(line.split()) == 2]
        inbox = Inbox(tmp_path / "queue")
        inbox.recover(at=2.0)
        digests = set()
        for series in inbox.series():
            _, files = inbox.content(series.uid)
            digests |= {hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        assert {sha256 for _, sha256 in told} <= digests
        assert len(list((tmp_path / "queue" / "files").iterdir())) == inbox.held().count == len(digests)


def test_threads_take_at_once(inbox: Inbox) -> None:
    given = [arrivals(4, seed=str(n)) for n in range(4)]
    threads = [
        threading.Thread(target=lambda each=each: [inbox.take(one, at=1.0) for one in (*each, *given[0])])
        for each in given
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert inbox.held().count == 16 == len(list((inbox.folder / "files").iterdir()))


def test_a_full_disk_is_told_and_leaves_all_as_it_was(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = arrivals(2)
    inbox.take(first, at=1.0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        inbox.take(second, at=2.0)
    monkeypatch.undo()
    # ... nor does a database that cannot grow.
    with sqlite3.connect(inbox.folder / "inbox.sqlite3") as rows:
        rows.execute(
            "create trigger full before insert on instances begin select raise(abort, 'database or disk is full'); end"
        )
    with pytest.raises(OutputError, match="disk is full"):
        inbox.take(second, at=2.0)
    assert inbox.held().count == 1 == len(list((inbox.folder / "files").iterdir()))
    rows.close()


def test_a_folder_that_is_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inbox.sqlite3").write_text(
        "not a database, whatever its name may be; it is long enough to be looked at"
    )
    with pytest.raises(OutputError, match="choose another with --folder"):
        Inbox(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_an_instance_that_is_not_what_was_announced_is_refused(tmp_path: Path) -> None:
    dataset, header = sent(write_series(tmp_path, stored_values((4, 3, 1)), GEOMETRIES["axial"])[0])
    said = {"uid": header.SOPInstanceUID, "sop_class": header.SOPClassUID, "syntax": header.file_meta.TransferSyntaxUID}
    assert arrival(dataset, **said, peer="A@b").uid == header.SOPInstanceUID
    for change, words in (
        ({"uid": "1.2.3"}, "not the one"),
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.2"}, "not the one"),
        ({"uid": ""}, "names no UID"),
        ({"uid": "1." * 40 + "1"}, "names no UID"),
        ({"uid": "../../etc"}, "names no UID"),
    ):
        with pytest.raises(InputError, match=words):
            arrival(dataset, **{**said, **change}, peer="A@b")
    for damaged in (b"", dataset[:40], b"\xff" * 500, bytes(1000)):
        with pytest.raises(InputError):
            arrival(damaged, **said, peer="A@b")
