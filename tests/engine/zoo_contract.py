"""What medcam promises for a network, tried on one: a default layer, Grad-CAM there, nothing touched, each sample as if alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.monai_zoo import Network
from medcam.engine import Relevance, relevance

UNMEASURED = "could not be measured"


@dataclass(frozen=True)
class Outcome:
    """What came of it; `failure` is the refusal in medcam's own words, '' if there was none."""

    layer: str = ""
    cells: tuple[int, ...] = ()
    stride: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()
    measured: bool = False
    touched: tuple[str, ...] = ()
    apart: float = float("nan")
    blank: bool = False
    notes: tuple[str, ...] = ()
    failure: str = ""


def one_anchor(output: Any) -> Tensor:
    """The score of one anchor of a detector: class 0 in the middle of its finest map."""
    maps = output["classification"][0].flatten(2)
    return maps[:, 0, maps.shape[2] // 2]


def explain(entry: Network, network: nn.Module, images: Tensor) -> Relevance:
    if entry.ends_in == "boxes":
        return relevance(network, images, target=one_anchor)
    return relevance(network, images, target=1)


def state(network: nn.Module) -> dict[str, Any]:
    """All of a network that an explanation might touch, in values that can be compared."""
    found: dict[str, Any] = {}
    for name, module in network.named_modules():
        hooks = sum(len(value) for key, value in vars(module).items() if key.endswith("_hooks") and value is not None)
        found[f"{name}: hooks"] = hooks
        found[f"{name}: mode"] = module.training
        found[f"{name}: attributes"] = sorted(vars(module))
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        found[f"{name}: values"] = value.detach().clone()
        found[f"{name}: version"] = value._version
        found[f"{name}: asks for a gradient"] = value.requires_grad
        found[f"{name}: gradient"] = None if value.grad is None else value.grad.clone()
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, ...]:
    same = torch.equal
    return tuple(
        name
        for name in sorted(before.keys() | after.keys())
        if not (
            same(before[name], after[name])
            if isinstance(before.get(name), Tensor) and isinstance(after.get(name), Tensor)
            else before.get(name) == after.get(name)
        )
    )


def try_out(entry: Network, dims: int) -> Outcome:
    """Explain two images at once and one by one."""
    network = entry.build(dims)
    first = next(network.parameters())
    first.grad = torch.full_like(first, 7)
    images = entry.images(dims)
    with torch.no_grad():
        network(images)  # some networks set an attribute or clamp a weight of their own when they first run
    before = state(network)
    try:
        both = explain(entry, network, images)
    except Exception as error:  # noqa: BLE001  whatever it is, the table says it
        return Outcome(touched=differences(before, state(network)), failure=f"{type(error).__name__}: {error}")
    touched = differences(before, state(network))
    alone = torch.cat([explain(entry, network, image[None]).values for image in images])
    scale = float(both.values.abs().max())
    apart = float((both.values - alone).abs().max()) / scale if scale else 0.0
    return Outcome(
        both.layer, tuple(both.values.shape[1:]), both.stride, both.offset,
        measured=not any(UNMEASURED in note for note in both.notes[0]), touched=touched, apart=apart, blank=scale == 0,
        notes=both.notes[0],
    )  # fmt: skip
