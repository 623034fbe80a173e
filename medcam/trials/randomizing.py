"""Do the maps depend on what the network has learned? Its weights are drawn anew, layer by layer, and the maps compared.

A map that stays the same when the weights behind it are random shows the image, not the network.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medcam.engine.skeleton import is_copy, run, skeleton
from medcam.errors import ModelError, UsageError
from medcam.trials.scoring import Explain
from medcam.validate.similarity import Similarity, degenerate, similarity

ORDERS = ("bottom-up", "top-down", "independent")


@dataclass(frozen=True)
class Stage:
    """Layers that are randomized together: one with weights, or several, and the norms that follow them.

    Parameters
    ----------
    name
        Of the first of them.
    modules
        The names of all.
    """

    name: str
    modules: tuple[str, ...]


def stages(model: nn.Module, inputs: Float[Tensor, "b c *s"], *, most: int = 10) -> tuple[Stage, ...]:
    """Return what a network is randomized in, in the order in which it runs.

    Parameters
    ----------
    most
        How many stages; of a deeper network neighbouring layers share one.

    Raises
    ------
    UsageError
        If `most` is not positive.
    ModelError
        If the network has no weights, or hides them as a TorchScript file does, or does not accept the input.
    """
    if most < 1:
        raise UsageError(f"a network is randomized in at least one stage, not {most}")
    network = own_copy(model)
    first = _order(network, inputs)
    names = {id(module): name for name, module in reversed(list(network.named_modules()))}
    found = [(first[id(module)], names[id(module)], module) for module in network.modules() if _own(module)]
    groups: list[list[str]] = []
    for _, name, module in sorted(found, key=lambda row: row[0]):
        if groups and _is_norm(module):
            groups[-1].append(name)
        else:
            groups.append([name])
    if not groups:
        raise ModelError(
            "the network has no weights that could be drawn anew, as a TorchScript file hides them; give it as a module"
        )
    parts = [part for part in np.array_split(np.arange(len(groups)), min(most, len(groups))) if part.size]
    together = [tuple(name for index in part for name in groups[index]) for part in parts]
    return tuple(Stage(members[0], members) for members in together)


def randomized(
    model: nn.Module, given: Sequence[Stage], *, order: str, seed: int = 0
) -> Iterator[tuple[Stage, nn.Module]]:
    """Yield the network with one stage after the other drawn anew; the user's own is left as it is.

    Layers are initialised as when they were made. Norms forget what they have learned, their running statistics too. A layer without a way
    to initialise itself gets normal numbers with its weights' own mean and spread. A network that was yielded changes when the next is.

    Parameters
    ----------
    order
        'bottom-up', from the input on, and 'top-down', from the output on, add up; 'independent' leaves all other stages as learned.

    Raises
    ------
    UsageError
        If the order is none of these.
    ModelError
        If the network cannot be copied.
    """
    if order not in ORDERS:
        raise UsageError(f"weights are randomized {', '.join(ORDERS)}, not {order!r}")
    network = own_copy(model)
    modules = dict(network.named_modules())
    for stage in reversed(given) if order == "top-down" else given:
        chosen = [modules[name] for name in stage.modules]
        learned = [{name: value.clone() for name, value in _state(module).items()} for module in chosen]
        for name, module in zip(stage.modules, chosen, strict=True):
            # A seed for each layer: the same numbers in every order.
            _draw(module, seed + zlib.crc32(name.encode()))
        yield stage, network
        if order == "independent":
            for module, state in zip(chosen, learned, strict=True):
                for name, value in _state(module).items():
                    value.data.copy_(state[name])


def with_random_weights(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Return a copy of a network with all weights drawn anew, as at the last step of a cascade: the baseline that knows nothing.

    Raises
    ------
    ModelError
        If the network cannot be copied.
    """
    network = own_copy(model)
    for name, module in network.named_modules():
        if _own(module):
            _draw(module, seed + zlib.crc32(name.encode()))
    return network


@dataclass(frozen=True, eq=False)
class Randomization:
    """Maps of randomized networks beside those of the learned one; the learned one itself is not among them.

    Parameters
    ----------
    order
        'bottom-up', 'top-down' or 'independent'.
    stages
        What was randomized at each step (and, but for 'independent', at all before it).
    similarities
        To the learned network's map, by measure (see `medcam.validate.similarity`); NaN where one of the two is degenerate.
    degenerate
        Where the randomized map has no number, or one number everywhere. It is evidence of nothing.
    learned_degenerate
        Where the learned network's map is.
    """

    order: str
    stages: tuple[str, ...]
    similarities: Mapping[str, Float[np.ndarray, "stages b"]]
    degenerate: Bool[np.ndarray, "stages b"]
    learned_degenerate: Bool[np.ndarray, " b"]

    def mean(self, measure: str) -> Float[np.ndarray, " b"]:
        """Return each sample's mean over the steps that have a value; NaN where none has."""
        found = self.similarities[measure]
        count = (~np.isnan(found)).sum(0)
        total: np.ndarray = np.where(count > 0, np.nansum(found, 0) / np.maximum(count, 1), np.nan)
        return total


def randomization(
    model: nn.Module,
    inputs: Float[Tensor, "b c *s"],
    explain: Explain,
    *,
    order: str = "bottom-up",
    most: int = 10,
    spacing_mm: Sequence[float | int] | None = None,
    seed: int = 0,
) -> Randomization:
    """Return how like maps of randomized networks are to those of the learned one; one explanation for each stage, and one.

    Parameters
    ----------
    explain
        Such as `explaining(method='grad-cam', layer='features', target=1)`. Name the layer and the target: a random network predicts, and
        speaks, elsewhere. A class-activation map sees layers behind its own only by their weights.
    order
        'bottom-up' is the stricter cascade: top-down leaves the learned filters near the input, and so the image's edges, for last.
    spacing_mm
        Of the input's voxels, for shifts; by default 1.

    Raises
    ------
    UsageError
        If an option is out of range.
    ModelError
        If the network cannot be copied, or has no weights that can be reached.

    References
    ----------
    Adebayo et al., Sanity checks for saliency maps, NeurIPS 2018, section 3.1; bottom-up and without the learned network's own similarity
    of 1: Hedström et al., Sanity checks revisited, NeurIPS 2023 workshop (eMPRT).
    """
    spacing = [1.0] * (inputs.ndim - 2) if spacing_mm is None else spacing_mm
    learned = _arrays(explain(model, inputs))
    names: list[str] = []
    rows: list[list[Similarity]] = []
    blank: list[list[bool]] = []
    for stage, network in randomized(model, stages(model, inputs, most=most), order=order, seed=seed):
        maps = _arrays(explain(network, inputs))
        names.append(stage.name)
        rows.append([similarity(one, other, spacing_mm=spacing) for one, other in zip(learned, maps, strict=True)])
        blank.append([degenerate(one) for one in maps])
    measures = [field.name for field in fields(Similarity)]
    return Randomization(
        order,
        tuple(names),
        {name: np.array([[getattr(one, name) for one in row] for row in rows]) for name in measures},
        np.array(blank),
        np.array([degenerate(one) for one in learned]),
    )


def own_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a network with weights of its own.

    Raises
    ------
    ModelError
        If it cannot be copied.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "a TorchScript file hides its layers, so its weights cannot be drawn anew; give the network as a module"
        )
    with skeleton(model) as copy:
        if not is_copy(copy):
            raise ModelError("the network cannot be copied, so its weights cannot be drawn anew without harming it")
    with torch.inference_mode(False), torch.no_grad():
        for tensor in (*copy.parameters(), *copy.buffers()):
            tensor.data = tensor.data.clone()
    return copy


def _order(network: nn.Module, inputs: Tensor) -> dict[int, int]:
    """Return when each module first runs; one that is used without being called runs with the module that holds it."""
    first: dict[int, int] = {}

    def seen(module: nn.Module, _args: object) -> None:
        first.setdefault(id(module), len(first))

    handles = [module.register_forward_pre_hook(seen) for module in network.modules()]
    try:
        with torch.inference_mode(False), torch.no_grad():
            run(network, inputs)
    finally:
        for handle in handles:
            handle.remove()

    def inherit(module: nn.Module, place: int) -> None:
        first.setdefault(id(module), place)
        for child in module.children():
            inherit(child, first[id(module)])

    inherit(network, 0)
    return first


def _own(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False)) or _is_norm(module)


def _is_norm(module: nn.Module) -> bool:
    return (
        hasattr(module, "running_mean")
        or isinstance(module, (nn.GroupNorm, nn.LayerNorm))
        or type(module).__name__.endswith("Norm")
    )


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


def _draw(module: nn.Module, seed: int) -> None:
    """Give a module new numbers, leaving the global generators as they are."""
    weights = list(module.parameters(recurse=False))
    before = [weight.detach().clone() for weight in weights]
    cards = sorted({weight.get_device() for weight in weights if weight.is_cuda})
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    with torch.random.fork_rng(devices=cards), torch.inference_mode(False), torch.no_grad():
        torch.manual_seed(seed)
        if callable(reset):
            reset()
        if _is_norm(module):
            _forget(module)
            return
        for weight, old in zip(weights, before, strict=True):
            # A parametrized or home-made layer keeps its numbers elsewhere than where it would initialise them.
            if torch.equal(weight, old) and old.numel() > 1:
                drawn = torch.randn(old.shape, dtype=torch.float32).to(old)
                weight.data.copy_(old.mean() + drawn * old.std())


def _forget(module: nn.Module) -> None:
    for name, value in _state(module).items():
        if name in ("running_mean", "bias", "num_batches_tracked"):
            value.data.zero_()
        elif name in ("running_var", "weight"):
            value.data.fill_(1)


def _arrays(maps: Float[Tensor, "b *s"]) -> list[np.ndarray]:
    return list(maps.detach().cpu().double().numpy())
