"""STOW-RS: each instance in a request of its own, so that each has its own answer.

References
----------
DICOM PS3.18 10.5 (Store Transaction), I.2 (Store Instances Response).
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any, cast

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from medcam.errors import UsageError
from medcam.pacs.answers import Answer, NoConnectionError, Verdict, answer
from medcam.pacs.decoding import decoded
from medcam.pacs.peers import Peer, TlsFiles, Web, tls_context
from medcam.pacs.spool import Entry

if TYPE_CHECKING:
    import requests

# Above this a request goes in chunks, which TLS needs and some proxies refuse.
_LARGEST_REQUEST_BYTES = 2**30
_SLOWEST_BYTES_PER_S = 50_000
_OTHER_SYNTAX = {"0xC122", "HTTP 415"}
_BUSY = {408, 425, 429, 500, 502, 503, 504, 507}
# What no other instance would be spared either.
_SHUT = {
    401: "it does not accept our credentials: check MEDCAM_DICOMWEB_TOKEN, or MEDCAM_DICOMWEB_USER and MEDCAM_DICOMWEB_PASSWORD",
    403: "it does not allow us to store; ask its administrator",
    404: "there is no DICOMweb service at this path",
    405: "there is no DICOMweb service at this path that stores",
    407: "the proxy on the way wants credentials",
}


def store(entries: tuple[Entry, ...], peer: Peer, web: Web) -> Generator[Answer, None, None]:
    """Send instances one request each; see `medcam.pacs.answers.Store`."""
    with _session(peer.tls, web) as session:
        for entry in entries:
            answered = _store_one(session, entry, peer, web)
            yield answered
            if answered.verdict is Verdict.LATER and answered.status is None:
                return


def credentials(environment: Mapping[str, str], web: Web) -> requests.auth.AuthBase | None:
    """Return what shows who we are, from the environment alone, or None without any.

    Raises
    ------
    UsageError
        If they are incomplete, double, malformed, or would travel readable for all on the way.
    """
    from requests.auth import HTTPBasicAuth

    token = environment.get("MEDCAM_DICOMWEB_TOKEN", "").strip()
    user, password = (environment.get(f"MEDCAM_DICOMWEB_{name}") for name in ("USER", "PASSWORD"))
    if not token and user is None and password is None:
        return None
    if token and (user is not None or password is not None):
        raise UsageError("the environment has both MEDCAM_DICOMWEB_TOKEN and a user or password; leave one of them out")
    if not web.is_private:
        raise UsageError("credentials would travel readable to an address that begins with http://; send to https://")
    if token:
        # A library that refuses such a header would print it.
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise UsageError(
                "MEDCAM_DICOMWEB_TOKEN is no bearer token: it holds spaces or signs that no header may hold"
            )
        return _bearer(token)
    if user is None or password is None:
        raise UsageError("MEDCAM_DICOMWEB_USER and MEDCAM_DICOMWEB_PASSWORD go together, and one is missing")
    return HTTPBasicAuth(user.encode(), password.encode())


def _bearer(token: str) -> requests.auth.AuthBase:
    from requests.auth import AuthBase

    class Bearer(AuthBase):
        def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
            request.headers["Authorization"] = f"Bearer {token}"
            return request

    return Bearer()


def _session(files: TlsFiles, web: Web) -> requests.Session:
    import requests

    session = requests.Session()
    # Else a .netrc would give credentials that nobody named, and a variable of requests would outdo --tls-ca.
    session.trust_env = False
    session.proxies = dict(requests.utils.get_environ_proxies(web.url))
    session.auth = credentials(os.environ, web)
    # A redirect turns a POST into a GET, whose answer looks like success.
    session.max_redirects = 0
    tls_context(files)  # says what is wrong with the files better than requests does
    session.verify = files.authority or os.environ.get("REQUESTS_CA_BUNDLE") or True
    if files.certificate:
        session.cert = (files.certificate, files.key) if files.key else files.certificate
    session.headers["Accept"] = "application/dicom+json"
    return session


def _store_one(session: requests.Session, entry: Entry, peer: Peer, web: Web) -> Answer:
    answered = _post(session, entry, entry.instance.dataset(), peer, web)
    if answered.status not in _OTHER_SYNTAX:
        return answered
    plain = decoded(entry.instance, ExplicitVRLittleEndian)
    if plain.dataset is None:
        return Answer(entry, Verdict.REFUSED, plain.words, answered.status)
    again = _post(session, entry, plain.dataset, peer, web)
    return Answer(entry, again.verdict, f"{again.words}, {plain.words}", again.status)


def _post(session: requests.Session, entry: Entry, dataset: Dataset, peer: Peer, web: Web) -> Answer:
    import requests
    from dicomweb_client.api import DICOMwebClient
    from urllib3.exceptions import NewConnectionError

    wait_s = peer.timeout_s + entry.instance.size / _SLOWEST_BYTES_PER_S
    client = DICOMwebClient(
        web.url, session, callback=_plain_type, chunk_size=_LARGEST_REQUEST_BYTES, timeout=(peer.timeout_s, wait_s)
    )
    # Trying again is the queue's part; the client's own would send an empty body the second time.
    client.set_http_retry_params(retry=False)
    try:
        return _outcome(entry, client.store_instances([dataset]))
    except requests.HTTPError as error:
        return _refusal(entry, cast("requests.Response", error.response), web)
    except requests.TooManyRedirects as error:
        raise NoConnectionError(f"{web.url} sends us on to another address: give that one", lasting=True) from error
    except requests.exceptions.SSLError as error:
        raise NoConnectionError(_tls_words(error, web), lasting=True) from error
    except requests.ConnectionError as error:
        if isinstance(getattr(error.args[0] if error.args else None, "reason", None), NewConnectionError):
            words = f"{web.url} cannot be reached: is it running, and are host and port right?"
            raise NoConnectionError(words, lasting=False) from error
        return Answer(entry, Verdict.LATER, "the connection was lost on the way")
    except requests.Timeout:
        return Answer(entry, Verdict.LATER, f"no answer within {wait_s:.0f} s")
    except (requests.RequestException, ValueError, KeyError, TypeError, AttributeError):
        # ... or the answer is none that can be read. Its words may hold what it was sent.
        return Answer(entry, Verdict.REFUSED, "the service answers, but not as STOW-RS does; check the path in --to")


def _plain_type(response: requests.Response, *_: Any, **__: Any) -> requests.Response:
    """Cut what follows the media type, such as a charset: the client compares the whole."""
    response.headers["Content-Type"] = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return response


def _outcome(entry: Entry, said: Dataset) -> Answer:
    uid = entry.instance.uid
    # The sequence of failures is often there and empty.
    for item in said.get("FailedSOPSequence") or []:
        if item.get("ReferencedSOPInstanceUID") in (uid, None):
            return answer(entry, int(item.get("FailureReason") or 0x0110))
    for item in said.get("ReferencedSOPSequence") or []:
        if item.get("ReferencedSOPInstanceUID") == uid:
            return answer(entry, int(item.get("WarningReason") or 0))
    return Answer(
        entry, Verdict.REFUSED, "the service does not say that it stored the instance; check the path in --to"
    )


def _refusal(entry: Entry, response: requests.Response, web: Web) -> Answer:
    code = response.status_code
    if code in _SHUT:
        raise NoConnectionError(f"{web.url} answers {code}: {_SHUT[code]}", lasting=True)
    try:
        said = Dataset.from_json(response.json())
    except Exception:  # noqa: BLE001  a page, or nothing: what counts is the code
        said = Dataset()
    if said.get("FailedSOPSequence"):
        return _outcome(entry, said)
    verdict = Verdict.LATER if code in _BUSY else Verdict.REFUSED
    return Answer(
        entry, verdict, f"the service answers {code} ({response.reason or 'no reason given'})", f"HTTP {code}"
    )


def _tls_words(error: Exception, web: Web) -> str:
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"the certificate of {web.url} cannot be trusted; name its authority by --tls-ca"
    if "CERTIFICATE_REQUIRED" in text or "HANDSHAKE_FAILURE" in text or "UNKNOWN_CA" in text:
        return f"{web.url} wants to know its clients: give a certificate that it trusts by --tls-cert and --tls-key"
    return f"TLS with {web.url} does not come about; check the address"
