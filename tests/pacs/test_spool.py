"""The queue on disk, without any network: whole at any moment, for its owner only, and the same for everybody who looks."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from formats.dicom_phantom import MARKERS
from medcam.errors import OutputError
from medcam.pacs.instances import Instance, collect
from medcam.pacs.peers import Node, Peer, Web
from medcam.pacs.spool import Spool
from pacs.studies import random_series

HERE, THERE = Peer(Node("A", "here", 104)), Peer(Web("https://there/x"))


@pytest.fixture
def instances(tmp_path: Path) -> tuple[Instance, ...]:
    random_series(tmp_path / "in", 3)
    return collect([tmp_path / "in"]).instances


def test_what_is_added_waits_for_each_destination_apart(spool: Path, instances: tuple[Instance, ...]) -> None:
    queue = Spool(spool)
    queue.add(HERE, instances)
    (first, *_) = queue.add(THERE, instances[:1])
    queue.stored(first, "stored")
    again = Spool(spool)
    assert [one.state for one in again.entries(HERE.to.address)] == ["waiting"] * 3
    assert [one.state for one in again.entries(THERE.to.address)] == ["sent"]
    assert again.peers() == (HERE, THERE)
    assert len(list((spool / "files").iterdir())) == 3


def test_a_copy_lies_there_even_if_the_original_is_gone(
    tmp_path: Path, spool: Path, instances: tuple[Instance, ...]
) -> None:
    content = instances[0].content()
    Spool(spool).add(HERE, instances)
    for path in (tmp_path / "in").iterdir():
        path.unlink()
    assert Spool(spool).entries()[0].instance.content() == content


def test_what_was_sent_is_not_queued_again_unless_asked(spool: Path, instances: tuple[Instance, ...]) -> None:
    queue = Spool(spool)
    for entry in queue.add(HERE, instances):
        queue.stored(entry, "stored")
    assert {one.state for one in queue.add(HERE, instances)} == {"sent"}
    assert list((spool / "files").iterdir()) == []
    assert {one.state for one in queue.add(HERE, instances, again=True)} == {"waiting"}


def test_what_is_sent_while_it_is_being_queued_again_stays_sent(
    spool: Path, instances: tuple[Instance, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, sender = Spool(spool), Spool(spool)
    waiting = queue.add(HERE, instances)
    # The one who queues looked before the one who sends said 'sent'.
    monkeypatch.setattr(queue, "entries", lambda *_, **__: waiting)
    for entry in waiting:
        sender.stored(entry, "stored")
    queue.add(HERE, instances)
    assert {one.state for one in sender.entries()} == {"sent"}


def test_whoever_sends_an_old_content_does_not_mark_the_new_one_as_sent(
    tmp_path: Path, spool: Path, instances: tuple[Instance, ...]
) -> None:
    import pydicom

    queue = Spool(spool)
    (old,) = queue.add(HERE, instances[:1])
    path = min((tmp_path / "in").iterdir())
    dataset = pydicom.dcmread(path)
    dataset.SeriesDescription = "changed"
    dataset.save_as(path)
    (new,) = queue.add(HERE, collect([path]).instances)
    assert new.instance.uid == old.instance.uid
    queue.stored(old, "stored")
    assert [one.state for one in queue.entries()] == ["waiting"]
    assert new.path.exists()


def test_a_file_is_kept_until_it_is_promised_to_be_kept(spool: Path, instances: tuple[Instance, ...]) -> None:
    queue = Spool(spool)
    first, second, third = queue.add(HERE, instances, commitment=True)
    for entry in (first, second, third):
        queue.stored(entry, "stored")
    assert len(list((spool / "files").iterdir())) == 3
    queue.committed(first, "kept")
    queue.uncommittable(second, "no promises")
    queue.unpromised(third, "no word yet")
    assert [one.state for one in Spool(spool).entries()] == ["committed", "sent", "sent"]
    assert [path.name for path in (spool / "files").iterdir()] == [third.path.name]


def test_attempts_are_counted(spool: Path, instances: tuple[Instance, ...]) -> None:
    queue = Spool(spool)
    (entry,) = queue.add(HERE, instances[:1])
    queue.waits(entry, "busy")
    queue.waits(entry, "busy")
    assert [(one.attempts, one.words) for one in queue.entries()] == [(2, "busy")]


def test_what_a_kill_left_behind_is_swept_away_and_nothing_else(spool: Path, instances: tuple[Instance, ...]) -> None:
    queue = Spool(spool)
    kept = queue.add(HERE, instances)
    (spool / "files" / "left-by-a-kill.dcm").write_bytes(b"x")
    (spool / "files" / ".medcam-half").write_bytes(b"x")
    assert {path.name for path in (spool / "files").iterdir()} > {one.path.name for one in kept}
    Spool(spool)
    assert {path.name for path in (spool / "files").iterdir()} == {one.path.name for one in kept}


@pytest.mark.parametrize("moment", range(1, 11))
def test_a_kill_at_any_step_of_adding_leaves_a_queue_that_can_be_gone_on_with(
    moment: int, tmp_path: Path, spool: Path, instances: tuple[Instance, ...]
) -> None:
    # The process ends itself, without any clearing up, at the n-th time that it writes to a database or renames a file.
    code = f"""
import os, sys, pathlib, sqlite3
from medcam.pacs import spool as room
from medcam.pacs.instances import collect
from medcam.pacs.peers import Node, Peer
steps = 0
def step(frame, event, argument):
    global steps
    name = getattr(argument, "__name__", "") if event == "c_call" else ""
    if name in ("commit", "replace", "fsync"):
        steps += 1
        if steps == {moment}:
            os._exit(9)
queue = room.Spool(pathlib.Path({str(spool)!r}))
found = collect([pathlib.Path({str(tmp_path / "in")!r})]).instances
sys.setprofile(step)
queue.add(Peer(Node("A", "here", 104)), found)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
    )
    assert done.returncode == 9, done.stderr.decode()
    queue = Spool(spool)
    files = {path.name for path in (spool / "files").iterdir()}
    assert files == {one.path.name for one in queue.entries()}
    contents = {one.uid: one.content() for one in instances}
    assert all(one.instance.content() == contents[one.instance.uid] for one in queue.entries())
    queue.add(HERE, instances)
    assert len(queue.entries()) == 3


def test_only_one_at_a_time_sends_to_a_destination(spool: Path) -> None:
    said: list[str] = []
    order: list[str] = []
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with Spool(spool).sending("dicom://A@here:104", lambda: said.append("first waits")):
            order.append("first in")
            inside.set()
            leave.wait(10)
            order.append("first out")

    def second() -> None:
        inside.wait(10)
        with Spool(spool).sending("dicom://A@here:104", lambda: (said.append("second waits"), leave.set())):
            order.append("second in")

    threads = [threading.Thread(target=each) for each in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert said == ["second waits"]
    assert order == ["first in", "first out", "second in"]


def test_the_spool_is_its_owners_only_and_names_nobody(spool: Path, instances: tuple[Instance, ...]) -> None:
    Spool(spool).add(HERE, instances)
    assert stat.S_IMODE(spool.stat().st_mode) == 0o700
    for path in (spool / "files").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    names = " ".join(str(path.relative_to(spool)) for path in spool.rglob("*"))
    database = (spool / "queue.sqlite3").read_bytes()
    for marker in MARKERS:
        assert marker not in names
        assert marker.encode() not in database


def test_a_folder_that_cannot_be_a_spool_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="--spool"):
        Spool(tmp_path / "file" / "spool")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "queue.sqlite3").write_text("this is not a database, and longer than its header would be" * 9)
    with pytest.raises(OutputError, match="holds something else"):
        Spool(tmp_path / "odd")
