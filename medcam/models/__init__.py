"""From a path or a name to a network with its input contract.

    folder or zip with configs/          MONAI bundle
    folder with plans.json, fold_0/      nnU-Net v2 model folder, or one of its folds
    .pt2                                 exported program (torch.export)
    .pt .pth .ckpt .safetensors          weights; the network comes from a factory that the user names
    TorchScript                          a program whose layers stay closed
    'demo-mri', 'demo-cxr'               the demonstration bundles that medcam ships

Nothing in a file runs without the user's explicit word (`trust_code`), and loading leaves no trace in the process: neither in random
numbers, default type and gradient mode, nor in import paths and warning filters.
"""

from __future__ import annotations

import hashlib
import random
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medcam.errors import ModelError
from medcam.models.checkpoints import (
    is_torchscript,
    load_torchscript,
    load_weights,
    missing_factory,
    read_state,
    refuse_text,
)
from medcam.models.nnunet import is_nnunet
from medcam.models.user_code import call_factory, first_line, nearest, neighbours
from medcam.samples import sample_path

DEMOS = {"demo-mri": "demo_mri", "demo-cxr": "demo_cxr"}
_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".pkl", ".tar")
_CLOSED_LAYERS = (
    "TorchScript keeps its layers closed: gradients at the input and perturbation methods work, the CAM methods do not. "
    "For these, export the network with torch.export (.pt2), or give its weights with a factory"
)


@dataclass(frozen=True, eq=False)
class Model:
    """A network and what it expects of its input.

    Parameters
    ----------
    network
        On the device that was asked for; in evaluation mode if medcam built it from a file, else in the mode it came in.
    name
        Of the file, folder or class, without the path to it.
    sha256
        Digest of the file, or of the weights and configurations of a bundle; '' for a module given in memory.
    kind
        'bundle', 'nnunet', 'exported program', 'checkpoint', 'torchscript' or 'module'.
    class_names
        One for each output channel, or () where they are not known.
    preprocessing
        A MONAI Compose of dictionary transforms, or another transform, for an image that is already read, its first axis the channel; or
        None.
    input_channels
        Of the metadata, else of the network's first convolution.
    spatial_dims
        2 or 3: of the network's first convolution, else of the metadata.
    spatial_shape
        The size of input that the metadata name, or None where it may vary.
    windows
        How a bundle cuts volumes to predict them, in the words of `medcam.engine.windows.Windows`, or None if it names no such inferer.
    activation
        'softmax' or 'sigmoid' where the files say what makes probabilities of the output, else None.
    members
        The names of the networks that an ensemble, whose mean `network` is, is made of; all of one architecture. () for one network.
    layers_open
        Whether activations of layers can be captured.
    notes
        What was changed or assumed while loading, in sentences for the user.
    """

    network: nn.Module = field(repr=False)
    name: str
    sha256: str
    kind: str
    class_names: tuple[str, ...] = ()
    preprocessing: Callable[..., Any] | None = field(default=None, repr=False)
    input_channels: int | None = None
    spatial_dims: int | None = None
    spatial_shape: tuple[int, ...] | None = None
    windows: Mapping[str, Any] | None = None
    activation: str | None = None
    members: tuple[str, ...] = ()
    layers_open: bool = True
    notes: tuple[str, ...] = ()


def silent(line: str) -> None:
    """Say nothing."""


def load_model(
    path: str | Path,
    *,
    factory: str | None = None,
    preprocessing: str | Path | None = None,
    trust_code: bool = False,
    device: str = "cpu",
    say: Callable[[str], None] = silent,
) -> Model:
    """Return the network that a file, a folder or the name of a demonstration stands for.

    Parameters
    ----------
    factory
        What builds the network that weights belong to: 'package.module:function', 'file.py:function', or either with literal arguments,
        'monai.networks.nets:DenseNet121(spatial_dims=3, in_channels=1, out_channels=2)'.
    preprocessing
        A JSON or YAML file with a list of MONAI transforms, or a factory that returns a callable. Takes the place of a bundle's own.
    trust_code
        The user's word that code in the file may run.
    say
        Receives a line for each piece of code in the file, before it runs.

    Raises
    ------
    ModelError
        If the file is missing, damaged or of an unknown kind, lacks its network or weights, or would run code that is not trusted.
    InputError
        If a demonstration is asked for that this installation does not hold.
    """
    asked = _device(device)
    path = str(path).removeprefix("nnunet:")
    place = Path(path)
    if str(path) in DEMOS and not place.exists():
        place = sample_path("models", DEMOS[str(path)])
    elif not place.exists():
        raise ModelError(f"there is no file or folder {path}{nearest(place.name, [*neighbours(place), *DEMOS])}")
    with _undisturbed():
        model = _load(place, factory, trust_code, device, say)
        if preprocessing is not None:
            transforms, notes = _preprocessing(preprocessing, trust_code, say)
            model = replace(model, preprocessing=transforms, notes=model.notes + notes)
        try:
            model.network.to(asked)
        except Exception as error:
            raise ModelError(f"the network cannot be moved to {device}: {first_line(error)}") from error
    return replace(model, name=str(path)) if str(path) in DEMOS else model


def wrap_module(
    network: nn.Module,
    *,
    name: str | None = None,
    class_names: Sequence[str] = (),
    preprocessing: Callable[..., Any] | None = None,
) -> Model:
    """Return a module of the user's own as a Model, untouched: its device and its mode stay as they are."""
    scripted = isinstance(network, torch.jit.ScriptModule)
    channels, dims = _first_convolution(network)
    return Model(
        network=network,
        name=name or type(network).__name__,
        sha256="",
        kind="torchscript" if scripted else "module",
        class_names=tuple(class_names),
        preprocessing=preprocessing,
        input_channels=channels,
        spatial_dims=dims,
        layers_open=not scripted,
        notes=(_CLOSED_LAYERS,) if scripted else (),
    )


def _load(path: Path, factory: str | None, trust_code: bool, device: str, say: Callable[[str], None]) -> Model:
    kind = _kind(path)
    if factory is not None and kind != "checkpoint":
        raise ModelError(f"{path.name} is a {kind}, which holds its own network: leave the factory {factory} out")
    if kind == "bundle":
        return _bundle(path, trust_code, device, say)
    if kind == "nnunet":
        return _nnunet(path, trust_code, say)
    if kind == "exported program":
        return _exported(path, trust_code, device, say)
    if kind == "torchscript":
        network: nn.Module = load_torchscript(path, trust_code=trust_code, say=say).eval()
        return _from_file(network, path, kind, ())
    return _checkpoint(path, factory, trust_code, say)


def _kind(path: Path) -> str:
    if path.is_dir():
        return "nnunet" if is_nnunet(path) else "bundle"
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    if not zipped:
        if suffix == ".onnx":
            raise ModelError(f"{path.name} is ONNX, which has no gradients: give the torch network it was made from")
        if suffix not in (*_CHECKPOINTS, ".pt2", ".ts", ".zip"):
            raise ModelError(
                f"{path.name} is not a model that medcam knows: expected a MONAI bundle (folder or .zip), a torch.export file (.pt2), "
                "TorchScript (.ts), or weights (.pt, .pth, .ckpt, .safetensors)"
            )
        refuse_text(path)
        if suffix in (".pt2", ".ts", ".zip"):
            raise ModelError(f"{path.name} is damaged: a {suffix} file is a zip archive, and this is not one")
        return "checkpoint"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise ModelError(f"{path.name} is damaged or was not downloaded to its end: {first_line(error)}") from error
    if any("configs" in name.split("/")[:-1] for name in names):
        return "bundle"
    if any(name.endswith("/archive_format") for name in names) or suffix == ".pt2":
        return "exported program"
    if is_torchscript(path):
        return "torchscript"
    if any(name.split("/")[-1] == "data.pkl" for name in names):
        return "checkpoint"
    raise ModelError(
        f"{path.name} is a zip archive but neither a MONAI bundle (it has no folder 'configs') nor a file of torch"
    )


def _bundle(path: Path, trust_code: bool, device: str, say: Callable[[str], None]) -> Model:
    from medcam.models.bundles import load_bundle, unpacked

    if path.is_dir():
        bundle = load_bundle(path, trust_code=trust_code, device=device, say=say)
    else:
        with unpacked(path) as folder:
            bundle = load_bundle(folder, trust_code=trust_code, device=device, say=say)
    channels, dims = _first_convolution(bundle.network)
    return Model(
        network=bundle.network,
        name=path.resolve().stem if path.is_file() else path.resolve().name,
        sha256=bundle.sha256,
        kind="torchscript" if bundle.scripted else "bundle",
        class_names=bundle.class_names,
        preprocessing=bundle.preprocessing,
        input_channels=bundle.input_channels or channels,
        spatial_dims=dims or bundle.spatial_dims,
        spatial_shape=bundle.spatial_shape,
        windows=bundle.windows,
        layers_open=not bundle.scripted,
        notes=(*bundle.notes, _CLOSED_LAYERS) if bundle.scripted else bundle.notes,
    )


def _nnunet(path: Path, trust_code: bool, say: Callable[[str], None]) -> Model:
    from medcam.models.nnunet import load_nnunet

    found = load_nnunet(path, trust_code=trust_code, say=say)
    return Model(
        network=found.network,
        name=found.name,
        sha256=found.sha256,
        kind="nnunet",
        class_names=found.class_names,
        preprocessing=found.preprocessing,
        input_channels=found.input_channels,
        spatial_dims=len(found.spatial_shape),
        spatial_shape=found.spatial_shape,
        windows=found.windows,
        activation=found.activation,
        members=found.members,
        notes=found.notes,
    )


def _exported(path: Path, trust_code: bool, device: str, say: Callable[[str], None]) -> Model:
    from medcam.models.exported import load_exported

    network, shape, notes = load_exported(path.read_bytes(), path.name, trust_code=trust_code, device=device, say=say)
    model = _from_file(network, path, "exported program", notes)
    if shape is None or len(shape) < 3:
        return model
    sides = tuple(side for side in shape[2:] if side is not None)
    fixed = sides if len(sides) == len(shape) - 2 else None
    return replace(model, input_channels=shape[1], spatial_dims=len(shape) - 2, spatial_shape=fixed)


def _checkpoint(path: Path, factory: str | None, trust_code: bool, say: Callable[[str], None]) -> Model:
    state = read_state(path, trust_code=trust_code, say=say)
    if factory is None:
        if not isinstance(state, nn.Module):
            raise missing_factory(path)
        return _from_file(state.eval(), path, "checkpoint", ())
    network = call_factory(factory)
    if not isinstance(network, nn.Module):
        raise ModelError(f"the factory {factory} returned a {type(network).__name__}; expected a torch.nn.Module")
    weights = state.state_dict() if isinstance(state, nn.Module) else state
    adapted = load_weights(network, weights, path.name)
    return _from_file(network.eval(), path, "checkpoint", (f"The network was built by {factory}.", *adapted))


def _from_file(network: nn.Module, path: Path, kind: str, notes: tuple[str, ...]) -> Model:
    channels, dims = _first_convolution(network)
    scripted = kind == "torchscript"
    return Model(
        network=network,
        name=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        kind=kind,
        input_channels=channels,
        spatial_dims=dims,
        layers_open=not scripted,
        notes=(*notes, _CLOSED_LAYERS) if scripted else notes,
    )


def _preprocessing(
    asked: str | Path, trust_code: bool, say: Callable[[str], None]
) -> tuple[Callable[..., Any], tuple[str, ...]]:
    from medcam.models.configs import SUFFIXES, build, compose, find, read_config

    path = Path(asked)
    if path.suffix.lower() not in SUFFIXES:
        if ":" not in str(asked):
            raise ModelError(f"the preprocessing {asked} is neither a .json or .yaml file nor 'module:function'")
        transforms = call_factory(str(asked))
        if not callable(transforms):
            raise ModelError(
                f"{asked} returned a {type(transforms).__name__}; expected a callable, such as a MONAI Compose"
            )
        return transforms, ()
    if not path.is_file():
        raise ModelError(f"there is no file {path}{nearest(path.name, neighbours(path))}")
    config = read_config(path)
    if "_target_" in config:
        config = {"preprocessing": config}
    place = find(config, ("preprocessing", "transforms"))
    if place is None:
        raise ModelError(
            f"{path.name} holds no preprocessing: expected a list of transforms, or an object with 'preprocessing'"
        )
    made, notes = build(config, [place], path.name, trust_code=trust_code, say=say)
    transforms, said = compose(made[0], path.name)
    return transforms, notes + said


def _first_convolution(network: nn.Module) -> tuple[int | None, int | None]:
    """Return the input channels and the spatial dimensions of the convolution that was registered first."""
    for module in network.modules():
        kind = str(getattr(module, "original_name", type(module).__name__))
        weight = getattr(module, "weight", None)
        known = isinstance(module, (nn.Conv2d, nn.Conv3d)) or kind in ("Conv2d", "Conv3d")
        if known and isinstance(weight, torch.Tensor) and weight.ndim in (4, 5):
            groups = getattr(module, "groups", 1)
            return int(getattr(module, "in_channels", 0) or weight.shape[1] * groups), weight.ndim - 2
    return None, None


def _device(device: str) -> torch.device:
    try:
        asked = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"'{device}' is not a device: expected 'cpu', 'cuda' or 'cuda:0'") from error
    if asked.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"'{device}' was asked for, but torch sees no CUDA device here: use 'cpu', or install torch with CUDA"
        )
    return asked


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Give back the process as it was: building a network draws random numbers, and a factory may set anything."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - the global state is what is kept
    dtype = torch.get_default_dtype()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        # Parameters made in inference mode could never have a gradient again.
        with (
            warnings.catch_warnings(),
            torch.random.fork_rng(devices),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        torch.set_default_dtype(dtype)
