"""`medcam demo`: two examples, in less than a minute."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from medcam.commands import Result, Say
from medcam.commands.findings import against, explained, reported
from medcam.commands.parsing import Commands, command

_EXAMPLES = """\
  medcam demo
  medcam demo --out somewhere/else

Explains a synthetic head MRI and a synthetic chest film with two small networks of medcam's own. Both are a demonstration, never a
detector.
"""


def add(commands: Commands) -> None:
    """Add the parser."""
    demo = command(commands, "demo", "two examples, in less than a minute", examples=_EXAMPLES)
    demo.add_argument("--out", metavar="DIR", default="medcam-demo", help="where results go (default: medcam-demo)")


def run(options: Namespace, say: Say) -> Result:
    """Explain the two sample images with the two demonstration models."""
    from medcam.formats import read, write
    from medcam.models import load_model
    from medcam.pipeline import explain as explain_volumes
    from medcam.samples import DEMOS, sample_path

    lines, values = [], {}
    for case in DEMOS:
        say(f"{case.title}: reading")
        volume, lesion = read(sample_path(*case.image)), read(sample_path(*case.lesion))
        say(f"{case.title}: explaining")
        heatmap = explain_volumes(volume, load_model(case.model))
        folder = Path(options.out) / case.model
        say(f"{case.title}: writing")
        measures = against(heatmap, lesion)
        files = write(
            heatmap,
            volume,
            folder,
            formats=("nifti", "dicom-sc", "png", "html"),
            lesion=lesion,
            measures=reported(measures),
        )
        found = explained(heatmap, measures, files, 0.5)
        lines += [case.title, *(f"  {line}" for line in found.lines if not line.endswith(".json"))]
        values[case.model] = found.values
    ok = all(v["peak_in_lesion"] for v in values.values())
    image = sample_path(*DEMOS[0].image)
    lines += [
        "These models are a demonstration on synthetic lesions, never a detector. Research use only.",
        f"next: medcam inspect {DEMOS[0].model}",
        f"      medcam explain '{image}' --model {DEMOS[0].model} --layer features.1 --formats nifti,png --out my-first",
    ]
    return Result(values, lines, ok)
