"""MONAI bundles: a folder, or a zip of it, that holds a network, its weights, its preprocessing and its metadata.

Only the configuration's network and preprocessing are built; its dataset, its evaluator and whatever they would run are not touched.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
import stat
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from monai.bundle import ConfigParser
from torch import nn

from medcam.errors import ModelError
from medcam.models.checkpoints import is_torchscript, load_torchscript, load_weights, read_state
from medcam.models.configs import SUFFIXES, build, compose, find, read_config
from medcam.models.user_code import first_line, importable

_CONFIGS = ("inference", "infer", "evaluate", "test", "train")
_NETWORKS = ("network_def", "network", "net", "model")
_PREPROCESSINGS = ("preprocessing", "inference::preprocessing", "pre_transforms", "validate::preprocessing")
_INFERERS = ("inferer", "inference::inferer", "validate::inferer", "train::inferer")
_SLIDING = ("SlidingWindowInferer", "SlidingWindowInfererAdapt")
# MONAI's own, for what a configuration leaves out; roi_size has none.
_SLIDING_DEFAULTS: dict[str, Any] = {
    "roi_size": None, "sw_batch_size": 1, "overlap": 0.25, "mode": "constant", "sigma_scale": 0.125, "padding_mode": "constant",
    "cval": 0.0,
}  # fmt: skip
_WEIGHTS = ("model.pt", "model.pth", "model.safetensors", "model_best.pt", "best_metric_model.pt", "best_model.pt")
_MOST_BYTES = 16 * 2**30
_MOST_FILES = 20_000
# Deflate can shrink a run of zeros by 1030; weights hardly shrink at all.
_MOST_RATIO = 200
_SMALL = 2**20


@dataclass(frozen=True, eq=False)
class Bundle:
    """What a bundle's files say, in the words of `medcam.models.Model`; `scripted` where the weights are TorchScript."""

    network: nn.Module
    scripted: bool
    sha256: str
    class_names: tuple[str, ...]
    preprocessing: Callable[..., Any] | None
    input_channels: int | None
    spatial_dims: int | None
    spatial_shape: tuple[int, ...] | None
    windows: Mapping[str, Any] | None
    notes: tuple[str, ...]


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield the bundle folder inside a zip, unpacked into a private temporary folder that is removed afterwards.

    Raises
    ------
    ModelError
        If the zip is damaged, too large, would write outside the folder, or holds no bundle.
    """
    folder = Path(tempfile.mkdtemp(prefix="medcam-bundle-"))
    try:
        try:
            with zipfile.ZipFile(path) as archive:
                _refuse_unsafe(archive.infolist(), path.name)
                archive.extractall(folder)
        except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
            raise ModelError(f"{path.name} cannot be unpacked: {first_line(error)}") from error
        homes = sorted((p.parent for p in folder.rglob("configs") if p.is_dir()), key=lambda p: (len(p.parts), p))
        if not homes:
            raise ModelError(f"{path.name} is a zip without a folder 'configs', so not a MONAI bundle")
        yield homes[0]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_unsafe(members: Sequence[zipfile.ZipInfo], name: str) -> None:
    if len(members) > _MOST_FILES or sum(m.file_size for m in members) > _MOST_BYTES:
        raise ModelError(
            f"{name} would unpack to more than {_MOST_FILES} files or {_MOST_BYTES // 2**30} GiB; unpack it yourself"
        )
    for member in members:
        parts = PurePosixPath(member.filename.replace("\\", "/")).parts
        outside = bool(PureWindowsPath(member.filename).anchor) or ".." in parts
        if outside or stat.S_ISLNK(member.external_attr >> 16):
            raise ModelError(
                f"{name} is not safe to unpack: {member.filename[:80]!r} would be written outside its folder"
            )
        if member.file_size > max(_SMALL, _MOST_RATIO * member.compress_size):
            raise ModelError(
                f"{name} is not safe to unpack: {member.filename[:80]!r} is compressed more than data of a model are"
            )


def load_bundle(folder: Path, *, trust_code: bool, device: str, say: Callable[[str], None]) -> Bundle:
    """Return the network, the preprocessing and the metadata of a bundle; the network is on the CPU, in evaluation mode.

    Parameters
    ----------
    device
        What `@device` in the configuration means.

    Raises
    ------
    ModelError
        If a file is missing or damaged, a package is missing, the weights do not fit, or code would run and `trust_code` is False.
    """
    folder = folder.resolve()
    configs, weights = _config_files(folder), _weights(folder)
    metadata_file = next((configs[n] for n in configs if n.rsplit(".", 1)[0] == "metadata"), None)
    metadata = read_config(metadata_file) if metadata_file else {}
    used, config, network_id = _network_config(configs)
    config |= {"_meta_": metadata, "bundle_root": str(folder), "device": device}
    preprocessing_id = find(config, _PREPROCESSINGS)
    scripted = is_torchscript(weights)
    ids = [place for place in (None if scripted else network_id, preprocessing_id) if place]
    with _code_of(folder, trust_code):
        made, notes = build(config, ids, f"the bundle's {used.name}", trust_code=trust_code, say=say)
        network, said = _with_weights(None if scripted else made[0], weights, trust_code, say)
    notes += said
    preprocessing = None
    if preprocessing_id:
        preprocessing, said = compose(made[-1], used.name)
        notes += said
    else:
        notes += (f"{used.name} names no preprocessing",)
    windows, said = _windows(config, used.name, trust_code, say)
    notes += said
    inputs = _format(metadata, "inputs", "image")
    shape = _shape(inputs.get("spatial_shape"))
    definition = config.get(network_id)
    dims = definition.get("spatial_dims") if isinstance(definition, dict) else None
    return Bundle(
        network=network.eval(),
        scripted=scripted,
        sha256=_digest(folder, [weights, used, *([metadata_file] if metadata_file else [])]),
        class_names=_class_names(_format(metadata, "outputs", "pred")),
        preprocessing=preprocessing,
        input_channels=_count(inputs.get("num_channels")),
        spatial_dims=_count(dims) or (len(shape) if shape else None),
        spatial_shape=shape,
        windows=windows,
        notes=tuple(notes),
    )


def _windows(
    config: Mapping[str, Any], name: str, trust_code: bool, say: Callable[[str], None]
) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Return how the bundle's own inferer cuts volumes, if it is one of sliding windows; nothing of it is built."""
    place = find(config, _INFERERS)
    inferer = None if place is None else ConfigParser(copy.deepcopy(dict(config)))[place]
    target = inferer.get("_target_") if isinstance(inferer, dict) else None
    if not isinstance(inferer, dict) or "roi_size" not in inferer or str(target).rsplit(".", 1)[-1] not in _SLIDING:
        return None, ()
    given = [setting for setting in _SLIDING_DEFAULTS if setting in inferer]
    try:
        made, _ = build(config, [f"{place}::{setting}" for setting in given], name, trust_code=trust_code, say=say)
    except ModelError as error:
        return None, (f"The bundle's sliding windows are not used: {error}",)
    return _SLIDING_DEFAULTS | dict(zip(given, made, strict=True)), ()


def _config_files(folder: Path) -> dict[str, Path]:
    home = folder / "configs"
    found = {p.name: p for p in sorted(home.iterdir()) if p.suffix.lower() in SUFFIXES} if home.is_dir() else {}
    if not found:
        raise ModelError(f"the folder {folder.name} holds no configs/*.json or *.yaml, so it is not a MONAI bundle")
    return found


def _network_config(configs: Mapping[str, Path]) -> tuple[Path, dict[str, Any], str]:
    """Return the configuration that defines the network: that for inference where there is one."""
    rank = {name: place for place, name in enumerate(_CONFIGS)}
    ordered = sorted(configs.values(), key=lambda p: (rank.get(p.stem, len(rank)), p.name))
    for path in (p for p in ordered if p.stem not in ("metadata", "logging")):
        config = read_config(path)
        network_id = find(config, _NETWORKS)
        if network_id is not None:
            return path, config, network_id
    raise ModelError(
        f"no configuration of the bundle defines a network: none of {', '.join(_NETWORKS)} stands in {', '.join(configs)}; "
        "expected configs/inference.json or .yaml with 'network_def'"
    )


def _weights(folder: Path) -> Path:
    home = folder / "models"
    for name in _WEIGHTS:
        if (home / name).is_file():
            return home / name
    for suffixes in ((".pt", ".pth", ".ckpt", ".safetensors"), (".ts",)):
        others = sorted(p for p in home.glob("*") if p.suffix.lower() in suffixes)
        if len(others) == 1:
            return others[0]
        if others:
            raise ModelError(
                f"the bundle holds several weights: {', '.join(p.name for p in others[:6])}; rename the one to use to model.pt"
            )
    raise ModelError(
        f"the bundle {folder.name} holds no weights: expected models/model.pt. Bundles of the MONAI Model Zoo keep them apart: fetch them "
        f"with python -m monai.bundle download {folder.name}"
    )


def _with_weights(
    network: Any, weights: Path, trust_code: bool, say: Callable[[str], None]
) -> tuple[nn.Module, tuple[str, ...]]:
    if network is None:
        return load_torchscript(weights, trust_code=trust_code, say=say), ()
    if not isinstance(network, nn.Module):
        raise ModelError(f"the bundle's network is a {type(network).__name__}; expected a torch.nn.Module")
    state = read_state(weights, trust_code=trust_code, say=say)
    if isinstance(state, nn.Module):
        return state, (f"{weights.name} holds a whole network, which stands for the one in the configuration",)
    return network, load_weights(network, state, f"the bundle's {weights.name}")


@contextmanager
def _code_of(folder: Path, trust_code: bool) -> Iterator[None]:
    """Let a trusted bundle import its own scripts, and forget them afterwards: the next bundle's folder may have the same names."""
    if not trust_code:
        yield
        return
    before = set(sys.modules)
    try:
        with importable(str(folder)):
            yield
    finally:
        for name in set(sys.modules) - before:
            module = sys.modules[name]
            places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
            if any(str(place).startswith(str(folder)) for place in places):
                del sys.modules[name]


def _format(metadata: Mapping[str, Any], side: str, usual: str) -> dict[str, Any]:
    formats = metadata.get("network_data_format")
    held = formats.get(side) if isinstance(formats, dict) else None
    found = (held.get(usual) or next(iter(held.values()), None)) if isinstance(held, dict) else None
    return found if isinstance(found, dict) else {}


def _class_names(output: Mapping[str, Any]) -> tuple[str, ...]:
    names = output.get("channel_def")
    if not isinstance(names, dict) or sorted(map(str, names)) != sorted(map(str, range(len(names)))):
        return ()
    by_channel = {str(channel): str(name) for channel, name in names.items()}
    return tuple(by_channel[str(channel)] for channel in range(len(by_channel)))


def _shape(value: Any) -> tuple[int, ...] | None:
    sides = tuple(_count(side) for side in value) if isinstance(value, list) else ()
    return tuple(side for side in sides if side) if sides and all(sides) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _digest(folder: Path, files: Sequence[Path]) -> str:
    whole = hashlib.sha256()
    for path in sorted(files, key=lambda p: p.relative_to(folder).as_posix()):
        whole.update(
            f"{path.relative_to(folder).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
        )
    return whole.hexdigest()
