"""`medcam listen` as a command: what it takes, what it refuses in words, how it says how a node stands, and how it stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from formats.dicom_phantom import GEOMETRIES, stored_values, write_series
from medcam.cli import _parsers, main
from medcam.commands.listen import _settings, _stoppable
from medcam.errors import UsageError
from medcam.pacs.choosing import Rule
from medcam.pacs.inbox import Inbox
from medcam.pacs.listening import Settings
from medcam.pacs.peers import Web
from pacs.arriving import arrivals
from pacs.quick import node_here, settings
from pacs.servers import Certificates, Orthanc, free_port, make_certificates, wait_for_port
from pacs.test_receiving import stored

TO = "dicom://ARCHIVE@127.0.0.1:11112"


def asked(*words: str, folder: Path = Path("queue")) -> Settings:
    parser, _ = _parsers()
    return _settings(parser.parse_args(["listen", "--model", "demo-mri", "--send-to", TO, *words]), folder)


def status(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, Any, str]:
    code = main(["listen", "--status", "--folder", str(folder), "--json"])
    values = json.loads(capsys.readouterr().out)
    main(["listen", "--status", "--folder", str(folder)])
    return code, values, capsys.readouterr().out


def test_without_a_word_on_who_may_send_only_this_machine_may() -> None:
    usual = asked()
    assert usual.host == "127.0.0.1"
    assert usual.guests.expects("127.0.0.1")
    assert not usual.guests.expects("10.1.2.3")
    named = asked("--from", "10.1.0.0/16,192.168.1.7", "--allow", "CT1, MR2", "--aet", "NODE")
    assert named.host == ""
    assert [named.guests.expects(each) for each in ("10.1.2.3", "192.168.1.7", "127.0.0.1")] == [True, True, False]
    assert named.guests.titles == {"CT1", "MR2"}
    assert [each.calling for each in named.peers] == ["NODE"]


def test_options_become_settings() -> None:
    made = asked(
        "--only", "modality=MR,description~T1;modality=CT", "--max-instance", "64", "--max-queue", "1.5", "--rate", "30", "--settle", "5",
        "--give-up", "2", "--layer", "a,b", "--fuse", "mean", "--target", "1", "--window", "16,16,8", "--keep", "0", "--as", "SENDER",
        "--send-to", f"{TO},https://pacs.example/dicom-web",
    )  # fmt: skip
    assert made.choice.rules == (
        (Rule("modality", "=", "MR"), Rule("description", "~", "T1")),
        (Rule("modality", "=", "CT"),),
    )
    assert (made.limits.instance_bytes, made.limits.queue_bytes, made.limits.per_minute) == (64 << 20, 3 << 29, 30)
    assert (made.pace.settle_s, made.pace.give_up_s, made.keep_days) == (5.0, 5.0, 0.0)
    explaining: Any = made.explaining
    assert (explaining.how["layer"], explaining.how["window"], explaining.how["target"]) == (
        ["a", "b"],
        (16, 16, 8),
        "1",
    )
    assert [type(each.to) for each in made.peers][1] is Web
    assert made.peers[0].calling == "SENDER"


def test_a_configuration_file_may_hold_any_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"from": ["10.0.0.0/8", "nowhere"], "as": "SENDER", "model": "demo-mri", "send-to": TO, "derived": True}
    (tmp_path / "listen.yaml").write_text(json.dumps(values))
    assert main(["listen", "--config", str(tmp_path / "listen.yaml"), "--folder", str(tmp_path)]) == 2
    assert "not 'nowhere'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--send-to", ""], "--send-to is missing"),
        (["--send-to", f"{TO},{TO}"], "names one destination twice"),
        (["--send-to", "ftp://x"], "--to begins with 'ftp:'|--send-to begins"),
        (["--model", ""], "--model is missing"),
        (["--formats", "nifti,dicom-sc"], "dicom-sc, dicom-seg.* not 'nifti,dicom-sc'"),
        (["--formats", "dicom-xx"], "dicom-xx"),
        (["--from", "10.0.0.1/8"], "--from takes addresses"),
        (["--aet", "A TITLE THAT IS TOO LONG"], "is no AE title"),
        (["--port", "0"], "--port takes a number"),
        (["--rate", "x"], "--rate takes a number"),
        (["--max-queue", "-1"], "--max-queue takes a number"),
        (["--settle", "soon"], "--settle takes seconds"),
        (["--only", "patient=Doe"], "--only takes rules"),
        (["--serve-key", "node.key"], "needs --serve-cert"),
        (["--serve-cert", "no-such.pem"], "--serve-cert no-such.pem"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_in_words(words: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        asked(*words)


def test_tls_needs_a_certificate_and_may_ask_for_the_clients(tmp_path: Path) -> None:
    files: Certificates = make_certificates(tmp_path)
    own = ["--serve-cert", str(files.server), "--serve-key", str(files.server_key)]
    assert asked().secured is None
    plain, strict = asked(*own).secured, asked(*own, "--clients-ca", str(files.authority)).secured
    assert plain is not None
    assert strict is not None
    assert (plain.verify_mode.name, strict.verify_mode.name) == ("CERT_NONE", "CERT_REQUIRED")
    with pytest.raises(UsageError, match="--clients-ca"):
        asked(*own, "--clients-ca", str(tmp_path / "none.pem"))


def test_how_a_node_stands_is_told_while_it_runs_and_afterwards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["listen", "--status", "--folder", str(tmp_path / "none")]) == 4
    assert "no node has worked on it" in capsys.readouterr().err
    paths = write_series(tmp_path / "study", stored_values((7, 5, 4)), GEOMETRIES["oblique"])
    gapped = write_series(
        tmp_path / "gap", stored_values((7, 5, 4)), GEOMETRIES["oblique"], uid_seed="gap", leave_out=[1]
    )
    with node_here(settings(tmp_path / "queue", f"dicom://NODE@127.0.0.1:{free_port()}")) as here:
        assert stored(here.port, [*paths, *gapped]) == [0] * 7
        here.until("explained", "failed")
        code, values, words = status(tmp_path / "queue", capsys)
        assert code == 1  # something has failed
        assert (values["ok"], values["running"], values["aet"], values["port"]) == (False, True, "MEDCAM", here.port)
        assert {state: count for state, count in values["series"].items() if count} == {"explained": 1, "failed": 1}
        assert values["oldest_under_way"] is not None
        assert [one["words"] for one in values["failures"]] == ["a slice is missing among [1, 3, 4]"]
        assert values["destinations"][0]["waiting"] == 1
        assert (values["images"], values["image_bytes"]) == (7, here.inbox.held().size)
        assert values["disk_bytes"] > values["image_bytes"]
        for part in ("is running", "1 explained, 1 failed", "a slice is missing", "1 waiting", "7 images"):
            assert part in words
    code, values, words = status(tmp_path / "queue", capsys)
    assert (code, values["running"]) == (1, False)
    assert "is not running" in words


def test_what_failed_is_tried_again_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = arrivals(1)[0]
    inbox = Inbox(tmp_path)
    inbox.take(one, at=1.0)
    assert main(["listen", "--retry-failed", "--folder", str(tmp_path)]) == 0
    assert "nothing has failed" in capsys.readouterr().out
    inbox.move(one.series, before="received", to="failed", words="a reason", at=2.0)
    assert main(["listen", "--retry-failed", "--folder", str(tmp_path)]) == 0
    assert "1 series are tried again once the node runs again" in capsys.readouterr().out
    assert inbox.series()[0].state == "complete"
    assert main(["listen", "--retry-failed", "--status", "--folder", str(tmp_path)]) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop_and_a_second_one_does_what_it_ever_did(number: int) -> None:
    assert threading.current_thread() is threading.main_thread()
    before, said = signal.getsignal(number), []
    with _stoppable(said.append) as stop:
        os.kill(os.getpid(), number)
        assert stop.wait(5)
        assert signal.getsignal(number) == before
    assert len(said) == 1


@pytest.mark.slow
def test_the_command_explains_what_storescu_sends_and_ends_with_0(tmp_path: Path, orthanc: Orthanc) -> None:
    port, queue = free_port(), tmp_path / "queue"
    command = [
        sys.executable, "-m", "medcam", "listen", "--port", str(port), "--model", "demo-mri", "--send-to", orthanc.node, "--folder",
        str(queue), "--settle", "1",
    ]  # fmt: skip
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(command, stderr=log)
    try:
        wait_for_port(port, process)
        again = subprocess.run(command, capture_output=True, text=True)
        assert (again.returncode, "another node is at work" in again.stderr) == (2, True)
        paths = write_series(tmp_path / "study", stored_values((29, 24, 18)), GEOMETRIES["oblique"])
        assert stored(port, paths) == [0] * 18
        inbox, end = Inbox(queue), time.monotonic() + 100
        while [one.state for one in inbox.series()] != ["sent"]:
            assert time.monotonic() < end
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        log.close()
    assert len(orthanc.get("/instances")) >= 1
    assert "Traceback" not in (tmp_path / "log").read_text()
