"""`medcam compare`: which method, layer and network is best on annotated cases, and what decides it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medcam.commands import Result, Say
from medcam.commands.parsing import Commands, command, overlap_shares, window_sides
from medcam.commands.progress import Progress
from medcam.errors import UsageError

if TYPE_CHECKING:
    from medcam.cohort.comparing import Compared
    from medcam.cohort.results import Entry
    from medcam.cohort.sweeping import Sweep, Swept
    from medcam.models import Model

_EXAMPLES = """\
  medcam compare cases.csv --model bundle_folder --methods grad-cam,hires-cam,occlusion --layers layer2,layer3 --out compared
  medcam compare cases.csv --model one.zip,two.zip --layers layer3,layer4 --layers features.2,features.3 --out compared
  medcam compare cases.csv --model bundle_folder --methods grad-cam,hires-cam --choose-on development --out compared

The table is that of `medcam validate`; each case needs its image and lesion. What is best on some patients is partly so by chance: give the
table a column split, choose on one (--choose-on) and report on the others. Research use only.
"""


def add(commands: Commands) -> None:
    """Add the parser."""
    compare = command(
        commands, "compare", "which method, layer and network locates lesions best, and what decides it",
        examples=_EXAMPLES, takes="model",
    )  # fmt: skip
    add_ = compare.add_argument
    add_("table", metavar="TABLE", help="a table of cases (CSV)")
    add_("--model", metavar="MODEL[,MODEL]", help="one or more, each as `medcam explain` takes it")
    add_("--methods", default="grad-cam", metavar="NAME[,NAME]", help="such as grad-cam,hires-cam (default: grad-cam)")
    add_(
        "--layers", action="append", metavar="NAME[,NAME]",
        help="`medcam inspect MODEL` lists them; once for all models, or once for each (default: each model's default layer)",
    )  # fmt: skip
    add_("--out", metavar="DIR", default="medcam-compared", help="where results go (default: medcam-compared)")
    add_("--choose-on", default="", metavar="SPLIT", help="choose the best on this split, and report it on the others")
    _add_measuring(compare)
    add_("--config", metavar="FILE", help="JSON or YAML with any of these options; the command line wins")


def _add_measuring(compare: ArgumentParser) -> None:
    add_ = compare.add_argument
    add_(
        "--primary", default="average_precision",
        help="the one measure named beforehand: average_precision (default), hit, mass_in_lesion, dice@half-max, dice@otsu",
    )  # fmt: skip
    add_("--target", help="a class by name or number, instead of the table's class")
    add_("--score", choices=["logit", "probability"], default="logit", help="what the gradient is taken of")
    add_("--activation", choices=["softmax", "sigmoid", "none"], help="what makes probabilities of the output")
    add_("--output", help="which of the network's several outputs")
    add_("--window", metavar="I[,J,K]", help="see volumes in sliding windows of this many voxels; 'whole': at once")
    add_("--overlap", metavar="SHARE", help="how much windows overlap")
    add_("--no-random-weights", action="store_true", help="do not compare with networks of random weights")
    add_("--least-lesion", type=float, default=0.0, metavar="ML", help="smaller pieces of a mask are no lesions")
    add_("--drawn-on", metavar="W,H", help="the size of the picture in whose pixels boxes are given")
    add_("--allow-gaps", action="store_true", help="fill missing DICOM slices by interpolation")
    add_("--regrid", action="store_true", help="interpolate tilted or uneven DICOM slices onto a regular grid")
    add_("--replicates", type=int, default=2000, metavar="N", help="how often patients are drawn (default 2000)")
    add_("--seed", type=int, default=0, help="of all that is drawn at random (default 0)")


def run(options: Namespace, say: Say) -> Result:
    """Sweep all configurations over all cases, and add up."""
    if not options.model:
        raise UsageError("--model is missing: name one or more, separated by commas")
    from medcam.cohort.cases import read_table
    from medcam.cohort.comparing import compared
    from medcam.cohort.comparison_files import write_comparison
    from medcam.validate.bootstrap import Resampling

    # What cannot be asked for is refused before the network is loaded.
    how = Resampling(replicates=options.replicates, seed=options.seed)
    entries = read_table(options.table, with_model=True)
    _check_split(options, entries)
    sweep, notes = _sweep(options, say)
    cases = _cases(entries, sweep, Path(options.out) / "cases", say)
    say("adding up")
    found = compared(cases, sweep.configurations, primary=options.primary, choose_on=options.choose_on, how=how)
    about = {
        "models": {name: model.sha256 for name, model in sweep.models.items()},
        "methods": sweep.methods,
        "resampling": how,
        "warnings": notes,
    }
    files = write_comparison(found, Path(options.out), about=about)
    return _result(found, notes, files)


def _cases(entries: Sequence[Entry], sweep: Sweep, folder: Path, say: Say) -> list[Swept]:
    """Sweep over the cases, saying after each how long the others will take; what was done before is taken from the folder."""
    from medcam.cohort.kept import Keeping
    from medcam.cohort.sweeping import swept

    keeping, progress = Keeping.of(sweep, folder), Progress(len(entries), say, bar=False)
    cases = []
    for entry in entries:
        case = swept(entry, sweep, kept=keeping.case(entry))
        if case.done_before:
            progress.was_there(failed=False)
        else:
            progress.came_out(entry.line, case.error)
        told = "done before" if case.done_before else "failed" if case.error else f"{case.seconds:.1f} s"
        say(f"line {entry.line}: {told}; {progress.words()}")
        cases.append(case)
    return cases


def _check_split(options: Namespace, entries: Any) -> None:
    if not options.choose_on:
        return
    from medcam.cohort.comparing import check_split
    from medcam.cohort.sweeping import Swept

    check_split([Swept(entry) for entry in entries], options.choose_on)


def _sweep(options: Namespace, say: Say) -> tuple[Sweep, tuple[str, ...]]:
    from medcam.cohort.comparing import check_primary
    from medcam.cohort.sweeping import Sweep, random_networks
    from medcam.commands.validate import _numbers
    from medcam.engine.methods import method_named
    from medcam.options import listed
    from medcam.validate.measures import Settings

    settings = Settings(draws=0, least_lesion=options.least_lesion, seed=options.seed)
    check_primary(options.primary, settings)
    methods = tuple(listed(options.methods))
    for method in methods:
        method_named(method)
    paths = listed(options.model)
    # A configuration file gives one list for all models.
    given = [options.layers] if isinstance(options.layers, str) else options.layers
    layers: list[tuple[str | None, ...]] = [tuple(listed(each)) for each in given or ()] or [(None,)]
    if len(layers) not in (1, len(paths)):
        raise UsageError(
            f"--layers is given once for all models or once for each: {len(layers)} times for {len(paths)}"
        )
    layers = layers * len(paths) if len(layers) == 1 else layers
    size = _numbers("--drawn-on", options.drawn_on) if options.drawn_on else ()
    if options.drawn_on and len(size) != 2:
        raise UsageError(f"--drawn-on takes a width and a height, such as 1024,1024, not '{options.drawn_on}'")
    explaining = {
        name: getattr(options, name) for name in ("target", "score", "activation", "output", "seed", "device")
    }
    explaining |= {"window": window_sides(options.window), "overlap": overlap_shares(options.overlap)}
    models = _models(options, paths, say)
    random, notes = ({}, ()) if options.no_random_weights else random_networks(models, seed=options.seed + 1)
    sweep = Sweep(
        models, methods, tuple(layers), settings, explaining, random, (int(size[0]), int(size[1])) if size else None,
        options.allow_gaps, options.regrid,
    )  # fmt: skip
    return sweep, notes


def _models(options: Namespace, paths: list[str], say: Say) -> dict[str, Model]:
    from medcam.models import load_model

    models: dict[str, Model] = {}
    for path in paths:
        say(f"loading {Path(path).name}")
        model = load_model(
            path, factory=options.factory, trust_code=options.trust_code, device=options.device, say=options.tell
        )
        name = model.name if model.name not in models else f"{model.name} ({len(models) + 1})"
        models[name] = model
    return models


def _result(found: Compared, notes: tuple[str, ...], files: tuple[Path, ...]) -> Result:
    from medcam.cohort.comparison_files import OPTIMISTIC, words
    from medcam.cohort.plain import to_plain

    said, notes = words(found), (*found.notes, *notes)
    lines = []
    for standing in found.standings:
        lines.append(f"{found.primary}, {standing.part} ({standing.complete} cases of {standing.patients} patients)")
        for place in standing.places:
            each = place.interval
            rank = f", mean rank {place.mean_rank:.1f}" if place.mean_rank == place.mean_rank else ""
            remark = f"  {OPTIMISTIC}" if place.optimistic else ""
            lines.append(
                f"  {place.configuration.name:50} {each.value:.3f} ({each.low:.3f} to {each.high:.3f}){rank}{remark}"
            )
        lines += [
            f"  {name:50} {each.value:.3f} ({each.low:.3f} to {each.high:.3f})"
            for name, each in standing.baselines.items()
        ]
    failed = [case for case in found.cases if case.error]
    lines += [*said, *(f"failed   line {case.entry.line}: {case.error}" for case in failed)]
    lines += [*(f"note     {note}" for note in notes), *(f"wrote    {file}" for file in files)]
    values = {
        "primary": found.primary,
        "chosen": to_plain(found.chosen),
        "elsewhere": to_plain(found.elsewhere),
        "words": list(said),
        "notes": list(notes),
        "failed": [{"line": case.entry.line, "error": case.error} for case in failed],
        "files": [str(file) for file in files],
    }
    return Result(values, lines, ok=not failed)
