"""results.json: all that came of a cohort, to be read back for pages and tables; and one file a case, to go on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import typing
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medcam.cohort.asked import Asked, threshold_named
from medcam.cohort.plain import from_plain, to_plain
from medcam.cohort.results import CaseResult, Cohort, Entry
from medcam.errors import InputError
from medcam.recipe import Recipe
from medcam.validate.measures import Settings
from medcam.validate.protocols import PROTOCOLS
from medcam.whole_file import whole_file

VERSION = 1
_FILES = ("images", "heatmap", "mask", "organ", "transform")


def store_cohort(cohort: Cohort, path: Path) -> None:
    """Write results.json. Patients are numbered in it; cases are called as in the table, and files are named relative to its folder.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    numbers = {name: f"patient {n}" for n, name in enumerate(dict.fromkeys(c.entry.patient for c in cohort.cases), 1)}
    cases = [_plain_case(case, path.parent, numbers[case.entry.patient]) for case in cohort.cases]
    bare = {name: to_plain(value) for name, value in vars(cohort).items() if name not in ("cases", "settings")}
    values = {"results_version": VERSION, **bare, "cases": cases, "settings": plain_settings(cohort.settings)}
    _write(values, path)


def read_cohort(path: str | Path) -> Cohort:
    """Return what `store_cohort` wrote.

    Raises
    ------
    InputError
        If there is no such file, it is damaged, or of another version.
    """
    path = Path(path)
    values = _read(path)
    if values.get("results_version") != VERSION:
        raise InputError(
            f"{path.name} has version {values.get('results_version')!r:.20}; this medcam reads version {VERSION}: validate again"
        )
    cases = tuple(_case(each, path.parent) for each in values.get("cases", []))
    settings = settings_of(values.get("settings", {}))
    kinds = typing.get_type_hints(Cohort)
    found: dict[str, Any] = {
        name: from_plain(kind, values[name])
        for name, kind in kinds.items()
        if name in values and name not in ("cases", "settings")
    }
    try:
        return Cohort(cases=cases, settings=settings, **found)
    except TypeError as error:
        raise InputError(f"{path.name} is not complete: {error}") from error


def store_case(case: CaseResult, key: str, path: Path) -> None:
    """Write what came of one case beside the key of what it was made of."""
    _write({"results_version": VERSION, "key": key, "case": _plain_case(case, path.parent, "")}, path)


def done_case(entry: Entry, key: str, path: Path) -> CaseResult | None:
    """Return what came of a case before, if it was made of the same; None if it failed, was never done, or is damaged."""
    if not path.is_file():
        return None
    try:
        found, case = stored_case(entry, path)
    except InputError:
        return None
    if found != key or not case.ok or (case.heatmap is not None and not case.heatmap.is_file()):
        return None
    return case


def stored_case(entry: Entry, path: Path) -> tuple[str, CaseResult]:
    """Return the key of what a case was made of, and what came of it, as the case of a row that may have moved in its table.

    Raises
    ------
    InputError
        If the file is not there, damaged, or of another version.
    """
    values = _read(path)
    if values.get("results_version") != VERSION:
        raise InputError(f"{path.name} was written by another version of medcam")
    case = _case(values.get("case", {}), path.parent)
    if case.measures is not None:
        curve = replace(case.measures.curve, case=entry.case, patient=entry.patient)
        case = replace(case, measures=replace(case.measures, curve=curve))
    return str(values.get("key")), replace(case, entry=entry)


def key_of(entry: Entry, asked: Asked, *, model: str, version: str) -> str:
    """Return the digest of all that a case's result depends on: its files, what is asked, the network, and medcam's version."""
    files = [*entry.images, *(path for path in (entry.heatmap, entry.mask, entry.organ) if path is not None)]
    sidecars = [path.with_name(path.name.partition(".")[0] + ".json") for path in (entry.heatmap,) if path is not None]
    said = {
        "entry": to_plain(without_files(entry)),
        "asked": {name: to_plain(value) for name, value in vars(asked).items() if name != "settings"},
        "settings": plain_settings(asked.settings),
        "files": [digest_of(path) for path in (*files, *(path for path in sidecars if path.is_file()))],
        "which": [len(entry.images), entry.heatmap is None, entry.mask is None, entry.organ is None],
        "model": model,
        "version": version,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def without_files(entry: Entry) -> Entry:
    """Return an entry without its files, and without what its own result does not depend on."""
    bare = replace(entry, line=0, patient="", split="")
    return replace(bare, images=(), heatmap=None, mask=None, organ=None, transform=None)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of all files of a folder with their names.

    Raises
    ------
    InputError
        If one cannot be read.
    """
    running = hashlib.sha256()
    try:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                running.update(str(file.relative_to(path.parent)).encode())
                with file.open("rb") as stream:
                    while block := stream.read(1 << 20):
                        running.update(block)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    return running.hexdigest()


def plain_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings of the measures as JSON, thresholds by their names."""
    plain = {name: to_plain(value) for name, value in vars(settings).items() if name != "thresholds"}
    return {**plain, "thresholds": [threshold.name for threshold in settings.thresholds]}


def settings_of(plain: Mapping[str, Any]) -> Settings:
    """Return the settings that `plain_settings` made plain.

    Raises
    ------
    InputError
        If they are damaged.
    """
    try:
        thresholds = tuple(threshold_named(name) for name in plain["thresholds"])
        rest: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
        }
        return Settings(**(rest | {"thresholds": thresholds}))
    except (KeyError, TypeError) as error:
        raise InputError(f"the results' settings are damaged: {error}") from error


def _plain_case(case: CaseResult, folder: Path, patient: str) -> dict[str, Any]:
    # The curve names case and patient too.
    measures = [case.measures, *case.baselines.values()]
    bare = [
        None if each is None else replace(each, curve=replace(each.curve, case="", patient="")) for each in measures
    ]
    baselines = {name: each for name, each in zip(case.baselines, bare[1:], strict=True) if each is not None}
    plain: dict[str, Any] = to_plain(replace(case, measures=bare[0], baselines=baselines, recipe=None))
    plain["entry"] = plain_entry(replace(case.entry, patient=patient), folder)
    for name in ("heatmap", "page"):
        plain[name] = _relative(plain[name], folder)
    return {**plain, "recipe": None if case.recipe is None else case.recipe.to_json()}


def _case(plain: Mapping[str, Any], folder: Path) -> CaseResult:
    recipe = plain.get("recipe")
    protocols = plain.get("protocols") or {}
    found: CaseResult = from_plain(CaseResult, {**plain, "recipe": None, "protocols": {}})
    return replace(
        found,
        entry=_placed(found.entry, folder),
        recipe=None if recipe is None else Recipe.from_json(recipe),
        protocols={name: from_plain(_case_kind(name), value) for name, value in protocols.items()},
        heatmap=None if found.heatmap is None else _absolute(found.heatmap, folder),
        page=None if found.page is None else _absolute(found.page, folder),
    )


def plain_entry(entry: Entry, folder: Path) -> dict[str, Any]:
    """Return a row of the table as JSON can hold it, its files named relative to a folder."""
    plain: dict[str, Any] = to_plain(entry)
    for name in _FILES:
        value = plain[name]
        plain[name] = (
            [_relative(each, folder) for each in value] if isinstance(value, list) else _relative(value, folder)
        )
    return plain


def entry_of(plain: Mapping[str, Any], folder: Path) -> Entry:
    """Return the row that `plain_entry` made plain.

    Raises
    ------
    InputError
        If it is damaged.
    """
    return _placed(from_plain(Entry, plain), folder)


def _placed(entry: Entry, folder: Path) -> Entry:
    one: dict[str, Any] = {name: getattr(entry, name) for name in _FILES[1:]}
    one = {name: None if path is None else _absolute(path, folder) for name, path in one.items()}
    return replace(entry, images=tuple(_absolute(path, folder) for path in entry.images), **one)


def _case_kind(name: str) -> Any:
    if name not in PROTOCOLS:
        raise InputError(f"the results hold a protocol '{name}' that this medcam does not know")
    return typing.get_type_hints(PROTOCOLS[name].case)["return"]


def _relative(path: str | None, folder: Path) -> str | None:
    return None if path is None else Path(os.path.relpath(path, folder)).as_posix()


def _absolute(path: Path, folder: Path) -> Path:
    return Path(os.path.normpath(folder / path))


def _write(values: Mapping[str, Any], path: Path) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(values, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path.name} as results: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path.name} holds no results")
    return values
