"""The contract for every network of MONAI: a default layer, Grad-CAM there, nothing touched, each sample alone, cells that are measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from engine.monai_zoo import LEFT_OUT, ZOO, Network, public_networks
from engine.zoo_contract import try_out
from medcam.engine.footprint import probe
from medcam.engine.layout import to_channels_first

# MONAI's own habits, which are no business of medcam's.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

# Positions do not pass through a code without cells; what is decoded from it is spread evenly.
UNMEASURED = {"VarAutoEncoder"}


def every() -> list[Any]:
    return [
        pytest.param(entry, dims, id=f"{entry.title} {dims}D", marks=[pytest.mark.slow] if entry.slow else [])
        for entry in ZOO
        for dims in entry.sizes
    ]


def test_every_public_network_is_in_the_zoo_or_left_out_for_a_reason() -> None:
    names = {entry.name for entry in ZOO}
    assert public_networks() == (names | set(LEFT_OUT)) - {"RetinaNet"}
    assert not names & set(LEFT_OUT)
    assert all(set(entry.sizes) == {2, 3} or entry.absent for entry in ZOO if entry.name != "NaViT")


@pytest.mark.parametrize(("entry", "dims"), every())
def test_a_network_is_explained_by_default_and_left_alone(entry: Network, dims: int) -> None:
    if not entry.available:
        pytest.skip(f"needs {entry.needs}")
    found = try_out(entry, dims)
    assert not found.failure
    assert not found.touched
    assert not found.blank
    assert found.apart < 1e-4
    assert found.measured == (entry.name not in UNMEASURED)


@pytest.mark.parametrize(("entry", "dims"), every())
def test_the_probe_sees_what_a_forward_pass_gives(entry: Network, dims: int) -> None:
    """Shapes, layouts and order of every feature map, and the shapes of the output."""
    if not entry.available:
        pytest.skip(f"needs {entry.needs}")
    network, images = entry.build(dims), entry.images(dims)
    given: dict[str, list[list[Tensor]]] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            items = output if isinstance(output, (tuple, list)) else (output,)
            given.setdefault(name, []).append([item for item in items if isinstance(item, Tensor)])

        return hook

    for name, module in network.named_modules():
        module.register_forward_hook(keep(name))
    with torch.no_grad():
        output = network(images)
    found = probe(entry.build(dims), images)
    assert shapes(found.output) == shapes(output)
    assert len(found.seen) > 3
    for seen in found.seen:
        alike = [t for tensors in given[seen.name] for t in tensors if tuple(t.shape) == seen.shape]
        assert len(alike) >= sum(other.name == seen.name and other.shape == seen.shape for other in found.seen)
        tensor = alike[0]
        assert seen.layout.fits(tensor)
        assert tuple(to_channels_first(tensor, seen.layout).shape[2:]) == seen.layout.grid
    if entry.name not in UNMEASURED:
        assert all(seen.footprint.measured for seen in found.seen)


def shapes(output: Any) -> Any:
    if isinstance(output, Tensor):
        return tuple(output.shape)
    if isinstance(output, dict):
        return {name: shapes(item) for name, item in output.items()}
    return [shapes(item) for item in output] if isinstance(output, (tuple, list)) else output
