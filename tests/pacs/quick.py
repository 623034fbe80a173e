"""A node with a quick stand-in for a network, in this process or in one of its own that can be killed.

The stand-in writes one Secondary Capture a series, its UID made of the series' content, as in medcam's results. A series may ask by its
description for what goes wrong in a worker.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydicom
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from medcam.errors import ModelError
from medcam.pacs.admission import Guests, Limits
from medcam.pacs.forwarding import Forwarding
from medcam.pacs.inbox import Inbox
from medcam.pacs.inbox_rows import SeriesRow
from medcam.pacs.listening import Settings, listen
from medcam.pacs.peers import Peer, destination
from medcam.pacs.readiness import Pace
from medcam.pacs.series_job import IMAGES, RESULTS, UNFIT, UNREADABLE, WRITTEN, Made
from medcam.workers.inline import inline
from medcam.workers.jobs import Engine, Place, Stages
from medcam.workers.local import local


@dataclass(frozen=True)
class Quick:
    """Loads nothing."""

    def __call__(self, place: Place) -> Stages:
        return Stages(_read, _compute, _write)


@dataclass(frozen=True)
class Broken:
    """Cannot be loaded."""

    def __call__(self, place: Place) -> Stages:
        raise ModelError("there is no such network")


def _read(folder: str) -> tuple[Path, list[Dataset]] | Made:
    images = [pydicom.dcmread(path) for path in sorted((Path(folder) / IMAGES).iterdir())]
    numbers = sorted(int(one.InstanceNumber) for one in images)
    if numbers != list(range(1, numbers[-1] + 1)):
        return Made(UNREADABLE, f"a slice is missing among {numbers}")
    return Path(folder), images


def _compute(read: tuple[Path, list[Dataset]] | Made) -> tuple[Path, list[Dataset]] | Made:
    if isinstance(read, Made):
        return read
    asked = str(read[1][0].SeriesDescription)
    if asked == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if asked == "hangs":
        time.sleep(60)
    if asked == "fails":
        raise ValueError("words that may quote a header")
    return Made(UNFIT, "it is not for this network") if asked == "unfit" else read


def _write(computed: tuple[Path, list[Dataset]] | Made) -> Made:
    if isinstance(computed, Made):
        return computed
    place, images = computed
    one = result_of(images)
    if images[0].SeriesDescription != "nothing":
        one.save_as(place / RESULTS / "result.dcm", enforce_file_format=True)
    return Made(WRITTEN)


def result_uid(images: Sequence[Dataset]) -> str:
    """The UID of the result of these images."""
    content = sorted(one.SOPInstanceUID + hashlib.sha256(one.PixelData).hexdigest() for one in images)
    return f"2.25.{int(hashlib.sha256(' '.join(content).encode()).hexdigest()[:30], 16)}"


def result_of(images: Sequence[Dataset]) -> Dataset:
    """The result of these images."""
    first, made = images[0], Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = SecondaryCaptureImageStorage, result_uid(images)
    made.SeriesInstanceUID = made.SOPInstanceUID + ".1"
    for keyword in ("StudyInstanceUID", "PatientID", "PatientName"):
        setattr(made, keyword, getattr(first, keyword))
    made.Modality, made.InstanceNumber, made.SeriesNumber = "OT", len(images), 900
    made.Rows = made.Columns = made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.PixelRepresentation, made.SamplesPerPixel = 7, 0, 1
    made.PhotometricInterpretation, made.PixelData = "MONOCHROME2", bytes(64)
    made["PixelData"].VR = "OB"
    return made


def settings(folder: Path, *to: str, port: int = 0, **changed: Any) -> Settings:
    """Of a node that waits for hardly anything."""
    usual = Settings(
        folder=folder, guests=Guests("MEDCAM"), host="127.0.0.1", port=port, explaining=Quick(),
        peers=tuple(Peer(destination(each), timeout_s=5.0) for each in to), pace=Pace(0.3, 1.5),
        forwarding=Forwarding(attempts=3, first_wait_s=0.1, longest_wait_s=0.5), limits=Limits(opening_s=2.0, message_s=2.0, idle_s=5.0),
    )  # fmt: skip
    return replace(usual, **changed)


class Here:
    """A node of this process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, 0
        self.said: list[str] = []
        self.stop = threading.Event()

    @property
    def inbox(self) -> Inbox:
        return Inbox(self.folder)

    def series(self) -> dict[str, SeriesRow]:
        return {one.uid: one for one in self.inbox.series()}

    def states(self) -> list[str]:
        return sorted(one.state for one in self.inbox.series())

    def until(self, *states: str, within_s: float = 20.0) -> None:
        """Wait until the series are in these states."""
        end = time.monotonic() + within_s
        while self.states() != sorted(states):
            assert time.monotonic() < end, (self.inbox.series(), self.said)
            time.sleep(0.05)


@contextmanager
def node_here(asked: Settings, engine: Engine | None = None) -> Iterator[Here]:
    """Run a node in a thread of this process."""
    here = Here(asked.folder)
    ready = threading.Event()
    troubles: list[BaseException] = []

    def at_port(port: int) -> None:
        here.port = port
        ready.set()

    def work() -> None:
        try:
            listen(asked, engine or inline(), stop=here.stop, say=here.said.append, at_port=at_port)
        except BaseException as error:  # noqa: BLE001
            troubles.append(error)
            ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert ready.wait(20)
        if not troubles:
            yield here
    finally:
        here.stop.set()
        thread.join(40)
    if troubles:
        raise troubles[0]


@dataclass
class Apart:
    """A node in a process of its own."""

    folder: Path
    port: int
    to: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        # Not `-m`: what travels to a worker must be of a module that has a name.
        command = [
            sys.executable,
            "-c",
            "from pacs.quick import main; main()",
            str(self.folder),
            str(self.port),
            *self.to,
        ]
        self.process = subprocess.Popen(command, env=env)

    def end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=40)


def main() -> None:
    """Run a node until SIGTERM: folder, port, destinations."""
    folder, port, *to = sys.argv[1:]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    # A sender that was cut off comes again well before it is given up.
    asked = settings(Path(folder), *to, port=int(port), pace=Pace(0.3, 60.0))
    listen(asked, local(workers=1), stop=stop, say=lambda _: None)
