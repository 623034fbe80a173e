"""The rectifiers in a graph: how the nodes that a forward pass has left are recognised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from medcam.errors import ModelError

Node = Any  # torch gives its nodes' saved tensors no types


@dataclass(frozen=True, eq=False)
class Site:
    """A rectifier in the graph.

    `inputs` are the node's inputs that x feeds, the direct one first. `sign` names the saved tensor with x's sign; it is '' where the
    rectifier's own gradient is 0 for every x <= 0. `full` is the node's slope where x is large.
    """

    node: Node
    kind: str
    inputs: tuple[int, ...]
    sign: str
    full: Any = 1.0


# For each kind of node, the saved tensor that has x's sign. In-place forms save their result instead, which has x's sign too.
_RECTIFIERS = {
    "Relu": "", "LeakyRelu": "_saved_self", "PreluKernel": "_saved_self", "RreluWithNoise": "_saved_self", "Elu": "_saved_self",
    "Celu": "_saved_self", "Gelu": "_saved_self", "Silu": "_saved_self", "Mish": "_saved_self", "Softplus": "_saved_self",
    "Hardswish": "_saved_self", "Threshold": "_saved_self",
}  # fmt: skip
# Rectifiers only if what they cut at is 0: the saved value that tells.
_FLOORS = {"Hardtanh": "_saved_min_val", "Clamp": "_saved_min", "ClampMin": "_saved_min"}
# Swish and Mish as networks write them to save memory in training: autograd functions that save x.
_SAVING_MEMORY = {
    "SwishImplementation", "SwishJitAutoFn", "MishJitAutoFn", "HardSwishJitAutoFn", "HardMishJitAutoFn", "SwishFunction", "MishFunction",
}  # fmt: skip
# A rectifier written out is x times one of these, through steps that act on each voxel alone.
_GATES = {"Sigmoid", "Erf", "Hardsigmoid", "Hardtanh", "Clamp", "Tanh"}
_STEPS = _GATES | {
    "Add", "Sub", "Mul", "Div", "Neg", "Pow", "Softplus", "Exp", "Log", "Log1P", "Reciprocal", "Clone", "ToCopy",
}  # fmt: skip
_LONGEST = 16
_OPERANDS = ("_saved_self", "_saved_other")


def kind_of(node: Node) -> str:
    name: str = node.name()
    return name.rsplit("::", 1)[-1].rstrip("0123456789").removesuffix("Backward")


def nodes_of(scores: Tensor) -> list[Node]:
    """Return every node of the graph of `scores`."""
    found: dict[int, Node] = {}
    waiting: list[Any] = [scores.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and id(node) not in found:
            found[id(node)] = node
            waiting.extend(before for before, _ in node.next_functions)
    return list(found.values())


def sites_among(nodes: list[Node]) -> list[Site]:
    sites, within = [], set()
    for node in nodes:
        gated = _times_its_own_gate(node)
        if gated is not None:
            site, inside = gated
            sites.append(site)
            within |= inside
    # The Softplus of a written-out Mish is a part of it, not a rectifier of its own.
    plain = [_rectifier(node) for node in nodes if id(node) not in within]
    return sites + [site for site in plain if site is not None]


def _rectifier(node: Node) -> Site | None:
    kind = kind_of(node)
    live = tuple(n for n, (before, _) in enumerate(node.next_functions) if before is not None)
    if not live:
        return None
    if kind in _RECTIFIERS:
        sign = _RECTIFIERS[kind]
        return Site(node, kind, live[:1], sign if hasattr(node, sign) or not sign else "_saved_result")
    if kind in _FLOORS and _is_zero(getattr(node, _FLOORS[kind])):
        return Site(node, kind, live[:1], "_saved_self")
    if kind in _SAVING_MEMORY and _own_function(node):
        return Site(node, kind, live[:1], "saved_tensors")
    if kind == "Maximum" and len(live) == 1 and _is_zero(getattr(node, _OPERANDS[1 - live[0]])):
        return Site(node, kind, live, _OPERANDS[live[0]])
    return None


def _is_zero(bound: Any) -> bool:
    return bool((bound == 0).all()) if isinstance(bound, Tensor) else bound == 0


def _times_its_own_gate(node: Node) -> tuple[Site, set[int]] | None:
    """Return a rectifier that the network writes out as a product, x * sigmoid(x) for one, and the nodes within it; else None."""
    edges = node.next_functions
    if kind_of(node) != "Mul" or len(edges) != 2 or any(before is None for before, _ in edges):
        return None
    for direct, gate in ((0, 1), (1, 0)):
        for source in _scaled(edges[direct]):
            inside = _between(edges[gate], source)
            if inside and not _GATES.isdisjoint(map(kind_of, inside)):
                site = Site(node, "x * gate(x)", (direct, gate), _OPERANDS[direct], _full(edges[gate]))
                return site, {id(step) for step in inside}
    return None


def _scaled(edge: Any) -> list[Any]:
    """Return an edge, and those before it from which only constant factors part it."""
    chain = [edge]
    while edge[0] is not None and kind_of(edge[0]) in {"Mul", "Div", "Clone"} and len(chain) < _LONGEST:
        live = [before for before in edge[0].next_functions if before[0] is not None]
        if len(live) != 1:
            break
        edge = live[0]
        chain.append(edge)
    return chain


def _full(edge: Any) -> Any:
    """Return what a gate is where x is large: 1, or 2 for 1 + erf, 6 for relu6, times constant factors."""
    node = edge[0]
    kind = kind_of(node)
    if kind in {"Hardtanh", "Clamp"}:
        bound = getattr(node, "_saved_max_val" if kind == "Hardtanh" else "_saved_max")
        return 1.0 if bound is None else bound
    live = [n for n, (before, _) in enumerate(node.next_functions) if before is not None]
    if kind not in {"Add", "Mul", "Div"} or len(live) != 1:
        return 1.0
    before = _full(node.next_functions[live[0]])
    if kind == "Add":
        return before + 1  # the graph does not keep the constant; the gates that are sums are 1 + erf and 1 + tanh
    factor = getattr(node, _OPERANDS[1 - live[0]])
    return before * factor if kind == "Mul" else before / factor


def _between(edge: Any, source: Any) -> list[Node] | None:
    """Return the nodes from `edge` back to `source` if all that leads there acts on each voxel alone and comes from `source` only."""
    inside: dict[int, Node] = {}
    waiting = [edge]
    while waiting:
        node, output = waiting.pop()
        if node is None or id(node) in inside or (node is source[0] and output == source[1]):
            continue
        if kind_of(node) not in _STEPS or len(inside) == _LONGEST:
            return None
        inside[id(node)] = node
        waiting.extend(node.next_functions)
    return list(inside.values())


# Nodes that hold whole pieces of a network, with a graph of their own or none.
_HIDING = {
    "DifferentiableGraph": "compiled by TorchScript", "CompiledFunction": "compiled by torch.compile",
    "CheckpointFunction": "recomputed by reentrant checkpointing (use_reentrant=False would do)",
}  # fmt: skip


def unknown_among(nodes: list[Node]) -> tuple[str, ...]:
    names = set()
    for node in nodes:
        kind = kind_of(node)
        if kind in _HIDING:
            raise ModelError(
                f"a part of this network is {_HIDING[kind]}, which hides its rectifiers, so the method would give the plain gradient "
                "there; load the network as plain modules or as a torch.export file (.pt2)"
            )
        if _own_function(node):
            names.add(kind)
    return tuple(sorted(names))


def _own_function(node: Node) -> bool:
    """Whether it is an autograd function written in Python by whoever made the network."""
    written = getattr(node, "_forward_cls", None)
    return written is not None and written.__module__.split(".")[0] not in {"torch", "medcam"}
