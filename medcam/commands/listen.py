"""`medcam listen`: a DICOM node that explains what it is sent, and sends the results on."""

from __future__ import annotations

import signal
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medcam.commands import Result, Say
from medcam.commands.listen_options import add
from medcam.commands.node_words import told
from medcam.commands.parsing import overlap_shares, window_sides
from medcam.commands.send import peer_of, seconds_of
from medcam.errors import UsageError

if TYPE_CHECKING:
    import ssl

    from medcam.pacs.admission import Guests, Limits
    from medcam.pacs.choosing import Choice
    from medcam.pacs.listening import Settings
    from medcam.pacs.peers import Peer
    from medcam.pacs.series_job import Explaining

__all__ = ["add", "run"]
_MIB, _GIB = 1 << 20, 1 << 30


def run(options: Namespace, say: Say) -> Result:
    """Listen until told to stop, or say how a node stands."""
    if options.status and options.retry_failed:
        raise UsageError("--status says how the node stands and --retry-failed changes it; give one of the two")
    try:
        folder = _folder(options)
        if options.status:
            from medcam.pacs.node_status import status_of

            return told(status_of(folder))
        if options.retry_failed:
            return _retry(folder)
        settings = _settings(options, folder)
        from medcam.pacs.listening import listen
        from medcam.workers.local import local

        engine = local(workers=1, limit_s=seconds_of("--limit", options.limit, least=1.0), tries=2)
        with _stoppable(say) as stop:
            listen(settings, engine, stop=stop, say=say)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0].replace("_", "-")
        raise UsageError(f"a DICOM node needs the package {package}: pip install 'medcam-xai[pacs]'") from error
    return Result({"folder": str(folder)}, ["stopped"])


def _retry(folder: Path) -> Result:
    from medcam.pacs.inbox import Inbox
    from medcam.pacs.node_status import status_of

    running = status_of(folder).running
    count = Inbox(folder).retry_failed(at=time.time())
    when = "by the node that runs" if running else "once the node runs again"
    return Result(
        {"series": count, "running": running},
        [f"{count} series are tried again {when}" if count else "nothing has failed"],
    )


@contextmanager
def _stoppable(say: Say) -> Iterator[threading.Event]:
    """Yield what is set by SIGTERM or Ctrl-C; a second one ends the process as ever."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, _frame: object) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        say("stopping: what is half received comes to its end")
        stop.set()

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    for each in before:
        signal.signal(each, ask)
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _folder(options: Namespace) -> Path:
    if options.folder:
        return Path(options.folder).absolute()
    from medcam.pacs.spool import default_folder

    return default_folder().parent / "node"


def _settings(options: Namespace, folder: Path) -> Settings:
    from medcam.pacs.forwarding import Forwarding
    from medcam.pacs.listening import Settings
    from medcam.pacs.readiness import Pace

    if not options.model:
        raise UsageError("--model is missing: name a bundle, a .pt2, weights with --factory, demo-mri or demo-cxr")
    settle_s, give_up_s = (
        seconds_of("--settle", options.settle, least=0.1),
        seconds_of("--give-up", options.give_up, least=0.1),
    )
    return Settings(
        folder=folder,
        guests=_guests(options),
        host=options.host or ("" if vars(options)["from"] else "127.0.0.1"),
        port=_whole("--port", options.port, most=65535),
        peers=_peers(options),
        explaining=_explaining(options),
        choice=_choice(options),
        limits=_limits(options),
        pace=Pace(settle_s, max(settle_s, give_up_s)),
        forwarding=Forwarding(
            _whole("--attempts", options.attempts, most=10_000), seconds_of("--pause", options.pause, least=0.01)
        ),
        secured=_secured(options),
        keep_days=_number("--keep", options.keep),
        keep_failed_days=_number("--keep-failed", options.keep_failed),
    )


def _guests(options: Namespace) -> Guests:
    from medcam.pacs.admission import HERE, Guests, networks
    from medcam.pacs.peers import aet

    titles = frozenset(aet(each) for each in (options.allow or "").split(",") if each.strip())
    named = vars(options)["from"]
    return Guests(aet(options.aet), titles, networks(named.split(",")) if named else HERE)


def _limits(options: Namespace) -> Limits:
    from medcam.pacs.admission import Limits

    return Limits(
        instance_bytes=int(_number("--max-instance", options.max_instance) * _MIB),
        series_instances=_whole("--max-series", options.max_series, most=10_000_000),
        queue_bytes=int(_number("--max-queue", options.max_queue) * _GIB),
        free_bytes=int(_number("--keep-free", options.keep_free) * _GIB),
        associations=_whole("--associations", options.associations, most=1000),
        per_minute=_whole("--rate", options.rate, most=1_000_000),
        idle_s=seconds_of("--idle", options.idle, least=1.0),
    )


def _secured(options: Namespace) -> ssl.SSLContext | None:
    from medcam.pacs.peers import TlsFiles, tls_context

    if not options.serve_cert:
        if options.serve_key or options.clients_ca:
            raise UsageError("--serve-key and --clients-ca are for TLS, which needs --serve-cert: our certificate")
        return None
    try:
        return tls_context(TlsFiles(options.clients_ca, options.serve_cert, options.serve_key), server=True)
    except UsageError as error:
        words = str(error).replace("--tls-ca", "--clients-ca").replace("--tls-cert", "--serve-cert")
        raise UsageError(words) from error


def _peers(options: Namespace) -> tuple[Peer, ...]:
    texts = [each.strip() for each in (options.send_to or "").split(",") if each.strip()]
    if not texts:
        raise UsageError("--send-to is missing: dicom://AET@host:port, or the address of a DICOMweb service")
    calling = vars(options)["as"] or options.aet
    try:
        found = tuple(peer_of(Namespace(**{**vars(options), "to": each, "calling": calling})) for each in texts)
    except UsageError as error:
        raise UsageError(str(error).replace("--to ", "--send-to ")) from error
    if len({each.to.address for each in found}) < len(found):
        raise UsageError("--send-to names one destination twice")
    return found


def _explaining(options: Namespace) -> Explaining:
    from medcam.formats import WRITERS
    from medcam.options import listed
    from medcam.pacs.series_job import Explaining

    # By name alone: the formats themselves, and methods, are looked at where they are loaded, in the worker.
    names = [each.partition("(")[0].strip() for each in listed(options.formats)]
    if not names or any(not each.startswith("dicom-") or each not in WRITERS for each in names):
        raise UsageError(
            f"--formats takes {', '.join(each for each in WRITERS if each.startswith('dicom-'))} here, since only DICOM can be sent, "
            f"not '{options.formats}'"
        )
    same = ("target", "method", "output", "fuse", "flips", "seed", "score", "activation", "exact")
    how: dict[str, Any] = {name: getattr(options, name) for name in same}
    layers = options.layer.split(",") if options.layer and "," in options.layer else options.layer
    how |= {"layer": layers, "window": window_sides(options.window), "overlap": overlap_shares(options.overlap)}
    return Explaining(
        _whole_path(options.model), factory=options.factory, preprocessing=options.preprocessing, trust_code=options.trust_code,
        device=options.device, how=how, formats=options.formats, threshold=options.threshold,
        reading={"volume": options.volume, "allow_gaps": options.allow_gaps, "regrid": options.regrid},
    )  # fmt: skip


def _whole_path(text: str) -> str:
    """Return a model's path from the root, since a worker may stand elsewhere; a name stays a name."""
    return str(Path(text).absolute()) if Path(text).exists() else text


def _choice(options: Namespace) -> Choice:
    from medcam.pacs.choosing import Choice, rules

    texts = [each for each in (options.only or "").split(";") if each.strip()]
    return Choice(tuple(rules(each) for each in texts), options.derived)


def _whole(option: str, text: str, *, most: int) -> int:
    if not str(text).isdigit() or not 1 <= int(text) <= most:
        raise UsageError(f"{option} takes a number from 1 to {most}, not '{text}'")
    return int(text)


def _number(option: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise UsageError(f"{option} takes a number from 0, not '{text}'")
    return value
