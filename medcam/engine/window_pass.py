"""Windows in batches, in MONAI's order, and what the network predicts from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medcam.engine.capture import capture
from medcam.engine.outputs import Ending, Reading, ending_of, find_place, votes
from medcam.engine.skeleton import run
from medcam.engine.stitching import ALL, Stitch
from medcam.engine.study import Progress
from medcam.engine.sweep import Setting, Wish
from medcam.engine.tiling import Tiling
from medcam.errors import UsageError


@dataclass(frozen=True)
class Spot:
    """One window: of which volume, where it begins, and its number among all."""

    volume: int
    corner: tuple[int, ...]
    number: int


@final
@dataclass(frozen=True, eq=False)
class Job:
    """What all passes of one call share.

    Parameters
    ----------
    setting
        Its `inputs` are the padded volumes.
    tiling
        With its importance where windows run.
    at_once
        How many windows run together.
    device
        Where results are put together.
    reading
        How the network's output is read.
    progress
        Told after each batch how many windows have run, and how many will as far as is known.
    wishes
        The methods that share a pass, and their places among all.
    """

    setting: Setting
    tiling: Tiling
    at_once: int
    device: torch.device
    reading: Reading
    progress: Progress
    wishes: tuple[tuple[int, Wish], ...] = ()

    @cached_property
    def placed(self) -> Tiling:
        """The tiling with its importance where results are put together."""
        return replace(self.tiling, importance=self.tiling.importance.to(self.device))

    @property
    def volumes(self) -> int:
        return int(self.setting.inputs.shape[0])

    @property
    def every(self) -> range:
        """The numbers of all windows, volume after volume."""
        return range(self.volumes * len(self.tiling.corners))

    @property
    def needs(self) -> frozenset[str]:
        """What the methods need of a pass."""
        return frozenset[str]().union(*(wish.explainer.needs for _, wish in self.wishes))

    def volume_of(self, number: int) -> int:
        """Return the volume that a window belongs to."""
        return number // len(self.tiling.corners)

    def batches(self, visit: Sequence[int], done: int, total: int) -> Iterator[tuple[list[Spot], Setting]]:
        """Yield windows in batches as MONAI makes them, with the setting that holds their voxels."""
        corners, inputs = self.tiling.corners, self.setting.inputs
        for start in range(0, len(visit), self.at_once):
            numbers = visit[start : start + self.at_once]
            spots = [Spot(self.volume_of(n), corners[n % len(corners)], n) for n in numbers]
            parts = [inputs[self.tiling.box(spot.corner, slice(spot.volume, spot.volume + 1), ALL)] for spot in spots]
            data = torch.cat(parts) if len(parts) > 1 else parts[0]
            yield spots, replace(self.setting, inputs=data.to(self.tiling.importance.device))
            self.progress(done + start + len(numbers), total)

    def read(self, windows: int) -> Reading:
        """Return how the network's output for so many windows is read."""
        channels = self.setting.inputs.shape[1]
        return replace(self.reading, input_shape=(windows, channels, *self.tiling.roi))

    def scores_in(self, output: Any, windows: int) -> Float[Tensor, "n classes *s"]:
        """Return the class scores in a network's output for some windows.

        Raises
        ------
        UsageError
            If they have voxels, and not those of the window.
        """
        sides = self.tiling.roi
        logits = find_place(output, self.read(windows))[0].of(output)
        if logits.ndim > 2 and tuple(logits.shape[2:]) != sides:
            raise UsageError(
                f"the network answers a window of {' x '.join(map(str, sides))} voxels with an output of shape {tuple(logits.shape)}; "
                "windows need one score for each voxel, or one for the whole window"
            )
        return logits

    def inside(self, values: Float[Tensor, "n *s"]) -> Float[Tensor, "n *own"]:
        """Return what a window gave without what lies in padding; `values` has voxels on its last axes, or none."""
        lead = values.ndim - len(self.tiling.roi)
        if not self.tiling.is_padded or lead < 1:
            return values
        return values[self.tiling.inside_of(*[ALL] * lead)]

    def stitch(self, takers: Sequence[Callable[[int, int, Tensor], None]]) -> Stitch:
        """Return what puts windows' outputs together for all that take them."""

        def give(volume: int, first: int, rows: Tensor) -> None:
            for take in takers:
                take(volume, first, rows)

        return Stitch(self.placed, give)

    def add(self, stitch: Stitch, spots: Sequence[Spot], logits: Float[Tensor, "n classes *s"]) -> None:
        """Add what the network gave for some windows."""
        # Weighed where they were made, before they are copied to a host that would be slower at it.
        weighted = (logits.detach() * self.tiling.importance).to(self.device)
        for spot, window in zip(spots, weighted, strict=True):
            stitch.add(spot.volume, spot.corner, window)


@final
@dataclass(frozen=True, eq=False)
class Look:
    """What the output for one window shows: how many classes there are, whether each voxel has scores, and what makes probabilities."""

    classes: int
    of_voxels: bool
    ending: Ending


def look(job: Job, window: Float[Tensor, "1 c *s"]) -> Look:
    """Run the network on one window, with a graph, to see what its output is."""
    output = capture(job.setting.network, window, [layer.name for layer in job.setting.layers[:1]]).output
    logits = job.scores_in(output, 1)
    return Look(logits.shape[1], logits.ndim > 2, job.reading.ending or ending_of(logits, job.reading.activation))


@final
@dataclass(frozen=True, eq=False)
class Prediction:
    """What one pass without maps found.

    Parameters
    ----------
    classes
        The class predicted for each volume, by the stitched output; for a classifier by the mean of all windows' scores.
    present
        Which window predicts which class somewhere; None for a classifier.
    """

    classes: tuple[int, ...]
    present: Bool[Tensor, "windows classes"] | None


@final
class Kept:
    """Stitched outputs, kept whole on the device where results are put together."""

    def __init__(self, volumes: int, sides: tuple[int, ...]) -> None:
        self._lead, self._sides = volumes, sides
        self.logits: Tensor | None = None

    def take(self, volume: int, first: int, rows: Float[Tensor, "k r *s"]) -> None:
        """Keep some rows of a volume."""
        if self.logits is None:
            self.logits = rows.new_empty((self._lead, len(rows), *self._sides))
        self.logits[volume, :, first : first + rows.shape[1]] = rows


@final
class _Count:
    """How many voxels of the stitched output are predicted as each class."""

    def __init__(self, volumes: int, ending: Ending) -> None:
        self._volumes, self._ending = volumes, ending
        self.votes: Tensor | None = None

    def take(self, volume: int, _first: int, rows: Float[Tensor, "k r *s"]) -> None:
        """Count some rows of a volume."""
        found = votes(rows.unsqueeze(0), self._ending)[0]
        if self.votes is None:
            self.votes = found.new_zeros((self._volumes, len(rows)))
        self.votes[volume] += found


def predict(job: Job, ending: Ending, kept: Kept | None) -> Prediction:
    """Run the network over all windows, and say which class is predicted; `kept` takes the stitched output, if given."""
    count = _Count(job.volumes, ending)
    stitch = job.stitch([count.take, *([kept.take] if kept else [])])
    sums, present = [], []
    for spots, setting in job.batches(job.every, 0, 2 * len(job.every)):
        with torch.no_grad():
            logits = job.scores_in(run(setting.network, setting.inputs), len(spots))
        if logits.ndim == 2:
            sums.append(logits)
        else:
            present.append(votes(job.inside(logits), ending) > 0)
            job.add(stitch, spots, logits)
    stitch.finish()
    if count.votes is None:
        means = torch.cat(sums).reshape(job.volumes, len(job.tiling.corners), -1).mean(1)
        return Prediction(tuple(means.argmax(1).tolist()), None)
    if ending.name != "sigmoid":
        count.votes[:, 0] = -1  # background
    return Prediction(tuple(count.votes.argmax(1).tolist()), torch.cat(present).cpu())
