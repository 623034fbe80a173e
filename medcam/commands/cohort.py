"""`medcam cohort`: explain, export, validate and report many cases, with nothing lost when a run ends early."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medcam.commands import Result, Say
from medcam.commands.parsing import Commands, command
from medcam.commands.progress import Progress, stoppable
from medcam.commands.validate import _add_explaining, _add_measuring, _asked, cohort_result
from medcam.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from medcam.cohort.adding import Adding
    from medcam.cohort.driving import Run
    from medcam.cohort.manifest import Row
    from medcam.cohort.planning import Cases, Shard
    from medcam.cohort.results import Cohort as CohortResults
    from medcam.cohort.working import Work
    from medcam.workers.jobs import Engine, Outcome

_EXAMPLES = """\
  medcam cohort cases.csv --model bundle_folder --out results
  medcam cohort cases.csv --model bundle_folder --out results --dry-run
  medcam cohort bids_folder --suffix T1w --model bundle_folder --layout bids --out derivatives/medcam
  medcam cohort archive --model demo-cxr --formats nifti,dicom-sc --workers 4 --limit 600 --out results
  medcam cohort cases.csv --model bundle_folder --shard 3/8 --out shards/3

Run the same command again to go on where it stopped: what is done is not done again. Ctrl-C finishes what is begun; twice ends at once.
A heatmap shows what moved the network's score. It is not a segmentation and not a diagnosis. Research use only.
"""
_SHOWN = 20


def add(commands: Commands) -> None:
    """Add the parser."""
    cohort = command(
        commands, "cohort", "explain, export, validate and report many cases", examples=_EXAMPLES, takes="model image"
    )
    cohort.add_argument(
        "input", metavar="INPUT", help="a table of cases (CSV), a BIDS dataset, or a folder of DICOM or other images"
    )
    cohort.add_argument(
        "--out", metavar="DIR", default="medcam-cohort", help="where results go (default: medcam-cohort)"
    )
    cohort.add_argument("--formats", default="nifti,png", help="as `medcam explain` takes them (default: nifti,png)")
    cohort.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        help="where masks and colours begin, as a fraction of the maximum (default 0.5)",
    )
    cohort.add_argument(
        "--layout", choices=["mirror", "flat", "bids"], default="mirror",
        help="how files are called: like the input's tree (default), all in one folder, or as BIDS derivatives",
    )  # fmt: skip
    cohort.add_argument("--suffix", metavar="NAME", help="of a BIDS dataset: which images, such as T1w")
    cohort.add_argument(
        "--datatype", metavar="NAME", help="of a BIDS dataset: images of this folder only, such as anat"
    )
    cohort.add_argument(
        "--report", choices=["all", "gallery", "none"], default="gallery",
        help="overview.html, and where lesions are known report.html with pages of all cases, of best, median and worst (default); or none",
    )  # fmt: skip
    cohort.add_argument(
        "--parquet", action="store_true", help="cases.parquet, too (default: where pyarrow is installed)"
    )
    _add_running(cohort)
    _add_measuring(cohort)
    _add_explaining(cohort)
    cohort.add_argument(
        "--config", metavar="FILE", help="JSON or YAML with any of these options; the command line wins"
    )


def _add_running(cohort: ArgumentParser) -> None:
    add_ = cohort.add_argument
    add_("--workers", type=int, metavar="N", help="how many cases are worked on at once (default: half the processors)")
    add_(
        "--threads", type=int, default=2, metavar="N",
        help="how many threads compute in each worker (default 2, however many workers: results depend on it in their last digit)",
    )  # fmt: skip
    add_("--limit", type=float, metavar="SECONDS", help="how long one case may take before it is given up")
    add_(
        "--engine", choices=["local", "inline", "dask"], default="local",
        help="worker processes of this machine (default), this process alone, or Dask",
    )  # fmt: skip
    add_("--scheduler", metavar="ADDRESS", help="of a Dask cluster, such as tcp://host:8786")
    add_("--shard", metavar="I/N", help="only part I (from 1) of N, for runs side by side; `medcam merge` joins them")
    add_(
        "--resume",
        action="store_true",
        help="go on in a folder where a run stopped (always so; the word is for scripts)",
    )
    add_("--retry-failed", action="store_true", help="try again what failed before")
    add_("--replace", action="store_true", help="make results of other settings again that are found in the folder")
    add_("--dry-run", action="store_true", help="say what would be done, and what is there; write nothing")


def run(options: Namespace, say: Say) -> Result:
    """Run a cohort, or go on with it."""
    from medcam.cohort.adding import Adding, check_parquet
    from medcam.cohort.driving import Run
    from medcam.cohort.working import Network, Work
    from medcam.options import at_least
    from medcam.validate.bootstrap import Resampling

    asked = _asked(options)
    _check_names(options)
    check_parquet(options.parquet or None)
    at_least("--threads", options.threads)
    how = Resampling(replicates=options.replicates, seed=options.seed)
    adding = Adding(asked, options.primary, how, options.parquet or None)
    network = (
        Network(_whole(options.model), options.factory, _whole(options.preprocessing), options.trust_code)
        if options.model
        else None
    )
    cases = _cases(options, say)
    out = Path(options.out)
    work = Work(
        asked,
        network,
        out.absolute(),
        options.formats,
        options.threshold,
        options.layout,
        options.threads,
        options.tell,
    )
    how_run = Run(_shard(options.shard), options.retry_failed, options.replace, adding.to_json())
    for note in cases.notes:
        say(note)
    if options.dry_run:
        return _planned(cases, work, how_run)
    return _run(options, cases, work, how_run, adding, say)


def _whole(text: str | None) -> Any:
    """Return the path of a file from the root, since a worker may stand elsewhere; what is no file is a name and stays one."""
    return str(Path(text).absolute()) if text and Path(text).exists() else text


def _check_names(options: Namespace) -> None:
    """Refuse slips before anything long."""
    from medcam.engine.methods import method_named
    from medcam.formats import WRITERS
    from medcam.options import chosen, listed

    if options.series:
        raise UsageError(
            "--series chooses from one folder; a table has a column 'series', and of an archive all series are cases"
        )
    if options.model:
        method_named(options.method)
    for text in listed(options.formats):
        chosen(text, WRITERS, kind="format")


def _shard(text: str | None) -> Shard:
    from medcam.cohort.planning import Shard

    if text is None:
        return Shard()
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal()):
        raise UsageError(f"--shard takes a part and how many there are, such as 3/8, not '{text}'")
    return Shard(int(number), int(of))


def _cases(options: Namespace, say: Say) -> Cases:
    from medcam.cohort.listing import cases_in

    say("looking for cases")
    return cases_in(
        Path(options.input), with_model=bool(options.model), suffix=options.suffix, datatype=options.datatype,
        volume=options.volume,
    )  # fmt: skip


def _engine(options: Namespace) -> Engine:
    if options.scheduler and options.engine != "dask":
        raise UsageError("--scheduler is of Dask: say --engine dask, too")
    if options.engine == "inline":
        from medcam.workers.inline import inline

        if options.workers not in (None, 1) or options.limit is not None:
            raise UsageError(
                "the engine inline works on one case at a time and cannot end it: leave --workers and --limit out"
            )
        return inline(device=options.device)
    if options.engine == "dask":
        from medcam.workers.dask_cluster import dask

        on_gpu = options.device.startswith("cuda")
        return dask(scheduler=options.scheduler, workers=options.workers, gpu=on_gpu, limit_s=options.limit)
    from medcam.workers.local import local

    return local(
        workers=options.workers, devices=_devices(options.device), threads=options.threads, limit_s=options.limit
    )  # fmt: skip


def _devices(device: str) -> tuple[str, ...]:
    """Return the devices of this machine that workers share: of 'cuda' alone, all there are."""
    if device == "cpu":
        return ()
    if device != "cuda":
        return tuple(part.strip() for part in device.split(","))
    import torch

    return tuple(f"cuda:{n}" for n in range(torch.cuda.device_count())) or ("cuda",)


def _planned(cases: Cases, work: Work, how: Run) -> Result:
    from medcam.cohort.driving import planned
    from medcam.cohort.planning import PASSED, THERE

    plans = list(planned(cases, work, how))
    counts = Counter(plan.stand for plan in plans)
    todo = [plan for plan in plans if plan.stand not in (THERE, PASSED)]
    lines = [f"{len(plans)} cases: {', '.join(f'{count} {stand}' for stand, count in sorted(counts.items()))}"]
    lines += [f"would do  line {plan.row.line} ({plan.stand})" for plan in todo[:_SHOWN]]
    lines += [f"          and {len(todo) - _SHOWN} more"] if len(todo) > _SHOWN else []
    lines += [f"failed    line {p.row.line}: {p.row.error}" for p in plans if p.stand == PASSED][:_SHOWN]
    values = {
        "cases": len(plans),
        "counts": dict(counts),
        "todo": [{"line": plan.row.line, "case": plan.row.name, "why": plan.stand} for plan in todo],
    }
    return Result(values, lines)


def _run(options: Namespace, cases: Cases, work: Work, how: Run, adding: Adding, say: Say) -> Result:
    from medcam.cohort.adding import write_cases
    from medcam.cohort.manifest import read_manifest

    engine = _engine(options)
    with stoppable(say) as stopping:
        finished = _driven(cases, work, replace(how, stop=stopping), engine, say, bar=_has_bar(options))
        rows = read_manifest(work.out)[1]
        if finished and how.shard.of == 1:
            written = added(work.out, rows, adding, options.report, say)
        else:
            written = Written(None, (write_cases(work.out, rows.values()),))
    alone = f"This is shard {how.shard.number} of {how.shard.of}: `medcam merge` adds all of them up."
    notes = (*cases.notes, *((alone,) if how.shard.of > 1 else ()))
    return result_of(rows, replace(written, notes=(*notes, *written.notes)), interrupted=not finished)


def _has_bar(options: Namespace) -> bool:
    return sys.stderr.isatty() and not options.quiet


def _driven(cases: Cases, work: Work, how: Run, engine: Engine, say: Say, *, bar: bool) -> bool:
    """Run the cases, each in the table and told as soon as it is there; return whether none is left."""
    from medcam.cohort.adding import TABLE, Stream
    from medcam.cohort.driving import run_cohort
    from medcam.cohort.working import id_of

    total = sum(how.shard.holds(id_of(case.entry)) for case in cases.cases)
    progress = Progress(total, say, bar=bar)
    stream: list[Stream] = []

    def watch(row: Row, outcome: Outcome | None) -> None:
        if not stream:
            # Not before the folder is known to be this run's.
            stream.append(Stream(work.out / TABLE))
        stream[0].add(row)
        if outcome is None:
            progress.was_there(failed=row.failed)
        else:
            progress.came_out(row.line, row.error)

    try:
        return run_cohort(cases, work, replace(how, watch=watch), engine)
    finally:
        for each in stream:
            progress.end()
            each.close()


@dataclass(frozen=True, eq=False)
class Written:
    """What cases add up to (None where none was measured), the files that say so, and what they could not show."""

    cohort: CohortResults | None
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def added(out: Path, rows: Mapping[str, Row], adding: Adding, report: str, say: Say) -> Written:
    """Write the tables and the report of a cohort that is done."""
    from medcam.cohort.adding import add_up

    say("adding up")
    found = add_up(out, rows.values(), adding)
    if report == "none":
        return Written(found.cohort, found.files, found.notes)
    from medcam.report.overview import write_overview

    page = write_overview(rows.values(), out, title=f"Cohort · {adding.asked.explaining.get('method', 'grad-cam')}")
    if found.cohort is None or not found.cohort.done:
        return Written(found.cohort, (*found.files, page), found.notes)
    from medcam.report.cohort_report import write_report

    written = write_report(found.cohort, out, pages=report, say=say)
    files = (*found.files, page, *(file for file in written.files if file.parent.name != "pages"))
    return Written(found.cohort, files, (*found.notes, *written.notes))


def result_of(
    rows: Mapping[str, Row], written: Written, *, interrupted: bool = False, missing: Sequence[str] = ()
) -> Result:
    """Return what a cohort's cases became, and what those that were measured add up to."""
    counts = Counter(row.state for row in rows.values())
    failed = [row for row in rows.values() if row.failed]
    lines = [f"{count:5} {state}" for state, count in sorted(counts.items())]
    lines += [f"{row.state:8} line {row.line}: {row.error}" for row in failed[:_SHOWN]]
    lines += [f"         and {len(failed) - _SHOWN} more"] if len(failed) > _SHOWN else []
    lines += [f"missing  {each}" for each in missing]
    lines += ["stopped  run the same command again to go on"] if interrupted else []
    values = {
        "cases": dict(counts),
        "failed": [{"line": row.line, "case": row.name, "state": row.state, "error": row.error} for row in failed],
        "missing": list(missing),
        "interrupted": interrupted,
        "notes": list(written.notes),
        "files": [str(file) for file in written.files],
    }
    if written.cohort is not None:
        measured = cohort_result(written.cohort)
        values = {**measured.values, **values}
        # Those that failed stand above, with all others that did.
        lines += [line for line in measured.lines if not line.startswith("failed ")]
    lines += [f"note     {note}" for note in written.notes]
    lines += [f"wrote    {file}" for file in written.files]
    return Result(values, lines, ok=not (failed or interrupted or missing), interrupted=interrupted)
