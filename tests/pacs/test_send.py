"""`medcam send` against a real Orthanc: sent, queried, fetched back, compared; killed midway and resumed."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless
from pynetdicom import AE
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

from formats.dicom_phantom import GEOMETRIES, stored_values, write_segmentation, write_series
from medcam.formats import read, write
from medcam.pacs.spool import Spool
from pacs import servers
from pacs.servers import Orthanc, free_port
from pacs.studies import random_series, states

Send = Callable[..., tuple[int, Any, str]]


def web(orthanc: Orthanc) -> DICOMwebClient:
    session = requests.Session()
    session.auth = orthanc.auth
    return DICOMwebClient(orthanc.dicomweb, session)


def originals(folder: Path) -> dict[str, Dataset]:
    read_back = [pydicom.dcmread(path) for path in sorted(folder.rglob("*.dcm"))]
    return {str(one.SOPInstanceUID): one for one in read_back}


def same(one: Dataset, other: Dataset) -> bool:
    """Whether two datasets are equal, element by element and in their transfer syntax."""
    return one == other and one.file_meta.TransferSyntaxUID == other.file_meta.TransferSyntaxUID


@pytest.fixture
def compressed_study(study: Path) -> Path:
    """The MR slices, and further series in RLE, JPEG-LS and JPEG 2000, and a segmentation, all of one study."""
    for syntax, name in ((RLELossless, "rle"), (JPEGLSLossless, "jls"), (JPEG2000Lossless, "j2k")):
        write_series(
            study / name,
            stored_values((36, 41, 2), bits=12),
            GEOMETRIES["anisotropic"],
            transfer_syntax=syntax,
            uid_seed=name,
        )
    write_segmentation(study)
    return study


def test_what_is_sent_by_c_store_is_found_and_comes_back_equal(
    orthanc: Orthanc, compressed_study: Path, send: Send
) -> None:
    code, answer, _ = send(compressed_study, "--to", orthanc.node)
    assert (code, states(answer)) == (0, ["sent"] * 11)
    assert answer["not_dicom"] == ["readme.txt"]

    sent = originals(compressed_study)
    entity = AE("MEDCAM")
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
    association = entity.associate("127.0.0.1", orthanc.port, ae_title="ORTHANC")
    query = Dataset()
    query.QueryRetrieveLevel, query.StudyInstanceUID, query.SeriesInstanceUID = "SERIES", "", ""
    found = [
        identifier
        for _, identifier in association.send_c_find(query, StudyRootQueryRetrieveInformationModelFind)
        if identifier
    ]
    association.release()
    assert {one.SeriesInstanceUID for one in found} == {one.SeriesInstanceUID for one in sent.values()}

    kept = [pydicom.dcmread(io.BytesIO(orthanc.file(each))) for each in orthanc.get("/instances")]
    assert len(kept) == 11
    for one in kept:
        assert same(one, sent[one.SOPInstanceUID])
        assert np.array_equal(one.pixel_array, sent[one.SOPInstanceUID].pixel_array)


def test_what_is_sent_by_stow_is_found_and_comes_back_equal(
    orthanc: Orthanc, compressed_study: Path, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDCAM_DICOMWEB_USER", servers.USER)
    monkeypatch.setenv("MEDCAM_DICOMWEB_PASSWORD", servers.PASSWORD)
    code, answer, _ = send(compressed_study, "--to", orthanc.dicomweb)
    assert (code, states(answer)) == (0, ["sent"] * 11)

    sent = originals(compressed_study)
    client = web(orthanc)
    (found,) = client.search_for_studies()
    study_uid = found["0020000D"]["Value"][0]
    back = client.retrieve_study(study_uid, media_types=(("application/dicom", "*"),))
    assert len(back) == 11
    assert all(same(one, sent[one.SOPInstanceUID]) for one in back)


def test_a_heatmap_of_medcam_goes_beside_its_source(orthanc: Orthanc, tmp_path: Path, study: Path, send: Send) -> None:
    from formats.test_dicom_secondary_capture import heatmap

    volume = read(study)
    write(heatmap(volume), volume, tmp_path / "results", formats="dicom-sc,nifti")
    code, answer, _ = send(study, tmp_path / "results", "--to", orthanc.node)
    assert code == 0
    assert len(orthanc.get("/studies")) == 1
    assert len(orthanc.get("/series")) == 2
    assert {row["kind"] for row in answer["instances"]} == {
        "MR Image",
        "Multi-frame True Color Secondary Capture Image",
    }
    assert len(answer["not_dicom"]) >= 3


def test_an_instance_goes_once_unless_asked_again(orthanc: Orthanc, study: Path, send: Send) -> None:
    assert send(study, "--to", orthanc.node)[0] == 0
    changes = orthanc.get("/changes")["Last"]
    code, answer, _ = send(study, "--to", orthanc.node)
    assert (code, states(answer)) == (0, ["skipped"] * 4)
    assert all("--again" in row["words"] for row in answer["instances"])
    assert orthanc.get("/changes")["Last"] == changes
    orthanc.empty()
    code, answer, _ = send(study, "--to", orthanc.node, "--again")
    assert (code, states(answer)) == (0, ["sent"] * 4)
    assert len(orthanc.get("/instances")) == 4


def test_a_dry_run_sends_nothing_and_queues_nothing(orthanc: Orthanc, study: Path, spool: Path, send: Send) -> None:
    code, answer, _ = send(study, "--to", orthanc.node, "--dry-run")
    assert (code, states(answer)) == (0, ["planned"] * 4)
    assert orthanc.get("/instances") == []
    assert Spool(spool).entries() == ()


def test_a_wrong_title_is_said_and_left_in_the_spool(orthanc: Orthanc, study: Path, send: Send) -> None:
    code, answer, _ = send(study, "--to", f"dicom://WRONG@127.0.0.1:{orthanc.port}")
    assert (code, states(answer)) == (1, ["waiting"] * 4)
    assert all("is not called 'WRONG'" in row["words"] for row in answer["instances"])
    assert orthanc.get("/instances") == []
    code, answer, _ = send("--status")
    assert (code, states(answer)) == (0, ["waiting"] * 4)


def test_a_wrong_password_is_said_and_the_right_one_resumes(
    orthanc: Orthanc, study: Path, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDCAM_DICOMWEB_USER", servers.USER)
    monkeypatch.setenv("MEDCAM_DICOMWEB_PASSWORD", "guessed-wrong")
    code, answer, said = send(study, "--to", orthanc.dicomweb)
    assert (code, states(answer)) == (1, ["waiting"] * 4)
    assert "answers 401" in answer["instances"][0]["words"]
    assert "guessed-wrong" not in said + str(answer)
    monkeypatch.setenv("MEDCAM_DICOMWEB_PASSWORD", servers.PASSWORD)
    code, answer, _ = send("--resume")
    assert (code, states(answer)) == (0, ["sent"] * 4)
    assert len(orthanc.get("/instances")) == 4


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["c-store", "stow"])
def test_a_server_killed_midway_gets_the_rest_when_it_is_back(
    protocol: str, tmp_path: Path, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDCAM_DICOMWEB_USER", servers.USER)
    monkeypatch.setenv("MEDCAM_DICOMWEB_PASSWORD", servers.PASSWORD)
    mortal = servers.orthanc(tmp_path / "orthanc")
    mortal.start()
    paths = random_series(tmp_path / "many", 120, side=64)
    address = mortal.node if protocol == "c-store" else mortal.dicomweb

    def kill_midway() -> None:
        while len(mortal.get("/instances")) < 20:
            time.sleep(0.005)
        mortal.kill()

    killer = threading.Thread(target=kill_midway)
    killer.start()
    try:
        code, answer, _ = send(tmp_path / "many", "--to", address, "--attempts", 2)
        killer.join()
        counts = states(answer)
        assert code == 1
        assert 19 <= counts.count("sent") < 120
        assert counts.count("sent") + counts.count("waiting") == 120
        mortal.start()
        code, answer, _ = send("--resume")
        assert (code, states(answer)) == (0, ["sent"] * counts.count("waiting"))
        kept = [
            mortal.get(f"/instances/{each}")["MainDicomTags"]["SOPInstanceUID"] for each in mortal.get("/instances")
        ]
        assert sorted(kept) == sorted(str(pydicom.dcmread(path).SOPInstanceUID) for path in paths)
        assert send("--resume")[1]["instances"] == []
    finally:
        mortal.kill()
        killer.join()


@pytest.fixture(scope="module")
def promising(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Orthanc, int]]:
    """An Orthanc that knows us, and the port at which we listen for its promise."""
    port = free_port()
    node = servers.orthanc(
        tmp_path_factory.mktemp("promising"), {"DicomModalities": {"us": ["MEDCAM", "127.0.0.1", port]}}
    )
    node.start()
    yield node, port
    node.kill()


def test_a_promise_to_keep_is_asked_for_and_heard(
    promising: tuple[Orthanc, int], study: Path, spool: Path, send: Send
) -> None:
    node, port = promising
    code, answer, _ = send(study, "--to", node.node, "--commit", "--commit-port", port)
    assert (code, states(answer)) == (0, ["committed"] * 4)
    assert list((spool / "files").iterdir()) == []


def test_what_a_pacs_lost_is_not_promised_and_waits_to_be_sent_again(
    promising: tuple[Orthanc, int], study: Path, spool: Path, send: Send
) -> None:
    node, port = promising
    node.empty()
    nobody = free_port()
    code, answer, _ = send(study, "--to", node.node, "--commit-port", nobody, "--commit-wait", 0.5)
    assert (code, states(answer)) == (1, ["sent"] * 4)
    assert all("has not promised" in row["words"] for row in answer["instances"])
    assert len(list((spool / "files").iterdir())) == 4
    node.empty()
    code, answer, _ = send("--resume", "--to", node.node, "--commit-port", port)
    assert (code, states(answer)) == (1, ["waiting"] * 4)
    assert all("does not have the instance" in row["words"] for row in answer["instances"])
    code, answer, _ = send("--resume")
    assert (code, states(answer)) == (0, ["committed"] * 4)
    assert len(node.get("/instances")) == 4
