"""The command line: argv to a command of `medcam.commands`, and errors to one line and an exit code."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import medcam
from medcam.errors import MedcamError, UsageError

_EXIT_CODES = """\
exit codes:
  0 done   1 a check failed, or an unexpected error   2 wrong use   3 the model could not be loaded or run
  4 an image could not be read, or is not a regular grid   5 a result could not be written   130 interrupted
"""

_EXPLAIN = """\
examples:
  medcam explain film.dcm --model demo-cxr --out results
  medcam explain study_folder --series 4 --model bundle_folder --target lesion --formats nifti,dicom-sc,png --out results
  medcam explain t1.nii.gz t1c.nii.gz t2.nii.gz flair.nii.gz --model tumour_bundle.zip --out results
  medcam explain ct.nii.gz --model weights.pt --out results \\
      --factory 'monai.networks.nets:DenseNet121(spatial_dims=3, in_channels=1, out_channels=2)'
  medcam explain ct.nii.gz --model organs.zip --target liver@largest --method hires-cam --out results
  medcam explain film.dcm --model demo-cxr --layer features.1,features.3 --fuse coarse-to-fine

A heatmap shows what moved the network's score. It is not a segmentation and not a diagnosis. Research use only.

"""

_INSPECT = """\
examples:
  medcam inspect demo-mri                 the layers of a model, and which one is explained by default
  medcam inspect weights.pt --factory net.py:make --input-shape 1,96,96,96
  medcam inspect study_folder             the series in a folder, or the grid of an image

"""

_METHODS = """\
examples:
  medcam methods
  medcam explain film.dcm --model demo-cxr --method 'occlusion(window=64, stride=32)'

"""

_DEMO = """\
examples:
  medcam demo
  medcam demo --out somewhere/else

Explains a synthetic head MRI and a synthetic chest film with two small networks of medcam's own. Both are a demonstration, never a
detector.

"""


_ACTIVATION = (
    "what makes probabilities of the output: sigmoid for multi-label networks (default: softmax, or sigmoid for one channel); "
    "none where the network itself ends in one"
)


class _Parser(argparse.ArgumentParser):
    """Raises what argparse would print, so that all errors leave by one door."""

    def error(self, message: str) -> Any:
        raise UsageError(f"{message} (`{self.prog} --help` explains)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run medcam as from a shell, and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Read from the raw words, since the error may be that the rest cannot be parsed.
    as_json, debug = "--json" in arguments, "--debug" in arguments
    caught: BaseException
    try:
        return _run(arguments)
    except MedcamError as error:
        caught, code, message = error, error.exit_code, str(error)
    except KeyboardInterrupt as error:
        caught, code, message = error, 130, "interrupted"
    except BrokenPipeError:  # whoever read our output has gone; nothing is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError as error:
        caught, code, message = error, 1, "not enough memory for this image and network"
    except Exception as error:  # noqa: BLE001  a defect: one line for the user, the traceback on request
        first = (str(error).strip().splitlines() or [""])[0]
        message = f"unexpected {type(error).__name__}: {first}. This is a defect in medcam: run again with --debug and report it"
        caught, code = error, 1
    if debug:
        traceback.print_exception(caught)
    sys.stderr.write(f"medcam: error: {message}\n")
    if as_json:
        sys.stdout.write(json.dumps({"ok": False, "error": message, "exit_code": code}) + "\n")
    return code


def _run(arguments: list[str]) -> int:
    parser, commands = _parsers()
    options = parser.parse_args(arguments)
    if not options.command:
        parser.print_help()
        return 0
    if getattr(options, "config", None):
        _apply_config(commands[options.command], Path(options.config))
        options = parser.parse_args(arguments)
    if not options.debug:
        # Libraries warn their programmers; what medcam's user must know stands in the notes.
        warnings.simplefilter("ignore")
    from medcam import commands as room

    # What code will run is told whatever --quiet says; progress is not.
    options.tell = _tell
    say = (lambda _line: None) if options.quiet else _tell
    result = getattr(room, options.command)(options, say)
    if options.json:
        sys.stdout.write(json.dumps({"ok": result.ok, **result.values}, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("\n".join(result.lines) + "\n")
    return 0 if result.ok else 1


def _tell(line: str) -> None:
    sys.stderr.write(f"medcam: {line}\n")


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    raw = argparse.RawDescriptionHelpFormatter
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    common.add_argument("--quiet", action="store_true", help="no progress on stderr")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")

    model = _Parser(add_help=False)
    model.add_argument(
        "--factory",
        metavar="MODULE:FUNCTION",
        help="what builds the network of a state dict; may have literal arguments",
    )
    model.add_argument(
        "--trust-code", action="store_true", help="allow code in the model's files to run; it is listed first"
    )
    model.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")

    image = _Parser(add_help=False)
    image.add_argument("--series", help="which DICOM series: its number, or its UID or the end of it")
    image.add_argument("--volume", type=int, metavar="N", help="which volume of a 4D NIfTI, from 0")
    image.add_argument("--allow-gaps", action="store_true", help="fill missing DICOM slices by interpolation")

    parser = _Parser(
        prog="medcam",
        description="Explains what a trained network saw in a medical image, and puts it back in the right place.",
        epilog=_EXIT_CODES,
        formatter_class=raw,
    )
    parser.add_argument("--version", action="version", version=f"medcam {getattr(medcam, '__version__', 'unknown')}")
    sub = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    explain = sub.add_parser(
        "explain",
        help="a heatmap for one case",
        parents=[model, image, common],
        formatter_class=raw,
        epilog=_EXPLAIN + _EXIT_CODES,
    )
    explain.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="one image, or one for each input channel, the first being the reference",
    )
    explain.add_argument(
        "--model", help="a MONAI bundle (folder or zip), .pt2, weights with --factory, demo-mri or demo-cxr"
    )
    explain.add_argument(
        "--preprocessing", metavar="FILE", help="MONAI transforms (JSON or YAML) instead of the model's own"
    )
    explain.add_argument(
        "--layer",
        metavar="NAME[,NAME]",
        help="the layer to look at, or several with --fuse (`medcam inspect MODEL` lists them)",
    )
    explain.add_argument(
        "--target",
        help="a class by name or number, 2-0 (why 2 and not 0), 1,3 (both), not:1, finer:2; for a segmentation also where: 1@largest, "
        "1@whole, 1@boundary:2, 1@voxel:10,20,5 (default: the predicted class)",
    )
    explain.add_argument(
        "--method", default="grad-cam", help="grad-cam (default); `medcam methods` lists them with their options"
    )
    explain.add_argument("--output", help="which of the network's several outputs, such as logits or 1")
    explain.add_argument(
        "--fuse",
        choices=["mean", "max", "product", "coarse-to-fine", "layer-cam"],
        help="how the maps of several layers become one",
    )
    explain.add_argument("--flips", action="store_true", help="average over flips of the image along each axis")
    explain.add_argument("--seed", type=int, default=0, help="of methods that draw random numbers (default 0)")
    explain.add_argument(
        "--score", choices=["logit", "probability"], default="logit", help="what the gradient is taken of"
    )
    explain.add_argument(
        "--activation",
        choices=["softmax", "sigmoid", "none"],
        help=_ACTIVATION,
    )
    explain.add_argument(
        "--window",
        metavar="I[,J,K]",
        help="see the volume in sliding windows of this many voxels (default: as the bundle does); 'whole': at once",
    )
    explain.add_argument("--overlap", metavar="SHARE", help="how much windows overlap (default: the bundle's, or 0.25)")
    explain.add_argument(
        "--exact", action="store_true", help="explain the score of the stitched prediction instead of each window's own"
    )
    explain.add_argument("--slice", type=int, metavar="K", help="the slice for a 2D network, from 0")
    explain.add_argument(
        "--lesion", metavar="MASK", help="a lesion mask: outlined in pictures, and tested for the peak"
    )
    explain.add_argument(
        "--formats", default="nifti,png", help="any of nifti, dicom-sc, png, separated by commas (default: nifti,png)"
    )
    explain.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        help="where masks and colours begin, as a fraction of the maximum (default 0.5)",
    )
    explain.add_argument("--out", metavar="DIR", default="medcam-out", help="where results go (default: medcam-out)")
    explain.add_argument(
        "--config", metavar="FILE", help="JSON or YAML with any of these options; the command line wins"
    )

    methods = sub.add_parser(
        "methods",
        help="the methods and their options",
        parents=[common],
        formatter_class=raw,
        epilog=_METHODS + _EXIT_CODES,
    )

    inspect = sub.add_parser(
        "inspect", help="the layers of a model, or what an image holds", parents=[model, image, common], formatter_class=raw,
        epilog=_INSPECT + _EXIT_CODES,
    )  # fmt: skip
    inspect.add_argument("path", metavar="PATH", help="a model, or an image, folder or zip")
    inspect.add_argument(
        "--input-shape", metavar="C,I,J[,K]", help="the shape of one input of the model, channels first"
    )

    demo = sub.add_parser(
        "demo",
        help="two examples, in less than a minute",
        parents=[common],
        formatter_class=raw,
        epilog=_DEMO + _EXIT_CODES,
    )
    demo.add_argument("--out", metavar="DIR", default="medcam-demo", help="where results go (default: medcam-demo)")

    doctor = sub.add_parser(
        "doctor",
        help="versions, device, decoders; is the right medcam installed?",
        parents=[common],
        formatter_class=raw,
        epilog=_EXIT_CODES,
    )
    return parser, {"explain": explain, "methods": methods, "inspect": inspect, "demo": demo, "doctor": doctor}


def _apply_config(parser: argparse.ArgumentParser, path: Path) -> None:
    """Make the values of a configuration file the parser's defaults."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read the configuration {path}: {getattr(error, 'strerror', None) or error}"
        ) from error
    import yaml

    try:
        values = yaml.safe_load(text)  # JSON is YAML
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is neither JSON nor YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} should hold option names and values, such as `model: demo-mri`")
    flags = {a.dest: a.nargs == 0 for a in parser._actions}
    known = set(flags) - {"help", "config", "images", "json", "debug", "quiet"}
    defaults = {}
    for name, value in values.items():
        dest = str(name).lstrip("-").replace("-", "_")
        if dest not in known:
            near = difflib.get_close_matches(dest, known, n=1)
            raise UsageError(f"{path}: there is no option '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""))
        defaults[dest] = _config_value(flags[dest], value, f"{path}: '{name}'")
    parser.set_defaults(**defaults)


def _config_value(is_flag: bool, value: Any, where: str) -> Any:
    """Return a value as the command line would have given it; a flag is true or false and nothing that merely looks like it."""
    if is_flag != isinstance(value, bool):
        wanted = "true or false" if is_flag else "text or a number"
        raise UsageError(f"{where} should be {wanted}, not {value!r}")
    if is_flag:
        return value
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, (str, int, float)) for item in items):
        raise UsageError(f"{where} should be text, a number or a list of them, not {value!r}")
    # As text, so that the option's own conversion checks it as it would on the command line.
    return ",".join(map(str, items))


if __name__ == "__main__":
    sys.exit(main())
