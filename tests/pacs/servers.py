"""PACS to send to: Orthanc and dcmtk's servers as processes of a test, on free loopback ports, and certificates for TLS."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

ORTHANC = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
_PLUGINS = ("/usr/share/orthanc/plugins/libOrthancDicomWeb.so", "/usr/lib/orthanc/libOrthancDicomWeb.so")
USER, PASSWORD = "tester", "not-a-secret"
_PATIENCE_S = 30.0


def free_port() -> int:
    """A port of the loopback that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes] | None = None) -> None:
    """Return once somebody listens there."""
    give_up_at = time.monotonic() + _PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process is not None and process.poll() is not None:
                raise AssertionError(f"the server ended with {process.returncode}") from None
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.05)


@dataclass
class Server:
    """A server process; `kill` is a SIGKILL, and `start` starts it again over the same files."""

    command: list[str]
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **self.environment}
        )
        wait_for_port(self.port, self.process)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(timeout=_PATIENCE_S)


@dataclass
class Orthanc(Server):
    """Orthanc with its DICOMweb plugin; basic authentication over HTTP."""

    http_port: int = 0
    auth: tuple[str, str] = (USER, PASSWORD)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def dicomweb(self) -> str:
        return f"{self.url}/dicom-web"

    @property
    def node(self) -> str:
        return f"dicom://ORTHANC@127.0.0.1:{self.port}"

    def start(self) -> None:
        super().start()
        wait_for_port(self.http_port, self.process)

    def get(self, path: str) -> Any:
        answer = requests.get(f"{self.url}{path}", auth=self.auth, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def file(self, instance: str) -> bytes:
        answer = requests.get(f"{self.url}/instances/{instance}/file", auth=self.auth, timeout=30)
        answer.raise_for_status()
        return answer.content

    def post(self, path: str, data: bytes | str) -> Any:
        answer = requests.post(f"{self.url}{path}", data=data, auth=self.auth, timeout=30)
        answer.raise_for_status()
        return answer

    def empty(self) -> None:
        for patient in self.get("/patients"):
            requests.delete(f"{self.url}/patients/{patient}", auth=self.auth, timeout=30).raise_for_status()


def orthanc(folder: Path, settings: Mapping[str, Any] | None = None) -> Orthanc:
    """Orthanc with all it holds in this folder, not yet started. Skips where it is not installed."""
    plugin = next((path for path in _PLUGINS if Path(path).exists()), None)
    if not Path(ORTHANC).exists() or plugin is None:
        pytest.skip("Orthanc and its DICOMweb plugin are not installed (apt-get install orthanc orthanc-dicomweb)")
    folder.mkdir(parents=True, exist_ok=True)
    port, http_port = free_port(), free_port()
    values = {
        "Name": "test", "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
        "HttpPort": http_port, "HttpBindAddresses": ["127.0.0.1"], "RemoteAccessAllowed": False,
        "DicomPort": port, "DicomAet": "ORTHANC", "DicomCheckCalledAet": True, "DicomServerEnabled": True,
        "AuthenticationEnabled": True, "RegisteredUsers": {USER: PASSWORD}, "Plugins": [plugin],
        "UnknownSopClassAccepted": True, "DicomAlwaysAllowStore": True, "DicomAlwaysAllowFind": True,
        "ConcurrentJobs": 1, "HttpThreadsCount": 4, "SaveJobs": False, "LimitFindResults": 0,
        **(settings or {}),
    }  # fmt: skip
    config = folder / "orthanc.json"
    config.write_text(json.dumps(values))
    return Orthanc([ORTHANC, str(config)], port, http_port=http_port)


def tool(name: str) -> str:
    """The path of a program of dcmtk or openssl. Skips where it is not installed."""
    # pynetdicom installs programs of the same names beside Python.
    own = Path(sys.executable).parent
    folders = [each for each in os.environ.get("PATH", "").split(os.pathsep) if Path(each) != own]
    path = shutil.which(name, path=os.pathsep.join(folders))
    if path is None:
        pytest.skip(f"{name} is not installed (apt-get install dcmtk openssl)")
    return path


@dataclass(frozen=True)
class Certificates:
    """PEM files of two authorities, a server and clients."""

    authority: Path
    other_authority: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path
    stranger: Path
    stranger_key: Path


def make_certificates(folder: Path, *, name: str = "localhost") -> Certificates:
    """Make an authority with a server and a client, and a stranger that signed itself."""
    openssl = tool("openssl")
    folder.mkdir(parents=True, exist_ok=True)

    def run(*words: str) -> None:
        subprocess.run([openssl, *words], cwd=folder, check=True, capture_output=True)

    def authority(label: str) -> None:
        run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={label} authority",
            "-keyout", f"{label}.key", "-out", f"{label}.pem", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
            "-addext", "subjectKeyIdentifier=hash")  # fmt: skip

    def signed(label: str, common_name: str, alternatives: str) -> None:
        extensions = folder / f"{label}.ext"
        extensions.write_text(f"subjectAltName={alternatives}\nauthorityKeyIdentifier=keyid\n")
        run("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={common_name}", "-keyout", f"{label}.key",
            "-out", f"{label}.csr")  # fmt: skip
        run("x509", "-req", "-in", f"{label}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", extensions.name, "-out", f"{label}.pem")  # fmt: skip

    authority("ca")
    authority("other")
    signed("server", name, f"DNS:{name}")
    signed("client", "medcam", "DNS:medcam")
    return Certificates(
        folder / "ca.pem", folder / "other.pem", folder / "server.pem", folder / "server.key", folder / "client.pem",
        folder / "client.key", folder / "other.pem", folder / "other.key",
    )  # fmt: skip
