"""The one place where rooms meet: volumes and a model in, a placed and recorded heatmap out."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

import medcam
from medcam.engine import Relevance, relevance, relevances
from medcam.engine.asked import AnyTarget
from medcam.engine.combining import augmented_relevance, fused, fused_relevance
from medcam.engine.methods import method_named
from medcam.engine.windows import Windows, windowed_relevances
from medcam.errors import UsageError
from medcam.geometry import resample
from medcam.models import Model, load_model, wrap_module
from medcam.prepare import Prepared, prepare
from medcam.recipe import Recipe
from medcam.volume import Heatmap, Volume


def explain(
    volume: Volume | Sequence[Volume], model: Model | nn.Module | str, *, layer: str | Sequence[str] | None = None,
    target: AnyTarget = None, method: str = "grad-cam", score: str = "logit", activation: str | None = None,
    output: str | int | None = None, fuse: str | None = None, flips: bool = False, window: int | Sequence[int] | None = None,
    overlap: float | Sequence[float] | None = None, exact: bool = False, seed: int = 0,
    preprocessing: Callable[[Any], Any] | None = None, device: str = "cpu", progress: Callable[[int, int], object] | None = None,
) -> Heatmap:  # fmt: skip
    """Explain a network's score of one case, and place the answer on the grid of its (first) image.

    Parameters
    ----------
    volume
        What `medcam.read` gave: one image, or one for each channel of the network, the first being the reference.
    model
        A network in memory, what `load_model` gave, or a path or name that it takes.
    layer
        The name of a module that gives a feature map, or of several, whose maps are fused; by default the last one before the head.
    target
        A class by index or name, words such as 'lesion-background@largest', or what `medcam.relevance` takes. By default the predicted
        class, which the notes name.
    method
        Such as 'grad-cam' or 'rise(masks=2000)'; `medcam methods` lists them.
    score
        'logit' or 'probability'.
    activation
        'softmax' or 'sigmoid', what makes probabilities of the output; see `medcam.relevance`. By default what the model's files say.
    output
        Which of the network's several outputs is explained; see `medcam.relevance`.
    fuse
        How the maps of several layers become one: 'mean', 'max', 'product', 'coarse-to-fine' or 'layer-cam'.
    flips
        Average over flips of the input along each axis; see `medcam.engine.combining.augmented_relevance`.
    window, overlap
        The voxels of sliding windows along each axis, in which a volume too large for one pass is seen, and the share that they overlap;
        see `medcam.engine.windows`. By default those of the bundle, else none; () for the whole volume at once.
    exact
        With windows: explain the score of the stitched output, instead of each window's own.
    seed
        Of methods that draw random numbers.
    preprocessing
        A chain of MONAI transforms (dictionary or array) to use instead of the model's own.
    progress
        Called now and then with how much of long work is done, and how much there is.

    Raises
    ------
    UsageError
        If the target, layer or method does not exist, or the images do not fit the network.
    GeometryError
        If the preprocessing loses where voxels lie, or the images lie in different frames of reference.
    ModelError
        If the model cannot be loaded or does not accept the prepared image.
    """
    case = _case(volume, model, [method], window, overlap, exact, preprocessing, device)
    activation = case.model.activation if activation is None else activation
    asked = {
        "target": target, "method": method, "score": score, "activation": activation, "output": output,
        "class_names": case.model.class_names, "seed": seed, "progress": progress,
    }  # fmt: skip
    return _told(_answer(case, layer, fuse, flips, exact, asked), case, activation, exact)


@dataclass(frozen=True, eq=False)
class Unplaced:
    """An answer of a network on the cells that it was computed on, which are few; `placed` puts it on the image's grid."""

    found: Relevance
    case: _Case
    activation: str | None
    exact: bool

    def placed(self) -> Heatmap:
        """Return the heatmap on the grid of the first image."""
        return _told(self.found, self.case, self.activation, self.exact)


def explain_all(
    volume: Volume | Sequence[Volume],
    model: Model | nn.Module | str,
    *,
    methods: Sequence[str] = ("grad-cam",),
    layers: Sequence[str | None] = (None,),
    target: AnyTarget = None,
    score: str = "logit",
    activation: str | None = None,
    output: str | int | None = None,
    window: int | Sequence[int] | None = None,
    overlap: float | Sequence[float] | None = None,
    exact: bool = False,
    seed: int = 0,
    preprocessing: Callable[[Any], Any] | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], object] | None = None,
) -> tuple[Heatmap, ...]:
    """Explain a network's score of one case by every method at every layer, in this order, from one preparation and few passes.

    A method that looks at the input alone answers once, not for each layer. Each heatmap is what `explain` gives of its method and layer;
    parameters and errors that are not named here are those of `explain`.

    Parameters
    ----------
    methods, layers
        As `medcam.relevances` takes them; None is the default layer.
    """
    found = answers(
        volume, model, methods=methods, layers=layers, target=target, score=score, activation=activation, output=output,
        window=window, overlap=overlap, exact=exact, seed=seed, preprocessing=preprocessing, device=device, progress=progress,
    )  # fmt: skip
    return tuple(one.placed() for one in found)


def answers(
    volume: Volume | Sequence[Volume],
    model: Model | nn.Module | str,
    *,
    methods: Sequence[str] = ("grad-cam",),
    layers: Sequence[str | None] = (None,),
    target: AnyTarget = None,
    score: str = "logit",
    activation: str | None = None,
    output: str | int | None = None,
    window: int | Sequence[int] | None = None,
    overlap: float | Sequence[float] | None = None,
    exact: bool = False,
    seed: int = 0,
    preprocessing: Callable[[Any], Any] | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], object] | None = None,
) -> tuple[Unplaced, ...]:
    """Return what `explain_all` returns before it is placed, for whoever looks at one heatmap after the other: all at once may be large.

    Parameters
    ----------
    methods, layers
        As `medcam.relevances` takes them; None is the default layer. All others are those of `explain`.
    """
    case = _case(volume, model, methods, window, overlap, exact, preprocessing, device)
    activation = case.model.activation if activation is None else activation
    asked: dict[str, Any] = {
        "score": score, "activation": activation, "output": output, "class_names": case.model.class_names, "seed": seed,
        "progress": progress,
    }  # fmt: skip
    found: Sequence[Relevance]
    if case.model.members:
        found = [
            _answer(case, layer, None, False, exact, {**asked, "target": target, "method": method})
            for method in methods
            for layer in (layers if method_named(method).looks_at_layer else (None,))
        ]
    else:
        asked |= {"methods": methods, "layers": layers, "targets": [target]}
        found = (
            relevances(case.model.network, case.inputs, **asked)
            if case.windows is None
            else windowed_relevances(case.model.network, case.inputs, case.windows, exact=exact, **asked).relevances
        )
    return tuple(Unplaced(one, case, activation, exact) for one in found)


@dataclass(frozen=True, eq=False)
class _Case:
    """A case, ready for the network; `raw` if the network sees the image's values as they are stored."""

    model: Model
    volumes: tuple[Volume, ...]
    ready: Prepared
    inputs: torch.Tensor
    windows: Windows | None
    device: str
    raw: bool


def _case(
    volume: Volume | Sequence[Volume],
    model: Model | nn.Module | str,
    methods: Sequence[str],
    window: int | Sequence[int] | None,
    overlap: float | Sequence[float] | None,
    exact: bool,
    preprocessing: Callable[[Any], Any] | None,
    device: str,
) -> _Case:
    loaded = _loaded(model, device)
    volumes = tuple(volume) if isinstance(volume, (list, tuple)) else (volume,)
    if not volumes or not all(isinstance(each, Volume) for each in volumes):
        raise UsageError("explain takes what medcam.read gives, one volume or one for each channel")
    closed = [name for name in methods if not loaded.layers_open and method_named(name).looks_at_layer]
    if closed:
        raise UsageError(
            f"{closed[0]} needs the activation of a layer, which a TorchScript file does not give; occlusion and rise look at the input "
            "alone and serve it. Or save the network with torch.export (.pt2), or as a state dict with its factory, instead"
        )
    chain = loaded.preprocessing if preprocessing is None else preprocessing
    dims = loaded.spatial_dims or (3 if volumes[0].grid.shape[2] > 1 else 2)
    ready = prepare(volumes, chain, spatial_dims=dims)
    _check_channels(loaded, ready, len(volumes))
    # In the network's own precision, be it half or double.
    dtype = next((p.dtype for p in loaded.network.parameters() if p.is_floating_point()), torch.float32)
    inputs = ready.tensor.unsqueeze(0).to(dtype)
    windows = _windows(loaded, window, overlap, exact)
    return _Case(loaded, volumes, ready, inputs if windows else inputs.to(device), windows, device, chain is None)


def _told(found: Relevance, case: _Case, activation: str | None, exact: bool) -> Heatmap:
    """Return an answer in its place, with all that its reader must know."""
    names = case.model.class_names
    notes = [*case.volumes[0].source.notes, *case.model.notes, *case.ready.notes]
    if case.raw:
        notes.append("No preprocessing was given, so the network saw the image's values as they are stored.")
    notes.extend(_with_names(found.notes[0], found.classes, names))
    sentences = tuple(dict.fromkeys(map(_sentence, notes)))
    heatmap = _place(found, case.ready, case.volumes, case.model, activation, sentences)
    if case.windows is None:
        return heatmap
    # Maps of windows are put together on the CPU, wherever the network runs.
    settings = {**case.windows.settings(), "exact": exact}
    return replace(heatmap, recipe=replace(heatmap.recipe, windows=settings, device=torch.device(case.device).type))


def _answer(
    case: _Case,
    layer: str | Sequence[str] | None,
    fuse: str | None,
    flips: bool,
    exact: bool,
    asked: dict[str, Any],
) -> Relevance:
    if case.model.members and layer is None and not flips and method_named(asked["method"]).looks_at_layer:
        return _of_members(case, exact, asked)
    return _ask(case.model.network, case.inputs, layer, fuse, flips, case.windows, exact, asked)


def _ask(
    network: nn.Module,
    inputs: torch.Tensor,
    layer: str | Sequence[str] | None,
    fuse: str | None,
    flips: bool,
    windows: Windows | None,
    exact: bool,
    asked: dict[str, Any],
) -> Relevance:
    layers = [layer] if layer is None or isinstance(layer, str) else list(layer)
    if fuse is None and len(layers) > 1:
        raise UsageError(
            f"{len(layers)} layers were named; say how their maps are to be fused (mean, max, product, coarse-to-fine)"
        )
    if fuse is not None and flips:
        raise UsageError("maps of several layers are fused, or maps of flips averaged, not both at once")
    if windows is not None and flips:
        raise UsageError(
            "maps of flips are averaged of whole volumes only; leave flips out, or say window () for the whole volume at once"
        )
    if windows is not None:
        rest = {name: value for name, value in asked.items() if name not in ("target", "method")}
        found = windowed_relevances(
            network,
            inputs,
            windows,
            layers=layers,
            targets=[asked["target"]],
            methods=[asked["method"]],
            exact=exact,
            **rest,
        ).relevances
        return found[0] if fuse is None else fused(found, [name for name in layers if name], fuse)
    if fuse is not None:
        return fused_relevance(network, inputs, layers=[name for name in layers if name], how=fuse, **asked)
    if flips:
        return augmented_relevance(network, inputs, layer=layers[0], **asked)
    return relevance(network, inputs, layer=layers[0], **asked)


def _of_members(case: _Case, exact: bool, asked: dict[str, Any]) -> Relevance:
    """Return what the members of an ensemble add to the score of their mean: the sum of their maps at the first one's default layer.

    For rules that sum over channels this is the map of one layer that holds the channels of all.
    """
    network, members = case.model.network, case.model.members
    first = network.get_submodule(members[0])
    layer = _ask(first, case.inputs, None, None, False, case.windows, exact, asked).layer
    rest = {name: value for name, value in asked.items() if name not in ("target", "method")}
    rest |= {
        "targets": [asked["target"]],
        "methods": [asked["method"]],
        "layers": [f"{name}.{layer}" for name in members],
    }
    found: Sequence[Relevance] = (
        relevances(network, case.inputs, **rest)
        if case.windows is None
        else windowed_relevances(network, case.inputs, case.windows, exact=exact, **rest).relevances
    )
    notes = tuple(dict.fromkeys(note for one in found for note in one.notes[0]))
    summed = torch.stack([one.values for one in found]).sum(0)
    return replace(found[0], values=summed, layer=" + ".join(one.layer for one in found), fusion="sum", notes=(notes,))


def _windows(
    model: Model, window: int | Sequence[int] | None, overlap: float | Sequence[float] | None, exact: bool
) -> Windows | None:
    """Return how the volume is cut, or None if the network sees it at once."""
    known: dict[str, Any] = {} if model.windows is None else dict(model.windows)
    if window is not None:
        whole = not isinstance(window, int) and len(window) == 0
        known = {} if whole else {**known, "roi_size": window}
    if overlap is not None:
        known["overlap"] = overlap
    if "roi_size" in known:
        return Windows(**known)
    if known or exact:
        raise UsageError("overlap and exact mean something for sliding windows only; say how large these are")
    return None


def _loaded(model: Model | nn.Module | str, device: str) -> Model:
    if isinstance(model, Model):
        return model
    return wrap_module(model) if isinstance(model, nn.Module) else load_model(model, device=device)


def _check_channels(model: Model, ready: Prepared, given: int) -> None:
    channels = ready.tensor.shape[0]
    if model.input_channels is not None and channels != model.input_channels:
        raise UsageError(
            f"the network takes {model.input_channels} channels and the prepared image has {channels} (from {given} "
            f"image{'s' if given > 1 else ''}); give one image for each channel, in the order the network was trained with"
        )


def _class_label(index: int, names: Sequence[str]) -> str:
    return f"{names[index]} (class {index})" if index < len(names) else f"class {index}"


def _sentence(note: str) -> str:
    """Return a note as a sentence, whichever room wrote it."""
    return note[:1].upper() + note[1:] + ("" if note.endswith(".") else ".")


def _with_names(notes: Sequence[str], classes: Sequence[int], names: Sequence[str]) -> list[str]:
    """Replace bare class numbers in the engine's notes, which knows no names."""
    if not classes or classes[0] >= len(names):
        return list(notes)
    c = classes[0]
    return [
        note.replace(f" class, {c},", f" class, {_class_label(c, names)},")
        .replace(f"predicts class {c} ", f"predicts {_class_label(c, names)} ")
        .replace(f"; class {c} is", f"; {_class_label(c, names)} is")
        for note in notes
    ]


def _place(
    found: Relevance,
    ready: Prepared,
    volumes: Sequence[Volume],
    model: Model,
    activation: str | None,
    notes: tuple[str, ...],
) -> Heatmap:
    """Put the map on the source's grid by one interpolation, from feature cells to voxels."""
    values = found.values[0].cpu().numpy()
    # A map in two dimensions lies on one slice.
    (i, j, k), (di, dj, dk), (oi, oj, ok) = (
        (*along, *(default,) * (3 - values.ndim))
        for along, default in ((values.shape, 1), (found.stride, 1.0), (found.offset, 0.0))
    )
    cells = ready.grid.coarsened((int(i), int(j), int(k)), (di, dj, dk), (oi, oj, ok))
    grid = volumes[0].grid
    placed = resample(values.reshape(cells.shape), cells, grid, within=ready.grid)
    target = found.target
    recipe = Recipe(
        model=model.name,
        model_sha256=model.sha256,
        method=found.method,
        layer=found.layer,
        target=target,
        score=found.score,
        activation=activation,
        fusion=found.fusion,
        seed=found.seed,
        preprocessing=ready.steps,
        inputs=tuple(v.source.sha256 for v in volumes),
        input_shape=found.input_shape,
        feature_shape=tuple(values.shape),
        stride=found.stride,
        offset=found.offset,
        device=found.values.device.type,
        dtype=str(found.values.dtype).removeprefix("torch."),
        versions=versions(),
    )
    probability = None if found.probabilities is None else float(found.probabilities[0])
    return Heatmap(placed, grid, volumes[0].source, recipe, target, float(found.scores[0]), probability, notes)


def versions() -> dict[str, str]:
    """Return the versions of medcam and of what its numbers depend on."""
    found = {"medcam": medcam.__version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    return found | {name: _version(name) for name in ("monai", "numpy", "scipy")}


@cache
def _version(name: str) -> str:
    """Return the version of an installed package; looked up once, for it takes longer than to place a heatmap."""
    try:
        return version(name)
    except PackageNotFoundError:  # found on the path without its metadata
        return "unknown"
