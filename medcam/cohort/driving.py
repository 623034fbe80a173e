"""A cohort's run: what is to be done is given to an engine, whichever, and what comes of it written down as soon as it is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

from medcam.cohort.bids import describe
from medcam.cohort.found import write_found
from medcam.cohort.manifest import DONE, Manifest, Row, read_manifest
from medcam.cohort.planning import PASSED, THERE, Cases, Planned, Shard, asked_of, renewed, stand_of
from medcam.cohort.working import Answer, Task, Work, WorkSetup, id_of
from medcam.errors import OutputError, UsageError
from medcam.whole_file import UNFINISHED
from medcam.workers.jobs import FAILED, Engine, Job, Outcome


@dataclass(frozen=True)
class Run:
    """How a cohort is run.

    Parameters
    ----------
    retry_failed
        Whether what failed before is tried again.
    replaces
        Whether results of other settings in the folder may be replaced.
    adding
        How results are added up at the end, as JSON: kept in the manifest, for whoever adds up several.
    stop
        Asked before each case whether no more is to be begun.
    watch
        Is told of each case that was there, and of each that came out, with the outcome.
    """

    shard: Shard = field(default_factory=Shard)
    retry_failed: bool = False
    replaces: bool = False
    adding: Mapping[str, Any] = field(default_factory=dict)
    stop: Callable[[], bool] = lambda: False
    watch: Callable[[Row, Outcome | None], object] = lambda _row, _outcome: None


def planned(cases: Cases, work: Work, run: Run) -> Iterator[Planned]:
    """Yield what is to be done with each case of a shard, without changing anything.

    Raises
    ------
    UsageError
        If the folder holds results of other settings, or of another shard, or the layout does not fit.
    """
    about, rows = read_manifest(work.out)
    settings = work.settings()
    _refuse_others(about, rows, settings, run, work.out)
    for row, task in asked_of(cases, work, run.shard, settings):
        yield stand_of(rows.get(row.id), row, task, work.out, retry_failed=run.retry_failed)


def run_cohort(cases: Cases, work: Work, run: Run, engine: Engine) -> bool:
    """Do what is to be done, writing down each case as soon as it is there; return whether no case was left for want of time.

    Raises
    ------
    UsageError
        As `planned`.
    OutputError
        If nothing more can be written: what is done stands.
    MedcamError
        If no worker can be set up.
    """
    settings = work.settings()
    with closing(Manifest(work.out)) as manifest:
        about, before = manifest.about(), manifest.rows()
        _refuse_others(about, before, settings, run, work.out)
        asked = list(asked_of(cases, work, run.shard, settings))
        manifest.drop(before.keys() - {row.id for row, _ in asked})
        manifest.put(renewed(before.get(row.id), row) for row, _ in asked)
        manifest.describe(_about(cases, settings, run))
        if not about.get("ended", True):
            _sweep(work.out)
        manifest.describe({"ended": False})
        if cases.found:
            write_found(cases.numbered(), work.out)
        if work.layout == "bids" and asked:
            describe(work.out, _dataset_of(asked[0][1]))
        given: dict[str, Planned] = {}
        reached: list[str] = []
        interrupted = False

        def jobs() -> Iterator[Job]:
            for row, task in asked:
                if run.stop():
                    return
                plan = stand_of(before.get(row.id), row, task, work.out, retry_failed=run.retry_failed)
                reached.append(row.id)
                if plan.stand in (THERE, PASSED):
                    if plan.row != before.get(row.id):
                        manifest.put([plan.row])
                    run.watch(plan.row, None)
                else:
                    given[row.id] = plan
                    yield Job(row.id, plan.task)

        outcomes = engine(jobs(), WorkSetup(work))
        try:
            for outcome in outcomes:
                plan = given.pop(outcome.key)
                interrupted |= outcome.attempts > 1 or outcome.kind not in (DONE, FAILED)
                row = _row_of(plan, outcome)
                _remove_stale(before.get(row.id), row, work.out)
                manifest.put([row])
                run.watch(row, outcome)
        finally:
            # The engine's workers end with its generator.
            close = getattr(outcomes, "close", None)
            if close is not None:
                close()
        if interrupted:
            # Workers that were killed left behind what they were writing.
            _sweep(work.out)
        manifest.describe({"ended": True})
        return len(reached) == len(asked) and not given


def _row_of(plan: Planned, outcome: Outcome) -> Row:
    """Return what the manifest says of a case after its outcome.

    Raises
    ------
    OutputError
        If nothing more can be written, whatever the case.
    """
    answer = outcome.result
    if isinstance(answer, Answer) and answer.full:
        raise OutputError(f"{answer.full}; what was done before stands: make room, and run the same command again")
    ended = datetime.now(timezone.utc).isoformat(timespec="seconds")
    told = replace(
        plan.row, question=plan.task.question, attempts=plan.row.attempts + outcome.attempts, worker=outcome.worker, ended=ended
    )  # fmt: skip
    if not isinstance(answer, Answer) or outcome.kind != DONE:
        error = outcome.error or "it ended without a result"
        return replace(
            told, state=outcome.kind, error=error, trace=outcome.trace, seconds=dict(outcome.seconds), key="", files={}, answer={}
        )  # fmt: skip
    if answer.same:
        return replace(plan.row, question=plan.task.question)
    return replace(
        told, state=DONE, key=answer.key, error="", trace="", seconds=dict(outcome.seconds), files=dict(answer.files),
        answer=dict(answer.shown),
    )  # fmt: skip


def _remove_stale(before: Row | None, row: Row, out: Path) -> None:
    """Remove what was written of a case before and is not part of it now, so that no map of other settings or inputs stays beside it."""
    if before is None:
        return
    for name in before.files.keys() - row.files.keys():
        try:
            (out / name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot remove {out / name}: {error.strerror or error}") from error


def _dataset_of(task: Task) -> Path:
    """Return the BIDS dataset that a case's image belongs to."""
    image = task.entry.images[0]
    return image.parents[len(PurePosixPath(task.spot.source).parts) - 1]


def _sweep(out: Path) -> None:
    """Remove what writers left behind that were killed."""
    for path in out.rglob(f"{UNFINISHED}*"):
        path.unlink(missing_ok=True)


def _about(cases: Cases, settings: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """Return what the manifest says of the run as a whole."""
    whole = [[id_of(entry), entry.line, entry.patient] for entry in cases.numbered()]
    return {
        "settings": settings,
        "shard": [run.shard.number, run.shard.of],
        "cohort": hashlib.sha256(json.dumps(whole).encode()).hexdigest(),
        "cases": [[id_, line] for id_, line, _ in whole] if run.shard.of > 1 else [],
        "adding": dict(run.adding),
    }


def _refuse_others(
    about: Mapping[str, Any], rows: Mapping[str, Row], settings: Mapping[str, Any], run: Run, out: Path
) -> None:
    """Refuse a folder whose results were made by other settings, or belong to another shard."""
    mine, theirs = [run.shard.number, run.shard.of], about.get("shard")
    if theirs and theirs != mine:
        raise UsageError(
            f"{out} holds shard {theirs[0]}/{theirs[1]} of a cohort, and {mine[0]}/{mine[1]} was asked for; give each shard a "
            "folder of its own"
        )
    then: Mapping[str, Any] = about.get("settings", settings)
    if run.replaces or not any(row.state == DONE for row in rows.values()):
        return
    differ = [name for name in dict.fromkeys((*then, *settings)) if then.get(name) != settings.get(name)]
    if differ:
        words = "; ".join(
            f"{name} {_short(then.get(name))} then, {_short(settings.get(name))} now" for name in differ[:5]
        )
        more = f" and {len(differ) - 5} more" if len(differ) > 5 else ""
        raise UsageError(
            f"{out} holds results of other settings ({words}{more}); give another --out, or --replace to make them again"
        )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else f"{text[:20]}..."
