"""`medcam send`: DICOM results to a PACS."""

from __future__ import annotations

import os
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medcam.commands import Result, Say
from medcam.commands.parsing import Commands, command
from medcam.errors import UsageError

if TYPE_CHECKING:
    from medcam.pacs.instances import Collected
    from medcam.pacs.peers import Peer
    from medcam.pacs.sending import Patience
    from medcam.pacs.spool import Entry, Spool

_EXAMPLES = """\
  medcam send results --to dicom://ARCHIVE@pacs.hospital.org:11112 --as MEDCAM
  medcam send results --to dicoms://ARCHIVE@pacs.hospital.org:2762 --tls-ca ca.pem --tls-cert me.pem --tls-key me.key
  medcam send results --to https://pacs.hospital.org/dicom-web          credentials: see below
  medcam send results --to dicom://ARCHIVE@pacs.hospital.org:11112 --dry-run
  medcam send --resume                                                  what could not be sent before
  medcam send --status

What cannot be sent stays in the spool. What was sent to a PACS is not sent there again, unless --again.
Credentials for https:// come from the environment alone: MEDCAM_DICOMWEB_TOKEN, or MEDCAM_DICOMWEB_USER and MEDCAM_DICOMWEB_PASSWORD.
"""
_PAUSE_S = "2"
_SENT = ("sent", "committed")


def add(commands: Commands) -> None:
    """Add the parser."""
    send = command(commands, "send", "DICOM results to a PACS, by C-STORE or STOW-RS", examples=_EXAMPLES)
    send.add_argument("paths", nargs="*", metavar="PATH", help="files, folders or zips; only DICOM instances are sent")
    send.add_argument(
        "--to", metavar="ADDRESS", help="dicom://AET@host:port, dicoms://AET@host:port or https://host/path"
    )
    send.add_argument("--as", dest="calling", metavar="AET", help="our own AE title (default: MEDCAM)")
    send.add_argument("--several-patients", action="store_true", help="allow instances of more than one patient")
    send.add_argument("--again", action="store_true", help="send also what was sent there before")
    send.add_argument("--commit", action="store_true", help="ask the PACS to promise that it keeps what it stored")
    send.add_argument(
        "--commit-port", metavar="PORT", help="where we listen for that promise (default: 11112); the PACS must know it"
    )
    send.add_argument("--commit-wait", metavar="S", default="60", help="how long we listen (default: 60)")
    send.add_argument("--dry-run", action="store_true", help="say what would be sent, and send nothing")
    send.add_argument("--resume", action="store_true", help="send what waits in the spool, to all or to one by --to")
    send.add_argument("--status", action="store_true", help="say what waits in the spool, and send nothing")
    send.add_argument("--spool", metavar="DIR", help="where the queue lies (default: in the user's state folder)")
    send.add_argument("--tls", action="store_true", help="speak TLS to a dicom:// address")
    send.add_argument("--tls-ca", metavar="PEM", help="certificates to trust, instead of the system's")
    send.add_argument("--tls-cert", metavar="PEM", help="our certificate, for a PACS that wants to know its clients")
    send.add_argument("--tls-key", metavar="PEM", help="its key, without a password")
    send.add_argument("--tls-name", metavar="HOST", help="the name in the PACS's certificate, if not the host's")
    send.add_argument("--timeout", metavar="S", default="30", help="how long to wait for an answer (default: 30)")
    send.add_argument("--attempts", metavar="N", default="4", help="how often to try before leaving it (default: 4)")
    send.add_argument(
        "--pause", metavar="S", default=_PAUSE_S, help=f"after a first failure; doubles each time (default: {_PAUSE_S})"
    )
    send.add_argument("--config", metavar="FILE", help="JSON or YAML with any of these options")


def run(options: Namespace, say: Say) -> Result:
    """Send, resume, or say what waits."""
    if sum((bool(options.paths), options.resume, options.status)) != 1:
        raise UsageError("name what to send, or give --resume (send what waits) or --status (say what waits)")
    try:
        from medcam.pacs.sending import Patience
        from medcam.pacs.spool import Spool, default_folder

        spool = Spool(Path(options.spool) if options.spool else default_folder())
        if options.status:
            return _status(spool, options)
        patience = Patience(
            attempts=_count(options.attempts),
            first_wait_s=seconds_of("--pause", options.pause, least=0.0),
            commitment_s=seconds_of("--commit-wait", options.commit_wait, least=0.1),
        )
        return _resume(spool, options, patience, say) if options.resume else _send(spool, options, patience, say)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0].replace("_", "-")
        raise UsageError(f"sending needs the package {package}: pip install 'medcam-xai[pacs]'") from error


def _send(spool: Spool, options: Namespace, patience: Patience, say: Say) -> Result:
    from medcam.pacs.instances import collect
    from medcam.pacs.sending import deliver

    peer = peer_of(options)
    collected = collect([Path(path) for path in options.paths], several_patients=options.several_patients)
    for note in collected.notes:
        say(note)
    before = {one.instance.uid: one for one in spool.entries(peer.to.address)}
    if options.dry_run:
        return _planned(peer, collected, before, again=options.again)
    uids = frozenset(one.uid for one in collected.instances)
    skipped = {uid for uid in uids if not options.again and uid in before and before[uid].state in _SENT}
    spool.add(peer, collected.instances, again=options.again, commitment=peer.commitment_port is not None)
    say(f"sending {len(uids) - len(skipped)} of {len(uids)} instances to {peer.to.address}")
    entries = deliver(spool, peer, uids, patience=patience, say=say)
    names = {one.uid: one.name for one in collected.instances}
    rows = [_row(one, names[one.instance.uid], skipped=one.instance.uid in skipped) for one in entries]
    return _result(rows, collected.others)


def _resume(spool: Spool, options: Namespace, patience: Patience, say: Say) -> Result:
    from medcam.pacs.sending import deliver

    rows: list[dict[str, Any]] = []
    for peer in _known_peers(spool, options):
        due = {one.instance.uid for one in spool.entries(peer.to.address) if _is_due(one)}
        if not due:
            continue
        say(f"sending {len(due)} instances to {peer.to.address}")
        spool.remember(peer)
        if options.dry_run:
            entries = tuple(one for one in spool.entries(peer.to.address) if one.instance.uid in due)
        else:
            entries = deliver(spool, peer, frozenset(due), patience=patience, say=say)
        rows += [_row(one, one.instance.uid) for one in entries]
    if not rows:
        return Result({"instances": []}, ["nothing waits in the spool"])
    return _result(rows, ())


def _status(spool: Spool, options: Namespace) -> Result:
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    for peer in _known_peers(spool, options):
        entries = spool.entries(peer.to.address)
        counts = Counter(one.state for one in entries)
        lines.append(
            f"{peer.to.address}: {', '.join(f'{counts[state]} {state}' for state in sorted(counts)) or 'nothing'}"
        )
        due = [_row(one, one.instance.uid) for one in entries if _is_due(one)]
        rows += due
        lines += _table(due)
    return Result({"instances": rows}, lines or ["the spool is empty"])


def _is_due(entry: Entry) -> bool:
    return entry.state == "waiting" or (entry.state == "sent" and entry.commitment)


def _known_peers(spool: Spool, options: Namespace) -> list[Peer]:
    """Return the destinations in the spool, with what the command line says anew of the one that it names."""
    known = list(spool.peers())
    if not options.to:
        return known
    named = peer_of(options)
    before = next((peer for peer in known if peer.to == named.to), None)
    if before is None:
        raise UsageError(f"the spool holds nothing for {named.to.address}; it knows {_listed(known)}")
    tls = {name: value or getattr(before.tls, name) for name, value in vars(named.tls).items()}
    calling = named.calling if options.calling else before.calling
    port = named.commitment_port or before.commitment_port
    return [replace(named, calling=calling, tls=replace(named.tls, **tls), commitment_port=port)]


def _listed(peers: Sequence[Peer]) -> str:
    return ", ".join(peer.to.address for peer in peers) or "no destination"


def peer_of(options: Namespace) -> Peer:
    from medcam.pacs.peers import Node, Peer, TlsFiles, Web, aet, destination, tls_context
    from medcam.pacs.stow import credentials

    if not options.to:
        raise UsageError("--to is missing: dicom://AET@host:port, or the address of a DICOMweb service")
    to = destination(options.to, tls=options.tls)
    files = TlsFiles(options.tls_ca, options.tls_cert, options.tls_key, options.tls_name)
    if isinstance(to, Node):
        if any(vars(files).values()) and not to.tls:
            raise UsageError(
                "--tls-ca, --tls-cert, --tls-key and --tls-name are for TLS: add --tls, or write dicoms://"
            )
    elif options.commit or options.commit_port:
        raise UsageError("--commit is for DICOM nodes; a DICOMweb service's answer says already what it keeps")
    elif files.name:
        raise UsageError("--tls-name is for DICOM nodes; a DICOMweb service is named by its address")
    # What cannot be used is refused before anything is queued.
    tls_context(files)
    if isinstance(to, Web):
        credentials(os.environ, to)
    return Peer(
        to,
        calling=aet(options.calling or "MEDCAM"),
        # As absolute paths, so that --resume finds them from anywhere.
        tls=replace(files, **{each: _absolute(getattr(files, each)) for each in ("authority", "certificate", "key")}),
        timeout_s=seconds_of("--timeout", options.timeout, least=0.1),
        commitment_port=_port(options.commit_port or "11112") if options.commit or options.commit_port else None,
    )


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())


def _planned(peer: Peer, collected: Collected, before: Mapping[str, Entry], *, again: bool) -> Result:
    rows = []
    for one in collected.instances:
        known = before.get(one.uid)
        skip = known is not None and known.state in _SENT and not again
        words = f"was sent on {known.changed}: would be skipped" if known and skip else "would be sent"
        rows.append(
            {"file": one.name, "kind": one.kind, "sop_instance_uid": one.uid, "to": peer.to.address,
             "state": "skipped" if skip else "planned", "words": words}
        )  # fmt: skip
    return _result(rows, collected.others)


def _row(entry: Entry, name: str, *, skipped: bool = False) -> dict[str, Any]:
    words = f"was sent on {entry.changed}; --again sends it once more" if skipped else entry.words
    return {
        "file": name, "kind": entry.instance.kind, "sop_instance_uid": entry.instance.uid, "to": entry.address,
        "state": "skipped" if skipped else entry.state, "attempts": entry.attempts, "words": words,
        "promised": entry.state == "committed" or not entry.commitment,
    }  # fmt: skip


def _result(rows: list[dict[str, Any]], others: Sequence[str]) -> Result:
    counts = Counter(row["state"] for row in rows)
    summary = [", ".join(f"{counts[state]} {state}" for state in sorted(counts))]
    if counts["waiting"]:
        summary.append("what waits stays in the spool: `medcam send --resume` sends it")
    lines = [*_table(rows), *(f"not DICOM, not sent: {name}" for name in others), *summary]
    ok = not counts["waiting"] and all(row.get("promised", True) for row in rows)
    return Result({"instances": rows, "not_dicom": list(others)}, lines, ok)


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line a row; a reason that many share is given once, below."""
    counts = Counter(row["words"] for row in rows)
    shared = {words: f"[{n}]" for n, (words, count) in enumerate(counts.items(), 1) if count > 2 and len(words) > 30}
    columns = [[str(row[name]) for row in rows] for name in ("state", "kind", "file")]
    widths = [max((len(cell) for cell in column), default=0) for column in columns]
    lines = []
    for row, *cells in zip(rows, *columns, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([*cells, shared.get(row["words"], row["words"])]).rstrip())
    return [*lines, *(f"{mark} {words}" for words, mark in shared.items())]


def seconds_of(option: str, text: str, *, least: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value < 1e6:
        raise UsageError(f"{option} takes seconds, from {least:g}, not '{text}'")
    return value


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 1000:
        raise UsageError(f"--attempts takes a number from 1, not '{text}'")
    return int(text)


def _port(text: str) -> int:
    if not str(text).isdigit() or not 1 <= int(text) <= 65535:
        raise UsageError(f"--commit-port takes a number from 1 to 65535, not '{text}'")
    return int(text)
