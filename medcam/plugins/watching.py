"""Watching maps while a network trains: what one look at a fixed few images sees, measures, and leaves in a folder.

The network is trained as if nobody had looked: modes, weights, gradients, batch statistics and random numbers are what they were.
"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from medcam.engine import relevance
from medcam.engine.asked import AnyTarget
from medcam.errors import ModelError, OutputError, UsageError
from medcam.plugins.watched_maps import Maps, digests, maps_before, read_maps, steps_in, write_maps
from medcam.plugins.watched_numbers import Numbers, measured, write_numbers
from medcam.plugins.watched_picture import write_picture
from medcam.plugins.watched_scene import scenes_of
from medcam.render import THRESHOLD

# How many looks stand beside each other in a picture.
_LOOKS_SHOWN = 6
# Classes of weights and modules of which one device holds a part.
_SPREAD = {"DTensor", "FlatParameter", "FullyShardedDataParallel"}


@dataclass(frozen=True, eq=False)
class Watch:
    """What is watched, and where it is written.

    Parameters
    ----------
    images
        What the network takes, `b c i j` or `b c i j k`: few, and the same at every look, since only maps of the same images compare. Or
        a function that gives them from the trainer's state (Ignite's `engine.state`, Lightning's `trainer`). A MetaTensor brings its
        affines along.
    folder
        A new one for each run. It gets `numbers.csv`, and of each look `maps_STEP.npz` and `picture_STEP.png`.
    target, method, layer, score, activation, output, class_names, seed
        As `medcam.relevance` takes them. By default each image's predicted class is explained, which may change while the network learns;
        name a class to see how its map changes.
    lesions
        Where the finding lies in each image (above 0.5), `b *s` or `b 1 *s`.
    affines
        Of each image from voxel to RAS+ mm, 4 x 4, where the images are plain tensors.
    names
        Of the images, for the table and the picture; they must name no patient.
    channel
        Which channel of the images is drawn.
    threshold
        The fraction of the scale's top below which no colour is drawn.
    log
        Called with each `Look`, to hand numbers and the picture on to a logger.

    Raises
    ------
    UsageError
        If the threshold is not a fraction.
    """

    images: Tensor | Callable[[Any], Tensor]
    folder: Path | str
    _: KW_ONLY
    target: AnyTarget = None
    method: str = "grad-cam"
    layer: str | None = None
    score: str = "logit"
    activation: str | None = None
    output: str | int | None = None
    class_names: Sequence[str] = ()
    lesions: Tensor | np.ndarray | None = None
    affines: Sequence[np.ndarray] | None = None
    names: Sequence[str] = ()
    channel: int = 0
    threshold: float | int = THRESHOLD
    seed: int = 0
    log: Callable[[Look], object] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise UsageError(f"threshold is a fraction of the scale's top, above 0 and below 1, not {self.threshold}")


@dataclass(frozen=True, eq=False)
class Look:
    """What one look saw.

    Parameters
    ----------
    step
        The epoch or iteration, as the trainer counts them; 0 is before the first.
    numbers
        One for each image, in their order.
    maps
        The raw relevance of each image at its own size, `b *s`.
    picture
        The PNG of this look beside earlier ones.
    seconds
        What the look took, all together.
    """

    step: int
    numbers: tuple[Numbers, ...]
    maps: Float32[np.ndarray, "b *s"]
    picture: Path
    seconds: float


def begin(watch: Watch) -> None:
    """Refuse a folder that holds looks of another run, before a new run mixes with them.

    Raises
    ------
    UsageError
        If it holds any.
    """
    if old := steps_in(Path(watch.folder)):
        raise UsageError(
            f"{watch.folder} holds the looks of another run, up to step {old[-1]}; give each run a folder of its own"
        )


def look(watch: Watch, network: nn.Module, step: int, *, state: Any = None) -> Look:
    """Explain the watched images as the network is now, in evaluation mode, and write what is seen.

    What the folder holds of this step or later ones is of a run that was set back to an earlier checkpoint: it is replaced.

    Parameters
    ----------
    step
        At least 0; looks are ordered by it.
    state
        What `watch.images` is called with, if it is a function.

    Raises
    ------
    UsageError
        If the target, layer or method does not exist, or lesions, affines or names do not fit the images.
    ModelError
        If the network does not accept the images, or its weights are spread over several devices.
    OutputError
        If something cannot be written.
    """
    started, folder = time.monotonic(), Path(watch.folder)
    with untouched(network):
        given = watch.images(state) if callable(watch.images) else watch.images
        scenes = scenes_of(
            given, lesions=watch.lesions, affines=watch.affines, names=watch.names, channel=watch.channel
        )
        found = relevance(
            network, _as_weights(given, network), target=watch.target, method=watch.method, layer=watch.layer,
            score=watch.score, activation=watch.activation, output=watch.output, class_names=watch.class_names,
            seed=watch.seed,
        )  # fmt: skip
        now = Maps(step, found, digests(given))
        before = maps_before(folder, step)
        numbers = tuple(measured(now, before, n, scene) for n, scene in enumerate(scenes))
        write_maps(now, folder)
        write_numbers(numbers, folder)
        picture = write_picture(scenes, _shown(folder, now), folder, threshold=watch.threshold)
        seen = Look(step, numbers, now.on_input(), picture, time.monotonic() - started)
        if watch.log is not None:
            watch.log(seen)
    return seen


def look_if_possible(watch: Watch, network: nn.Module, step: int, *, state: Any = None) -> None:
    """Look, and warn if nothing can be written: a full disk must not end a training.

    Parameters and other errors are those of `look`.
    """
    try:
        look(watch, network, step, state=state)
    except OutputError as error:
        warnings.warn(f"medcam did not look at step {step}: {error}", RuntimeWarning, stacklevel=2)


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Let the network be as at inference for a while, and put back what training depends on: modes and random numbers.

    Flags are set one by one: `eval()` and `train()` of some modules do more than that, such as to merge weights.
    """
    modes = [(module, module.training) for module in network.modules()]
    numpys = np.random.get_state()  # noqa: NPY002  the user's augmentation may draw from it
    pythons = random.getstate()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            for module, _ in modes:
                module.training = False
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        np.random.set_state(numpys)  # noqa: NPY002
        random.setstate(pythons)


def _as_weights(images: Tensor, network: nn.Module) -> Tensor:
    """Return the images where the network's weights are, in their precision."""
    kinds = {type(each).__name__ for each in (*network.parameters(), *network.modules())}
    if kinds & _SPREAD:
        raise ModelError(
            "the network's weights are spread over several devices (FSDP or tensor parallel), so that one alone cannot run it; maps are "
            "watched where each device holds the whole network, as with DDP"
        )
    weights = next((p for p in network.parameters() if p.is_floating_point()), None)
    plain = images.detach().as_subclass(Tensor)
    if weights is None:
        return plain
    return plain.to(weights.device, weights.dtype if plain.is_floating_point() else plain.dtype)


def _shown(folder: Path, now: Maps) -> list[Maps]:
    """Return the looks that stand in the picture: the first, the latest, and some between, all of the same images."""
    steps = [step for step in steps_in(folder) if step < now.step]
    count = min(len(steps), _LOOKS_SHOWN - 1)
    chosen = [steps[round(n * (len(steps) - 1) / max(1, count - 1))] for n in range(count)]
    earlier = [read_maps(folder, step) for step in chosen]
    return [*(maps for maps in earlier if maps.digests == now.digests), now]
