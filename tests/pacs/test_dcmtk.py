"""A second PACS, by other people: dcmtk's dcmqrscp keeps, lists and gives back what medcam sends."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import JPEGLSLossless, RLELossless

from formats.dicom_phantom import GEOMETRIES, stored_values, write_series
from pacs.servers import Server, free_port, tool
from pacs.studies import states

Send = Callable[..., tuple[int, Any, str]]
_CONFIG = """
NetworkTCPPort = {port}
MaxPDUSize = 16384
MaxAssociations = 4
HostTable BEGIN
client = (FETCHER, localhost, {back})
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
ARCHIVE {folder} RW (100, 1024mb) ANY
AETable END
"""


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Server]:
    port = free_port()
    (tmp_path / "archive").mkdir()
    config = tmp_path / "dcmqrscp.cfg"
    config.write_text(_CONFIG.format(port=port, back=free_port(), folder=tmp_path / "archive"))
    server = Server([tool("dcmqrscp"), "-c", str(config)], port)
    server.start()
    yield server
    server.kill()


def test_dcmtks_archive_keeps_lists_and_gives_back_what_is_sent(
    archive: Server, tmp_path: Path, study: Path, send: Send
) -> None:
    for syntax, name in ((RLELossless, "rle"), (JPEGLSLossless, "jls")):
        write_series(study / name, stored_values((6, 9, 2)), GEOMETRIES["axial"], transfer_syntax=syntax, uid_seed=name)
    code, answer, _ = send(study, "--to", f"dicom://ARCHIVE@127.0.0.1:{archive.port}")
    assert (code, states(answer)) == (0, ["sent"] * 8)

    sent = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, study.rglob("*.dcm"))}
    (study_uid,) = {one.StudyInstanceUID for one in sent.values()}
    query = ["-aec", "ARCHIVE", "localhost", str(archive.port), "-S", "-k", f"StudyInstanceUID={study_uid}"]
    found = subprocess.run(
        [tool("findscu"), *query, "-k", "QueryRetrieveLevel=SERIES", "-k", "SeriesInstanceUID"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    listed = found.stdout + found.stderr
    assert all(one.SeriesInstanceUID in listed for one in sent.values())

    (tmp_path / "back").mkdir()
    fetch = [
        tool("getscu"),
        "+xs",
        "-aec",
        "ARCHIVE",
        "localhost",
        str(archive.port),
        "-S",
        "-od",
        str(tmp_path / "back"),
    ]
    subprocess.run(
        [*fetch, "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study_uid}"],
        check=True,
        capture_output=True,
    )
    back = [pydicom.dcmread(path) for path in (tmp_path / "back").iterdir()]
    kept = [pydicom.dcmread(path) for path in (tmp_path / "archive").glob("*") if path.name != "index.dat"]
    assert len(back) == len(kept) == 8
    for one in (*back, *kept):
        original = sent[one.SOPInstanceUID]
        assert (one.pixel_array == original.pixel_array).all()
        assert [e for e in one if e.keyword != "PixelData"] == [e for e in original if e.keyword != "PixelData"]
    # As it runs here it takes nothing compressed, and the sender says what it did about that.
    rewritten = [row["words"] for row in answer["instances"] if "rewritten on the way" in row["words"]]
    assert len(rewritten) == 4


def test_a_wrong_title_at_dcmtks_archive_is_said(archive: Server, study: Path, send: Send) -> None:
    code, answer, _ = send(study, "--to", f"dicom://OTHER@127.0.0.1:{archive.port}")
    assert (code, states(answer)) == (1, ["waiting"] * 4)
    assert "rejects the association" in answer["instances"][0]["words"]
