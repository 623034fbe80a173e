"""Which cases a cohort has, and what is to be done with each: nothing, where it was done of the same and all is there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medcam.cohort.layouts import spots
from medcam.cohort.manifest import WAITING, Row
from medcam.cohort.results import Entry
from medcam.cohort.seen import files_of, looks_same, seen_of, verified
from medcam.cohort.stored import plain_entry
from medcam.cohort.working import Task, Work, id_of, question_of
from medcam.errors import UsageError

# What is to be done with a case: nothing; it was never done; it failed and is passed over, or tried again; its files changed, or what was
# asked of it; what was written of it is gone or changed.
THERE, NEW, PASSED, RETRIED, CHANGED, DAMAGED = "there", "new", "passed over", "retried", "changed", "damaged"


@dataclass(frozen=True)
class Case:
    """One case of a cohort.

    Parameters
    ----------
    series
        The files of the DICOM series that is its image, where they are known.
    name
        What its files are called after, parts separated by '/', where the image's own name may tell who it is; '' takes that of the image.
    """

    entry: Entry
    series: tuple[Path, ...] = field(default=(), repr=False)
    name: str = field(default="", repr=False)


@dataclass(frozen=True)
class Cases:
    """All cases of a cohort, in order.

    Parameters
    ----------
    root
        The folder that the names of images are relative to.
    notes
        What was left out, in sentences.
    found
        Whether they were found in a folder, so that a table of them is of use.
    """

    cases: tuple[Case, ...]
    root: Path = field(repr=False)
    notes: tuple[str, ...] = ()
    found: bool = False

    def numbered(self) -> tuple[Entry, ...]:
        """Return the rows of all cases, patients by number in the order of the cases."""
        numbers = {name: n for n, name in enumerate(dict.fromkeys(case.entry.patient for case in self.cases), 1)}
        return tuple(replace(case.entry, patient=f"patient {numbers[case.entry.patient]}") for case in self.cases)


@dataclass(frozen=True)
class Shard:
    """Part `number` of `of`, from 1: the cases whose ids fall on it, the same whatever else the cohort holds."""

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise UsageError(f"a shard is one of 1/{self.of} to {self.of}/{self.of}, not {self.number}/{self.of}")

    def holds(self, id_: str) -> bool:
        """Tell whether a case belongs to this part."""
        return int(hashlib.sha256(id_.encode()).hexdigest(), 16) % self.of == self.number - 1


@dataclass(frozen=True)
class Planned:
    """A case of this run, with what became of it before and what is to be done with it.

    Parameters
    ----------
    stand
        One of `THERE`, `NEW`, `PASSED`, `RETRIED`, `CHANGED`, `DAMAGED`.
    row
        What the manifest says of it now.
    """

    stand: str
    row: Row
    task: Task


def asked_of(cases: Cases, work: Work, shard: Shard, settings: Mapping[str, Any]) -> Iterator[tuple[Row, Task]]:
    """Yield the cases of a shard: as rows that wait, and as tasks."""
    ids = [id_of(case.entry) for case in cases.cases]
    images = [case.name or next(iter(case.entry.images), case.entry.heatmap or "") for case in cases.cases]
    method = str(work.asked.explaining.get("method") or "grad-cam")
    named = dict(zip(ids, images, strict=True))
    placed = spots(named, layout=work.layout, root=cases.root, method=method)
    for id_, case, numbered in zip(ids, cases.cases, cases.numbered(), strict=True):
        if shard.holds(id_):
            entry, number = case.entry, int(numbered.patient.split()[1])
            question = question_of(settings, entry, placed[id_])
            plain = plain_entry(numbered, work.out)
            row = Row(id_, entry.line, entry.case, number, entry.target, plain, question=question)
            yield row, Task(id_, entry, case.series, placed[id_], question)


def stand_of(before: Row | None, row: Row, task: Task, out: Path, *, retry_failed: bool) -> Planned:
    """Return what is to be done with a case."""
    now = seen_of(files_of(task.entry, task.series))
    fresh = replace(row, seen=now)
    if before is None or before.state == WAITING:
        return Planned(NEW, fresh, task)
    fresh = replace(fresh, attempts=before.attempts)
    known = before.question == row.question
    same = known and looks_same(before.seen, now)
    if before.failed:
        if not same or retry_failed:
            return Planned(RETRIED if same else CHANGED, fresh, task)
        return Planned(PASSED, renewed(before, row), task)
    files = verified(out, before.files)
    if files is None:
        return Planned(DAMAGED, fresh, task)
    if same:
        return Planned(THERE, replace(renewed(before, row), files=files), task)
    # Files that were touched may hold what they held: the worker, who reads them anyway, tells.
    kept = replace(renewed(before, row), seen=now, files=files)
    return Planned(CHANGED, kept if known else fresh, replace(task, known=before.key if known else ""))


def renewed(before: Row | None, row: Row) -> Row:
    """Return what became of a case, under the line and patient that it now has."""
    if before is None:
        return row
    return replace(
        before, line=row.line, name=row.name, patient=row.patient, target=row.target, entry=row.entry
    )  # fmt: skip
