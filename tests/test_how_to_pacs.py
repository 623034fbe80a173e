"""The how-to's commands are what it says they are: each is run, in its order, against a real Orthanc."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from formats.dicom_phantom import GEOMETRIES, MARKERS, stored_values, write_series
from medcam.cli import main
from pacs import servers
from pacs.servers import Certificates, Orthanc, free_port, make_certificates

PAGE = Path(__file__).parents[1] / "docs" / "how-to-pacs.md"


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path / "certificates")


@pytest.fixture
def archives(tmp_path: Path, certificates: Certificates) -> Iterator[tuple[Orthanc, Orthanc, int]]:
    """An archive, one that speaks TLS, and the port at which the first tells us its promises."""
    port = free_port()
    plain = servers.orthanc(tmp_path / "plain", {"DicomModalities": {"us": ["MEDCAM", "127.0.0.1", port]}})
    secure = servers.orthanc(
        tmp_path / "secure",
        {
            "DicomTlsEnabled": True, "DicomTlsCertificate": str(certificates.server),
            "DicomTlsPrivateKey": str(certificates.server_key), "DicomTlsTrustedCertificates": str(certificates.authority),
            "DicomTlsRemoteCertificateRequired": True,
        },
    )  # fmt: skip
    plain.start()
    secure.start()
    yield plain, secure, port
    plain.kill()
    secure.kill()


def test_the_commands_of_the_how_to_do_what_it_says(
    archives: tuple[Orthanc, Orthanc, int],
    certificates: Certificates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain, secure, port = archives
    here = {
        "dicoms://ARCHIVE@pacs.example:2762": f"dicoms://ORTHANC@localhost:{secure.port}",
        "dicom://ARCHIVE@pacs.example:11112": plain.node,
        "https://pacs.example/dicom-web": plain.dicomweb,
        "ca.pem": str(certificates.authority),
        "me.pem": str(certificates.client),
        "me.key": str(certificates.client_key),
        "11113": str(port),
        "MEDCAM_DICOMWEB_USER=me": f"MEDCAM_DICOMWEB_USER={servers.USER}",
        "MEDCAM_DICOMWEB_PASSWORD=secret": f"MEDCAM_DICOMWEB_PASSWORD={servers.PASSWORD}",
    }
    monkeypatch.chdir(tmp_path)
    # The user's own state folder is not the test's.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    write_series(tmp_path / "study", stored_values((29, 24, 18)), GEOMETRIES["oblique"])
    said = []
    for line in commands():
        words = shlex.split(line)
        words = [here.get(word, word) for word in words]
        if words[0] == "export":
            monkeypatch.setenv(*words[1].split("=", 1))
            continue
        assert words[0] == "medcam"
        assert main(words[1:]) == 0, f"{line}: {capsys.readouterr().err}"
        said.append(capsys.readouterr().out)
    explained, planned, sent, skipped, again, web, tls, status, resumed, promised, hidden, published = said
    assert explained
    assert hidden
    count = int(planned.split("planned")[-2].split()[-1])
    assert count >= 1
    assert f"{count} sent" in sent
    assert f"{count} skipped" in skipped
    assert all(f"{count} sent" in each for each in (again, web, tls))
    assert f"{plain.node}: {count} sent" in status
    assert "nothing waits" in resumed
    assert f"{count} committed" in promised
    assert "not DICOM, not sent" in sent
    assert f"{count} sent" in published
    assert len(secure.get("/instances")) == count
    assert len(plain.get("/instances")) == 2 * count
    names = [plain.get(f"/patients/{each}")["MainDicomTags"]["PatientName"] for each in plain.get("/patients")]
    assert len(names) == 2
    assert MARKERS[0] in names
    assert (tmp_path / "study.key").stat().st_mode & 0o077 == 0
    assert (tmp_path / "state" / "medcam" / "spool" / "queue.sqlite3").exists()


def test_every_option_of_the_command_that_the_how_to_names_exists() -> None:
    from medcam.cli import _parsers

    _, parsers = _parsers()
    options = {option for action in parsers["send"]._actions for option in action.option_strings}
    options |= {option for action in parsers["explain"]._actions for option in action.option_strings}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE.read_text())) <= options
