"""The shards of a cohort put together: the same folder as one run of all cases would have made."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medcam.cohort.found import FOUND, write_found
from medcam.cohort.manifest import DONE, WAITING, Manifest, Row, read_manifest
from medcam.cohort.seen import record, verified
from medcam.cohort.stored import entry_of, plain_entry, store_case, stored_case
from medcam.cohort.working import CASES
from medcam.errors import InputError, OutputError, UsageError
from medcam.whole_file import whole_file

# What BIDS derivatives say of themselves; the same in all shards.
_OF_DATASET = ("dataset_description.json", ".bidsignore", "README.md")
_MOST_TOLD = 20


@dataclass(frozen=True)
class Part:
    """A shard as it lies on disk.

    Parameters
    ----------
    about
        What its manifest says of its run.
    """

    folder: Path
    about: Mapping[str, Any]
    rows: Mapping[str, Row] = field(repr=False)

    @property
    def shard(self) -> tuple[int, int]:
        """Which it is, and of how many."""
        number, of = self.about["shard"]
        return int(number), int(of)


@dataclass(frozen=True)
class Merged:
    """What shards gave together.

    Parameters
    ----------
    missing
        By shard, the lines of the table whose cases are in none of the folders, or were not reached.
    adding
        How results are added up, as JSON.
    """

    rows: Mapping[str, Row] = field(repr=False)
    missing: Mapping[int, tuple[int, ...]]
    adding: Mapping[str, Any] = field(repr=False)


def parts(folders: Sequence[Path]) -> tuple[Part, ...]:
    """Return the shards in folders, by number, if they are of one cohort, asked the same by the same model.

    Raises
    ------
    InputError
        If a folder holds no cohort.
    UsageError
        If shards are of different cohorts, settings or models, or one comes twice.
    """
    found = [Part(folder, *_read(folder)) for folder in folders]
    first = found[0]
    for part in found[1:]:
        if part.shard[1] != first.shard[1]:
            raise UsageError(
                f"{part.folder} holds a shard of {part.shard[1]}, and {first.folder} one of {first.shard[1]}: they are of different runs"
            )
        if part.about["cohort"] != first.about["cohort"]:
            raise UsageError(
                f"{part.folder} and {first.folder} were made of different cases: the table or the folder changed between them; "
                "run the older shards again"
            )
        then, now = first.about["settings"], part.about["settings"]
        differ = [name for name in dict.fromkeys((*then, *now)) if then.get(name) != now.get(name)]
        if differ:
            raise UsageError(
                f"{part.folder} and {first.folder} differ in {', '.join(differ)}: cases of different settings or models do not add up"
            )
    numbers = [part.shard[0] for part in found]
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        raise UsageError(f"shard {twice[0]} comes twice; give each once")
    return tuple(sorted(found, key=lambda part: part.shard[0]))


def merge(found: Sequence[Part], out: Path) -> Merged:
    """Put the cases of shards into one folder, which is then as one run would have left it, and can be gone on with.

    Files are linked where the disk can do it, else copied.

    Raises
    ------
    InputError
        If a file of a shard is gone, or is not what its manifest says.
    OutputError
        If the folder cannot be written to, or holds a cohort already.
    """
    if any(out.resolve() == part.folder.resolve() for part in found):
        raise UsageError("--out is one of the shards; give a folder of its own")
    rows: dict[str, Row] = {}
    about = {**found[0].about, "shard": [1, 1], "cases": [], "ended": True}
    if read_manifest(out)[0].get("cohort", about["cohort"]) != about["cohort"]:
        raise OutputError(f"{out} holds another cohort; give another --out")
    with closing(Manifest(out)) as manifest:
        for part in found:
            moved = [_moved(row, part.folder, out) for row in part.rows.values()]
            manifest.put(moved)
            rows |= {row.id: row for row in moved}
        manifest.drop(manifest.rows().keys() - rows.keys())
        manifest.describe(about)
    if (found[0].folder / FOUND).is_file():
        ordered = sorted(rows.values(), key=lambda row: (row.line, row.id))
        write_found((entry_of(row.entry, out) for row in ordered), out)
    for name in _OF_DATASET:
        if (found[0].folder / name).is_file():
            _placed(found[0].folder / name, out / name)
    return Merged(rows, _missing(found, rows), found[0].about["adding"])


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Row]]:
    about, rows = read_manifest(folder)
    if not {"shard", "cohort", "settings", "adding"} <= about.keys():
        raise InputError(f"{folder} holds no cohort: give folders that `medcam cohort --shard` wrote to")
    return about, rows


def _moved(row: Row, folder: Path, out: Path) -> Row:
    """Return the row of a case whose files now lie in another folder, too."""
    entry = plain_entry(entry_of(row.entry, folder), out)
    if row.state != DONE:
        return replace(row, entry=entry)
    if verified(folder, row.files) is None:
        raise InputError(
            f"files of the case of line {row.line} are gone from {folder}, or were changed: run that shard again, which makes them anew"
        )
    own = f"{CASES}/{row.id}.json"
    files = {name: _placed(folder / name, out / name) for name in row.files if name != own}
    # Its paths are relative to where it lies.
    key, case = stored_case(replace(entry_of(row.entry, folder), line=0), folder / own)
    heatmap = None if case.heatmap is None else _at(case.heatmap, folder, out)
    store_case(replace(case, heatmap=heatmap), key, out / own)
    return replace(row, entry=entry, files={**files, own: record(out / own)})


def _at(path: Path, folder: Path, out: Path) -> Path:
    """Return where a file lies after the move; one that the table named lies where it lay."""
    home = Path(os.path.abspath(folder))  # noqa: PTH100  a link stays what it is called
    return out / path.relative_to(home) if path.is_absolute() and path.is_relative_to(home) else path


def _placed(source: Path, target: Path) -> list[Any]:
    """Link or copy a file, and return its record."""
    try:
        if target.exists() and target.samefile(source):
            return record(target)
        with whole_file(target) as temporary:
            temporary.unlink()
            try:
                os.link(source, temporary)
            except OSError:
                shutil.copyfile(source, temporary)
        return record(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error


def _missing(found: Sequence[Part], rows: Mapping[str, Row]) -> dict[int, tuple[int, ...]]:
    from medcam.cohort.planning import Shard

    of = found[0].shard[1]
    lacking: dict[int, list[int]] = {}
    for id_, line in found[0].about["cases"]:
        if id_ not in rows or rows[id_].state == WAITING:
            number = next(n for n in range(1, of + 1) if Shard(n, of).holds(id_))
            lacking.setdefault(number, []).append(line)
    return {number: tuple(lines) for number, lines in sorted(lacking.items())}


def missing_in_words(missing: Mapping[int, Sequence[int]]) -> tuple[str, ...]:
    """Return sentences on what is missing, by shard."""
    return tuple(
        f"Of shard {number}, {len(lines)} cases are missing: line {', '.join(map(str, lines[:_MOST_TOLD]))}"
        f"{f', and {len(lines) - _MOST_TOLD} more' if len(lines) > _MOST_TOLD else ''}."
        for number, lines in missing.items()
    )
