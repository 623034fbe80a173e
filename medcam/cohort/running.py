"""All cases of a table, one after the other; what is done already is not done again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medcam
from medcam.cohort.asked import Asked
from medcam.cohort.judging import case_label, judged
from medcam.cohort.results import CaseResult, Entry
from medcam.cohort.stored import done_case, key_of, store_case
from medcam.errors import MedcamError

if TYPE_CHECKING:
    from medcam.models import Model

# From a sentence to wherever the user sees it.
Say = Callable[[str], Any]


def run_cases(
    entries: Sequence[Entry], asked: Asked, *, model: Model | None, out: Path, say: Say
) -> tuple[CaseResult, ...]:
    """Return what came of each case, in the table's order; a failed case is told and passed over.

    Each case's result is stored under `out/cases` as soon as it is there. One whose files, network and settings are the same as then is
    taken from there.

    Raises
    ------
    OutputError
        If nothing can be written.
    """
    results = []
    folder = out / "cases"
    for number, entry in enumerate(entries, 1):
        where = f"case {number} of {len(entries)} (line {entry.line})"
        path = folder / f"{case_label(entry)}.json"
        key = _key(entry, asked, model)
        before = done_case(entry, key, path) if key else None
        if before is not None:
            say(f"{where}: done before")
            results.append(before)
            continue
        say(where)
        result = judged(entry, asked, model=model, out=out / "heatmaps")
        say(f"{where}: {_told(result)}")
        if key and result.ok:
            store_case(result, key, path)
        results.append(result)
    return tuple(results)


def _told(result: CaseResult) -> str:
    if not result.ok:
        return f"failed: {result.error}"
    verdict = result.verdict.words if result.verdict else ""
    return f"{verdict} ({result.seconds:.1f} s)"


def _key(entry: Entry, asked: Asked, model: Model | None) -> str:
    """Return what tells whether a case was done before; '' where a file cannot be read, which the case itself then says."""
    try:
        return key_of(entry, asked, model="" if model is None else _identity(model), version=medcam.__version__)
    except MedcamError:
        return ""


def _identity(model: Model) -> str:
    """Return the digest of a network: of its files and what was made of them, or of the weights of one given in memory."""
    steps = "" if model.preprocessing is None else repr(getattr(model.preprocessing, "transforms", model.preprocessing))
    if model.sha256:
        # What objects say of themselves may hold their address, which changes.
        return f"{model.sha256} {len(steps)}"
    running = hashlib.sha256()
    for name, value in model.network.state_dict().items():
        running.update(name.encode())
        running.update(value.detach().cpu().float().numpy().tobytes())
    return running.hexdigest()
