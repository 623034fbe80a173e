"""`medcam explain`: a heatmap for one case."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

from medcam.commands import Result, Say
from medcam.commands.findings import against, explained, reported
from medcam.commands.images import add_identity, read_image, without_identity
from medcam.commands.lesions import add_lesion, lay_lesion, read_lesion
from medcam.commands.parsing import Commands, command, overlap_shares, window_sides
from medcam.errors import UsageError

if TYPE_CHECKING:
    from medcam.volume import Volume

_EXAMPLES = """\
  medcam explain film.dcm --model demo-cxr --out results
  medcam explain study_folder --series 4 --model bundle_folder --target lesion --formats nifti,dicom-sc,png --out results
  medcam explain t1.nii.gz t1c.nii.gz t2.nii.gz flair.nii.gz --model tumour_bundle.zip --out results
  medcam explain ct.nii.gz --model weights.pt --out results \\
      --factory 'monai.networks.nets:DenseNet121(spatial_dims=3, in_channels=1, out_channels=2)'
  medcam explain ct.nii.gz --model organs.zip --target liver@largest --method hires-cam --out results
  medcam explain film.dcm --model demo-cxr --layer features.1,features.3 --fuse coarse-to-fine

A heatmap shows what moved the network's score. It is not a segmentation and not a diagnosis. Research use only.
"""
_ACTIVATION = (
    "what makes probabilities of the output: sigmoid for multi-label networks (default: softmax, or sigmoid for one channel); "
    "none where the network itself ends in one"
)
_TELL_EVERY_S = 5.0


def add(commands: Commands) -> None:
    """Add the parser."""
    explain = command(commands, "explain", "a heatmap for one case", examples=_EXAMPLES, takes="model image")
    explain.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="one image, or one for each input channel, the first being the reference",
    )
    explain.add_argument(
        "--model",
        help="a MONAI bundle (folder or zip), an nnU-Net folder, .pt2, weights with --factory, demo-mri or demo-cxr",
    )
    explain.add_argument(
        "--preprocessing", metavar="FILE", help="MONAI transforms (JSON or YAML) instead of the model's own"
    )
    _add_question(explain)
    explain.add_argument("--slice", type=int, metavar="K", help="the slice for a 2D network, from 0")
    add_lesion(explain, "outlined in pictures, and tested for the peak")
    add_identity(explain)
    explain.add_argument(
        "--formats",
        default="nifti,png",
        help="formats, separated by commas (`medcam formats` lists them; default: nifti,png)",
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


def _add_question(explain: ArgumentParser) -> None:
    """Add what is asked of the network, and how."""
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


def run(options: Namespace, say: Say) -> Result:
    """Explain one case, and write its heatmap."""
    from medcam.formats import check_formats, write

    if not options.model:
        raise UsageError("--model is missing: name a bundle, a .pt2, weights with --factory, demo-mri or demo-cxr")
    from medcam.engine.methods import method_named

    method_named(options.method)  # a slip is told before anything long
    volumes: list[Volume] = []
    for image in options.images:
        say(f"reading image {len(volumes) + 1} of {len(options.images)}")
        volumes.append(read_image(options, image))
    if options.slice is not None:
        # The others are put on the grid of the first, so on its slice.
        volumes[0] = volumes[0].slice(options.slice)
    check_formats(options.formats, volumes[0], threshold=options.threshold)
    lesion = read_lesion(options, volumes[0])

    from medcam.models import load_model
    from medcam.pipeline import explain as explain_volumes

    say("loading the model")
    model = load_model(
        options.model, factory=options.factory, preprocessing=options.preprocessing, trust_code=options.trust_code,
        device=options.device, say=options.tell,
    )  # fmt: skip
    say(f"explaining with {options.method}")
    start = time.perf_counter()
    heatmap = explain_volumes(
        volumes,
        model,
        layer=options.layer if options.layer is None or "," not in options.layer else options.layer.split(","),
        target=options.target,
        method=options.method,
        score=options.score,
        activation=options.activation,
        output=options.output,
        fuse=options.fuse,
        flips=options.flips,
        window=window_sides(options.window),
        overlap=overlap_shares(options.overlap),
        exact=options.exact,
        seed=options.seed,
        device=options.device,
        progress=_progress(say),
    )
    lesion = lay_lesion(options, heatmap, lesion)
    say(f"explained in {time.perf_counter() - start:.1f} s; writing {options.formats}")
    heatmap, image, lesion = without_identity(options, heatmap, volumes[0], lesion)
    measures = against(heatmap, lesion)
    files = write(
        heatmap,
        image,
        options.out,
        formats=options.formats,
        threshold=options.threshold,
        lesion=lesion,
        measures=reported(measures),
    )
    return explained(heatmap, measures, files, options.threshold)


def _progress(say: Say) -> Callable[[int, int], None]:
    """Return what tells how far long work has come, every few seconds, and how long the rest may take."""
    start = told = time.perf_counter()

    def tell(done: int, count: int) -> None:
        nonlocal told
        now = time.perf_counter()
        if now - told >= _TELL_EVERY_S:
            told = now
            say(f"{done} of {count} done, about {(now - start) * (count - done) / done:.0f} s to go")

    return tell
