"""A trial of `medcam listen`: many small studies from dcmtk's storescu, side by side, while the node is killed again and again.

    python examples/listen_trial.py --studies 200 --at-once 8 --kills 20 --damaged 1000

It starts an Orthanc and a node on free ports, makes studies, sends each until every image of it was acknowledged (as a modality does), and
meanwhile kills the node (SIGKILL) at random moments and starts it again, and makes damaged connections. In the end it looks:

- every image that was acknowledged is in the node's queue, after each kill and at the end;
- Orthanc has exactly one overlay for each study, made of all its images; of some, its UID is that of an explanation made here, apart.

It needs Orthanc and dcmtk, and `pip install 'medcam-xai[pacs]'`. It ends with code 0 if all that holds, and prints what it measured.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from damaged_associations import hammer
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

SHAPE = (20, 24)
MODEL = "demo-mri"
OVERLAY = "1.2.840.10008.5.1.4.1.1.7.4"


def write_study(folder: Path, number: int, slices: int) -> list[Path]:
    """Write one MR series of a patient of its own: noise, and a bright spot."""
    rng = np.random.default_rng(number)
    voxels = rng.normal(200, 30, (*SHAPE, slices)).clip(0)
    i, j = rng.integers(4, 14, 2)
    voxels[i : i + 5, j : j + 5, 1 : slices - 1] += 900
    uids = {name: generate_uid(entropy_srcs=[f"trial {number} {name}"]) for name in ("study", "series", "frame")}
    folder.mkdir(parents=True)
    return [_write_slice(folder, voxels[:, :, k].astype(np.uint16), number, k, uids) for k in range(slices)]


def _write_slice(folder: Path, pixels: np.ndarray, number: int, k: int, uids: dict[str, str]) -> Path:
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.SOPClassUID, one.SOPInstanceUID = MRImageStorage, generate_uid(entropy_srcs=[f"trial {number} slice {k}"])
    one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = uids["study"], uids["series"], uids["frame"]
    one.PatientName, one.PatientID = f"Trial^{number}", f"T{number:05d}"
    one.Modality, one.SeriesNumber, one.InstanceNumber = "MR", 1, k + 1
    one.ImageType, one.SeriesDescription = ["ORIGINAL", "PRIMARY"], "trial"
    one.StudyDate = one.StudyTime = one.AccessionNumber = one.StudyID = one.PatientBirthDate = one.PatientSex = ""
    one.Columns, one.Rows = pixels.shape
    one.BitsAllocated = one.BitsStored = 16
    one.HighBit, one.PixelRepresentation, one.SamplesPerPixel = 15, 0, 1
    one.PhotometricInterpretation = "MONOCHROME2"
    one.PixelSpacing, one.SliceThickness = [3, 2.5], 4
    one.ImageOrientationPatient, one.ImagePositionPatient = [1, 0, 0, 0, 0.8, 0.6], [-30, -28 - 2.4 * k, 7 + 3.2 * k]
    one.PixelData = np.ascontiguousarray(pixels.T).tobytes()
    one["PixelData"].VR = "OW"
    path = folder / f"{k:03d}.dcm"
    one.save_as(path, enforce_file_format=True)
    return path


def free_port() -> int:
    """Return a port of the loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes], *, within_s: float = 120.0) -> None:
    """Return once somebody listens."""
    end = time.monotonic() + within_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"nobody listens at port {port}") from None
            time.sleep(0.05)


@dataclass
class Archive:
    """An Orthanc that keeps what the node sends."""

    folder: Path
    port: int = field(default_factory=free_port)
    http: int = field(default_factory=free_port)

    def start(self) -> subprocess.Popen[bytes]:
        settings = {
            "StorageDirectory": str(self.folder), "IndexDirectory": str(self.folder), "HttpPort": self.http,
            "DicomPort": self.port, "DicomAet": "ORTHANC", "AuthenticationEnabled": False, "DicomAlwaysAllowStore": True,
            "UnknownSopClassAccepted": True, "OverwriteInstances": False, "HttpBindAddresses": ["127.0.0.1"], "Plugins": [],
        }  # fmt: skip
        self.folder.mkdir(parents=True)
        config = self.folder / "orthanc.json"
        config.write_text(json.dumps(settings))
        program = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
        process = subprocess.Popen([program, str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self.http, process)
        wait_for(self.port, process)
        return process

    def objects(self) -> list[dict[str, object]]:
        """Return the tags of each instance."""
        return [self._get(f"/instances/{each}/simplified-tags") for each in self._get("/instances")]

    def _get(self, path: str) -> list | dict:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=60) as answer:
            return json.load(answer)


@dataclass
class Node:
    """`medcam listen` as a process that can be killed."""

    folder: Path
    archive: Archive
    settle_s: float
    log: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    ready_s: list[float] = field(default_factory=list)

    def start(self) -> None:
        start = time.monotonic()
        command = [
            sys.executable, "-m", "medcam", "listen", "--port", str(self.port), "--model", MODEL, "--folder", str(self.folder),
            "--send-to", f"dicom://ORTHANC@127.0.0.1:{self.archive.port}", "--settle", str(self.settle_s), "--pause", "1",
            "--associations", "12", "--rate", "100000",
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(self.port, self.process)
        self.ready_s.append(time.monotonic() - start)

    def end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=120)

    def held(self) -> set[str]:
        """Return the UIDs of the instances in its queue, each of whose files is there whole."""
        rows = sqlite3.connect(self.folder / "inbox.sqlite3", timeout=30)
        found = rows.execute("select uid, file, size from instances").fetchall()
        rows.close()
        return {uid for uid, file, size in found if (self.folder / "files" / file).stat().st_size == size}

    def files(self, study: list[Path]) -> list[Path]:
        """Return the files in its queue that hold these images."""
        rows = sqlite3.connect(self.folder / "inbox.sqlite3", timeout=30)
        kept = dict(rows.execute("select uid, file from instances").fetchall())
        rows.close()
        return [self.folder / "files" / kept[uid_of(path)] for path in study]

    def states(self) -> Counter[str]:
        rows = sqlite3.connect(self.folder / "inbox.sqlite3", timeout=30)
        found = Counter(state for (state,) in rows.execute("select state from series"))
        rows.close()
        return found


@dataclass
class Sending:
    """What the senders share."""

    port: int
    left: list[list[Path]]
    acknowledged: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    associations: int = 0
    ended: float = 0.0
    over: threading.Event = field(default_factory=threading.Event)

    def work(self, title: str) -> None:
        """Send one study after the other, each until all of it was acknowledged."""
        while not self.over.is_set():
            with self.lock:
                if not self.left:
                    self.ended = time.monotonic()
                    return
                study = self.left.pop()
            while study and not self.over.is_set():
                taken = self._send(study, title)
                with self.lock:
                    self.acknowledged |= {uid_of(path) for path in taken}
                    self.associations += 1
                study = [path for path in study if path not in taken]
                if study:
                    time.sleep(0.5)

    def _send(self, study: list[Path], title: str) -> set[Path]:
        """Return the files that were acknowledged, as storescu tells."""
        done = subprocess.run(
            [storescu(), "-v", "-aet", title, "-aec", "MEDCAM", "-to", "30", "-ta", "30", "-td", "30", "127.0.0.1", str(self.port),
             *map(str, study)],
            capture_output=True, text=True,
        )  # fmt: skip
        taken, current = set(), None
        for line in (done.stdout + done.stderr).splitlines():
            if "Sending file: " in line:
                current = Path(line.partition("Sending file: ")[2].strip())
            elif "Received Store Response (Success)" in line and current is not None:
                taken.add(current)
        return taken


def storescu() -> str:
    """Return dcmtk's program, not the one of that name that comes with pynetdicom."""
    folders = [each for each in os.environ["PATH"].split(os.pathsep) if Path(each) != Path(sys.executable).parent]
    found = shutil.which("storescu", path=os.pathsep.join(folders))
    if found is None:
        raise SystemExit("dcmtk's storescu is not installed (apt-get install dcmtk)")
    return found


def uid_of(path: Path) -> str:
    """Return the SOPInstanceUID of a file."""
    return str(pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)


def own_overlay(files: list[Path], folder: Path) -> str:
    """Explain a study here, apart from the node, from the files that the node keeps, and return the UID of its overlay."""
    import medcam

    (folder / "images").mkdir(parents=True)
    for path in files:
        shutil.copy(path, folder / "images")
    volume = medcam.read(folder / "images")
    medcam.write(medcam.explain(volume, MODEL), volume, folder, formats="dicom-sc")
    return uid_of(next(folder.glob("*_sc.dcm")))


def kill_now_and_then(node: Node, sending: Sending, kills: int, pause_s: float, chance: random.Random) -> int:
    """Kill the node and start it again, and return how many acknowledged images were not in its queue then."""
    lost = 0
    for number in range(kills):
        # Some while images come, some while they are explained and sent.
        time.sleep(chance.uniform(0.2, 2 * pause_s))
        node.end(signal.SIGKILL)
        with sending.lock:
            told = set(sending.acknowledged)
        missing = told - node.held()
        lost += len(missing)
        print(
            f"kill {number + 1}: {len(told)} acknowledged, {len(missing)} of them lost; {dict(node.states())}",
            flush=True,
        )
        node.start()
    return lost


def judged(archive: Archive, node: Node, studies: list[list[Path]], checked: int) -> list[str]:
    """Return what is wrong with what Orthanc has."""
    wrong = []
    found: dict[str, list[dict]] = {}
    for one in archive.objects():
        if one["SOPClassUID"] == OVERLAY:
            found.setdefault(str(one["PatientID"]), []).append(one)
    for number, study in enumerate(studies):
        own = found.get(f"T{number:05d}", [])
        frames = [int(one["NumberOfFrames"]) for one in own]
        if frames != [len(study)]:
            wrong.append(f"study {number} of {len(study)} images has overlays of {frames} images")
        elif number < checked and own[0]["SOPInstanceUID"] != own_overlay(
            node.files(study), node.folder / f"own {number}"
        ):
            wrong.append(f"study {number} has another overlay than the one made here")
    return wrong


def main() -> int:
    """Run the trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--slices", type=int, default=6, help="of each study, and up to two more (default: 6)")
    parser.add_argument("--at-once", type=int, default=8, help="senders side by side (default: 8)")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pause", type=float, default=16.0, help="mean seconds between kills (default: 16)")
    parser.add_argument("--damaged", type=int, default=1000, help="damaged connections meanwhile (default: 1000)")
    parser.add_argument("--settle", type=float, default=5.0, help="`--settle` of the node (default: 5)")
    parser.add_argument("--check", type=int, default=5, help="studies that are explained here, too (default: 5)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--patience", type=float, default=1200.0, help="seconds after which it gives up (default: 1200)"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        return run(Path(place), asked)


def run(place: Path, asked: argparse.Namespace) -> int:
    """Run the trial in a folder."""
    studies = [write_study(place / "in" / str(n), n, asked.slices + n % 3) for n in range(asked.studies)]
    images = sum(map(len, studies))
    archive = Archive(place / "orthanc")
    orthanc = archive.start()
    node = Node(place / "node", archive, asked.settle, place / "node.log")
    start = time.monotonic()
    node.start()
    sending = Sending(node.port, list(reversed(studies)))
    threads = [threading.Thread(target=sending.work, args=(f"SENDER{n}",)) for n in range(asked.at_once)]
    threads.append(threading.Thread(target=hammer, args=(node.port, asked.damaged), kwargs={"seed": asked.seed}))
    try:
        for each in threads:
            each.start()
        lost = kill_now_and_then(node, sending, asked.kills, asked.pause, random.Random(asked.seed))
        for each in threads:
            each.join(asked.patience)
        received_s = sending.ended - start
        end = time.monotonic() + asked.patience
        while node.states() != Counter(sent=len(studies)) and time.monotonic() < end:
            time.sleep(0.5)
        whole_s = time.monotonic() - start
        lost += len(sending.acknowledged - node.held())
        states, code = node.states(), node.end(signal.SIGTERM)
        wrong = judged(archive, node, studies, asked.check)
    finally:
        sending.over.set()
        for process in (node.process, orthanc):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
    tracebacks = node.log.read_text().count("Traceback")
    print(f"{len(studies)} studies, {images} images, {asked.at_once} senders, {sending.associations} associations of storescu, "
          f"{asked.damaged} damaged connections, {asked.kills} kills")  # fmt: skip
    print(f"acknowledged {len(sending.acknowledged)}, lost {lost}; series {dict(states)}; the node ended with {code}")
    print(f"all acknowledged after {received_s:.0f} s, all results at Orthanc after {whole_s:.0f} s; a start took "
          f"{np.median(node.ready_s):.1f} s; {tracebacks} tracebacks in the node's log")  # fmt: skip
    print("\n".join(wrong) or "each study has one overlay, of all its images")
    good = not (lost or wrong or code or tracebacks) and len(sending.acknowledged) == images
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
