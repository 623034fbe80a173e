"""The table of cases: what it asks for, refused by the line before any work starts if it cannot be done."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from medcam.cohort.results import Entry
from medcam.errors import InputError
from medcam.formats.comma_separated import read_csv

# Columns, and other names under which tables have them.
COLUMNS = {
    "case": ("case_id", "study", "id"),
    "patient": ("patient_id", "patientid", "subject"),
    "class": ("target", "finding"),
    "image": ("images",),
    "heatmap": ("map",),
    "mask": ("lesion", "segmentation"),
    "label": ("segment",),
    "organ": ("body",),
    "truth": ("present",),
    "series": (),
    "volume": (),
    "split": ("fold", "part"),
    "transform": (),
}
# Several images of one case, one for each channel of the network, stand in one field.
BETWEEN_IMAGES = "|"
_MOST_TOLD = 10


def read_table(
    path: str | Path, *, with_model: bool, with_lesions: bool = True, with_files: bool = True
) -> tuple[Entry, ...]:
    """Read a table of cases: CSV with commas, semicolons or tabs, UTF-8, names of columns in its first line.

    Files are named relative to the table's folder.

    Parameters
    ----------
    with_model
        Whether there is a network to make heatmaps that are missing.
    with_lesions
        Whether lesions are needed, so that a row without a mask must say that there is none.
    with_files
        Whether all files must be there; if not, a case that lacks one fails on its own when its turn comes.

    Raises
    ------
    InputError
        If the table cannot be read, a column is missing or unknown, or a row names what is not there, is there twice, or leaves out what is
        needed. The first ten such rows are named by their lines.
    """
    path = Path(path)
    columns, rows = _rows(path)
    wrong: list[str] = []
    entries = []
    for line, row in rows:
        try:
            folder = path.parent
            entries.append(
                _entry(line, row, folder, with_model=with_model, with_lesions=with_lesions, with_files=with_files)
            )
        except InputError as error:
            wrong.append(f"line {line}: {error}")
    wrong += _twice(entries)
    if wrong:
        more = f"; and {len(wrong) - _MOST_TOLD} more" if len(wrong) > _MOST_TOLD else ""
        raise InputError(f"{path.name} cannot be used as it is: {'; '.join(wrong[:_MOST_TOLD])}{more}")
    if not entries:
        raise InputError(f"{path.name} has no rows below its first line, which names {', '.join(columns)}")
    return tuple(entries)


def _rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return the names of the columns, as medcam calls them, and each row with its line."""
    columns, rows = read_csv(path)
    # Spreadsheets leave columns without a name behind the last.
    columns = [column for column in columns if column]
    known = {other: name for name, others in COLUMNS.items() for other in (name, *others)}
    named = [known.get(column, "") for column in columns]
    unknown = [column for column, name in zip(columns, named, strict=True) if not name]
    if unknown:
        near = difflib.get_close_matches(unknown[0], COLUMNS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{path.name} has a column '{unknown[0]}'{hint} (a table of cases has {', '.join(COLUMNS)})")
    twice = [name for name in dict.fromkeys(named) if named.count(name) > 1]
    if twice:
        raise InputError(f"{path.name} has two columns for '{twice[0]}'; keep one")
    if missing := [name for name in ("case", "patient") if name not in named]:
        raise InputError(
            f"{path.name} has no column '{missing[0]}': statistics by patient need to know whose each case is "
            f"(a table of cases has {', '.join(COLUMNS)})"
        )
    if not {"image", "heatmap"} & set(named):
        raise InputError(f"{path.name} has neither a column 'image' nor 'heatmap'")
    renamed = dict(zip(columns, named, strict=True))
    return named, [(line, {renamed[column]: row[column] for column in columns}) for line, row in rows]


def _entry(
    line: int, row: Mapping[str, str], folder: Path, *, with_model: bool, with_lesions: bool, with_files: bool
) -> Entry:
    def file(name: str, given: str) -> Path:
        found = folder / given
        if with_files and not found.exists():
            siblings = [p.name for p in found.parent.iterdir()] if found.parent.is_dir() else []
            near = difflib.get_close_matches(found.name, siblings, n=1)
            raise InputError(f"its {name} '{given}' is not there" + (f"; did you mean {near[0]}?" if near else ""))
        return found

    for name in ("case", "patient"):
        if not row[name]:
            raise InputError(f"it has no {name}")
    images = tuple(file("image", each.strip()) for each in row.get("image", "").split(BETWEEN_IMAGES) if each.strip())
    heatmap = file("heatmap", row["heatmap"]) if row.get("heatmap") else None
    mask = file("mask", row["mask"]) if row.get("mask") else None
    truth, volume = _number(row, "truth", (0, 1)), _number(row, "volume", None)
    if heatmap is None and not (images and with_model):
        needed = "--model makes it of the image" if images else "it needs a heatmap, or an image and --model"
        raise InputError(f"it has no heatmap, and {needed}")
    if mask is None and truth != 0 and with_lesions:
        raise InputError("it has no mask; a case without a lesion says so by a truth of 0")
    return Entry(
        line,
        row["case"],
        row["patient"],
        row.get("class", ""),
        images,
        heatmap,
        mask,
        row.get("label", ""),
        file("organ", row["organ"]) if row.get("organ") else None,
        truth,
        row.get("series", ""),
        volume,
        row.get("split", ""),
        file("transform", row["transform"]) if row.get("transform") else None,
    )


def _number(row: Mapping[str, str], name: str, allowed: tuple[int, ...] | None) -> int | None:
    text = row.get(name, "")
    if not text:
        return None
    number = int(text) if text.isdecimal() else -1
    if number < 0 or (allowed and number not in allowed):
        words = " or ".join(map(str, allowed)) if allowed else "a whole number from 0"
        raise InputError(f"its {name} should be {words}, not '{text}'")
    return number


def _twice(entries: Sequence[Entry]) -> list[str]:
    """Say which rows ask for the same case and class, and which cases belong to two patients."""
    seen: dict[tuple[str, str], int] = {}
    whose: dict[str, Entry] = {}
    wrong = []
    for entry in entries:
        before = seen.setdefault((entry.case, entry.target), entry.line)
        if before != entry.line:
            wrong.append(f"line {entry.line}: it has the case and class of line {before}")
        first = whose.setdefault(entry.case, entry)
        if first.patient != entry.patient:
            wrong.append(f"line {entry.line}: its case is that of line {first.line}, of another patient")
    return wrong
