"""Maps of one score of the whole stitched output: any target, explained as if the network had seen the volume at once.

Two passes. The first stitches the output and, on the common cells, the layer's activation. The target settles on the stitched output, and
its gradient there, times each window's share of each voxel, is what each window's output is pulled by in the second pass; windows that have
no part in the score are not run again. What they give at the layer is added up on the common cells. The method is then asked once, about
the activation and the gradient of the whole volume, so weights are pooled over all of it and the map has no seams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medcam.engine.capture import Activation, Captured, capture, gradients
from medcam.engine.cells import Cells
from medcam.engine.footprint import even_spread
from medcam.engine.layers import Layer
from medcam.engine.layout import Layout
from medcam.engine.outputs import Ending
from medcam.engine.settled import Settled, Unsettled
from medcam.engine.stitching import ALL, CellGrid, CellStitch, Shares, cell_grid
from medcam.engine.study import Clean
from medcam.engine.sweep import Draft, Wish, draft_of
from medcam.engine.window_pass import Job, Kept
from medcam.errors import UsageError


@dataclass(frozen=True, eq=False)
class _Features:
    """A layer's activation on common cells; `dtype` and `calls` are those of its windows."""

    layer: Layer
    grid: CellGrid
    activation: Float[Tensor, "b c *j"]
    dtype: torch.dtype
    calls: int


@dataclass(frozen=True, eq=False)
class _Pull:
    """A target settled on the stitched output, its score, and the score's gradient there."""

    settled: Settled
    score: Float[Tensor, " b"]
    slope: Float[Tensor, "b classes *s"]


def exactly(job: Job, targets: Sequence[Unsettled], ending: Ending, kept: Kept) -> dict[tuple[int, int, int], Draft]:
    """Explain targets of the stitched output, each with every method and layer; `kept` takes that output.

    The cost is one pass over all windows and one, with its backward passes, over those with a part in a score. Activation and gradient of
    the whole layer are kept: its channels times its cells in the volume, twice.

    Raises
    ------
    UsageError
        If a method asks for more than activations and gradients.
    """
    for _, wish in job.wishes:
        if not wish.explainer.needs or wish.explainer.needs - {"activation", "gradient"}:
            raise UsageError(_no_rule(wish.name))
    features = _look(job, kept)
    pulls = [_pull(job, target, ending, kept) for target in targets]
    slopes = _slopes(job, pulls, features)
    return {
        (t, w, place): _map(job, wish, features[place], slopes[t][place], pulls[t])
        for t in range(len(targets)) for w, wish in job.wishes for place in range(len(features))
    }  # fmt: skip


def _look(job: Job, kept: Kept) -> list[_Features]:
    """Run all windows once: stitch the output, and each layer's activation on common cells."""
    found: dict[str, tuple[Layer, torch.dtype, int]] = {}
    sums: dict[str, CellStitch] = {}
    stitch = job.stitch([kept.take])
    for spots, part in job.batches(job.every, 0, 2 * len(job.every)):
        captured = _captured(job, part.inputs, graph=False)
        job.add(stitch, spots, job.scores_in(captured.output, len(spots)))
        for layer in job.setting.layers:
            seen = captured.layers[layer.name]
            values = seen.features
            if layer.name not in sums:
                known = layer.footprint.measured or layer.shape == seen.cells
                where = layer.footprint if known else even_spread(job.tiling.roi, seen.cells)
                grid = cell_grid(job.placed, Cells(values[:, 0], where.stride, where.offset))
                sums[layer.name] = CellStitch(grid, (job.volumes, values.shape[1]), values.dtype)
                found[layer.name] = (replace(layer, footprint=where), seen.native.dtype, seen.calls)
            for spot, own in zip(spots, values, strict=True):
                sums[layer.name].add(spot.volume, spot.corner, own)
        del captured
    stitch.finish()
    return [_Features(found[name][0], each.grid, each.blended(), *found[name][1:]) for name, each in sums.items()]


def _pull(job: Job, target: Unsettled, ending: Ending, kept: Kept) -> _Pull:
    if kept.logits is None:
        raise UsageError("there is no stitched output to explain")
    leaf = kept.logits.detach().requires_grad_()
    shape = (job.volumes, job.setting.inputs.shape[1], *job.tiling.image)
    reading = replace(job.reading, output=None, input_shape=shape, ending=ending)
    settled = target.read(reading).settled(leaf)
    with torch.enable_grad():
        score = settled(leaf)
        (slope,) = torch.autograd.grad(score.sum(), leaf)
    return _Pull(settled, score.detach(), slope)


def _slopes(job: Job, pulls: Sequence[_Pull], features: Sequence[_Features]) -> list[list[Float[Tensor, "b c *j"]]]:
    """Return the gradient of each target's stitched score at each layer's common cells."""
    names = [each.layer.name for each in features]
    sums = [
        [CellStitch(each.grid, tuple(each.activation.shape[:2]), each.activation.dtype) for each in features]
        for _ in pulls
    ]
    corners, shares = job.tiling.corners, Shares(job.placed)
    boxes = [_own_voxels(job, job.volume_of(n), corners[n % len(corners)]) for n in job.every]
    parts = [torch.stack([(pull.slope[box] != 0).any() for box in boxes]) for pull in pulls]
    matters = torch.stack(parts).any(0).tolist()
    visit = [n for n in job.every if matters[n]]
    for spots, part in job.batches(visit, len(job.every), len(job.every) + len(visit)):
        captured = _captured(job, part.inputs, graph=True)
        logits = job.inside(job.scores_in(captured.output, len(spots)))
        blend = torch.stack([job.inside(shares.of(spot.corner).unsqueeze(0))[0] for spot in spots])
        for t, pull in enumerate(pulls):
            slope = torch.stack([pull.slope[boxes[spot.number]] for spot in spots]) * blend.unsqueeze(1)
            with torch.enable_grad():
                # In the stitched output's precision: a half's sum over voxels would overflow.
                score = (logits.to(slope.dtype) * slope.to(logits.device)).flatten(1).sum(1)
            found = gradients(captured, score, names, keep_graph=t < len(pulls) - 1)
            for name, summed in zip(names, sums[t], strict=True):
                for spot, own in zip(spots, found[name], strict=True):
                    summed.spread(spot.volume, spot.corner, own)
        del captured, logits
    return [[summed.total() for summed in own] for own in sums]


def _captured(job: Job, inputs: Tensor, *, graph: bool) -> Captured:
    layers = job.setting.layers
    layouts = {layer.name: layer.layout for layer in layers}
    return capture(job.setting.network, inputs, [layer.name for layer in layers], layouts=layouts, graph=graph)


def _own_voxels(job: Job, volume: int, corner: Sequence[int]) -> tuple[Any, ...]:
    """Return which voxels of a volume, without padding, a window covers."""
    tiling = job.tiling
    sides = zip(corner, tiling.roi, tiling.image, strict=True)
    return (volume, ALL, *(slice(at, at + min(roi, side)) for at, roi, side in sides))


def _map(job: Job, wish: Wish, features: _Features, slope: Tensor, pull: _Pull) -> Draft:
    """Ask a method about the whole volume's activation and gradient."""
    layer = replace(features.layer, shape=features.grid.shape, layout=Layout("channels first", features.grid.shape))
    leaf = features.activation.detach().requires_grad_()

    def linear(output: Tensor) -> Tensor:
        # A score whose gradient at the activation is the one that was put together.
        return (output * slope).flatten(1).sum(1)

    captured = Captured(leaf, {layer.name: Activation(leaf, layer.layout, features.calls)})
    target = replace(pull.settled, scored=linear, chance=None, each=None)
    clean = Clean(captured, target, job.reading, keep_graph=True)
    setting = replace(job.setting, network=_closed(layer.name, _no_rule(wish.name)))
    draft = draft_of(setting, clean, layer, wish, {})
    cells = features.grid.without_padding(draft.values)
    return replace(
        draft, values=cells.values, stride=cells.stride, offset=cells.offset, scores=pull.score, dtype=features.dtype
    )


def _no_rule(method: str) -> str:
    return (
        f"{method} is no rule of one activation and one gradient, so it cannot explain the stitched score of a whole volume; give a class, "
        "which each window scores for itself, or choose another method"
    )


def _closed(layer: str, why: str) -> nn.Module:
    """Return a network that cannot run: a whole volume must not go through the user's own at once."""

    class Closed(nn.Module):
        def forward(self, _inputs: Tensor) -> Tensor:
            raise UsageError(why)

    root = inner = Closed()
    for part in layer.split("."):
        deeper = Closed()
        inner.add_module(part, deeper)
        inner = deeper
    return root
