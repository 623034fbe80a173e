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
from medcam.steps import step_words

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
    network = "" if model is None else identity_of(model)
    for number, entry in enumerate(entries, 1):
        where = f"case {number} of {len(entries)} (line {entry.line})"
        path = folder / f"{case_label(entry)}.json"
        key = _key(entry, asked, network)
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


def _key(entry: Entry, asked: Asked, network: str) -> str:
    """Return what tells whether a case was done before; '' where a file cannot be read, which the case itself then says."""
    try:
        return key_of(entry, asked, model=network, version=medcam.__version__)
    except MedcamError:
        return ""


def identity_of(model: Model) -> str:
    """Return the digest of a network and its preprocessing: of the network's files, or of the weights of one given in memory.

    To be asked before the first image: some transforms keep what they have seen.
    """
    chain = model.preprocessing
    steps = () if chain is None else getattr(chain, "transforms", (chain,))
    running = hashlib.sha256("\n".join(map(step_words, steps)).encode())
    if model.sha256:
        running.update(model.sha256.encode())
        return running.hexdigest()
    for name, value in model.network.state_dict().items():
        running.update(name.encode())
        running.update(value.detach().cpu().float().numpy().tobytes())
    return running.hexdigest()
