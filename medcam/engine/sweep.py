"""Many answers from few passes: layers, targets and methods share each forward pass, and rules of (activation, gradient) each backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medcam.engine import cams, directions, doubts
from medcam.engine.answer import Relevance
from medcam.engine.capture import INPUT, Captured, capture
from medcam.engine.cells import Cells
from medcam.engine.explainer import Explainer
from medcam.engine.footprint import Footprint, even_spread
from medcam.engine.layers import Layer
from medcam.engine.outputs import read_once
from medcam.engine.settled import Settled, Unsettled
from medcam.engine.study import Clean, Progress, Remark, Study
from medcam.engine.tail import Recorder, Tail
from medcam.errors import UsageError

_MANY = 2


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
    class_names: tuple[str, ...] = ()
    progress: Progress | None = None


@dataclass(frozen=True, eq=False)
class Draft:
    """An answer whose doubts have been measured and not yet read from the device; `facts` is what `facts_of` gave."""

    values: Tensor
    stride: tuple[float, ...]
    offset: tuple[float, ...]
    layer: Layer | None
    where: Footprint | None
    wish: Wish
    target: Settled
    scores: Tensor
    probabilities: Tensor | None
    facts: Tensor
    remarks: list[Remark]
    dtype: torch.dtype
    calls: int


@dataclass(frozen=True, eq=False)
class Answered:
    """An answer, and whether the score's gradient at its layer says nothing for any sample: it is zero, or its means cancel."""

    relevance: Relevance
    says_nothing: bool


def sweep(setting: Setting, targets: Sequence[Unsettled], wishes: Sequence[Wish]) -> list[Answered]:
    """Return the answer for every target, method and layer, in this order; a method without a layer answers once.

    Methods that need the same kind of pass share it; of a shared pass each target needs one backward.
    """
    drafts: dict[tuple[int, int, int], Draft] = {}
    for group in groups(wishes):
        for place, draft in _answers(setting, targets, [(n, wishes[n]) for n in group]):
            drafts[place] = draft
    return finish(setting, [drafts[place] for place in sorted(drafts)])


def finish(setting: Setting, drafts: Sequence[Draft]) -> list[Answered]:
    """Return the answers that were drafted, with words for what was found; all that must be read from the device is read at once."""
    numbers = torch.cat([draft.facts.flatten() for draft in drafts]).tolist()
    results = []
    for draft in drafts:
        rows, width = draft.facts.shape
        own, numbers = numbers[: rows * width], numbers[rows * width :]
        numbered = [own[n * width : (n + 1) * width] for n in range(rows)]
        results.append(Answered(_finished(setting, draft, numbered), _says_nothing(draft, numbered)))
    return results


def groups(wishes: Sequence[Wish]) -> list[list[int]]:
    """Return the wishes that share a pass: those that need a graph from the input, from the layer, or none."""
    groups: dict[str, list[int]] = {}
    for n, wish in enumerate(wishes):
        needs = wish.explainer.needs
        start = "input" if "input gradient" in needs else "layer" if needs else "nowhere"
        groups.setdefault(start, []).append(n)
    return list(groups.values())


def _answers(
    setting: Setting, targets: Sequence[Unsettled], wishes: Sequence[tuple[int, Wish]]
) -> Iterator[tuple[tuple[int, int, int], Draft]]:
    needs = frozenset[str]().union(*(wish.explainer.needs for _, wish in wishes))
    many = _many_targets(setting, len(targets), [wish for _, wish in wishes])
    captured, tails = clean_pass(setting, frozenset({"activation", "tail"}) if many else needs)
    if len(targets) > _MANY:
        # They all read one output: what each would find out of it is found once.
        known = {target.reading: read_once(target.reading, captured.output) for target in targets[:1]}
        targets = [target.read(known.get(target.reading, target.reading)) for target in targets]
    asked = [target.settled(captured.output) for target in targets]
    means: Sequence[directions.Mean | None] = [None] * len(asked)
    if many and (tail := tails[setting.layers[0].name]) is not None:
        means = directions.mean_gradients(tail, captured.layers[setting.layers[0].name].features, asked)
    elif many:
        captured, tails = clean_pass(setting, needs)
    for t, (target, fixed, mean) in enumerate(zip(targets, asked, means, strict=True)):
        last = t == len(targets) - 1 and "graph" not in needs
        clean = Clean(captured, fixed, target.reading, keep_graph=not last, mean=mean)
        for w, wish in wishes:
            layers = setting.layers if wish.explainer.looks_at_layer else (None,)
            for place, layer in enumerate(layers):
                yield (t, w, place), draft_of(setting, clean, layer, wish, tails)


def _many_targets(setting: Setting, targets: int, wishes: Sequence[Wish]) -> bool:
    """Tell whether forward-mode passes, one for each channel, are the cheaper way to all that is wished for."""
    alone = len(setting.layers) == 1 and all(wish.explainer.mean_only for wish in wishes)
    return alone and directions.cheaper(targets, setting.layers[0].channels)


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
    layouts = {layer.name: layer.layout for layer in setting.layers}
    recorders = {name: Recorder(setting.network, name) for name in names} if "tail" in needs else {}
    graph = bool(needs & {"gradient", "input gradient"})
    while True:
        with ExitStack() as stack:
            for recorder in recorders.values():
                stack.enter_context(recorder.watching())
            captured = capture(
                setting.network, setting.inputs, roots, layouts=layouts, graph=graph, recorded="rectifiers" in needs
            )
            again = [recorder.spoiled() for recorder in recorders.values()]
        if not any(again):
            break
    tails = {name: recorder.tail(captured.layers[name], setting.inputs) for name, recorder in recorders.items()}
    return captured, tails


def study_of(
    setting: Setting, clean: Clean, layer: Layer | None, tails: dict[str, Tail | None], remarks: list[Remark]
) -> Study:
    """Return what a method may ask about one layer, or (None) about the input alone, of a clean pass."""
    name, where = None, None
    if layer is not None:
        name = layer.name
        cells = clean.captured.layers[name].cells
        # A layer may have been found on an input of another size.
        same = layer.footprint.measured or layer.shape == cells
        where = layer.footprint if same else even_spread(tuple(setting.inputs.shape[2:]), cells)
    return Study(
        setting.network, setting.inputs, clean, name, where, tails.get(name or INPUT), setting.copies, setting.seed, remarks,
        setting.progress,
    )  # fmt: skip


def as_cells(found: Float[Tensor, "b *t"] | Cells, where: Footprint | None) -> Cells:
    """Return a method's answer with its place: on cells of its own, on the layer's, or on the input's voxels."""
    if isinstance(found, Cells):
        return found
    dims = found.ndim - 1
    if where is None:
        return Cells(found, (1.0,) * dims, (0.0,) * dims)
    return Cells(found, where.stride, where.offset)


def draft_of(setting: Setting, clean: Clean, layer: Layer | None, wish: Wish, tails: dict[str, Tail | None]) -> Draft:
    """Ask a method, and measure what makes its answer doubtful."""
    explainer, remarks, target = wish.explainer, list[Remark](), clean.target
    if explainer.segmentation and target.chance is not None:
        raise UsageError(
            f"{wish.name} explains segmentations, and this network's output has no voxels; {wish.name.removeprefix('seg-')} serves it"
        )
    study = study_of(setting, clean, layer, tails, remarks)
    with torch.autocast(setting.inputs.device.type, enabled=False):
        found = explainer.explain(study) if clean.mean is None else cams.combine(clean.mean.gradient, study.activation)
    cells = as_cells(found, study.footprint)
    values = cells.values.detach()
    # A method that only perturbs the input may leave places out; elsewhere what is not a number is a failure.
    partial = isinstance(found, Cells) and not explainer.needs
    looked_at = values if not partial else values.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    sizes: tuple[Tensor | None, Tensor | None] = (None, None)
    if "gradient" in explainer.needs:
        sizes = doubts.gradient_sizes(study.gradient) if clean.mean is None else clean.mean.sizes
    chance = None if target.chance is None else target.chance(clean.captured.output).detach()
    kept = None if layer is None else clean.captured.layers[layer.name]
    return Draft(
        values, cells.stride, cells.offset, layer, study.footprint, wish, target, clean.scores, chance,
        facts_of(doubts.measure(looked_at, *sizes), target, chance, remarks), remarks,
        values.dtype if kept is None else kept.native.dtype, 1 if kept is None else kept.calls,
    )  # fmt: skip


def facts_of(
    measures: Float[Tensor, "b 4"], target: Settled, chance: Tensor | None, remarks: Sequence[Remark]
) -> Float[Tensor, "b facts"]:
    """Return all that words need of each sample, in one tensor: four measures of doubt, the class and its probability (-1: none), the
    remarks' flags and values, the target's own facts."""
    none = measures.new_full((measures.shape[0],), -1) if target.classes is None or chance is None else measures[:, 0]
    columns = [none if target.classes is None else target.classes, none if chance is None else chance]
    columns += [column for remark in remarks for column in (remark.flags, remark.values)]
    # One after another they would be copied with a launch each.
    beside = [column.to(measures.device, non_blocking=True)[:, None] for column in columns]
    return torch.cat([measures, *beside, target.facts.to(measures.device)], 1)


def _finished(setting: Setting, draft: Draft, rows: Sequence[Sequence[float]]) -> Relevance:
    layer, explainer, target = draft.layer, draft.wish.explainer, draft.target
    remarked = 6 + 2 * len(draft.remarks)
    of_target = [[int(number) for number in row[remarked:]] for row in rows]
    classes = tuple(int(row[4]) for row in rows)
    told = target.told(of_target)
    cells = tuple(draft.values.shape[1:])
    shared = [*setting.common_notes, *_about_layer(draft, cells)]
    notes = []
    for n, row in enumerate(rows):
        own = [*shared, *told[n]]
        for place, remark in enumerate(draft.remarks, 3):
            if row[2 * place]:
                own.append(remark.sentence.format(value=row[2 * place + 1]))
        if target.score == "probability" and row[5] >= 0:
            own += doubts.saturated(row[5])
        behind = None if layer is None else layer.behind
        own += doubts.doubts(
            row[:4], gradient="gradient" in explainer.needs, pooled=explainer.pooled, dtype=draft.dtype, cells=cells, behind=behind
        )  # fmt: skip
        notes.append(tuple(dict.fromkeys(own)))
    return Relevance(
        draft.values, draft.stride, draft.offset, tuple(setting.inputs.shape[2:]), "" if layer is None else layer.name,
        draft.wish.name, classes if classes[0] >= 0 else (), draft.scores, draft.probabilities, tuple(notes), target.score,
        target.described(of_target, setting.class_names), setting.seed,
    )  # fmt: skip


def _says_nothing(draft: Draft, rows: Sequence[Sequence[float]]) -> bool:
    if "gradient" not in draft.wish.explainer.needs:
        return False
    cells = prod(draft.values.shape[1:])
    return all(size == 0 or doubts.cancels(size, mean, draft.dtype, cells) for _, _, size, mean, *_ in rows)


def _about_layer(draft: Draft, cells: tuple[int, ...]) -> list[str]:
    if draft.layer is None or draft.where is None:
        return []
    notes, name = [], draft.layer.name
    if draft.calls > 1:
        notes.append(f"Layer '{name}' runs {draft.calls} times in one pass; its last call is explained.")
    if not draft.where.measured:
        notes.append(
            "Where this layer's cells lie could not be measured; they are assumed to be spread evenly over the input."
        )
    return notes + doubts.few_cells(name, cells)
