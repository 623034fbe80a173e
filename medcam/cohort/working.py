"""What a worker does with a case of a cohort: reads it, explains and measures it, writes what came of it."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medcam
from medcam.cohort.asked import Asked
from medcam.cohort.judging import Inputs, explained, measured, read_inputs
from medcam.cohort.layouts import Spot, laid_out
from medcam.cohort.plain import to_plain
from medcam.cohort.results import CaseResult, Entry
from medcam.cohort.seen import digest_of, files_of, record
from medcam.cohort.stored import plain_settings, store_case
from medcam.errors import InputError, ModelError, OutputError
from medcam.formats import check_formats, write
from medcam.validate.brief import in_brief
from medcam.validate.localization import laid_on
from medcam.volume import Heatmap, Volume
from medcam.workers.jobs import Place, Stages

if TYPE_CHECKING:
    from medcam.models import Model

THREADS = 2
# Where each case's result is kept, below the cohort's folder.
CASES = "cases"
# What no other case could be written on either.
_FOR_ALL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN}


@dataclass(frozen=True)
class Network:
    """A network as `load_model` finds it. It travels to workers, which load it once each."""

    path: str
    factory: str | None = None
    preprocessing: str | None = None
    trust_code: bool = False

    def digest(self) -> str:
        """Return the digest of its files and of how it is made of them, without loading it.

        Raises
        ------
        ModelError
            If a file cannot be read.
        """
        named = [self.path, *((each or "").partition(":")[0] for each in (self.preprocessing, self.factory))]
        # Where a file lies is no matter, only what it is called and holds.
        said = [self.factory or "", "" if Path(self.preprocessing or "").is_file() else self.preprocessing or ""]
        try:
            for place in (Path(name) for name in named if name):
                # What is no file is a name: of a demonstration, or of a module of Python.
                files = _files_below(place)
                said += [place.name, *(each.relative_to(place).as_posix() for each in files), digest_of(files)]
        except OSError as error:
            raise ModelError(f"cannot read the model: {error.strerror or error}") from error
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


@dataclass(frozen=True)
class Work:
    """What is done with every case of a cohort.

    Parameters
    ----------
    asked
        What is asked of each.
    network
        Makes the heatmaps; None where all are given.
    out
        The folder of the cohort.
    formats, threshold
        What is written of each heatmap, as `medcam.write` takes it.
    layout
        How files are called: see `medcam.cohort.layouts`.
    threads
        How many threads compute in each worker. The last digit of a sum depends on it, so it does not depend on how many workers there are.
    tell
        Is told what code a model runs before it runs.
    """

    asked: Asked
    network: Network | None
    out: Path
    formats: str = "nifti,png"
    threshold: float = 0.5
    layout: str = "mirror"
    threads: int = THREADS
    tell: Callable[[str], Any] = field(default=str, repr=False)

    def settings(self) -> dict[str, Any]:
        """Return all that results depend on besides the cases themselves, as JSON: which differ is told when a run is resumed."""
        asked = {
            name: to_plain(value) for name, value in vars(self.asked).items() if name not in ("settings", "explaining")
        }
        explaining = dict(self.asked.explaining)
        # Which of several devices of a kind computed is no matter.
        explaining["device"] = str(explaining.get("device", "cpu")).partition(":")[0]
        network = None if self.network is None else self.network.digest()
        found = {
            **asked, **plain_settings(self.asked.settings), **to_plain(explaining), "model": network, "formats": self.formats,
            "threshold": self.threshold, "layout": self.layout, "medcam": medcam.__version__,
        }  # fmt: skip
        plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
        return plain


@dataclass(frozen=True)
class Task:
    """One case, as a worker gets it.

    Parameters
    ----------
    id
        See `id_of`.
    series
        The files of the DICOM series that is the image, where they are known.
    spot
        Where its files go.
    question
        Digest of all that is asked of it.
    known
        The key under which it was done before, if its files look changed since: where they hold the same, nothing is done. Else ''.
    """

    id: str
    entry: Entry
    series: tuple[Path, ...] = field(repr=False)
    spot: Spot = field(repr=False)
    question: str
    known: str = ""


@dataclass(frozen=True)
class Answer:
    """What a worker tells of a case that is done: small, for it travels between processes.

    Parameters
    ----------
    key
        Digest of the question and of what the case's files held.
    files
        What was written, by path below the cohort's folder: size, time of change, SHA-256.
    shown
        What the table shows of it while the run goes on.
    same
        Whether nothing had to be done, because it was done before of the same.
    full
        Why nothing more can be written, by no case; '' if all was.
    """

    key: str
    files: Mapping[str, Sequence[Any]] = field(default_factory=dict, repr=False)
    shown: Mapping[str, Any] = field(default_factory=dict, repr=False)
    same: bool = False
    full: str = ""


@dataclass(frozen=True, eq=False)
class _Read:
    task: Task
    key: str
    inputs: Inputs | None


@dataclass(frozen=True, eq=False)
class _Made:
    task: Task
    key: str
    inputs: Inputs
    heatmap: Heatmap
    result: CaseResult
    lesion: Volume | None


def id_of(entry: Entry) -> str:
    """Return what tells a case, and a class asked of it, from all others: the same whatever else the table holds."""
    return hashlib.sha256(f"{entry.case}\0{entry.target}".encode()).hexdigest()[:16]


def question_of(settings: Mapping[str, Any], entry: Entry, spot: Spot) -> str:
    """Return the digest of all that is asked of a case."""
    bare = replace(entry, line=0, patient="", split="", images=(), heatmap=None, mask=None, organ=None, transform=None)
    given = [len(entry.images), *(getattr(entry, name) is not None for name in ("heatmap", "mask", "organ"))]
    said = [settings, to_plain(bare), given, to_plain(spot)]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class WorkSetup:
    """Loads the network once in each worker, and returns what is done there with each case."""

    work: Work

    def __call__(self, place: Place) -> Stages:
        """Return the stages.

        Raises
        ------
        MedcamError
            If the network cannot be loaded.
        """
        work = self.work
        asked = replace(work.asked, explaining={**work.asked.explaining, "device": place.device})
        model = None if work.network is None else _loaded(work.network, place, work)
        return Stages(
            lambda task: _read(task, work, asked),
            lambda read: _made(read, asked, model),
            lambda made: _written(made, work),
        )


def _loaded(network: Network, place: Place, work: Work) -> Model:
    import torch

    from medcam.models import load_model, silent

    torch.set_num_threads(work.threads)
    # Once is enough.
    say = work.tell if place.number == 0 else silent
    return load_model(
        network.path, factory=network.factory, preprocessing=network.preprocessing, trust_code=network.trust_code,
        device=place.device, say=say,
    )  # fmt: skip


def _read(task: Task, work: Work, asked: Asked) -> _Read:
    inputs = read_inputs(task.entry, asked, files=task.series)
    # What was read of the images is known by its digest already.
    held = [volume.source.sha256 for volume in inputs.volumes]
    try:
        held += [digest_of(paths) for paths in files_of(replace(task.entry, images=())).values()]
    except OSError as error:
        raise InputError(f"a file of the case cannot be read: {error.strerror or error}") from error
    key = hashlib.sha256(json.dumps([task.question, held]).encode()).hexdigest()
    if key == task.known:
        return _Read(task, key, None)
    if task.entry.heatmap is None and inputs.volumes:
        # What cannot be written is told before it is computed.
        check_formats(work.formats, inputs.volumes[0], threshold=work.threshold)
    return _Read(task, key, inputs)


def _made(read: _Read, asked: Asked, model: Model | None) -> _Read | _Made:
    if read.inputs is None:
        return read
    entry, inputs = read.task.entry, read.inputs
    heatmap = explained(entry, asked, inputs, model=model)
    if heatmap.score != heatmap.score:
        raise ModelError(
            "the network's score of this image is not a number: see whether the image holds odd values, or the weights do"
        )
    result = measured(entry, asked, inputs, heatmap, model=model)
    lesion = None if inputs.truth is None or entry.mask is None else laid_on(heatmap, inputs.truth.mask)
    return _Made(read.task, read.key, inputs, heatmap, result, lesion)


def _written(made: _Read | _Made, work: Work) -> Answer:
    if isinstance(made, _Read):
        return Answer(made.key, same=True)
    try:
        return _stored(made, work)
    except OutputError as error:
        if any(isinstance(each, OSError) and each.errno in _FOR_ALL for each in _behind(error)):
            return Answer(made.key, full=str(error))
        raise


def _stored(made: _Made, work: Work) -> Answer:
    task, heatmap, result = made.task, made.heatmap, made.result
    files: tuple[Path, ...] = ()
    if task.entry.heatmap is None:
        measures = {} if made.lesion is None else in_brief(heatmap, made.lesion)
        volume = made.inputs.volumes[0]
        told = {name: (measure.value, measure.unit) for name, measure in measures.items()}

        def export(folder: Path, label: str, formats: str) -> tuple[Path, ...]:
            return write(
                heatmap, volume, folder, formats=formats, threshold=work.threshold, label=label, lesion=made.lesion,
                measures=told,
            )  # fmt: skip

        files = laid_out(work.layout, task.spot, work.out, work.formats, export)
        result = replace(result, heatmap=_voxels(files))
    path = work.out / CASES / f"{task.id}.json"
    # Lines change where rows are added; what a case is made of does not.
    store_case(replace(result, entry=replace(task.entry, line=0)), made.key, path)
    try:
        written = {each.relative_to(work.out).as_posix(): record(each) for each in (*files, path)}
    except OSError as error:
        raise OutputError(f"what was written is gone: {error.strerror or error}") from error
    return Answer(made.key, written, _shown(result, heatmap, work.out))


def _voxels(files: Sequence[Path]) -> Path | None:
    """Return the file that a stored heatmap is read from again, where one was written."""
    for ending in (".nii.gz", ".nrrd"):
        for path in files:
            if path.name.endswith(ending) and not path.name.endswith(
                (f"_label{ending}", f"_mask{ending}", f".seg{ending}")
            ):
                return path
    return None


def _shown(result: CaseResult, heatmap: Heatmap, out: Path) -> dict[str, Any]:
    verdict = result.verdict
    return {
        "class": result.target, "truth": result.truth, "decision": result.decision, "probability": to_plain(result.probability),
        "score": to_plain(result.score), "verdict": verdict.words if verdict else "",
        "because": " ".join(verdict.because) if verdict else "", "notes": " ".join(result.notes),
        "peak": heatmap.peak_in_words(),
    }  # fmt: skip


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _files_below(place: Path) -> list[Path]:
    if place.is_dir():
        return sorted(each for each in place.rglob("*") if each.is_file() and "__pycache__" not in each.parts)
    return [place] if place.is_file() else []
