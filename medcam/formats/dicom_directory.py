"""The directory of a disc (DICOMDIR): which files it lists, without trusting the names that it gives.

References
----------
DICOM PS3.3 F.3 (Basic Directory), PS3.10 8.2 (File IDs).
"""

from __future__ import annotations

from pathlib import Path

import pydicom

from medcam.errors import InputError

_CLASS = b"1.2.840.10008.1.3.10"


def is_directory(path: Path) -> bool:
    """Tell whether a file is the directory of a disc."""
    with path.open("rb") as stream:
        start = stream.read(512)
    return start[128:132] == b"DICM" and _CLASS in start


def listed_files(path: Path) -> tuple[Path, ...]:
    """Return the files that a directory lists, all of which are below its own folder.

    Names are compared without regard to case: discs are often copied to lower case.

    Raises
    ------
    InputError
        If it is damaged, or a file that it lists is not there or would lie outside its folder.
    """
    try:
        records = pydicom.dcmread(path).get("DirectoryRecordSequence") or ()
        listed = [record.get("ReferencedFileID") for record in records]
        names = [[each] if isinstance(each, str) else [str(part) for part in each] for each in listed if each]
    except Exception as error:
        raise InputError(
            f"{path.name} is a damaged DICOMDIR ({type(error).__name__}); give the folder that it lies in"
        ) from error
    files = {tuple(name): _find(path.parent, name) for name in names}
    missing = [name for name, file in files.items() if file is None]
    if missing:
        raise InputError(
            f"{path.name} lists {len(files)} files, and {len(missing)} of them are not there; copy the whole disc, or "
            "give the folder itself to read what there is"
        )
    return tuple(file for file in files.values() if file is not None)


def _find(folder: Path, parts: list[str]) -> Path | None:
    found = folder
    for part in parts:
        if part in ("", ".", "..") or "/" in part or "\\" in part:
            return None
        inside = found / part
        if not inside.exists():
            siblings = sorted(found.iterdir()) if found.is_dir() else []
            inside = next((each for each in siblings if each.name.lower() == part.lower()), inside)
        found = inside
    return found if found.is_file() else None
