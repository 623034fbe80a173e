"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medcam.errors import OutputError

UNFINISHED = ".medcam-"
"""How the names of files begin that are being written, or were when the process was killed: no reader takes them for files."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to, and rename it to `path` once the block has ended without an error.

    The temporary name ends like `path`, since many libraries choose their format by the suffix; the folder is made if need be. Whatever
    goes wrong, nothing is left under either name, and a file that stood there before still stands.

    Raises
    ------
    OutputError
        If the disk is full, the folder cannot be written to, or the like.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=UNFINISHED, suffix="-" + path.name, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise OutputError(f"cannot write {path}: {_words(error)}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _words(error: BaseException) -> str:
    """Return what the system said; pydicom wraps it in a message that holds a whole traceback."""
    while isinstance(error, OSError) and not error.strerror and error.__context__ is not None:
        error = error.__context__
    return getattr(error, "strerror", None) or (str(error).strip() or type(error).__name__).splitlines()[0]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
