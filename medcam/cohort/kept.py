"""What came of each configuration of each case, kept as soon as it is there: a comparison goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import medcam
from medcam.cohort.judging import case_label
from medcam.cohort.plain import from_plain, to_plain
from medcam.cohort.results import Entry
from medcam.cohort.running import identity_of
from medcam.cohort.stored import digest_of, plain_settings, without_files
from medcam.cohort.sweeping import Answer, Configuration, Plain, Sweep
from medcam.errors import InputError, MedcamError
from medcam.models import Model
from medcam.whole_file import whole_file

VERSION = 1


@dataclass(frozen=True, eq=False)
class Keeping:
    """Where the results of a sweep are kept, and what its networks are."""

    folder: Path
    sweep: Sweep
    models: Mapping[str, str]
    random: Mapping[str, str]

    @staticmethod
    def of(sweep: Sweep, folder: Path) -> Keeping:
        """Return where a sweep's results are kept; reads the networks' weights once."""
        return Keeping(
            folder,
            sweep,
            {name: identity_of(model) for name, model in sweep.models.items()},
            {name: _weights(model) for name, model in sweep.random.items()},
        )

    def case(self, entry: Entry) -> Kept | None:
        """Return what is kept of one case; None where a file cannot be read, which the case itself then says."""
        sweep = self.sweep
        try:
            files = [*entry.images, *(path for path in (entry.mask, entry.organ) if path is not None)]
            of_case = {
                "entry": to_plain(without_files(entry)),
                "which": [len(entry.images), entry.mask is None, entry.organ is None],
                "files": [digest_of(path) for path in files],
                "settings": plain_settings(sweep.settings),
                "how": {name: to_plain(value) for name, value in sweep.explaining.items()},
                "drawn_on": sweep.drawn_on,
                "reading": [sweep.allow_gaps, sweep.regrid],
                "version": medcam.__version__,
            }
        except MedcamError:
            return None
        each: dict[Configuration | None, Any] = {
            c: [self.models[c.model], self.random.get(c.model), c.method, c.layer] for c in sweep.configurations
        }
        among = _hash(list(each.values()))
        # What knows of no network is measured on the first configuration's cells.
        each[None] = ["baselines", each[sweep.configurations[0]]]
        keys = {c: (_hash(name)[:12], _hash([of_case, name])) for c, name in each.items()}
        return Kept(self.folder, case_label(entry), keys, among)


@dataclass(frozen=True, eq=False)
class Kept:
    """What is kept of one case.

    Parameters
    ----------
    keys
        By configuration, and for the baselines under None: the end of its file's name, and what tells whether it is made of the same.
    among
        A digest of all that is compared.
    """

    folder: Path
    label: str
    keys: Mapping[Configuration | None, tuple[str, str]]
    among: str

    def whole(self, configurations: Sequence[Configuration]) -> tuple[dict[Configuration, Answer], Plain] | None:
        """Return everything of the case if it was done before, else None.

        Where maps left out a part of the image, numbers hold only beside those that they were measured with.
        """
        found = [self._read(c) for c in (*configurations, None)]
        there = [values for values in found if values is not None]
        if len(there) < len(found):
            return None
        together = {values["among"] for values in there} == {self.among} and len({v["looked"] for v in there}) == 1
        if not together and any(values["looked"] for values in there):
            return None
        try:
            answers = [from_plain(Answer, values["result"]) for values in there[:-1]]
            return dict(zip(configurations, answers, strict=True)), from_plain(Plain, there[-1]["result"])
        except InputError:
            return None

    def answer(self, c: Configuration, looked: str) -> Answer | None:
        """Return what a configuration scored before, if it was measured where all maps of now looked; else None."""
        values = self._read(c)
        if values is None or values["looked"] != looked:
            return None
        try:
            answer: Answer = from_plain(Answer, values["result"])
        except InputError:
            return None
        return answer

    def keep(self, c: Configuration | None, looked: str, result: Answer | Plain) -> None:
        """Write down what a configuration scored, or the baselines.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        name, key = self.keys[c]
        values = {
            "compared_version": VERSION, "key": key, "looked": looked, "among": self.among, "result": to_plain(result)
        }  # fmt: skip
        with whole_file(self.folder / f"{self.label}_{name}.json") as temporary:
            temporary.write_text(json.dumps(values, ensure_ascii=False, allow_nan=False), encoding="utf-8")

    def _read(self, c: Configuration | None) -> dict[str, Any] | None:
        """Return what was written; None if nothing was, of something else, or it is damaged."""
        name, key = self.keys[c]
        try:
            values = json.loads((self.folder / f"{self.label}_{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        same = isinstance(values, dict) and (values.get("compared_version"), values.get("key")) == (VERSION, key)
        return values if same and {"looked", "among", "result"} <= values.keys() else None


def _weights(model: Model) -> str:
    """Return the digest of a network's weights, whatever file it came from."""
    running = hashlib.sha256()
    for name, value in model.network.state_dict().items():
        running.update(name.encode())
        running.update(value.detach().cpu().float().numpy().tobytes())
    return running.hexdigest()


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
