"""`medcam listen`: a DICOM node that explains what it is sent, and sends the results on."""

from __future__ import annotations

import signal
import threading
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medcam.commands import Result, Say
from medcam.commands.explain import _overlap, _window
from medcam.commands.node_words import told
from medcam.commands.parsing import Commands, command
from medcam.commands.send import _peer, _seconds
from medcam.errors import UsageError

if TYPE_CHECKING:
    import ssl

    from medcam.pacs.admission import Guests, Limits
    from medcam.pacs.choosing import Choice
    from medcam.pacs.listening import Settings
    from medcam.pacs.peers import Peer
    from medcam.pacs.series_job import Explaining

_EXAMPLES = """\
  medcam listen --aet MEDCAM --port 11112 --model bundle_folder --from 10.1.0.0/16 --send-to dicom://ARCHIVE@pacs.hospital.org:11112
  medcam listen --model demo-mri --only 'modality=MR,description~FLAIR' --send-to https://pacs.hospital.org/dicom-web
  medcam listen --port 2762 --serve-cert node.pem --serve-key node.key --clients-ca ca.pem --from 10.1.0.0/16 --model demo-cxr \\
      --send-to dicoms://ARCHIVE@pacs.hospital.org:2762 --tls-ca ca.pem
  medcam listen --status
  medcam listen --retry-failed

Without --from only programs of this machine may send. What was acknowledged is on disk and survives a kill: start the node again.
A heatmap shows what moved the network's score. It is not a segmentation and not a diagnosis. Research use only.
"""
_MIB, _GIB = 1 << 20, 1 << 30


def add(commands: Commands) -> None:
    """Add the parser."""
    listen = command(
        commands,
        "listen",
        "a DICOM node: explains what it is sent, and sends the results on",
        examples=_EXAMPLES,
        takes="model",
    )
    _add_receiving(listen)
    _add_limits(listen)
    _add_explaining(listen)
    _add_sending(listen)
    add_ = listen.add_argument
    add_("--folder", metavar="DIR", help="where the queue lies (default: in the user's state folder)")
    add_(
        "--keep",
        metavar="DAYS",
        default="1",
        help="how long images are kept after their results were sent (default: 1)",
    )
    add_(
        "--keep-failed",
        metavar="DAYS",
        default="30",
        help="how long images are kept of series that failed (default: 30)",
    )
    add_("--status", action="store_true", help="say how the node stands, and do nothing else")
    add_(
        "--retry-failed",
        action="store_true",
        help="try what failed again: by the node that runs, or that is started next",
    )
    add_("--config", metavar="FILE", help="JSON or YAML with any of these options; the command line wins")


def _add_receiving(listen: ArgumentParser) -> None:
    add_ = listen.add_argument
    add_("--aet", metavar="AET", default="MEDCAM", help="our AE title, by which we must be called (default: MEDCAM)")
    add_("--port", metavar="N", default="11112", help="where we listen (default: 11112)")
    add_("--host", metavar="ADDRESS", help="of this machine, to listen at (default: all, or 127.0.0.1 without --from)")
    add_("--from", metavar="NET[,NET]", help="who may send: addresses or networks (default: this machine)")
    add_("--allow", metavar="AET[,AET]", help="AE titles that may call us (default: any)")
    add_("--serve-cert", metavar="PEM", help="our certificate as a server: TLS is spoken, and nothing else")
    add_("--serve-key", metavar="PEM", help="its key, without a password")
    add_(
        "--clients-ca",
        metavar="PEM",
        help="who signs the certificates that clients must show (default: none is asked for)",
    )
    add_("--settle", metavar="S", default="30", help="a series that is quiet for so long is complete (default: 30)")
    add_(
        "--give-up", metavar="S", default="600",
        help="how long one is waited for whose header promises more, that has a gap, or whose sender stays (default: 600)",
    )  # fmt: skip


def _add_limits(listen: ArgumentParser) -> None:
    add_ = listen.add_argument
    add_("--max-instance", metavar="MIB", default="512", help="the largest instance (default: 512)")
    add_("--max-series", metavar="N", default="10000", help="the most instances of a series (default: 10000)")
    add_("--max-queue", metavar="GIB", default="100", help="the most that lies in the queue (default: 100)")
    add_("--keep-free", metavar="GIB", default="2", help="what stays free on the disk (default: 2)")
    add_("--associations", metavar="N", default="8", help="how many at once (default: 8)")
    add_("--rate", metavar="N", default="600", help="associations a minute of one address (default: 600)")
    add_("--idle", metavar="S", default="60", help="how long an association may be silent (default: 60)")


def _add_explaining(listen: ArgumentParser) -> None:
    add_ = listen.add_argument
    add_("--model", help="as `medcam explain` takes it; it is loaded once")
    add_("--preprocessing", metavar="FILE", help="MONAI transforms (JSON or YAML) instead of the model's own")
    add_(
        "--only", metavar="RULES",
        help="which series: 'modality=MR,description~T1' (both), 'modality=CT;modality=MR' (either); =, ~ (holds), !=, !~",
    )  # fmt: skip
    add_("--derived", action="store_true", help="also series that were derived from other images")
    add_("--layer", metavar="NAME[,NAME]", help="the layer to look at, or several with --fuse")
    add_("--target", help="a class by name or number, as `medcam explain` takes it (default: the predicted class)")
    add_("--method", default="grad-cam", help="grad-cam (default); `medcam methods` lists them")
    add_("--output", help="which of the network's several outputs")
    add_(
        "--fuse", choices=["mean", "max", "product", "coarse-to-fine", "layer-cam"], help="how layers' maps become one"
    )
    add_("--flips", action="store_true", help="average over flips of the image along each axis")
    add_("--seed", type=int, default=0, help="of methods that draw random numbers (default 0)")
    add_("--score", choices=["logit", "probability"], default="logit", help="what the gradient is taken of")
    add_("--activation", choices=["softmax", "sigmoid", "none"], help="what makes probabilities of the output")
    add_("--window", metavar="I[,J,K]", help="see volumes in sliding windows of this many voxels; 'whole': at once")
    add_("--overlap", metavar="SHARE", help="how much windows overlap")
    add_("--exact", action="store_true", help="explain the score of the stitched prediction")
    add_("--volume", type=int, metavar="N", help="which volume of a series that holds several, from 0")
    add_("--allow-gaps", action="store_true", help="fill missing slices by interpolation")
    add_("--regrid", action="store_true", help="interpolate tilted or uneven slices onto a regular grid")
    add_(
        "--formats",
        default="dicom-sc,dicom-seg",
        help="DICOM formats of `medcam formats` (default: dicom-sc,dicom-seg)",
    )
    add_("--threshold", type=float, default=0.5, help="where masks and colours begin (default 0.5)")
    add_("--limit", metavar="S", default="3600", help="how long one series may be worked on (default: 3600)")


def _add_sending(listen: ArgumentParser) -> None:
    add_ = listen.add_argument
    add_("--send-to", metavar="ADDRESS[,ADDRESS]", help="where results go, as `medcam send --to` takes it")
    add_("--as", metavar="AET", help="our AE title when we send (default: that of --aet)")
    add_("--commit", action="store_true", help="ask destinations to promise that they keep what they stored")
    add_("--commit-port", metavar="PORT", help="where we listen for that promise")
    add_("--tls", action="store_true", help="speak TLS to a dicom:// address")
    add_("--tls-ca", metavar="PEM", help="certificates to trust in destinations, instead of the system's")
    add_("--tls-cert", metavar="PEM", help="our certificate, for destinations that want to know their clients")
    add_("--tls-key", metavar="PEM", help="its key, without a password")
    add_("--tls-name", metavar="HOST", help="the name in a destination's certificate, if not the host's")
    add_("--timeout", metavar="S", default="30", help="how long to wait for a destination's answer (default: 30)")
    add_(
        "--attempts", metavar="N", default="20", help="answers of 'later' after which a result has failed (default: 20)"
    )
    add_("--pause", metavar="S", default="5", help="after a first failure; doubles up to 10 minutes (default: 5)")


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

        engine = local(workers=1, limit_s=_seconds("--limit", options.limit, least=1.0), tries=2)
        with _stoppable(say) as stop:
            listen(settings, engine, stop, say=say)
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
        _seconds("--settle", options.settle, least=0.1),
        _seconds("--give-up", options.give_up, least=0.1),
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
            _whole("--attempts", options.attempts, most=10_000), _seconds("--pause", options.pause, least=0.01)
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
        idle_s=_seconds("--idle", options.idle, least=1.0),
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
        found = tuple(_peer(Namespace(**{**vars(options), "to": each, "calling": calling})) for each in texts)
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
    how |= {"layer": layers, "window": _window(options.window), "overlap": _overlap(options.overlap)}
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
