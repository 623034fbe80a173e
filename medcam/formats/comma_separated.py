"""Tables as text: CSV with commas, semicolons or tabs."""

from __future__ import annotations

import csv
from pathlib import Path

from medcam.errors import InputError


def read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return the columns of a CSV file in small letters, and its rows with their lines; rows without any entry are left out.

    Raises
    ------
    InputError
        If it cannot be read, or a row has more or fewer fields than there are columns.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is no text in UTF-8; save it as 'CSV UTF-8'") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    first = text.partition("\n")[0]
    if "\0" in text or not first.strip():
        raise InputError(f"{path.name} is no table: its first line should name columns")
    reader = csv.reader(text.splitlines(keepends=True), delimiter=max(";\t,", key=first.count))
    try:
        columns = [name.strip().lower() for name in next(reader)]
        rows = []
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(columns):
                raise InputError(
                    f"{path.name}, line {reader.line_num}: {len(fields)} fields for {len(columns)} columns"
                )
            rows.append((reader.line_num, dict(zip(columns, map(str.strip, fields), strict=True))))
    except csv.Error as error:
        raise InputError(f"{path.name}, line {reader.line_num}: {error}") from error
    return columns, rows
