"""What may stand in --to, what may not, and that no refusal repeats a secret."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcam.errors import UsageError
from medcam.pacs.peers import Node, Peer, TlsFiles, Web, aet, destination, peer_from_json, tls_context


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dicom://ARCHIVE@pacs.org:11112", Node("ARCHIVE", "pacs.org", 11112)),
        ("dicom://ARCHIVE@pacs.org", Node("ARCHIVE", "pacs.org", 104)),
        ("dicoms://ARCHIVE@pacs.org", Node("ARCHIVE", "pacs.org", 2762, tls=True)),
        ("dicom://MY%20ARCHIVE@[::1]:104", Node("MY ARCHIVE", "::1", 104)),
        ("https://PACS.org:8443/Dicom-Web/", Web("https://pacs.org:8443/Dicom-Web")),
        ("http://localhost:8042/dicom-web", Web("http://localhost:8042/dicom-web")),
    ],
)
def test_an_address_is_read(text: str, expected: Node | Web) -> None:
    assert destination(text) == expected
    assert destination(expected.address) == expected


def test_tls_can_be_asked_for_apart_from_the_address() -> None:
    assert destination("dicom://A@pacs", tls=True) == Node("A", "pacs", 2762, tls=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("https://user:s3cret@pacs.org/dicom-web", "user name or password"),
        ("https://s3cret@pacs.org/dicom-web", "user name or password"),
        ("dicom://ARCHIVE:s3cret@pacs.org:104", "user name or password"),
        ("https://pacs.org/dicom-web?token=s3cret", "goes on after its path"),
        ("https://pacs.org/dicom-web#s3cret", "goes on after its path"),
        ("https://user:s3cret@[broken/dicom-web", "no address that can be read"),
        ("dicom://ARCHIVE@pacs.org:s3cret", "no address that can be read"),
        ("dicom://pacs.org:104", "names no AE title"),
        ("dicom://A@pacs.org:104/study", "ends with its port"),
        ("ftp://pacs.org", "medcam sends to"),
        ("pacs.org", "names no host"),
        ("dicom://WAY-TOO-LONG-A-TITLE@pacs.org:104", "no AE title"),
    ],
)
def test_what_is_no_address_is_refused_without_repeating_a_secret(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        destination(text)
    assert "s3cret" not in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_usage_error(text: str) -> None:
    for prefix in ("", "dicom://", "https://", "dicom://A@"):
        with contextlib.suppress(UsageError):
            assert isinstance(destination(prefix + text), (Node, Web))


@pytest.mark.parametrize("text", ["", " ", "a\\b", "seventeen letters", "tab\there", "umläut"])
def test_what_is_no_title_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no AE title"):
        aet(text)


def test_a_peer_comes_back_from_its_text() -> None:
    peer = Peer(Node("A B", "::1", 11112, tls=True), "US", TlsFiles("ca", "cert", "key", "name"), 2.5, 4000)
    assert peer_from_json(peer.to_json()) == peer
    assert peer_from_json(Peer(Web("https://pacs.org/x")).to_json()) == Peer(Web("https://pacs.org/x"))


def test_only_tls_or_this_machine_is_private() -> None:
    assert Web("https://pacs.org/x").is_private
    assert Web("http://127.0.0.1:80/x").is_private
    assert not Web("http://pacs.org/x").is_private
    assert not Web("http://127.0.0.1.evil.org/x").is_private


def test_files_of_tls_that_do_not_fit_are_refused_by_name(tmp_path_factory: pytest.TempPathFactory) -> None:
    from pacs.servers import make_certificates

    folder = tmp_path_factory.mktemp("tls")
    made = make_certificates(folder)
    (folder / "text.pem").write_text("hello")
    with pytest.raises(UsageError, match=r"--tls-ca .*nowhere\.pem"):
        tls_context(TlsFiles(authority=str(folder / "nowhere.pem")))
    with pytest.raises(UsageError, match=r"--tls-ca .*text\.pem"):
        tls_context(TlsFiles(authority=str(folder / "text.pem")))
    with pytest.raises(UsageError, match="belong together"):
        tls_context(TlsFiles(certificate=str(made.client), key=str(made.server_key)))
    with pytest.raises(UsageError, match="--tls-key needs --tls-cert"):
        tls_context(TlsFiles(key=str(made.client_key)))


def test_a_locked_key_is_refused_instead_of_asked_for(tmp_path_factory: pytest.TempPathFactory) -> None:
    import subprocess

    from pacs.servers import make_certificates, tool

    folder = tmp_path_factory.mktemp("locked")
    made = make_certificates(folder)
    locked = folder / "locked.key"
    subprocess.run(
        [tool("openssl"), "rsa", "-aes128", "-in", str(made.client_key), "-out", str(locked), "-passout", "pass:word"],
        check=True, capture_output=True,
    )  # fmt: skip
    with pytest.raises(UsageError, match="without a password"):
        tls_context(TlsFiles(certificate=str(made.client), key=str(locked)))
