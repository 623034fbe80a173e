"""What `medcam send` refuses before it does anything, and how it says so."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medcam.pacs.spool import Spool

Send = Callable[..., tuple[int, Any, str]]
NODE, WEB = "dicom://A@127.0.0.1:9", "https://pacs.example/dicom-web"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", NODE), "name what to send"),
        (("{study}", "--resume", "--to", NODE), "name what to send"),
        (("--resume", "--status"), "name what to send"),
        (("{study}",), "--to is missing"),
        (("{study}", "--to", WEB, "--commit"), "--commit is for DICOM nodes"),
        (("{study}", "--to", WEB, "--tls-name", "x"), "--tls-name is for DICOM nodes"),
        (("{study}", "--to", NODE, "--tls-ca", "ca.pem"), "add --tls, or write dicoms://"),
        (("{study}", "--to", NODE, "--timeout", "0"), "--timeout takes seconds"),
        (("{study}", "--to", NODE, "--timeout", "soon"), "--timeout takes seconds"),
        (("{study}", "--to", NODE, "--attempts", "0"), "--attempts takes a number"),
        (("{study}", "--to", NODE, "--attempts", "many"), "--attempts takes a number"),
        (("{study}", "--to", NODE, "--commit-port", "99999"), "--commit-port takes a number"),
        (("{study}", "--to", NODE, "--as", "much too long for a title"), "no AE title"),
        (("--resume", "--to", NODE), "the spool holds nothing for dicom://A@127.0.0.1:9; it knows no destination"),
        (("{study}", "--to", "https://me:s3cret@pacs.example/x"), "user name or password"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_queued(
    words: tuple[str, ...], said: str, study: Path, spool: Path, send: Send
) -> None:
    code, answer, told = send(*(word.format(study=study) for word in words), "--debug")
    assert code == 2
    assert said in answer["error"]
    assert "s3cret" not in told + str(answer)
    assert not spool.exists() or Spool(spool).entries() == ()


def test_files_of_tls_that_are_not_there_are_refused_by_name(study: Path, spool: Path, send: Send) -> None:
    code, answer, _ = send(study, "--to", "dicoms://A@127.0.0.1:9", "--tls-ca", "nowhere.pem")
    assert code == 2
    assert "nowhere.pem cannot be read" in answer["error"]
    assert Spool(spool).entries() == ()


def test_credentials_that_would_travel_readable_are_refused_before_anything_is_queued(
    study: Path, spool: Path, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDCAM_DICOMWEB_TOKEN", "s3cret")
    code, answer, told = send(study, "--to", "http://pacs.example/dicom-web", "--debug")
    assert code == 2
    assert "would travel readable" in answer["error"]
    assert "s3cret" not in told + str(answer)
    assert Spool(spool).entries() == ()


@pytest.mark.parametrize("package", ["pynetdicom", "filelock", "dicomweb_client"])
def test_a_package_that_is_not_installed_is_named(
    package: str, study: Path, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for module in [name for name in sys.modules if name.startswith((f"{package}.", "medcam.pacs.st"))]:
        monkeypatch.delitem(sys.modules, module)
    code, answer, _ = send(study, "--to", WEB if package == "dicomweb_client" else NODE)
    assert code == 2
    assert f"sending needs the package {package.replace('_', '-')}: pip install 'medcam-xai[pacs]'" in answer["error"]


def test_a_table_tells_a_long_reason_once(study: Path, spool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from medcam.cli import main
    from pacs.servers import free_port

    node = f"dicom://A@127.0.0.1:{free_port()}"
    assert main(["send", str(study), "--to", node, "--spool", str(spool), "--attempts", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("waiting")] == [
        f"waiting  MR Image  00{k}.dcm  [1]" for k in range(4)
    ]
    assert sum("Connection refused" in line for line in lines) == 1
    assert lines[-2:] == ["4 waiting", "what waits stays in the spool: `medcam send --resume` sends it"]
