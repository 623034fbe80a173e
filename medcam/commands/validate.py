"""`medcam validate`: does the heatmap lie on the lesion, for one case or a table of them."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medcam.commands import Result, Say
from medcam.commands.parsing import Commands, command, overlap_shares, window_sides
from medcam.errors import UsageError

if TYPE_CHECKING:
    from medcam.cohort.asked import Asked
    from medcam.cohort.results import CaseResult, Cohort, Entry
    from medcam.models import Model

_EXAMPLES = """\
  medcam validate --heatmap results/head_gradcam.nii.gz --mask lesion.nii.gz --image head.nii.gz
  medcam validate cases.csv --out judged
  medcam validate cases.csv --model bundle_folder --method hires-cam --primary hit --out judged
  medcam validate films.csv --model demo-cxr --drawn-on 1024,1024 --protocol chexlocalize --out judged

The table is CSV with the columns case, patient, and image or heatmap, and mask (voxels, contours, boxes or points); optional: class,
label, organ, truth, series, volume. Files are named relative to the table. A heatmap on a lesion shows where the score came from; it is
no diagnosis. Research use only.
"""
# What a short table shows of one case, by the beginning of the name.
_SHOWN = (
    "lesions", "lesion_size", "hit", "hit_within_5mm", "hit_within_10mm", "hit_within_5px", "hit_within_10px", "peak_distance",
    "mass_in_lesion", "mass_lift",
    "average_precision", "average_precision_of_ceiling", "dice@half-max", "dice@otsu", "lesion_recall", "false_findings",
)  # fmt: skip


def add(commands: Commands) -> None:
    """Add the parser."""
    validate = command(
        commands, "validate", "does the heatmap lie on the lesion, beside what chance and simple maps score",
        examples=_EXAMPLES, takes="model image",
    )  # fmt: skip
    validate.add_argument("table", nargs="?", metavar="TABLE", help="a table of cases (CSV)")
    validate.add_argument("--heatmap", help="one heatmap, instead of a table")
    validate.add_argument("--mask", help="its lesion: a mask, a DICOM segmentation or structure set, boxes or points")
    validate.add_argument("--image", help="the image that was explained, for baselines and the body")
    validate.add_argument(
        "--organ", metavar="MASK", help="where evidence may lie (default: the body, as a volume shows it)"
    )
    validate.add_argument("--label", help="which label of the mask is the lesion, by number or name")
    validate.add_argument("--out", metavar="DIR", help="where results of a table go (default: medcam-validated)")
    validate.add_argument(
        "--report",
        choices=["all", "gallery", "none"],
        default="gallery",
        help="of a table: report.html, figures and a paper's words, with pages of all cases, of best, median and worst (default), or none",
    )
    _add_measuring(validate)
    _add_explaining(validate)
    validate.add_argument(
        "--config", metavar="FILE", help="JSON or YAML with any of these options; the command line wins"
    )


def _add_measuring(validate: ArgumentParser) -> None:
    add_ = validate.add_argument
    add_(
        "--primary", default="average_precision",
        help="the one measure named beforehand: average_precision (default), hit, mass_in_lesion, dice@half-max, ...",
    )  # fmt: skip
    add_("--thresholds", metavar="NAME[,NAME]", help="where maps are cut, such as half-max,otsu,top-0.1,max-0.3")
    add_("--tolerances", metavar="MM[,MM]", help="how near is near, in mm (default 5,10,15)")
    add_(
        "--least-lesion",
        type=float,
        default=0.0,
        metavar="ML",
        help="smaller pieces of a mask are no lesions of their own",
    )
    add_(
        "--chance",
        type=int,
        default=1000,
        metavar="N",
        help="how many random places of the lesion make chance (default 1000)",
    )
    add_(
        "--replicates",
        type=int,
        default=2000,
        metavar="N",
        help="how often patients are drawn for intervals (default 2000)",
    )
    add_(
        "--random-networks",
        type=int,
        default=2,
        metavar="N",
        help="networks with random weights to compare with (default 2)",
    )
    add_(
        "--lesion-draws",
        type=int,
        default=20,
        metavar="N",
        help="healthy regions that the lesion is compared with (default 20)",
    )
    add_(
        "--random-stages",
        type=int,
        default=5,
        metavar="N",
        help="in how many stages the first of them gets its weights, each explained (default 5)",
    )
    add_(
        "--faithfulness", action="store_true", help="try deletion, insertion, ROAD, ... too: some hundred passes a case"
    )
    add_(
        "--robustness",
        action="store_true",
        help="try images with noise and of other scanners: some twenty explanations a case",
    )
    add_("--protocol", metavar="NAME[,NAME]", help="count as published too: chexlocalize, wsol, se3d, arun")
    add_(
        "--decision",
        type=float,
        default=0.5,
        metavar="P",
        help="the probability from which the model decides for it (default 0.5)",
    )
    add_(
        "--drawn-on", metavar="W,H", help="the size of the picture in whose pixels boxes are given, if not the image's"
    )


def _add_explaining(validate: ArgumentParser) -> None:
    add_ = validate.add_argument
    add_("--model", help="makes heatmaps that the table lacks, and is tried itself; as `medcam explain` takes it")
    add_("--preprocessing", metavar="FILE", help="MONAI transforms (JSON or YAML) instead of the model's own")
    add_("--layer", metavar="NAME", help="the layer to look at (`medcam inspect MODEL` lists them)")
    add_("--target", help="a class by name or number, instead of the table's class")
    add_("--method", default="grad-cam", help="grad-cam (default); `medcam methods` lists them")
    add_("--output", help="which of the network's several outputs")
    add_("--flips", action="store_true", help="average over flips of the image along each axis")
    add_("--seed", type=int, default=0, help="of all that is drawn at random (default 0)")
    add_("--score", choices=["logit", "probability"], default="logit", help="what the gradient is taken of")
    add_("--activation", choices=["softmax", "sigmoid", "none"], help="what makes probabilities of the output")
    add_("--window", metavar="I[,J,K]", help="see volumes in sliding windows of this many voxels; 'whole': at once")
    add_("--overlap", metavar="SHARE", help="how much windows overlap")
    add_("--exact", action="store_true", help="explain the score of the stitched prediction")


def run(options: Namespace, say: Say) -> Result:
    """Measure one heatmap, or all cases of a table."""
    if options.table and (options.heatmap or options.mask):
        raise UsageError("give a table of cases, or --heatmap with --mask, not both")
    if not options.table and not (options.heatmap and options.mask):
        raise UsageError("give a table of cases, or one heatmap and its lesion: --heatmap H --mask M")
    asked = _asked(options)
    return _table(options, asked, say) if options.table else _one(options, asked, say)


def _asked(options: Namespace) -> Asked:
    from medcam.cohort.asked import Asked, threshold_named
    from medcam.cohort.summary import check_primary
    from medcam.options import listed
    from medcam.validate.measures import Settings

    given: dict[str, Any] = {}
    if options.thresholds:
        given["thresholds"] = tuple(threshold_named(name) for name in listed(options.thresholds))
    if options.tolerances:
        given["tolerances_mm"] = _numbers("--tolerances", options.tolerances)
    settings = Settings(least_lesion=options.least_lesion, draws=options.chance, seed=options.seed, **given)
    names = ("layer", "target", "method", "score", "activation", "output", "flips", "exact", "seed", "device")
    explaining = {name: getattr(options, name) for name in names}
    explaining |= {"window": window_sides(options.window), "overlap": overlap_shares(options.overlap)}
    size = _numbers("--drawn-on", options.drawn_on) if options.drawn_on else ()
    if options.drawn_on and len(size) != 2:
        raise UsageError(f"--drawn-on takes a width and a height, such as 1024,1024, not '{options.drawn_on}'")
    asked = Asked(
        settings,
        explaining,
        random_networks=options.random_networks,
        random_stages=options.random_stages,
        lesion_draws=options.lesion_draws,
        faithfulness=options.faithfulness,
        robustness=options.robustness,
        protocols=tuple(listed(options.protocol or "")),
        decision_threshold=options.decision,
        drawn_on=(int(size[0]), int(size[1])) if size else None,
        allow_gaps=options.allow_gaps,
        regrid=options.regrid,
    )
    check_primary(options.primary, asked)
    return asked


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in str(text).split(","))
    except ValueError:
        raise UsageError(f"{option} takes numbers separated by commas, not '{text}'") from None


def _model(options: Namespace, say: Say) -> Model | None:
    if not options.model:
        return None
    from medcam.models import load_model

    say("loading the model")
    return load_model(
        options.model, factory=options.factory, preprocessing=options.preprocessing, trust_code=options.trust_code,
        device=options.device, say=options.tell,
    )  # fmt: skip


def _one(options: Namespace, asked: Asked, say: Say) -> Result:
    from medcam.cohort.judging import judge
    from medcam.cohort.plain import to_plain
    from medcam.cohort.stored import plain_settings

    model = _model(options, say)
    say("measuring")
    case = judge(_entry(options), asked, model=model, out=None)
    measures, verdict = case.measures, case.verdict
    values = {
        "verdict": to_plain(verdict),
        "numbers": {} if measures is None else to_plain(measures.numbers),
        "baselines": {name: to_plain(each.numbers) for name, each in case.baselines.items()},
        "trials": to_plain(case.trials),
        "settings": plain_settings(asked.settings),
        "notes": list(case.notes),
    }
    return Result(values, _case_lines(case))


def _entry(options: Namespace) -> Entry:
    from medcam.cohort.results import Entry

    return Entry(
        1, "case", "patient", "",
        (Path(options.image),) if options.image else (),
        Path(options.heatmap),
        Path(options.mask),
        options.label or "",
        Path(options.organ) if options.organ else None,
        None,
        options.series or "",
        options.volume,
    )  # fmt: skip


def _case_lines(case: CaseResult) -> list[str]:
    """Return a short table: each number, what chance scores, and the best of the maps that know nothing."""
    if case.measures is None or case.verdict is None:
        return []
    numbers = case.measures.numbers
    lines = [f"verdict  {case.verdict.words}"]
    lines += [f"         {sentence}" for sentence in case.verdict.because]
    lines += [f"missing  {sentence}" for sentence in case.verdict.missing]
    heads = [*case.baselines]
    lines.append("".join([f"{'':32}{'heatmap':>10}{'chance':>10}", *(f"{head:>18}" for head in heads)]))
    for name in _SHOWN:
        if name not in numbers:
            continue
        own = numbers[name]
        chance = numbers.get(f"{name}_moved") or numbers.get(f"{name}_uniform")
        unit = f" ({own.unit})" if own.unit else ""
        row = f"{name + unit:32}{_shown(own.value):>10}{'' if chance is None else _shown(chance.value):>10}"
        beside = [case.baselines[head].numbers.get(name) for head in heads]
        lines.append(row + "".join(f"{'' if each is None else _shown(each.value):>18}" for each in beside))
    whys = dict.fromkeys(f"{name}: {numbers[name].why}" for name in _SHOWN if name in numbers and numbers[name].why)
    return [*lines, *(f"undefined  {why}" for why in whys), *(f"note     {note}" for note in case.notes)]


def _shown(value: float) -> str:
    return "-" if value != value else f"{value:.3g}"


def _table(options: Namespace, asked: Asked, say: Say) -> Result:
    from medcam.cohort.cases import read_table
    from medcam.cohort.running import run_cases
    from medcam.cohort.summary import summarized
    from medcam.cohort.writing import write_results
    from medcam.validate.bootstrap import Resampling

    how = Resampling(replicates=options.replicates, seed=options.seed)
    entries = read_table(options.table, with_model=bool(options.model))
    out = Path(options.out or "medcam-validated")
    model = _model(options, say)
    cases = run_cases(entries, asked, model=model, out=out, say=say)
    say("adding up")
    cohort = summarized(cases, asked, primary=options.primary, how=how)
    files = write_results(cohort, out)
    if options.report == "none":
        return cohort_result(cohort, files)
    from medcam.report.cohort_report import write_report

    written = write_report(cohort, out, pages=options.report, say=say)
    return cohort_result(
        cohort, (*files, *(file for file in written.files if file.parent.name != "pages")), written.notes
    )


def cohort_result(cohort: Cohort, files: tuple[Path, ...] = (), notes: tuple[str, ...] = ()) -> Result:
    from medcam.cohort.plain import to_plain
    from medcam.validate.verdict import KINDS

    failed = [case for case in cohort.cases if not case.ok]
    verdict = cohort.verdict
    lines = [f"verdict  {verdict.words if verdict else 'none: all cases failed'}"]
    lines += [f"         {sentence}" for sentence in (verdict.because if verdict else ())]
    lines += [f"missing  {sentence}" for sentence in (verdict.missing if verdict else ())]
    lines += [f"{count:5} cases: {KINDS[kind]}" for kind, count in cohort.counts.items()]
    for row in cohort.summary:
        if row.measure == cohort.primary and row.stratum == "all":
            each = row.interval
            width = f"{each.value:.3f} ({each.low:.3f} to {each.high:.3f})"
            lines.append(f"{row.map:20} {row.measure} {width}, {each.cases} cases of {each.patients} patients")
    for name, numbers in cohort.protocols.items():
        lines += [f"protocol {name:12} {measure} {value:.3f}" for measure, value in numbers.items()]
    lines += [f"failed   line {case.entry.line}: {case.error}" for case in failed]
    lines += [f"note     {note}" for note in (*cohort.notes, *notes)]
    lines += [f"wrote    {file}" for file in files]
    values = {
        "verdict": to_plain(verdict),
        "counts": dict(cohort.counts),
        "primary": cohort.primary,
        "summary": [to_plain(row) for row in cohort.summary if row.measure == cohort.primary],
        "comparisons": [to_plain(each) for each in cohort.comparisons if each.measure == cohort.primary],
        "protocols": to_plain(cohort.protocols),
        "failed": [{"line": case.entry.line, "error": case.error} for case in failed],
        "files": [str(file) for file in files],
    }
    return Result(values, lines, ok=not failed)
