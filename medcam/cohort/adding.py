"""What the cases of a cohort add up to, from what the manifest and their own files say: the same after one run, many, or a merge."""

from __future__ import annotations

import csv
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from medcam.cohort.asked import Asked
from medcam.cohort.judging import has_truth
from medcam.cohort.manifest import DONE, Row
from medcam.cohort.plain import from_plain, to_plain
from medcam.cohort.results import CaseResult, Cohort
from medcam.cohort.stored import entry_of, plain_settings, settings_of, stored_case
from medcam.cohort.summary import summarized
from medcam.cohort.working import CASES
from medcam.cohort.writing import CASE_COLUMNS, write_case_table, write_results
from medcam.errors import InputError, OutputError, UsageError
from medcam.validate.bootstrap import Resampling
from medcam.whole_file import whole_file

TABLE = "cases.csv"
_NOT_REACHED = "it was not reached; run the same command again"


@dataclass(frozen=True)
class Adding:
    """How results are added up.

    Parameters
    ----------
    primary
        The one measure named beforehand.
    parquet
        Whether cases.parquet is wanted; None writes it where pyarrow is installed.
    """

    asked: Asked
    primary: str = "average_precision"
    how: Resampling = field(default_factory=Resampling)
    parquet: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        asked = {name: to_plain(value) for name, value in vars(self.asked).items()}
        asked["settings"] = plain_settings(self.asked.settings)
        return {"asked": asked, "primary": self.primary, "how": to_plain(self.how), "parquet": self.parquet}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Adding:
        """Return what `to_json` made plain.

        Raises
        ------
        InputError
            If it is damaged.
        """
        try:
            plain, kinds = dict(values["asked"]), typing.get_type_hints(Asked)
            settings = settings_of(plain.pop("settings"))
            explaining = plain.pop("explaining")
            known = {each.name for each in fields(Asked)}
            rest: dict[str, Any] = {
                name: from_plain(kinds[name], each) for name, each in plain.items() if name in known
            }
            asked = Asked(settings=settings, explaining=explaining, **rest)
            return Adding(asked, values["primary"], from_plain(Resampling, values["how"]), values["parquet"])
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"the manifest does not say how its cases are added up: {error!r}") from error


@dataclass(frozen=True, eq=False)
class Added:
    """What cases add up to.

    Parameters
    ----------
    cohort
        Of the cases that were measured against a lesion; None where there are none.
    files
        The tables that were written.
    notes
        What could not be written, in sentences.
    """

    cohort: Cohort | None
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def add_up(folder: Path, rows: Iterable[Row], adding: Adding) -> Added:
    """Write the tables of a cohort: of all cases, and what those with a lesion add up to.

    Raises
    ------
    InputError
        If a case's file is gone or damaged.
    OutputError
        If a table cannot be written.
    """
    ordered = sorted(rows, key=lambda row: (row.line, row.id))
    results = [_result(row, folder) for row in ordered]
    measured = [case for case in results if has_truth(case.entry)]
    cohort = summarized(measured, adding.asked, primary=adding.primary, how=adding.how) if measured else None
    files = () if cohort is None else write_results(cohort, folder)
    table = write_case_table(results, folder / TABLE)
    parquet, notes = _parquet(table, adding.parquet)
    return Added(cohort, tuple(dict.fromkeys((*files, table, *parquet))), notes)


def check_parquet(wanted: bool | None) -> None:
    """Raise a UsageError if Parquet is wanted and what writes it is not installed."""
    if wanted and find_spec("pyarrow") is None:
        raise UsageError("--parquet needs pyarrow: pip install 'medcam-xai[parquet]'")


def write_cases(folder: Path, rows: Iterable[Row]) -> Path:
    """Write cases.csv alone, as it stands: of a run that was interrupted, or of one shard.

    Raises
    ------
    InputError, OutputError
        As `add_up`.
    """
    ordered = sorted(rows, key=lambda row: (row.line, row.id))
    return write_case_table([_result(row, folder) for row in ordered], folder / TABLE)


def _result(row: Row, folder: Path) -> CaseResult:
    entry = entry_of(row.entry, folder)
    seconds = float(sum(row.seconds.values()))
    if row.state != DONE:
        return CaseResult(entry, error=row.error or _NOT_REACHED, seconds=seconds)
    _, case = stored_case(entry, folder / CASES / f"{row.id}.json")
    return replace(case, seconds=seconds)


class Stream:
    """cases.csv while the run goes on: a line as soon as a case is there, in the order in which they come.

    Parameters
    ----------
    path
        Written anew.

    Raises
    ------
    OutputError
        If it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream: IO[str] = path.open("w", newline="", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        self._line(CASE_COLUMNS)

    def add(self, row: Row) -> None:
        """Write the line of a case."""
        shown: dict[str, Any] = {
            **row.answer, "line": row.line, "case": row.name, "patient": row.patient, "error": row.error,
            "heatmap": _heatmap(row), "seconds": f"{sum(row.seconds.values()):.2f}",
        }  # fmt: skip
        shown["verdict"] = "failed" if row.failed else shown.get("verdict", "")
        shown.setdefault("class", row.target)
        self._line(["" if shown.get(name) in (None, "nan") else shown[name] for name in CASE_COLUMNS])

    def close(self) -> None:
        """End the table."""
        try:
            self._stream.close()
        except OSError as error:
            raise self._unwritten(error) from error

    def _line(self, values: Sequence[object]) -> None:
        try:
            csv.writer(self._stream).writerow(values)
            self._stream.flush()
        except OSError as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write {self._path}: {error.strerror or error}")


def _heatmap(row: Row) -> str:
    named = (name for name in row.files if name.endswith((".nii.gz", ".nrrd")) and not name.startswith(CASES))
    return next((name for name in named if not name.endswith(("_label.nii.gz", "_mask.nii.gz", ".seg.nrrd"))), "")


def _parquet(table: Path, wanted: bool | None) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Write a table as Parquet, too: numbers as numbers, empty fields as null."""
    check_parquet(wanted)
    if wanted is False or find_spec("pyarrow") is None:
        return (), ()
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    path = table.with_suffix(".parquet")
    quoted = arrow_csv.ParseOptions(newlines_in_values=True)
    found = arrow_csv.read_csv(table, parse_options=quoted, convert_options=_as_words(table))
    with whole_file(path) as temporary:
        parquet.write_table(found, temporary)
    return (path,), ()


def _as_words(table: Path) -> Any:
    """Return how columns of words are read: a case called 007 is none of number 7."""
    import pyarrow
    from pyarrow import csv as arrow_csv

    words = ("case", "class", "decision", "verdict", "because", "error", "notes", "heatmap")
    return arrow_csv.ConvertOptions(column_types={name: pyarrow.string() for name in words})
