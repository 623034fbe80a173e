"""Explaining a volume too large for one pass, in sliding windows as MONAI's SlidingWindowInferer predicts it.

    settings = Windows((96, 96, 96), overlap=0.5)             or Windows.of(inferer)
    found = windowed_relevance(network, inputs, settings, target=1)

Raw signed maps are stitched on the layer's own cells, blended once by the importance of windows and normalised once, at the end.

*Classes* (one, several, a difference) are scored by each window for itself: summed where that window predicts them. Windows that
predict them nowhere were looked at and found nothing: they count as zeros in the blend, and cost no backward pass. One sweep does it.
A volume in which no window predicts them is swept once more and scored everywhere, as `relevance` does. The score given is that of the
windows, blended. A classifier's windows are explained each by its own score; the score given is their mean.

*No target* stands for the class that the stitched output predicts (for a classifier, the mean of its windows), so one sweep predicts
first and a second one explains, of a segmentation only the windows that predict that class.

*Any other target of voxels* (one component, a boundary, a function of the scores `b classes *s`), or `exact`, is settled on the
stitched output, and its gradient carried back through every window; weights are then pooled over the whole volume. It takes two sweeps,
the second over the windows with a part in the score, keeps the output, its gradient, and the layer's activation and gradient on all
its cells, and serves rules of activation and gradient only.

Otherwise memory does not grow with the number of windows: besides the input there is one window's pass, the map, and the rows of the
output that windows still add to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medcam.engine.answer import Relevance
from medcam.engine.asked import AnyTarget, check_inputs
from medcam.engine.budget import copies_within
from medcam.engine.capture import IndependentError
from medcam.engine.classes import apart, unasked
from medcam.engine.explainer import Explainer
from medcam.engine.explaining import known_layer, mode_notes, speaking_layers, wishes_of
from medcam.engine.layers import Layer, feature_layers
from medcam.engine.outputs import Reading
from medcam.engine.settled import Unsettled
from medcam.engine.skeleton import skeleton
from medcam.engine.study import Progress
from medcam.engine.sweep import Answered, Draft, Setting, Wish, finish, groups
from medcam.engine.targets import as_target
from medcam.engine.tiling import Windows, pad, tile
from medcam.engine.window_classes import Place, by_windows, filled
from medcam.engine.window_exact import exactly
from medcam.engine.window_pass import Job, Kept, Look, look, predict
from medcam.errors import UsageError

__all__ = ["Windowed", "Windows", "windowed_relevance", "windowed_relevances"]


@final
@dataclass(frozen=True, eq=False)
class Windowed:
    """What one or two sweeps over volumes gave.

    Parameters
    ----------
    relevances
        For every target, method and layer, in this order.
    prediction
        The stitched output, equal to that of MONAI's `sliding_window_inference`, where it was asked for and voxels have scores.
    """

    relevances: tuple[Relevance, ...]
    prediction: Float[Tensor, "b classes *s"] | None


def windowed_relevance(
    model: nn.Module,
    inputs: Float[Tensor, "b c *s"],
    windows: Windows,
    *,
    layer: str | Layer | None = None,
    target: AnyTarget = None,
    method: str | Explainer = "grad-cam",
    score: str = "logit",
    activation: str | None = None,
    output: str | int | None = None,
    class_names: Sequence[str] = (),
    seed: int = 0,
    memory_mb: float | int | None = None,
    exact: bool = False,
    progress: Progress | None = None,
) -> Relevance:
    """Explain a network's score for each volume of a batch, seen through sliding windows; see `windowed_relevances`."""
    found = windowed_relevances(
        model, inputs, windows, methods=[method], targets=[target], layers=[layer], score=score, activation=activation,
        output=output, class_names=class_names, seed=seed, memory_mb=memory_mb, exact=exact, progress=progress,
    )  # fmt: skip
    return found.relevances[0]


def windowed_relevances(
    model: nn.Module, inputs: Float[Tensor, "b c *s"], windows: Windows, *,
    methods: Sequence[str | Explainer] = ("grad-cam",), targets: Sequence[AnyTarget] = (None,),
    layers: Sequence[str | Layer | None] = (None,), score: str = "logit", activation: str | None = None,
    output: str | int | None = None, class_names: Sequence[str] = (), seed: int = 0, memory_mb: float | int | None = None,
    exact: bool = False, prediction: bool = False, progress: Progress | None = None,
) -> Windowed:  # fmt: skip
    """Explain each volume of a batch, seen through sliding windows, for every target, method and layer.

    How targets are scored, and what that costs, is said at the head of this module. It takes one or two sweeps.

    Parameters and errors that are not named here are those of `relevance`.

    Parameters
    ----------
    windows
        How the volume is cut, in the words of MONAI's SlidingWindowInferer.
    layers
        Names, or what `feature_layers` found on an input of a window's size.
    exact
        Explain classes too by the score of the stitched output.
    prediction
        Keep the stitched output, on `windows.device`.
    progress
        Called after each batch with the number of windows that have run, and of those that will as far as is known.

    Returns
    -------
    Windowed
        Cells, offsets and `input_shape` are those of the whole volume. Where windows do not begin at whole cells of the layer, maps are
        read at the first window's cells, carried on, by linear interpolation.

    Raises
    ------
    UsageError
        If the windows, the layer, target or method do not exist or do not fit, or the output has not the window's size.
    ModelError
        If the network does not accept a window.
    """
    wishes = wishes_of(methods)
    check_inputs(inputs)
    # Cutting windows out of a MONAI tensor would copy its metadata each time.
    volumes = inputs.detach().as_subclass(Tensor)
    weights = next(model.parameters(), volumes)
    tiling = tile(volumes.shape[2:], windows, windows.sw_device or weights.device, volumes.dtype)
    padded = pad(volumes, tiling, windows)
    first = padded[tiling.box(tiling.corners[0], slice(0, 1), slice(None))].to(tiling.importance.device)
    asked = [
        as_target(
            target, score=score, activation=activation, output=output, input_shape=tuple(volumes.shape), network=model,
            class_names=class_names,
        )
        for target in targets
    ]  # fmt: skip
    listed, known = _layers(model, first, layers, wishes, output)
    reading = Reading(score, activation, output, tuple(volumes.shape), model)
    with skeleton(model) as copied, torch.inference_mode(False):
        copies = copies_within(memory_mb, first.expand(windows.sw_batch_size, *first.shape[1:]), listed or known)
        setting = Setting(copied, padded, known, copies, seed, mode_notes(model), tuple(class_names))
        device = torch.device(windows.device or volumes.device)
        job = Job(setting, tiling, windows.sw_batch_size, device, reading, progress or _silent)
        sweep = _Sweep(asked, wishes, first, volumes, exact, prediction)
        found, kept = sweep.of(job) if None not in layers else sweep.of_speaking(job, layers, listed)
    return Windowed(tuple(one.relevance for one in found), None if kept is None else kept.logits)


def _layers(
    model: nn.Module, first: Tensor, layers: Sequence[str | Layer | None], wishes: Sequence[Wish], output: str | int | None
) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:  # fmt: skip
    """Return all layers of a network, where they had to be looked for, and those that are asked for; `first` is a window."""
    listed: tuple[Layer, ...] = ()
    if not any(wish.explainer.looks_at_layer for wish in wishes):
        return (), ()
    if not all(isinstance(layer, Layer) for layer in layers):
        listed = feature_layers(model, first, output=output)
    return listed, tuple(known_layer(model, first, listed, layer) for layer in layers)


@dataclass(frozen=True, eq=False)
class _Sweep:
    """What is asked of all windows of a batch; `first` is one of them."""

    asked: Sequence[Unsettled]
    wishes: Sequence[Wish]
    first: Tensor
    volumes: Tensor
    exact: bool
    prediction: bool

    def of(self, job: Job) -> tuple[list[Answered], Kept | None]:
        """Explain, and keep the stitched output if it is asked for."""
        kept = Kept(len(self.volumes), job.tiling.image) if self.prediction else None
        drafts = _drafts(job, self.asked, self.wishes, self.first, kept, exact=self.exact)
        return finish(replace(job.setting, inputs=self.volumes), [drafts[place] for place in sorted(drafts)]), kept

    def of_speaking(
        self, job: Job, layers: Sequence[str | Layer | None], listed: tuple[Layer, ...]
    ) -> tuple[list[Answered], Kept | None]:
        """Explain, and where the default layer's gradient says nothing, once more at one whose gradient does."""
        known = job.setting.layers
        found: list[Answered] = []
        kept: Kept | None = None
        try:
            found, kept = self.of(job)
        except IndependentError:
            if not known:
                raise
        if known and (not found or any(one.says_nothing for one in found)):
            # Whether a layer's gradient says something is a matter of the network, so one window tells.
            better = speaking_layers(
                job.setting.network, self.first, listed, layers, known, unasked().read(job.read(1))
            )
            if better != known or not found:
                found, kept = self.of(replace(job, setting=replace(job.setting, layers=better)))
        return found, kept


def _drafts(
    job: Job, asked: Sequence[Unsettled], wishes: Sequence[Wish], first: Tensor, kept: Kept | None, *, exact: bool
) -> dict[Place, Draft]:
    """Explain every target with every method and at every layer, those together that share a pass; `first` is a window."""
    seen = look(job, first) if exact or _must_look(asked, wishes) else None
    drafts: dict[Place, Draft] = {}
    for group in groups(wishes):
        part = replace(job, wishes=tuple((n, wishes[n]) for n in group))
        drafts |= _group(part, asked, seen, kept, exact=exact)
    return drafts


def _must_look(asked: Sequence[Unsettled], wishes: Sequence[Wish]) -> bool:
    """Tell whether it must be known what the output is before the sweep: what is predicted, or what made it where no graph tells."""
    if any(not wish.explainer.needs & {"gradient", "input gradient"} for wish in wishes):
        return True
    choices = [apart(target) for target in asked]
    return any(choice is None or None in (*choice.plus, *choice.minus) for choice in choices)


def _group(
    job: Job, asked: Sequence[Unsettled], seen: Look | None, kept: Kept | None, *, exact: bool
) -> dict[Place, Draft]:
    """Explain targets with methods that share their passes; `kept` is filled if it is empty."""
    if seen is not None:
        job = replace(job, reading=replace(job.reading, ending=seen.ending))
    if exact and seen is not None and not seen.of_voxels:
        raise UsageError(
            "this network scores a whole window, so there is no stitched score to be exact about; leave exact out"
        )
    whole = [
        n for n, target in enumerate(asked) if exact or (apart(target) is None and seen is not None and seen.of_voxels)
    ]
    drafts: dict[Place, Draft] = {}
    if whole and seen is not None:
        found = exactly(job, [asked[n] for n in whole], seen.ending, kept or Kept(job.volumes, job.tiling.image))
        drafts |= {(whole[t], w, place): draft for (t, w, place), draft in found.items()}
    each = [n for n in range(len(asked)) if n not in whole]
    if each:
        empty = kept if kept is not None and kept.logits is None else None
        found = _by_windows(job, [asked[n] for n in each], seen, empty)
        drafts |= {(each[t], w, place): draft for (t, w, place), draft in found.items()}
    return drafts


def _by_windows(job: Job, asked: Sequence[Unsettled], seen: Look | None, kept: Kept | None) -> dict[Place, Draft]:
    predicted, present = (0,) * job.volumes, None
    choices = [choice for choice in map(apart, asked) if choice is not None]
    if seen is not None and seen.classes > 1 and any(None in (*choice.plus, *choice.minus) for choice in choices):
        prediction = predict(job, seen.ending, kept)
        predicted, present, kept = prediction.classes, prediction.present, None
    return by_windows(job, [filled(target, predicted) for target in asked], present, kept)


def _silent(_done: int, _total: int) -> None:
    """Say nothing."""
