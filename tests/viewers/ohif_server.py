"""OHIF as a site runs it: its built files and, under one address, the archive's DICOMweb service, on a loopback port."""

from __future__ import annotations

import base64
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pacs.servers import Orthanc

# What OHIF is told of the archive: addresses are those of this server, which passes them on.
_SOURCE = {
    "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
    "sourceName": "archive",
    "configuration": {
        "friendlyName": "Orthanc", "name": "archive",
        "wadoUriRoot": "/dicom-web", "qidoRoot": "/dicom-web", "wadoRoot": "/dicom-web",
        "qidoSupportsIncludeField": False, "imageRendering": "wadors", "thumbnailRendering": "wadors",
        "enableStudyLazyLoad": True, "supportsFuzzyMatching": False, "supportsWildcard": True,
        "bulkDataURI": {"enabled": True, "relativeResolution": "studies"},
        "omitQuotationForMultipartRequest": True,
    },
}  # fmt: skip
CONFIG = {
    "routerBasename": None, "showStudyList": True, "extensions": [], "modes": [], "customizationService": {},
    "showWarningMessageForCrossOrigin": False, "showCPUFallbackMessage": False, "showLoadingIndicator": True,
    "strictZSpacingForVolumeViewport": True, "maxNumberOfWebWorkers": 2,
    "investigationalUseDialog": {"option": "never"},
    "defaultDataSourceName": "archive", "dataSources": [_SOURCE],
}  # fmt: skip


def ohif_dist() -> Path:
    """The folder of OHIF's built files. Skips where none is named."""
    named = os.environ.get("MEDCAM_OHIF_DIST")
    if not named or not (Path(named) / "index.html").is_file():
        pytest.skip("MEDCAM_OHIF_DIST names no folder of OHIF's built files (dist/ of the npm package @ohif/app)")
    return Path(named)


@contextmanager
def ohif(dist: Path, archive: Orthanc) -> Iterator[str]:
    """Serve OHIF over an archive; gives its address."""

    class Handler(_Handler):
        folder, upstream, auth = dist, archive.url, ":".join(archive.auth)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    upstream: str
    auth: str

    def __init__(self, *given: Any) -> None:
        super().__init__(*given, directory=str(self.folder))

    def log_message(self, *_: object) -> None:
        """Say nothing: the browser's own log is what tests read."""

    def end_headers(self) -> None:
        # Without them a browser gives a page no memory shared between threads, in which OHIF builds its volumes.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/dicom-web/"):
            self._pass_on()
        elif path == "/app-config.js":
            self._answer(200, "text/javascript", f"window.config = {json.dumps(CONFIG)};".encode())
        else:
            # Pages of a single-page application have no files.
            if not (self.folder / path.lstrip("/")).is_file():
                self.path = "/index.html"
            super().do_GET()

    def _pass_on(self) -> None:
        request = urllib.request.Request(f"{self.upstream}{self.path}")
        request.add_header("Authorization", f"Basic {base64.b64encode(self.auth.encode()).decode()}")
        # The archive builds the addresses in its answers from the host that was asked.
        for name in ("Accept", "Host"):
            if self.headers[name]:
                request.add_header(name, self.headers[name])
        try:
            answer = urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            self._answer(answer.status, answer.headers["Content-Type"] or "text/plain", answer.read())

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
