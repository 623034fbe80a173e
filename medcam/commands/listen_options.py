"""The options of `medcam listen`."""

from __future__ import annotations

from argparse import ArgumentParser

from medcam.commands.parsing import Commands, command

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
