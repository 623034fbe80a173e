"""Many answers from few passes: layers, targets and methods share each forward pass, and rules of (activation, gradient) each backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medcam.engine import doubts
from medcam.engine.answer import Relevance
from medcam.engine.asked import Asked, settle
from medcam.engine.capture import INPUT, Captured, capture
from medcam.engine.explainer import Explainer
from medcam.engine.footprint import Footprint, even_spread
from medcam.engine.layers import Layer
from medcam.engine.study import Cells, Clean, Study
from medcam.engine.tail import Recorder, Tail


@dataclass(frozen=True)
class Wish:
    """A method under the name that its user gave it."""

    name: str
    explainer: Explainer


@dataclass(frozen=True, eq=False)
class Setting:
    """What all passes of one call share."""

    network: nn.Module
    inputs: Float[Tensor, "b c *s"]
    layers: tuple[Layer, ...]
    copies: int
    seed: int
    common_notes: tuple[str, ...]
    score: str
    softmax: str | None


@dataclass(frozen=True, eq=False)
class _Draft:
    """An answer whose doubts have been measured and not yet read from the device."""

    values: Tensor
    stride: tuple[float, ...]
    offset: tuple[float, ...]
    layer: Layer | None
    where: Footprint | None
    wish: Wish
    target: Asked
    scores: Tensor
    facts: Tensor
    notes: tuple[list[str], ...]
    dtype: torch.dtype
    calls: int


def sweep(setting: Setting, targets: Sequence[Any], wishes: Sequence[Wish]) -> list[Relevance]:
    """Return the answer for every target, method and layer, in this order; a method without a layer answers once.

    Methods that need the same kind of pass share it; of a shared pass each target needs one backward.
    """
    drafts: dict[tuple[int, int, int], _Draft] = {}
    for group in _groups(wishes):
        for place, draft in _answers(setting, targets, [(n, wishes[n]) for n in group]):
            drafts[place] = draft
    ordered = [drafts[place] for place in sorted(drafts)]
    # All that must be read from the device is read at once.
    facts = torch.stack([draft.facts for draft in ordered]).tolist()
    return [_finished(setting, draft, rows) for draft, rows in zip(ordered, facts, strict=True)]


def _groups(wishes: Sequence[Wish]) -> list[list[int]]:
    """Return the wishes that share a pass: those that need the same context, and a graph from the same place."""
    groups: dict[object, list[int]] = {}
    for n, wish in enumerate(wishes):
        needs = wish.explainer.needs
        start = "input" if "input gradient" in needs else "layer"
        groups.setdefault((wish.explainer.context, start), []).append(n)
    return list(groups.values())


def _answers(
    setting: Setting, targets: Sequence[Any], wishes: Sequence[tuple[int, Wish]]
) -> Iterator[tuple[tuple[int, int, int], _Draft]]:
    needs = frozenset[str]().union(*(wish.explainer.needs for _, wish in wishes))
    context = wishes[0][1].explainer.context
    with nullcontext() if context is None else context(setting.network):
        captured, tails = clean_pass(setting, needs)
        for t, target in enumerate(targets):
            fixed = settle(target, captured.output, setting.inputs.shape[0], setting.score, setting.softmax)
            last = t == len(targets) - 1 and "graph" not in needs
            clean = Clean(captured, fixed, keep_graph=not last)
            for w, wish in wishes:
                layers = setting.layers if wish.explainer.looks_at_layer else (None,)
                for place, layer in enumerate(layers):
                    yield (t, w, place), _draft(setting, clean, layer, wish, tails)


def clean_pass(setting: Setting, needs: frozenset[str]) -> tuple[Captured, dict[str, Tail | None]]:
    """Run the network once for all that methods with these needs ask, and once more for each layer whose network overwrites its features.

    Raises
    ------
    UsageError
        If a layer does not run, or gives no feature map.
    ModelError
        If the network does not accept the input.
    """
    names = [layer.name for layer in setting.layers] if needs & {"activation", "gradient", "tail"} else []
    roots = [INPUT, *names] if "input gradient" in needs else names
    layouts = {layer.name: layer.layout for layer in setting.layers if layer.layout is not None}
    recorders = {name: Recorder(setting.network, name) for name in names} if "tail" in needs else {}
    graph = bool(needs & {"gradient", "input gradient"})
    while True:
        with ExitStack() as stack:
            for recorder in recorders.values():
                stack.enter_context(recorder.watching())
            captured = capture(setting.network, setting.inputs, roots, layouts=layouts, graph=graph)
            again = [recorder.spoiled() for recorder in recorders.values()]
        if not any(again):
            break
    tails = {name: recorder.tail(captured.layers[name], setting.inputs) for name, recorder in recorders.items()}
    return captured, tails


def _draft(setting: Setting, clean: Clean, layer: Layer | None, wish: Wish, tails: dict[str, Tail | None]) -> _Draft:
    notes: tuple[list[str], ...] = tuple([] for _ in range(setting.inputs.shape[0]))
    explainer = wish.explainer
    name = None if layer is None else layer.name
    where, calls = None, 1
    if layer is not None:
        kept = clean.captured.layers[layer.name]
        calls = kept.calls
        where = layer.footprint or even_spread(tuple(setting.inputs.shape[2:]), tuple(kept.features.shape[2:]))
    study = Study(
        setting.network, setting.inputs, clean, name, where,
        tails.get(name or INPUT), setting.copies, setting.seed, notes,
    )  # fmt: skip
    found = explainer.explain(study)
    slope = None
    if "gradient" in explainer.needs:
        slope = study.gradient
    elif "input gradient" in explainer.needs:
        slope = study.clean.slopes[INPUT]
    if isinstance(found, Cells):
        values, stride, offset = found.values, found.stride, found.offset
    elif where is not None:
        values, stride, offset = found, where.stride, where.offset
    else:
        dims = setting.inputs.ndim - 2
        values, stride, offset = found, (1.0,) * dims, (0.0,) * dims
    facts = doubts.measure(values, slope)
    dtype = clean.captured.layers[name or INPUT].native.dtype if slope is not None else values.dtype
    return _Draft(
        values.detach(), stride, offset, layer, where, wish, clean.target, clean.scores, facts.detach(), notes, dtype, calls
    )  # fmt: skip


def _finished(setting: Setting, draft: _Draft, rows: Sequence[Sequence[float]]) -> Relevance:
    layer, explainer = draft.layer, draft.wish.explainer
    shared = list(setting.common_notes)
    cells = tuple(draft.values.shape[1:])
    if layer is not None:
        if draft.calls > 1:
            shared.append(f"Layer '{layer.name}' runs {draft.calls} times in one pass; its last call is explained.")
        if draft.where is not None and not draft.where.measured:
            shared.append(
                "Where this layer's cells lie could not be measured; they are assumed to be spread evenly over the input."
            )
        shared += doubts.few_cells(layer.name, cells)
    notes = []
    for n, row in enumerate(rows):
        own = [*draft.target.notes[n], *draft.notes[n]]
        if draft.target.score == "probability":
            own += []
        own += doubts.doubts(
            row[:4],
            pooled=explainer.pooled,
            dtype=draft.dtype,
            cells=cells,
            behind=None if layer is None else layer.behind,
        )
        notes.append(tuple(dict.fromkeys((*shared, *own))))
    return Relevance(
        draft.values, draft.stride, draft.offset, tuple(setting.inputs.shape[2:]), "" if layer is None else layer.name,
        draft.wish.name, draft.target.classes, draft.scores, draft.target.probabilities, tuple(notes), draft.target.score,
        draft.target.words, setting.seed,
    )  # fmt: skip
